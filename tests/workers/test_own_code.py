"""Users' modules beside the team file, whatever they are called: each side's `import` means its own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

import workers
from workers.config.extensions import load_reference
from workers.config.own_code import import_from


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A team's folder, whose modules have the names of ours, of Python's and of an installed package."""
    (tmp_path / "fusion").mkdir()
    (tmp_path / "fusion" / "__init__.py").write_text("from .parts import name\n")
    (tmp_path / "fusion" / "parts.py").write_text("import workers\nname = __name__\n")
    files = {
        "workers.py": "import fusion.parts as parts\nimport fusion, torch, orchestrator.home\nimport os.path\n"
        "from random import mine\n",
        "random.py": "mine = 'random'\n",
        "torch.py": "mine = 'torch'\n",
        "os.py": "raise RuntimeError('Python itself has this one, before any folder')\n",
        "net.py": "def value():\n    import random\n    return random.mine\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    import_from([str(tmp_path)])
    return tmp_path


def test_each_side_s_import_means_its_own(folder: Path) -> None:
    import random

    import torch

    import fusion

    before = dict(sys.modules)
    names = ("parts", "fusion", "torch", "orchestrator", "mine")
    theirs: dict[str, Any] = {name: load_reference(f"workers:{name}") for name in names}
    assert theirs["parts"].name.endswith(".fusion.parts")
    assert theirs["fusion"].name == theirs["parts"].name
    assert theirs["parts"].workers is not workers
    assert theirs["torch"].mine == "torch"
    assert theirs["mine"] == "random"
    assert theirs["orchestrator"].__name__ == "orchestrator", "ours, where they have none"
    assert load_reference("net:value")() == "random", "also in a function"
    assert {name: module for name, module in sys.modules.items() if name in before} == before
    assert (sys.modules["random"], sys.modules["torch"], sys.modules["fusion"]) == (random, torch, fusion)
    assert not list(folder.rglob("__pycache__")), "nothing is written beside the team file"


def test_another_team_s_module_of_the_same_name_is_another(folder: Path, tmp_path: Path) -> None:
    first = load_reference("random:mine")
    other = tmp_path / "other"
    other.mkdir()
    (other / "random.py").write_text("mine = 'other'\n")
    import_from([str(other)])
    assert (first, load_reference("random:mine")) == ("random", "other")
    assert load_reference("json:dumps")([]) == "[]", "and what is not there is Python's"

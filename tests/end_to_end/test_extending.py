"""Every example of docs/extending.md works as it stands, and its page is all that is needed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest

from tests.factories import ROOT
from tests.faults.place import SMALL, TEAM

PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(python|yaml)\n(.*?)```", PAGE, re.DOTALL)
MODULES = {text.split("\n", 1)[0].removeprefix("# "): text for kind, text in BLOCKS if kind == "python"}
EXTENDED, OWN = (text for kind, text in BLOCKS if kind == "yaml")
EXAMPLES = [path for path in MODULES if path != "own.py"]
GROUPS = {"methods": "fusions", "augmentations": "augmentations", "optimizers": "optimizers", "layouts": "layouts"}


def sweep(folder: Path, text: str, code: Path = ROOT, **more: str) -> dict[str, Any]:
    (folder / "team.yaml").write_text(text)
    words = [sys.executable, "-m", "conclave", "sweep", "team.yaml", "--home", "home", "--inline", "--json"]
    env = {"PATH": "", "HOME": str(folder), "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{code}:{folder}", **more}
    done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def holds(summary: dict[str, Any]) -> None:
    assert summary["state"] == "done"
    assert set(summary["members"]) == {"a", "b"}
    assert onnx.load(summary["model"]).graph.output[0].name == "probabilities"


def test_each_example_is_complete_and_short() -> None:
    assert [Path(path).name for path in EXAMPLES] == ["maximum.py", "noise.py", "rmsprop.py", "shapes.py", "tiny.py"]
    for path in EXAMPLES:
        assert len(MODULES[path].strip().splitlines()) <= 31, f"{path}: its first line is its place"


def test_a_module_in_its_folder_is_all_that_it_takes(tmp_path: Path) -> None:
    code = tmp_path / "code"
    for package in ("conclave", "orchestrator", "fusion", "workers"):
        shutil.copytree(ROOT / package, code / package, ignore=shutil.ignore_patterns("__pycache__"))
    for path in EXAMPLES:
        assert not (code / path).exists()
        (code / path).write_text(MODULES[path])
    summary = sweep(tmp_path, EXTENDED, code)
    holds(summary)
    assert set(summary["fusions"]) == {"vote", "maximum"}
    words = [sys.executable, "-m", "conclave", "export", "extended", "--method", "maximum", "--home", "home"]
    env = {"HOME": str(tmp_path), "PYTHONPATH": str(code)}
    subprocess.run(words, cwd=tmp_path, env=env, check=True, capture_output=True)
    assert json.loads((tmp_path / "extended-maximum.json").read_text())["combiner"] == "Maximum"


def test_an_entry_point_of_another_distribution_is_found(tmp_path: Path) -> None:
    groups: dict[str, list[str]] = {}
    for path in EXAMPLES:
        name = Path(path).stem
        (tmp_path / f"my_{name}.py").write_text(MODULES[path])
        group = GROUPS.get(Path(path).parent.name, "architectures")
        cls = re.findall(r"^class (\w+)", MODULES[path], re.MULTILINE)[0]
        groups.setdefault(group, []).append(f"{name} = my_{name}:{cls}")
    info = tmp_path / "my_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    lines = [line for group, points in groups.items() for line in (f"[conclave.{group}]", *points)]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    holds(sweep(tmp_path, EXTENDED))


def test_what_is_of_the_users_own_is_trained_with_and_its_code_counts(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(MODULES["own.py"])
    first = sweep(tmp_path, OWN)
    holds(first)
    assert sweep(tmp_path, OWN)["trained"] == 0
    (tmp_path / "own.py").write_text(MODULES["own.py"].replace("** 2", "** 3"))
    assert sweep(tmp_path, OWN)["trained"] == 2, "both name something of this module"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (('"own:Posterize"', '"own:Nothing"'), "own:Nothing: can't be imported (AttributeError"),
        (('"own:Posterize"', '"own:focal"'), "augment own:focal: it is no subclass of conclave.extending.Augmentation"),
        (('"own:focal"', '"own:warmup"'), "loss own:warmup: "),
        (("decay: 0.01", "speed: 3"), "optimizer own:SignSgd: "),
        (("epochs: 1}", "epoch: 1}"), "schedule own:warmup: "),
        (('"own:focal"', '"nowhere:focal"'), "nowhere:focal: can't be imported (ModuleNotFoundError"),
    ],
)
def test_what_of_the_users_own_does_not_work_is_told_before_anything_is_written(
    change: tuple[str, str], expected: str, tmp_path: Path
) -> None:
    (tmp_path / "own.py").write_text(MODULES["own.py"])
    (tmp_path / "team.yaml").write_text(OWN.replace(*change))
    words = [sys.executable, "-m", "conclave", "sweep", "team.yaml", "--home", "home", "--inline"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert expected in done.stderr
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("@FUSIONS.register\n", ""), "fusion maximum: fusion/methods/maximum.py registers no class. Put the decorator"),
        (("class Maximum", "class class"), "fusion maximum: fusion.methods.maximum can't be imported (SyntaxError: "),
    ],
)
def test_a_module_that_is_not_finished_is_told(change: tuple[str, str], expected: str, tmp_path: Path) -> None:
    code = tmp_path / "code"
    for package in ("conclave", "orchestrator", "fusion", "workers"):
        shutil.copytree(ROOT / package, code / package, ignore=shutil.ignore_patterns("__pycache__"))
    (code / "fusion/methods/maximum.py").write_text(MODULES["fusion/methods/maximum.py"].replace(*change))
    (tmp_path / "team.yaml").write_text("name: t\nmembers: [{name: a}]\nfusion: [maximum]\n")
    words = [sys.executable, "-m", "conclave", "validate", "team.yaml"]
    env = {"HOME": str(tmp_path), "PYTHONPATH": str(code)}
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert expected in done.stderr


def test_a_source_without_a_name_is_answered(tmp_path: Path) -> None:
    (tmp_path / "my_tiny.py").write_text(MODULES["workers/models/architectures/tiny.py"])
    info = tmp_path / "my_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[conclave.architectures]\ntiny = my_tiny:Tiny\n")
    (tmp_path / "team.yaml").write_text(
        "name: t\nmembers: [{name: a, arch: tiny}, {name: b, arch: tiny/mlp}, {name: c, arch: tiny/x}]\n"
    )
    env = {"HOME": str(tmp_path), "PYTHONPATH": f"{ROOT}:{tmp_path}"}
    words = [sys.executable, "-m", "conclave", "validate", "team.yaml"]
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "members[0].arch: tiny is a source of networks; say which of them, as tiny/NAME" in done.stderr
    assert "members[2].arch: unknown network tiny/x; known are tiny/linear and tiny/mlp" in done.stderr
    schema = subprocess.run([*words[:3], "schema"], env=env, capture_output=True, text=True, check=True).stdout
    assert "a network of timm or tiny as SOURCE/NAME" in schema


@pytest.mark.parametrize("start", ["conclave", "module"])
def test_a_team_s_modules_may_have_the_names_of_our_packages(tmp_path: Path, start: str) -> None:
    """In the trainers too, whose import path Ray makes of the driver's; with the folder in PYTHONPATH, and warnings as errors."""
    (tmp_path / "fusion").mkdir()
    (tmp_path / "fusion" / "__init__.py").write_text("mine = 1\n")
    (tmp_path / "orchestrator.py").write_text("raise RuntimeError('nobody imports it')\n")
    (tmp_path / "workers.py").write_text(f"import fusion\nassert fusion.mine\n{SMALL}")
    (tmp_path / "team.yaml").write_text(TEAM.replace("small:Small", "workers:Small"))
    words = [str(Path(sys.executable).with_name("conclave"))] if start == "conclave" else [sys.executable, "-m", "conclave"]
    env = {**os.environ, "PYTHONPATH": ".", "PYTHONWARNINGS": "error"}
    for more in (["validate", "team.yaml"], ["sweep", "team.yaml", "--home", "home"]):
        done = subprocess.run([*words, *more], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert "retry" not in done.stderr
    assert "Warning" not in done.stderr

"""Promises about the code as a whole."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("conclave", "orchestrator", "fusion", "workers")
HEAVY = ("torch", "ray", "mlflow", "sklearn")


def _printed_by(code: str, folder: Path = ROOT) -> str:
    """What a fresh Python prints that runs this code."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("command", [["--help"], ["validate", "TEAM"], ["plan", "TEAM"], ["sweep", "--help"]])
def test_light_commands_import_neither_torch_nor_ray_nor_mlflow(command: list[str], team_file: Path) -> None:
    arguments = [str(team_file) if a == "TEAM" else a for a in command]
    code = (
        f"import sys; sys.argv = ['conclave', *{arguments!r}]\nfrom orchestrator import cli\n"
        f"try: cli.main()\nexcept SystemExit as e: assert not e.code\n"
        f"print('HEAVY', [m for m in {HEAVY!r} if m in sys.modules])"
    )
    assert "HEAVY []" in _printed_by(code, team_file.parent)


def test_a_trainer_imports_neither_mlflow_nor_sklearn_before_its_first_step() -> None:
    modules = "workers.runtime.actor, workers.tracking.job_run, workers.runtime.training_job"
    code = f"import {modules}, sys; print([m for m in {HEAVY!r} if m in sys.modules])"
    assert _printed_by(code).strip() == "['torch', 'ray']"


def test_a_team_of_networks_that_are_sure_to_work_is_checked_and_handed_over_without_torch(team_file: Path) -> None:
    """Importing torch takes a driver three seconds. On a machine with a GPU it is asked for the GPU's name."""
    code = (
        "import sys; from pathlib import Path; from orchestrator.config.loader import load_team\n"
        "from orchestrator.execution.preflight import check_recipes\n"
        f"check_recipes(load_team(Path({str(team_file)!r})), ())\n"
        "import orchestrator.execution.ray_executor\n"
        "from workers.runtime import environment\n"
        "environment.DRIVERS = ()\n"
        "environment.environment()\n"
        "print('TORCH', 'torch' in sys.modules)"
    )
    assert "TORCH False" in _printed_by(code)


def test_a_training_of_a_built_in_network_does_not_import_torchvision() -> None:
    """It takes each process more than a second."""
    code = (
        "import sys; from tests.factories import fitted, member\n"
        "fitted(); fitted(member(optimizer={'kind': 'adamw'}))\n"
        "print('HEAVY', [m for m in ('torchvision', 'mlflow', 'ray') if m in sys.modules])"
    )
    assert "HEAVY []" in _printed_by(code)


def test_no_source_loads_a_pickle() -> None:
    """The one unpickler reads torchvision's CIFAR files, and refuses everything but arrays."""
    for path in [p for package in PACKAGES for p in (ROOT / package).rglob("*.py")]:
        text = path.read_text()
        assert "pickle.load(" not in text
        assert "pickle.loads(" not in text
        assert "torch.load(" not in text or "weights_only=True" in text


def test_no_source_file_is_hidden_from_git() -> None:
    """As `data/` in .gitignore once hid workers/data: the checkout worked, and every clone of it did not."""
    words = ["git", "ls-files", "--others", "--ignored", "--exclude-standard", *PACKAGES]
    hidden = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False).stdout.splitlines()
    assert [name for name in hidden if "__pycache__" not in name] == []


FOLDERS = "tests|docs|benchmarks|orchestrator|fusion|workers|examples|scripts"
CITED = re.compile(rf"(?<![\w/.])((?:{FOLDERS})/[\w./-]+\.(?:py|md|yaml|json|j2))\b")
EXAMPLES = {path for path in re.findall(r"```python\n# (\S+)", (ROOT / "docs/extending.md").read_text()) if "/" in path}
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")


def _texts(*patterns: str) -> Iterator[tuple[Path, str]]:
    words = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns]
    for name in subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines():
        if (ROOT / name).is_file():
            yield ROOT / name, (ROOT / name).read_text()


def test_every_file_that_code_and_documents_cite_exists() -> None:
    """A comment that cites what was moved or removed misleads whoever follows it."""
    missing = {
        f"{path.relative_to(ROOT)}: {name}"
        for path, text in _texts("*.py", "*.md", "*.yaml", "*.toml", "Makefile")
        for name in CITED.findall(text)
        if not (ROOT / name).exists() and name not in EXAMPLES
    }
    assert missing == set()


def test_every_link_of_the_documents_leads_somewhere() -> None:
    broken = {
        f"{path.relative_to(ROOT)}: {link}"
        for path, text in _texts("*.md")
        for link in LINK.findall(text)
        if not (path.parent / link).exists()
    }
    assert broken == set()

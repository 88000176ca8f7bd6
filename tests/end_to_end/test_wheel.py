"""The wheel holds all that a sweep needs: it is installed alone, and sweeps far away from the checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.factories import ROOT, TEAM, picture

PACKAGES = ("conclave", "orchestrator", "fusion", "workers")


def _run(*words: object, folder: Path) -> str:
    """Run a command without this checkout on its path; return what it printed."""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([str(word) for word in words], cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _copy_of_the_source(folder: Path) -> Path:
    """Copy what git tracks, or would track, so that the build leaves nothing in the checkout."""
    words = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *PACKAGES, "pyproject.toml", "README.md", "LICENSE"]
    for name in subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    return folder


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment with the wheel, which sees the packages of the lock file but not this checkout."""
    work = tmp_path_factory.mktemp("wheel")
    source = _copy_of_the_source(work / "source")
    _run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", work, source, folder=work)
    [wheel] = work.glob("conclave_ensembles-*.whl")
    venv.create(work / "env", with_pip=True)
    scripts = work / "env" / "bin"
    purelib = _run(scripts / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", folder=work).strip()
    _run(scripts / "python", "-m", "pip", "install", "-q", "--no-deps", "--no-index", wheel, folder=work)
    # A folder that a .pth file names is put on the path, but its own .pth files, such as the one of this checkout, are not read.
    Path(purelib, "locked.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return scripts


def test_the_wheel_alone_holds_every_package(installed: Path, tmp_path: Path) -> None:
    code = f"import importlib; print([importlib.import_module(name).__file__ for name in {PACKAGES!r}])"
    files = _run(installed / "python", "-c", code, folder=tmp_path)
    assert files.count(str(installed.parent)) == len(PACKAGES), files
    assert str(ROOT / "conclave") not in files
    import conclave

    assert _run(installed / "conclave", "--version", folder=tmp_path).strip() == f"conclave {conclave.__version__}"


def test_the_wheel_sweeps_outside_the_checkout(installed: Path, tmp_path: Path) -> None:
    """On Ray actors: they too have to find every module, the report's template and the files beside it."""
    (tmp_path / "team.yaml").write_text(TEAM)
    (tmp_path / "photo.png").write_bytes(picture(1))
    out = _run(installed / "conclave", "sweep", "team.yaml", "--home", "home", "--json", folder=tmp_path)
    summary = json.loads(out.splitlines()[-1])
    assert (summary["state"], summary["trained"]) == ("done", 6)
    assert "<html" in (tmp_path / "home/sweeps/tiny/report.html").read_text()
    _run(installed / "conclave", "init", "new.yaml", folder=tmp_path)
    assert "photo.png" in _run(installed / "conclave", "predict", summary["model"], "photo.png", folder=tmp_path)

"""The images' files: linted, one lock for all, nobody is root, no secret and no index in them. Built by `benchmarks.images`."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.factories import TEAM

ROOT = Path(__file__).parents[2]
DOCKERFILES = sorted((ROOT / "docker").glob("*Dockerfile"))


def instructions(path: Path, name: str) -> list[str]:
    text = re.sub(r"\\\n", " ", path.read_text())
    return [line.partition(" ")[2].strip() for line in text.splitlines() if line.startswith(f"{name} ")]


def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    found = subprocess.run([hadolint, *DOCKERFILES], cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_versions_are_the_locks_and_nobody_is_root(path: Path) -> None:
    for command in instructions(path, "RUN"):
        for install in re.findall(r"pip install [^&]*", command):
            assert "requirements.lock" in install or "--no-deps" in install, install
        assert "sudo" not in command
        assert "--mount=type=secret,id=pip" in command
    assert instructions(path, "USER")[-1] == "1000"
    assert re.search(r"^ARG BASE=\S+:\S+$", path.read_text(), re.M), "by tag or digest"
    assert not re.search(r"index-url +https?://(?!download\.pytorch\.org)|trusted-host|password *=", path.read_text(), re.I)


def test_the_notebooks_lock_adds_and_changes_nothing() -> None:
    def names(path: str) -> set[str]:
        return {line.partition("==")[0] for line in (ROOT / path).read_text().splitlines() if not line.startswith("#")}

    assert "jupyterlab" in names("docker/notebook.lock")
    assert not names("docker/notebook.lock") & names("requirements.lock")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return YAML(typ="safe", pure=True).load(ROOT / "docker" / "compose.yaml")  # type: ignore[no-any-return]


def test_every_service_is_watched_and_only_this_machine_can_call(compose: dict[str, Any]) -> None:
    assert set(compose["services"]) == {"database", "tracking", "head", "worker", "gpu-worker", "notebook"}
    for name, service in compose["services"].items():
        assert "healthcheck" in service, name
        assert re.search(r":[\w.${}-]+$", service["image"]) or "build" in service, name
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), name
        for volume in service.get("volumes", ()):
            assert volume.split(":")[0] in compose["volumes"], f"{name}: {volume} is no named volume"


def test_no_secret_stands_in_the_file_and_ray_has_its_token_everywhere(compose: dict[str, Any]) -> None:
    text = (ROOT / "docker" / "compose.yaml").read_text()
    for secret in ("RAY_AUTH_TOKEN", "TRACKING_PASSWORD"):
        assert f"${{{secret}:?" in text, "refused where it is not set"
    for name in ("head", "worker", "gpu-worker", "notebook"):
        assert compose["services"][name]["environment"]["RAY_AUTH_MODE"] == "token"
    assert "--dashboard-host=127.0.0.1" in compose["services"]["head"]["command"]
    assert compose["services"]["gpu-worker"]["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]
    assert ".env" in (ROOT / ".gitignore").read_text().split()


def test_the_server_of_the_file_is_one_that_conclave_starts(compose: dict[str, Any]) -> None:
    words = compose["services"]["tracking"]["command"]
    command = [sys.executable, "-m", "conclave", words[1], "--help"]
    known = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "200"}).stdout
    assert words[0] == "conclave"
    for option in [word for word in words if word.startswith("--")]:
        assert option in known


def test_the_notebooks_cells_run_on_a_finished_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from orchestrator import sweep as pipeline
    from orchestrator.execution.ray_backend import inline_executor
    from orchestrator.home import Home

    (tmp_path / "team.yaml").write_text(TEAM.replace("folds: 2", "folds: 0") + "fusion: [vote]\n")
    pipeline.run_sweep(tmp_path / "team.yaml", pipeline.SweepOptions(Home(tmp_path / "home"), inline_executor))
    cells = json.loads((ROOT / "docker" / "ensemble.ipynb").read_text())["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    monkeypatch.setenv("CONCLAVE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CONCLAVE_SWEEP", "tiny")
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert "vote by hand" in found.stdout

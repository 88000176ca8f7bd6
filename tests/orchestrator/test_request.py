"""What a fusion request says of where a model comes from."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from orchestrator.fusing import request


@pytest.mark.skipif(not shutil.which("git"), reason="there is no git")
def test_the_commit_is_that_of_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request, "__file__", str(tmp_path / "request.py"))
    assert request.code_commit() == "unknown", "no repository"
    author = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    for words in (["init", "-q"], [*author, "commit", "-q", "--allow-empty", "-m", "x"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    [branch] = (tmp_path / ".git" / "refs" / "heads").iterdir()
    assert request.code_commit() == branch.read_text().strip()


def test_without_git_the_commit_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in an image: a sweep must not end there for it."""
    monkeypatch.setenv("PATH", "/nowhere")
    assert request.code_commit() == "unknown"

"""What a fusion request says of where a model comes from."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from orchestrator.fusing import request


def test_the_commit_is_that_of_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    git = shutil.which("git")
    words = ["git", "rev-parse", "HEAD"]
    folder = Path(request.__file__).parent
    answer = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False) if git else None
    expected = answer.stdout.strip() if answer and answer.returncode == 0 else "unknown"
    assert request.code_commit() == expected


def test_without_git_the_commit_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in an image: a sweep must not end there for it."""
    monkeypatch.setenv("PATH", "/nowhere")
    assert request.code_commit() == "unknown"

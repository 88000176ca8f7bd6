"""What a summary rests on that is not of the sweep itself."""

from __future__ import annotations

import pytest

from orchestrator import results


def test_without_git_the_commit_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in an image: a sweep must not end there for it."""
    assert results._commit() != ""
    monkeypatch.setenv("PATH", "/nowhere")
    assert results._commit() == "unknown"

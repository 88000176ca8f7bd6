"""Injected faults leave a mark that is whole from the moment that it is there."""

import os
from pathlib import Path

import pytest

from workers.diagnostics import faults


def test_a_fault_that_happened_is_seen_with_its_process_id_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    monkeypatch.setenv("CONCLAVE_FAULT", "here:1:nan")
    monkeypatch.setenv("CONCLAVE_FAULT_DIR", str(marks))
    faults.set_job("a")
    asked: list[list[Path]] = []

    def getpid() -> int:
        asked.append(list(marks.iterdir()))
        return 7

    with monkeypatch.context() as patched:
        patched.setattr(os, "getpid", getpid)
        assert faults.fault_point("here") == "nan"
    assert asked
    assert not any(asked), "the mark is not there before its content is"
    assert (marks / "here:1:nan").read_text() == "7"
    assert faults.fault_point("here") == "", "once"
    assert list(tmp_path.iterdir()) == [marks]

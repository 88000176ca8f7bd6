"""What a driver imports while Ray starts."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from orchestrator.execution.preloading import OF_THE_DRIVER, preload


def test_a_module_that_cannot_be_imported_holds_up_none_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_for_preload.py").write_text("raise RuntimeError('broken')")
    (tmp_path / "whole_for_preload.py").write_text("value = 1")
    monkeypatch.syspath_prepend(tmp_path)
    preload(["broken_for_preload", "not_there_for_preload", "whole_for_preload"]).join(30)
    assert sys.modules["whole_for_preload"].value == 1
    assert "broken_for_preload" not in sys.modules


def test_what_the_driver_preloads_can_be_imported() -> None:
    for module in OF_THE_DRIVER:
        assert __import__(module)

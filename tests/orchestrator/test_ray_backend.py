"""What a driver imports and begins before there is a job."""

from __future__ import annotations

import gc
import socket
import sys
from pathlib import Path

import pytest

from orchestrator.execution.ray_backend import DRIVER_MODULES, RayBackend
from workers.config.resources import Resources
from workers.diagnostics.imports import import_all
from workers.errors import UserInputError


def test_a_module_that_cannot_be_imported_holds_up_none_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_for_preload.py").write_text("raise RuntimeError('broken')")
    (tmp_path / "whole_for_preload.py").write_text("value = 1")
    monkeypatch.syspath_prepend(tmp_path)
    import_all(["broken_for_preload", "not_there_for_preload", "whole_for_preload"])
    assert sys.modules["whole_for_preload"].value == 1
    assert "broken_for_preload" not in sys.modules


def test_what_the_driver_preloads_can_be_imported() -> None:
    for module in DRIVER_MODULES:
        assert __import__(module)


def test_pythons_collector_rests_for_the_imports_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "looks_for_preload.py").write_text("import gc\nwas_enabled = gc.isenabled()\n")
    monkeypatch.syspath_prepend(tmp_path)
    import_all(["broken_for_preload_again", "looks_for_preload"])
    assert sys.modules["looks_for_preload"].was_enabled is False
    assert gc.isenabled()


def test_a_cluster_is_asked_for_nothing_before_there_is_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its machines may cost money as soon as a trainer asks for them."""
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    backend = RayBackend("127.0.0.1:9", lambda text: None)
    with pytest.raises(UserInputError, match="no Ray answers there"):
        backend.begin([(Resources(), 1)])
    assert "connection" not in vars(backend)
    with socket.socket() as head:
        head.bind(("127.0.0.1", 0))
        head.listen()
        backend = RayBackend(f"127.0.0.1:{head.getsockname()[1]}", lambda text: None)
        backend.begin([(Resources(), 1)])
    assert backend.begun == []
    assert "connection" not in vars(backend)
    backend.close()

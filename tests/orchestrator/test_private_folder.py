"""The folder of a local Ray: ours alone, and removed by whoever comes next where its driver is gone."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from orchestrator.cluster import private_folder
from orchestrator.cluster.private_folder import LONGEST, PrivateFolder, pid_space


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Path:
    made = Path("/tmp", f"pf{os.getpid()}")
    made.mkdir()
    monkeypatch.setattr(private_folder, "PLACES", (str(made),))
    monkeypatch.setattr(tempfile, "tempdir", f"/nowhere/{'long-' * 20}")
    return made


def test_only_the_folders_of_drivers_that_are_gone_are_removed(place: Path) -> None:
    try:
        mine = PrivateFolder.make()
        assert mine.path.parent == place, "TMPDIR is too long"
        assert len(str(mine.path)) <= LONGEST + 13
        assert (mine.path.stat().st_mode & 0o777, mine.token.stat().st_mode & 0o777) == (0o700, 0o600)
        owners = {
            "dead": f"1999999999 1.0 {pid_space()}",
            "another-process-of-that-number": f"{os.getpid()} 1.0 {pid_space()}",
            "elsewhere": "1999999999 1.0 another-container",
            "beginning": "",
        }
        for name, owner in owners.items():
            (place / f"clv-{name}").mkdir()
            (place / f"clv-{name}" / "owner").write_text(owner)
        (place / "clv-never-finished").mkdir()
        os.utime(place / "clv-never-finished", (1, 1))
        second = PrivateFolder.make()
        left = {path.name.removeprefix("clv-") for path in place.iterdir()}
        assert left == {"elsewhere", "beginning", *(one.path.name.removeprefix("clv-") for one in (mine, second))}
    finally:
        shutil.rmtree(place)

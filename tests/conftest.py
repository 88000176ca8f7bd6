"""Shared fixtures. Tests use their own Ray, homes and token path: nothing outside their temporary folder."""

import os
import signal
from pathlib import Path

import pytest

os.environ["RAY_AUTH_MODE"] = "token"
os.environ.pop("RAY_ADDRESS", None)
os.environ.pop("CONCLAVE_HOME", None)
os.environ.setdefault("OMP_NUM_THREADS", "1")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background job; what the tests start would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def team_file(tmp_path: Path) -> Path:
    from tests.factories import TEAM  # only now: it imports torch, which reads the settings above

    path = tmp_path / "team.yaml"
    path.write_text(TEAM)
    return path

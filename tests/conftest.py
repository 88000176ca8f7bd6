"""Shared fixtures. Tests use their own Ray, homes and token path: nothing outside their temporary folder."""

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]

os.environ["RAY_AUTH_MODE"] = "token"
os.environ.pop("RAY_ADDRESS", None)
os.environ.pop("CONCLAVE_HOME", None)
os.environ.setdefault("OMP_NUM_THREADS", "1")
settings.register_profile("conclave", deadline=None)  # on a busy machine an example may take any time
settings.load_profile("conclave")
# Folders of what takes long: whole sweeps, faults and clusters. `make test` leaves them out, and `make test-all` runs them.
SLOW = ("cluster", "end_to_end", "faults")
# Where a signal is ignored, what the tests start would ignore it too: SIGINT in a shell's background job, SIGHUP under nohup.
for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, usual)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is in a slow folder. A single test elsewhere can be marked by hand."""
    for item in items:
        if Path(item.path).relative_to(ROOT).parts[1] in SLOW:
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def team_file(tmp_path: Path) -> Path:
    from tests.factories import TEAM  # only now: it imports torch, which reads the settings above

    path = tmp_path / "team.yaml"
    path.write_text(TEAM)
    return path

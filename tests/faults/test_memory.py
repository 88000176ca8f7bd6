"""A trainer that the kernel ends for lack of memory, in a control group of its own, as in a container."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.place import TEAM, Place
from workers.diagnostics.memory import MemoryState, memory_state
from workers.diagnostics.waiting import wait_until

LIMIT = 5 * 10**9
GREEDY = """\
from pathlib import Path

from small import Small


class Greedy(Small):
    def forward(self, x):
        is_trainer = Path("/proc/self/cmdline").read_text().startswith("ray::")
        if is_trainer and self.training and not Path("MARKER").exists():
            Path("MARKER").touch()
            eaten = []
            while True:
                eaten.append(bytearray(b"x") * 100_000_000)
        return super().forward(x)
"""


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group with a limit of memory. The test is skipped where none can be made."""
    listed = Path("/proc/self/cgroup").read_text().splitlines()
    mine = {line.split(":")[1]: line.split(":")[2] for line in listed}
    old = "memory" in mine
    base = Path("/sys/fs/cgroup", "memory" if old else "", (mine["memory"] if old else mine.get("", "/")).strip("/"))
    made = base / f"conclave-test-{os.getpid()}"
    try:
        made.mkdir()
        (made / ("memory.limit_in_bytes" if old else "memory.max")).write_text(str(LIMIT))
    except OSError as error:
        if made.exists():
            made.rmdir()
        pytest.skip(f"no control group can be made here ({error})")
    yield made
    assert wait_until(lambda: _removed(made), 60), "what watched the sweep stays for a moment"


def _removed(group: Path) -> bool:
    try:
        group.rmdir()
    except OSError:
        return False
    return True


def test_the_kernel_s_own_kill_is_told_as_what_it_is_and_tried_again(group: Path, place: Place) -> None:
    (place.folder / "greedy.py").write_text(GREEDY.replace("MARKER", str(place.folder / "eaten")))
    place.write(TEAM.replace("{name: a}", "{name: a, arch: 'greedy:Greedy'}"))
    words = f"echo $$ > {group}/cgroup.procs; exec {sys.executable} -m conclave sweep team.yaml --home home --json"
    env = {**os.environ, "RAY_memory_monitor_refresh_ms": "0"}  # Ray's own monitor would come before the kernel
    done = subprocess.run(["bash", "-c", words], cwd=place.folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "a: retry  out of memory, limit 5.0 GB: lower train.batch_size (64), or let fewer trainings run at once" in done.stderr
    summary: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert summary["state"] == "done"


@pytest.mark.parametrize(
    ("listed", "files", "expected"),
    [
        ("0::/\n", {"memory.events": "oom 2\noom_kill 3\n", "memory.max": "max\n"}, MemoryState(3)),
        (
            "0::/pod/c1\n",
            {"pod/c1/memory.events": "oom_kill 1\n", "pod/c1/memory.max": "1100000000\n"},
            MemoryState(1, 1_100_000_000),
        ),
        (
            "4:memory:/docker/abc\n0::/\n",
            {"memory/memory.oom_control": "under_oom 0\noom_kill 2\n", "memory/memory.limit_in_bytes": "9223372036854771712\n"},
            MemoryState(2),
        ),
        ("", {}, MemoryState()),
    ],
)
def test_control_groups_of_both_versions_are_read(
    listed: str, files: dict[str, str], expected: MemoryState, tmp_path: Path
) -> None:
    (tmp_path / "process").write_text(listed)
    for name, content in files.items():
        (tmp_path / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cgroup" / name).write_text(content)
    assert memory_state(tmp_path / "cgroup", tmp_path / "process") == expected

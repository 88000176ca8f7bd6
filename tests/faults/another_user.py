"""Run a command as the user nobody, who can do only what anybody can. It takes root."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest

from tests.factories import ROOT

NOBODY = 65534
NEEDED = (Path(sys.base_prefix), Path(sys.prefix), ROOT)  # what a command reads: Python, the packages, and the project


@cache
def why_not() -> str:
    """Return why no command can be run as another user here; "" where one can."""
    if os.geteuid() != 0:
        return "runs a command as another user, which needs root; runs in CI, which is root"
    if missing := [name for name in ("unshare", "setpriv", "mount") if shutil.which(name) is None]:
        return f"runs a command as another user, which needs {missing[0]}"
    tried = run_as_nobody([sys.executable, "-c", "import conclave"], Path("/tmp"), {})
    return f"this machine lets nobody become another user: {tried.stderr.strip()}" if tried.returncode else ""


def needs_another_user() -> None:
    """Skip a test where no command can be run as another user."""
    if reason := why_not():
        pytest.skip(reason)


def run_as_nobody(words: Sequence[str], folder: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a command in `folder` as nobody, in the group nogroup alone.

    Where Python or the project lies in somebody's closed folder, such as /root, they are mounted where they are for this command.
    """
    whole = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **env}
    with tempfile.TemporaryDirectory() as stage:
        script = [*_open_up(Path(stage)), f"cd {shlex.quote(str(folder))}", "umask 002"]
        script.append(f"exec setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups {shlex.join(words)}")
        command = ["unshare", "--mount", "sh", "-ec", "\n".join(script)]
        return subprocess.run(command, env=whole, capture_output=True, text=True, check=False)


def _open_up(stage: Path) -> list[str]:
    """Return shell lines that let everybody reach what a command reads, in this command's own view of the disk.

    The outermost closed folder is covered by an empty one. What is needed of it is mounted there again, by way of `stage`.
    """
    needed = [path.resolve() for path in NEEDED]
    closed = [top for path in needed for top in path.parents if not top.stat().st_mode & 0o001]
    if not closed:
        return []
    top = min(closed, key=lambda path: len(path.parts))
    inside = {path: stage / str(i) for i, path in enumerate(needed) if path.is_relative_to(top)}
    lines = [f"mkdir {held}; mount --bind {shlex.quote(str(path))} {held}" for path, held in inside.items()]
    lines.append(f"mount -t tmpfs -o mode=755 tmpfs {shlex.quote(str(top))}")
    return lines + [
        f"mkdir -p {shlex.quote(str(path))}; mount --bind {held} {shlex.quote(str(path))}" for path, held in inside.items()
    ]

"""The folder of a local Ray: its token, its session and its sockets, which only we can read."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from orchestrator.cluster.reaper import is_of_session
from workers.errors import ConclaveError

PREFIX = "clv-"
LONGEST = 26  # characters of a folder's path in which Ray's sockets still fit the 103 that systems allow
PLACES = ("/tmp", "/var/tmp", "/dev/shm")  # in this order, where TMPDIR is too long, as under SLURM and on macOS
OF_RAY = ("ray::", "/ray/")  # in the names of its processes
BEGINNING_SECONDS = 60.0  # in which a driver writes that a folder is its own
TOKEN, OWNER = "token", "owner"


@dataclass(frozen=True)
class PrivateFolder:
    """A folder of mode 0700 for one local Ray.

    Attributes:
        path: The folder.
    """

    path: Path

    @classmethod
    def make(cls) -> PrivateFolder:
        """Make a folder with a new token, and remove those of drivers that are gone. Raises ConclaveError where none can be."""
        cls.remove_abandoned()
        folder = cls(_make_folder())
        owner = psutil.Process()
        (folder.path / OWNER).write_text(f"{owner.pid} {owner.create_time()} {pid_space()}", encoding="utf-8")
        folder.token.touch(mode=0o600)
        folder.token.write_text(secrets.token_hex(32), encoding="utf-8")
        return folder

    @property
    def token(self) -> Path:
        """The file of the token."""
        return self.path / TOKEN

    @property
    def session(self) -> Path:
        """The folder for Ray's session. Ray opens it to everybody, and nobody comes through the folder around it."""
        return self.path / "r"

    def end_processes(self) -> None:
        """End the processes of Ray that belong to the folder."""
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                is_ray = any(word in " ".join(process.cmdline()) for word in OF_RAY)
                if is_ray and process.pid != os.getpid() and is_of_session(process, self.path):
                    process.kill()

    @classmethod
    def remove_abandoned(cls) -> None:
        """Remove the folders of drivers that died together with their reaper, and end what still runs of their Rays."""
        for place in _places():
            for path in place.glob(f"{PREFIX}*"):
                with contextlib.suppress(OSError):
                    if path.is_dir() and path.lstat().st_uid == os.getuid() and not _has_owner(path):
                        cls(path).end_processes()
                        shutil.rmtree(path, ignore_errors=True)


def _places() -> list[Path]:
    named = dict.fromkeys([tempfile.gettempdir(), *PLACES])
    return [Path(name) for name in named if len(name) <= LONGEST and os.access(name, os.W_OK | os.X_OK)]


def _make_folder() -> Path:
    problem = "none of them can be written to"
    for place in _places():
        try:
            return Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))  # of mode 0700
        except OSError as error:
            problem = str(error)
    raise ConclaveError(
        f"there is no room for Ray's sockets in {', '.join(PLACES)} ({problem}). Make room there, or set TMPDIR to a folder "
        f"whose path has at most {LONGEST} characters."
    )


def pid_space() -> str:
    """Return what tells the process ids of this container, or of the machine, from those of others that share the folder."""
    try:
        return f"{os.uname().nodename}:{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return os.uname().nodename


def _has_owner(path: Path) -> bool:
    """Return whether the driver of a folder runs, as far as can be told."""
    try:
        pid, created, space = (path / OWNER).read_text(encoding="utf-8").split()
        return space != pid_space() or abs(psutil.Process(int(pid)).create_time() - float(created)) < 1
    except psutil.NoSuchProcess:
        return False
    except (OSError, ValueError):  # nothing is written yet, or never was
        return time.time() - path.stat().st_mtime < BEGINNING_SECONDS
    except psutil.Error:
        return True

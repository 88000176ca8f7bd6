"""The private folder of a local Ray, readable only by its user: token, session and sockets."""

from __future__ import annotations

import atexit
import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from orchestrator.cluster.reaper import DISMISSED, OWNER, TOKEN, end_session
from workers.errors import ConclaveError
from workers.storage.files import file_lock

PREFIX = "clv-"
MAX_PATH = 26  # characters of a folder's path: Ray's socket paths below it must fit the system limit of 103
CANDIDATE_PARENTS = ("/tmp", "/var/tmp", "/dev/shm")  # tried in this order if TMPDIR is too long, as under SLURM and on macOS


@dataclass(frozen=True)
class PrivateFolder:
    """A folder of mode 0700 for one local Ray. The driver holds a lock on it until the driver ends or is killed.

    Attributes:
        path: The folder.
        owner: The locked file.
    """

    path: Path
    owner: TextIO

    @classmethod
    def make(cls) -> PrivateFolder:
        """Create a folder with a token and a reaper, and remove those of dead drivers. Raises ConclaveError on failure."""
        with _folder_lock():
            remove_abandoned()
            path, owner = _make_folder()
            print(os.getpid(), file=owner, flush=True)
        folder = cls(path, owner)
        folder.token.touch(mode=0o600)
        folder.token.write_text(secrets.token_hex(32), encoding="utf-8")
        reaper = [sys.executable, str(Path(__file__).with_name("reaper.py")), str(path)]
        subprocess.Popen(reaper, stdin=subprocess.DEVNULL, start_new_session=True)  # signals to our group do not reach it
        atexit.register(folder.dismiss)
        return folder

    @property
    def token(self) -> Path:
        """The file of the token."""
        return self.path / TOKEN

    @property
    def session(self) -> Path:
        """The folder for Ray's session. Ray makes it world-readable, but the private folder keeps other users out."""
        return self.path / "r"

    def dismiss(self) -> None:
        """Tell the reaper that the driver ends normally. A second call does nothing."""
        if not self.owner.closed:
            with contextlib.suppress(OSError):
                (self.path / DISMISSED).touch()
            self.owner.close()


def _folder_lock() -> contextlib.AbstractContextManager[object]:
    """Let only one process at a time create or remove folders: a folder has no owner while it is being created."""
    parents = _usable_parents()
    return file_lock(parents[0] / f"{PREFIX}{os.getuid()}.lock") if parents else contextlib.nullcontext()


def remove_abandoned() -> None:
    """Remove the folders of drivers that died together with their reaper, and kill their remaining Ray processes."""
    for parent in _usable_parents():
        for path in parent.glob(f"{PREFIX}*/"):
            with contextlib.suppress(OSError):
                if path.lstat().st_uid == os.getuid() and not _has_owner(path):
                    end_session(path)
                    shutil.rmtree(path, ignore_errors=True)


def _has_owner(path: Path) -> bool:
    """Return whether a driver or a reaper holds the lock of a folder."""
    try:
        with open(path / OWNER) as owner:
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _usable_parents() -> list[Path]:
    named = dict.fromkeys([tempfile.gettempdir(), *CANDIDATE_PARENTS])
    return [Path(name) for name in named if len(name) <= MAX_PATH and os.access(name, os.W_OK | os.X_OK)]


def _make_folder() -> tuple[Path, TextIO]:
    """Return a new folder of mode 0700, and its locked file of the owner."""
    problem, advice = "none of them can be written to", "Set"
    for parent in _usable_parents():
        try:
            return _claimed(Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent)))
        except OSError as error:
            problem, advice = str(error), "Make room there, or set" if error.errno == errno.ENOSPC else "Set"
    raise ConclaveError(
        f"Ray's sockets find no place in {', '.join(CANDIDATE_PARENTS)} ({problem}). {advice} TMPDIR to a folder on a local disk "
        f"whose path has at most {MAX_PATH} characters."
    )


def _claimed(path: Path) -> tuple[Path, TextIO]:
    """Return a new folder and its owner's file, locked. If it can't be locked, remove the folder and raise the OSError."""
    owner = open(path / OWNER, "w", encoding="utf-8")  # noqa: SIM115  # it stays open until the driver ends
    try:
        fcntl.flock(owner, fcntl.LOCK_EX)
    except OSError:
        owner.close()
        shutil.rmtree(path, ignore_errors=True)
        raise
    return path, owner

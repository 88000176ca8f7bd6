"""Run a PostgreSQL of the tracking server's own, in a folder: no port, and a socket that only its user can reach."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workers.diagnostics.waiting import wait_until
from workers.errors import ConclaveError, UserInputError

NAME = "conclave"  # of its user and of its database
STARTING = 60.0
DEBIAN = Path("/usr/lib/postgresql")


@dataclass(frozen=True)
class Database:
    """A PostgreSQL in a folder. The folder may lie on a shared disk; the socket does not."""

    folder: Path

    @property
    def uri(self) -> str:
        """The URI of the database."""
        return f"postgresql://{NAME}@/{NAME}?host={self.socket}"

    @property
    def socket(self) -> Path:
        """The folder of the socket: the same at every start, and short, for a socket's path has a limit."""
        name = hashlib.sha256(str(self.folder.absolute()).encode()).hexdigest()[:8]
        return Path(tempfile.gettempdir(), f"conclave-pg-{os.getuid()}-{name}")

    @contextlib.contextmanager
    def running(self) -> Iterator[str]:
        """Start the database, creating it at the first start, and end it with this context. Yields its URI.

        Raises:
            UserInputError: If PostgreSQL is not installed.
        """
        programs = _programs()
        self._private()
        process = None if self._answers(programs) else self._start(programs)  # one whose server was killed still runs
        try:
            self._run(programs, "createdb", "-h", str(self.socket), "-U", NAME, NAME, may_fail=True)  # there already
            yield self.uri
        finally:
            if process:
                process.send_signal(signal.SIGINT)  # its fast way to stop
                process.wait()
                shutil.rmtree(self.socket, ignore_errors=True)

    def _private(self) -> None:
        """Make both folders its user's alone. Raises UserInputError for somebody else's folder of that name."""
        for path in (self.folder, self.socket):
            path.mkdir(parents=True, exist_ok=True)
            if path.is_symlink() or path.stat().st_uid not in {os.getuid(), _user_id()}:
                raise UserInputError(f"{path}: a link, or somebody else's; remove it, or name another folder.")
            os.chown(path, _user_id(), -1)
            path.chmod(0o700)

    def _start(self, programs: Path) -> subprocess.Popen[bytes]:
        data, log = self.folder / "data", self.folder / "log"
        if not (data / "PG_VERSION").exists():
            new = self.folder / "data.new"
            shutil.rmtree(new, ignore_errors=True)
            self._run(programs, "initdb", "--pgdata", str(new), "-U", NAME, "--auth=trust", "--encoding=UTF8")
            new.rename(data)
        words = [str(word) for word in (programs / "postgres", "-D", data, "-k", self.socket, "-c", "listen_addresses=")]
        with open(log, "ab") as log_file:
            process = subprocess.Popen(words, stdout=log_file, stderr=log_file, start_new_session=True, cwd="/", **_as_user())
        if not wait_until(lambda: self._answers(programs), STARTING, 0.2, lambda: process.poll() is not None):
            process.kill()
            raise ConclaveError(f"PostgreSQL does not start in {self.folder}:\n{log.read_text()[-1000:]}")
        return process

    def _answers(self, programs: Path) -> bool:
        return self._run(programs, "pg_isready", "-q", "-h", str(self.socket), may_fail=True) == 0

    @staticmethod
    def _run(programs: Path, name: str, *words: str, may_fail: bool = False) -> int:
        done = subprocess.run([programs / name, *words], capture_output=True, text=True, check=False, cwd="/", **_as_user())
        if done.returncode and not may_fail:
            raise ConclaveError(f"{name} failed: {done.stderr.strip()[-500:]}")
        return done.returncode


def _programs() -> Path:
    folders = [path for path in DEBIAN.glob("*/bin") if (path / "postgres").exists()]
    if newest := max(folders, key=lambda path: float(path.parent.name), default=None):
        return newest
    if on_path := shutil.which("postgres"):
        return Path(on_path).resolve().parent
    raise UserInputError(
        "--postgres: PostgreSQL is not installed. On Debian: apt-get install postgresql; or leave --postgres out."
    )


def _user_id() -> int:
    """Return the user that it runs as: us, or Debian's `postgres` in root's place, for PostgreSQL refuses to run as root."""
    if os.getuid() != 0:
        return os.getuid()
    import pwd

    try:
        return pwd.getpwnam("postgres").pw_uid
    except KeyError:
        raise UserInputError(
            "--postgres: PostgreSQL doesn't run as root, and there is no user postgres. Be another user."
        ) from None


def _as_user() -> dict[str, Any]:
    return {"user": _user_id(), "group": "postgres", "extra_groups": []} if os.getuid() == 0 else {}

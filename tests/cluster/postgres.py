"""A PostgreSQL server of the test's own, from Debian's package, on loopback and with a password."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

BINARIES = max(Path("/usr/lib/postgresql").glob("*/bin"), default=None, key=lambda p: int(p.parent.name))
MISSING = "needs PostgreSQL's server, and root to give its files to a user of its own; CI installs it"


def available() -> bool:
    return BINARIES is not None and os.getuid() == 0


class Postgres:
    """Started on a port of its own; `end` leaves nothing."""

    def __init__(self) -> None:
        assert BINARIES
        self.folder = Path(tempfile.mkdtemp(prefix="conclave-pg-"))
        self.password = secrets.token_hex(16)
        (self.folder / "password").write_text(self.password)
        for path in (self.folder, self.folder / "password"):
            shutil.chown(path, "postgres", "postgres")
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port = found.getsockname()[1]
        data, log = self.folder / "data", self.folder / "log"
        self._run(
            "initdb", "--pgdata", str(data), "--auth=scram-sha-256", "--pwfile", str(self.folder / "password"), "-U", "team"
        )
        with open(log, "wb") as told:
            self.process = subprocess.Popen(
                [BINARIES / "postgres", "-D", data, "-p", str(self.port), "-h", "127.0.0.1", "-k", self.folder],
                user="postgres", group="postgres", extra_groups=[], stdout=told, stderr=told,
            )  # fmt: skip
        until = time.monotonic() + 240
        while subprocess.run([BINARIES / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)], check=False).returncode:
            assert self.process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.2)

    @property
    def uri(self) -> str:
        return f"postgresql://team:{self.password}@127.0.0.1:{self.port}/postgres"

    def _run(self, name: str, *words: str) -> None:
        assert BINARIES
        subprocess.run(
            [BINARIES / name, *words],
            user="postgres",
            group="postgres",
            extra_groups=[],
            check=True,
            capture_output=True,
            cwd="/",
        )

    def end(self) -> None:
        self.process.send_signal(signal.SIGINT)  # its fast way to stop
        self.process.wait(30)
        shutil.rmtree(self.folder, ignore_errors=True)

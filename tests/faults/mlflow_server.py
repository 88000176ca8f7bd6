"""A real MLflow server on loopback."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Server:
    """A real MLflow server on loopback that can be ended and started again on the same port and database."""

    def __init__(self, folder: Path, artifacts: tuple[str, ...] = ()) -> None:
        self.folder, self.port = folder, free_port()
        self.artifacts = artifacts or ("--artifacts-destination", str(folder / "artifacts"))
        self.process: subprocess.Popen[bytes] | None = None
        folder.mkdir()

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def up(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        places = ["--backend-store-uri", f"sqlite:///{self.folder}/db", *self.artifacts]
        env = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                [*command, *places], cwd=self.folder, env=env, stdout=log, stderr=log, start_new_session=True
            )
        until = time.monotonic() + 240
        while True:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=2).close()
                return
            except OSError:
                assert time.monotonic() < until, (self.folder / "log").read_text()
                time.sleep(0.3)

    def down(self) -> None:
        if self.process:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

"""A Ray of several machines on this one: a head without CPUs and workers that can be taken away."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil


@dataclass
class Nodes:
    """Real `ray start` processes with a token of their own; ends just what it started.

    Trainers inherit `more` from their machine: faults that are to happen in them go there.
    """

    more: dict[str, str] = field(default_factory=dict)
    dashboard: bool = False  # with jobs, on a port of its own
    cpus: int = 0  # of the head
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="cn-")))  # Ray's sockets need short paths
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.token = self.folder / "token"
        self.token.write_text(secrets.token_hex(32))
        self.token.chmod(0o600)
        with socket.socket() as found, socket.socket() as other:
            found.bind(("127.0.0.1", 0))
            other.bind(("127.0.0.1", 0))
            self.port, self.dashboard_port = found.getsockname()[1], other.getsockname()[1]
        shown = ("--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={self.dashboard_port}")
        seen = shown if self.dashboard else ("--include-dashboard=false",)
        self._start("--head", f"--port={self.port}", f"--num-cpus={self.cpus}", f"--temp-dir={self.folder}", *seen)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def env(self) -> dict[str, Any]:
        """For whoever is to be let in."""
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token), "RAY_USAGE_STATS_ENABLED": "0"}

    def add(self, cpus: int = 1, node: str = "", labels: str = "", gpus: int = 0, **env: str) -> subprocess.Popen[bytes]:
        """A machine; `node` is its id in Ray, 56 hexadecimal digits; `labels` are like market=spot. No GPU of it is real."""
        named = {"RAY_OVERRIDE_NODE_ID_FOR_TESTING": node} if node else {}
        more = [*([f"--labels={labels}"] if labels else []), *([f"--num-gpus={gpus}"] if gpus else [])]
        return self._start(f"--address={self.address}", f"--num-cpus={cpus}", *more, **named, **env)

    def _start(self, *arguments: str, **env: str) -> subprocess.Popen[bytes]:
        words = ["start", "--block", "--node-ip-address=127.0.0.1", "--object-store-memory=100000000"]
        words += ["--dashboard-agent-listen-port=0", *arguments]  # of its own: where Ray's default is taken, no job is
        with open(self.folder / f"log{len(self.started)}", "wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "ray.scripts.scripts", *words],
                env={**os.environ, **self.more, **self.env, **env},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.started.append(process)
        until = time.monotonic() + 240
        while not self._up():
            assert process.poll() is None, (self.folder / f"log{len(self.started) - 1}").read_text()
            assert time.monotonic() < until, "Ray does not start"
            time.sleep(0.2)
        return process

    def _up(self) -> bool:
        """Whether the machine that was started last is known to the head, which Ray waits for before it says so."""
        return "Ray runtime started" in (self.folder / f"log{len(self.started) - 1}").read_text()

    def holding(self, pid: int) -> subprocess.Popen[bytes]:
        """The node whose process this is."""
        return next(p for p in self.started if pid in {child.pid for child in tree(p.pid)})

    def remove(self, node: subprocess.Popen[bytes]) -> None:
        """As when a machine is gone: every process of it at once."""
        for process in tree(node.pid):
            with contextlib.suppress(psutil.Error):
                process.kill()
        node.wait()

    def end(self) -> None:
        for node in self.started:
            if node.poll() is None:
                self.remove(node)
        shutil.rmtree(self.folder, ignore_errors=True)


def tree(pid: int) -> list[psutil.Process]:
    """A process and all below it, the lowest first, so that nobody sees its parent go."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        return [*reversed(process.children(recursive=True)), process]
    return []

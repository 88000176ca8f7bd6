"""Hosts on one machine: network namespaces on one bridge, each with an address and, where asked, a disk of its own."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from shutil import which

MISSING = "needs root, iproute2 and curl, to make network namespaces and ask from them; CI has all"


def available() -> bool:
    return os.getuid() == 0 and None not in (which("ip"), which("curl"))


class Hosts:
    """`names[i]` has the address 10.77.0.(i + 1). What was started there ends with `end`."""

    def __init__(self, *names: str) -> None:
        self.prefix = f"cv{os.getpid()}"
        self.names = names
        self.started: list[subprocess.Popen[bytes]] = []
        self._ip("netns", "add", self._space("net"))
        self._in("net", "link", "add", "bridge", "type", "bridge")
        self._in("net", "link", "set", "bridge", "up")
        for i, name in enumerate(names):
            self._ip("netns", "add", self._space(name))
            self._in("net", "link", "add", f"to{i}", "type", "veth", "peer", "name", "eth0", "netns", self._space(name))
            self._in("net", "link", "set", f"to{i}", "master", "bridge", "up")
            self._in(name, "addr", "add", f"{self.address(name)}/24", "dev", "eth0")
            for device in ("eth0", "lo"):
                self._in(name, "link", "set", device, "up")

    def address(self, name: str) -> str:
        return f"10.77.0.{self.names.index(name) + 1}"

    def start(
        self, name: str, words: Sequence[str], env: Mapping[str, str], log: Path, hidden: Sequence[Path] = ()
    ) -> subprocess.Popen[bytes]:
        """A process on a host, for which an empty disk of its own lies over the `hidden` folders."""
        mounts = [f"mount -t tmpfs none {shlex.quote(str(path))}" for path in hidden]
        script = " && ".join([*mounts, 'exec "$@"'])
        with open(log, "wb") as told:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self._space(name), "sh", "-c", script, "sh", *words],
                env=dict(env), stdout=told, stderr=told, start_new_session=True,
            )  # fmt: skip
        self.started.append(process)
        return process

    def run(self, name: str, words: Sequence[str], env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        command = ["ip", "netns", "exec", self._space(name), *words]
        return subprocess.run(command, env=dict(env), capture_output=True, text=True, timeout=300, check=False)

    def end(self) -> None:
        for process in self.started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        for name in self.names:
            found = subprocess.run(["ip", "netns", "pids", self._space(name)], capture_output=True, text=True, check=False)
            for pid in found.stdout.split():  # all that was started there, whatever session it went to
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
        for name in (*self.names, "net"):
            subprocess.run(["ip", "netns", "del", self._space(name)], check=False, capture_output=True)

    def _space(self, name: str) -> str:
        return f"{self.prefix}-{name}"

    def _in(self, name: str, *words: str) -> None:
        self._ip("-n", self._space(name), *words)

    @staticmethod
    def _ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

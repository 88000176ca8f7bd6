"""Run Ray's cluster launcher on a cluster file: up, down, attach, SSH tunnel and file copies."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.config import yaml_document as teamfile
from workers.diagnostics.waiting import wait_until
from workers.errors import ConclaveError, UserInputError

TUNNEL_SECONDS = 60.0
UNEDITED = re.compile(r"(ami|sg|fs|subnet)-0{17}|192\.0\.2\.\d+|ghcr\.io/conclave-ensembles/\S+")
PASSWORD = "(umask 077; openssl rand -hex 16 > {path})"
TOKEN = "ray get-auth-token --generate > /dev/null; chmod 600 ~/.ray/auth_token"


@dataclass(frozen=True)
class Cluster:
    """A cluster file in the format of Ray's launcher.

    Attributes:
        path: The file.
        config: Its content.
        ray: The command line of Ray.
    """

    path: Path
    config: Mapping[str, Any]
    ray: tuple[str, ...] = (sys.executable, "-P", "-m", "ray.scripts.scripts")

    @classmethod
    def read(cls, path: Path) -> Cluster:
        """Read a cluster file. Raises UserInputError if the file is not a cluster file."""
        document = teamfile.read_document(path, "Copy cluster.yaml, or a file of examples/clusters, and edit it.")
        if not {"cluster_name", "provider"} <= set(document.values):
            raise UserInputError(f"{path}: not a cluster file: cluster_name and provider are needed. Start from cluster.yaml.")
        types = document.values.get("available_node_types")
        has_shape = types is None or (isinstance(types, dict) and all(isinstance(entry, dict) for entry in types.values()))
        if not has_shape or not all(isinstance(entry.get("resources") or {}, dict) for entry in (types or {}).values()):
            raise UserInputError(
                f"{path}: available_node_types: a name for each type, and under it its settings. See cluster.yaml."
            )
        return cls(path, document.values)

    @classmethod
    def ready(cls, file: Path) -> Cluster:
        """Read a cluster file, and check that its cluster can be started.

        Raises UserInputError if a placeholder is left, or a secret is missing or readable by others.
        """
        cluster = cls.read(file)
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            if placeholder := UNEDITED.search(line.partition("#")[0]):
                raise UserInputError(f"{file}:{number}: {placeholder[0]} is a placeholder; put yours there (lines marked EDIT).")
        for file, command in cluster.secrets():
            _check_secret(file, command)
        return cluster

    @property
    def name(self) -> str:
        """The cluster's name."""
        return str(self.config["cluster_name"])

    @property
    def brings_gpus(self) -> bool:
        """True if the autoscaler can start machines with GPUs."""
        types = self.config.get("available_node_types") or {}
        return any(float((entry.get("resources") or {}).get("GPU") or 0) >= 1 for entry in types.values())

    def secrets(self) -> Iterator[tuple[Path, str]]:
        """Yield each secret's file and the command that creates it: Ray's token, and the tracking server's password."""
        yield Path(os.environ.get("RAY_AUTH_TOKEN_PATH", Path.home() / ".ray" / "auth_token")), TOKEN
        for source in map(str, (self.config.get("file_mounts") or {}).values()):
            if source.endswith("tracking_password"):
                yield Path(source).expanduser(), PASSWORD.format(path=source)

    @property
    def serves(self) -> bool:
        """True if the head runs a tracking server."""
        return any("conclave server" in str(command) for command in self.config.get("head_start_ray_commands") or ())

    def up(self) -> None:
        """Start the cluster's head."""
        self._run("up", "--yes", str(self.path))

    def down(self) -> None:
        """Terminate all machines of the cluster."""
        self._run("down", "--yes", str(self.path))

    def attach(self) -> int:
        """Open a shell on the head; return its exit code."""
        return subprocess.run([*self.ray, "attach", str(self.path)], env=self._env(), check=False).returncode

    def fetch(self, source: str, target: Path) -> None:
        """Copy a folder from the head to a local folder."""
        target.mkdir(parents=True, exist_ok=True)
        self._run("rsync-down", str(self.path), f"{source}/", f"{target}/")

    @contextlib.contextmanager
    def tunnel(self) -> Iterator[str]:
        """Open an SSH tunnel to the head's dashboard and job server, and yield its local address."""
        port = _free_port()
        words = [*self.ray, "dashboard", str(self.path), "--port", str(port)]
        process = subprocess.Popen(words, env=self._env(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            if not wait_until(lambda: _listens(port), TUNNEL_SECONDS, 0.2, lambda: process.poll() is not None):
                raise ConclaveError(f"{self.path}: no tunnel to the head's dashboard. `conclave up {self.path}` starts it.")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait()

    def ui_command(self, home: str) -> str:
        """Return the command that opens the head's MLflow UI on this machine."""
        if self.serves:
            return f'ray exec {self.path} "echo sign in as admin; sleep infinity" --port-forward 5000'
        return f'ray exec {self.path} "conclave ui --home {home} --port 5000" --port-forward 5000'

    def _run(self, *words: str) -> None:
        code = subprocess.run([*self.ray, *words], env=self._env(), check=False).returncode
        if code:
            raise ConclaveError(f"ray {words[0]} {self.path} failed (exit {code}); see its output above.")

    @staticmethod
    def _env() -> dict[str, str]:
        return {**os.environ, "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}


def _check_secret(path: Path, command: str) -> None:
    """Check that a secret, which is copied to every machine, exists and that only its owner can read it."""
    if not path.is_file() or not path.read_text(encoding="utf-8").strip():
        raise UserInputError(f"{path}: this secret of the cluster is missing. Create it once: {command}")
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise UserInputError(f"{path}: other users can read this secret of the cluster. Run: chmod 600 {path}")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.3):
        return True
    return False

"""Ray's own autoscaler (v2) on this machine: a head without CPUs, and workers with GPUs that are none, as more raylets.

`ray.cluster_utils.AutoscalingCluster` would do it, were its example file in the wheel and did it not stop every Ray there is.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

HEAD = "f" * 50 + "00000"
PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
LISTS = (
    "cluster_synced_files", "rsync_exclude", "rsync_filter", "initialization_commands", "setup_commands",
    "head_setup_commands", "worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands",
)  # fmt: skip


@dataclass
class Autoscaler:
    """A head that starts a raylet for each job that waits, up to `most`, and ends it when it is idle."""

    most: int
    more: dict[str, str] = field(default_factory=dict)  # of the environment of the head, and of what it starts
    idle_minutes: float = 0.1
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="ca-")))  # Ray's sockets need short paths

    def __post_init__(self) -> None:
        from ray._private.services import get_node_ip_address

        self.ip = get_node_ip_address()
        with socket.socket() as found:
            found.bind(("", 0))
            self.port = found.getsockname()[1]
        self.token = self.folder / "token"
        self.token.write_text(secrets.token_hex(32))
        self.token.chmod(0o600)
        config = self.folder / "autoscaling.json"
        config.write_text(json.dumps(self._config()))
        with open(self.folder / "log", "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={self.port}", "--num-cpus=0",
                 "--num-gpus=0", "--object-store-memory=100000000", "--include-dashboard=false",
                 f"--autoscaling-config={config}"],
                env={**os.environ, **self.more, **self.env, **self._fake()}, stdout=log, stderr=log,
            )  # fmt: skip
        until = time.monotonic() + 240
        while not self._answers():
            assert self.process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < until, "Ray does not start"
            time.sleep(0.2)

    @property
    def address(self) -> str:
        return f"{self.ip}:{self.port}"

    @property
    def env(self) -> dict[str, Any]:
        """For whoever is to be let in."""
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token), "RAY_USAGE_STATS_ENABLED": "0"}

    def _fake(self) -> dict[str, str]:
        return {
            "RAY_FAKE_CLUSTER": "1",
            "RAY_enable_autoscaler_v2": "1",
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_TMPDIR": str(self.folder),
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD,
            "RAY_CLOUD_INSTANCE_ID": HEAD,
        }

    def _config(self) -> dict[str, Any]:
        types = {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "gpu": {
                "resources": {"CPU": 1, "GPU": 1, "object_store_memory": 90_000_000},
                "node_config": {}, "min_workers": 0, "max_workers": self.most,
            },
        }  # fmt: skip
        provider = {
            "type": "external", "module": PROVIDER, "gcs_address": self.address, "head_node_id": HEAD,
            "launch_multiple": True, "use_node_id_as_ip": True, "disable_node_updaters": True,
            "disable_launch_config_check": True,
        }  # fmt: skip
        return {
            "cluster_name": "local", "max_workers": self.most, "upscaling_speed": 1.0, "idle_timeout_minutes": self.idle_minutes,
            "provider": provider, "available_node_types": types, "head_node_type": "ray.head.default", "auth": {}, "docker": {},
            "file_mounts": {}, "file_mounts_sync_continuously": False, **{key: [] for key in LISTS},
        }  # fmt: skip

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection((self.ip, self.port), 0.3):
            return True
        return False

    def processes(self) -> Iterator[psutil.Process]:
        """All that belong to it, wherever their parents went."""
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                own = process.environ().get("RAY_TMPDIR") == str(self.folder)
                if process.pid != os.getpid() and (own or any(f"{self.folder}/" in word for word in process.cmdline())):
                    yield process

    def workers(self) -> int:
        """How many raylets there are besides the head's."""
        return sum(_named(process, "raylet") for process in self.processes()) - 1

    def kill_node_of(self, pid: int) -> None:
        """As when a machine is gone: its raylet, and with it all that it started, at once."""
        raylet = next(p for p in psutil.Process(pid).parents() if _named(p, "raylet"))
        for process in (raylet, *raylet.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                process.kill()

    def wait_for(self, true: Callable[[], bool], seconds: float, what: str) -> None:
        until = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < until, f"{what}: not within {seconds:g} s"
            time.sleep(0.2)

    def end(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(15)
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                process.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


def _named(process: psutil.Process, name: str) -> bool:
    with contextlib.suppress(psutil.Error):
        return bool(process.name() == name)
    return False

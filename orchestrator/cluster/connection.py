"""Connect a driver to Ray: to a private local Ray, or to a cluster by its address. Nothing of it outlives the driver."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workers.errors import UserInputError

OBJECT_STORE_BYTES = 256 << 20


@dataclass(frozen=True)
class ClusterSnapshot:
    """The machines of a Ray at one moment.

    The autoscaler lists a demand as infeasible where no type could hold it, and also where a limit is reached. The second case
    shows by another demand of the same shape that is met, or by a machine on its way.

    Attributes:
        nodes: Resources of each living machine, by Ray's id.
        draining: Machines that were told to go.
        refused: Demands that the autoscaler brings nothing for; None without an autoscaler.
        labels: Labels of each machine.
    """

    nodes: dict[str, dict[str, float]]
    draining: set[str]
    refused: list[dict[str, float]] | None
    labels: dict[str, dict[str, str]] = field(default_factory=dict)


class Connection:
    """A connection to Ray. `ray` is the module, imported only now: it reads its authentication settings at that moment.

    Args:
        address: HOST:PORT of a running Ray; None for a private local one.

    Raises:
        UserInputError: If nobody answers at the address.
    """

    def __init__(self, address: str | None) -> None:
        if address:
            probe(address)
            os.environ.setdefault("RAY_AUTH_MODE", "token")
        self.reaper = None if address else _start_reaper(_private_token())
        _quiet()
        import ray
        import ray.util.scheduling_strategies

        self.ray = ray
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        _init(ray, address)
        self.gcs = ray._raylet.GcsClient(address=ray.get_runtime_context().gcs_address)
        for number, handler in handlers.items():  # Ray's own would end the driver before it has tidied up
            signal.signal(number, handler)

    def snapshot(self) -> ClusterSnapshot | None:
        """Return the machines as they are now, or None where Ray is too busy to say."""
        try:
            alive = [node for node in self.ray.nodes() if node["Alive"]]
            nodes = {node["NodeID"]: node["Resources"] for node in alive}
            labels = {node["NodeID"]: node["Labels"] for node in alive}
            draining = set(self.ray._private.state.state.get_draining_nodes())  # Ray has no other way to ask for them
            return ClusterSnapshot(nodes, draining & set(nodes), self._refused(), labels)
        except self.ray.exceptions.RayError:
            return None

    def is_ready(self, reference: Any) -> bool:
        """Return whether what a reference stands for is there, or failed."""
        return bool(self.ray.wait([reference], timeout=0)[0])

    def on_node(self, node: str) -> Any:
        """Return the scheduling strategy that means this machine and no other."""
        return self.ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=False)

    def _refused(self) -> list[dict[str, float]] | None:
        from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply

        reply = GetClusterStatusReply.FromString(self.gcs.get_cluster_status(timeout_s=10))
        state, waiting = reply.autoscaling_state, reply.cluster_resource_state.pending_resource_requests
        if not state.autoscaler_state_version:
            return None
        if state.pending_instance_requests or state.pending_instances:
            return []
        infeasible = Counter(_shape(request.resources_bundle) for request in state.infeasible_resource_requests)
        pending = Counter({_shape(entry.request.resources_bundle): entry.count for entry in waiting})
        return [dict(shape) for shape, count in infeasible.items() if count >= pending[shape]]

    def close(self) -> None:
        """Disconnect, and end a private Ray."""
        self.ray.shutdown()
        if self.reaper and self.reaper.stdin:
            self.reaper.stdin.close()


def _shape(bundle: Mapping[str, float]) -> frozenset[tuple[str, float]]:
    return frozenset(bundle.items())


def _init(ray: Any, address: str | None) -> None:
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address:
        ray.init(address=address, **options)
        return
    local = {"include_dashboard": False, "num_cpus": os.cpu_count(), "object_store_memory": OBJECT_STORE_BYTES}
    ray.init(address="local", **local, **options)


def probe(address: str) -> None:
    """Check that somebody listens at an address. Ray would wait for a dead one for two minutes and end in SystemExit."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host or "127.0.0.1", int(port)), timeout=3).close()
    except (OSError, ValueError):
        raise UserInputError(f"--address {address}: nobody answers there. Start Ray, or leave --address out.") from None


def _start_reaper(token: str) -> subprocess.Popen[str]:
    """Start the reaper, in a session of its own so that a signal to the driver's does not reach it.

    It removes the token's folder.
    """
    command = [sys.executable, str(Path(__file__).with_name("reaper.py")), str(os.getpid()), token]
    return subprocess.Popen(command, stdin=subprocess.PIPE, text=True, start_new_session=True)


def _private_token() -> str:
    """Create a token that only we can read, and return its folder.

    Ray listens on every interface, and reads this when imported.
    """
    folder = tempfile.mkdtemp(prefix="conclave-ray-")
    token = Path(folder, "token")
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token))
    return folder


def _quiet() -> None:
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0", RAY_DEDUP_LOGS="0")
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")

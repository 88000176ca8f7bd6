"""Connect a driver to Ray: to a private local Ray, or to a cluster by its address. Nothing of it outlives the driver.

Ray's own way to notice that it is gone is to wait for minutes, and then to end the driver. So we look ourselves before we wait.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from typing import Any

from orchestrator.cluster.private_folder import PrivateFolder
from orchestrator.cluster.reaper import end_session
from workers.errors import ConclaveError, RayLostError, UserInputError, first_line

OBJECT_STORE_BYTES = 256 << 20
NEEDED = ("gcs_server", "raylet")  # processes of a local Ray, without which nothing goes on; a raylet ends with its agents
AWAY_SECONDS = 10.0  # for which a cluster's head may not answer
LOOK_SECONDS = 2.0  # between two looks at a cluster's head
WATCH_SECONDS = 0.5  # between two looks at whether Ray is there, while it does something for us
ENDING_SECONDS = 15.0  # that Ray may take to disconnect
UNUSED = ("start_api_server", "start_monitor", "start_log_monitor")  # of a Node: its dashboard, autoscaler and log forwarder
LOCAL = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray's default there: this machine is 127.0.0.1, and nobody hears it
    "RAY_prestart_worker_first_driver": "0",  # processes that no trainer takes: each wants an environment of its own
}


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
        source: What named the address, for messages.

    Attributes:
        is_lost: Whether Ray was found to be gone.

    Raises:
        UserInputError: If nobody answers at the address.
        ConclaveError: If a local Ray does not start, twice in a row.
    """

    def __init__(self, address: str | None, source: str = "--address") -> None:
        self.address, self.folder = address, None
        self.is_lost, self.looked_at, self.answered_at = False, 0.0, time.monotonic()
        if address:
            probe(address, source)
            os.environ.setdefault("RAY_AUTH_MODE", "token")
        else:
            self.folder = PrivateFolder.make()
            os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(self.folder.token), **LOCAL)
        _quiet()
        import ray
        import ray.util.scheduling_strategies

        self.ray = ray
        try:
            self._connect()
        except Exception as error:  # whatever Ray raises where one of its processes does not live for long
            if address:
                raise ConclaveError(f"{source} {address}: Ray doesn't let us in ({first_line(error)[:200]}).") from error
            self._connect_anew()

    def _connect(self) -> None:
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if self.address:
            options |= {"address": self.address}
        else:
            _start_only_what_is_used()
            options |= {"address": "local", "include_dashboard": False, "num_cpus": os.cpu_count()}
            options |= {"object_store_memory": OBJECT_STORE_BYTES, "_temp_dir": str(self.folder.session) if self.folder else None}
        self.ray.init(**options)
        if not self.address:  # pages of a dying raylet's log
            self.ray._private.worker.print_to_stdstream = lambda *_, **__: None
        self.gcs = self.ray._raylet.GcsClient(address=self.ray.get_runtime_context().gcs_address)
        for number, handler in handlers.items():  # Ray's own would end the driver before it has tidied up
            signal.signal(number, handler)

    def _connect_anew(self) -> None:
        """End what is left of a local Ray, and start it again. Raises ConclaveError where it does not start."""
        self._disconnect()
        if self.folder:
            end_session(self.folder.path)
        try:
            self._connect()
        except Exception as error:  # as above
            why = first_line(error)[:200]
            raise ConclaveError(f"Ray doesn't start on this machine ({why}). Nothing is lost: run again.") from error
        self.is_lost = False

    def check(self) -> None:
        """Raise RayLostError where Ray is gone: one of a local Ray's processes, or a cluster's head for some seconds."""
        if not self.is_lost:
            self.is_lost = self._head_is_away() if self.address else self._has_died()
        if self.is_lost:
            logging.getLogger("ray").setLevel(logging.CRITICAL)  # whoever still waits for it logs that it is gone, too
            what = f"the cluster's head at {self.address} doesn't answer" if self.address else "Ray ended on this machine"
            raise RayLostError(f"{what}. What is finished is kept: run the same command again.")

    def watch(self, step: Callable[[], object]) -> None:
        """Run a blocking call of Ray's in a thread, and raise RayLostError soon after Ray has died.

        Ray itself would wait a minute, and then end this process without a word of ours.

        Raises:
            RayLostError: If Ray is gone.
            Exception: What the step raises while Ray is there.
        """
        ended: Future[object] = Future()

        def do() -> None:
            try:
                ended.set_result(step())
            except BaseException as error:
                ended.set_exception(error)

        threading.Thread(target=do, daemon=True, name="watched").start()
        while not wait([ended], timeout=WATCH_SECONDS).done:
            self.check()
        self.check()
        ended.result()

    def restart(self) -> bool:
        """Start a local Ray again, where it is gone; return whether that could be done. Raises ConclaveError."""
        if self.address:
            return False
        self._connect_anew()
        return True

    def _has_died(self) -> bool:
        node = self.ray._private.worker._global_node
        return node is None or any(name in NEEDED for name, _ in node.dead_processes())

    def _head_is_away(self) -> bool:
        now = time.monotonic()
        if now - self.looked_at < LOOK_SECONDS:
            return False
        self.looked_at = now
        try:
            probe(str(self.address))
            self.answered_at = time.monotonic()
        except UserInputError:
            pass
        return time.monotonic() - self.answered_at > AWAY_SECONDS

    def _disconnect(self) -> None:
        """Disconnect. Ray may wait for what is gone; nobody waits for Ray then."""
        ending = threading.Thread(target=self.ray.shutdown, daemon=True, name="ray-shutdown")
        ending.start()
        ending.join(ENDING_SECONDS if self.is_lost else None)

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
        self._disconnect()
        if self.folder:
            self.folder.dismiss()


def _shape(bundle: Mapping[str, float]) -> frozenset[tuple[str, float]]:
    return frozenset(bundle.items())


def probe(address: str, source: str = "--address") -> None:
    """Check that somebody listens at an address. Ray would wait for a dead one for two minutes and end in SystemExit."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host or "127.0.0.1", int(port)), timeout=3).close()
    except (OSError, ValueError):
        without = f"leave {source} out" if source.startswith("-") else f"unset {source}"
        raise UserInputError(f"{source} {address}: nobody answers there. Start Ray there, or {without}.") from None


def _start_only_what_is_used() -> None:
    """Let a local Ray begin without the processes that nobody here asks: more than a second, and 160 MB.

    Ray has no options for it. Where a later Ray starts them under other names, they are started.
    """
    from ray._private.node import Node

    for name in UNUSED:
        setattr(Node, name, lambda self, **_: None)


def _quiet() -> None:
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"  # whoever asks a Ray that is gone would start another one
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0", RAY_DEDUP_LOGS="0")
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")

"""Connect a driver to Ray: to a private local Ray, which ends with the driver, or to a cluster by its address.

If Ray dies, its client waits for minutes and then ends the driver. So we check that Ray is alive before each wait.
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
from dataclasses import dataclass
from typing import Any

from orchestrator.cluster.private_folder import PrivateFolder
from orchestrator.cluster.reaper import end_session
from workers.diagnostics.cores import available_cores
from workers.errors import ConclaveError, RayLostError, UserInputError, first_line

OBJECT_STORE_BYTES = 256 << 20
REQUIRED_PROCESSES = ("gcs_server", "raylet")  # processes that a local Ray can't run without; a raylet ends with its agents
HEAD_TIMEOUT_SECONDS = 10.0  # without an answer, after which a cluster's head counts as gone
PROBE_INTERVAL_SECONDS = 2.0  # between two checks of a cluster's head
WATCH_SECONDS = 0.5  # between two checks that Ray is alive, during a blocking call
ENDING_SECONDS = 15.0  # limit for disconnecting from a lost Ray
UNUSED_SERVICES = (
    "start_api_server",
    "start_monitor",
    "start_log_monitor",
)  # methods of Node: dashboard, autoscaler, log forwarder
LOCAL_ENV = {
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # under `uv run`, Ray would pack and copy the working folder
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray's default on these systems: bind to 127.0.0.1, unreachable from outside
    "RAY_prestart_worker_first_driver": "0",  # trainers can't use prestarted workers: each needs its own environment
}


@dataclass(frozen=True)
class ClusterSnapshot:
    """The machines of a Ray cluster at one moment.

    The autoscaler lists a demand as infeasible if no machine type can hold it, but also if a limit is reached. In the second
    case a machine is on its way, or another demand of the same shape is feasible; these demands are left out of `refused`.

    Attributes:
        nodes: Each living machine's record by Ray's id, with its `Resources` and its `Labels`.
        draining: Ray's ids of draining machines.
        refused: Demands that the autoscaler can't meet; None without an autoscaler.
    """

    nodes: Mapping[str, Mapping[str, Any]]
    draining: set[str]
    refused: list[dict[str, float]] | None


class Connection:
    """A connection to Ray. `ray` is the module, imported late: it reads its authentication settings on import.

    Args:
        address: HOST:PORT of a running Ray; None for a private local one.
        source: Option or variable that gave the address, for messages.

    Attributes:
        is_lost: Whether Ray is known to be gone.

    Raises:
        UserInputError: If no Ray answers at the address, or the machine has no loopback interface.
        ConclaveError: If a local Ray does not start, twice in a row.
    """

    def __init__(self, address: str | None, source: str = "--address") -> None:
        self.address, self.folder = address, None
        self.is_lost, self.looked_at, self.answered_at = False, 0.0, time.monotonic()
        if address:
            probe(address, source)
            os.environ.setdefault("RAY_AUTH_MODE", "token")
        else:
            check_loopback()
            self.folder = PrivateFolder.make()
            os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(self.folder.token), **LOCAL_ENV)
        _quiet()
        import ray
        import ray.util.scheduling_strategies

        self.ray = ray
        try:
            self._connect()
        except Exception as error:  # Ray can raise anything if one of its processes dies early
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
            options |= {"address": "local", "include_dashboard": False, "num_cpus": available_cores()}
            options |= {"object_store_memory": OBJECT_STORE_BYTES, "_temp_dir": str(self.folder.session) if self.folder else None}
        # As for a client of another machine, Ray leaves the driver's folder out of the trainers' import path, where a
        # file of the user could hide one of our packages.
        self.ray.init(**options, job_config=self.ray.job_config.JobConfig(_client_job=True))
        if not self.address:  # suppress pages of a dying raylet's log
            self.ray._private.worker.print_to_stdstream = lambda *_, **__: None
        self.gcs = self.ray._raylet.GcsClient(address=self.ray.get_runtime_context().gcs_address)
        for number, handler in handlers.items():  # Ray's own handlers would end the driver before it cleans up
            signal.signal(number, handler)

    def _connect_anew(self) -> None:
        """Kill the rest of a local Ray, and start a new one. Raises ConclaveError if it does not start."""
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
        """Raise RayLostError if a local Ray process died, or a cluster's head has not answered for HEAD_TIMEOUT_SECONDS."""
        if not self.is_lost:
            self.is_lost = self._head_is_away() if self.address else self._has_died()
        if self.is_lost:
            logging.getLogger("ray").setLevel(logging.CRITICAL)  # else pending calls log the loss too
            what = f"the cluster's head at {self.address} doesn't answer" if self.address else "Ray ended on this machine"
            raise RayLostError(f"{what}. What is finished is kept: run the same command again.")

    def watch(self, step: Callable[[], object]) -> None:
        """Run a blocking Ray call in a thread, and raise RayLostError soon after Ray dies.

        Ray itself would wait a minute, and then end this process without our message.

        Raises:
            RayLostError: If Ray is gone.
            Exception: Any error of the call while Ray is alive.
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
        """Restart a lost local Ray; return False on a cluster. Raises ConclaveError if Ray does not start."""
        if self.address:
            return False
        self._connect_anew()
        return True

    def _has_died(self) -> bool:
        node = self.ray._private.worker._global_node
        return node is None or any(name in REQUIRED_PROCESSES for name, _ in node.dead_processes())

    def _head_is_away(self) -> bool:
        now = time.monotonic()
        if now - self.looked_at < PROBE_INTERVAL_SECONDS:
            return False
        self.looked_at = now
        try:
            probe(str(self.address))
            self.answered_at = time.monotonic()
        except UserInputError:
            pass
        return time.monotonic() - self.answered_at > HEAD_TIMEOUT_SECONDS

    def _disconnect(self) -> None:
        """Disconnect. Shutting down a lost Ray may hang, so the wait is limited then."""
        ending = threading.Thread(target=self.ray.shutdown, daemon=True, name="ray-shutdown")
        ending.start()
        ending.join(ENDING_SECONDS if self.is_lost else None)

    def snapshot(self) -> ClusterSnapshot | None:
        """Return the current machines, or None if Ray is too busy to answer."""
        try:
            nodes = {node["NodeID"]: node for node in self.ray.nodes() if node["Alive"]}
            draining = set(self.ray._private.state.state.get_draining_nodes())  # Ray has no public API for them
            return ClusterSnapshot(nodes, draining & set(nodes), self._refused())
        except self.ray.exceptions.RayError:
            return None

    def is_ready(self, reference: Any) -> bool:
        """Return True if the result of a reference is ready, or has failed."""
        return bool(self.ray.wait([reference], timeout=0)[0])

    def on_node(self, node: str) -> Any:
        """Return the scheduling strategy that pins a task to this machine."""
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
        """Disconnect, and shut down a private Ray."""
        self._disconnect()
        if self.folder:
            self.folder.dismiss()


def _shape(bundle: Mapping[str, float]) -> frozenset[tuple[str, float]]:
    return frozenset(bundle.items())


def probe(address: str, source: str = "--address") -> None:
    """Check that a server listens at an address. Ray would wait for two minutes, and then raise SystemExit."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host or "127.0.0.1", int(port)), timeout=3).close()
    except (OSError, ValueError):
        without = f"leave {source} out" if source.startswith("-") else f"unset {source}"
        raise UserInputError(f"{source} {address}: no Ray answers there. Start it, or {without}.") from None


def check_loopback() -> None:
    """Check that processes of this machine can talk to each other. Ray's would try for minutes, and only warn."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), timeout=3).close()
    except OSError as error:
        raise UserInputError(
            f"a process of this machine can't reach another at 127.0.0.1 ({error.strerror or error}), which Ray needs. Bring the "
            "loopback interface up (`ip link set lo up`), or train in one process with --inline."
        ) from None


def _start_only_what_is_used() -> None:
    """Start a local Ray without processes that we don't use, which saves more than a second and 160 MB.

    Ray has no options for it. If a later version of Ray renames these methods, the processes start again.
    """
    from ray._private.node import Node

    for name in UNUSED_SERVICES:
        setattr(Node, name, lambda self, **_: None)


def _quiet() -> None:
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"  # else a call to a lost Ray would start a new Ray
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0", RAY_DEDUP_LOGS="0")
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")

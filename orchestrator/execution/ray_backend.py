"""Choose where the jobs of a sweep run: on Ray, or in this process. Ray is imported only once it is needed."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from orchestrator.config.team import Team
from orchestrator.execution.executor import Executor
from orchestrator.execution.inline_executor import InlineExecutor
from orchestrator.home import SweepFolder
from orchestrator.planning.search import Search
from workers.config.resources import Resources
from workers.diagnostics.imports import import_all
from workers.runtime.localize import DriverDisk

if TYPE_CHECKING:
    from orchestrator.cluster.connection import Connection
    from orchestrator.execution.trainer_handle import TrainerHandle
    from workers.runtime.actor import JobLocalizer


RAY_ADDRESS = "RAY_ADDRESS"
DRIVER_MODULES = ("workers.tracking.client", "orchestrator.reporting.plots")  # the first imports MLflow


def inline_executor(team: Team, folder: SweepFolder) -> Executor:
    """Return an executor that runs everything in this process, without Ray."""
    return InlineExecutor()


class RayBackend:
    """Executors and searches on Ray.

    Args:
        address: HOST:PORT of a running Ray cluster. Defaults to RAY_ADDRESS; without either, a local Ray is started.
        say: Shows a line to the user.
    """

    def __init__(self, address: str | None, say: Callable[[str], None]) -> None:
        self.source, self.address = ("--address", address) if address else (RAY_ADDRESS, os.environ.get(RAY_ADDRESS))
        self.say = say
        self.begun: list[TrainerHandle] = []

    @cached_property
    def connection(self) -> Connection:
        """The connection shared by all executors and searches: Ray keeps the first connection's token for good."""
        from orchestrator.cluster.connection import Connection

        return Connection(self.address, self.source)

    def begin(self, wanted: Sequence[tuple[Resources, int]]) -> None:
        """Check that the named cluster answers, or start a local Ray and its trainers, and import the driver's modules.

        Args:
            wanted: Resources and number of threads of each first training; empty if search trials run before.

        Raises:
            UserInputError: If the named cluster does not answer.
            ConclaveError: If the local Ray does not start.
        """
        from orchestrator.cluster.connection import probe

        if self.address:  # start no trainers: its machines may cost money as soon as a trainer asks for them
            probe(self.address, self.source)
            return
        from orchestrator.cluster.machines import Machines
        from orchestrator.execution.trainer_pool import begin_trainers

        self.begun = begin_trainers(Machines(self.connection), wanted)
        import_all(DRIVER_MODULES)

    def executor(self, team: Team, folder: SweepFolder) -> Executor:
        """Return an executor for the jobs of a sweep."""
        from orchestrator.execution.ray_executor import RayExecutor

        begun, self.begun = self.begun, []
        return RayExecutor(self.connection, self._localizer(team, folder), team.heartbeat, begun)

    def search(self, team: Team, folder: SweepFolder, search: Search) -> None:
        """Run the trials of a search."""
        from orchestrator.execution.tuning import run_trials

        run_trials(search, self.connection, self._localizer(team, folder), self.say)

    def close(self) -> None:
        """Disconnect from Ray, if a connection was made."""
        if "connection" in self.__dict__:
            self.connection.close()

    def _localizer(self, team: Team, folder: SweepFolder) -> JobLocalizer:
        """Return what prepares jobs for their machines. On a cluster these may have other versions and other disks."""
        from workers.runtime.actor import JobLocalizer

        on_cluster, holder = self.address is not None, folder.holder.absolute()
        disk = DriverDisk(holder, holder.read_text(encoding="utf-8")) if on_cluster else None
        return JobLocalizer(strict=team.environment == "strict" or (team.environment == "auto" and on_cluster), disk=disk)

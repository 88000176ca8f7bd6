"""Where a sweep's jobs run: on Ray, or in this process. Ray is imported only once it is needed."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from orchestrator import launch
from orchestrator.home import SweepFolder
from orchestrator.launch import Executor
from orchestrator.search import Search
from orchestrator.team import Team
from workers.elsewhere import Disk

if TYPE_CHECKING:
    from orchestrator.connection import Connection


class Pool(Executor, Protocol):
    """An executor that can run the fusion step too."""

    def call_on_head(self, function: Any, *arguments: Any) -> Any: ...


class Inline(launch.InlineExecutor):
    """Everything in this process, the fusion step too."""

    def call_on_head(self, function: Any, *arguments: Any) -> Any:
        return function(*arguments)


def inline_pool(team: Team, folder: SweepFolder) -> Pool:
    """Without Ray."""
    return Inline()


class OnRay:
    """A pool and searches on Ray: on the one at `address`, else on one of our own."""

    def __init__(self, address: str | None, say: Callable[[str], None]) -> None:
        self.address, self.say = address or os.environ.get("RAY_ADDRESS"), say

    @cached_property
    def connection(self) -> Connection:
        """One for all: Ray keeps the token of the first in its process for good."""
        from orchestrator.connection import Connection

        return Connection(self.address)

    def answers(self) -> None:
        """Raises Rejected where nobody does, at an address that was given."""
        from orchestrator.connection import probe

        if self.address:
            probe(self.address)

    def pool(self, team: Team, folder: SweepFolder) -> Pool:
        from orchestrator.cluster import RayExecutor

        return RayExecutor(self.connection, team.heartbeat, *self._machines(team, folder))

    def search(self, team: Team, folder: SweepFolder) -> Callable[[Search], None]:
        def find(search: Search) -> None:
            from orchestrator.tuning import Tuner

            Tuner(self.connection, self.say, *self._machines(team, folder))(search)

        return find

    def close(self) -> None:
        if "connection" in self.__dict__:
            self.connection.close()

    def _machines(self, team: Team, folder: SweepFolder) -> tuple[bool, Disk | None]:
        """Whether they have to be like this one, and the disk that the home is on, where they may have others."""
        cluster, holder = self.address is not None, folder.holder.absolute()
        disk = Disk(holder, holder.read_text(encoding="utf-8")) if cluster else None
        return team.environment == "strict" or (team.environment is None and cluster), disk

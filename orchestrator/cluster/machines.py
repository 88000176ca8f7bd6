"""Track the machines of a Ray cluster: which take work, which are leaving, and which can hold a job."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from orchestrator.cluster.connection import Connection
from workers.config.job import Job
from workers.config.resources import Labels, Resources
from workers.errors import ConclaveError

REPLACED_SECONDS = 60.0  # to wait for the replacement of a lost machine
REFUSED_SECONDS = 600.0  # before a job is given up that the autoscaler can't place: idle machines may end meanwhile
ON_HEAD = {"node:__internal_head__": 0.001}  # a resource that Ray gives to the head only
EXPECTS_GPUS = "CONCLAVE_EXPECTS_GPUS"  # set if the autoscaler can start machines with GPUs
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# By default, glibc returns a step's memory to the system and gets it back page by page, zeroed: 7 % fewer images a second.
# One arena for all threads, because the other arenas are too small for a batch's tensors. Other C libraries ignore these.
MALLOC_SETTINGS = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}


def trainer_environment(threads: int) -> dict[str, str]:
    """Return the environment variables of a trainer process that uses `threads` threads."""
    return dict.fromkeys(THREADS, str(threads)) | MALLOC_SETTINGS


class Size(NamedTuple):
    """Number of GPUs and CPUs that a machine has, or that a job needs on one machine.

    Attributes:
        gpus: Number of GPUs, fractions included.
        cpus: Number of CPU cores.
    """

    gpus: float
    cpus: float

    @classmethod
    def from_resources(cls, resources: dict[str, float]) -> Size:
        """Return the size of a machine with Ray's `resources`."""
        return cls(resources.get("GPU", 0.0), resources.get("CPU", 0.0))

    @classmethod
    def sum(cls, sizes: Iterable[Size]) -> Size:
        """Add sizes, rounding sums of fractions: three thirds of a GPU are one GPU."""
        return cls(*(round(sum(of), 9) for of in zip(*sizes, strict=True)))

    def holds(self, other: Size) -> bool:
        """Return whether a machine of this size can hold `other`."""
        return other.gpus <= self.gpus and other.cpus <= self.cpus

    def __str__(self) -> str:
        """Return the size in words."""
        return f"{self.gpus:g} GPUs and {self.cpus:g} CPUs"


class Shape(NamedTuple):
    """The resources of a trainer. It is reused by jobs that ask for exactly these resources.

    Attributes:
        gpus: Number of GPUs.
        cpus: Number of CPU cores.
        threads: Number of compute threads.
        labels: Alternative machine labels, preferred first.
        processes: Number of processes that train together.
    """

    gpus: float
    cpus: float
    threads: int
    labels: tuple[Labels, ...]
    processes: int

    @property
    def size(self) -> Size:
        """The GPUs and CPUs that a trainer of this shape needs on one machine."""
        return Size(self.gpus, self.cpus)

    def options(self) -> dict[str, Any]:
        """Return the Ray options of the trainer actor."""
        runtime_env = {"env_vars": trainer_environment(self.threads)}
        if self.processes > 1:  # they request their own resources, all together; their parent runs on the head
            return {"num_cpus": 0, "resources": ON_HEAD, "runtime_env": runtime_env}
        options: dict[str, Any] = {"num_gpus": self.gpus, "num_cpus": self.cpus, "runtime_env": runtime_env}
        if self.labels:
            first, *others = [{"label_selector": dict(wish)} for wish in self.labels]
            options |= {**first, "fallback_strategy": others or None}
        return options


class Machine(NamedTuple):
    """A machine that takes work.

    Attributes:
        size: Its GPUs and CPUs.
        labels: Its labels.
    """

    size: Size
    labels: Mapping[str, str]


@dataclass
class Machines:
    """The machines of a Ray cluster, looked up at most once a second.

    Attributes:
        connection: The connection to Ray.
        available: Machines that take work.
        alive: Ray's ids of living machines.
        leaving: Ray's ids of draining machines, as after the notice of a spot machine.
        is_scaled: Whether an autoscaler starts and ends machines.
        refused: Sizes that the autoscaler can't provide, with the time since when.
        looked_at: Time of the last lookup.
        lost_at: Time when a machine was last lost, or of a first lookup that found no machine.
    """

    connection: Connection
    available: list[Machine] = field(default_factory=list)
    alive: set[str] = field(default_factory=set)
    leaving: set[str] = field(default_factory=set)
    is_scaled: bool = False
    refused: dict[Size, float] = field(default_factory=dict)
    looked_at: float = -1.0
    lost_at: float = -math.inf

    def look(self) -> Machines:
        """Look up the machines, if the last lookup is more than a second ago.

        Raises ConclaveError if Ray does not answer the first lookup.
        """
        if time.monotonic() - self.looked_at > 1:
            snapshot = self.connection.snapshot()
            if snapshot is None and self.looked_at < 0:
                raise ConclaveError("Ray does not say which machines it has. Run again; nothing is lost.")
            if snapshot is None:
                return self
            before, is_first = self.available, self.looked_at < 0
            self.looked_at = time.monotonic()
            self.alive, self.leaving, self.is_scaled = set(snapshot.nodes), snapshot.draining, snapshot.refused is not None
            self.available = [
                Machine(Size.from_resources(node["Resources"]), node["Labels"])
                for name, node in snapshot.nodes.items()
                if name not in self.leaving
            ]
            refused = [Size.from_resources(request) for request in snapshot.refused or ()]
            self.refused = {size: self.refused.get(size, self.looked_at) for size in refused}
            if len(self.available) < len(before) or (is_first and not self.available):
                self.lost_at = self.looked_at
        return self

    def size_for(self, wanted: Resources) -> Size:
        """Return the GPUs and CPUs to request. The default includes a GPU if machines have, or will have, GPUs."""
        has_gpus = EXPECTS_GPUS in os.environ or any(machine.size.gpus >= 1 for machine in self.look().available)
        return Size(wanted.gpus_where(has_gpus), wanted.cpus)

    def shape(self, job: Job) -> Shape:
        """Return the shape of the trainer that a job needs."""
        return self.shape_for(job.recipe.resources, job.train.threads)

    def shape_for(self, wanted: Resources, threads: int) -> Shape:
        """Return the shape of a trainer with these resources and `threads` threads."""
        return Shape(*self.size_for(wanted), threads, wanted.labels, wanted.processes)

    def total(self, wanted: Resources | None = None) -> Size:
        """Return the total size of all machines, or of those with the wanted labels."""
        wanted = wanted or Resources()
        return Size.sum([m.size for m in self.look().available if wanted.preference(m.labels) is not None] or [Size(0, 0)])

    def fit(self, job: Job) -> bool:
        """Return whether an existing machine could hold the job."""
        wanted = job.recipe.resources
        size = self.size_for(wanted)
        return any(m.size.holds(size) and wanted.preference(m.labels) is not None for m in self.look().available)

    def wait_deadline(self, job: Job, since: float) -> float:
        """Return the time at which a job that waits for a machine is given up, by time.monotonic().

        `wait_minutes` sets the limit. Without it, a job waits while the autoscaler may start a machine for it. In any case it
        waits for a while after a machine was lost.

        Args:
            job: The job.
            since: When the job began to wait, by time.monotonic().
        """
        wait_minutes = job.recipe.resources.wait_minutes
        if wait_minutes is not None:
            end = since + wait_minutes * 60
        elif self.look().is_scaled:
            end = self.refused.get(self.size_for(job.recipe.resources), math.inf) + REFUSED_SECONDS
        else:
            end = since
        return max(end, self.lost_at + REPLACED_SECONDS)

    def why_impossible(self, job: Job) -> str:
        """Return a message explaining why no machine can hold the job."""
        sizes = sorted({machine.size for machine in self.look().available}, reverse=True)[:3]
        there = f"there are machines with {', '.join(map(str, sizes))}" if sizes else "there is no machine that takes work"
        wanted = job.recipe.resources
        more = ", and the autoscaler brings none that is larger" if self.is_scaled else ""
        wishes = " or ".join(", ".join(f"{k}: {v}" for k, v in wish) for wish in wanted.labels)
        with_labels = f" with the labels {{{wishes}}}" if wishes else ""
        if wanted.wait_minutes:
            more = f", and after {wanted.wait_minutes:g} minutes no other came"
        return (
            f"UNSCHEDULABLE: asks for {self.size_for(wanted)} on one machine{with_labels}; "
            f"{there}{more}. Lower `resources`, or add a machine."
        )

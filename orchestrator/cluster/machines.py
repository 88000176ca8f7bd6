"""Know which machines a Ray has, which of them are leaving, whether an autoscaler may bring more, and what can hold a job."""

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

REPLACED_SECONDS = 60.0  # that another machine may take to come in the place of one that went away
REFUSED_SECONDS = 600.0  # for which an autoscaler brings nothing that could hold a job, before it is given up: idle ones go first
ON_HEAD = {"node:__internal_head__": 0.001}  # a resource that is Ray's own, of the head alone
GPUS_COME = "CONCLAVE_GPUS_COME"  # set where an autoscaler brings machines with GPUs, of which there is none yet
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# glibc would give a step's memory back to the system, and take it again page by page, zeroed: seven of a hundred images a second.
# One heap for all threads, for the others are too small to hold a batch's tensors. Other C libraries read none of these.
KEPT_MEMORY = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}


def trainer_environment(threads: int) -> dict[str, str]:
    """Return the environment variables of a trainer's process that computes with `threads` threads."""
    return dict.fromkeys(THREADS, str(threads)) | KEPT_MEMORY


class Size(NamedTuple):
    """GPUs and CPUs: those of a machine, or those that a job asks for on one machine.

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
        """Add sizes, fractions of a GPU too: three thirds are one."""
        return cls(*(round(sum(of), 9) for of in zip(*sizes, strict=True)))

    def holds(self, other: Size) -> bool:
        """Return whether a machine of this size can hold `other`."""
        return other.gpus <= self.gpus and other.cpus <= self.cpus

    def __str__(self) -> str:
        """Return the size in words."""
        return f"{self.gpus:g} GPUs and {self.cpus:g} CPUs"


class Shape(NamedTuple):
    """The resources of a trainer. Jobs that ask for exactly these may follow one another in it.

    Attributes:
        gpus: Number of GPUs.
        cpus: Number of CPU cores.
        threads: Threads that it computes with.
        labels: Labels of machines, as alternatives.
        processes: Processes that train together.
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
        """Return Ray's options for its actor."""
        runtime_env = {"env_vars": trainer_environment(self.threads)}
        if self.processes > 1:  # which ask for themselves, where there is room for all; who starts them is with the driver
            return {"num_cpus": 0, "resources": ON_HEAD, "runtime_env": runtime_env}
        options: dict[str, Any] = {"num_gpus": self.gpus, "num_cpus": self.cpus, "runtime_env": runtime_env}
        if self.labels:
            first, *others = [{"label_selector": dict(wish)} for wish in self.labels]
            options |= {**first, "fallback_strategy": others or None}
        return options


class Machine(NamedTuple):
    """A machine that takes work.

    Attributes:
        size: What it has.
        labels: Its labels.
    """

    size: Size
    labels: Mapping[str, str]


@dataclass
class Machines:
    """The machines of a Ray, looked up at most once a second.

    Attributes:
        connection: The connection to Ray.
        available: Machines that take work.
        alive: Ray's ids of living machines.
        leaving: Ray's ids of machines that were told to go: drained, as after the notice of a spot machine.
        is_scaled: Whether an autoscaler brings and ends machines.
        refused: Sizes that the autoscaler brings nothing for, and since when.
        looked_at: When they were looked up last.
        lost_at: When a machine was lost last, or when Ray was first asked and had none.
    """

    connection: Connection
    available: list[Machine] = field(default_factory=list)  # those that take work
    alive: set[str] = field(default_factory=set)
    leaving: set[str] = field(default_factory=set)  # told to go: drained, as after the notice of a spot machine
    is_scaled: bool = False  # whether an autoscaler brings and ends them
    refused: dict[Size, float] = field(default_factory=dict)  # what the autoscaler brings nothing for, and since when
    looked_at: float = -1.0
    lost_at: float = -math.inf

    def look(self) -> Machines:
        """Look up the machines, where the last look is more than a second ago.

        Raises ConclaveError where Ray never says anything.
        """
        if time.monotonic() - self.looked_at > 1:
            snapshot = self.connection.snapshot()
            if snapshot is None and self.looked_at < 0:
                raise ConclaveError("Ray does not say which machines it has. Run again; nothing is lost.")
            if snapshot is None:
                return self
            self.alive, self.leaving = set(snapshot.nodes), snapshot.draining
            staying = [node for node in snapshot.nodes if node not in self.leaving]
            before, is_first = self.available, self.looked_at < 0
            self.available = [
                Machine(Size.from_resources(snapshot.nodes[node]), snapshot.labels.get(node, {})) for node in staying
            ]
            self.looked_at = time.monotonic()
            self.is_scaled, refused = (
                snapshot.refused is not None,
                [Size.from_resources(request) for request in snapshot.refused or ()],
            )
            self.refused = {size: self.refused.get(size, self.looked_at) for size in refused}
            if len(self.available) < len(before) or (is_first and not self.available):
                self.lost_at = self.looked_at
        return self

    def size_for(self, wanted: Resources) -> Size:
        """Return the GPUs and CPUs of these resources: one GPU if they name none and machines have some, or will have."""
        has_gpus = GPUS_COME in os.environ or any(machine.size.gpus >= 1 for machine in self.look().available)
        return Size(wanted.gpus_where(has_gpus), wanted.cpus)

    def shape(self, job: Job) -> Shape:
        """Return the shape of the trainer that a job needs."""
        return self.shape_for(job.recipe.resources, job.train.threads)

    def shape_for(self, wanted: Resources, threads: int) -> Shape:
        """Return the shape of a trainer with these resources that computes with `threads` threads."""
        return Shape(*self.size_for(wanted), threads, wanted.labels, wanted.processes)

    def total(self, wanted: Resources | None = None) -> Size:
        """Return the size of all machines together, or of those whose labels a job wants."""
        wanted = wanted or Resources()
        return Size.sum([m.size for m in self.look().available if wanted.preference(m.labels) is not None] or [Size(0, 0)])

    def fit(self, job: Job) -> bool:
        """Return whether some machine that is there could hold the job."""
        wanted = job.recipe.resources
        size = self.size_for(wanted)
        return any(m.size.holds(size) and wanted.preference(m.labels) is not None for m in self.look().available)

    def until(self, job: Job, since: float) -> float:
        """Return when a job that waits for a machine is given up, as a time.monotonic().

        The team may say so. Where it does not, a job waits as long as an autoscaler may bring a machine, and for a while after
        one went away.

        Args:
            job: The job.
            since: Since when it waits, as a time.monotonic().
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
        """Return a sentence that says why no machine can hold the job."""
        sizes = sorted({machine.size for machine in self.look().available}, reverse=True)[:3]
        there = f"there are machines with {', '.join(map(str, sizes))}" if sizes else "there is no machine that takes work"
        wanted = job.recipe.resources
        more, waited = "", wanted.wait_minutes
        wishes = " or ".join(", ".join(f"{k}: {v}" for k, v in wish) for wish in wanted.labels)
        with_labels = f" with the labels {{{wishes}}}" if wishes else ""
        if waited:
            more = f", and after {waited:g} minutes no other came"
        elif self.is_scaled:
            more = ", and the autoscaler brings none that is larger"
        return (
            f"UNSCHEDULABLE: asks for {self.size_for(job.recipe.resources)} on one machine{with_labels}; "
            f"{there}{more}. Lower `resources`, or add a machine."
        )

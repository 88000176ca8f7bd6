"""Which machines a Ray has, which are being taken away, whether an autoscaler may bring more, and what could hold a job."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from orchestrator.connection import Connection
from workers.errors import ConclaveError
from workers.job import Job
from workers.resources import Labels, Resources

REPLACED_SECONDS = 60.0  # that another machine may take to come in the place of one that went away
REFUSED_SECONDS = 600.0  # for which an autoscaler brings nothing that could hold a job, before it is given up: idle ones go first
ON_HEAD = {"node:__internal_head__": 0.001}  # a resource that is Ray's own, of the head alone
GPUS_COME = "CONCLAVE_GPUS_COME"  # set where an autoscaler brings machines with GPUs, of which there is none yet
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# glibc would give a step's memory back to the system, and take it again page by page, zeroed: seven of a hundred images a second.
# One heap for all threads, for the others are too small to hold a batch's tensors. Other C libraries read none of these.
KEPT_MEMORY = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}


def trainer_environment(threads: int) -> dict[str, str]:
    """The variables of a trainer's process."""
    return dict.fromkeys(THREADS, str(threads)) | KEPT_MEMORY


class Size(NamedTuple):
    """Of a machine, or of what a job asks for on one."""

    gpus: float
    cpus: float

    @classmethod
    def of(cls, resources: dict[str, float]) -> Size:
        return cls(resources.get("GPU", 0.0), resources.get("CPU", 0.0))

    @classmethod
    def sum(cls, sizes: Iterable[Size]) -> Size:
        """Of fractions of a GPU too: three thirds are one."""
        return cls(*(round(sum(of), 9) for of in zip(*sizes, strict=True)))

    def holds(self, other: Size) -> bool:
        return other.gpus <= self.gpus and other.cpus <= self.cpus

    def __str__(self) -> str:
        return f"{self.gpus:g} GPUs and {self.cpus:g} CPUs"


class Shape(NamedTuple):
    """What a trainer has: jobs that ask for just that may follow one another in it."""

    gpus: float
    cpus: float
    threads: int
    labels: tuple[Labels, ...]
    processes: int

    @property
    def size(self) -> Size:
        return Size(self.gpus, self.cpus)

    def options(self) -> dict[str, Any]:
        """Of its actor, for Ray."""
        around = {"env_vars": trainer_environment(self.threads)}
        if self.processes > 1:  # which ask for themselves, where there is room for all; who starts them is with the driver
            return {"num_cpus": 0, "resources": ON_HEAD, "runtime_env": around}
        asked: dict[str, Any] = {"num_gpus": self.gpus, "num_cpus": self.cpus, "runtime_env": around}
        if self.labels:
            first, *others = [{"label_selector": dict(wish)} for wish in self.labels]
            asked |= {**first, "fallback_strategy": others or None}
        return asked


class Machine(NamedTuple):
    """One that takes work."""

    size: Size
    labels: Mapping[str, str]


@dataclass
class Machines:
    """Looked up at most once a second."""

    connection: Connection
    there: list[Machine] = field(default_factory=list)  # those that take work
    alive: set[str] = field(default_factory=set)
    leaving: set[str] = field(default_factory=set)  # told to go: drained, as after the notice of a spot machine
    scaled: bool = False  # whether an autoscaler brings and ends them
    refused: dict[Size, float] = field(default_factory=dict)  # what the autoscaler brings nothing for, and since when
    looked: float = -1.0
    lost: float = -math.inf

    def look(self) -> Machines:
        if time.monotonic() - self.looked > 1:
            seen = self.connection.seen()
            if seen is None and self.looked < 0:
                raise ConclaveError("Ray does not say which machines it has. Run again; nothing is lost.")
            if seen is None:
                return self
            self.alive, self.leaving = set(seen.nodes), seen.draining
            staying = [node for node in seen.nodes if node not in self.leaving]
            before = self.there
            self.there = [Machine(Size.of(seen.nodes[node]), seen.labels.get(node, {})) for node in staying]
            self.looked = time.monotonic()
            self.scaled, refused = seen.refused is not None, [Size.of(request) for request in seen.refused or ()]
            self.refused = {size: self.refused.get(size, self.looked) for size in refused}
            if len(self.there) < len(before):
                self.lost = self.looked
        return self

    def asked(self, job: Job) -> Size:
        """What it asks for; one GPU, where it says nothing of them and machines have some, or will have."""
        wanted = job.member.resources
        some = GPUS_COME in os.environ or any(machine.size.gpus >= 1 for machine in self.look().there)
        return Size(wanted.gpus_where(some), wanted.cpus)

    def shape(self, job: Job) -> Shape:
        """Of the trainer that it needs."""
        asked = job.member.resources
        return Shape(*self.asked(job), job.train.threads, asked.labels, asked.processes)

    def total(self, wanted: Resources | None = None) -> Size:
        """Of all machines together, or of those whose labels a job wants."""
        wanted = wanted or Resources()
        return Size.sum([m.size for m in self.look().there if wanted.preference(m.labels) is not None] or [Size(0, 0)])

    def fit(self, job: Job) -> bool:
        """Whether some machine that there is could hold the job."""
        asked, wanted = self.asked(job), job.member.resources
        return any(m.size.holds(asked) and wanted.preference(m.labels) is not None for m in self.look().there)

    def until(self, job: Job, since: float) -> float:
        """When a job that waits since then for a machine that could hold it is given up (time.monotonic()): as the team says;
        where it says nothing, not while an autoscaler may bring one; a while after one went away."""
        said = job.member.resources.wait_minutes
        if said is not None:
            end = since + said * 60
        elif self.look().scaled:
            end = self.refused.get(self.asked(job), math.inf) + REFUSED_SECONDS
        else:
            end = since
        return max(end, self.lost + REPLACED_SECONDS)

    def why_impossible(self, job: Job) -> str:
        there = ", ".join(str(size) for size in sorted({machine.size for machine in self.look().there}, reverse=True)[:3])
        more, waited = "", job.member.resources.wait_minutes
        wishes = " or ".join(", ".join(f"{k}: {v}" for k, v in wish) for wish in job.member.resources.labels)
        with_labels = f" with the labels {{{wishes}}}" if wishes else ""
        if waited:
            more = f", and after {waited:g} minutes no other came"
        elif self.scaled:
            more = ", and the autoscaler brings none that is larger"
        return (
            f"UNSCHEDULABLE: asks for {self.asked(job)} on one machine{with_labels}; there are machines with {there}{more}. "
            "Lower `resources`, or add a machine."
        )

"""Choose what is worth a trial of how many trainings share a GPU."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from orchestrator.cluster.gpu_sharing import is_open, kind_of
from orchestrator.cluster.machines import Machines
from workers.config.job import Job

MOST = 8  # trainings on one GPU: each process takes half a gigabyte of its memory before it holds anything


class Alike(NamedTuple):
    """Trainings of one kind.

    Attributes:
        job: One of them.
        most: How many of them may share a GPU at the most.
    """

    job: Job
    most: int


def alternatives(machines: Machines, jobs: Sequence[Job]) -> Iterator[Alike]:
    """Yield the kinds of trainings of which more than one could share a GPU, and of which that is not known yet.

    Only those count that leave the number of GPUs open, where more of them wait than there are GPUs. Each needs its cores, too.

    Args:
        machines: The machines.
        jobs: All jobs that wait.
    """
    with_gpus = [machine.size for machine in machines.look().available if machine.size.gpus >= 1]
    kinds: dict[str, list[Job]] = {}
    for job in jobs:
        if is_open(job) and kind_of(job) not in machines.sharing.known:
            kinds.setdefault(kind_of(job), []).append(job)
    if not with_gpus:
        return
    gpus, largest = sum(size.gpus for size in with_gpus), max(with_gpus, key=lambda size: size.cpus / size.gpus)
    for alike in kinds.values():
        with_cores = int(largest.cpus / largest.gpus / alike[0].recipe.resources.cpus)
        most = min(MOST, with_cores, math.ceil(len(alike) / gpus))
        if most > 1:
            yield Alike(alike[0], most)

"""What a plan will take: time on this machine; machines, hours and money on a cluster. No torch, ray or mlflow."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.plan import Plan
from workers.artifact import MemberArtifact
from workers.errors import Rejected
from workers.job import Job
from workers.resources import Resources

# Floating-point operations a second that a fit is assumed to reach before one was measured, of ResNet18.
CORE = 1.0e11
GPU = 2.5e12  # a third of what a T4 can do in float32
STARTING = 6 / 60  # hours until a cloud machine is booted, has the image and runs Ray
MEASURED, ROUGH = "measured on fits that are done here", "rough: from the network's size alone"
Kind = tuple[str, int, str, int]


def here(plan: Plan, cores: int) -> tuple[float, str]:
    """Seconds for what is to do on this machine, and what the estimate rests on.

    As long as all cores' work, shared, or as long as the longest row of fits each of which goes on from the one before.
    """
    rates = _Rates.of(plan, gpu=False)
    seconds = {job.signature: rates.seconds(job) for job in plan.todo}
    work = sum(seconds[job.signature] * max(1.0, job.member.resources.cpus) for job in plan.todo)
    until: dict[str, float] = {}
    for job in plan.todo:
        until[job.signature] = seconds[job.signature] + _ready(job, until)
    return max(work / max(1, cores), max(until.values(), default=0.0)), rates.basis


def _ready(job: Job, until: Mapping[str, float]) -> float:
    """When the last of the fits that it goes on from, or learns from, ends."""
    return max((until[signature] for signature in job.needs if signature in until), default=0.0)


@dataclass(frozen=True)
class Group:
    """Machines of one type in a cluster file."""

    name: str
    gpus: float
    cpus: float
    most: int
    price: float | None  # of a trainer for an hour
    labels: Mapping[str, str] = field(default_factory=dict)

    def slots(self, gpus: float, cpus: float, wanted: Resources) -> int:
        """How many jobs that ask for so much fit on one at a time; none where they want another kind of machine."""
        if wanted.preference(self.labels) is None:
            return 0
        return int(min(self.gpus / gpus if gpus else math.inf, self.cpus / cpus))


@dataclass
class _Machine:
    group: Group
    slots: list[float] = field(default_factory=list)  # hours until each is free

    @property
    def hours(self) -> float:
        return max(self.slots)


@dataclass(frozen=True)
class Estimate:
    """Of a sweep on a cluster. `machines`: of each group, how many come and their hours together."""

    machines: Mapping[str, tuple[int, float]]
    hours: float
    money: float | None  # where the team has prices for all of them
    basis: str


def on_cluster(plan: Plan, config: Mapping[str, Any]) -> Estimate:
    """Jobs in the plan's order, each on the machine that is free first; groups are filled in the file's order.

    `prices` of the team count by a group's name or by its label `market`. Raises Rejected where a job fits on no machine.
    """
    groups, idle = _groups(config, plan.team.hourly), float(config.get("idle_timeout_minutes") or 5) / 60
    some = any(group.gpus >= 1 for group in groups)
    rates, limit = _Rates.of(plan, gpu=some), int(config.get("max_workers") or sum(group.most for group in groups))
    machines: list[_Machine] = []
    until: dict[str, float] = {}
    for job in plan.todo:
        asked = job.member.resources
        gpus, cpus = asked.gpus_where(some), asked.cpus
        able = [machine for machine in machines if machine.group.slots(gpus, cpus, asked)]
        new = _next(groups, machines, limit, job, some)
        if not able and new is None:
            raise Rejected(f"{job.label}: asks for {gpus:g} GPUs and {cpus:g} CPUs on one machine; no type in the file has that.")
        first = min(able, key=lambda machine: min(machine.slots), default=None)
        if new and (first is None or min(first.slots) > STARTING):
            first = _Machine(new, [STARTING] * new.slots(gpus, cpus, asked))
            machines.append(first)
        assert first
        slot = first.slots.index(min(first.slots))
        first.slots[slot] = max(first.slots[slot], _ready(job, until)) + rates.seconds(job) / 3600
        until[job.signature] = first.slots[slot]
    return _summed(machines, groups, idle, rates.basis)


def _summed(machines: list[_Machine], groups: list[Group], idle: float, basis: str) -> Estimate:
    """Each machine is paid from its start until it was idle for as long as the file says, for as many trainers as it holds."""
    of = {group.name: [machine.hours + idle for machine in machines if machine.group == group] for group in groups}
    money = sum((machine.hours + idle) * len(machine.slots) * (machine.group.price or 0.0) for machine in machines)
    known = all(machine.group.price is not None for machine in machines) and bool(machines)
    longest = max((machine.hours for machine in machines), default=0.0)
    return Estimate({name: (len(hours), sum(hours)) for name, hours in of.items()}, longest, money if known else None, basis)


def _groups(config: Mapping[str, Any], prices: Mapping[str, float]) -> list[Group]:
    """The worker types of a cluster file of Ray's. Raises Rejected where it names none: own machines are what they are."""
    types = config.get("available_node_types")
    if not types:
        raise Rejected("the cluster file names no machine types, so nothing can be said before its machines run.")
    found = []
    for name, one in types.items():
        resources, labels = one.get("resources") or {}, one.get("labels") or {}
        own = one.get("max_workers")
        most = int(config.get("max_workers") or 0) if own is None else int(own)
        if name == config.get("head_node_type") or not most:
            continue
        if not resources:
            raise Rejected(f"available_node_types: {name} says no `resources:`, so what fits on it is not known before it runs.")
        sizes = float(resources.get("GPU") or 0), float(resources.get("CPU") or 0)
        found.append(Group(name, *sizes, most, prices.get(name, prices.get(str(labels.get("market")))), labels))
    return found


def _next(groups: list[Group], machines: list[_Machine], limit: int, job: Job, some: bool) -> Group | None:
    """The group of the next machine that may come for such a job: of those that it prefers, the file's first."""
    if len(machines) >= limit:
        return None
    asked = job.member.resources
    able = [group for group in groups if group.slots(asked.gpus_where(some), asked.cpus, asked)]
    open_ = [group for group in able if sum(machine.group == group for machine in machines) < group.most]
    return min(open_, key=lambda group: asked.preference(group.labels) or 0, default=None)


@dataclass(frozen=True)
class _Rates:
    """Seconds an image, by kind of network: measured on done fits on such a device, else assumed."""

    plan: Plan
    measured: Mapping[Kind, float]
    speed: float

    @classmethod
    def of(cls, plan: Plan, gpu: bool) -> _Rates:
        found: dict[Kind, float] = {}
        for job in plan.jobs:
            if job.signature in plan.done:
                manifest = MemberArtifact.of(job.home, job.signature).manifest()
                rates = sorted(1 / epoch["train/images_per_second"] for epoch in manifest["history"])
                if gpu != str(manifest["device"]).startswith("cpu"):
                    found[_kind(job)] = rates[len(rates) // 2]
        return cls(plan, found, GPU if gpu else CORE)

    @property
    def basis(self) -> str:
        return MEASURED if all(_kind(job) in self.measured for job in self.plan.todo) else ROUGH

    def seconds(self, job: Job) -> float:
        return self._images(job) * self.measured.get(_kind(job), self._assumed(job))

    def _images(self, job: Job) -> float:
        store = self.plan.store
        rows = float((~store.tested).sum()) * (1 - job.data.fuse_fraction)
        if not store.tested.any():
            rows *= 1 - job.data.test_fraction
        first, end = job.epochs
        teaching = len(job.teachers) / 3  # a forward pass is about a third of a step
        return rows * (end - first) * (1 + teaching if job.fold is None else 1 - 1 / job.data.folds)

    def _assumed(self, job: Job) -> float:
        """Forward and backward of a ResNet18 of this width at this size."""
        size = self.plan.store.size
        small = job.member.stem == "cifar" or (job.member.stem == "auto" and size < 64)
        flops = 3 * 2 * (0.56e9 * (size / 32) ** 2 if small else 1.82e9 * (size / 224) ** 2)
        return flops * (job.member.width / 64) ** 2 / self.speed / job.member.resources.processes


def _kind(job: Job) -> Kind:
    return job.member.arch, job.member.width, job.member.stem, job.member.resources.processes

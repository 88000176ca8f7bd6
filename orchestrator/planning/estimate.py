"""Estimate a plan: time on this machine; machines, hours and money on a cluster. No torch, Ray or MLflow."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from orchestrator.planning.plan import Plan
from workers.config.job import Job
from workers.config.resources import Resources
from workers.errors import UserInputError

# Assumed FLOP/s of a ResNet18 training, used until a training is measured.
CORE_FLOPS = 1.0e11
GPU_FLOPS = 2.5e12  # a third of what a T4 can do in float32
BOOT_HOURS = 6 / 60  # hours until a cloud machine is booted, has the image and runs Ray
MEASURED, ROUGH = "measured on trainings that are done here", "rough: from the network's size alone"
Kind = tuple[str, int, str, int]


def estimate_local(plan: Plan, cores: int) -> tuple[float, str]:
    """Estimate the remaining time of a plan on this machine.

    The larger of two bounds: all work divided by all cores, and the longest training including its teachers.

    Args:
        plan: The plan.
        cores: Number of CPU cores.

    Returns:
        Seconds, and the basis of the estimate.
    """
    seconds, basis = _training_seconds(plan, gpu=False)
    work = sum(seconds[job.key] * max(1.0, job.recipe.resources.cpus) for job in plan.todo)
    ends: dict[str, float] = {}
    for job in plan.todo:
        ends |= dict.fromkeys(job.signatures, seconds[job.key] + _teachers_end(job, ends))
    return max(work / max(1, cores), max(ends.values(), default=0.0)), basis


def _teachers_end(job: Job, ends: Mapping[str, float]) -> float:
    """Return the time at which the last of a job's teachers ends."""
    return max((ends[signature] for signature in job.teachers if signature in ends), default=0.0)


@dataclass(frozen=True)
class MachineType:
    """Machines of one type in a cluster file.

    Attributes:
        name: Name of the type.
        gpus: GPUs of one machine.
        cpus: CPU cores of one machine.
        most: Largest number of machines.
        price: Price per trainer-hour, or None if the team gives no price.
        labels: Ray's labels of the machines.
    """

    name: str
    gpus: float
    cpus: float
    most: int
    price: float | None
    labels: Mapping[str, str] = field(default_factory=dict)

    def slots(self, gpus: float, cpus: float, wanted: Resources) -> int:
        """Return the number of jobs that fit on one machine at a time; 0 if they require another kind of machine."""
        if wanted.preference(self.labels) is None:
            return 0
        return int(min(self.gpus / gpus if gpus else math.inf, self.cpus / cpus))


@dataclass
class _Machine:
    node_type: MachineType
    slots: list[float] = field(default_factory=list)  # hours until each is free; empty until the machine is started


@dataclass(frozen=True)
class Estimate:
    """The estimate for a sweep on a cluster.

    Attributes:
        machines: Number of machines and their total hours, by type.
        hours: Hours until the last job ends.
        money: The price, or None unless the team has prices for all machines.
        basis: The basis of the estimate.
    """

    machines: Mapping[str, tuple[int, float]]
    hours: float
    money: float | None
    basis: str


def estimate_cluster(plan: Plan, config: Mapping[str, Any]) -> Estimate:
    """Estimate a sweep on a cluster. Jobs run in the plan's order, each on the machine that is free first.

    All slots of a machine are billed, from its start to its idle timeout. Its price is the entry of the team's `prices` for the
    type's name, else for the label `market`. The head is billed by `budget.head` until the last training ends.

    Args:
        plan: The plan.
        config: Content of a cluster file for Ray's launcher.

    Raises:
        UserInputError: If a job fits on no machine.
    """
    node_types, idle = _machine_types(config, plan.team.prices), float(config.get("idle_timeout_minutes") or 5) / 60
    has_gpus = any(node_type.gpus >= 1 for node_type in node_types)
    seconds, basis = _training_seconds(plan, gpu=has_gpus)
    limit = int(config.get("max_workers") or sum(node_type.most for node_type in node_types))
    machines = [_Machine(node_type) for node_type in node_types for _ in range(min(node_type.most, len(plan.todo)))]
    ends: dict[str, float] = {}
    for job in plan.todo:
        machine = _next_machine(machines, limit, job, has_gpus)
        slot = machine.slots.index(min(machine.slots))
        machine.slots[slot] = max(machine.slots[slot], _teachers_end(job, ends)) + seconds[job.key] / 3600
        ends |= dict.fromkeys(job.signatures, machine.slots[slot])
    used = [(machine.node_type, len(machine.slots), max(machine.slots)) for machine in machines if machine.slots]
    hours = {node_type.name: [end + idle for other, _, end in used if other == node_type] for node_type in node_types}
    money = sum((end + idle) * slots * (node_type.price or 0.0) for node_type, slots, end in used)
    longest = max((end for *_, end in used), default=0.0)
    money += longest * (plan.team.budget.head or 0.0)
    is_priced = bool(used) and all(node_type.price is not None for node_type, *_ in used)
    return Estimate(
        {name: (len(each), sum(each)) for name, each in hours.items()},
        longest,
        money if is_priced else None,
        basis,
    )


def _next_machine(machines: list[_Machine], limit: int, job: Job, has_gpus: bool) -> _Machine:
    """Return the machine for a job: the first that is free, rather a started one, then by preference and file order.

    Starts it if necessary. Raises UserInputError if the job fits on none.
    """
    wanted = job.recipe.resources
    gpus, cpus = wanted.gpus_where(has_gpus), wanted.cpus
    can_start = sum(bool(machine.slots) for machine in machines) < limit
    usable = [m for m in machines if (m.slots or can_start) and m.node_type.slots(gpus, cpus, wanted)]
    if not usable:
        raise UserInputError(
            f"{job.label}: asks for {gpus:g} GPUs and {cpus:g} CPUs on one machine; no type in the file has that."
        )
    machine = min(
        usable,
        key=lambda m: (min(m.slots, default=BOOT_HOURS), not m.slots, wanted.preference(m.node_type.labels) or 0),
    )
    machine.slots = machine.slots or [BOOT_HOURS] * machine.node_type.slots(gpus, cpus, wanted)
    return machine


def _machine_types(config: Mapping[str, Any], prices: Mapping[str, float]) -> list[MachineType]:
    """Return the worker types of a cluster file.

    Raises UserInputError if it names no types: the machines of a fixed cluster are not known here.
    """
    node_types = config.get("available_node_types")
    if not node_types:
        raise UserInputError("the cluster file names no machine types, so there is no estimate before its machines run.")
    machine_types = []
    for name, entry in node_types.items():
        resources, labels = entry.get("resources") or {}, entry.get("labels") or {}
        own_limit = entry.get("max_workers")
        most = int(config.get("max_workers") or 0) if own_limit is None else int(own_limit)
        if name == config.get("head_node_type") or not most:
            continue
        if not resources:
            raise UserInputError(f"available_node_types: {name} says no `resources:`, so its capacity is unknown until it runs.")
        sizes = float(resources.get("GPU") or 0), float(resources.get("CPU") or 0)
        machine_types.append(MachineType(name, *sizes, most, prices.get(name, prices.get(str(labels.get("market")))), labels))
    return machine_types


def _training_seconds(plan: Plan, gpu: bool) -> tuple[dict[str, float], str]:
    """Return the seconds of each remaining job by its key, and the basis of the estimate.

    The seconds per image are measured on finished trainings on this kind of device, else assumed.
    """
    measured: dict[Kind, float] = {}
    for planned in plan.members:
        if planned.signature in plan.done:
            record = planned.artifact.manifest()
            if gpu != record.device.startswith("cpu"):
                measured[_kind(planned.job)] = median(1 / epoch["train/images_per_second"] for epoch in record.history)
    speed = GPU_FLOPS if gpu else CORE_FLOPS
    seconds = {job.key: _images(plan, job) * measured.get(_kind(job), _flops(job, plan.store.size) / speed) for job in plan.todo}
    return seconds, MEASURED if all(_kind(job) in measured for job in plan.todo) else ROUGH


def _images(plan: Plan, job: Job) -> float:
    """Return the number of images that the rest of a training computes."""
    rows = float(len(plan.split.fit))
    end = max(job.last_epoch(member) for member in job.members)
    made = [job.last_epoch(member) for member in job.members if member.signature in plan.done]
    first = max((epoch for epoch in made if epoch < end), default=0)
    teaching = len(job.teachers) / 3  # a forward pass is about a third of a step
    return rows * (end - first) * (1 + teaching if job.fold is None else 1 - 1 / job.data.folds)


def _flops(job: Job, size: int) -> float:
    """Return the FLOPs per image and process: forward and backward passes of a ResNet18 of this width and image size."""
    is_small_stem = job.recipe.stem == "cifar" or (job.recipe.stem == "auto" and size < 64)
    flops = 3 * 2 * (0.56e9 * (size / 32) ** 2 if is_small_stem else 1.82e9 * (size / 224) ** 2)
    return flops * (job.recipe.width / 64) ** 2 / job.recipe.resources.processes


def _kind(job: Job) -> Kind:
    recipe = job.recipe
    return recipe.arch, recipe.width, recipe.stem, recipe.resources.processes

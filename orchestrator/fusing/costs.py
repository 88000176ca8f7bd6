"""Costs of candidates: multiply-adds, which decide, and measured seconds, which are reported."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from fusion.export.fused_model import FusedModel, assemble
from fusion.predictions import TeamPredictions
from fusion.selection.costs import TrainingCost, paid_for
from fusion.selection.fitting import FittedFusion
from fusion.selection.networks import CandidateNetworks, Effort, shares_of_networks
from orchestrator.fusing.fitted_team import FittedTeam
from workers.models.multiply_adds import count_multiply_adds, multiply_adds
from workers.models.network import Network
from workers.storage.artifacts import MemberArtifact
from workers.storage.training_record import TrainingRecord
from workers.training.augmentation import to_float

MOST_IMAGES = 64
MULTIPLY_ADDS_A_BATCH = 8e9  # about a quarter of a second of one core
TURNS = 5
Runs = dict[tuple[str, str], Callable[[], object]]


@dataclass(frozen=True)
class InferenceCost:
    """What the inference of an image costs.

    Attributes:
        seconds: Measured seconds, on as many threads as a trainer has.
        seconds_all_cores: Measured seconds on all cores.
        multiply_adds: Multiply-adds.
    """

    seconds: float
    seconds_all_cores: float
    multiply_adds: float


@contextmanager
def all_cores() -> Iterator[int]:
    """Use all cores of the machine, in torch and in NumPy: nothing else of the sweep runs while it is fused.

    Yields:
        The number of threads that torch had before.
    """
    from threadpoolctl import threadpool_limits

    before, count = torch.get_num_threads(), os.cpu_count() or 1
    torch.set_num_threads(count)
    try:
        with threadpool_limits(count, "blas"):
            yield before
    finally:
        torch.set_num_threads(before)


def measure_inference(
    team: TeamPredictions, fitted: Mapping[str, FittedFusion], networks: CandidateNetworks[Network], images: Tensor, threads: int
) -> dict[str, InferenceCost]:
    """Return what each candidate costs for an image: its networks, and what it does with them.

    Networks of one structure are measured once, for they cost the same: members that differ in their seeds, and fold trainings.

    Args:
        team: The team's predictions.
        fitted: The candidates by name.
        networks: The networks.
        images: (n, S, S, 3) uint8, from which batches are taken.
        threads: Number of threads that a trainer has.
    """
    models = {name: assemble(fusion, networks) for name, fusion in fitted.items()}
    kinds = {name: [_kind(network) for network in model.members] for name, model in models.items()}
    each = {
        kind: cast(Network, network)
        for name, model in models.items()
        for kind, network in zip(kinds[name], model.members, strict=True)
    }
    counted = {key: multiply_adds(network, images.shape[1]) for key, network in each.items()}
    batch = max(1, min(MOST_IMAGES, len(images), int(MULTIPLY_ADDS_A_BATCH / max(1, *counted.values()))))
    x = to_float(images[:batch])
    with torch.inference_mode():
        outputs = {key: _outputs(network, x) for key, network in each.items()}
        runs: Runs = {("network", key): _run_of(network, x) for key, network in each.items()}
        combiners = {name: _combiner_of(model, [outputs[kind] for kind in kinds[name]]) for name, model in models.items()}
        runs |= {("combiner", name): run for name, run in combiners.items()}
        seconds = [_median_seconds(runs, count) for count in (threads, os.cpu_count() or 1)]
    found = {}
    for name, model in models.items():
        asked = list(zip(shares_of_networks(fitted[name], team, len(model.members)), kinds[name], strict=True))
        timed = [
            (sum(share * times["network", kind] for share, kind in asked) + times["combiner", name]) / batch for times in seconds
        ]
        beside = count_multiply_adds(combiners[name]) / batch
        work = sum(share * counted[kind] for share, kind in asked) + beside
        found[name] = InferenceCost(timed[0], timed[1], work)
    return found


def _kind(network: nn.Module) -> str:
    """Return what tells networks from one another whose inference costs the same: their structure, without their weights."""
    shapes = [tuple(tensor.shape) for tensor in network.state_dict().values()]
    return f"{network} {shapes}"


def _outputs(network: Network, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the features (N, D) and the logits (N, C) of a batch."""
    features = network.features(x)
    return features, network.head(features)


def _run_of(network: Network, x: Tensor) -> Callable[[], object]:
    return lambda: network(x)


def _combiner_of(model: FusedModel, outputs: Sequence[tuple[Tensor, Tensor]]) -> Callable[[], object]:
    """Return a function that does what a model does beside its networks, from their features and logits."""
    return lambda: model.combiner([features for features, _ in outputs], [logits for _, logits in outputs])


def _median_seconds(runs: Runs, threads: int) -> dict[tuple[str, str], float]:
    """Return the median seconds of each function on so many threads, all of them interleaved."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    times: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
    for turn in range(TURNS + 1):
        for key, run in runs.items():
            began = time.perf_counter()
            run()
            if turn:  # the first one warms up
                times[key].append(time.perf_counter() - began)
    torch.set_num_threads(before)
    return {key: median(values) for key, values in times.items()}


def training_costs(
    fitted_team: FittedTeam, cost_of: Callable[[str, TrainingRecord], float], searched: Mapping[str, float]
) -> dict[str, TrainingCost]:
    """Return what the trainings of each member, and of the student, cost.

    Args:
        fitted_team: The fitted team.
        cost_of: Returns what a training cost, from the member's name and the training's record.
        searched: What finding each member's recipe cost.
    """
    costs = {}
    for name, root in fitted_team.full.items():
        record = MemberArtifact(root).manifest()
        folds = tuple(cost_of(name, MemberArtifact(fold).manifest()) for fold in fitted_team.folds.get(name, ()))
        training = json.dumps(record.member.recipe_fields(), sort_keys=True)
        costs[name] = TrainingCost(cost_of(name, record), folds, training, searched.get(name, 0.0))
    if fitted_team.student:
        costs["student"] = TrainingCost(cost_of("student", MemberArtifact(fitted_team.student).manifest()))
    return costs


def efforts(fitted_team: FittedTeam, inference: Mapping[str, InferenceCost]) -> dict[str, Effort]:
    """Return what each candidate costs in multiply-adds."""
    team = fitted_team.team
    rows = {fold: int((team.inputs.folds != fold).sum()) for fold in np.unique(team.inputs.folds)}

    def passes(name: str, record: TrainingRecord) -> float:
        """Return the multiply-adds of the forward passes of a training."""
        images = len(record.history) * (len(team.fit_rows) if record.fold is None else rows[record.fold])
        return images * inference[name].multiply_adds if name in inference else 0.0  # a student that no fusion asks

    trained = training_costs(fitted_team, passes, {})
    return {
        name: Effort(inference[name].multiply_adds, paid_for(name, fusion, team, trained))
        for name, fusion in fitted_team.fitted.items()
    }

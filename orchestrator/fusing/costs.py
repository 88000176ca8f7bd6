"""Costs of candidates: multiply-adds for the decision, measured seconds for the report."""

from __future__ import annotations

import json
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
from fusion.selection.costs import TrainingCost, paid_for
from fusion.selection.fitting import FittedFusion
from fusion.selection.networks import CandidateNetworks, Effort
from orchestrator.fusing.fitted_team import FittedTeam
from workers.diagnostics.cores import available_cores
from workers.models.multiply_adds import count_multiply_adds, multiply_adds
from workers.models.network import Network
from workers.storage.artifacts import MemberArtifact
from workers.storage.training_record import TrainingRecord
from workers.training.augmentation import to_float

MAX_BATCH_IMAGES = 64
MAX_BATCH_MULTIPLY_ADDS = 4e9  # about an eighth of a second on one core
REPEATS = 3
Runs = dict[tuple[str, str], Callable[[], object]]


@dataclass(frozen=True)
class InferenceCost:
    """Inference cost of one image.

    Attributes:
        seconds: Measured seconds, on a trainer's number of threads.
        seconds_all_cores: Measured seconds on all cores.
        multiply_adds: Multiply-adds of all networks in the exported file, and of the combiner.
        networks: Number of networks in the exported file.
    """

    seconds: float
    seconds_all_cores: float
    multiply_adds: float
    networks: int


@contextmanager
def all_cores() -> Iterator[int]:
    """Use all cores in torch and NumPy: the sweep runs nothing else during fusion.

    Yields:
        The previous number of torch threads.
    """
    from threadpoolctl import threadpool_limits

    before, count = torch.get_num_threads(), available_cores()
    torch.set_num_threads(count)
    try:
        with threadpool_limits(count, "blas"):
            yield before
    finally:
        torch.set_num_threads(before)


def measure_inference(
    fitted: Mapping[str, FittedFusion], networks: CandidateNetworks[Network], images: Tensor, threads: int
) -> dict[str, InferenceCost]:
    """Return the inference cost per image of each candidate: its networks and its combiner.

    Networks of equal structure cost the same and are measured once: members that differ only in their seed, and fold trainings.

    Args:
        fitted: The candidates by name.
        networks: The networks.
        images: (n, S, S, 3) uint8; the first ones are the batch.
        threads: A trainer's number of threads.
    """
    models = {name: assemble(fusion, networks) for name, fusion in fitted.items()}
    kinds = {name: [_kind(network) for network in model.members] for name, model in models.items()}
    each = {
        kind: cast(Network, network)
        for name, model in models.items()
        for kind, network in zip(kinds[name], model.members, strict=True)
    }
    counted = {key: multiply_adds(network, images.shape[1]) for key, network in each.items()}
    batch = max(1, min(MAX_BATCH_IMAGES, len(images), int(MAX_BATCH_MULTIPLY_ADDS / max(1, *counted.values()))))
    x = to_float(images[:batch])
    with torch.inference_mode():
        outputs = {key: _outputs(network, x) for key, network in each.items()}
        runs: Runs = {("network", key): _run_of(network, x) for key, network in each.items()}
        combiners = {name: _combiner_of(model, [outputs[kind] for kind in kinds[name]]) for name, model in models.items()}
        runs |= {("combiner", name): run for name, run in combiners.items()}
        seconds = [_median_seconds(runs, count) for count in (threads, available_cores())]
    costs = {}
    for name, model in models.items():
        timed = [(sum(times["network", kind] for kind in kinds[name]) + times["combiner", name]) / batch for times in seconds]
        work = sum(counted[kind] for kind in kinds[name]) + count_multiply_adds(combiners[name]) / batch
        costs[name] = InferenceCost(timed[0], timed[1], work, len(model.members))
    return costs


def _kind(network: nn.Module) -> str:
    """Return a network's structure without its weights. Networks of equal structure have equal inference costs."""
    shapes = [tuple(tensor.shape) for tensor in network.state_dict().values()]
    return f"{network} {shapes}"


def _outputs(network: Network, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the features (N, D) and the logits (N, C) of a batch."""
    features = network.features(x)
    return features, network.head(features)


def _run_of(network: Network, x: Tensor) -> Callable[[], object]:
    return lambda: network(x)


def _combiner_of(model: FusedModel, outputs: Sequence[tuple[Tensor, Tensor]]) -> Callable[[], object]:
    """Return a function that runs a model's combiner on the features and logits of its networks."""
    return lambda: model.combiner([features for features, _ in outputs], [logits for _, logits in outputs])


def _median_seconds(runs: Runs, threads: int) -> dict[tuple[str, str], float]:
    """Return the median seconds of each function on `threads` threads, with interleaved calls."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    times: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
    for turn in range(REPEATS + 1):
        for key, run in runs.items():
            began = time.perf_counter()
            run()
            if turn:  # the first turn is a warmup
                times[key].append(time.perf_counter() - began)
    torch.set_num_threads(before)
    return {key: median(values) for key, values in times.items()}


def training_costs(
    fitted_team: FittedTeam, cost_of: Callable[[str, TrainingRecord], float], searched: Mapping[str, float]
) -> dict[str, TrainingCost]:
    """Return the training costs of each member and of the student.

    Args:
        fitted_team: The fitted team.
        cost_of: Returns the cost of a training, given the member's name and the training's record.
        searched: Search cost of each member's recipe.
    """
    costs, artifacts = {}, fitted_team.artifacts
    for name, root in artifacts.full.items():
        record = MemberArtifact(root).manifest()
        folds = tuple(cost_of(name, MemberArtifact(fold).manifest()) for fold in artifacts.folds.get(name, ()))
        training = json.dumps(record.member.recipe_fields(), sort_keys=True)
        costs[name] = TrainingCost(cost_of(name, record), folds, training, searched.get(name, 0.0))
    if artifacts.student:
        costs["student"] = TrainingCost(cost_of("student", MemberArtifact(artifacts.student).manifest()))
    return costs


def efforts(fitted_team: FittedTeam, inference: Mapping[str, InferenceCost]) -> dict[str, Effort]:
    """Return the cost of each candidate in multiply-adds."""
    team = fitted_team.team
    rows = {fold: int((team.inputs.folds != fold).sum()) for fold in np.unique(team.inputs.folds)}

    def passes(name: str, record: TrainingRecord) -> float:
        """Return the multiply-adds of a training's forward passes."""
        images = len(record.history) * (len(team.fit_rows) if record.fold is None else rows[record.fold])
        return images * inference[name].multiply_adds if name in inference else 0.0  # a student that no fusion uses

    trained = training_costs(fitted_team, passes, {})
    return {
        name: Effort(inference[name].multiply_adds, paid_for(name, fusion, team, trained))
        for name, fusion in fitted_team.fitted.items()
    }

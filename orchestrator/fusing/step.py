"""The fusion step: fit, score, price, recommend and export, from finished trainings. No Ray, no training."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from fusion.metrics.contributions import contributions
from fusion.metrics.diversity import diversity
from fusion.predictions import softmax
from fusion.results import Candidate, Contribution, FusionDetails
from fusion.selection.compare import compare, hardest_rows
from fusion.selection.costs import paid_for
from fusion.selection.doubts import find_suspects, measure_abstention
from fusion.selection.recommendation import best_single, recommend
from orchestrator.fusing.costs import MAX_BATCH_IMAGES, InferenceCost, all_cores, efforts, measure_inference, training_costs
from orchestrator.fusing.exporting import save_outputs, write_model
from orchestrator.fusing.fitted_team import FittedTeam, fit_team
from orchestrator.fusing.next_steps import next_steps
from orchestrator.fusing.progress import FILE, Steps
from orchestrator.fusing.request import FusionRequest
from orchestrator.fusing.warnings import warn
from orchestrator.home import SweepFolder
from workers.data.store import Store
from workers.diagnostics.callback import Epoch
from workers.diagnostics.faults import fault_point
from workers.storage.artifacts import MemberArtifact

SUSPECTS_SHOWN = 12


def fuse(request: FusionRequest) -> FusionDetails:
    """Fit, score, choose and export. Writes outputs.npz, fused.onnx and fusion.json, whose content it returns."""
    folder = SweepFolder(request.sweep)
    steps = Steps(folder.logs / FILE)
    with all_cores() as threads:
        fitted_team = fit_team(request, steps)
        fault_point("fusion.fit")
        details = evaluate_fusions(request, fitted_team, threads, steps)
        with steps.step("writing the outputs"):
            save_outputs(fitted_team.team, fitted_team.fitted, Store(request.store), folder.outputs)
        with steps.step(f"exporting {details.recommended}"):
            parity = write_model(request, fitted_team, details.recommended, folder.model)
    details = details.model_copy(update={"parity": parity, "seconds": steps.seconds})
    folder.keep(details)
    return details


def evaluate_fusions(request: FusionRequest, fitted_team: FittedTeam, threads: int, steps: Steps | None = None) -> FusionDetails:
    """Return scores, costs, diversity, warnings and the recommendation. Writes nothing.

    Args:
        request: The request.
        fitted_team: The fitted team.
        threads: A trainer's number of threads, with which inference is measured.
        steps: Records the duration of each step.
    """
    steps = steps or Steps()
    team, fitted = fitted_team.team, fitted_team.fitted
    images = torch.from_numpy(np.asarray(Store(request.store).images[team.fuse_rows[:MAX_BATCH_IMAGES]]))
    with steps.step("measuring inference"):
        inference = measure_inference(fitted, fitted_team.networks, images, threads)
    with steps.step("comparing"):
        details = _compared(request, fitted_team, inference)
    with steps.step("looking ahead"):
        return details.model_copy(update={"next_steps": next_steps(request, fitted_team, inference)})


def _compared(request: FusionRequest, fitted_team: FittedTeam, inference: Mapping[str, InferenceCost]) -> FusionDetails:
    """Return the evaluation without next steps, given the measured inference costs."""
    team, fitted = fitted_team.team, fitted_team.fitted
    costs = efforts(fitted_team, inference)
    chosen, choice = recommend(team, fitted, costs, request.team.metric, request.team.recommend.tolerance)
    rows = {"fit": team.fit_rows, "fuse": team.fuse_rows, "test": team.test_rows}
    suspects = [suspect for suspect in find_suspects(team) if suspect.is_probable]
    return FusionDetails(
        recommended=chosen,
        choice=choice,
        best_single=best_single(team, fitted, request.team.metric),
        classes=list(team.classes),
        rows={part: len(numbers) for part, numbers in rows.items()},
        candidates=_candidates(fitted_team, request, inference),
        diversity=diversity(team.names, team.inputs.fuse, team.judged_on),
        contributions=_contributions(fitted_team, request),
        hardest=hardest_rows(team, fitted, chosen),
        suspects=suspects[:SUSPECTS_SHOWN],
        suspected=len(suspects),
        abstention=measure_abstention(team, fitted[chosen]),
        warnings=warn(team, fitted, request.team.fusion, _histories(fitted_team)),
    )


def _contributions(fitted_team: FittedTeam, request: FusionRequest) -> dict[str, Contribution]:
    """Return each member's contribution to the vote and its training price; empty without a vote of several members."""
    team, fitted = fitted_team.team, fitted_team.fitted
    if "vote" not in fitted or len(team.names) < 2:
        return {}
    fuse = team.inputs.fuse
    found = contributions(team.names, softmax(fuse.logits), fuse.labels, fuse.groups)
    costs = training_costs(fitted_team, lambda _, record: record.total_seconds, request.searched)

    def money(name: str) -> dict[str, float]:
        seconds = paid_for(name, fitted[name], team, costs)
        return {kind: price * seconds / 3600 for kind, price in request.team.prices.items()}

    return {name: one.model_copy(update={"money": money(name)}) for name, one in found.items()}


def _histories(fitted_team: FittedTeam) -> dict[str, list[Epoch]]:
    """Return the metrics per epoch of each full training, and of the student's.

    Without a *fuse* part, a full training has no held-out rows, and its first fold training stands in for it.
    """
    full, student = fitted_team.artifacts.full, fitted_team.artifacts.student
    if fitted_team.team.is_out_of_fold:
        full = {name: folds[0] for name, folds in fitted_team.artifacts.folds.items()}
    folders = {**full, **({"student": student} if student else {})}
    return {name: MemberArtifact(root).manifest().history for name, root in folders.items()}


def _candidates(fitted_team: FittedTeam, request: FusionRequest, inference: Mapping[str, InferenceCost]) -> dict[str, Candidate]:
    """Return each candidate's row: its comparison, its inference costs, and its price if prices are given."""
    team = fitted_team.team
    seconds = training_costs(fitted_team, lambda _, record: record.total_seconds, request.searched)
    rows = compare(team, fitted_team.fitted, seconds, request.team.metric)
    mean_seconds = float(np.mean([inference[name].seconds for name in team.names]))
    mean_work = float(np.mean([inference[name].multiply_adds for name in team.names]))
    return {
        name: Candidate(
            **dict(row),
            inference_cost=inference[name].seconds / mean_seconds,
            inference_ms=inference[name].seconds * 1000,
            inference_ms_all_cores=inference[name].seconds_all_cores * 1000,
            multiply_adds=inference[name].multiply_adds,
            networks=inference[name].networks,
            compute_cost=inference[name].multiply_adds / mean_work if mean_work else 1.0,
            money={kind: price * row.train_seconds / 3600 for kind, price in request.team.prices.items()},
        )
        for name, row in rows.items()
    }

"""The fusion step: fit, score, price, recommend and export, from finished trainings. No Ray, no training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fusion.export.flips import predict_with_flips
from fusion.export.fused_model import assemble
from fusion.export.onnx_export import ModelCard, export_model
from fusion.export.quantization import CALIBRATION_ROWS, QuantizationLoss, measure_loss, quantize
from fusion.metrics.conformal import fit_level
from fusion.metrics.contributions import contributions
from fusion.metrics.diversity import diversity
from fusion.metrics.scores import evenly_drawn
from fusion.predictions import TeamPredictions, softmax
from fusion.results import Candidate, Contribution, FusionDetails
from fusion.selection.compare import compare, hardest_rows
from fusion.selection.costs import paid_for
from fusion.selection.doubts import find_suspects, measure_abstention
from fusion.selection.fitting import FittedFusion
from fusion.selection.networks import CandidateNetworks
from fusion.selection.recommendation import best_single, recommend
from orchestrator.fusing.costs import MAX_BATCH_IMAGES, InferenceCost, all_cores, efforts, measure_inference, training_costs
from orchestrator.fusing.fitted_team import FittedTeam, fit_team
from orchestrator.fusing.next_steps import next_steps
from orchestrator.fusing.progress import FILE, Steps
from orchestrator.fusing.request import ExportOptions, FusionRequest
from orchestrator.fusing.warnings import warn
from orchestrator.home import SweepFolder
from workers.data.store import Store
from workers.diagnostics.callback import Epoch
from workers.diagnostics.faults import fault_point
from workers.storage.artifacts import MemberArtifact

MOST_PARITY_ROWS, FEWEST_PARITY_ROWS, PARITY_PIXELS = 256, 16, 1 << 21
SUSPECTS_SHOWN = 12
DEFAULTS = ExportOptions()


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
        diversity=diversity(team.names, team.inputs.fuse),
        contributions=_contributions(fitted_team, request),
        hardest=hardest_rows(team, fitted, chosen),
        suspects=suspects[:SUSPECTS_SHOWN],
        suspected=len(suspects),
        abstention=measure_abstention(team, fitted[chosen]),
        warnings=warn(team, fitted, request.team.fusion, _histories(fitted_team)),
    )


def write_model(
    request: FusionRequest, fitted_team: FittedTeam, name: str, target: Path, options: ExportOptions = DEFAULTS
) -> float:
    """Export one candidate and check it against the fusion's probabilities on *fuse* rows.

    Args:
        request: The request.
        fitted_team: The fitted team.
        name: Name of the candidate.
        target: The ONNX file.
        options: Export options; `write_int8_model` writes the 8-bit version.

    Returns:
        The largest difference between the model's and the fusion's probabilities.

    Raises:
        ConclaveError: If they differ too much. Nothing is written then.
    """
    team, fitted = fitted_team.team, fitted_team.fitted[name]
    store = Store(request.store)
    rows = min(len(team.fuse_rows), MOST_PARITY_ROWS, max(FEWEST_PARITY_ROWS, PARITY_PIXELS // store.size**2))
    checked = evenly_drawn(len(team.fuse_rows), rows, 1)  # the rows may be sorted by class
    predictions, images = team.inputs.fuse.take(checked), np.asarray(store.images[team.fuse_rows[checked]])
    members = [request.members[member] for member in team.names]
    bags = [[spec] * len(fitted_team.artifacts.folds.get(spec.name, ())) for spec in members]
    specs = CandidateNetworks(members, bags, request.student[0] if request.student else None)
    level = fit_level(fitted.nested, team.inputs.fuse.labels) if options.abstains else None
    card = ModelCard(specs.used(fitted), team.classes, {**request.provenance, "method": name}, level, store.record.bits)
    if options.flips:
        predictions = predict_with_flips(predictions, fitted_team.networks, torch.from_numpy(images))
    model = assemble(fitted, fitted_team.networks, options.flips)
    return export_model(model, card, target, images, fitted.predict_proba(predictions))


def write_int8_model(request: FusionRequest, fitted_team: FittedTeam, source: Path, target: Path) -> QuantizationLoss:
    """Quantize an exported model to 8 bits, calibrated on *fuse* rows, and measure the loss on *test* rows."""
    images, team = Store(request.store).images, fitted_team.team
    rows = evenly_drawn(len(team.fuse_rows), CALIBRATION_ROWS, 1)  # the rows may be sorted by class
    quantize(source, target, np.asarray(images[team.fuse_rows[rows]]))
    return measure_loss(source, target, np.asarray(images[team.test_rows]), team.test.labels)


def save_outputs(team: TeamPredictions, fitted: Mapping[str, FittedFusion], store: Store, target: Path) -> None:
    """Write the arrays behind all fusions, for `conclave export --outputs`.

    Args:
        team: The predictions.
        fitted: The candidates by name.
        store: The packed data.
        target: The .npz file.
    """
    ids = np.array(store.ids)
    labels = np.asarray(store.labels)
    rows = {"fit": team.fit_rows, "fuse": team.fuse_rows, "test": team.test_rows}
    arrays: dict[str, NDArray[Any]] = {"classes": np.array(team.classes), "fit_folds": team.inputs.folds}
    for part, index in rows.items():
        arrays |= {f"{part}_ids": ids[index], f"{part}_labels": labels[index]}
    oof = team.inputs.oof
    for i, name in enumerate(team.names):
        for part, predictions in (("fuse", team.inputs.fuse), ("test", team.test)):
            arrays[f"member/{name}/{part}_logits"] = predictions.logits[i].astype(np.float32)
            arrays[f"member/{name}/{part}_features"] = predictions.features[i].astype(np.float32)
        if oof is not None and i in team.inputs.with_oof:
            position = team.inputs.with_oof.index(i)
            arrays[f"member/{name}/oof_logits"] = oof.logits[position].astype(np.float32)
    for name, fusion in fitted.items():
        if name not in team.names:
            arrays[f"fusion/{name}/test_probabilities"] = fusion.predict_proba(team.test).astype(np.float32)
    partial = target.with_name(f".{target.stem}.partial.npz")
    np.savez(partial, allow_pickle=False, **arrays)
    partial.replace(target)


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
    """Return the metrics per epoch of each full training, and of the student's."""
    full, student = fitted_team.artifacts.full, fitted_team.artifacts.student
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

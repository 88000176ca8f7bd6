"""The fusion step: finished trainings in; fitted fusions, scores, costs and one exported model out. No Ray, no training."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fusion.export.fused_model import CandidateNetworks, FusedModel, assemble
from fusion.export.onnx_export import ModelCard, export_model
from fusion.export.quantization import CALIBRATION_ROWS, QuantizationLoss, measure_loss, quantize
from fusion.metrics.diversity import diversity
from fusion.predictions import LabelledRows, TeamPredictions, load_predictions
from fusion.results import Candidate, FusionDetails
from fusion.selection.compare import compare, hardest_rows
from fusion.selection.costs import TrainingCost
from fusion.selection.fitting import FittedFusion, fit_all, left_out
from fusion.selection.recommendation import best_single, recommend
from orchestrator.fusing.request import FusionRequest
from orchestrator.home import SweepFolder
from workers.config.specs import MemberSpec
from workers.data.splits import get_split
from workers.data.store import Store
from workers.diagnostics.faults import fault_point
from workers.models.build import import_from
from workers.models.network import Network
from workers.models.restore import restore
from workers.storage.artifacts import MemberArtifact

PARITY_ROWS = 256
TIMED_BATCH = 64
TIMED_TURNS = 5


def fuse(request: FusionRequest) -> FusionDetails:
    """Fit, score, choose and export. Write outputs.npz, fused.onnx and fusion.json, and return the content of fusion.json."""
    fitted_team = fit_team(request)
    fault_point("fusion.fit")
    details = evaluate_fusions(request, fitted_team)
    folder = SweepFolder(request.sweep)
    save_outputs(fitted_team.team, fitted_team.fitted, Store(request.store), folder.outputs)
    parity = write_model(request, fitted_team, details.recommended, folder.model)
    details = details.model_copy(update={"parity": parity})
    folder.keep_details(details)
    return details


@dataclass(frozen=True)
class FittedTeam:
    """A team with its predictions, its fitted fusions and its networks.

    Attributes:
        team: The predictions.
        fitted: The candidates by name.
        networks: The networks; fold trainings only where a fusion uses them.
        full: Folder of each member's full training.
        folds: Folders of each member's fold trainings.
        student: Folder of the student's training, if there is one.
    """

    team: TeamPredictions
    fitted: dict[str, FittedFusion]
    networks: CandidateNetworks[Network]
    full: dict[str, Path]
    folds: dict[str, list[Path]]
    student: Path | None


def fit_team(request: FusionRequest) -> FittedTeam:
    """Load the artifacts and fit every fusion. The same artifacts give the same fusions."""
    import_from(request.import_paths)
    store = Store(request.store)
    split = get_split(store, request.data, request.team_seed)
    full = {name: location.download(request.uri) for name, location in request.full.items()}
    folds = {name: [location.download(request.uri) for location in places] for name, places in request.folds.items()}
    student = request.student[1].download(request.uri) if request.student else None
    rows = LabelledRows(store.classes, np.asarray(store.labels), split.folds, split.fit)
    team = load_predictions(full, folds, rows, student)

    def network(root: Path, spec: MemberSpec) -> Network:
        return restore(MemberArtifact(root), store.classes, store.size, spec)

    members = [network(full[name], request.members[name]) for name in team.names]
    fitted = fit_all(team, request.fusions)
    is_bagged = any(fusion.method.asks == "fold trainings" for fusion in fitted.values())
    bagged = team.names if is_bagged else ()
    networks = CandidateNetworks(
        members,
        [[network(root, request.members[name]) for root in folds.get(name, ())] for name in bagged],
        network(student, request.student[0]) if request.student and student else None,
    )
    return FittedTeam(team, fitted, networks, full, folds, student)


def evaluate_fusions(request: FusionRequest, fitted_team: FittedTeam) -> FusionDetails:
    """Return scores, costs, diversity, warnings and the recommendation. Writes nothing."""
    team, fitted = fitted_team.team, fitted_team.fitted
    chosen, why = recommend(team, fitted)
    rows = {"fit": team.fit_rows, "fuse": team.fuse_rows, "test": team.test_rows}
    return FusionDetails(
        recommended=chosen,
        why=why,
        best_single=best_single(team, fitted),
        classes=list(team.classes),
        rows={part: len(numbers) for part, numbers in rows.items()},
        candidates=_candidates(fitted_team, request),
        diversity=diversity(team.names, team.inputs.fuse),
        hardest=hardest_rows(team, fitted, chosen),
        warnings=_warnings(request, team, fitted),
    )


def write_model(request: FusionRequest, fitted_team: FittedTeam, name: str, target: Path) -> float:
    """Export one candidate, checked against its own probabilities on *fuse* rows.

    Args:
        request: The request.
        fitted_team: The fitted team.
        name: Name of the candidate.
        target: The ONNX file.

    Returns:
        The largest difference between the two.

    Raises:
        ConclaveError: If they differ too much. Nothing is written then.
    """
    team, fitted = fitted_team.team, fitted_team.fitted[name]
    predictions = team.inputs.fuse.take(np.arange(min(PARITY_ROWS, len(team.fuse_rows))))
    images = np.asarray(Store(request.store).images[team.fuse_rows[:PARITY_ROWS]])
    members = [request.members[member] for member in team.names]
    bags = [[spec] * len(fitted_team.folds.get(spec.name, ())) for spec in members]
    specs = CandidateNetworks(members, bags, request.student[0] if request.student else None)
    card = ModelCard(specs.used(fitted), team.classes, {**request.provenance, "method": name})
    model = assemble(fitted, fitted_team.networks)
    return export_model(model, card, target, images, fitted.predict_proba(predictions))


def write_int8_model(request: FusionRequest, fitted_team: FittedTeam, source: Path, target: Path) -> QuantizationLoss:
    """Write the 8-bit form of an exported model. *Fuse* rows give its ranges; its loss is measured on *test* rows."""
    images, team = Store(request.store).images, fitted_team.team
    quantize(source, target, np.asarray(images[team.fuse_rows[:CALIBRATION_ROWS]]))
    return measure_loss(source, target, np.asarray(images[team.test_rows]), team.test.labels)


def save_outputs(team: TeamPredictions, fitted: Mapping[str, FittedFusion], store: Store, target: Path) -> None:
    """Write what every fusion was made from as plain arrays, for `conclave export --outputs`.

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


def _training_costs(fitted_team: FittedTeam, searched: Mapping[str, float]) -> dict[str, TrainingCost]:
    costs = {}
    for name, root in fitted_team.full.items():
        record = MemberArtifact(root).manifest()
        folds = tuple(MemberArtifact(fold).manifest().total_seconds for fold in fitted_team.folds.get(name, ()))
        training = json.dumps(record.member.recipe_fields(), sort_keys=True)
        costs[name] = TrainingCost(record.total_seconds, folds, training, searched.get(name, 0.0))
    if fitted_team.student:
        costs["student"] = TrainingCost(MemberArtifact(fitted_team.student).manifest().total_seconds)
    return costs


def _candidates(fitted_team: FittedTeam, request: FusionRequest) -> dict[str, Candidate]:
    """Return each candidate's row: its comparison, its measured inference time, and its price where there are prices."""
    team = fitted_team.team
    rows = compare(team, fitted_team.fitted, _training_costs(fitted_team, request.searched))
    timed_rows = team.fuse_rows[np.linspace(0, len(team.fuse_rows) - 1, TIMED_BATCH).astype(int)]
    images = torch.from_numpy(np.asarray(Store(request.store).images[timed_rows]))
    models = {name: assemble(fusion, fitted_team.networks) for name, fusion in fitted_team.fitted.items()}
    seconds = _inference_seconds(models, images)
    member_seconds = float(np.mean([seconds[n] for n in team.names]))
    return {
        name: Candidate(
            **dict(row),
            inference_cost=seconds[name] / member_seconds,
            inference_ms=seconds[name] * 1000 / TIMED_BATCH,
            money={kind: price * row.train_seconds / 3600 for kind, price in request.prices.items()},
        )
        for name, row in rows.items()
    }


def _inference_seconds(models: Mapping[str, FusedModel], images: torch.Tensor) -> dict[str, float]:
    """Return the median seconds for a batch of real images (a cascade's time depends on them), all models interleaved."""
    times: dict[str, list[float]] = {name: [] for name in models}
    with torch.inference_mode():
        for turn in range(TIMED_TURNS + 1):
            for name, model in models.items():
                began = time.perf_counter()
                model(images)
                if turn:
                    times[name].append(time.perf_counter() - began)
    return {name: median(values) for name, values in times.items()}


def _warnings(request: FusionRequest, team: TeamPredictions, fitted: Mapping[str, FittedFusion]) -> list[str]:
    warnings = left_out(team, request.fusions)
    for name, fusion in fitted.items():
        if name not in team.names:
            inputs = team.inputs if fusion.members is None else team.inputs.only(fusion.members)
            warnings += fusion.method.warnings(name, inputs)
    return warnings

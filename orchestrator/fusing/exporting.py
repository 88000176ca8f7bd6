"""Export candidates as model files, and the outputs that the fusions were fitted on."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fusion.export.flips import predict_with_flips
from fusion.export.fused_model import assemble
from fusion.export.onnx_export import ModelCard, export_model
from fusion.export.onnx_session import predict_probabilities
from fusion.export.quantization import CALIBRATION_ROWS, ConversionLoss, measure_loss, quantize, to_float16
from fusion.metrics.conformal import fit_level, level_after, useful_coverage
from fusion.metrics.scores import evenly_drawn
from fusion.predictions import TeamPredictions
from fusion.selection.fitting import FittedFusion
from fusion.selection.networks import CandidateNetworks
from orchestrator.fusing.fitted_team import FittedTeam
from orchestrator.fusing.request import ExportOptions, FusionRequest
from workers.data.store import Store

MOST_PARITY_ROWS, FEWEST_PARITY_ROWS, PARITY_PIXELS = 256, 16, 1 << 21
MOST_LEVEL_ROWS = 5000  # fuse rows on which a converted model's level is set
DEFAULTS = ExportOptions()


def write_model(
    request: FusionRequest,
    fitted_team: FittedTeam,
    name: str,
    target: Path,
    options: ExportOptions = DEFAULTS,
) -> float:
    """Export one candidate and check it against the fusion's probabilities on rows that its networks did not train on.

    Args:
        request: The request.
        fitted_team: The fitted team.
        name: Name of the candidate.
        target: The ONNX file.
        options: Export options; `write_converted_models` writes versions in fewer bits.

    Returns:
        The largest difference between the model's and the fusion's probabilities.

    Raises:
        ConclaveError: If they differ too much. Nothing is written then.
    """
    team, fitted = fitted_team.team, fitted_team.fitted[name]
    store = Store(request.store)
    of_full, numbers = team.of_full_trainings
    rows = min(len(numbers), MOST_PARITY_ROWS, max(FEWEST_PARITY_ROWS, PARITY_PIXELS // store.size**2))
    checked = evenly_drawn(len(numbers), rows, 1)  # the rows may be sorted by class
    predictions, images = of_full.take(checked), np.asarray(store.images[numbers[checked]])
    members = [request.members[member] for member in team.names]
    bags = [[spec] * len(fitted_team.artifacts.folds.get(spec.name, ())) for spec in members]
    specs = CandidateNetworks(members, bags, request.student[0] if request.student else None)
    coverage = _coverage(fitted, team, options) if options.abstains else None
    level = options.level
    if coverage is not None and level is None:
        level = fit_level(fitted.nested, team.inputs.fuse.labels, coverage)
    provenance = {**request.provenance, "method": name}
    card = ModelCard(specs.used(fitted), team.classes, provenance, level, coverage, store.record.bits, store.record.interpolation)
    if options.flips:
        predictions = predict_with_flips(predictions, fitted_team.networks, torch.from_numpy(images))
    model = assemble(fitted, fitted_team.networks, options.flips)
    return export_model(model, card, target, images, fitted.predict_proba(predictions))


def write_converted_models(
    request: FusionRequest, fitted_team: FittedTeam, name: str, source: Path, options: ExportOptions
) -> Iterator[tuple[Path, ConversionLoss]]:
    """Write an exported model in each of `options.precisions` beside it, as NAME.PRECISION.onnx.

    Integers are calibrated on *fuse* rows. Prediction sets get a level of their own, because the probabilities change.

    Args:
        request: The request.
        fitted_team: The fitted team.
        name: Name of the candidate.
        source: Its exported model.
        options: The options that the model was exported with.

    Yields:
        Each file, and the loss on *test* rows.
    """
    images, team, fitted = Store(request.store).images, fitted_team.team, fitted_team.fitted[name]
    rows = evenly_drawn(len(team.fuse_rows), CALIBRATION_ROWS, 1)  # the rows may be sorted by class
    quantized = partial(quantize, images=np.asarray(images[team.fuse_rows[rows]]))
    for precision in options.precisions:
        convert = quantized if precision == "int8" else to_float16
        target = source.with_name(f"{source.name.removesuffix('.onnx')}.{precision}.onnx")
        convert(source, target)
        if options.abstains:
            rows = evenly_drawn(len(team.fuse_rows), MOST_LEVEL_ROWS, 1)
            of_rows = np.asarray(images[team.fuse_rows[rows]])
            before, after = (predict_probabilities(str(model), of_rows) for model in (source, target))
            labels = team.inputs.fuse.labels[rows]
            level = level_after(fitted.nested[rows], before, after, labels, _coverage(fitted, team, options))
            with tempfile.TemporaryDirectory() as work:
                again = Path(work, "model.onnx")
                write_model(request, fitted_team, name, again, replace(options, level=level))
                convert(again, target)
        yield target, measure_loss(source, target, np.asarray(images[team.test_rows]), team.test.labels)


def _coverage(fitted: FittedFusion, team: TeamPredictions, options: ExportOptions) -> float:
    return options.coverage or useful_coverage(fitted.nested, team.inputs.fuse.labels)


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
            if predictions.features:
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

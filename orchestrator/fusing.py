"""The fusion step: finished fits in; fitted fusions, scores, costs and one exported model out. No Ray, no training."""

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

from fusion.compare import Seconds, compare, hardest
from fusion.diversity import diversity
from fusion.export import export
from fusion.fit import Fitted, best_single, fit_all, recommend
from fusion.model import FusedModel, Networks, assemble
from fusion.names import STACKS
from fusion.outputs import Gathered, gather
from fusion.quantize import SEEN, Loss, loss, quantize
from fusion.stacking import FEW_ROWS
from orchestrator.home import SweepFolder
from orchestrator.request import Request
from workers import legacy
from workers.artifact import MemberArtifact
from workers.data import Store
from workers.faults import reach
from workers.models import Network, import_from
from workers.restore import restore
from workers.spec import NO_RECIPE, MemberSpec
from workers.splits import split

PARITY_ROWS = 256
TIMED_BATCH = 64


def fuse(request: Request) -> dict[str, Any]:
    """Fit, score, choose, export. Writes outputs.npz, fused.onnx and fusion.json; gives fusion.json's content."""
    made = prepare(request)
    reach("fusion.fit")
    details = judged(request, made)
    folder = SweepFolder(request.sweep)
    save_outputs(made.gathered, made.fitted, Store(request.store), folder.outputs)
    details["parity"] = write_model(request, made, details["recommended"], folder.model)
    folder.write("fusion.json", details)
    return details


def judged(request: Request, made: Prepared) -> dict[str, Any]:
    """Scores, costs and the recommendation. Writes nothing."""
    gathered, fitted = made.gathered, made.fitted
    chosen, why = recommend(gathered, fitted)
    return {
        "recommended": chosen,
        "why": why,
        "best_single": best_single(gathered, fitted),
        "classes": list(gathered.classes),
        "rows": {k: len(v) for k, v in (("fit", gathered.fit_rows), ("fuse", gathered.fuse_rows), ("test", gathered.test_rows))},
        "candidates": _table(made, request),
        "diversity": diversity(gathered.names, gathered.evidence.fuse),
        "hardest": hardest(gathered, fitted, chosen),
        "warnings": _warnings(request, gathered, fitted),
    }


@dataclass(frozen=True)
class Prepared:
    """Artifacts gathered, everything fitted; folders of the full and the fold fits by member."""

    gathered: Gathered
    fitted: dict[str, Fitted]
    networks: Networks[Network]  # with fold fits where a fusion uses them
    full: dict[str, Path]
    folds: dict[str, list[Path]]
    student: Path | None


def prepare(request: Request) -> Prepared:
    """Gather the artifacts and fit everything. Deterministic: the same artifacts give the same fusions."""
    import_from(request.import_paths)
    store = Store(request.store)
    parts = split(store, request.data, request.team_seed)
    full = {name: place.fetch(request.uri) for name, place in request.full.items()}
    folds = {name: [place.fetch(request.uri) for place in places] for name, places in request.folds.items()}
    student = request.student[1].fetch(request.uri) if request.student else None
    gathered = gather(full, folds, store.classes, np.asarray(store.labels), parts.folds, parts.fit, student)

    def network(root: Path, spec: MemberSpec) -> Network:
        return restore(MemberArtifact(root), store.classes, store.size, spec)

    members = [network(full[name], request.members[name]) for name in gathered.names]
    fitted = fit_all(gathered, request.fusions)
    bagged = gathered.names if "stack_bag" in fitted else ()
    networks = Networks(
        members,
        [[network(root, request.members[name]) for root in folds.get(name, ())] for name in bagged],
        network(student, request.student[0]) if request.student and student else None,
    )
    return Prepared(gathered, fitted, networks, full, folds, student)


def write_model(request: Request, made: Prepared, name: str, target: Path) -> float:
    """Export one candidate, checked against its offline probabilities on *fuse* rows. Gives the largest difference."""
    gathered, fitted = made.gathered, made.fitted[name]
    table = gathered.evidence.fuse.take(np.arange(min(PARITY_ROWS, len(gathered.fuse_rows))))
    images = np.asarray(Store(request.store).images[gathered.fuse_rows[:PARITY_ROWS]])
    members = [request.members[member] for member in gathered.names]
    bags = [[spec] * len(made.folds.get(spec.name, ())) for spec in members]
    specs = Networks(members, bags, request.student[0] if request.student else None)
    provenance = {**request.provenance, "method": name}
    model = assemble(fitted, made.networks)
    return export(model, specs.used(fitted), gathered.classes, provenance, target, images, fitted.predict_proba(table))


def write_integers(request: Request, made: Prepared, source: Path, target: Path) -> Loss:
    """Write the 8-bit form of the exported model SOURCE; its ranges are those of *fuse* rows, its loss is that on *test* rows."""
    images, gathered = Store(request.store).images, made.gathered
    quantize(source, target, np.asarray(images[gathered.fuse_rows[:SEEN]]))
    return loss(source, target, np.asarray(images[gathered.test_rows]), gathered.test.labels)


def save_outputs(gathered: Gathered, fitted: Mapping[str, Fitted], store: Store, target: Path) -> None:
    """What every fusion was made from, as plain arrays (see `conclave export --outputs`)."""
    ids = np.array(store.ids)
    labels = np.asarray(store.labels)
    rows = {"fit": gathered.fit_rows, "fuse": gathered.fuse_rows, "test": gathered.test_rows}
    arrays: dict[str, Any] = {"classes": np.array(gathered.classes), "fit_folds": gathered.evidence.folds}
    for part, index in rows.items():
        arrays |= {f"{part}_ids": ids[index], f"{part}_labels": labels[index]}
    oof = gathered.evidence.oof
    for i, name in enumerate(gathered.names):
        for part, table in (("fuse", gathered.evidence.fuse), ("test", gathered.test)):
            arrays[f"member/{name}/{part}_logits"] = table.logits[i].astype(np.float32)
            arrays[f"member/{name}/{part}_features"] = table.features[i].astype(np.float32)
        if oof is not None and i in gathered.evidence.with_oof:
            at = gathered.evidence.with_oof.index(i)
            arrays[f"member/{name}/oof_logits"] = oof.logits[at].astype(np.float32)
    for name, fusion in fitted.items():
        if name not in gathered.names:
            arrays[f"fusion/{name}/test_probabilities"] = fusion.predict_proba(gathered.test).astype(np.float32)
    partial = target.with_name(f".{target.stem}.partial.npz")
    np.savez(partial, allow_pickle=False, **arrays)
    partial.replace(target)


def _train_seconds(made: Prepared, searched: Mapping[str, float]) -> dict[str, Seconds]:
    found = {}
    for name, root in made.full.items():
        recipe = {k: v for k, v in MemberArtifact(root).manifest()["member"].items() if k not in NO_RECIPE}
        (full, before), folds = _seconds(root), [_seconds(fold) for fold in made.folds.get(name, ())]
        own, earlier = tuple(own for own, _ in folds), tuple(earlier for _, earlier in folds)
        found[name] = Seconds(full, own, before, json.dumps(recipe, sort_keys=True), searched.get(name, 0.0), earlier)
    if made.student:
        found["student"] = Seconds(_seconds(made.student)[0])
    return found


def _seconds(root: Path) -> tuple[float, float]:
    """Of a fit's own training, and of the cycles that it went on from."""
    record = MemberArtifact(root).manifest()
    return float(record["train_seconds"]), legacy.seconds_before(record)


def _table(made: Prepared, request: Request) -> dict[str, Any]:
    """Each candidate's row: what `fusion.compare` says, measured inference times, money where there are prices."""
    rows = compare(made.gathered, made.fitted, _train_seconds(made, request.searched))
    rows_timed = made.gathered.fuse_rows[np.linspace(0, len(made.gathered.fuse_rows) - 1, TIMED_BATCH).astype(int)]
    images = torch.from_numpy(np.asarray(Store(request.store).images[rows_timed]))
    times = _inference_seconds({n: assemble(f, made.networks) for n, f in made.fitted.items()}, images)
    single_time = float(np.mean([times[n] for n in made.gathered.names]))
    for name, row in rows.items():
        row |= {"inference_cost": times[name] / single_time, "inference_ms": times[name] * 1000 / TIMED_BATCH}
        row["money"] = {kind: price * row["train_seconds"] / 3600 for kind, price in request.prices.items()}
    return rows


def _inference_seconds(models: Mapping[str, FusedModel], images: torch.Tensor) -> dict[str, float]:
    """Median seconds for a batch of real images (a cascade's time depends on them), all models interleaved."""
    times: dict[str, list[float]] = {name: [] for name in models}
    with torch.inference_mode():
        for turn in range(6):
            for name, model in models.items():
                began = time.perf_counter()
                model(images)
                if turn:
                    times[name].append(time.perf_counter() - began)
    return {name: median(values) for name, values in times.items()}


def _warnings(request: Request, gathered: Gathered, fitted: Mapping[str, Fitted]) -> list[str]:
    found = []
    if "student" in request.fusions and "student" not in fitted:
        found.append("student was left out: it learns from these members, no others, and is not trained for them.")
    if "stack_bag" in request.fusions and "stack_bag" not in fitted:
        found.append("stack_bag was left out: fold fits of an early version have no outputs on fuse and test; train them afresh.")
    for name in (n for n in STACKS if n in fitted):
        if fitted[name].method.few_rows_:
            found.append(f"{name} was fitted on fewer than {FEW_ROWS:,} rows: its gain may not carry over.")
    if gathered.evidence.with_oof:
        fuse = gathered.evidence.fuse.only(gathered.evidence.with_oof)
        leaks = [fitted[name].method.leak(name, fuse) for name in STACKS if name in fitted]
        found += [leak for leak in leaks if leak]
    return found

"""Few images and rare classes, on frozen backbones: what is chosen out of fold, on a small *fuse* part, and with class weights.

    python -m benchmarks.few_images ARCHIVE [draws|splits|imbalance ...]     # first `make photos`

The results are in results/few_images.json, and those of a single part in results/few_images-PART.json.

The photographs are CIFAR-10's (JPEG at quality 75), five classes, enlarged from 32 to 224 pixels. All trainings are of heads on
the features of three EfficientNet-Lite, which are computed once.

- draws: 50 times 240 images; the fusion is chosen on out-of-fold predictions of all, and on a *fuse* part of 15 %. Its true loss
  is that on 1,000 other images.
- splits: 20 random splits of 3,000 images; the recommended candidate and each fusion on *test*, beside the best member.
- imbalance: two classes, 400 images and 20; balanced accuracy on 500 test images of each, with weights, a sampler, and plain.
"""

from __future__ import annotations

import random
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.machine import write_result
from benchmarks.photos import write_team
from fusion.results import FusionDetails
from orchestrator.config.loader import load_team
from orchestrator.fusing.costs import all_cores
from orchestrator.fusing.fitted_team import fit_team
from orchestrator.fusing.request import make_request
from orchestrator.fusing.step import evaluate_fusions
from orchestrator.home import Home
from orchestrator.planning.plan import Planner
from orchestrator.reporting.summary import member_states
from workers.data.packing import pack_data
from workers.data.splits import keep_split
from workers.diagnostics.callback import TrainingCallback
from workers.runtime.training_job import train_job

CLASSES = ("bird", "cat", "deer", "dog", "horse")
DRAWS, IMAGES, TEST_IMAGES = 50, 240, 1000
SPLITS, POOL = 20, 3000
IMBALANCE_DRAWS, RATIO = 10, (400, 20)
Row = tuple[str, str, str]  # path, label, split


def unpack(archive: str, folder: Path, count: int) -> dict[str, list[str]]:
    """Write `count` training images of each class, and return their paths by class."""
    found: dict[str, list[str]] = {name: [] for name in CLASSES}
    with tarfile.open(archive) as tar:
        for entry in tar:
            path = Path(entry.name)
            label = path.parent.name
            if entry.isfile() and path.parent.parent.name == "train" and len(found.get(label, [0] * count)) < count:
                content = tar.extractfile(entry)
                assert content is not None
                (folder / label).mkdir(parents=True, exist_ok=True)
                (folder / label / path.name).write_bytes(content.read())
                found[label].append(f"{label}/{path.name}")
    return found


def judge(team_file: Path, home: Path) -> FusionDetails:
    """Train what a team needs, and judge its candidates, without an export."""
    team = load_team(team_file)
    store = pack_data(team.data, home)
    keep_split(store, team.data, team.seed, home)
    planner = Planner(team, store, home, (str(team_file.parent),))
    for job in planner.plan().todo:
        train_job(job, TrainingCallback())
    plan = planner.plan()
    request = make_request(plan, member_states(plan, {}), Home(home).sweep(team.name))
    with all_cores() as threads:
        return evaluate_fusions(request, fit_team(request), threads)


def clear(home: Path, *folders: str) -> None:
    """Remove what a draw left, except the features: artifacts hold whole networks."""
    for folder in folders:
        shutil.rmtree(home / folder, ignore_errors=True)


def write_manifest(folder: Path, rows: list[Row]) -> None:
    """Write a table of images beside them."""
    (folder / "rows.csv").write_text("path,label,split\n" + "".join(",".join(row) + "\n" for row in rows))


def team(work: Path, photos: Path, name: str, **changes: object) -> Path:
    """Write the example's team for the table."""
    keys = {"dataset": "manifest", "root": photos, "name": name, **changes}
    path = write_team(work / name, **keys)
    text = path.read_text().replace("dataset: manifest", f"dataset: manifest\n  manifest: {photos / 'rows.csv'}")
    path.write_text(text.replace("concat, stack]", "weighted, concat, stack]"))
    return path


def draws(work: Path, photos: Path, images: dict[str, list[str]], home: Path) -> dict[str, Any]:
    """What each way to choose recommends, and its true loss."""
    rows: dict[str, list[dict[str, Any]]] = {"out_of_fold": [], "part": []}
    for seed in range(DRAWS):
        draw, chosen = random.Random(seed), list[Row]()
        for label, paths in images.items():
            taken = draw.sample(paths, (IMAGES + TEST_IMAGES) // len(CLASSES))
            chosen += [(path, label, "train" if i < IMAGES // len(CLASSES) else "test") for i, path in enumerate(taken)]
        write_manifest(photos, chosen)
        for fuse, found in rows.items():
            keys = {"fuse": fuse, "fuse_fraction": 0.15, "seed": seed}
            details = judge(team(work, photos, f"{fuse}-{seed}", **keys), home)
            losses = {name: row.test.nll for name, row in details.candidates.items() if row.test}
            found.append(
                {
                    "recommended": details.recommended,
                    "loss": losses[details.recommended],
                    "best_loss": min(losses.values()),
                    "accuracy": details.candidates[details.recommended].test.accuracy,  # type: ignore[union-attr]
                }
            )
        clear(home, "jobs", "data")
        print(seed, {fuse: (found[-1]["recommended"], round(found[-1]["loss"], 4)) for fuse, found in rows.items()}, flush=True)
    result: dict[str, Any] = {}
    for fuse, found in rows.items():
        names = [row["recommended"] for row in found]
        result[fuse] = {
            "recommended": {name: names.count(name) for name in sorted(set(names))},
            **{key: mean(row[key] for row in found) for key in ("loss", "best_loss", "accuracy")},
        }
    for key in ("loss", "accuracy"):
        gains = [a[key] - b[key] for a, b in zip(rows["out_of_fold"], rows["part"], strict=True)]
        result[f"{key}_out_of_fold_minus_part"] = {"mean": mean(gains), "standard_error": stdev(gains) / DRAWS**0.5}
    return result


def splits(work: Path, photos: Path, images: dict[str, list[str]], home: Path) -> dict[str, Any]:
    """Candidates on *test* beside the best member, paired over random splits."""
    gains: dict[str, dict[str, list[float]]] = {}
    write_manifest(photos, [(path, label, "") for label, paths in images.items() for path in paths[: POOL // len(CLASSES)]])
    for seed in range(SPLITS):
        details = judge(team(work, photos, f"split-{seed}", seed=100 + seed), home)
        single = details.candidates[details.best_single].test
        assert single is not None
        for name in ("vote", "weighted", "concat", "stack", "recommended"):
            row = details.candidates[details.recommended if name == "recommended" else name].test
            assert row is not None
            for key in ("nll", "accuracy"):
                gains.setdefault(name, {}).setdefault(key, []).append(getattr(row, key) - getattr(single, key))
        clear(home, "jobs")
        print(seed, details.recommended, {name: round(by["nll"][-1], 4) for name, by in gains.items()}, flush=True)
    return {
        name: {key: {"mean": mean(values), "standard_error": stdev(values) / SPLITS**0.5} for key, values in by.items()}
        for name, by in gains.items()
    }


def imbalance(work: Path, photos: Path, images: dict[str, list[str]], home: Path) -> dict[str, Any]:
    """Balanced accuracy of the vote on *test*, with weights, with a sampler, and without."""
    kinds = {"plain": "", "class_weights": "  class_weights: balanced\n", "sampler": "  sampler: balanced\n"}
    found: dict[str, list[float]] = {kind: [] for kind in kinds}
    for seed in range(IMBALANCE_DRAWS):
        draw, chosen = random.Random(seed), list[Row]()
        for label, count in zip(("cat", "dog"), RATIO, strict=True):
            taken = draw.sample(images[label], count + 500)
            chosen += [(path, label, "train" if i < count else "test") for i, path in enumerate(taken)]
        write_manifest(photos, chosen)
        for kind, line in kinds.items():
            path = team(work, photos, f"{kind}-{seed}", seed=seed)
            path.write_text(path.read_text().replace("  freeze: backbone\n", f"  freeze: backbone\n{line}"))
            accuracy = judge(path, home).candidates["vote"].balanced_accuracy
            assert accuracy is not None
            found[kind].append(accuracy)
        clear(home, "jobs", "data")
        print(seed, {kind: round(values[-1], 3) for kind, values in found.items()}, flush=True)
    return {kind: {"mean": mean(values), "standard_error": stdev(values) / len(values) ** 0.5} for kind, values in found.items()}


PARTS = {"draws": draws, "splits": splits, "imbalance": imbalance}


def main(archive: str, *parts: str) -> None:
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        images = unpack(archive, work / "photos", 900)
        for part in parts or PARTS:
            result[part] = PARTS[part](work, work / "photos", images, work / "home")
            name = "few_images" if len(parts) != 1 else f"few_images-{part}"
            write_result(name, f"python -m benchmarks.few_images ARCHIVE {' '.join(parts)}".strip(), result)
            print(part, result[part], flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

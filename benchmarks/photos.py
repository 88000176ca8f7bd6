"""Few photos on a laptop: frozen pretrained networks beside training from scratch, and passes counted.

    python -m benchmarks.photos ARCHIVE [ROOT]     # results/photos.json; first `make photos`, which installs the networks

The photographs are CIFAR-10's (JPEG at quality 75), five classes, enlarged from 32 to 224 pixels; with ROOT, those of a folder
DIR/train/CLASS/IMAGE are measured too. Seconds are of the whole command: packing, training, fusing, export. From scratch means
three ResNet18 of 64 pixels, 40 epochs.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from safetensors import safe_open

from benchmarks.machine import write_result
from workers.config.specs import DataSpec
from workers.storage.artifacts import MemberArtifact

EXAMPLE = Path(__file__).parents[1] / "examples" / "photos"
FOLDS = (0, 5, 10)
SCRATCH = """\
version: 1
name: scratch
data: {dataset: folder, root: photos, image_size: 64, fuse_fraction: 0.15, folds: 0}
train: {epochs: 40, batch_size: 32, schedule: one_cycle}
members:
  - {name: a}
  - {name: b, optimizer: {kind: adamw, lr: 0.002, weight_decay: 0.05}}
  - {name: c, augment: [flip, crop, {cutout: 0.25}]}
fusion: [vote, concat]
"""


def sweep(team: Path, photos: Path, home: Path) -> dict[str, Any]:
    """Seconds of a whole sweep, and what it gave."""
    words = [sys.executable, "-m", "conclave", "sweep", str(team), "--data", str(photos), "--home", str(home), "--json"]
    began = time.perf_counter()
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - began
    summary = json.loads(done.stdout.splitlines()[-1])
    members = {name: member["test"] for name, member in summary["members"].items()}
    fusions = {name: fusion["test"] for name, fusion in summary["fusions"].items()}
    tests = {name: {key: row[key] for key in ("accuracy", "nll")} for name, row in {**members, **fusions}.items()}
    return {"seconds": seconds, "trained": summary["trained"], "recommended": summary["recommended"], "test": tests}


def write_team(folder: Path, **changes: object) -> Path:
    """Write the example's team with other settings, beside its networks."""
    text = (EXAMPLE / "team.yaml").read_text()
    for key, value in changes.items():
        lines = text.splitlines()
        at = next((number for number, line in enumerate(lines) if line.strip().startswith(f"{key}:")), None)
        if at is None:
            is_of_data = key in DataSpec.model_fields
            lines.insert(lines.index("data:") + 1 if is_of_data else 0, f"{'  ' * is_of_data}{key}: {value}")
        else:
            lines[at] = lines[at].partition(f"{key}:")[0] + f"{key}: {value}"
        text = "\n".join(lines) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "team.yaml").write_text(text)
    (folder / "backbones.py").write_bytes((EXAMPLE / "backbones.py").read_bytes())
    return folder / "team.yaml"


def passes(home: Path) -> int:
    """Number of images that the backbones of a home have computed."""
    rows = 0
    for path in (home / "features").rglob("*.safetensors"):
        with safe_open(path, "pt") as file:
            rows += file.get_slice("features").get_shape()[0]
    return rows


def heads(work: Path, photos: Path, home: Path) -> list[dict[str, Any]]:
    """Passes and seconds of heads for more and more folds, once the features are there."""
    found = []
    for folds in FOLDS:
        before = {artifact.root for artifact in MemberArtifact.all_in_home(home)}
        seed = 7 + folds  # another split, so that every head is trained anew
        judged = "out_of_fold" if folds else "part"
        team = write_team(work / f"folds{folds}", folds=folds, fuse=judged, name=f"folds{folds}", seed=seed)
        result = sweep(team, photos, home)
        made = [a.manifest() for a in MemberArtifact.all_in_home(home) if a.root not in before]
        seconds = sum(record.train_seconds for record in made)
        found.append(
            {"folds": folds, "heads": len(made), "seconds": seconds, "sweep_seconds": result["seconds"], "passes": passes(home)}
        )
    return found


def main(archive: str, root: str | None = None) -> None:
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        for count in (240, 3000):
            photos = work / f"photos{count}"
            subprocess.run([sys.executable, str(EXAMPLE / "make_photos.py"), archive, str(photos), str(count)], check=True)
            result[f"frozen {count}"] = sweep(write_team(work / "team"), photos, work / f"home{count}")
            print(count, json.dumps(result[f"frozen {count}"]), flush=True)
        (work / "scratch.yaml").write_text(SCRATCH)
        small = work / "photos240"
        result["scratch 240"] = sweep(work / "scratch.yaml", small, work / "home240")
        result["heads"] = heads(work, small, work / "home240")
        print(json.dumps(result["heads"]), flush=True)
        if root:
            result["own"] = sweep(write_team(work / "own"), Path(root), work / "own_home")
    write_result("photos", "python -m benchmarks.photos ARCHIVE", result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])

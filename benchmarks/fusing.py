"""The whole fusion step of two teams: five ResNet18 on images of 32 x 32 pixels, and three at 224 x 224. Seconds of its steps.

    python -m benchmarks.fusing CIFAR10 [HOME]     # half an hour the first time, a minute then; results/fusing.json

CIFAR10 holds train/ and test/ with a folder of images for each class. The first team has 5,000 *fuse* and 10,000 *test* rows and
2,560 features; the second 398 images, as in a report that fusing them took ten minutes. Their trainings are short: how good the
networks are makes no difference to the time.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.machine import write_result
from orchestrator.fusing.refit import build_request
from orchestrator.fusing.step import fuse

FIT, FUSE, TEST, LARGE = 600, 5000, 10_000, 398
TEAM = """\
version: 2
name: {name}
data: {{{data}, folds: 0}}
train: {{epochs: 1, batch_size: 32, schedule: one_cycle}}
defaults: {{augment: [crop], optimizer: {{kind: sgd, lr: 0.05}}}}
members: [{members}]
fusion: [vote, weighted, vote_logits, concat, stack, cascade]
"""


def main() -> None:
    root, home = Path(sys.argv[1]).resolve(), Path(*sys.argv[2:3] or ["fusing-runs"]).resolve()
    home.mkdir(exist_ok=True)
    write_teams(root, home)
    result = {}
    for name in ("five", "three"):
        if not (home / "sweeps" / name / "fusion.json").is_file():
            subprocess.run([sys.executable, "-m", "conclave", "sweep", home / f"{name}.yaml", "--home", home], check=True)
        began = time.perf_counter()
        details = fuse(build_request(home, name))
        total = time.perf_counter() - began
        result[name] = {"rows": details.rows, "seconds": total, "by_step": getattr(details, "seconds", {})}
        print(json.dumps({name: result[name]}, indent=1))
    write_result("fusing", "python -m benchmarks.fusing CIFAR10", result)


def write_teams(root: Path, home: Path) -> None:
    """Write a manifest of small images, folders of large ones, and a team file for each."""
    draw = np.random.default_rng(0)
    train, test = (draw.permutation(sorted(root.glob(f"{part}/*/*.jpg"))) for part in ("train", "test"))
    parts = {"train": train[:FIT], "val": train[FIT : FIT + FUSE], "test": test[:TEST]}
    with (home / "images.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("path", "label", "split"))
        table.writerows((path, Path(path).parent.name, part) for part, paths in parts.items() for path in paths)
    for path in map(Path, train[:LARGE]):
        target = home / "large" / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.is_file():
            Image.open(path).resize((256, 256)).save(target)
    small, large = "dataset: manifest, manifest: images.csv", "dataset: folder, root: large, image_size: 224"
    for name, data, count in (("five", small, 5), ("three", large, 3)):
        members = ", ".join(f"{{name: m{seed}, seed: {seed}}}" for seed in range(count))
        (home / f"{name}.yaml").write_text(TEAM.format(name=name, data=data, members=members))


if __name__ == "__main__":
    main()

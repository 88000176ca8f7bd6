"""TorchEnsemble's VotingClassifier beside our sweep: the same cores, rows and seconds of training, the real CIFAR-10.

    python -m benchmarks.voting ARCHIVE [EPOCHS]     # results/voting.json; needs torchensemble (installed with --no-deps)

Ours is a sweep of three ResNet18 (torchvision's stem, 32 x 32) that differ in augmentation, EPOCHS (6) each, blending in the
place of fold fits. Its seconds, from its first fit's first step to its last fit's end, are what theirs gets: three equal
networks by its own `fit`, flips and crops by torchvision in two loader processes, its own cosine schedule over as many epochs as
fit, by the time that a twentieth of one takes. Both are scored on the test images, fused and single; their single is the best.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import describe, write_result
from benchmarks.overhead import spread
from benchmarks.train import BATCH, plain
from fusion.metrics.scores import scores
from orchestrator.config import loader as config
from orchestrator.home import Home
from workers.data import packing as data
from workers.data.splits import Split, keep_split
from workers.data.store import Store

COUNT, DEFAULT_EPOCHS = 3, 6
CORES = os.cpu_count() or 1
TRIED = 20  # the share of an epoch that is timed first
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
TEAM = """\
version: 1
name: voting
data: {{dataset: cifar10, root: {archive}, image_size: 32, folds: 0}}
train: {{epochs: {epochs}, batch_size: 128, schedule: one_cycle}}
defaults: {{stem: imagenet, optimizer: {{kind: sgd, lr: 0.1}}}}
members:
  - {{name: plain}}
  - {{name: cutout, augment: [flip, crop, {{cutout: 0.25}}]}}
  - {{name: adamw, optimizer: {{kind: adamw, lr: 0.002, weight_decay: 0.05}}}}
fusion: [vote, weighted, concat, stack]
"""


def ours(team: Path, home: Path) -> tuple[float, dict[str, Any]]:
    """Seconds of training, and each candidate's scores."""
    command = [sys.executable, "-m", "conclave", "sweep", str(team), "--home", str(home)]
    subprocess.run(command, capture_output=True, check=True)
    details = Home(home).sweep("voting").details()
    assert details is not None
    began, ended = spread(home)
    return ended - began, {name: row.test.model_dump() for name, row in details.candidates.items() if row.test}


def theirs(store: Store, parts: Split, seconds: float) -> tuple[float, int, dict[str, Any]]:
    """Seconds, epochs, and the scores of the vote and of the best single network."""
    from PIL import Image
    from torchensemble import VotingClassifier  # type: ignore[import-not-found]
    from torchvision import transforms

    torch.set_num_threads(CORES)
    torch.manual_seed(0)
    labels = torch.from_numpy(np.array(store.labels))
    to_tensor = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    moved = transforms.Compose([transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), *to_tensor])
    still = transforms.Compose(to_tensor)

    class Pictures(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
        def __init__(self, rows: Any, steps: Any) -> None:
            self.rows, self.steps = rows, steps

        def __len__(self) -> int:
            return len(self.rows)

        def __getitem__(self, at: int) -> tuple[torch.Tensor, int]:
            row = self.rows[at]
            return self.steps(Image.fromarray(store.images[row])), int(labels[row])

    def trained(rows: Any, epochs: int) -> tuple[Any, float]:
        loader = torch.utils.data.DataLoader(Pictures(rows, moved), BATCH, shuffle=True, num_workers=2, drop_last=True)
        model = VotingClassifier(estimator=plain("imagenet"), n_estimators=COUNT, cuda=False)
        model.set_optimizer("SGD", lr=0.1, momentum=0.9, weight_decay=5e-4)
        model.set_scheduler("CosineAnnealingLR", T_max=epochs)
        began = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            model.fit(loader, epochs=epochs, save_model=False)
        return model, time.perf_counter() - began

    _, share = trained(parts.fit[::TRIED], 1)
    epochs = max(1, round(seconds / (share * TRIED)))
    model, spent = trained(parts.fit, epochs)
    each = _answers(model.estimators_, torch.utils.data.DataLoader(Pictures(parts.test, still), 512))
    right = np.asarray(store.labels)[parts.test]
    single = max((scores(answers, right) for answers in each), key=lambda found: found.accuracy)
    vote = scores(np.mean(each, axis=0), right)
    return spent, epochs, {"vote": vote.model_dump(), "single": single.model_dump()}


def _answers(networks: Any, batches: Any) -> list[Any]:
    """Each network's probabilities, (N, C)."""
    logits: list[list[torch.Tensor]] = [[] for _ in networks]
    with torch.inference_mode():
        for x, _ in batches:
            for of, network in zip(logits, networks, strict=True):
                of.append(network.eval()(x).softmax(1))
    return [torch.cat(of).double().numpy() for of in logits]


def main(archive: Path, epochs: int) -> None:
    with tempfile.TemporaryDirectory() as work:
        team, home = Path(work, "team.yaml"), Path(work, "home")
        team.write_text(TEAM.format(archive=archive.absolute(), epochs=epochs))
        seconds, own_scores = ours(team, home)
        loaded = config.load_team(team)
        store = data.pack_data(loaded.data, home)
        parts = keep_split(store, loaded.data, loaded.seed, home)
        spent, most, peer = theirs(store, parts, seconds)
    result = {
        "conclave": {"seconds": seconds, "epochs": epochs, "test": own_scores},
        "torchensemble": {"seconds": spent, "epochs": most, "test": peer},
    }
    write_result("voting", "python -m benchmarks.voting ARCHIVE", result)
    print(json.dumps(result, indent=1))
    print(json.dumps(describe()))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else DEFAULT_EPOCHS)

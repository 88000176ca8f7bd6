"""Builders that several test modules share: jobs, plans, trainings, data sets, predictions, cluster files."""

from __future__ import annotations

import copy
import io
import json
import os
import struct
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from ruamel.yaml import YAML

from fusion.predictions import Predictions
from orchestrator.config.loader import resolve_team
from orchestrator.config.team import Team
from orchestrator.config.yaml_document import parse_document
from orchestrator.execution.inline_executor import InlineExecutor
from orchestrator.home import Home
from orchestrator.planning.plan import Plan, Planner
from orchestrator.sweep import SweepOptions, SweepResult, run_sweep
from workers.config.job import Job, JobMember
from workers.config.specs import DataSpec, MemberSpec, TrainedMember, TrainSpec
from workers.data.store import Store
from workers.diagnostics.callback import TrainingCallback
from workers.models.build import build
from workers.models.network import Network
from workers.storage.checkpoints import Checkpoints
from workers.storage.files import tensors_sha256
from workers.storage.training_record import TrainingRecord
from workers.training.collectives import SINGLE_PROCESS, SingleProcess
from workers.training.task import TrainingData, TrainingResult, TrainingTask
from workers.training.train import train

TEAM = """\
version: 1
name: tiny
data: {dataset: digits, folds: 2}
train: {epochs: 2, batch_size: 64, schedule: one_cycle}
defaults: {width: 4, optimizer: {kind: sgd, lr: 0.05}, augment: [crop]}
members:
  - {name: a}
  - {name: b, seed: 5}
"""


def snapshot(folder: Path) -> dict[str, int]:
    """Every path below a folder with its size: what 'an untouched disk' means."""
    return {str(p.relative_to(folder)): p.lstat().st_size for p in sorted(folder.rglob("*"))}


def job(name: str, teachers: tuple[str, ...] = (), cpus: float = 1, **keys: object) -> Job:
    recipe = MemberSpec.model_validate({"name": name, "seed": 1, "resources": {"cpus": cpus}, **keys})
    here = Path("/nowhere")
    members = tuple(JobMember(**dict(member), signature=member.name) for member in recipe.members)
    return Job(
        recipe=recipe, members=members, fold=None, train=TrainSpec(), data=DataSpec(), team_seed=0,
        home=here, store=here, split="", teachers=teachers,
    )  # fmt: skip


def record(**keys: Any) -> TrainingRecord:
    """Return the record of a training of one epoch."""
    epoch = {"train/loss": 0.5, "train/images_per_second": 1.0, "seconds": 3.0, "time": 7.0}
    given: dict[str, Any] = {
        "signature": "s",
        "member": member().record(member().members[0]).model_dump(mode="json"),
        "train": {},
        "fold": None,
    }
    given |= {
        "seed": 1,
        "classes": ["x", "y"],
        "data_digest": "d",
        "data_source": "s",
        "image_size": 8,
        "weights_sha256": "w",
        "train_seconds": 3.0,
    }
    given |= {"history": [epoch], "micro_batch": 1, "precision": "float32", "resumed_from": 0, "device": "cpu", "threads": 1}
    return TrainingRecord.model_validate_json(json.dumps({**given, "torch": "2", "python": "3", **keys}))


class FakeStore(Store):
    """A store of a hundred rows of two classes, or of as many as `tested` has, without a file."""

    digest = "0" * 64
    size = 8
    classes: ClassVar[list[str]] = ["x", "y"]  # type: ignore[misc]
    tested = np.zeros(100, dtype=bool)

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """The classes in turn."""
        return np.arange(len(self.tested)) % len(self.classes)

    @cached_property
    def ids(self) -> list[str]:
        """The rows' numbers."""
        return [str(row) for row in range(len(self.tested))]

    @cached_property
    def row_arrays(self) -> dict[str, Any]:
        """The digests, which stand for pixels."""
        return {"digests": np.arange(2 * len(self.tested), dtype=np.uint64).reshape(-1, 2)}


def team_of(text: str) -> Team:
    """Return the team of a team file's text."""
    return resolve_team(parse_document(text, Path("/somewhere/team.yaml")))


def planned(text: str, tmp_path: Path) -> Plan:
    """Return the plan of a team file's text, on a store without a file."""
    return Planner(team_of(text), FakeStore(tmp_path / "store"), tmp_path).plan()


def run_training(
    make: Callable[[], Network],
    rows: TrainingData,
    spec: MemberSpec,
    settings: TrainSpec,
    checkpoints: Checkpoints | None = None,
    callback: TrainingCallback | None = None,
    seconds: float = 300.0,
    group: SingleProcess = SINGLE_PROCESS,
    published: tuple[str, ...] = (),
) -> dict[str, TrainingResult]:
    """Train on the CPU, all members but those that are published; return what was made by name, in the order of making."""
    made: dict[str, TrainingResult] = {}

    def keep(one: TrainedMember, result: TrainingResult) -> None:
        made[one.name] = replace(result, network=copy.deepcopy(result.network))

    missing = tuple(one for one in spec.members if one.name not in published)
    callback = callback or TrainingCallback()
    train(make, TrainingTask(rows, spec, settings, missing, CPU, checkpoints, callback, seconds, group), keep)
    return made


def run_one(*given: Any, **keys: Any) -> TrainingResult:
    """Train a recipe of one member; what `run_training` takes."""
    [result] = run_training(*given, **keys).values()
    return result


def sweep_inline(team_file: Path, home: Path, **options: Any) -> SweepResult:
    """Sweep in this process, without Ray."""
    return run_sweep(team_file, SweepOptions(Home(home), lambda team, folder: InlineExecutor(), **options))


CPU = torch.device("cpu")


def member(**keys: object) -> MemberSpec:
    return MemberSpec.model_validate({"name": "m", "seed": 1, "width": 4, **keys})


def data(n: int = 96) -> TrainingData:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 255, (n, 8, 8, 3), dtype=torch.uint8, generator=generator)
    labels = torch.arange(n) % 3
    images[labels == 1] //= 2
    return TrainingData(images, labels, torch.arange(n - 16), torch.arange(n - 16, n))


def fitted(spec: MemberSpec | None = None, **keys: object) -> TrainingResult:
    torch.set_num_threads(1)
    spec = spec or member(augment=("flip", "crop", "mixup"))
    settings = TrainSpec.model_validate({"epochs": 4, "batch_size": 16, **keys})
    return run_one(lambda: build(spec, 3, 8), data(), spec, settings)


def digest(result: TrainingResult) -> str:
    return tensors_sha256(result.network.state_dict())


class Cut(TrainingCallback):
    """Asks the fit to stop after so many steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def on_step_end(self) -> None:
        self.left -= 1

    def should_stop(self) -> bool:
        return self.left <= 0


def picture(value: int, size: tuple[int, int] = (12, 10), mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(value).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(buffer, "PNG")
    return buffer.getvalue()


def tree(root: Path, parts: tuple[str, ...] = ("train", "test"), classes: tuple[str, ...] = ("cat", "dog"), n: int = 12) -> Path:
    for part in parts:
        for label in classes:
            folder = root / part / label
            folder.mkdir(parents=True)
            for i in range(n):
                (folder / f"{i}.png").write_bytes(picture(i, mode="L" if i % 3 == 0 else "RGB"))
    return root


def truncated(root: Path) -> None:
    path = tree(root) / "train" / "cat" / "1.png"
    path.write_bytes(picture(1, (64, 64))[:2000])


def huge_png(root: Path) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", 20000, 20000, 8, 2, 0, 0, 0)
    body = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    (tree(root) / "train" / "cat" / "1.png").write_bytes(body)


def too_few(root: Path) -> None:
    tree(root, n=2)


def symlink_loop(root: Path) -> None:
    (tree(root) / "train" / "cat" / "again").symlink_to(root / "train")


def not_utf8(root: Path) -> None:
    path = os.fsencode(tree(root) / "train" / "cat") + b"/\xff\xfe.png"
    with open(path, "wb") as file:
        file.write(picture(1))


def bad_tar(path: Path, name: str, link: bool = False) -> None:
    with tarfile.open(path, "w:gz") as archive:
        info = tarfile.TarInfo(name)
        if link:
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(info)
        else:
            info.size = 3
            archive.addfile(info, io.BytesIO(b"abc"))


ROOT = Path(__file__).resolve().parents[1]


AWS = ROOT / "cluster.yaml"


OWN = ROOT / "examples" / "clusters" / "own-machines.yaml"


def read(path: Path) -> dict[str, Any]:
    return YAML(typ="safe", pure=True).load(path)  # type: ignore[no-any-return]


CLASSES = 4


def table(n: int, members: int = 3, skill: tuple[float, ...] = (1.5, 1.0, 0.7), seed: int = 0) -> Predictions:
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % CLASSES
    truth = np.eye(CLASSES)[labels]
    logits = np.stack([truth * skill[m] * 2 + generator.normal(size=(n, CLASSES)) for m in range(members)])
    return Predictions(logits, (), labels)

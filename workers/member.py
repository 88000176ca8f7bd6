"""One job from start to finish: data and network of a member, its fit, its outputs, its artifact."""

from __future__ import annotations

import os
import platform
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch

from workers.artifact import MemberArtifact
from workers.checkpoint import Checkpoints
from workers.data import Rows, Store
from workers.distill import Teacher
from workers.evaluate import outputs
from workers.files import tensors_sha256
from workers.group import ALONE, Group
from workers.job import Job
from workers.models import Network, build, import_from
from workers.packed import Pack
from workers.restore import restore
from workers.splits import Split, split
from workers.train import fit
from workers.trainer import FitData, Fitted
from workers.watcher import Watcher

Weights = dict[str, torch.Tensor]


def run(job: Job, watcher: Watcher, device: torch.device | None = None, group: Group | None = None) -> dict[str, Any]:
    """Do the job, unless its artifact is there; give the artifact's manifest. Raises ConclaveError.

    Of a `group` each process calls this; the first sees to the artifact.
    """
    artifact, group = MemberArtifact.of(job.home, job.signature), group or ALONE
    if artifact.done and group.size == 1:
        return artifact.manifest()
    with artifact.held(watcher) if group.rank == 0 else nullcontext():  # another sweep may train the same fit
        [to_do] = group.total(group.rank == 0 and not artifact.done)
        if to_do:
            _train(job, artifact, watcher, device or torch.device("cuda" if torch.cuda.is_available() else "cpu"), group)
    return artifact.manifest() if group.rank == 0 else {}


def _train(job: Job, artifact: MemberArtifact, watcher: Watcher, device: torch.device, group: Group) -> None:
    torch.set_num_threads(job.train.threads)
    repeatable(device)
    import_from(job.import_paths)
    store = Store(job.store)
    parts = split(store, job.data, job.team_seed)
    data = fit_data(job, store, parts, device)
    checkpoints = Checkpoints(artifact.checkpoint, job.signature, watcher.note)
    before = MemberArtifact.of(job.home, job.after) if job.after else None
    if before and job.after and group.rank == 0:
        average = job.member.averages() if job.member.averaged else None
        checkpoints.take_over(Checkpoints(before.last, job.after, watcher.note), average)
    group.total(0)  # the checkpoint is there for all from here on
    fitted = fit(
        lambda: _network(job, store),
        data,
        job.recipe,
        job.train,
        job.seed,
        device,
        checkpoints,
        watcher,
        job.checkpoint_seconds,
        group,
    )
    if group.rank:
        return
    found = _outputs(job, fitted, data, parts, device)
    weights = {k: v.detach().cpu() for k, v in fitted.network.state_dict().items()}
    artifact.publish(weights, found, _record(job, fitted, store, weights, device, group.size), keep=job.followed)
    if before:
        before.drop_last()


def repeatable(device: torch.device) -> None:
    """The same weights from the same job on the same kind of GPU: no kernel whose sums depend on what came first."""
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark = False


def fit_data(job: Job, store: Store, parts: Split, device: torch.device) -> FitData:
    """On a GPU the whole store is on the device where it takes less than a quarter of the memory."""
    images = torch.from_numpy(store.images)
    labels = torch.from_numpy(np.array(store.labels))
    if device.type == "cuda" and images.numel() < torch.cuda.mem_get_info(device)[0] / 4:
        images, labels = images.to(device), labels.to(device)
    rows = parts.fit if job.fold is None else parts.fit[parts.folds != job.fold]
    stop: Rows | None = None
    if job.train.stop:
        from sklearn.model_selection import train_test_split

        rows, stop = train_test_split(rows, test_size=0.1, stratify=store.labels[rows], random_state=job.team_seed)
    return FitData(
        images,
        labels,
        torch.from_numpy(rows),
        torch.from_numpy(parts.fuse),
        None if stop is None else torch.from_numpy(stop),
        _teacher(job, store),
    )


def _network(job: Job, store: Store) -> Network:
    """With fresh weights, or with those that a student begins from; all of a pack."""
    member, classes = job.recipe, len(store.classes)
    if member.packed:
        return Pack([build(member.model_copy(update={"seed": seed}), classes, store.size) for seed in member.packed])
    network = build(member, classes, store.size)
    if job.start:
        network.load_state_dict(restore(MemberArtifact.of(job.home, job.start), store.classes, store.size).state_dict())
    return network


def _teacher(job: Job, store: Store) -> Teacher | None:
    artifacts = [MemberArtifact.of(job.home, signature) for signature in job.teachers]
    return Teacher([restore(artifact, store.classes, store.size) for artifact in artifacts]) if artifacts else None


def _outputs(job: Job, fitted: Fitted, data: FitData, parts: Split, device: torch.device) -> Weights:
    """On *fuse* and *test*; of a fold fit also on the rows that it left out. Features of full fits alone: those of fold
    fits live in other bases, and no fusion may mix them."""
    asked = {"fuse": parts.fuse, "test": parts.test}
    if job.fold is not None:
        asked["oof"] = parts.fit[parts.folds == job.fold]
    found: Weights = {}
    for name, rows in asked.items():
        logits, features = outputs(fitted.network, data.images, rows, device)
        found |= {f"{name}_rows": torch.from_numpy(rows), f"{name}_logits": logits}
        if job.fold is None:
            found[f"{name}_features"] = features
    return found


def _record(job: Job, fitted: Fitted, store: Store, weights: Weights, device: torch.device, processes: int) -> dict[str, Any]:
    return {
        "signature": job.signature,
        "member": job.member.model_dump(mode="json"),
        "train": job.train.model_dump(mode="json"),
        "fold": job.fold,
        "seed": job.seed,
        "classes": store.classes,
        "data_digest": store.digest,
        "image_size": store.size,
        "weights_sha256": tensors_sha256(weights),
        "processes": processes,
        "train_seconds": processes * fitted.seconds(job.epochs[0]),  # of all processes
        "seconds_before": processes * (fitted.seconds() - fitted.seconds(job.epochs[0])),  # of the cycles before this one
        "history": fitted.history,
        "micro_batch": fitted.micro_batch,
        "precision": fitted.precision,
        "resumed_from": fitted.resumed_from,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu {platform.machine()}",
        "threads": job.train.threads,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }

"""Do one job from start to finish: its data and network, the training, its outputs, the artifact."""

from __future__ import annotations

import os
import platform
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from workers.config.job import Job
from workers.data.splits import Split, get_split
from workers.data.store import Rows, Store
from workers.diagnostics.callback import TrainingCallback
from workers.models.build import build, import_from
from workers.models.network import Network
from workers.models.restore import restore
from workers.storage.artifacts import MemberArtifact
from workers.storage.checkpoints import Checkpoints
from workers.storage.files import tensors_sha256
from workers.training.collectives import SINGLE_PROCESS, SingleProcess
from workers.training.distillation import Teacher
from workers.training.evaluation import predict_outputs
from workers.training.packed import Pack
from workers.training.train import train
from workers.training.trainer import TrainingData, TrainingResult, TrainingTask

Weights = dict[str, torch.Tensor]
STOP_FRACTION = 0.1  # of the *fit* rows, set apart for early stopping


def train_job(
    job: Job, callback: TrainingCallback, device: torch.device | None = None, group: SingleProcess | None = None
) -> dict[str, Any]:
    """Train a job, unless its artifact is there already.

    Each process of a group calls this; the first one sees to the artifact.

    Args:
        job: The job.
        callback: Follows the training.
        device: The device; the first GPU, or the CPU, where left out.
        group: The processes that train together; this process alone where left out.

    Returns:
        The artifact's manifest; an empty dictionary in all processes but the first.

    Raises:
        ConclaveError: What `train` raises.
    """
    artifact, group = MemberArtifact.in_home(job.home, job.signature), group or SINGLE_PROCESS
    if artifact.done and group.size == 1:
        return artifact.manifest()
    with artifact.locked(callback) if group.rank == 0 else nullcontext():  # another sweep may train the same
        [is_missing] = group.all_reduce(group.rank == 0 and not artifact.done)
        if is_missing:
            _JobTraining(job, artifact, device or default_device(), group).run(callback)
    return artifact.manifest() if group.rank == 0 else {}


def default_device() -> torch.device:
    """Return the first GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def use_deterministic_kernels(device: torch.device) -> None:
    """Make the same job give the same weights on the same kind of GPU: no kernel whose sums depend on what came first."""
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark = False


def training_data(job: Job, store: Store, split: Split, device: torch.device) -> TrainingData:
    """Return the rows that a job trains on.

    On a GPU, the whole data set is on the device where it takes less than a quarter of the free memory.
    """
    images = torch.from_numpy(store.images)
    labels = torch.from_numpy(np.array(store.labels))
    if device.type == "cuda" and images.numel() < torch.cuda.mem_get_info(device)[0] / 4:
        images, labels = images.to(device), labels.to(device)
    rows = split.fit if job.fold is None else split.fit[split.folds != job.fold]
    stop: Rows | None = None
    if job.train.stop:
        from sklearn.model_selection import train_test_split

        labels_of_rows = store.labels[rows]
        rows, stop = train_test_split(rows, test_size=STOP_FRACTION, stratify=labels_of_rows, random_state=job.team_seed)
    return TrainingData(
        images,
        labels,
        torch.from_numpy(rows),
        torch.from_numpy(split.fuse),
        None if stop is None else torch.from_numpy(stop),
        _teacher(job, store),
    )


def _teacher(job: Job, store: Store) -> Teacher | None:
    artifacts = [MemberArtifact.in_home(job.home, signature) for signature in job.teachers]
    return Teacher([restore(artifact, store.classes, store.size) for artifact in artifacts]) if artifacts else None


@dataclass
class _JobTraining:
    """Trains one job whose artifact is not there, on one device."""

    job: Job
    artifact: MemberArtifact
    device: torch.device
    group: SingleProcess

    def run(self, callback: TrainingCallback) -> None:
        """Train, and publish the artifact."""
        job = self.job
        torch.set_num_threads(job.train.threads)
        use_deterministic_kernels(self.device)
        import_from(job.import_paths)
        self.store = Store(job.store)
        split = get_split(self.store, job.data, job.team_seed)
        data = training_data(job, self.store, split, self.device)
        checkpoints = Checkpoints(self.artifact.checkpoint, job.signature, callback.note)
        before = MemberArtifact.in_home(job.home, job.after) if job.after else None
        if before and job.after and self.group.rank == 0:
            average = job.member.averages() if job.member.averaged else None
            checkpoints.take_over(Checkpoints(before.handover, job.after, callback.note), average)
        self.group.all_reduce(0)  # the checkpoint is there for all from here on
        settings = (checkpoints, callback, job.checkpoint_seconds, self.group)
        result = train(self._network, TrainingTask(data, job.recipe, job.train, job.seed, self.device, *settings))
        if self.group.rank:
            return
        outputs = self._outputs(result, data, split)
        weights = {k: v.detach().cpu() for k, v in result.network.state_dict().items()}
        self.artifact.publish(weights, outputs, self._record(result, weights), hand_over=job.followed)
        if before:
            before.drop_handover()

    def _network(self) -> Network:
        """Build the network, with fresh weights or with those that a student begins from; all networks of a pack."""
        member, classes, size = self.job.recipe, self.store.classes, self.store.size
        if member.packed:
            lanes = [member.model_copy(update={"seed": seed}) for seed in member.packed]
            return Pack([build(lane, len(classes), size) for lane in lanes])
        network = build(member, len(classes), size)
        if self.job.start:
            start = restore(MemberArtifact.in_home(self.job.home, self.job.start), classes, size)
            network.load_state_dict(start.state_dict())
        return network

    def _outputs(self, result: TrainingResult, data: TrainingData, split: Split) -> Weights:
        """Compute outputs on *fuse* and *test*, and those of a fold training on the rows that it left out.

        Only full trainings keep features: those of fold trainings live in other bases, and no fusion may mix them.
        """
        parts = {"fuse": split.fuse, "test": split.test}
        if self.job.fold is not None:
            parts["oof"] = split.fit[split.folds == self.job.fold]
        outputs: Weights = {}
        for name, rows in parts.items():
            logits, features = predict_outputs(result.network, data.images, rows, self.device)
            outputs |= {f"{name}_rows": torch.from_numpy(rows), f"{name}_logits": logits}
            if self.job.fold is None:
                outputs[f"{name}_features"] = features
        return outputs

    def _record(self, result: TrainingResult, weights: Weights) -> dict[str, Any]:
        job, processes, first_epoch = self.job, self.group.size, self.job.epochs[0]
        is_gpu = self.device.type == "cuda"
        return {
            "signature": job.signature,
            "member": job.member.model_dump(mode="json"),
            "train": job.train.model_dump(mode="json"),
            "fold": job.fold,
            "seed": job.seed,
            "classes": self.store.classes,
            "data_digest": self.store.digest,
            "image_size": self.store.size,
            "weights_sha256": tensors_sha256(weights),
            "processes": processes,
            "train_seconds": processes * result.seconds(first_epoch),  # of all processes
            "seconds_before": processes * (result.seconds() - result.seconds(first_epoch)),  # of the cycles before this one
            "history": result.history,
            "micro_batch": result.micro_batch,
            "precision": result.precision,
            "resumed_from": result.resumed_from,
            "device": torch.cuda.get_device_name(self.device) if is_gpu else f"cpu {platform.machine()}",
            "threads": job.train.threads,
            "torch": torch.__version__,
            "python": platform.python_version(),
        }

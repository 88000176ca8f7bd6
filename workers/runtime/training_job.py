"""Run one job from start to finish: data, network, training, and each member's artifact."""

from __future__ import annotations

import copy
import os
import platform
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch

from workers.config.job import Job, JobMember
from workers.config.own_code import import_from
from workers.config.specs import TrainedMember
from workers.data.split_history import source_key
from workers.data.splits import Split, hold_out, read_split
from workers.data.store import Rows, Store
from workers.diagnostics.callback import HELD_OUT, TrainingCallback
from workers.models.build import build
from workers.models.frozen import HeadNetwork
from workers.models.network import Network
from workers.models.restore import restore
from workers.storage.artifacts import MemberArtifact
from workers.storage.checkpoints import Checkpoints
from workers.storage.files import tensors_sha256
from workers.storage.training_folder import TrainingFolder
from workers.storage.training_record import TrainingRecord
from workers.training.backbone import FrozenBackbone
from workers.training.collectives import SINGLE_PROCESS, SingleProcess
from workers.training.distillation import Teacher
from workers.training.evaluation import predict_outputs
from workers.training.task import TrainingData, TrainingResult, TrainingTask
from workers.training.train import train

Weights = dict[str, torch.Tensor]
STOP_FRACTION = 0.1  # of the *fit* rows, held out for early stopping


def train_job(
    job: Job,
    callback: TrainingCallback,
    device: torch.device | None = None,
    group: SingleProcess | None = None,
) -> None:
    """Train a job, and publish each member's artifact as soon as it is made. Published artifacts are kept.

    Every process of a group calls this; only the first one writes artifacts.

    Args:
        job: The job.
        callback: Follows the training.
        device: The device; by default the first GPU, else the CPU.
        group: The processes that train together; by default this process alone.

    Raises:
        ConclaveError: What `train` raises.
    """
    folder, group = TrainingFolder.of(job), group or SINGLE_PROCESS
    with folder.locked(callback) if group.rank == 0 else nullcontext():  # another sweep may run the same training
        is_missing = group.all_reduce(*(group.rank == 0 and not artifact.done for artifact in folder.artifacts))
        published = [member for member, missing in zip(job.members, is_missing, strict=True) if not missing]
        for member in published if group.rank == 0 else ():
            callback.on_published(member, MemberArtifact.in_home(job.home, member.signature))
        if len(published) < len(job.members):
            JobTraining(job, device or default_device(), group, callback).run(published)
            if group.rank == 0:
                folder.remove_checkpoints()


def default_device() -> torch.device:
    """Return the first GPU if available, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def use_deterministic_kernels(device: torch.device) -> None:
    """Use deterministic kernels, so that a job always gives the same weights on the same kind of GPU."""
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark = False


def training_data(
    job: Job, store: Store, split: Split, device: torch.device, features: torch.Tensor | None = None
) -> TrainingData:
    """Return the rows that a job trains on.

    On a GPU, the whole data set moves to the device if it takes less than a quarter of the free memory.

    Args:
        job: The job.
        store: The packed data.
        split: Its split.
        device: The device to train on.
        features: (N, V, D) float32, features of a frozen backbone in the place of the images.
    """
    images = torch.from_numpy(store.images) if features is None else features
    labels = torch.from_numpy(np.array(store.labels))
    rows = split.fit if job.fold is None else split.fit[split.folds != job.fold]
    weights = row_weights(store, rows, job.recipe.class_weights)
    if device.type == "cuda" and images.numel() < torch.cuda.mem_get_info(device)[0] / 4:
        images, labels = images.to(device), labels.to(device)
        weights = None if weights is None else weights.to(device)
    stop: Rows | None = None
    if job.train.stop:
        rows, stop = hold_out(store, rows, STOP_FRACTION, job.team_seed)
    return TrainingData(
        images,
        labels,
        torch.from_numpy(rows),
        None if (watch := _watched(job, split)) is None else torch.from_numpy(watch),
        None if stop is None else torch.from_numpy(stop),
        _teacher(job, store),
        weights,
        None if job.recipe.sampler is None else balanced_weights(store, rows)[labels.cpu()],
        HELD_OUT[0 if len(split.fuse) else 1],
    )


def _watched(job: Job, split: Split) -> Rows | None:
    """Return the rows whose scores a training shows: *fuse*; without such a part, those that a fold training leaves out."""
    if len(split.fuse):
        return split.fuse
    return None if job.fold is None else split.fit[split.folds == job.fold]


def balanced_weights(store: Store, rows: Rows) -> torch.Tensor:
    """Return the weight of each class, (C,) float64, in inverse proportion to its rows: all classes weigh the same in sum."""
    counts = np.bincount(np.asarray(store.labels)[rows], minlength=len(store.classes))
    return torch.from_numpy(len(rows) / (len(counts) * np.maximum(counts, 1)))


def row_weights(store: Store, rows: Rows, of_classes: str | Mapping[str, float] | None) -> torch.Tensor | None:
    """Return the weight of each row's loss, (N,) float32, with a mean of 1 over the rows to train on; None if all are equal.

    Args:
        store: The packed data, which may have weights of rows.
        rows: The rows to train on.
        of_classes: Weights of classes by name, 1 for the others, or "balanced"; None for equal ones.
    """
    if store.weights is None and of_classes is None:
        return None
    weights = np.ones(len(store.labels)) if store.weights is None else np.array(store.weights)
    if isinstance(of_classes, str):
        weights *= balanced_weights(store, rows).numpy()[store.labels]
    elif of_classes is not None:
        weights *= np.array([of_classes.get(name, 1.0) for name in store.classes])[store.labels]
    return torch.from_numpy(weights / weights[rows].mean()).float()


def _teacher(job: Job, store: Store) -> Teacher | None:
    artifacts = [MemberArtifact.in_home(job.home, signature) for signature in job.teachers]
    return Teacher([restore(artifact, store.classes, store.size) for artifact in artifacts]) if artifacts else None


@dataclass
class JobTraining:
    """Trains the missing members of one job on one device.

    Attributes:
        job: The job.
        device: The device.
        group: The processes that train together.
        callback: Follows the training.
        whole: The network whose backbone is frozen, and whose head is trained; None if all of it is trained.
    """

    job: Job
    device: torch.device
    group: SingleProcess = SINGLE_PROCESS
    callback: TrainingCallback = field(default_factory=TrainingCallback)
    whole: Network | None = None

    def __post_init__(self) -> None:
        self.folder = TrainingFolder.of(self.job)

    def prepare(self) -> None:
        """Set up the process, and load the data."""
        job = self.job
        torch.set_num_threads(job.train.threads)
        use_deterministic_kernels(self.device)
        import_from(job.import_paths)
        self.store = Store(job.store)
        self.split = read_split(self.store, job.split)
        features = None
        if job.recipe.freeze:
            self.whole = build(job.seeded_recipe, len(self.store.classes), self.store.size)
            backbone = FrozenBackbone(self.whole, job.recipe, job.home, self.device, job.train.threads)
            features = backbone.features(self.store, self.callback)
            self.fresh_head = copy.deepcopy(cast(torch.nn.Linear, self.whole.cpu().head))
        self.data = training_data(job, self.store, self.split, self.device, features)

    def task(self, missing: tuple[JobMember, ...], checkpoints: Checkpoints | None = None) -> TrainingTask:
        """Return the task that trains the missing members. Requires `prepare`."""
        recipe, train = self.job.seeded_recipe, self.job.train
        if self.whole:  # its augmentations are in the features, and a head gains nothing from fewer bits
            recipe = recipe.model_copy(update={"augment": ()})
            train = train.model_copy(update={"precision": "float32"})
        settings = (checkpoints, self.callback, self.job.checkpoint_seconds, self.group)
        return TrainingTask(self.data, recipe, train, missing, self.device, *settings)

    def run(self, published: Sequence[JobMember]) -> None:
        """Train, and publish the artifacts of all members that are not published yet."""
        job = self.job
        self.prepare()
        checkpoints = Checkpoints(self.folder.checkpoint, job.signatures[0], self.callback.note)
        missing = tuple(member for member in job.members if member not in published)
        train(self.network, self.task(missing, checkpoints), self._publish)

    def _publish(self, member: TrainedMember, result: TrainingResult) -> None:
        """Compute the outputs of a member's network, and publish its artifact."""
        if self.group.rank:
            return
        own = next(one for one in self.job.members if one.name == member.name)
        artifact = MemberArtifact.in_home(self.job.home, own.signature)
        network = cast(HeadNetwork, result.network).put_into(self.whole) if self.whole else result.network
        weights = {k: v.detach().cpu() for k, v in network.state_dict().items()}
        artifact.publish(weights, self._outputs(result), self._record(own, result, weights))
        self.callback.on_published(own, artifact)

    def network(self) -> Network:
        """Build the network to train, with fresh weights or with a student's starting weights."""
        if self.whole:
            return HeadNetwork(self.fresh_head, self.data.images[self.data.fit.to(self.data.images.device), 0].cpu())
        recipe, classes, size = self.job.seeded_recipe, self.store.classes, self.store.size
        network = build(recipe, len(classes), size)
        if self.job.start:
            start = restore(MemberArtifact.in_home(self.job.home, self.job.start), classes, size)
            network.load_state_dict(start.state_dict())
        return network

    def _outputs(self, result: TrainingResult) -> Weights:
        """Compute outputs on *fuse* and *test*; for a fold training, also on its left-out rows.

        Each fold training has a different feature space, and no fusion may mix them, so only full trainings keep features, and
        fold trainings of a frozen backbone, which is the same in all of them.
        """
        parts = {"": np.concatenate([self.split.fuse, self.split.test])}
        if self.job.fold is not None:
            parts["oof_"] = self.split.fit[self.split.folds == self.job.fold]
        outputs: Weights = {}
        for prefix, rows in parts.items():
            logits, features = predict_outputs(result.network, self.data.images, rows, self.device)
            outputs |= {f"{prefix}keys": torch.from_numpy(self.store.keys[rows]), f"{prefix}logits": logits}
            if self.job.fold is None or (self.whole and prefix):
                outputs[f"{prefix}features"] = features
        if self.job.fold is None:
            outputs["fit_contents"] = torch.from_numpy(self.store.content_keys[self.split.fit])
            outputs["fit_ids"] = torch.from_numpy(self.store.id_keys[self.split.fit])
        return outputs

    def _record(self, member: JobMember, result: TrainingResult, weights: Weights) -> TrainingRecord:
        job, processes = self.job, self.group.size
        is_gpu = self.device.type == "cuda"
        return TrainingRecord(
            signature=member.signature,
            member=job.recipe.record(member),
            train=job.train.model_dump(mode="json"),
            fold=job.fold,
            seed=job.seed_of(member.seed),
            classes=self.store.classes,
            data_digest=self.store.digest,
            data_source=source_key(job.data),
            image_size=self.store.size,
            weights_sha256=tensors_sha256(weights),
            processes=processes,
            train_seconds=processes * result.seconds(job.first_epoch(member)),
            history=result.history,
            micro_batch=result.micro_batch,
            precision=result.precision,
            captured=result.captured,
            resumed_from=result.resumed_from,
            device=torch.cuda.get_device_name(self.device) if is_gpu else f"cpu {platform.machine()}",
            threads=job.train.threads,
            torch=torch.__version__,
            python=platform.python_version(),
        )

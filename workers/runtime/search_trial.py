"""Run one trial of a search: train on 90 % of the *fit* rows, and score on the other 10 %.

A trial never sees *fuse* or *test*.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from workers.config.job import Job
from workers.config.own_code import import_from
from workers.config.specs import StopSpec
from workers.data.splits import get_split
from workers.data.store import Store
from workers.diagnostics.callback import TrainingCallback
from workers.models.build import build
from workers.runtime.training_job import default_device, training_data, use_deterministic_kernels
from workers.storage.checkpoints import Checkpoints
from workers.storage.training_folder import TrainingFolder
from workers.training.task import TrainingTask
from workers.training.train import train

LOSS, ACCURACY = "stop/loss", "stop/accuracy"


def trial_job(job: Job) -> Job:
    """Return the job as a trial: with rows held out for scoring, and a patience that never stops it early."""
    return job.model_copy(update={"train": job.train.model_copy(update={"stop": StopSpec(patience=job.train.epochs + 1)})})


def run_trial(job: Job, callback: TrainingCallback) -> None:
    """Train a trial, resuming from its checkpoint if one exists.

    Args:
        job: The trial, as a job.
        callback: Receives each epoch's metrics, including LOSS and ACCURACY.

    Raises:
        ConclaveError: What `train` raises.
    """
    torch.set_num_threads(job.train.threads)
    import_from(job.import_paths)
    store, device = Store(job.store), default_device()
    use_deterministic_kernels(device)
    data = replace(training_data(trial_job(job), store, get_split(store, job.data, job.team_seed), device), watch=None)
    checkpoints = Checkpoints(TrainingFolder.of(job).checkpoint, job.signatures[0], callback.note)
    task = TrainingTask(data, job.recipe, job.train, job.members, device, checkpoints, callback, math.inf)
    train(lambda: build(job.recipe, len(store.classes), store.size), task)

"""Run one trial of a search: train on 90 % of the *fit* rows, and score on the other 10 %.

A trial never sees *fuse* or *test*.
"""

from __future__ import annotations

import math
from dataclasses import replace

from workers.config.job import Job
from workers.config.specs import StopSpec
from workers.diagnostics.callback import TrainingCallback
from workers.runtime.training_job import JobTraining, default_device
from workers.storage.checkpoints import Checkpoints
from workers.storage.training_folder import TrainingFolder
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
    training = JobTraining(trial_job(job), default_device(), callback=callback)
    training.prepare()
    checkpoints = Checkpoints(TrainingFolder.of(job).checkpoint, job.signatures[0], callback.note)
    task = training.task(job.members, checkpoints)
    spec = task.spec.model_copy(update={"stop": job.train.stop})
    train(training.network, replace(task, data=replace(task.data, watch=None), spec=spec, checkpoint_seconds=math.inf))

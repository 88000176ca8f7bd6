"""One trial of a search: a training on *fit* rows but for a tenth, which it is scored on. *fuse* and *test* it never sees."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from workers import member
from workers.checkpoint import Checkpoints
from workers.data import Store
from workers.job import Job
from workers.models import build, import_from
from workers.spec import StopSpec
from workers.splits import split
from workers.train import fit
from workers.watcher import Watcher

LOSS, ACCURACY = "stop/loss", "stop/accuracy"


def trial_of(job: Job) -> Job:
    """The job as a trial does it: with rows set apart, and without ever stopping by itself."""
    return job.model_copy(update={"train": job.train.model_copy(update={"stop": StopSpec(patience=job.train.epochs + 1)})})


def run(job: Job, watcher: Watcher) -> None:
    """Each epoch's metrics go to `watcher`, LOSS and ACCURACY among them; a checkpoint of the job is gone on from. Raises
    ConclaveError."""
    torch.set_num_threads(job.train.threads)
    import_from(job.import_paths)
    store = Store(job.store)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    member.repeatable(device)
    data = replace(member.fit_data(trial_of(job), store, split(store, job.data, job.team_seed), device), watch=None)
    kept = Checkpoints(job.home / "jobs" / job.signature / "checkpoint", job.signature, watcher.note)
    fit(
        lambda: build(job.member, len(store.classes), store.size),
        data,
        job.member,
        job.train,
        job.seed,
        device,
        kept,
        watcher,
        math.inf,
    )

"""Two processes that train one network together: what comes out is what one process makes of the same batches."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import distributed, nn
from torch.multiprocessing.spawn import start_processes

from tests.factories import Cut, job, run_one
from workers.config.job import Job
from workers.config.specs import MemberSpec, TrainSpec
from workers.diagnostics.callback import TrainingCallback
from workers.errors import DivergedError, EnvironmentMismatchError, FailureKind, IncompleteTransferError, TrainingStopped
from workers.models.build import build
from workers.runtime import distributed as in_ray
from workers.runtime.job_result import JobResult
from workers.runtime.job_runner import JobContext
from workers.storage.checkpoints import Checkpoints
from workers.training.collectives import SINGLE_PROCESS, ProcessGroup, SingleProcess, SummedBatchNorm
from workers.training.task import TrainingData

RECIPE = {
    "width": 8,
    "augment": ("flip", "crop", {"mixup": 0.3}),
    "label_smoothing": 0.1,
    "optimizer": {"kind": "sgd", "lr": 0.05},
}
SHARED = {"epochs": 2, "batch_size": 12, "accumulate": 2, "precision": "float32", "clip": 1.0, "ema": 0.9}


def train(group: SingleProcess, folder: Path, stop: dict[int, int]) -> dict[str, Any]:
    """One fit of 100 images; `stop` says which rank is asked to leave after how many steps."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 255, (100, 8, 8, 3), dtype=torch.uint8, generator=generator)
    data = TrainingData(images, torch.arange(100) % 4, torch.arange(90), torch.arange(90, 100))
    member = MemberSpec.model_validate({"name": "a", "seed": 3, **RECIPE})
    callback = Cut(stop[group.rank]) if group.rank in stop else TrainingCallback()
    spec = TrainSpec.model_validate(SHARED)
    kept = Checkpoints(folder / "checkpoint", "s", lambda text: None)
    try:
        made = run_one(lambda: build(member, 4, 8), data, member, spec, kept, callback, group=group)
    except (TrainingStopped, DivergedError) as error:
        return {"error": type(error).__name__}
    save_file({k: v.contiguous() for k, v in made.network.state_dict().items()}, folder / f"weights{group.rank}")
    return {"history": [{k: e[k] for k in ("train/loss", "train/accuracy", "fuse/loss")} for e in made.history]}


def _process(rank: int, folder: str, stop: dict[int, int], env: dict[str, str]) -> None:
    os.environ.update(env)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    found = train(ProcessGroup(), Path(folder), stop)
    Path(folder, f"found{rank}").write_text(json.dumps(found))
    distributed.destroy_process_group()


def together(folder: Path, stop: dict[int, int] | None = None, **env: str) -> list[dict[str, Any]]:
    (folder / "meet").unlink(missing_ok=True)
    multiprocessing.get_context("forkserver").set_forkserver_preload([__name__])  # so that torch is imported once
    start_processes(_process, (str(folder), stop or {}, env), nprocs=2, start_method="forkserver")
    return [json.loads((folder / f"found{rank}").read_text()) for rank in (0, 1)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("together")
    return folder, together(folder)


def test_two_processes_make_what_one_makes(undisturbed: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    """Augmentation with mixed pairs, micro-batches, clipping, averaged weights and batch statistics among it."""
    folder, found = undisturbed
    alone = train(SINGLE_PROCESS, tmp_path, {})
    assert found[0] == found[1], "what is decided by, all know alike"
    for ours, one in zip(found[0]["history"], alone["history"], strict=True):
        assert ours == pytest.approx(one, rel=1e-3)
    first, second, one_process = (load_file(p) for p in (folder / "weights0", folder / "weights1", tmp_path / "weights0"))
    assert all(torch.equal(first[k], second[k]) for k in first)
    for name, value in one_process.items():
        assert torch.allclose(first[name].float(), value.float(), rtol=1e-3, atol=1e-4), name


@pytest.mark.parametrize("asked", [0, 1])
def test_whoever_is_asked_to_stop_all_leave_and_go_on_to_the_same_weights(
    asked: int, undisturbed: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    assert together(tmp_path, {asked: 5}) == [{"error": TrainingStopped.__name__}] * 2
    assert together(tmp_path) == undisturbed[1]
    first, second = load_file(tmp_path / "weights0"), load_file(undisturbed[0] / "weights0")
    assert all(torch.equal(first[k], second[k]) for k in second)


def test_a_loss_that_is_no_number_ends_both(tmp_path: Path) -> None:
    assert together(tmp_path, CONCLAVE_FAULT="fit.step:3:nan") == [{"error": DivergedError.__name__}] * 2


@pytest.mark.parametrize("make", [nn.BatchNorm2d, lambda c: nn.BatchNorm2d(c, momentum=None, affine=False)])
def test_the_summed_batch_norm_is_torch_s(make: Callable[[int], nn.Module], tmp_path: Path) -> None:
    """In a group of one, where the sums are its own: outputs, gradients, running statistics."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        theirs, ours = make(5), make(5)
        ours.__class__ = SummedBatchNorm
        for _ in range(3):
            x = torch.randn(6, 5, 3, 3) * 3 + 2
            a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
            out = theirs(a), ours(b)
            for one in out:
                (one * torch.arange(5.0).reshape(1, 5, 1, 1)).square().sum().backward()
            assert torch.allclose(*out, rtol=1e-4, atol=1e-5)
            assert a.grad is not None
            assert b.grad is not None
            assert torch.allclose(a.grad, b.grad, rtol=1e-3, atol=1e-4)
        for name, value in theirs.state_dict().items():
            assert torch.allclose(ours.state_dict()[name].float(), value.float(), rtol=1e-4), name
        assert torch.allclose(theirs.eval()(x), ours.eval()(x), rtol=1e-4, atol=1e-5)
    finally:
        distributed.destroy_process_group()


@pytest.mark.parametrize("error", [TrainingStopped, DivergedError])
def test_only_the_first_process_says_why_a_fit_ended(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    """All stop together; a word from another would end the first before it has sent its last checkpoint."""

    def run(*_: object) -> None:
        raise error("together")

    monkeypatch.setattr("workers.runtime.training_job.train_job", run)
    monkeypatch.setattr(in_ray, "ProcessGroup", lambda: None)
    monkeypatch.setattr(in_ray, "get_device", lambda: torch.device("cpu"))
    monkeypatch.setattr("ray.train.get_context", lambda: SimpleNamespace(get_world_rank=lambda: 1))
    share = in_ray.DistributedJob(job("a"), JobContext(), 0.0, lambda one: (one, "", False), None)
    assert in_ray._run_process({"work": share}) == JobResult()


def test_a_machine_that_must_not_do_a_job_says_so_for_all_of_its_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends the sweep, as that of a single process does. What Ray raises of a process would be tried again."""

    def refuse(_: object) -> tuple[Job, str, bool]:
        raise EnvironmentMismatchError("the machine a is not like the head")

    def lose(_: object) -> tuple[Job, str, bool]:
        raise IncompleteTransferError("the machine a got no data")

    monkeypatch.setattr(in_ray, "ProcessGroup", lambda: None)
    share = in_ray.DistributedJob(job("a"), JobContext(), 0.0, refuse, None)
    result = in_ray._run_process({"work": share})
    assert result.failure is not None
    assert result.failure.kind is FailureKind.ENVIRONMENT
    with pytest.raises(IncompleteTransferError):
        in_ray._run_process({"work": replace(share, localize=lose)})

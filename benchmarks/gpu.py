"""Training speed on one GPU: steps as a CUDA graph and kernel by kernel, beside their bound and the usual script.

    python -m benchmarks.gpu                # under 3 minutes; results/gpu-NAME.json, and the table on screen
    python -m benchmarks.gpu --device cpu   # tiny: shows that it runs; no result is kept

In images a second, ResNet18 at 32 x 32 pixels in bfloat16 (auto):

- `graph`: the trainer's own step as one CUDA graph, and its augmentations as another.
- `eager`: the same, kernel by kernel.
- `bound`: the graph alone, replayed; on another device the update alone on one batch.
- `usual`: torchvision's network, autocast, the batch on the device already, the loss read at each step.

Beside them: the share of a large matrix product's speed that the bound reaches, several trainings that share the GPU as
processes, outputs a second, and whether a training that was stopped and resumed has the weights of an undisturbed one.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.machine import write_result
from benchmarks.train import plain, spec, synthetic
from tests.factories import Cut
from workers.config.specs import MemberSpec, TrainSpec
from workers.diagnostics.callback import TrainingCallback
from workers.errors import TrainingStopped
from workers.models.build import build
from workers.models.multiply_adds import multiply_adds
from workers.models.network import Network
from workers.runtime.training_job import use_deterministic_kernels
from workers.storage.checkpoints import Checkpoints
from workers.storage.files import tensors_sha256
from workers.training.evaluation import predict_outputs
from workers.training.steps import Stepper
from workers.training.task import TrainingData, TrainingResult, TrainingTask
from workers.training.train import train

ROWS = (("cifar", 128), ("cifar", 256), ("cifar", 512), ("imagenet", 256))
SECONDS, CLASSES, SIDE = 1.5, 10, 32
SHARING = (1, 2, 5)


def rate(take: Callable[[int], object], images: int, device: torch.device, seconds: float) -> float:
    """Images a second of a step that is taken again and again."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    fewest = 5 if device.type == "cuda" else 1
    for step in range(fewest):
        take(step)
    wait()
    began, count = time.perf_counter(), 0
    while count < fewest or time.perf_counter() - began < seconds:
        take(count)
        count += 1
        if count % 16 == 0:
            wait()
    wait()
    return count * images / (time.perf_counter() - began)


def task(member: MemberSpec, settings: TrainSpec, device: torch.device, rows: int, **more: Any) -> TrainingTask:
    images, labels = (values.to(device) for values in synthetic(rows))
    data = TrainingData(images, labels, torch.arange(rows), None)
    return TrainingTask(data, member, settings, tuple(member.members), device, **more)


def speeds(stem: str, batch: int, device: torch.device, seconds: float) -> dict[str, float]:
    """All columns of one row of the table."""
    member, settings = spec(stem), TrainSpec(epochs=1, batch_size=batch)
    found = {}
    for column in ("graph", "eager"):
        with patch.object(Stepper, "why_not_captured", None if column == "graph" else "it is measured without"):
            stepper = Stepper(build(member, CLASSES, SIDE).train(), task(member, settings, device, 8 * batch), batch)
            order = stepper.order(0)
            found[column] = rate(lambda step, s=stepper, o=order: s.take(0, step % 8, o), batch, device, seconds)  # type: ignore[misc]
            if column == "graph":
                alone = replay(stepper, order)
                found["bound"] = rate(alone, batch, device, seconds)
    found["usual"] = usual(stem, batch, device, seconds)
    work = multiply_adds(build(member, CLASSES, SIDE).eval(), SIDE)
    found["share of a matrix product"] = found["bound"] * work * 6 / matrix_product(device)
    return found


def replay(stepper: Stepper, order: torch.Tensor) -> Callable[[int], object]:
    """What bounds a step: its graph alone, or the update of one batch."""
    if stepper.captured is not None and stepper.captured.graph is not None:
        graph = stepper.captured.graph
        return lambda _: graph.replay()
    x, labels = stepper._augmented(0, 0, order[: stepper.batch])
    x = x.contiguous(memory_format=stepper.format)
    return lambda _: stepper._update(x, labels, None)


def usual(stem: str, batch: int, device: torch.device, seconds: float) -> float:
    network = plain(stem).to(device).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    images, labels = (values.to(device) for values in synthetic(batch))
    x = images.permute(0, 3, 1, 2).float() / 255

    def step(_: int) -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16):
            loss = F.cross_entropy(network(x), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        loss.item()

    return rate(step, batch, device, seconds)


def matrix_product(device: torch.device) -> float:
    """Operations a second of a large product in bfloat16."""
    side = 8192 if device.type == "cuda" else 512
    a = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    return rate(lambda _: a @ a, 2 * side**3, device, 0.3)


def shared(device: torch.device, seconds: float) -> dict[str, float]:
    """Images a second of so many processes on one device, together: each times itself once all are ready."""
    found = {}
    for count in SHARING if device.type == "cuda" else (2,):
        command = [sys.executable, "-m", "benchmarks.gpu", "--device", device.type, "--member", str(seconds * 2)]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        processes = [subprocess.Popen(command, **pipes) for _ in range(count)]
        for process in processes:
            assert process.stdout
            while process.stdout.readline().strip() not in ("ready", ""):  # "" where it has ended
                pass
        for process in processes:
            assert process.stdin
            process.stdin.write("go\n")
            process.stdin.flush()
        said = [process.communicate()[0].split() for process in processes]
        found[str(count)] = sum(float(words[-1]) for words in said) if all(said) else math.nan  # one of them ended early
    return found


def one_of_several(device: torch.device, batch: int, seconds: float) -> float:
    """Images a second of one process that shares the device: it says when it is ready, and begins when it is told to."""
    member, settings = spec("cifar"), TrainSpec(epochs=1, batch_size=batch)
    stepper = Stepper(build(member, CLASSES, SIDE).train(), task(member, settings, device, 8 * batch), batch)
    order = stepper.order(0)

    def take(step: int) -> object:
        return stepper.take(0, step % 8, order)

    rate(take, batch, device, 0.0)
    print("ready", flush=True)
    input()
    return rate(take, batch, device, seconds)


def is_resumed_alike(device: torch.device) -> bool:
    """Train undisturbed; then stop after some steps and resume. Compare the weights."""
    is_gpu = device.type == "cuda"
    batch, count, stop = (64, 40, 50) if is_gpu else (4, 10, 13)  # a GPU is asked every 16 steps whether to stop
    member, settings = spec("imagenet"), TrainSpec(epochs=2, batch_size=batch)

    def made(**more: Any) -> str:
        given = task(member, settings, device, count * batch, **more)
        result: TrainingResult = train(lambda: build(member, CLASSES, SIDE), given)
        return tensors_sha256(cast(nn.Module, result.network).state_dict())

    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(Path(folder), "me")
        try:
            made(checkpoints=checkpoints, callback=Cut(stop))
        except TrainingStopped:
            return made(checkpoints=checkpoints, callback=TrainingCallback()) == made()
    return False  # it was not stopped


def outputs(device: torch.device, seconds: float) -> float:
    network: Network = build(spec("cifar"), CLASSES, SIDE).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = synthetic(2048 if device.type == "cuda" else 64)[0].to(device)
    rows = torch.arange(len(images))
    return rate(lambda _: predict_outputs(network, images, rows, device), len(images), device, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--member", type=float, help="train for so many seconds and print the speed, beside others")
    options = parser.parse_args()
    device, is_gpu = torch.device(options.device), options.device == "cuda"
    if is_gpu and not torch.cuda.is_available():
        raise SystemExit("There is no GPU. `--device cpu` shows that this runs.")
    use_deterministic_kernels(device)
    if options.member:
        print(one_of_several(device, 256 if is_gpu else 4, options.member))
        return
    seconds = SECONDS if is_gpu else 0.1
    result: dict[str, Any] = {"images a second": {}}
    for stem, batch in ROWS if is_gpu else (("imagenet", 4),):
        row = result["images a second"][f"{stem}, batch {batch}"] = speeds(stem, batch, device, seconds)
        print(f"{stem}, batch {batch}: " + ", ".join(f"{name} {value:,.4g}" for name, value in row.items()), flush=True)
    result |= {"sharing": shared(device, seconds), "outputs": outputs(device, seconds)}
    result["resumed alike"] = is_resumed_alike(device)
    print(json.dumps({name: result[name] for name in ("sharing", "outputs", "resumed alike")}, indent=1))
    if is_gpu:
        name = torch.cuda.get_device_name(device).lower().replace(" ", "-")
        write_result(f"gpu-{name}", "python -m benchmarks.gpu", {"device": torch.cuda.get_device_name(device), **result})


if __name__ == "__main__":
    main()

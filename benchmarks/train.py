"""Training speed, all members at once on all cores, against what people run today; on CIFAR-10's shapes, interleaved.

    python -m benchmarks.train [STEM]      # results/train-STEM.json, and the figures on screen; both stems where left out
    python -m benchmarks.train leg common imagenet   # one leg: prints its figures as JSON

Legs: `common`, the usual script (torchvision transforms a sample, DataLoader with two workers, float32); `torchensemble`, its
VotingClassifier's own fit over the same loader; `ours`, a trainer process a core; `bare`, forward, backward and step on one
constant batch in the same processes, which bounds `ours`. Each is in images a second over all members.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.machine import describe, median_seconds, write_result
from orchestrator.cluster.machines import trainer_environment
from workers.config.specs import MemberSpec, TrainSpec
from workers.models.build import build
from workers.models.network import Network
from workers.training.augmentation import augment, make_augmentations
from workers.training.evaluation import predict_outputs, resolve_precision
from workers.training.optimization import make_optimizer
from workers.training.task import TrainingData, TrainingTask
from workers.training.train import train

BATCH, CLASSES, SIDE = 128, 10, 32
ROUNDS = 3
CORES = os.cpu_count() or 1
STEPS = {"imagenet": 10, "cifar": 3}  # a leg's measured steps a process, after a quarter as many to warm up
LEGS = ("common", "torchensemble", "ours", "bare")
GOALS = {"imagenet": {"common": 2.2, "roof": 0.55}, "cifar": {"common": 3.0, "roof": 0.85}}
FULL = ("flip", "crop", "rotate", "cutout", "color", "erase", "mixup")


def spec(stem: str, augments: tuple[str, ...] = ("flip", "crop")) -> MemberSpec:
    return MemberSpec.model_validate({"name": "m", "seed": 1, "stem": stem, "augment": augments})


def synthetic(rows: int) -> tuple[Tensor, Tensor]:
    """Noise of CIFAR-10's shape: speed does not depend on what is in a picture."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (rows, SIDE, SIDE, 3), dtype=torch.uint8, generator=generator)
    return images, torch.randint(0, CLASSES, (rows,), generator=generator)


def plain(stem: str) -> nn.Module:
    """torchvision's own network, as a script would build it."""
    import torchvision

    network: nn.Module = torchvision.models.resnet18(num_classes=CLASSES)
    if stem == "cifar":
        network.conv1, network.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    return network


def loader(rows: int) -> Any:
    """torchvision transforms a sample, in two worker processes."""
    from PIL import Image
    from torchvision import transforms

    images, labels = synthetic(rows)
    pictures = [Image.fromarray(image) for image in images.numpy()]
    steps = transforms.Compose(
        [
            transforms.RandomCrop(SIDE, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        ]
    )

    class Pictures(torch.utils.data.Dataset[tuple[Tensor, int]]):
        def __len__(self) -> int:
            return len(pictures)

        def __getitem__(self, at: int) -> tuple[Tensor, int]:
            return steps(pictures[at]), int(labels[at])

    return torch.utils.data.DataLoader(Pictures(), BATCH, shuffle=True, num_workers=2, drop_last=True)


def common(stem: str) -> float:
    """One member after another, as a script trains them: so one is measured, on all cores."""
    torch.set_num_threads(CORES)
    network = plain(stem).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    warm, steps = STEPS[stem] // 4 + 1, STEPS[stem]
    began = 0.0
    for step, (x, y) in enumerate(loader((warm + steps) * BATCH)):
        if step == warm:
            began = time.perf_counter()
        optimizer.zero_grad()
        loss = F.cross_entropy(network(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        loss.item()
    return steps * BATCH / (time.perf_counter() - began)


def torchensemble(stem: str) -> float:
    """Its VotingClassifier over two members; the first epoch, which starts the loader's workers, warms up."""
    import contextlib
    import io

    from torchensemble import VotingClassifier  # type: ignore[import-not-found]

    torch.set_num_threads(CORES)
    model = VotingClassifier(estimator=plain(stem), n_estimators=2, cuda=False)
    model.set_optimizer("SGD", lr=0.1, momentum=0.9, weight_decay=5e-4)
    batches, seconds = loader(STEPS[stem] * BATCH), []
    for _ in range(2):
        began = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            model.fit(batches, epochs=1, save_model=False)
        seconds.append(time.perf_counter() - began)
    return 2 * STEPS[stem] * BATCH / seconds[1]


def ours(stem: str) -> float:
    return sum(_processes("one", stem))


def bare(stem: str) -> float:
    return sum(_processes("constant", stem))


def _processes(what: str, stem: str) -> list[float]:
    """A process of one thread a core, all at once."""
    command = [sys.executable, "-m", "benchmarks.train", what, stem]
    env = {**os.environ, **trainer_environment(1)}
    started = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) for _ in range(CORES)]
    return [float(process.communicate()[0]) for process in started]


def one(stem: str) -> float:
    """A member by the trainer's own `train`: the second epoch's rate."""
    torch.set_num_threads(1)
    images, labels = synthetic(STEPS[stem] * BATCH)
    rows = torch.arange(len(images))
    data, member = TrainingData(images, labels, rows, rows[:BATCH]), spec(stem)
    settings = TrainSpec.model_validate({"epochs": 2, "batch_size": BATCH})
    task = TrainingTask(data, member, settings, member.members, torch.device("cpu"))
    return float(train(lambda: build(member, CLASSES, SIDE), task).history[1]["train/images_per_second"])


def constant(stem: str) -> float:
    """Forward, backward and step alone, on one batch that is there: as many steps as `one` takes; the second half counts."""
    torch.set_num_threads(1)
    member, x = spec(stem), torch.rand(BATCH, 3, SIDE, SIDE).contiguous(memory_format=torch.channels_last)
    network, y = _network(member).train(), torch.randint(0, CLASSES, (BATCH,))
    optimizer = make_optimizer(member, network)
    bf16 = resolve_precision("auto", torch.device("cpu")) == "bfloat16"
    times = []
    for _ in range(2 * STEPS[stem]):
        began = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = network(x)
        F.cross_entropy(logits.float(), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        times.append(time.perf_counter() - began)
    return BATCH * STEPS[stem] / sum(times[STEPS[stem] :])


def _network(member: MemberSpec) -> Network:
    return build(member, CLASSES, SIDE).to(memory_format=torch.channels_last)


def roof(stem: str) -> dict[str, float]:
    """What a large matrix product reaches on one core, and the work an image of a step: padding's zeros are not counted."""
    torch.set_num_threads(1)
    kind = torch.bfloat16 if resolve_precision("auto", torch.device("cpu")) == "bfloat16" else torch.float32
    a = torch.randn(2048, 2048).to(kind)
    product = median_seconds(lambda: a @ a, 8)
    return {"matmul_flops": 2 * 2048**3 / product, "flops_an_image": 3 * _flops(stem)}


def _flops(stem: str) -> float:
    """Of a forward pass, additions and multiplications, counted tap by tap."""
    counted = 0.0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], result: Tensor) -> None:
        nonlocal counted
        if isinstance(module, nn.Conv2d):
            ones = torch.ones(1, 1, *inputs[0].shape[2:])
            kernel = torch.ones(1, 1, *module.kernel_size)
            taps = F.conv2d(ones, kernel, None, module.stride, module.padding).sum().item()
            counted += 2 * taps * module.in_channels * module.out_channels
        elif isinstance(module, nn.Linear):
            counted += 2 * module.in_features * module.out_features

    network = plain(stem).eval()
    handles = [module.register_forward_hook(count) for module in network.modules()]
    with torch.inference_mode():
        network(torch.zeros(1, 3, SIDE, SIDE))
    for handle in handles:
        handle.remove()
    return counted


def around(stem: str) -> dict[str, float]:
    """What is beside the steps, images a second on one core: augmentation, and the outputs pass."""
    torch.set_num_threads(1)
    images, labels = synthetic(2048)
    generator = torch.Generator().manual_seed(0)
    per_second = {}
    for name, augments in (("flip_crop", ("flip", "crop")), ("every_augmentation", FULL)):
        made = make_augmentations(spec(stem, augments).augment)
        seconds = median_seconds(partial(augment, images[:BATCH], labels[:BATCH], made, generator), 40)
        per_second[name] = BATCH / seconds
    network = _network(spec(stem))
    rows = np.arange(512)
    bf16 = resolve_precision("auto", torch.device("cpu")) == "bfloat16"
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        per_second["outputs"] = len(rows) / median_seconds(lambda: predict_outputs(network, images, rows, torch.device("cpu")), 3)
    return per_second


def main(stems: Sequence[str]) -> None:
    for stem in stems:
        seen: dict[str, list[float]] = {leg: [] for leg in LEGS}
        for _ in range(ROUNDS):
            for leg in LEGS:
                if (rate := _leg(leg, stem)) is not None:
                    seen[leg].append(rate)
        rates = {leg: median(values) for leg, values in seen.items() if values}
        figures = {"images_per_second": rates, **_ratios(stem, rates)}
        beside = {"threads_a_member": 1, "members_at_once": CORES}
        write_result(f"train-{stem}", f"python -m benchmarks.train {stem}", {**beside, **figures})
        print(json.dumps({stem: figures}, indent=1), flush=True)
    print(json.dumps(describe()))


def _leg(leg: str, stem: str) -> float | None:
    """In a process of its own; None where the peer is not installed."""
    with tempfile.TemporaryDirectory() as work:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.train", "leg", leg, stem],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")]), "TMPDIR": work},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode and "No module named 'torchensemble'" in done.stderr:
        print("torchensemble is not installed: left out", file=sys.stderr)
        return None
    if done.returncode:
        raise SystemExit(done.stderr)
    return float(json.loads(done.stdout.splitlines()[-1])["images_per_second"])


def _ratios(stem: str, rates: dict[str, float]) -> dict[str, Any]:
    top, beside = roof(stem), around(stem)
    return {
        "ours_over": {peer: rates["ours"] / rates[peer] for peer in ("common", "torchensemble") if peer in rates},
        "pipeline_efficiency": rates["ours"] / rates["bare"],
        "roof_fraction": rates["ours"] / CORES * top["flops_an_image"] / top["matmul_flops"],
        "goals": {**GOALS[stem], "pipeline_efficiency": 0.97},
        **top,
        "one_core": beside,
        "outputs_over_training": beside["outputs"] / (rates["ours"] / CORES),
    }


if __name__ == "__main__":
    words = sys.argv[1:]
    every: dict[str, Callable[[str], float]] = dict(zip(LEGS, (common, torchensemble, ours, bare), strict=True))
    inner: dict[str, Callable[[str], float]] = {"one": one, "constant": constant}
    if words[:1] == ["leg"]:
        print(json.dumps({"images_per_second": every[words[1]](words[2])}))
    elif words and words[0] in inner:
        print(inner[words[0]](words[1]))
    else:
        main(words or tuple(STEPS))

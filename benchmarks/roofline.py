"""Where a training step's time goes on one core, by kind of operation, beside the least that memory and arithmetic allow.

    python -m benchmarks.roofline        # a minute; results/roofline.json

For each kind: its milliseconds in a step of ResNet18, the bytes that it has to read and write or the operations of its products,
and what these take at the speed of a large copy and of a large matrix product, each measured in this run. What is far above both
bounds is limited by something else: by calls and conversions, or by layouts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from benchmarks.machine import describe, median_seconds, write_result
from benchmarks.train import BATCH, CLASSES, SIDE, STEPS, roof, spec
from orchestrator.cluster.machines import trainer_environment
from workers.models.build import build
from workers.training.evaluation import resolve_precision
from workers.training.optimization import make_optimizer

ROUNDS = 5
COPIED = 64 * 2**20  # elements of a float32 tensor, more than any cache holds
# Parts of the names of torch's operations, the first that fits; and the passes over memory of forward and backward together
KINDS = {
    "batch norm": ("batch_norm",),
    "convolutions": ("conv", "addmm", "aten::mm", "aten::bmm"),
    "ReLU": ("relu", "threshold", "clamp_min"),
    "sums of two paths": ("aten::add",),
    "optimizer": ("_fused_sgd", "_foreach"),
    "pooling": ("pool", "mean"),
    "conversions and copies": ("copy_", "_to_copy", "contiguous", "clone", "fill_", "zero_"),
}
PASSES = {"batch norm": 3 + 5, "ReLU": 2 + 3, "sums of two paths": 3 + 3}  # reads and writes of an activation


def main() -> None:
    result = {}
    for stem in STEPS:
        command, env = [sys.executable, "-m", "benchmarks.roofline", stem], {**os.environ, **trainer_environment(1)}
        done = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
        result[stem] = json.loads(done.stdout)
        print(json.dumps({stem: result[stem]}, indent=1), flush=True)
    write_result("roofline", "python -m benchmarks.roofline", result)
    print(json.dumps(describe()))


def of_stem(stem: str) -> dict[str, Any]:
    """The kinds of a stem's step: milliseconds, share of the step, and how many times its bound. In a trainer's environment."""
    torch.set_num_threads(1)
    bandwidth = _bandwidth()
    step, activations = _step(stem)
    step()
    seen: dict[str, list[float]] = {kind: [] for kind in (*KINDS, "the rest")}
    for _ in range(ROUNDS):
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            step()
        of_round: Counter[str] = Counter()
        for event in profiled.events():
            of_round[_kind(event)] += event.self_cpu_time_total / 1000
        for kind, milliseconds in seen.items():
            milliseconds.append(of_round[kind])
    medians = {kind: median(values) for kind, values in seen.items()}
    top = roof(stem)
    bounds = {kind: passes * activations[kind] / bandwidth * 1000 for kind, passes in PASSES.items()}
    bounds["convolutions"] = BATCH * top["flops_an_image"] / top["matmul_flops"] * 1000
    total = sum(medians.values())
    return {
        "milliseconds": total,
        "bytes_a_second": bandwidth,
        "kinds": {
            kind: {
                "milliseconds": milliseconds,
                "share": milliseconds / total,
                **({"bound": bounds[kind], "over_bound": milliseconds / bounds[kind]} if kind in bounds else {}),
            }
            for kind, milliseconds in sorted(medians.items(), key=lambda item: -item[1])
        },
        "share_at_bounds": sum(min(bounds.get(kind, value), value) for kind, value in medians.items()) / total,
    }


def _kind(event: Any) -> str:
    """The kind of an event of the profile. What the optimizer's own operation copies is the optimizer's."""
    above, names = event.cpu_parent, [event.name]
    while above is not None:
        names.append(above.name)
        above = above.cpu_parent
    if any(part in name for part in KINDS["optimizer"] for name in names):
        return "optimizer"
    return next((kind for kind, parts in KINDS.items() if any(part in event.name for part in parts)), "the rest")


def _bandwidth() -> float:
    """Bytes a second that are read and written by a copy of what no cache holds."""
    source, target = torch.zeros(COPIED), torch.empty(COPIED)
    return 2 * source.nbytes / median_seconds(lambda: target.copy_(source), 5)


def _step(stem: str) -> tuple[Callable[[], None], dict[str, int]]:
    """A step on one batch that is there; and the bytes of the activations that each kind works on."""
    member, x = spec(stem), torch.rand(BATCH, 3, SIDE, SIDE).contiguous(memory_format=torch.channels_last)
    network = build(member, CLASSES, SIDE).to(memory_format=torch.channels_last).train()
    y, optimizer = torch.randint(0, CLASSES, (BATCH,)), make_optimizer(member, network)
    bf16 = resolve_precision("auto", torch.device("cpu")) == "bfloat16"

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = network(x)
        F.cross_entropy(logits.float(), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    counted: Counter[str] = Counter()
    modules = {nn.BatchNorm2d: "batch norm", nn.ReLU: "ReLU"}
    handles = []
    for module in network.modules():
        kind = next((kind for of, kind in modules.items() if isinstance(module, of)), None)
        if kind is not None:
            handles.append(module.register_forward_hook(_counting(counted, kind)))
        elif type(module).__name__ == "BasicBlock":  # each ends in the sum of its two paths
            handles.append(module.register_forward_hook(_counting(counted, "sums of two paths")))
    step()
    for handle in handles:
        handle.remove()
    return step, dict(counted)


def _counting(counted: Counter[str], kind: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        counted[kind] += output.nbytes

    return count


if __name__ == "__main__":
    if sys.argv[1:]:
        print(json.dumps(of_stem(sys.argv[1])))
    else:
        main()

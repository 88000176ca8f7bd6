"""Latency of a fused model of three ResNet18 at 32 x 32 against three models called in turn; interleaved, on all cores.

    python -m benchmarks.inference        # results/inference.json, and milliseconds on screen

`eager`: three torchvision networks, one after another, probabilities averaged (five scripts and ten files come down to this).
`sessions`: the same three as ONNX files of their own. `fused.onnx`: our one file. `torch`: our fused model as torch runs it,
folded, in channels_last (in bfloat16 too where the processor has it). `student`: one network of a member's size in one file.
`cascade`: asked one after another, as in torch, where the first is sure of a given share of the rows.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.machine import describe, write_result
from benchmarks.train import CLASSES, SIDE, plain
from fusion.export import export, session
from fusion.frozen import frozen
from fusion.model import Average, Cascaded, FusedModel
from workers.augment import to_float
from workers.evaluate import resolve_precision
from workers.models import Network, build
from workers.spec import MemberSpec

COUNT = 3
TURNS = {1: 60, 256: 12}
SURE = 0.75  # share of the rows of which the cascade's first member is sure enough
GOALS = {"1": {"fused_over_eager": 5.0}, "256": {"fused_over_eager": 2.2}, "student_over_fused": 2.5}
Run = Callable[[np.ndarray[Any, Any]], Any]


def specs() -> list[MemberSpec]:
    return [MemberSpec.model_validate({"name": f"m{i}", "seed": i, "stem": "imagenet"}) for i in range(COUNT)]


def settled(spec: MemberSpec) -> Network:
    """A network whose batch statistics are those of some images, so that its outputs are not degenerate."""
    network = build(spec, CLASSES, SIDE)
    generator = torch.Generator().manual_seed(spec.seed)
    with torch.no_grad():
        for _ in range(20):
            network.train()(torch.rand(64, 3, SIDE, SIDE, generator=generator))
    return network.eval()


def eager(networks: list[Network]) -> Run:
    """torchvision's own networks with the same weights."""
    theirs = []
    for network in networks:
        model = plain("imagenet").eval()
        state = {k.removeprefix("trunk."): v for k, v in network.state_dict().items() if k.startswith("trunk.")}
        model.load_state_dict({**state, "fc.weight": network.head.weight, "fc.bias": network.head.bias})
        theirs.append(model)

    def run(images: np.ndarray[Any, Any]) -> Any:
        answers = []
        for network, model in zip(networks, theirs, strict=True):
            x = (to_float(torch.from_numpy(images)) - network.mean) / network.std
            answers.append(model(x).softmax(1))
        return torch.stack(answers).mean(0).numpy()

    return run


def in_torch(model: FusedModel, bf16: bool = False) -> Run:
    fast = frozen(model, SIDE).to(memory_format=torch.channels_last)

    def run(images: np.ndarray[Any, Any]) -> Any:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return fast(torch.from_numpy(images)).float().numpy()

    return run


def onnx(model: FusedModel, members: list[MemberSpec], folder: Path, images: np.ndarray[Any, Any]) -> Run:
    with torch.inference_mode():
        expected = model(torch.from_numpy(images)).double().numpy()
    path = folder / f"{len(list(folder.iterdir()))}.onnx"
    export(model, members, [str(c) for c in range(CLASSES)], {}, path, images, expected)
    found = session(str(path))
    return lambda batch: found.run(None, {"images": batch})[0]


def cascade(networks: list[Network], images: np.ndarray[Any, Any]) -> FusedModel:
    """With the threshold of which the first member is above for SURE of these rows."""
    with torch.inference_mode():
        first: Tensor = networks[0](to_float(torch.from_numpy(images))).softmax(1).amax(1)
    threshold = first.quantile(1 - SURE)
    combiner = Cascaded(torch.ones(COUNT), threshold)
    return FusedModel(networks, combiner, 1.0).eval()


def main() -> None:
    networks, members = [settled(spec) for spec in specs()], specs()
    draw = np.random.default_rng(0)
    sample = draw.integers(0, 256, (256, SIDE, SIDE, 3), dtype=np.uint8)
    fused = FusedModel(networks, Average(torch.full((COUNT,), 1 / COUNT)), 1.0).eval()
    alone = [FusedModel([network], Average(torch.ones(1)), 1.0).eval() for network in networks]
    with tempfile.TemporaryDirectory() as work, torch.inference_mode():
        parts = [onnx(model, [spec], Path(work), sample) for model, spec in zip(alone, members, strict=True)]
        runs: dict[str, Run] = {
            "eager": eager(networks),
            "sessions": lambda images: np.mean([part(images) for part in parts], axis=0),
            "fused.onnx": onnx(fused, members, Path(work), sample),
            "torch": in_torch(fused),
            "student": parts[0],
            "cascade": in_torch(cascade(networks, sample)),
        }
        if resolve_precision("auto", torch.device("cpu")) == "bfloat16":
            runs["torch bfloat16"] = in_torch(fused, bf16=True)
        expected = runs["eager"](sample)
        differ = {n: float(np.abs(runs[n](sample) - expected).max()) for n in runs if n not in ("student", "cascade")}
        times = {str(batch): _milliseconds(runs, sample[:batch], turns) for batch, turns in TURNS.items()}
    ours = ("fused.onnx", "torch", "torch bfloat16")
    ratios = {b: {n: t["eager"] / t[n] for n in t if n != "eager"} for b, t in times.items()}
    best = {b: min((n for n in ours if n in t), key=lambda n: t[n]) for b, t in times.items()}
    student = {b: t[best[b]] / t["student"] for b, t in times.items()}
    result = {
        "milliseconds": times,
        "over_eager": ratios,
        "fastest": best,
        "student_over_fused": student,
        "differ": differ,
        "goals": GOALS,
    }
    write_result("inference", "python -m benchmarks.inference", result)
    print(json.dumps(result, indent=1))
    print(json.dumps(describe()))


def _milliseconds(runs: dict[str, Run], images: np.ndarray[Any, Any], turns: int) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(turns + 2):
        for name, run in runs.items():
            began = time.perf_counter()
            run(images)
            if turn >= 2:
                times[name].append((time.perf_counter() - began) * 1000)
    return {name: median(values) for name, values in times.items()}


if __name__ == "__main__":
    main()

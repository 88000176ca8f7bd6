"""Latency of a fused model of three ResNet18 at 32 x 32 against three models called in turn; interleaved, on all cores.

    python -m benchmarks.inference        # results/inference.json, and milliseconds on screen

`eager`: three torchvision networks, one after another, probabilities averaged (five scripts and ten files come down to this).
`sessions`: the same three as ONNX files of their own. `fused.onnx`: our one file. `torch`: our fused model as torch runs it,
folded, in channels_last (in bfloat16 too where the processor has it). `student`: one network of a member's size in one file, by
the same three ways. `cascade`: asked one after another, as in torch, where the first is sure of a given share of the rows.

Every turn of a way is a process of its own: the threads of one runtime wait busily for their next call, on the others' cores.
"""

from __future__ import annotations

import json
import subprocess
import sys
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
from fusion.export.fused_model import Combiner, FusedModel
from fusion.export.onnx_export import ModelCard, export_model, load_model
from fusion.export.onnx_session import create_session
from fusion.methods.cascade import Cascade
from fusion.methods.vote import Vote
from fusion.serving.runtimes import Run, torch_runtime
from workers.config.specs import MemberSpec
from workers.models.build import build
from workers.models.network import Network
from workers.training.augmentation import to_float
from workers.training.evaluation import resolve_precision

COUNT = 3
ROUNDS = 3
CALLS = {1: 60, 256: 8}  # of a round, after two that warm up
SURE = 0.75  # share of the rows of which the cascade's first member is sure enough
GOALS = {"1": {"fused_over_eager": 5.0}, "256": {"fused_over_eager": 2.2}, "student_over_fused": 2.5}
WAYS = ("fused.onnx", "torch", "torch bfloat16")  # of one file
STUDENTS = {"fused.onnx": "student", "torch": "student torch", "torch bfloat16": "student torch bfloat16"}


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


def pictures() -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, (256, SIDE, SIDE, 3), dtype=np.uint8)


def write(model: FusedModel, members: list[MemberSpec], path: Path) -> None:
    images = pictures()
    with torch.inference_mode():
        expected = model(torch.from_numpy(images)).double().numpy()
    export_model(model, ModelCard(members, [str(c) for c in range(CLASSES)], {}), path, images, expected)


def fit_team(folder: Path) -> None:
    """FOLDER/fused, cascade, 0, 1 and 2, each in every form."""
    networks, members = [settled(spec) for spec in specs()], specs()
    mean = Combiner(Vote, {"weights": torch.full((COUNT,), 1 / COUNT)})
    write(FusedModel(networks, mean, 1.0).eval(), members, folder / "fused.onnx")
    write(cascade(networks), members, folder / "cascade.onnx")
    for i, (network, member) in enumerate(zip(networks, members, strict=True)):
        write(FusedModel([network], Combiner(Vote, {"weights": torch.ones(1)}), 1.0).eval(), [member], folder / f"{i}.onnx")


def cascade(networks: list[Network]) -> FusedModel:
    """With the threshold of which the first member is above for SURE of these rows."""
    with torch.inference_mode():
        first: Tensor = networks[0](to_float(torch.from_numpy(pictures()))).softmax(1).amax(1)
    arrays = {"temperatures": torch.ones(COUNT), "threshold": first.quantile(1 - SURE)}
    return FusedModel(networks, Combiner(Cascade, arrays), 1.0).eval()


def eager(folder: Path) -> Run:
    """torchvision's own networks with the same weights."""
    theirs = []
    for network in load_model(folder / "fused.onnx").members:
        assert isinstance(network, Network)
        model = plain("imagenet").eval()
        state = {k.removeprefix("trunk."): v for k, v in network.state_dict().items() if k.startswith("trunk.")}
        model.load_state_dict({**state, "fc.weight": network.head.weight, "fc.bias": network.head.bias})
        theirs.append((network.mean, network.std, model))

    def run(images: np.ndarray[Any, Any]) -> Any:
        with torch.inference_mode():
            x = to_float(torch.from_numpy(images))
            return torch.stack([model((x - mean) / std).softmax(1) for mean, std, model in theirs]).mean(0).numpy()

    return run


def onnx(path: Path) -> Run:
    session = create_session(str(path))
    return lambda images: session.run(None, {"images": images})[0]


def sessions(folder: Path) -> Run:
    parts = [onnx(folder / f"{i}.onnx") for i in range(COUNT)]
    return lambda images: np.mean([part(images) for part in parts], axis=0)


def ways() -> dict[str, Callable[[Path], Run]]:
    runners: dict[str, Callable[[Path], Run]] = {
        "eager": eager,
        "sessions": sessions,
        "fused.onnx": lambda folder: onnx(folder / "fused.onnx"),
        "torch": lambda folder: torch_runtime(folder / "fused.onnx", SIDE, False),
        "student": lambda folder: onnx(folder / "0.onnx"),
        "student torch": lambda folder: torch_runtime(folder / "0.onnx", SIDE, False),
        "cascade": lambda folder: torch_runtime(folder / "cascade.onnx", SIDE, False),
    }
    if resolve_precision("auto", torch.device("cpu")) == "bfloat16":
        runners["torch bfloat16"] = lambda folder: torch_runtime(folder / "fused.onnx", SIDE, True)
        runners["student torch bfloat16"] = lambda folder: torch_runtime(folder / "0.onnx", SIDE, True)
    return runners


def turn(name: str, folder: Path) -> None:
    """Prints median milliseconds by batch; FOLDER/NAME.npy is what it answers."""
    run, images, milliseconds = ways()[name](folder), pictures(), {}
    np.save(folder / f"{name}.npy", run(images))
    for batch, calls in CALLS.items():
        times = []
        for call in range(calls + 2):
            began = time.perf_counter()
            run(images[:batch])
            if call >= 2:
                times.append((time.perf_counter() - began) * 1000)
        milliseconds[str(batch)] = median(times)
    print(json.dumps(milliseconds))


def main() -> None:
    times: dict[str, dict[str, list[float]]] = {str(batch): {name: [] for name in ways()} for batch in CALLS}
    with tempfile.TemporaryDirectory() as work:
        fit_team(Path(work))
        for _ in range(ROUNDS):
            for name in ways():
                command = [sys.executable, "-m", "benchmarks.inference", "turn", name, work]
                printed = subprocess.run(command, capture_output=True, check=True, text=True).stdout
                for batch, milliseconds in json.loads(printed.splitlines()[-1]).items():
                    times[batch][name].append(milliseconds)
        answers = {name: np.load(Path(work, f"{name}.npy")) for name in ("eager", "sessions", *WAYS) if name in ways()}
    medians = {batch: {name: median(values) for name, values in of.items()} for batch, of in times.items()}
    best = {b: min((n for n in WAYS if n in t), key=lambda n: t[n]) for b, t in medians.items()}
    students = {b: min((n for n in STUDENTS.values() if n in t), key=lambda n: t[n]) for b, t in medians.items()}
    result = {
        "milliseconds": medians,
        "over_eager": {b: {n: t["eager"] / t[n] for n in t if n != "eager"} for b, t in medians.items()},
        "fastest": best,
        "fastest_student": students,
        "student_over_fused": {b: t[best[b]] / t[students[b]] for b, t in medians.items()},
        "differ": {name: float(np.abs(values - answers["eager"]).max()) for name, values in answers.items()},
        "goals": GOALS,
    }
    write_result("inference", "python -m benchmarks.inference", result)
    print(json.dumps(result, indent=1))
    print(json.dumps(describe()))


if __name__ == "__main__":
    if sys.argv[1:2] == ["turn"]:
        turn(sys.argv[2], Path(sys.argv[3]))
    else:
        main()

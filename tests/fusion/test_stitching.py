"""One ONNX graph of several networks: each kind is traced once, and what looks alike and is not is noticed."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fusion.export import stitching
from fusion.export.fused_model import Combiner, FusedModel
from fusion.export.onnx_export import ModelCard, export_model
from fusion.export.onnx_session import predict_probabilities
from fusion.methods.vote import Vote
from workers.config.specs import MemberSpec
from workers.models.build import build
from workers.models.network import Network

SIDE, CLASSES = 16, 3


class Power(nn.Module):
    """What it computes depends on a number that nothing shows."""

    def __init__(self, exponent: float) -> None:
        super().__init__()
        self.exponent = exponent

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != 3:  # a question that keeps it from being traced while it is frozen, where its code would show the number
            raise ValueError(f"{x.shape[1]} channels")
        return x.abs().pow(self.exponent).mean((2, 3))


def powers(*exponents: float) -> list[Network]:
    torch.manual_seed(1)
    return [Network(Power(exponent), nn.Linear(3, CLASSES)).eval() for exponent in exponents]


def exported(members: list[Network], folder: Path) -> tuple[list[int], float]:
    """How many networks were traced, each time, and how far the file's probabilities are from the model's."""
    arrays = {"weights": np.full(len(members), 1 / len(members)), "temperatures": np.ones(len(members))}
    model = FusedModel(members, Combiner(Vote, arrays), 1.3).eval()
    images = torch.randint(0, 255, (20, SIDE, SIDE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = model(images).double().numpy()
    specs = [MemberSpec(name=f"m{number}", seed=number) for number in range(len(members))]
    card = ModelCard(specs, ("a", "b", "c"), {})
    with patch.object(stitching, "_traced", wraps=stitching._traced) as traced:
        export_model(model, card, folder / "m.onnx", images.numpy(), expected)
    found = predict_probabilities((folder / "m.onnx").read_bytes(), images.numpy())
    return [len(call.args[1]) for call in traced.call_args_list], float(np.abs(found - expected).max())


@pytest.mark.parametrize(("archs", "kinds"), [(("resnet18",) * 3, 1), (("resnet18", "mobilenet_v3_small", "resnet18"), 2)])
def test_networks_that_differ_in_weights_alone_are_traced_once(archs: tuple[str, ...], kinds: int, tmp_path: Path) -> None:
    members = [
        build(MemberSpec(name="m", seed=seed, arch=arch, width=8 if arch == "resnet18" else 64), CLASSES, SIDE).eval()
        for seed, arch in enumerate(archs)
    ]
    traced, difference = exported(members, tmp_path)
    assert traced == [kinds]
    assert difference < 1e-4


def test_networks_that_only_look_alike_are_each_traced(tmp_path: Path) -> None:
    traced, difference = exported(powers(1.0, 3.0), tmp_path)
    assert traced == [1, 2], "a copy of the first gave other probabilities"
    assert difference < 1e-4


def test_a_model_always_gives_the_same_file(tmp_path: Path) -> None:
    members = [build(MemberSpec(name="m", seed=seed, width=8), CLASSES, SIDE).eval() for seed in range(2)]
    files = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        exported(members, tmp_path / name)
        files.append((tmp_path / name / "m.onnx").read_bytes())
    assert files[0] == files[1]

"""Every fusion as one torch module: from images it gives what the offline fusion gives from outputs."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fusion.export.abstaining import disagreement
from fusion.export.flips import predict_with_flips
from fusion.export.freezing import FoldedConv, freeze_for_inference
from fusion.export.fused_model import Combiner, FusedModel, assemble
from fusion.export.onnx_export import ModelCard, export_model
from fusion.export.onnx_session import create_session
from fusion.interface import FUSIONS
from fusion.methods.cascade import Cascade
from fusion.methods.stack import Stack
from fusion.methods.vote import Vote
from fusion.metrics.conformal import prediction_sets, set_scores
from fusion.predictions import Floats, FusionInputs, Predictions, TeamPredictions
from fusion.selection.fitting import FittedFusion, fit_all
from fusion.selection.networks import CandidateNetworks
from workers.config.specs import MemberSpec
from workers.models.build import build
from workers.models.network import Network
from workers.models.small_conv import SmallConv2d
from workers.training.augmentation import to_float

CLASSES = 3
ARCHS = ("resnet18", "resnet18", "mobilenet_v3_small")


@pytest.fixture(scope="module")
def networks() -> list[Network]:
    made = []
    for seed, arch in enumerate(ARCHS):
        spec = MemberSpec(name=f"m{seed}", seed=seed, arch=arch, width=8 if arch == "resnet18" else 64)
        made.append(build(spec, CLASSES, 16).eval())
    return made


def outputs(networks: list[Network], images: torch.Tensor) -> Predictions:
    with torch.inference_mode():
        x = to_float(images)
        features = [network.features(x) for network in networks]
        logits = [network.head(f) for network, f in zip(networks, features, strict=True)]
    stacked = torch.stack(logits).double().numpy()
    labels = stacked.mean(0).argmax(1)
    labels[::4] = (labels[::4] + 1) % CLASSES
    labels[:CLASSES] = np.arange(CLASSES)
    return Predictions(stacked, tuple(f.double().numpy() for f in features), labels)


@pytest.mark.parametrize("alike", [True, False])
@pytest.mark.parametrize("with_oof", [(), (0, 2)])
def test_every_fusion_is_the_same_as_a_module(with_oof: tuple[int, ...], alike: bool, networks: list[Network]) -> None:
    images = torch.randint(0, 255, (120, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    table = outputs(networks, images)
    bags = [networks[i : i + 1] + networks[:1] for i in range(3)]  # two fold fits a member
    of_folds = np.stack([[table.logits[i], table.logits[0]] for i in range(3)])
    table = replace(table, folds=of_folds, student=table.logits[2])
    oof = table.only(with_oof) if with_oof else None

    def numpy(values: Any) -> Floats:
        return values.detach().double().numpy()  # type: ignore[no-any-return]

    heads = tuple((numpy(n.head.weight), numpy(n.head.bias)) for n in networks)
    rows = np.arange(120)
    inputs = FusionInputs(table, oof, rows % 4, heads, with_oof, alike)
    gathered = TeamPredictions(("a", "b", "c"), ("x", "y", "z"), inputs, table, rows, rows, rows)
    flipped = predict_with_flips(table, CandidateNetworks(networks, bags, networks[2]), images)
    assert np.abs(flipped.logits - table.logits).max() > 1e-3
    fitted = fit_all(gathered, FUSIONS.own_names())
    absent = set() if with_oof else {"stack_bag"}
    assert set(fitted) == {"a", "b", "c", *FUSIONS.own_names()} - absent
    for name, fusion in fitted.items():
        of_team = CandidateNetworks(networks, bags, networks[2])
        for flips, expected in ((False, table), (True, flipped)):
            with torch.inference_mode():
                ours = assemble(fusion, of_team, flips)(images).numpy()
            assert np.abs(ours - fusion.predict_proba(expected)).max() < 1e-4, (name, flips)


def test_a_high_temperature_is_the_same_as_a_module(networks: list[Network]) -> None:
    """A stack of few rows that is far too sure: what its classes have beyond twelve digits counts for nothing in both."""
    images = torch.randint(0, 255, (60, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    table = outputs(networks, images)
    stack = Stack().fit(FusionInputs(table, None, np.zeros(0, int), ()))
    stack.coef_ = stack.coef_ * 200
    fusion = FittedFusion("stack", stack, 8.0, np.zeros((60, CLASSES)))
    assert stack.predict_proba(table).min() < 1e-20
    with torch.inference_mode():
        ours = assemble(fusion, CandidateNetworks(networks))(images).numpy()
    assert np.abs(ours - fusion.predict_proba(table)).max() < 1e-4


def test_a_cascade_at_once_and_one_after_another_are_the_same(networks: list[Network]) -> None:
    """As it is exported, and as it saves time: each member sees the rows alone that nobody was sure of."""
    images = torch.randint(0, 255, (50, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    x = to_float(images)
    seen: list[int] = []
    counted = [lambda batch, n=n: seen.append(len(batch)) or n(batch) for n in networks]  # type: ignore[func-returns-value]
    with torch.inference_mode():
        logits = [network(x) for network in networks]
        middle = float(logits[0].softmax(1).amax(1).median())
        combiner = Combiner(Cascade, {"temperatures": torch.tensor([1.0, 0.5, 2.0]), "threshold": torch.tensor(middle)})
        at_once, in_turn = combiner([], logits), combiner.ask_in_turn(counted, x)  # type: ignore[arg-type]
    assert in_turn is not None
    assert torch.allclose(at_once, in_turn, atol=1e-5)
    assert seen[0] == 50
    assert 0 < seen[1] < 50
    assert all(b <= a for a, b in itertools.pairwise(seen))


class Wild(torch.nn.Module):
    """A user's trunk that can't be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).mean((2, 3)) if x.sum() > 0 else self.conv(-x).mean((2, 3))


def test_frozen_for_inference_it_is_the_same_function_without_batch_norms(networks: list[Network]) -> None:
    images = torch.randint(0, 255, (20, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    torch.manual_seed(0)
    trained = list(networks)
    with torch.no_grad():
        for network in trained:  # batch statistics and scales as after a training
            network.train()(to_float(images))
            for module in network.eval().modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.weight.uniform_(0.5, 2)
                    module.bias.uniform_(-1, 1)
    wild = Network(Wild(), torch.nn.Linear(4, CLASSES)).eval()
    model = FusedModel([*trained, wild], Combiner(Vote, {"weights": torch.full((4,), 0.25)}), 1.5).eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    fast = freeze_for_inference(model, 16)
    with torch.inference_mode():
        assert torch.allclose(fast(images), model(images), atol=1e-5)
    kinds = [{type(m) for m in member.modules()} for member in fast.members]
    assert all(torch.nn.BatchNorm2d not in kind for kind in kinds)
    assert FoldedConv in kinds[0]
    assert Wild in kinds[3], "kept as it is"
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()), "the original is untouched"


@pytest.mark.parametrize("side", [1, 2])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_folded_convolution_is_the_convolution(side: int, stride: int) -> None:
    conv, x = SmallConv2d(5, 7, 3, stride, 1), torch.randn(4, 5, side, side)
    with torch.no_grad():
        expected = torch.nn.functional.conv2d(x, conv.weight, conv.bias, stride, 1)
        assert torch.allclose(FoldedConv(conv, side)(x), expected, atol=1e-6)


def test_an_exported_model_that_abstains_gives_the_sets_and_the_disagreement_of_the_fusion(tmp_path: Path) -> None:
    specs = [MemberSpec(name=f"m{seed}", seed=seed, arch=arch) for seed, arch in enumerate(ARCHS)]
    spread = []
    for spec in specs:
        torch.manual_seed(spec.seed)
        spread.append(build(spec, CLASSES, 16).eval())
    with torch.no_grad():
        for network in spread:
            network.head.weight.mul_(30)
    fused = FusedModel(spread, Combiner(Vote, {"weights": torch.full((3,), 1 / 3)}), 1.3).eval()
    images = np.random.default_rng(0).integers(0, 255, (80, 16, 16, 3)).astype(np.uint8)
    with torch.inference_mode():
        expected, logits = fused.answer(to_float(torch.from_numpy(images)))
    probabilities = expected.double().numpy()
    before = np.sort(set_scores(probabilities)[:, 1:].ravel())
    level = float(before[len(before) // 2 : len(before) // 2 + 2].mean())  # between two images, so that rounding decides nothing
    target = tmp_path / "model.onnx"
    export_model(fused, ModelCard(specs, tuple("xyz"), {"method": "vote"}, level), target, images, probabilities)
    given, sets, apart = create_session(str(target)).run(None, {"images": images})
    assert np.abs(given - probabilities).max() < 1e-4
    assert (sets == prediction_sets(given.astype(float), level)).mean() > 0.98
    assert 1 < sets.sum(1).mean() < CLASSES
    assert np.abs(apart - disagreement(torch.stack(logits).double().softmax(2)).numpy()).max() < 1e-4
    assert apart.max() > 0

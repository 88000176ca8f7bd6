"""The step that a GPU captures is the same function on a CPU, over the same tensors: bit for bit the step as it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from tests.factories import Cut, data, digest, fitted, member, run_one
from workers.config.extensions import Augmentation
from workers.config.specs import MemberSpec, TrainSpec
from workers.diagnostics.callback import TrainingCallback
from workers.errors import TrainingStopped
from workers.models.build import build
from workers.models.network import Network
from workers.storage.checkpoints import Checkpoints
from workers.training import steps
from workers.training.augmentation import make_augmentations
from workers.training.captured import CapturedStep, NotCapturedError, unchanged, why_not_captured
from workers.training.captured_augmentation import CapturedAugmentation, can_be_captured
from workers.training.optimization import make_optimizer
from workers.training.task import TrainingResult

SCHEDULED = {"schedule": {"kind": "one_cycle"}}
RECIPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "sgd": ({"augment": ("flip", "crop")}, {}),
    "adamw": ({"optimizer": {"kind": "adamw", "lr": 0.003}, "augment": ("flip",)}, {}),
    "without momentum": ({"optimizer": {"kind": "sgd", "momentum": 0.0}}, {}),
    "every augmentation that mixes nothing": ({"augment": ("flip", "crop", "rotate", "cutout", "color", "erase")}, {}),
    "mixup": ({"augment": ("crop", "mixup")}, {}),
    "label smoothing": ({"label_smoothing": 0.1}, {}),
    "an average of weights": ({}, {"ema": 0.9}),
    "bfloat16": ({}, {"precision": "bfloat16"}),
}


class Noise(Augmentation):
    """Draws from elsewhere, which a graph would keep as it was; and says that it can be captured."""

    can_be_captured = True

    def apply(self, images: Tensor, generator: torch.Generator) -> Tensor:
        noisy: Tensor = images + 0.01 * torch.rand_like(images)
        return noisy


class Negative(Augmentation):
    """Writes into the batch that it is given."""

    moves_pixels = can_be_captured = True

    def apply(self, images: Tensor, generator: torch.Generator) -> Tensor:
        chosen = torch.rand(len(images), generator=generator, device=generator.device) < 0.5
        images[chosen] = 255 - images[chosen]
        return images


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let a CPU take captured steps; gives their learning rates."""
    monkeypatch.setattr(steps, "CAPTURING_DEVICES", ("cpu",))
    rates: list[float] = []
    call = CapturedStep.__call__

    def counted(self: CapturedStep, *given: Any) -> Any:
        rates.append(given[-1])
        return call(self, *given)

    monkeypatch.setattr(CapturedStep, "__call__", counted)
    return rates


def eagerly(monkeypatch: pytest.MonkeyPatch, spec: MemberSpec, **keys: Any) -> TrainingResult:
    with monkeypatch.context() as patched:
        patched.setattr(steps.Stepper, "why_not_captured", "it is compared with")
        return fitted(spec, **keys)


@pytest.mark.parametrize("name", RECIPES)
def test_a_captured_step_is_the_eager_one_bit_for_bit(name: str, calls: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, settings = RECIPES[name]
    spec, settings = member(**recipe), SCHEDULED | settings
    expected = eagerly(monkeypatch, spec, **settings)
    assert not calls
    found = fitted(spec, **settings)
    assert (found.captured, expected.captured) == (True, False)
    assert len(calls) == 5 * settings.get("epochs", 4)
    assert digest(found) == digest(expected)
    assert [e["train/loss"] for e in found.history] == [e["train/loss"] for e in expected.history]


@pytest.mark.parametrize("augment", [("flip", "crop", "color", "erase"), ("crop", "mixup"), (f"{__name__}:Negative", "crop")])
def test_augmentations_are_captured_too(augment: tuple[str, ...], calls: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = eagerly(monkeypatch, member(augment=augment))
    with patch.object(CapturedAugmentation, "_run", autospec=True, side_effect=CapturedAugmentation._run) as run:
        found = fitted(member(augment=augment))
    assert digest(found) == digest(expected)
    assert run.call_count == len(calls) + 2, "and twice for the comparison"


def test_an_augmentation_that_draws_from_elsewhere_stays_as_it_is(calls: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    spec, notes = member(augment=("flip", f"{__name__}:Noise")), list[str]()
    expected = eagerly(monkeypatch, spec)
    monkeypatch.setattr(TrainingCallback, "note", lambda self, text: notes.append(text))
    found = fitted(spec)
    assert digest(found) == digest(expected)
    assert found.captured, "the rest of its step is"
    [note] = notes
    assert "its images or its draws differ" in note


def test_an_augmentation_that_says_nothing_of_graphs_stays_as_it_is() -> None:
    assert not can_be_captured([Augmentation(1.0)]), "there is nothing to apply"
    assert can_be_captured(make_augmentations(member(augment=("flip", "mixup")).augment))
    with patch.object(Noise, "can_be_captured", new=False):
        assert not can_be_captured([*make_augmentations(member(augment=("flip",)).augment), Noise(1.0)])


def test_dropout_draws_the_same(calls: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    settings = TrainSpec.model_validate({"epochs": 2, "batch_size": 16, **SCHEDULED})
    torch.set_num_threads(1)

    def make() -> Network:
        torch.manual_seed(0)
        return Network(nn.Sequential(nn.Flatten(), nn.Linear(192, 32), nn.ReLU(), nn.Dropout(0.5)), nn.Linear(32, 3))

    found = run_one(make, data(), member(), settings)
    assert calls
    monkeypatch.setattr(steps.Stepper, "why_not_captured", "it is compared with")
    assert digest(found) == digest(run_one(make, data(), member(), settings))


def test_rows_with_weights_are_the_same(calls: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    rows = replace(data(), weights=torch.linspace(0.5, 1.5, 96))
    spec, settings = member(augment=("mixup",)), TrainSpec(epochs=2, batch_size=16)
    torch.set_num_threads(1)
    found = run_one(lambda: build(spec, 3, 8), rows, spec, settings)
    assert calls
    monkeypatch.setattr(steps.Stepper, "why_not_captured", "it is compared with")
    assert digest(found) == digest(run_one(lambda: build(spec, 3, 8), rows, spec, settings))


def test_a_training_that_is_stopped_and_resumed_is_the_same(calls: list[float], tmp_path: Path) -> None:
    spec, settings = member(augment=("flip", "mixup")), TrainSpec(epochs=3, batch_size=16)
    torch.set_num_threads(1)
    undisturbed = run_one(lambda: build(spec, 3, 8), data(), spec, settings)
    checkpoints = Checkpoints(tmp_path, "me")
    with pytest.raises(TrainingStopped):
        run_one(lambda: build(spec, 3, 8), data(), spec, settings, checkpoints, Cut(7))
    resumed = run_one(lambda: build(spec, 3, 8), data(), spec, settings, checkpoints)
    assert resumed.resumed_from == 1
    assert digest(resumed) == digest(undisturbed)


def test_a_step_that_a_gpu_can_t_capture_is_taken_as_it_is(calls: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = eagerly(monkeypatch, member())

    def refuse(self: CapturedStep, *given: Any) -> Any:
        raise NotCapturedError("operation not permitted when stream is capturing")

    notes: list[str] = []
    monkeypatch.setattr(CapturedStep, "__call__", refuse)
    monkeypatch.setattr(TrainingCallback, "note", lambda self, text: notes.append(text))
    found = fitted(member())
    assert digest(found) == digest(expected)
    assert not found.captured
    [note] = notes
    assert "kernel by kernel (operation not permitted" in note


def test_what_can_t_be_captured_is_named_and_runs_as_it_is(calls: list[float]) -> None:
    fitted(member(), accumulate=2)
    fitted(member(), clip=1.0)
    assert not calls
    spec = member()
    optimizer = make_optimizer(spec, build(spec, 3, 8))
    settings = TrainSpec(epochs=1)
    assert why_not_captured(spec, settings, optimizer, 1) is None
    assert why_not_captured(spec, settings, optimizer, 2) == "a step has several micro-batches"
    assert why_not_captured(spec, settings.model_copy(update={"clip": 1.0}), optimizer, 1) == "gradients are clipped"
    own = torch.optim.RMSprop(build(spec, 3, 8).parameters())
    assert why_not_captured(spec, settings, own, 1) == "the optimizer is the team's own"


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_the_steps_before_a_capture_leave_nothing_behind(kind: str) -> None:
    """Neither in weights and statistics nor in the optimizer: the step after them is the first one."""
    spec = member(optimizer={"kind": kind})
    results = []
    for warm_ups in (0, 3):
        network = build(spec, 3, 8).train()
        optimizer = make_optimizer(spec, network)

        def step(network: Any = network, optimizer: Any = optimizer) -> None:
            network(torch.ones(4, 3, 8, 8)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

        with unchanged(network, optimizer):
            for _ in range(warm_ups):
                step()
        step()
        step()
        results.append([tensor.clone() for tensor in network.state_dict().values()])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("name", RECIPES)
def test_a_graph_is_the_eager_step_bit_for_bit_on_a_gpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests import factories
    from workers.runtime.training_job import use_deterministic_kernels

    device = torch.device("cuda")
    use_deterministic_kernels(device)
    monkeypatch.setattr(factories, "CPU", device)
    recipe, settings = RECIPES[name][0], SCHEDULED | RECIPES[name][1]
    notes: list[str] = []
    monkeypatch.setattr(TrainingCallback, "note", lambda self, text: notes.append(text))
    with patch.object(CapturedAugmentation, "_run", autospec=True, side_effect=CapturedAugmentation._run) as run:
        found = fitted(member(**recipe), **settings)
    expected = eagerly(monkeypatch, member(**recipe), **settings)
    assert digest(found) == digest(expected)
    assert found.captured
    assert not notes, "nothing stays outside"
    assert run.called == ("augment" in recipe)
    assert all(call.args[0].graph is not None for call in run.call_args_list)

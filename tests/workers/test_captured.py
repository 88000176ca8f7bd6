"""The step that a GPU captures is the same function on a CPU, over the same tensors: bit for bit the step as it is."""

from __future__ import annotations

import gc
import random
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch
from weakref import WeakMethod, ref

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.factories import Cut, data, digest, fitted, member, run_one
from workers.config.extensions import Augmentation, Labels
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
from workers.training.memory import is_out_of_memory
from workers.training.optimization import make_optimizer
from workers.training.task import TrainingResult, TrainingTask

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


@pytest.mark.parametrize("what", ["network", "loss"])
def test_custom_networks_and_losses_are_captured_if_they_say_that_they_can_be(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Python counter in `forward` would stay as it was in a graph, without a word."""
    (tmp_path / f"custom_{what}.py").write_text("class Counting: ...\n\n\nclass Plain:\n    can_be_captured = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    spec = member()
    optimizer = make_optimizer(spec, build(spec, 3, 8))
    for name, why in (("Counting", f"the custom {what} does not declare `can_be_captured = True`"), ("Plain", None)):
        changed = spec.model_copy(update={"arch" if what == "network" else "loss": f"custom_{what}:{name}"})
        assert why_not_captured(changed, TrainSpec(epochs=1), optimizer, 1) == why


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


def test_the_steps_before_a_capture_leave_draws_and_every_buffer_as_they_were() -> None:
    """Dropout would draw otherwise in the first step, and a training that is resumed captures anew."""

    class Counting(nn.Module):
        seen_too: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.linear, self.seen = nn.Linear(3, 2), torch.zeros(())
            self.register_buffer("seen_too", torch.zeros(()), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            self.seen_too += 1
            return nn.functional.dropout(self.linear(x))

    network = Counting()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    with unchanged(network, optimizer):
        network(torch.ones(4, 3)).sum().backward()
        assert not torch.equal(torch.get_rng_state(), before)
    assert torch.equal(torch.get_rng_state(), before)
    assert float(network.seen_too) == 0


@pytest.mark.parametrize("draw", [random.random, np.random.rand, lambda: torch.rand(())])
def test_a_network_that_draws_on_the_host_is_not_captured(draw: Any) -> None:
    """A graph would keep what it drew at first, without a word."""
    network = nn.Linear(3, 2)
    step = CapturedStep(WeakMethod(network.forward), network, torch.optim.SGD(network.parameters()), mixes=False)  # type: ignore[arg-type]
    with step._warming_up():
        network(torch.ones(4, 3))
    with pytest.raises(NotCapturedError, match="draws random numbers on the host"), step._warming_up():
        draw()


def test_adamw_is_told_of_a_capture_and_of_nothing_else() -> None:
    network = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    step = CapturedStep(WeakMethod(network.forward), network, optimizer, mixes=False)  # type: ignore[arg-type]
    with step._warming_up():
        assert not optimizer.param_groups[0]["capturable"], "it would warn of each step"
    assert optimizer.param_groups[0]["capturable"]
    failing = patch("workers.training.captured.capture", side_effect=NotCapturedError("no"))
    with patch("torch.cuda.CUDAGraph"), failing, pytest.raises(NotCapturedError):
        step._capture()
    assert not optimizer.param_groups[0]["capturable"]
    assert step.graph is None


def test_a_network_that_replaces_its_buffers_is_put_back_and_not_captured() -> None:
    """A graph would read the buffer that was there when it was made."""

    class Moving(nn.Module):
        mean: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 2)
            self.register_buffer("mean", torch.zeros(3))

        def forward(self, x: Tensor) -> Tensor:
            self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
            return self.linear(x - self.mean)

    network = Moving()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    step = CapturedStep(WeakMethod(network.forward), network, optimizer, mixes=False)  # type: ignore[arg-type]
    with pytest.raises(NotCapturedError, match="replaces its buffers"), step._warming_up():
        network(torch.ones(4, 3))
    assert torch.equal(network.mean, torch.zeros(3))


class MixesAtTimes(Augmentation):
    """Mixes every other batch, and says whom it mixed in only then."""

    def mix(self, x: Tensor, labels: Labels, generator: torch.Generator) -> tuple[Tensor, Labels]:
        if float(torch.rand((), generator=generator, device=generator.device)) < 0.5:
            return x, labels
        return (x + x.flip(0)) / 2, Labels(labels.first, labels.first.flip(0), 0.5, torch.arange(len(x)).flip(0))


@pytest.mark.parametrize("weighted", [False, True])
def test_batches_that_are_mixed_at_times_are_the_same(
    weighted: bool, calls: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = replace(data(), weights=torch.linspace(0.5, 1.5, 96)) if weighted else data()
    spec, settings = member(augment=(f"{__name__}:MixesAtTimes",)), TrainSpec(epochs=2, batch_size=16)
    torch.set_num_threads(1)
    found = run_one(lambda: build(spec, 3, 8), rows, spec, settings)
    assert calls
    monkeypatch.setattr(steps.Stepper, "why_not_captured", "it is compared with")
    eager = run_one(lambda: build(spec, 3, 8), rows, spec, settings)
    different = [not torch.allclose(a.float(), b.float(), atol=1e-6) for a, b in zip(weights(found), weights(eager), strict=True)]
    assert not any(different)


def weights(result: TrainingResult) -> list[Tensor]:
    return list(result.network.state_dict().values())


def test_nothing_of_a_training_stays_once_nobody_has_it(calls: list[float]) -> None:
    """The next training of the same process would find the memory of a GPU taken."""
    spec, settings = member(), TrainSpec(epochs=1, batch_size=16)
    gc.disable()
    try:
        task = TrainingTask(data(), spec, settings, tuple(spec.members), torch.device("cpu"))
        stepper = steps.Stepper(build(spec, 3, 8).train(), task, 16)
        stepper.take(0, 0, stepper.order(0))
        assert calls
        gone = ref(stepper.network)
        del stepper
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), True),
        (RuntimeError("the tokenizer ran out of memory slots"), False),
        (RuntimeError("operation not permitted when stream is capturing"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_too_little_memory_is_told_from_other_errors_also_behind_one_that_follows_it(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) == expected
    other = RuntimeError("the capture was not ended in order")
    other.__context__ = error
    assert is_out_of_memory(other) == expected
    error.__cause__ = error
    assert is_out_of_memory(error) == expected


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Train on the GPU; gives the notes of trainings."""
    from tests import factories
    from workers.runtime.training_job import use_deterministic_kernels

    device, notes = torch.device("cuda"), list[str]()
    use_deterministic_kernels(device)
    monkeypatch.setattr(factories, "CPU", device)
    monkeypatch.setattr(TrainingCallback, "note", lambda self, text: notes.append(text))
    return notes


def on_a_gpu(test: Any) -> Any:
    """Mark a test that needs a GPU. What a machine warns of is no failure of the test."""
    is_skipped = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
    return pytest.mark.gpu(pytest.mark.filterwarnings("default")(is_skipped(test)))


@on_a_gpu
@pytest.mark.parametrize("name", RECIPES)
def test_a_graph_is_the_eager_step_bit_for_bit_on_a_gpu(name: str, gpu: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, settings = RECIPES[name][0], SCHEDULED | RECIPES[name][1]
    with patch.object(CapturedAugmentation, "_run", autospec=True, side_effect=CapturedAugmentation._run) as run:
        found = fitted(member(**recipe), **settings)
    expected = eagerly(monkeypatch, member(**recipe), **settings)
    assert digest(found) == digest(expected)
    assert found.captured
    assert not gpu, "nothing stays outside"
    assert run.called
    assert all(call.args[0].graph is not None for call in run.call_args_list)


def dropping() -> Network:
    torch.manual_seed(0)
    return Network(nn.Sequential(nn.Flatten(), nn.Linear(192, 32), nn.ReLU(), nn.Dropout(0.5)), nn.Linear(32, 3))


@on_a_gpu
def test_dropout_draws_the_same_on_a_gpu_also_where_the_training_is_resumed(
    gpu: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, settings = data(), TrainSpec(epochs=9, batch_size=16)
    undisturbed = run_one(dropping, rows, member(), settings)
    checkpoints = Checkpoints(tmp_path, "me")
    with pytest.raises(TrainingStopped):
        run_one(dropping, rows, member(), settings, checkpoints, Cut(20))
    resumed = run_one(dropping, rows, member(), settings, checkpoints)
    assert undisturbed.captured
    assert not gpu
    assert digest(resumed) == digest(undisturbed)
    monkeypatch.setattr(steps.Stepper, "why_not_captured", "it is compared with")
    assert digest(run_one(dropping, rows, member(), settings)) == digest(undisturbed)


class Looking(nn.Module):
    """Looks at a number on its way, which a capture does not allow."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        return flat if float(flat.mean()) > -1e9 else -flat


@on_a_gpu
def test_after_a_capture_that_failed_the_training_goes_on(gpu: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def make() -> Network:
        torch.manual_seed(0)
        return Network(nn.Sequential(Looking(), nn.Linear(192, 32), nn.ReLU(), nn.Dropout(0.5)), nn.Linear(32, 3))

    settings, spec = TrainSpec(epochs=2, batch_size=16), member(augment=(f"{__name__}:Negative",))
    found = run_one(make, data(), spec, settings)
    assert not found.captured
    assert any("kernel by kernel" in note for note in gpu)
    monkeypatch.setattr(steps.Stepper, "why_not_captured", "it is compared with")
    assert digest(run_one(make, data(), spec, settings)) == digest(found)

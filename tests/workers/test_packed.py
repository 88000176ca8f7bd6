"""Members trained at once, as stacked networks: each is what it would be alone, up to rounding."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.factories import Cut, data, digest, member, run_one, run_training
from workers.config.specs import MemberSpec, TrainSpec
from workers.diagnostics.callback import TrainingCallback
from workers.errors import TrainingStopped
from workers.models.build import build
from workers.storage.checkpoints import Checkpoints
from workers.training import evaluation as evaluate
from workers.training import steps
from workers.training.augmentation import mix, to_float
from workers.training.packed import Pack
from workers.training.task import TrainingResult

SEEDS = (3, 1, 8)


def lane(seed: int, **keys: Any) -> MemberSpec:
    return member(**{"seed": seed, "packed": SEEDS, "augment": ("flip", "crop", "cutout"), **keys})


def name(seed: int) -> str:
    return f"m-{SEEDS.index(seed) + 1}"


def settings(epochs: int, precision: str) -> TrainSpec:
    return TrainSpec.model_validate({"epochs": epochs, "batch_size": 16, "precision": precision})


def pack(
    folder: Path,
    callback: TrainingCallback | None = None,
    epochs: int = 3,
    dtype: torch.dtype = torch.float32,
    precision: str = "float32",
    published: tuple[str, ...] = (),
    **keys: Any,
) -> dict[str, TrainingResult]:
    torch.set_num_threads(1)
    spec = lane(SEEDS[0], **keys)

    def make() -> Pack:
        return Pack([build(spec.model_copy(update={"seed": one}), 3, 8).to(dtype) for one in SEEDS])

    kept = Checkpoints(folder, "me")
    return run_training(make, data(), spec, settings(epochs, precision), kept, callback, published=published)


def packed(seed: int, folder: Path, **keys: Any) -> TrainingResult:
    return pack(folder, **keys)[name(seed)]


def alone(
    seed: int, folder: Path, epochs: int = 3, dtype: torch.dtype = torch.float32, precision: str = "float32", **keys: Any
) -> TrainingResult:
    spec = lane(seed, packed=(), **keys)
    return run_one(lambda: build(spec, 3, 8).to(dtype), data(), spec, settings(epochs, precision))


LOW = {"kind": "sgd", "lr": 0.002}
RECIPES: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": {"kind": "sgd", "lr": 0.02}},
    "adamw": {"optimizer": {"kind": "adamw", "lr": 1e-3}},
    "mixup": {"optimizer": {"kind": "sgd", "lr": 0.02}, "augment": ("mixup",), "label_smoothing": 0.1, "stem": "imagenet"},
}


def farthest(ours: TrainingResult, own: TrainingResult) -> float:
    weights = ours.network.state_dict()
    return max(float((weights[name].double() - value.double()).abs().max()) for name, value in own.network.state_dict().items())


@pytest.mark.parametrize("keys", RECIPES.values(), ids=RECIPES.keys())
def test_each_member_of_a_pack_is_what_it_would_be_alone(
    keys: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64, for three epochs: in float32 batch norm of so small batches makes much of a rounding after some steps."""

    def mix_in_float64(*given: Any) -> tuple[torch.Tensor, Any]:
        images, targets = mix(*given)
        return images.double(), targets

    monkeypatch.setattr(steps, "mix", mix_in_float64)
    monkeypatch.setattr(evaluate, "to_float", lambda images: to_float(images).double())
    for seed in SEEDS:
        ours, own = (one(seed, tmp_path / str(seed), dtype=torch.float64, **keys) for one in (packed, alone))
        assert farthest(ours, own) < 1e-5, seed
        for here, there in zip(ours.history, own.history, strict=True):
            for metric in ("train/loss", "train/accuracy", "fuse/loss", "fuse/accuracy"):
                assert here[metric] == pytest.approx(there[metric], abs=1e-5), (seed, metric)


@pytest.mark.parametrize("keys", [RECIPES["sgd"], RECIPES["adamw"]], ids=["sgd", "adamw"])
def test_so_it_is_in_float32_for_an_epoch(keys: dict[str, Any], tmp_path: Path) -> None:
    for seed in SEEDS:
        ours, own = (one(seed, tmp_path / str(seed), epochs=1, **keys) for one in (packed, alone))
        assert 0 < farthest(ours, own) < 1e-5, seed


def test_a_pack_goes_on_bit_for_bit_and_makes_all_members_at_once(tmp_path: Path) -> None:
    whole = pack(tmp_path / "whole")
    assert list(whole) == ["m-1", "m-2", "m-3"]
    with pytest.raises(TrainingStopped):
        pack(tmp_path / "cut", Cut(7))
    resumed = pack(tmp_path / "cut")
    assert [*map(digest, resumed.values())] == [*map(digest, whole.values())]
    assert len({*map(digest, whole.values())}) == 3
    first, second, _ = whole.values()
    assert [e["seconds"] for e in second.history] == [e["seconds"] for e in first.history], "each costs its share"
    assert [e["train/loss"] for e in second.history] != [e["train/loss"] for e in first.history]


def test_a_member_of_a_pack_whose_artifact_is_missing_is_made_from_the_last_checkpoint(tmp_path: Path) -> None:
    whole, steps = pack(tmp_path), Cut(10**9)
    again = pack(tmp_path, steps, published=("m-1", "m-3"))
    assert steps.left == 10**9, "nothing is trained"
    assert [*again] == ["m-2"]
    assert digest(again["m-2"]) == digest(whole["m-2"])


def test_a_pack_trains_in_bfloat16_too(tmp_path: Path) -> None:
    """As near to the same as bfloat16 lets it: an epoch's loss."""
    for stem in ("cifar", "imagenet"):
        ours, own = (one(8, tmp_path / stem, epochs=1, precision="bfloat16", stem=stem, optimizer=LOW) for one in (packed, alone))
        assert ours.precision == own.precision == "bfloat16"
        assert ours.history[0]["train/loss"] == pytest.approx(own.history[0]["train/loss"], rel=0.05)


def test_a_pack_halves_its_micro_batch_as_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, failed = Pack.forward, []

    def small(self: Pack, x: torch.Tensor) -> torch.Tensor:
        if x.shape[1] > 8:
            failed.append(x.shape)
            raise torch.OutOfMemoryError
        return real(self, x)

    monkeypatch.setattr(Pack, "forward", small)
    assert packed(3, tmp_path).micro_batch == 8
    assert failed

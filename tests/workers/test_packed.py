"""Members trained at once, as stacked networks: each is what it would be alone, up to rounding."""

from pathlib import Path

import pytest
import torch

from tests.workers.test_training import CPU, Cut, data, digest, member
from workers import evaluate, train, trainer
from workers.checkpoint import Checkpoints
from workers.errors import Stopped
from workers.models import build
from workers.packed import Pack
from workers.spec import MemberSpec, TrainSpec
from workers.watcher import Watcher

SEEDS = (3, 1, 8)


def lane(seed: int, **keys: object) -> MemberSpec:
    return member(**{"seed": seed, "packed": SEEDS, "augment": ("flip", "crop", "cutout"), **keys})


def settings(epochs: int, precision: str) -> TrainSpec:
    return TrainSpec.model_validate({"epochs": epochs, "batch_size": 16, "precision": precision})


def packed(
    seed: int,
    folder: Path,
    watcher: Watcher | None = None,
    epochs: int = 3,
    dtype: torch.dtype = torch.float32,
    precision: str = "float32",
    **keys: object,
) -> trainer.Fitted:
    torch.set_num_threads(1)
    spec = lane(seed, **keys)

    def make() -> Pack:
        return Pack([build(spec.model_copy(update={"seed": one}), 3, 8).to(dtype) for one in SEEDS])

    return train.fit(make, data(), spec, settings(epochs, precision), seed, CPU, Checkpoints(folder, "me"), watcher)


def alone(
    seed: int, folder: Path, epochs: int = 3, dtype: torch.dtype = torch.float32, precision: str = "float32", **keys: object
) -> trainer.Fitted:
    spec = lane(seed, packed=(), **keys)
    return train.fit(lambda: build(spec, 3, 8).to(dtype), data(), spec, settings(epochs, precision), seed, CPU)


LOW = {"kind": "sgd", "lr": 0.002}
RECIPES: dict[str, dict[str, object]] = {
    "sgd": {"optimizer": {"kind": "sgd", "lr": 0.02}},
    "adamw": {"optimizer": {"kind": "adamw", "lr": 1e-3}},
    "mixup": {"optimizer": {"kind": "sgd", "lr": 0.02}, "augment": ("mixup",), "label_smoothing": 0.1, "stem": "imagenet"},
}


def farthest(ours: trainer.Fitted, own: trainer.Fitted) -> float:
    weights = ours.network.state_dict()
    return max(float((weights[name].double() - value.double()).abs().max()) for name, value in own.network.state_dict().items())


@pytest.mark.parametrize("keys", RECIPES.values(), ids=RECIPES.keys())
def test_each_member_of_a_pack_is_what_it_would_be_alone(
    keys: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64, for three epochs: in float32 batch norm of so small batches makes much of a rounding after some steps."""
    real, floats = trainer.augment, evaluate.to_float
    monkeypatch.setattr(trainer, "augment", lambda *a: (lambda x, targets: (x.double(), targets))(*real(*a)))
    monkeypatch.setattr(evaluate, "to_float", lambda images: floats(images).double())
    for seed in SEEDS:
        ours, own = (one(seed, tmp_path / str(seed), dtype=torch.float64, **keys) for one in (packed, alone))
        assert farthest(ours, own) < 1e-5, seed
        for here, there in zip(ours.history, own.history, strict=True):
            for metric in ("train/loss", "train/accuracy", "fuse/loss", "fuse/accuracy"):
                assert here[metric] == pytest.approx(there[metric], abs=1e-5), (seed, metric)


@pytest.mark.parametrize("keys", [RECIPES["sgd"], RECIPES["adamw"]], ids=["sgd", "adamw"])
def test_so_it_is_in_float32_for_an_epoch(keys: dict[str, object], tmp_path: Path) -> None:
    for seed in SEEDS:
        ours, own = (one(seed, tmp_path / str(seed), epochs=1, **keys) for one in (packed, alone))
        assert 0 < farthest(ours, own) < 1e-5, seed


def test_a_pack_goes_on_bit_for_bit_and_its_other_members_train_nothing(tmp_path: Path) -> None:
    whole = packed(3, tmp_path / "whole")
    with pytest.raises(Stopped):
        packed(3, tmp_path / "cut", Cut(7))
    assert digest(packed(3, tmp_path / "cut")) == digest(whole)

    steps = Cut(10**9)
    second = packed(1, tmp_path / "whole", steps)
    assert steps.left == 10**9, "the first one trained it"
    assert digest(second) == digest(packed(1, tmp_path / "other"))
    assert digest(second) != digest(whole)
    assert [e["seconds"] for e in second.history] == [e["seconds"] for e in whole.history], "each costs its share"
    assert [e["train/loss"] for e in second.history] != [e["train/loss"] for e in whole.history]


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

"""Frozen backbones: features computed once for each image, whatever interrupts, and a head that becomes the network's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from orchestrator.config.loader import load_team
from tests.factories import CPU, Cut, member, sweep_inline
from workers.config.specs import DataSpec, MemberSpec
from workers.data.packing import pack_data
from workers.data.store import Store
from workers.diagnostics.callback import TrainingCallback
from workers.errors import TrainingStopped, UserInputError
from workers.models.build import build
from workers.models.frozen import HeadNetwork
from workers.models.restore import restore
from workers.storage.artifacts import MemberArtifact
from workers.training import backbone
from workers.training.augmentation import to_float
from workers.training.backbone import FrozenBackbone

TEAM = """\
version: 1
name: tiny
data: {dataset: digits, folds: 2}
train: {epochs: 3, batch_size: 64}
defaults: {width: 4, weights: start.safetensors, freeze: backbone, optimizer: {kind: adamw, lr: 0.01}}
fusion: [vote, concat, stack]
members:
  - {name: a}
  - {name: b, seed: 5}
"""


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return pack_data(DataSpec(), tmp_path_factory.mktemp("digits"))


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batches that any backbone has computed."""
    counted: list[int] = []
    fastest = FrozenBackbone._fastest

    def counting(self: FrozenBackbone, size: int) -> Callable[[Tensor], Tensor]:
        compute = fastest(self, size)

        def call(x: Tensor) -> Tensor:
            counted.append(len(x))
            return compute(x)

        return call

    monkeypatch.setattr(FrozenBackbone, "_fastest", counting)
    return counted


def frozen(home: Path, spec: MemberSpec | None = None) -> FrozenBackbone:
    spec = spec or member(freeze="backbone")
    return FrozenBackbone(build(spec, 10, 8), spec, home, CPU, 1)


class FewRows(Store):
    """Some rows of a store."""

    def __init__(self, store: Store, rows: Any) -> None:
        super().__init__(store.folder)
        kept = {name: array[rows] for name, array in store.row_arrays.items()}
        vars(self).update(row_arrays=kept, images=store.images[rows], labels=store.labels[rows])


def batches(rows: int, views: int = 1) -> int:
    return -(-rows * views // backbone.BATCH)


def test_features_are_the_networks_own_and_each_is_computed_once(digits: Store, tmp_path: Path, passes: list[int]) -> None:
    few, more = FewRows(digits, np.arange(70)), FewRows(digits, np.arange(100))
    found = frozen(tmp_path).features(few, TrainingCallback())
    with torch.inference_mode():
        expected = build(member(), 10, 8).eval().features(to_float(torch.from_numpy(np.array(few.images))))
    assert found.shape == (70, 1, 32)
    assert torch.allclose(found[:, 0], expected, atol=1e-4 * float(expected.abs().max()))
    assert len(passes) == batches(70)
    again = frozen(tmp_path).features(more, TrainingCallback())
    assert torch.equal(again[:70], found)
    assert len(passes) == batches(70) + batches(30), "only what is new"
    other = frozen(tmp_path, member(seed=2, freeze="backbone")).features(few, TrainingCallback())
    assert not torch.allclose(other, found), "another network's are its own"


def test_a_network_that_onnx_cannot_hold_is_computed_by_torch(
    digits: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = FewRows(digits, np.arange(40))
    expected = frozen(tmp_path / "onnx").features(few, TrainingCallback())
    monkeypatch.setattr(backbone, "_onnx_features", Mock(side_effect=RuntimeError("it can't be traced")))
    found = frozen(tmp_path / "torch").features(few, TrainingCallback())
    assert torch.allclose(found, expected, atol=1e-4 * float(expected.abs().max()))
    assert not found.is_inference(), "a head can be trained on it"


def test_a_feature_depends_neither_on_its_batch_nor_on_its_place_in_it(digits: Store, tmp_path: Path) -> None:
    rows = np.arange(80)
    found = [
        frozen(tmp_path / str(number)).features(FewRows(digits, order), TrainingCallback())[np.argsort(order)]
        for number, order in enumerate([rows, rows[::-1].copy(), np.random.default_rng(0).permutation(rows)])
    ]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_what_is_computed_before_a_stop_or_a_damage_is_kept_bit_for_bit(
    digits: Store, tmp_path: Path, passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backbone, "SEGMENT_ROWS", 64)
    rows = FewRows(digits, np.arange(200))
    expected = frozen(tmp_path / "whole").features(rows, TrainingCallback())
    passes.clear()
    with pytest.raises(TrainingStopped, match="what is computed is kept"):
        frozen(tmp_path / "home").features(rows, Cut(5))
    assert len(passes) == 5
    assert torch.equal(frozen(tmp_path / "home").features(rows, TrainingCallback()), expected)
    assert len(passes) == 5 + batches(200 - 128), "two of the segments were whole"
    damaged = sorted((tmp_path / "home").rglob("*.safetensors"))[0]
    damaged.write_bytes(damaged.read_bytes()[:-3] + b"abc")
    passes.clear()
    assert torch.equal(frozen(tmp_path / "home").features(rows, TrainingCallback()), expected)
    assert 1 <= len(passes) <= 2


def test_views_are_the_image_and_augmented_ones_always_the_same(digits: Store, tmp_path: Path, passes: list[int]) -> None:
    spec = member(freeze="backbone", views=4, augment=("crop",))
    rows = FewRows(digits, np.arange(40))
    found = frozen(tmp_path / "a", spec).features(rows, TrainingCallback())
    assert found.shape == (40, 4, 32)
    assert len(passes) == batches(40, 4)
    assert torch.equal(frozen(tmp_path / "b", spec).features(rows, TrainingCallback()), found)
    plain = frozen(tmp_path / "c").features(rows, TrainingCallback())
    assert torch.equal(found[:, :1], plain)
    assert not torch.allclose(found[:, 1], found[:, 2])


@pytest.mark.parametrize("bias", [True, False])
def test_the_trained_head_is_the_same_function_of_raw_features(bias: bool) -> None:
    network, features = build(member(), 10, 8), torch.rand(50, 32) * torch.linspace(0.1, 9, 32) + 5
    network.head = torch.nn.Linear(32, 10, bias=bias)
    head = HeadNetwork(network.head, features)
    assert torch.allclose(head(features), network.head(features), atol=1e-4), "it starts as the network's own"
    with torch.no_grad():
        head.head.linear.weight.normal_()  # type: ignore[operator, union-attr]
    assert torch.allclose(head.put_into(network).head(features), head(features), atol=1e-3)


def sweep(folder: Path, text: str, home: str = "home") -> Any:
    torch.manual_seed(0)
    save_file(build(member(seed=3), 7, 8).state_dict(), folder / "start.safetensors")
    (folder / "team.yaml").write_text(text)
    return sweep_inline(folder / "team.yaml", folder / home).summary


def test_a_sweep_computes_each_image_once_and_its_model_is_that_of_its_features(tmp_path: Path, passes: list[int]) -> None:
    summary = sweep(tmp_path, TEAM)
    assert (summary.state, summary.trained) == ("done", 6)
    assert set(summary.fusions) == {"vote", "concat", "stack"}
    store = Store(next((tmp_path / "home" / "data").iterdir()))
    distinct = len(np.unique(store.row_arrays["digests"], axis=0))
    assert len(passes) == batches(distinct), "one backbone, two members, two folds"
    artifacts = [artifact for artifact in MemberArtifact.all_in_home(tmp_path / "home") if artifact.manifest().fold is None]
    artifact = next(artifact for artifact in artifacts if artifact.manifest().member.name == "a")
    outputs = artifact.outputs()
    images = to_float(torch.from_numpy(np.array(store.images[np.isin(store.keys, outputs["keys"].numpy())])))
    with torch.inference_mode():
        network = restore(artifact, store.classes, 8)
        order = np.argsort(store.keys[np.isin(store.keys, outputs["keys"].numpy())])
        assert torch.allclose(network(images)[order], outputs["logits"][outputs["keys"].argsort()], atol=1e-3)
    started = build(member(seed=3), 7, 8).state_dict()
    assert all(torch.equal(value, started[name]) for name, value in network.state_dict().items() if name.startswith("trunk."))
    passes.clear()
    more = sweep(tmp_path, TEAM.replace("folds: 2", "folds: 5").replace("seed: 5", "seed: 6"))
    assert more.state == "done"
    assert passes == [], "neither more folds nor another head needs another pass"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("weights: start.safetensors, ", ""), "freeze: backbone needs weights that have learned something"),
        (("freeze: backbone", "views: 3"), "views are of a frozen backbone"),
        (
            ("freeze: backbone", "freeze: backbone, augment: [mixup]"),
            "mixup mixes images, which a frozen backbone sees",
        ),
        (("freeze: backbone", "freeze: head"), "freeze"),
    ],
)
def test_what_a_frozen_backbone_cannot_be_is_told(change: tuple[str, str], expected: str, tmp_path: Path) -> None:
    (tmp_path / "team.yaml").write_text(TEAM.replace(*change))
    with pytest.raises(UserInputError, match=expected):
        load_team(tmp_path / "team.yaml")


def test_the_signature_counts_the_augmentations_of_a_frozen_backbone_only_if_it_sees_them(tmp_path: Path) -> None:
    spec = member(freeze="backbone", augment=("flip",))
    assert spec.fingerprint_fields() == replace_augment(spec, "crop").fingerprint_fields()
    several = member(freeze="backbone", augment=("flip",), views=2)
    assert several.fingerprint_fields() != replace_augment(several, "crop").fingerprint_fields()
    assert "freeze" not in member().fingerprint_fields()


def replace_augment(spec: MemberSpec, name: str) -> MemberSpec:
    return MemberSpec.model_validate({**dict(spec), "augment": (name,)})

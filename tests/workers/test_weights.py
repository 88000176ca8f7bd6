"""Rows of different weights: what the loss of each counts for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor
from torch.nn import functional as F

from orchestrator.execution.preflight import check_classes
from tests.factories import CPU, FakeStore, data, digest, job, member, run_one, team_of
from tests.inputs import flat, write_table
from tests.workers.test_inputs import manifest
from workers.config.extensions import Labels
from workers.config.specs import DataSpec, MemberSpec, StudentSpec, TrainSpec
from workers.data.packing import pack_data
from workers.data.splits import get_split
from workers.errors import UserInputError
from workers.models.build import build
from workers.runtime.training_job import balanced_weights, row_weights, training_data
from workers.training.distillation import distillation_loss
from workers.training.objective import Objective
from workers.training.steps import Stepper
from workers.training.task import TrainingTask

ALL = slice(None)


def batch(rows: int = 8, classes: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, classes, generator=generator), torch.randint(classes, (rows,), generator=generator)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_row_of_weight_two_counts_as_two_rows(smoothing: float) -> None:
    logits, labels = batch()
    counts = torch.tensor([1, 2, 0, 1, 3, 1, 2, 2])
    objective = Objective(member(label_smoothing=smoothing))
    weighted = objective(logits, Labels(labels, labels), ALL, None, counts / counts.float().mean())
    repeated = logits.repeat_interleave(counts, 0), labels.repeat_interleave(counts)
    assert float(weighted) == pytest.approx(float(objective(repeated[0], Labels(repeated[1], repeated[1]), ALL)), abs=1e-6)


def test_a_mixed_image_counts_for_as_much_of_each_label_as_the_image_that_it_is_from() -> None:
    logits, labels = batch()
    weights, other, share = torch.rand(8), torch.randperm(8), 0.3
    losses = F.cross_entropy(logits, labels, reduction="none"), F.cross_entropy(logits, labels[other], reduction="none")
    by_hand = (share * weights * losses[0] + (1 - share) * weights[other] * losses[1]).mean()
    mixed = Labels(labels, labels[other], share, other)
    assert float(Objective(member())(logits, mixed, ALL, None, weights)) == pytest.approx(float(by_hand), abs=1e-6)
    with pytest.raises(UserInputError, match="without saying which"):
        Objective(member())(logits, Labels(labels, labels[other], share), ALL, None, weights)


def test_a_student_counts_rows_alike_in_both_of_its_losses() -> None:
    logits, labels = batch()
    taught = batch()[0].flip(0).softmax(1)
    counts = torch.tensor([1, 2, 0, 1, 3, 1, 2, 2])
    student = StudentSpec.model_validate({"name": "student", "seed": 1, "soft": 0.5})
    weighted = Objective(student)(logits, Labels(labels, labels), ALL, taught, counts / counts.float().mean())
    more = labels.repeat_interleave(counts)
    repeated = Objective(student)(
        logits.repeat_interleave(counts, 0), Labels(more, more), ALL, taught.repeat_interleave(counts, 0)
    )
    assert float(weighted) == pytest.approx(float(repeated), abs=1e-5)
    assert float(distillation_loss(logits, taught, 2.0, torch.ones(8))) == pytest.approx(
        float(distillation_loss(logits, taught, 2.0)), abs=1e-6
    )


def test_a_loss_of_ones_own_is_weighed_row_by_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_losses.py").write_text(
        "from torch.nn.functional import cross_entropy as ours\n"
        "def greedy(z, y):\n    return z.max() if z.max() > 0 else z.min()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    logits, labels = batch()
    weights = torch.rand(8)
    own, plain = (Objective(member(loss=name)) for name in ("own_losses:ours", "cross_entropy"))
    given = logits, Labels(labels, labels), ALL, None, weights
    assert float(own(*given)) == pytest.approx(float(plain(*given)), abs=1e-6)
    with pytest.raises(UserInputError, match="own_losses:greedy: rows with weights need it row by row"):
        Objective(member(loss="own_losses:greedy"))(*given)


def fitted_to(labels: Tensor, weights: Tensor, recipe: MemberSpec) -> str:
    torch.set_num_threads(1)
    rows = replace(data(), labels=labels, weights=weights)
    return digest(run_one(lambda: build(recipe, 3, 8), rows, recipe, TrainSpec(epochs=2, batch_size=16)))


@pytest.mark.parametrize("augment", [(), ("flip", "mixup")])
def test_the_label_of_a_row_of_weight_zero_counts_for_nothing(augment: tuple[str, ...]) -> None:
    labels, recipe = data().labels, member(augment=augment)
    wrong = labels.clone()
    wrong[::3] = (wrong[::3] + 1) % 3
    weights = torch.ones(len(labels))
    assert fitted_to(labels, weights, recipe) != fitted_to(wrong, weights, recipe)
    weights[::3] = 0
    assert fitted_to(labels, weights, recipe) == fitted_to(wrong, weights, recipe)


def test_the_weights_of_a_manifest_reach_the_training(tmp_path: Path) -> None:
    root = flat(tmp_path / "images", 40)

    def with_weights(weight: str) -> DataSpec:
        lines = ["path,label,weight", *(f"{i:03d}.png,{'owl' if i % 2 else 'crow'},{weight.format(i % 4)}" for i in range(40))]
        return manifest(write_table(tmp_path / f"{weight}.csv", lines), root, folds=2)

    given = with_weights("{}.5")
    store = pack_data(given, tmp_path / "home")
    split = get_split(store, given, 0)
    assert any("weights count in training alone" in note for note in store.notes())
    rows = training_data(job("m"), store, split, torch.device("cpu"))
    assert rows.weights is not None
    assert float(rows.weights[rows.fit].mean()) == pytest.approx(1)
    ratio = np.array([int(name[:3]) % 4 + 0.5 for name in store.ids]) / rows.weights.numpy()
    assert np.allclose(ratio, ratio[0])
    assert pack_data(with_weights("7"), tmp_path / "home").weights is None
    for weight, why in (("-1", "the weight is not a number"), ("heavy", "the weight is not a number"), ("nan", "not a number")):
        with pytest.raises(UserInputError, match=why):
            pack_data(with_weights(weight), tmp_path / "home")
    lines = ["path,label,weight", *(f"{i:03d}.png,{'owl,0' if i % 2 else 'crow,1'}" for i in range(40))]
    with pytest.raises(UserInputError, match="every training image of class 'owl' has the weight 0"):
        pack_data(manifest(write_table(tmp_path / "none.csv", lines), root), tmp_path / "home")


def labelled(counts: dict[str, int]) -> FakeStore:
    labels = np.repeat(np.arange(len(counts)), list(counts.values()))
    rows = {"tested": np.zeros(len(labels), bool), "labels": labels, "classes": list(counts)}
    return type("Labelled", (FakeStore,), rows)(Path("/nowhere"))  # type: ignore[no-any-return]


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    store = labelled({"x": 30, "y": 10, "z": 5})
    rows = np.arange(3, 45)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=store.labels[rows])
    assert balanced_weights(store, rows).numpy() == pytest.approx(expected)
    weights = row_weights(store, rows, "balanced")
    assert weights is not None
    sums = [float(weights[rows][store.labels[rows] == c].sum()) for c in range(3)]
    assert sums == pytest.approx([14.0] * 3), "every class weighs the same"
    named = row_weights(store, rows, {"z": 5.0})
    assert named is not None
    assert float(named[44] / named[3]) == pytest.approx(5)
    assert float(named[rows].mean()) == pytest.approx(1)
    assert row_weights(store, rows, None) is None


def test_a_balanced_sampler_draws_classes_alike_and_the_same_when_resumed() -> None:
    rows = data(96)
    labels = (torch.arange(96) % 8 == 0).long()
    sampling = torch.where(labels == 0, 1.0, 7.0).double()
    task = TrainingTask(replace(rows, labels=labels, sampling=sampling), member(), TrainSpec(batch_size=16), (), CPU)
    stepper = Stepper(build(member(), 2, rows.images.shape[1]), task, 16)
    orders = [stepper.order(epoch) for epoch in range(30)]
    share = float(torch.cat([labels[order] for order in orders]).float().mean())
    assert share == pytest.approx(0.5, abs=0.04)
    assert torch.equal(stepper.order(7), orders[7])
    assert not torch.equal(orders[0], orders[1])
    plain = Stepper(build(member(), 2, rows.images.shape[1]), replace(task, data=replace(rows, labels=labels)), 16)
    assert sorted(plain.order(0).tolist()) == sorted(rows.fit.tolist())


@pytest.mark.parametrize(
    ("team", "says"),
    [
        ("members: [{name: a, class_weights: balanced, sampler: balanced}]", "class_weights and sampler both balance"),
        ("members: [{name: a, class_weights: {cat: 0}}]", "greater than 0"),
        ("members: [{name: a, class_weights: even}]", "class_weights"),
        ("defaults: {sampler: weighted}\nmembers: [{name: a}]", "sampler"),
    ],
)
def test_settings_that_make_no_sense_are_refused(team: str, says: str) -> None:
    with pytest.raises(UserInputError) as found:
        team_of(f"version: 2\nname: t\n{team}\n")
    assert says in str(found.value)


def test_a_class_that_the_data_lack_is_named() -> None:
    team = team_of("version: 2\nname: t\nmembers: [{name: a, class_weights: {catt: 2, dog: 1}}]\n")
    with pytest.raises(UserInputError, match="member a: class_weights: 'catt' is no class of the data; there are cat, dog"):
        check_classes(team, ["cat", "dog"])
    with pytest.raises(UserInputError, match="top5 is always 100 % of 5 classes"):
        check_classes(team_of("version: 2\nname: t\nmetric: top5\nmembers: [{name: a}]\n"), list("abcde"))

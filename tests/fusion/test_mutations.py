"""Changes of the code that broke no other fast test when they were tried: each test here fails under one of them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import onnx
import pytest
import torch

from fusion.export.fused_model import Combiner, FusedModel
from fusion.export.onnx_export import ModelCard, export_model
from fusion.export.quantization import quantize
from fusion.fitting.cross_validation import fit_heads
from fusion.methods.stack import Stack
from fusion.methods.vote import Vote
from fusion.metrics.conformal import fit_level, set_scores
from fusion.metrics.label_errors import doubt_labels
from fusion.metrics.paired import Sample, accuracy_gain
from fusion.metrics.scores import is_at_chance
from fusion.predictions import FusionInputs, TeamPredictions, TrainingFolders, load_predictions, softmax
from fusion.selection.compare import compare
from fusion.selection.costs import TrainingCost, increments
from fusion.selection.fitting import fit_all
from tests.factories import CLASSES, record, table
from workers.config.specs import MemberSpec
from workers.errors import ConclaveError
from workers.models.build import build
from workers.storage.artifacts import MemberArtifact


def test_few_rows_make_the_members_neither_surely_right_nor_the_labels_wrong() -> None:
    """Without the prior, twelve right answers drive the temperature to its bound, and two misses of forty are wrong labels."""
    labels = np.arange(12) % CLASSES
    assert doubt_labels(np.eye(CLASSES)[labels][None], labels).probabilities.max() < 0.99
    labels = np.arange(40) % CLASSES
    sure = 5 * np.eye(CLASSES)[labels][None]
    labels[:2] = (labels[:2] + 1) % CLASSES
    assert (doubt_labels(sure, labels).wrong < 0.5).all()


def test_gains_on_test_are_over_the_member_that_is_best_on_fuse() -> None:
    """The best member is the second one, so that the order of the members decides nothing."""
    fuse, test = (table(600, members=2, skill=(0.3, 1.5), seed=seed) for seed in (1, 2))
    rows = np.arange(10)
    team = TeamPredictions(("a", "b"), tuple("wxyz"), FusionInputs(fuse, None, rows, ()), test, rows, rows, rows)
    costs = {name: TrainingCost(100.0) for name in "ab"}
    compared = compare(team, fit_all(team, ("vote",)), costs)
    assert compared["b"].against_single.difference == 0
    a, b = softmax(test.logits)
    assert compared["a"].against_single == accuracy_gain(a, b, Sample.of(test))


def test_a_level_allows_for_the_new_row() -> None:
    """With ten rows, the level is the tenth score, because 0.9 of eleven rows rounds up to ten; 0.9 of ten rows is nine."""
    draw = np.random.default_rng(0)
    probabilities = softmax(draw.normal(size=(10, 4)))
    labels = draw.integers(0, 4, 10)
    scores = np.sort(set_scores(probabilities)[np.arange(10), labels])
    assert fit_level(probabilities, labels, 0.9) == pytest.approx(scores[9])


def test_the_best_of_many_candidates_has_to_be_better_than_chance_by_more() -> None:
    """120 right answers of 300, where guessing gives 100: enough for one candidate, and not for the best of 100."""
    labels = np.arange(300) % 3
    guesses = labels.copy()
    guesses[120:] = (guesses[120:] + 1) % 3
    probabilities = 0.34 * np.eye(3)[guesses] + 0.33 * (1 - np.eye(3)[guesses])
    assert not is_at_chance(probabilities, labels)
    assert is_at_chance(probabilities, labels, candidates=100)


def test_a_stack_is_cross_validated_on_the_folds_of_the_trainings() -> None:
    """They hold groups together and keep out-of-fold outputs apart; folds drawn anew would not."""
    out, folds = table(600, seed=1), np.random.default_rng(0).permutation(np.arange(600) % 3)
    given = FusionInputs(table(200), out, folds, (), (0, 1, 2))
    with patch("fusion.methods.stack.fit_heads", wraps=fit_heads) as fit:
        Stack().fit(given)
    parts = fit.call_args.args[2]
    assert [part.tolist() for part in parts] == [np.flatnonzero(folds == fold).tolist() for fold in range(3)]


def test_a_later_cycle_costs_what_it_adds_to_the_earlier_one() -> None:
    costs = {
        "a": TrainingCost(100.0, (40.0,), "x"),
        "b": TrainingCost(250.0, (90.0,), "x"),
        "c": TrainingCost(30.0, (10.0,)),
    }
    assert increments(("a", "b", "c"), costs) == [100, 150, 30]
    assert increments(("b", "a"), costs) == [250, 0]
    assert increments(("a", "b"), costs, 0) == [40, 50]


def exported(tmp_path: Path, images: np.ndarray) -> Path:
    spec = MemberSpec(name="m", seed=0, width=8)
    networks = [build(spec, 3, 16).eval() for _ in range(2)]
    model = FusedModel(networks, Combiner(Vote, {"weights": torch.full((2,), 0.5)}), 1.0).eval()
    with torch.inference_mode():
        expected = model(torch.from_numpy(images)).double().numpy()
    export_model(model, ModelCard([spec, spec], tuple("xyz"), {}), tmp_path / "m.onnx", images, expected)
    return tmp_path / "m.onnx"


def test_a_model_says_nothing_of_the_machine_that_exported_it(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    content = exported(tmp_path, images).read_bytes()
    assert str(Path(torch.__file__).parent).encode() not in content
    assert not any(node.metadata_props for node in onnx.load_from_string(content).graph.node)


def test_heads_stay_in_float32_in_an_int8_model(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (16, 16, 16, 3), dtype=np.uint8)
    source = exported(tmp_path, images)
    quantize(source, tmp_path / "m.int8.onnx", images)
    graph = onnx.load(str(tmp_path / "m.int8.onnx")).graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    heads = [name for name, tensor in stored.items() if "head.weight" in name]
    assert len(heads) == 2
    assert all(stored[name].data_type == onnx.TensorProto.FLOAT for name in heads)
    assert any(node.op_type == "DequantizeLinear" for node in graph.node), "the rest is in integers"


def test_members_of_different_data_are_not_fused(tmp_path: Path) -> None:
    for name, first in (("a", 0), ("b", 1)):
        outputs = {"keys": torch.arange(first, first + 8), "logits": torch.zeros(8, 2), "features": torch.zeros(8, 2)}
        MemberArtifact(tmp_path / name).publish({"w": torch.zeros(1)}, outputs, record())
    full = {name: tmp_path / name for name in "ab"}
    store = SimpleNamespace(classes=["x", "y"], labels=np.zeros(12, int), groups=None, keys=np.arange(12))
    split = SimpleNamespace(folds=np.zeros(4, int), fit=np.arange(8, 12), fuse=np.arange(4), test=np.arange(4, 8))
    with pytest.raises(ConclaveError, match="member b has no outputs for some rows that the others have"):
        load_predictions(TrainingFolders(full, {}), store, split)  # type: ignore[arg-type]

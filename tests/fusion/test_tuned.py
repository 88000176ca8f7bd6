"""concat_tuned: at an infinite penalty the logit vote, at a small one a last stage that was moved; exported as it was judged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from fusion import stages, tuned
from fusion.calibration import apply_temperature, logs, nll
from fusion.concat import Concat
from fusion.export import export
from fusion.fit import Fitted
from fusion.model import Networks, assemble
from fusion.outputs import Evidence, Gathered, Table
from fusion.stages import with_stages
from fusion.tuned import ConcatTuned
from fusion.voting import VoteLogits
from workers.evaluate import outputs
from workers.models import Network, build
from workers.spec import MemberSpec

CLASSES, SIZE, ROWS = 3, 16, 120
SPECS = [
    MemberSpec.model_validate({"name": name, "seed": seed, "width": 4, "arch": "resnet18"}) for seed, name in enumerate("ab")
]


def gathered() -> tuple[Gathered, list[Network], np.ndarray]:
    """Two untrained ResNets, whose last stage alone could tell the classes: brighter, darker, striped."""
    generator = np.random.default_rng(0)
    labels = np.arange(3 * ROWS) % CLASSES
    images = generator.integers(60, 200, (len(labels), SIZE, SIZE, 3))
    images[labels == 0] += 40
    images[labels == 1, ::2] -= 50
    images = images.clip(0, 255).astype(np.uint8)
    networks = [build(spec, CLASSES, SIZE).eval() for spec in SPECS]
    rows = {"fit": np.arange(ROWS), "fuse": np.arange(ROWS, 2 * ROWS), "test": np.arange(2 * ROWS, 3 * ROWS)}

    def table(part: str) -> Table:
        found = [outputs(n, torch.from_numpy(images), rows[part], torch.device("cpu")) for n in networks]
        logits = np.stack([logits.double().numpy() for logits, _ in found])
        return Table(logits, tuple(features.numpy() for _, features in found), labels[rows[part]])

    heads = tuple((n.head.weight.detach().double().numpy(), n.head.bias.detach().double().numpy()) for n in networks)
    evidence = Evidence(table("fuse"), None, np.zeros(0, int), heads)
    made = Gathered(("a", "b"), ("x", "y", "z"), evidence, table("test"), rows["fit"], rows["fuse"], rows["test"])
    return with_stages(made, networks, images), networks, images


@pytest.fixture(scope="module")
def made() -> tuple[Gathered, list[Network], np.ndarray]:
    return gathered()


def test_an_infinite_penalty_is_the_logit_vote(made: tuple[Gathered, list[Network], np.ndarray]) -> None:
    evidence, test = made[0].evidence, made[0].test
    ours = ConcatTuned(float("inf")).fit(evidence).predict_proba(test)
    start = Concat(float("inf")).fit(evidence).predict_proba(test)
    vote = VoteLogits().fit(evidence).predict_proba(test)
    assert np.allclose(ours, start, atol=1e-5)
    assert np.array_equal(ours.argmax(1), vote.argmax(1))


def test_a_large_penalty_stays_near_and_a_small_one_learns(
    made: tuple[Gathered, list[Network], np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuned, "EPOCHS", 40)
    evidence, test = made[0].evidence, made[0].test
    start = ConcatTuned(float("inf")).fit(evidence).predict_proba(test)
    near = ConcatTuned(1e4).fit(evidence)
    assert np.allclose(near.predict_proba(test), start, atol=0.02)
    free = ConcatTuned().fit(evidence)
    assert free.penalty_ <= 1
    assert nll(free.predict_proba(test), test.labels) < nll(start, test.labels) - 0.2
    before, after = (list(stage.parameters()) for stage in (evidence.stages[0], free.stages_[0]))
    assert not torch.equal(before[0], after[0]), "the stage has moved"
    still = stages.features(evidence.stages, test.stages)
    assert np.allclose(still, np.concatenate(test.features, axis=1), atol=1e-4), "and not the member's own"


def test_the_pull_is_the_gradient_of_the_penalty() -> None:
    one, start = torch.nn.Parameter(torch.randn(3, 4)), torch.randn(3, 4)
    one.sin().sum().backward()
    tuned._pull(one, start, 2 * 0.7)
    ours, one.grad = one.grad, None
    (one.sin().sum() + 0.7 * (one - start).square().sum()).backward()
    assert torch.allclose(ours, one.grad, atol=1e-6)


def test_labels_of_noise_leave_it_at_the_vote(made: tuple[Gathered, list[Network], np.ndarray]) -> None:
    evidence = made[0].evidence
    noise = np.random.default_rng(3).permutation(evidence.fuse.labels)
    table = Table(evidence.fuse.logits, evidence.fuse.features, noise, stages=evidence.fuse.stages)
    one = ConcatTuned().fit(Evidence(table, None, evidence.folds, evidence.heads, stages=evidence.stages))
    assert one.penalty_ >= 0.1
    start = ConcatTuned(float("inf")).fit(evidence).predict_proba(made[0].test)
    assert np.abs(one.predict_proba(made[0].test) - start).max() < 0.1


def test_many_classes_with_few_rows_each_can_be_held_out_from() -> None:
    """Twenty classes of three rows: a fifth of them is no row of each."""
    assert tuned._or_none(np.repeat(np.arange(20), 3)) is None
    assert tuned._or_none(np.repeat(np.arange(3), 20)) is not None


def test_what_is_exported_is_what_was_judged(made: tuple[Gathered, list[Network], np.ndarray], tmp_path: Path) -> None:
    one, networks, images = made
    method = ConcatTuned(0.01).fit(one.evidence)
    fitted = Fitted("concat_tuned", method, 1.3, np.zeros((ROWS, CLASSES)))
    shown = images[one.test_rows]
    model = assemble(fitted, Networks(networks))
    expected = apply_temperature(method.predict_proba(one.test), 1.3)
    assert np.allclose(expected.sum(1), 1)
    assert np.allclose(logs(fitted.predict_proba(one.test)), logs(expected))
    export(model, SPECS, one.classes, {}, tmp_path / "fused.onnx", shown, expected)
    found = onnxruntime.InferenceSession(tmp_path / "fused.onnx").run(None, {"images": shown})[0]
    assert np.allclose(found, expected, atol=1e-4)


def test_other_networks_have_no_last_stage_to_move() -> None:
    network = build(SPECS[0].model_copy(update={"arch": "mobilenet_v3_small", "width": 64}), CLASSES, 32)
    assert stages.tail(network) is None

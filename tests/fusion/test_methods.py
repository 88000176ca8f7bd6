"""Each fusion against an independent oracle or a hand-made case with a known answer. All in float64."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.ensemble import VotingClassifier
from sklearn.metrics import brier_score_loss, log_loss

from fusion.methods.cascade import Cascade
from fusion.methods.concat import Concat, averaging_head
from fusion.methods.stack import Stack
from fusion.methods.stack_bag import StackBag
from fusion.methods.vote import Vote
from fusion.methods.vote_logits import VoteLogits
from fusion.methods.weighted import Weighted, greedy, optimal
from fusion.metrics import scores as score
from fusion.metrics.calibration import apply_temperature, fit_temperature, log_probabilities, nll
from fusion.metrics.paired import Sample, accuracy_gain
from fusion.predictions import FusionInputs, Predictions, TeamPredictions, softmax, weighted_mean
from fusion.selection.fitting import fit_all, fit_fusion
from tests.factories import CLASSES, table


def with_features(one: Predictions, seed: int = 0) -> tuple[Predictions, tuple[tuple[np.ndarray, np.ndarray], ...]]:
    """Features of different sizes whose heads give the table's logits."""
    generator = np.random.default_rng(seed)
    heads, features = [], []
    for member, logits in enumerate(one.logits):
        width = CLASSES + 2 + member
        weight = np.random.default_rng(member).normal(size=(CLASSES, width))
        bias = np.random.default_rng(member + 9).normal(size=CLASSES)
        free = generator.normal(size=(len(logits), width))
        features.append(free + (logits - bias - free @ weight.T) @ np.linalg.pinv(weight).T)
        heads.append((weight, bias))
    return Predictions(one.logits, tuple(features), one.labels), tuple(heads)


def inputs(n: int = 200, oof: int = 600, seed: int = 0, **keys: object) -> FusionInputs:
    fuse, heads = with_features(table(n, seed=seed, **keys))  # type: ignore[arg-type]
    out = table(oof, seed=seed + 1, **keys) if oof else None  # type: ignore[arg-type]
    folds = np.random.default_rng(seed).permutation(np.arange(oof) % 5)
    return FusionInputs(fuse, out, folds, heads, (0, 1, 2) if oof else ())


class Given(ClassifierMixin, BaseEstimator):
    """A scikit-learn classifier that gives the probabilities of a fixed table: x holds row numbers."""

    def __init__(self, probabilities: object = None) -> None:
        self.probabilities = probabilities

    def fit(self, x: object, y: np.ndarray) -> "Given":
        self.classes_ = np.unique(y)
        return self

    def predict_proba(self, x: np.ndarray) -> np.ndarray:
        return np.asarray(self.probabilities)[np.asarray(x)[:, 0].astype(int)]

    def predict(self, x: np.ndarray) -> np.ndarray:
        return self.classes_[self.predict_proba(x).argmax(1)]


def test_vote_is_sklearns_soft_voting() -> None:
    given = inputs()
    rows = np.arange(200)[:, None]
    members = [(str(i), Given(softmax(logits))) for i, logits in enumerate(given.fuse.logits)]
    oracle = VotingClassifier(members, voting="soft").fit(rows, given.fuse.labels).predict_proba(rows)
    assert np.abs(Vote().fit(given).predict_proba(given.fuse) - oracle).max() < 1e-12


@pytest.mark.parametrize("seed", range(5))
def test_weighted_is_never_worse_than_vote_on_fuse(seed: int) -> None:
    given = inputs(n=60, seed=seed)
    ours, vote = (nll(m.fit(given).predict_proba(given.fuse), given.fuse.labels) for m in (Weighted(), Vote()))
    assert ours <= vote + 1e-12


def test_optimal_weights_are_those_of_a_general_solver() -> None:
    given = inputs()
    probabilities, labels = softmax(given.fuse.logits), given.fuse.labels
    oracle = minimize(
        lambda w: nll(weighted_mean(probabilities, w), labels),
        np.full(3, 1 / 3),
        bounds=[(0, 1)] * 3,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
        method="SLSQP",
        options={"ftol": 1e-14},
    )
    assert (
        nll(weighted_mean(probabilities, optimal(probabilities[:, np.arange(len(labels)), labels])), labels) <= oracle.fun + 1e-7
    )


def test_a_useless_member_gets_no_weight() -> None:
    given = inputs(n=2000, skill=(2.0, 1.8, 0.0))
    assert Weighted().fit(given).weights_[2] < 0.02


@pytest.mark.parametrize("seed", range(4))
def test_greedy_is_that_of_a_search_by_hand(seed: int) -> None:
    """Each round all members are tried; the best of all rounds counts, which is not the last one."""
    one = table(60, members=4, skill=(1.5, 1.0, 0.7, 0.1), seed=seed)
    likelihood = softmax(one.logits)[:, np.arange(60), one.labels]
    picked: list[int] = []
    rounds = []
    for _ in range(40):
        tried = [-np.log(likelihood[[*picked, m]].mean(0)).mean() for m in range(4)]
        picked.append(int(np.argmin(tried)))
        rounds.append((min(tried), len(picked)))
    best = picked[: min(rounds)[1]]
    assert np.allclose(greedy(likelihood), np.bincount(best, minlength=4) / len(best))


def test_uniform_weights_stay_where_nothing_beats_them() -> None:
    given = inputs(n=60, skill=(1.0, 1.0, 1.0), seed=2)
    same = replace(given, fuse=Predictions(np.stack([given.fuse.logits[0]] * 3), (), given.fuse.labels))
    fitted = Weighted().fit(same)
    assert (fitted.chosen_, fitted.weights_.tolist()) == ("uniform", [1 / 3] * 3)


def test_two_rows_are_enough_to_fit_on() -> None:
    """As 25 images leave: nested cross-validation then fits on a single row."""
    given = inputs(n=2, oof=0)
    for name in ("weighted", "concat", "stack"):
        fitted = fit_all(gathered(given, table(10)), (name,))[name]
        assert np.isfinite(fitted.nested).all()


def test_greedy_uses_the_best_of_its_selections_and_not_the_last() -> None:
    """Two thirds and one third are best. Of 3 picks that can be had, of 40 not."""
    assert greedy(np.array([[0.9, 0.9, 1e-6], [1e-6, 1e-6, 0.9]])) == pytest.approx([2 / 3, 1 / 3], abs=1e-4)


def test_greedy_keeps_to_a_member_that_is_in_on_ties() -> None:
    one = table(100)
    same = np.stack([softmax(one.logits[0])[np.arange(100), one.labels]] * 3)
    assert greedy(same).tolist() == [1, 0, 0]


def test_concat_starts_as_the_mean_of_logits() -> None:
    given = inputs()
    start = averaging_head(given)
    logits = np.concatenate(given.fuse.features, axis=1) @ start.coef.T + start.intercept
    assert np.abs(logits - given.fuse.logits.mean(0)).max() < 1e-6


@pytest.mark.parametrize("penalty", [float("inf"), 1e9])
def test_concat_with_a_large_penalty_is_the_calibrated_logit_vote(penalty: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fusion.methods.concat.PENALTIES", (penalty,))
    given = inputs()
    mean = given.fuse.logits.mean(0)
    expected = softmax(mean / fit_temperature(mean, given.fuse.labels))
    assert np.abs(Concat().fit(given).predict_proba(given.fuse) - expected).max() < 1e-6


def test_concat_of_differing_recipes_is_no_worse_than_the_vote_of_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """One member is timid, the strongest of them: its logits say little unless its temperature is heard."""
    made = table(2000, skill=(2.5, 0.5, 0.5))
    timid = Predictions(made.logits * np.array([0.15, 1, 1])[:, None, None], (), made.labels)
    fuse, heads = with_features(timid)
    given = FusionInputs(fuse, None, np.zeros(0, int), heads, alike=False)
    monkeypatch.setattr("fusion.methods.concat.PENALTIES", (np.inf,))
    hearing, ours = VoteLogits().fit(given).predict_proba(fuse), Concat().fit(given).predict_proba(fuse)
    assert np.abs(ours - apply_temperature(hearing, fit_temperature(log_probabilities(hearing), fuse.labels))).max() < 1e-3


def test_stack_beats_vote_where_a_member_confuses_two_classes() -> None:
    """Member 2 swaps classes 0 and 1 always: a vote is misled, a stack unswaps."""
    fuse, out, test = (table(n, skill=(0.6, 0.6, 3.0), seed=s) for n, s in ((400, 1), (2000, 2), (2000, 3)))
    swapped = [
        Predictions(np.stack([t.logits[0], t.logits[1], t.logits[2][:, [1, 0, 2, 3]]]), (), t.labels) for t in (fuse, out, test)
    ]
    given = FusionInputs(swapped[0], swapped[1], np.arange(2000) % 5, (), (0, 1, 2))
    stack, vote = (m.fit(given).predict_proba(swapped[2]) for m in (Stack(), Vote()))
    assert (stack.argmax(1) == test.labels).mean() > (vote.argmax(1) == test.labels).mean() + 0.2


def test_a_class_missing_from_the_rows_to_fit_keeps_its_column() -> None:
    given = inputs(oof=0)
    kept = np.flatnonzero(given.fuse.labels != 2)
    stack = Stack().fit(given.with_fuse(kept)).predict_proba(given.fuse)
    assert stack.shape == (200, CLASSES)
    assert np.isfinite(stack).all()


def test_blending_warns_of_few_rows() -> None:
    told = "stack was fitted on fewer than 5,000 rows: its gain may not carry over."
    assert Stack().fit(inputs(oof=0)).doubts("stack") == [told]
    assert Stack().fit(inputs(oof=5000)).doubts("stack") == []


def geometric(one: Predictions) -> np.ndarray:
    """The mean of the members' calibrated log-probabilities, calibrated once more."""
    calibrated = [x / fit_temperature(x, one.labels) for x in one.logits]
    mean = np.mean([log_probabilities(softmax(x)) for x in calibrated], axis=0)
    return softmax(mean / fit_temperature(mean, one.labels))


@pytest.mark.parametrize("rows", [100, 2000])
@pytest.mark.parametrize("penalty", [1e9, np.inf])
def test_stack_with_a_large_penalty_is_uniform_averaging(rows: int, penalty: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fusion.methods.stack.WEAKER_PENALTIES", (np.inf, penalty))
    given = inputs(n=rows, oof=0)
    assert np.abs(Stack().fit(given).predict_proba(given.fuse) - geometric(given.fuse)).max() < 1e-5


def test_stack_takes_one_weight_a_member_below_ten_rows_a_parameter() -> None:
    """Three members and four classes: a matrix has 52 parameters."""
    few, many = (Stack().fit(inputs(n=n, oof=0)) for n in (519, 520))
    assert (few.form_, many.form_) == ("one weight per member", "a full matrix")
    blocks = few.coef_.reshape(CLASSES, 3, CLASSES)
    weights = np.diagonal(blocks, axis1=0, axis2=2)
    assert np.abs(blocks - np.einsum("mc,cd->cmd", weights, np.eye(CLASSES))).max() < 1e-12
    assert np.abs(weights - weights[:, :1]).max() < 1e-12


def test_a_bag_speaks_as_the_mean_of_its_fold_fits() -> None:
    given = inputs(n=600, oof=0)
    noisy = given.fuse.logits[:, None] + np.random.default_rng(5).normal(size=(3, 4, 600, CLASSES))
    bagged_ = replace(given, fuse=replace(given.fuse, folds=noisy))
    mean = Predictions(np.log(softmax(noisy).mean(1)), (), given.fuse.labels)
    bag, stack = StackBag().fit(bagged_), Stack().fit(replace(given, fuse=mean))
    assert np.abs(bag.predict_proba(bagged_.fuse) - stack.predict_proba(mean)).max() < 1e-9


def test_a_cascade_answers_as_the_vote_with_fewer_members() -> None:
    given, test = inputs(n=3000, skill=(1.0, 2.0, 1.0)), table(3000, skill=(1.0, 2.0, 1.0), seed=9)
    cascade, vote = Cascade().fit(given), Vote().fit(given)
    assert cascade.order_[0] == 1, "the best member is asked first"
    right = [(m.predict_proba(test).argmax(1) == test.labels).mean() for m in (cascade, vote)]
    assert right[0] >= right[1] - 0.005
    assert 1 < cascade.count_networks(test).mean() < 2


def test_a_cascade_does_not_stop_where_that_only_keeps_the_accuracy() -> None:
    """All members give the same answer, each with a confidence that says little: the vote has a better NLL alone."""
    draw, rows = np.random.default_rng(0), 2000
    labels = draw.integers(0, CLASSES, rows)
    shared = 2.0 * np.eye(CLASSES)[labels] + draw.normal(size=(rows, CLASSES))
    logits = shared * np.exp(draw.normal(0, 1.5, (3, rows, 1)))
    one = Predictions(logits, (), labels)
    fitted = Cascade().fit(FusionInputs(one, None, np.zeros(0, int), ()))
    vote = nll(fitted._stages(one)[-1], labels)
    assert nll(fitted._stages(one)[0], labels) > 1.02 * vote
    assert nll(fitted.predict_proba(one), labels) <= 1.01 * vote


def test_a_cascade_that_is_never_sure_asks_everybody() -> None:
    """Stages by hand: a threshold above one is the vote of all, calibrated; zero is the first member alone."""
    given = inputs(n=500)
    cascade = Cascade().fit(given)
    cascade.threshold_ = 2.0
    everybody = weighted_mean(softmax(given.fuse.logits), np.full(3, 1 / 3))
    expected = apply_temperature(everybody, fit_temperature(log_probabilities(everybody), given.fuse.labels))
    assert np.abs(cascade.predict_proba(given.fuse) - expected).max() < 1e-9
    cascade.threshold_ = 0.0
    assert cascade.count_networks(given.fuse).tolist() == [1] * 500


def test_a_stack_that_must_overfit_to_its_oof_outputs_is_flagged() -> None:
    """Member 0's fold fits swap two classes, which a stack unswaps with a large gain; its full fit does not swap them."""
    honest = inputs(n=1000, oof=2000, skill=(0.8, 0.4, 0.4))
    assert honest.oof is not None
    assert Stack().fit(honest).warnings("stack", honest) == []
    swapped = honest.oof.logits.copy()
    swapped[0] = swapped[0][:, [1, 0, 2, 3]]
    misled = replace(honest, oof=Predictions(swapped, (), honest.oof.labels))
    (flagged,) = Stack().fit(misled).warnings("stack", misled)
    assert "does not carry over" in flagged


def test_a_stack_whose_full_fits_are_too_sure_is_not_flagged() -> None:
    """Its last stage makes up for that, as that of uniform averaging does: the order of the classes is what it gains by."""
    members, draw = 5, np.random.default_rng(4)

    def made(n: int, common: float) -> Predictions:
        labels = np.arange(n) % CLASSES
        noise = np.sqrt(1 - common) * draw.normal(size=(members, n, CLASSES)) + np.sqrt(common) * draw.normal(size=(n, CLASSES))
        logits = 1.6 * np.eye(CLASSES)[labels] + noise
        logits[4] = logits[4][:, [1, 0, 2, 3]]
        return Predictions(logits, (), labels)

    given = FusionInputs(made(2000, 0.5), made(4000, 0.0), np.arange(4000) % 5, (), tuple(range(members)))
    stack = Stack().fit(given)
    assert stack.gained_ > 0.02
    assert stack.warnings("stack", given) == []


def test_a_bagged_stack_is_guarded_too() -> None:
    honest = inputs(n=1000, oof=2000, skill=(0.8, 0.4, 0.4))
    assert honest.oof is not None
    swapped = honest.oof.logits.copy()
    swapped[0] = swapped[0][:, [1, 0, 2, 3]]
    folds = np.repeat(honest.fuse.logits[:, None], 2, 1)
    misled = replace(honest, oof=Predictions(swapped, (), honest.oof.labels), fuse=replace(honest.fuse, folds=folds))
    (flagged,) = StackBag().fit(misled).warnings("it", misled)
    assert flagged.startswith("it gains")


def test_vote_of_logits_is_their_mean_where_recipes_are_alike() -> None:
    given = inputs()
    assert np.abs(VoteLogits().fit(given).predict_proba(given.fuse) - softmax(given.fuse.logits.mean(0))).max() < 1e-12


def test_vote_of_logits_hears_a_timid_member() -> None:
    """The best member's logits are a tenth of their size, as label smoothing does in the extreme: its order is the same."""
    one = table(4000, skill=(2.5, 0.5, 0.5))
    timid = Predictions(one.logits * np.array([0.1, 1, 1])[:, None, None], (), one.labels)
    alike = FusionInputs(timid, None, np.array([]), ())
    deaf, hearing = (VoteLogits().fit(e).predict_proba(timid) for e in (alike, replace(alike, alike=False)))
    right = [(p.argmax(1) == one.labels).mean() for p in (deaf, hearing)]
    assert right[1] > right[0] + 0.1


def test_temperature_undoes_a_known_sharpening() -> None:
    one = table(20000)
    base = fit_temperature(one.logits[0], one.labels)
    assert fit_temperature(one.logits[0] * 3, one.labels) == pytest.approx(3 * base, rel=1e-2)


def test_a_few_rows_that_are_all_right_do_not_make_a_temperature_of_nearly_zero() -> None:
    """Without the prior it is 1/20, and the first wrong row costs 40 nats."""
    assert fit_temperature(np.tile([2.0, 0.0, 0.0], (5, 1)), np.zeros(5, int)) > 0.5


def test_temperature_lowers_nll_and_keeps_the_order() -> None:
    one = table(500)
    probabilities = softmax(one.logits[0] * 4)
    calibrated = apply_temperature(probabilities, fit_temperature(log_probabilities(probabilities), one.labels))
    assert nll(calibrated, one.labels) < nll(probabilities, one.labels)
    assert (calibrated.argmax(1) == probabilities.argmax(1)).all()


def test_scores_are_sklearns() -> None:
    one = table(300)
    probabilities = softmax(one.logits[0])
    found = score.scores(probabilities, one.labels)
    assert found.nll == pytest.approx(log_loss(one.labels, probabilities))
    assert found.brier == pytest.approx(brier_score_loss(one.labels, probabilities, labels=range(CLASSES), scale_by_half=False))
    assert found.accuracy == (probabilities.argmax(1) == one.labels).mean()


def test_calibration_error_of_a_hand_made_case() -> None:
    probabilities = np.array([[0.9, 0.1]] * 10)
    labels = np.array([0] * 6 + [1] * 4)
    assert score.calibration_error(probabilities, labels) == pytest.approx(0.3)


def test_mcnemar_of_a_hand_made_case() -> None:
    right, wrong = np.array([[0.9, 0.1]]), np.array([[0.1, 0.9]])
    ours = np.repeat([right[0], right[0], wrong[0]], [90, 8, 2], axis=0)
    other = np.repeat([right[0], wrong[0], right[0]], [90, 8, 2], axis=0)
    gain, (low, high), p = accuracy_gain(ours, other, Sample(np.zeros(100, int)))
    assert gain == pytest.approx(0.06)
    assert low < 0.06 < high
    assert p == pytest.approx(2 * (1 + 10 + 45) / 2**10)


def gathered(given: FusionInputs, test: Predictions) -> TeamPredictions:
    rows = np.arange(1)
    return TeamPredictions(("a", "b", "c"), tuple("wxyz"), given, test, rows, rows, rows)


class Memory(Vote):
    """Knows the labels of the rows that it was fitted on, by heart."""

    def fit(self, given: FusionInputs) -> "Memory":
        self.seen = {row.tobytes(): label for row, label in zip(given.fuse.logits[0], given.fuse.labels, strict=True)}
        return self

    def predict_proba(self, one: Predictions) -> np.ndarray:
        flat = np.full(CLASSES, 1 / CLASSES)
        known = [self.seen.get(row.tobytes()) for row in one.logits[0]]
        return np.stack([flat if k is None else softmax(9 * np.eye(CLASSES)[k]) for k in known])


def test_nested_predictions_never_saw_their_row() -> None:
    given = inputs(n=400, oof=0)
    fitted = fit_fusion("memory", Memory, given)
    assert nll(fitted.predict_proba(given.fuse), given.fuse.labels) < 0.1
    assert np.allclose(fitted.nested, 1 / CLASSES)

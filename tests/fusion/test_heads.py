"""Linear heads that shrink towards a start, against general solvers and against each head fitted by itself."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from scipy.optimize import minimize

from fusion.fitting.cross_validation import PATIENCE, PENALTIES, fit_heads, shuffled_splits
from fusion.fitting.heads import HeadProblem, MatrixProblem, Start, WeightsProblem
from fusion.methods.concat import Concat, averaging_head
from fusion.methods.stack import meta_features
from fusion.metrics.calibration import fit_temperature, nll, temperatures
from fusion.predictions import softmax
from tests.factories import CLASSES, table
from tests.fusion.test_methods import inputs

NONE = np.zeros(0, dtype=np.int64)


@pytest.mark.parametrize("kind", [MatrixProblem, WeightsProblem])
@pytest.mark.parametrize("exact", [np.float32, np.float64])
def test_a_head_reaches_the_minimum_of_its_objective(kind: type[HeadProblem], exact: type) -> None:
    """Against a general solver without our gradient, on the coefficients themselves."""
    one, penalty, members = table(600, skill=(1.5, 0.3, 0.3)), 0.001, 3
    x, y = meta_features(one.logits, temperatures(one)), one.labels
    start = Start(np.tile(np.eye(CLASSES), members) / members, np.zeros(CLASSES))
    problem = kind(x.astype(exact), y, start, (np.arange(600), NONE))
    problem.solve(penalty)
    logits = x @ start.coef.T
    base = logits / fit_temperature(logits, y)
    if kind is MatrixProblem:
        z, shape = (x - x.mean(0)) / x.std(0), [CLASSES, members * CLASSES + 1]
    else:
        z, shape = x.reshape(600, members, CLASSES) / x.std(), [members]

    def objective(flat: np.ndarray) -> float:
        d = flat.reshape(shape)
        moved = z @ d[:, :-1].T + d[:, -1] if kind is MatrixProblem else np.einsum("m,nmc->nc", d, z)
        return nll(softmax(base + moved), y) + penalty * float((d**2).sum())

    oracle = minimize(objective, np.zeros(int(np.prod(shape))), method="BFGS", options={"maxiter": 40})
    moves = problem.moves
    if isinstance(problem, MatrixProblem):
        moves = np.column_stack([moves[:, :-1] @ problem.directions, moves[:, -1]])
    assert objective(moves.ravel()) <= oracle.fun + 3e-6
    coef, intercept = problem.head()
    found = nll(softmax(x @ coef.T + intercept), y)
    assert found < nll(softmax(base), y) - 1e-4, "it moved"


def test_a_head_bears_the_rounding_of_inputs_that_hardly_vary() -> None:
    """As those of a network that learned nothing: 0.01, give or take 2e-6, computed with an error of 1e-8."""
    given, generator = inputs(n=400, oof=0), np.random.default_rng(0)
    y = given.fuse.labels
    still = 0.01 + 2e-6 * generator.standard_normal((400, 64))
    x = np.concatenate([*given.fuse.features, still], axis=1).astype(np.float32)
    start, wide = averaging_head(given), x.shape[1] - still.shape[1]
    padded = Start(np.pad(start.coef, ((0, 0), (0, 64))), start.intercept)
    assert padded.coef.shape[1] == wide + 64
    problem = MatrixProblem(x, y, padded, (np.arange(400), NONE))
    problem.solve(0.001)
    coef, intercept = (part.astype(np.float32) for part in problem.head())
    rounded = x + np.float32(1e-8) * generator.standard_normal(x.shape).astype(np.float32)
    assert abs(softmax(rounded @ coef.T + intercept) - softmax(x @ coef.T + intercept)).max() < 5e-5


def test_a_penalty_that_is_weaker_moves_further_from_the_start() -> None:
    given = inputs(n=800, oof=0)
    x, y = np.concatenate(given.fuse.features, axis=1), given.fuse.labels
    problem = MatrixProblem(x, y, averaging_head(given), (np.arange(800), NONE))
    losses = []
    for penalty in (np.inf, 1.0, 0.01):
        problem.solve(penalty)
        coef, intercept = problem.head()
        losses.append(nll(softmax(x @ coef.T + intercept), y))
    assert losses[0] > losses[1] > losses[2]


def test_directions_along_which_inputs_hardly_differ_are_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with features of networks: 8 directions say nearly everything of 300 inputs."""
    monkeypatch.setattr("fusion.fitting.heads.MIN_DIRECTIONS", 8)
    draw = np.random.default_rng(0)
    y = draw.integers(0, CLASSES, 500)
    causes = np.eye(CLASSES)[y] @ draw.normal(size=(CLASSES, 8)) + draw.normal(size=(500, 8))
    x = (causes @ draw.normal(size=(8, 300)) + draw.normal(size=(500, 300)) * 0.01 + 3).astype(np.float32)
    start = Start(draw.normal(size=(CLASSES, 300)) / 300, draw.normal(size=CLASSES))
    fitted, held_out = shuffled_splits(500)[0]
    losses = []
    for members in (1, 75):
        problem = MatrixProblem(x, y, start, (fitted, held_out), members)
        problem.solve(0.1)
        losses.append(problem.losses().mean())
    assert len(problem.directions) > 250
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)
    coef, intercept = problem.head()
    logits = x[held_out].astype(float) @ coef.T + intercept
    assert nll(softmax(logits), y[held_out]) == pytest.approx(losses[1], abs=1e-5), "the head says the same"


@pytest.mark.parametrize("alike", [True, False])
def test_a_nested_concat_is_what_each_of_its_heads_comes_to_alone(alike: bool) -> None:
    """Against each penalty solved by itself: that of a part has the lowest NLL on its folds, each held out in turn."""
    given = replace(inputs(n=600, oof=0), alike=alike)
    x, y = np.concatenate(given.fuse.features, axis=1), given.fuse.labels
    rows = np.random.default_rng(3).permutation(600)
    folds = [np.sort(rows[first : first + 150]) for first in range(0, 600, 150)]

    def problem_of(fitted: np.ndarray, held_out: np.ndarray, penalty: float) -> HeadProblem:
        problem = MatrixProblem(x, y, averaging_head(given.with_fuse(fitted)), (fitted, held_out), 3)
        problem.solve(penalty)
        return problem

    found = Concat().fit_nested(given, folds)
    assert len(found) == 5
    tried = PENALTIES[: 2 + max(PENALTIES.index(one.penalty_) for one in found)]
    for one, left_out in zip(found, [None, *range(4)], strict=True):
        inner = [fold for number, fold in enumerate(folds) if number != left_out]
        part = np.sort(np.concatenate(inner))
        totals = [sum(problem_of(np.setdiff1d(part, fold), fold, p).losses().sum() for fold in inner) for p in tried]
        assert one.penalty_ == tried[int(np.argmin(totals))]
        coef, intercept = problem_of(part, NONE, one.penalty_).head()
        expected = nll(softmax(x @ coef.T + intercept), y)
        assert nll(one.predict_proba(given.fuse), y) == pytest.approx(expected, abs=2e-5)
    assert {one.penalty_ for one in found} - {np.inf}, "some of them moved from their start"


def test_no_penalty_is_tried_after_two_that_gained_nothing() -> None:
    given = inputs(n=300, oof=0)
    x, y = np.concatenate(given.fuse.features, axis=1), given.fuse.labels
    problem_of = partial(MatrixProblem, x, y, averaging_head(given))
    folds = [held_out for _, held_out in shuffled_splits(300)]
    best = fit_heads(problem_of, 300, folds, PENALTIES)[0]
    losses = list(best.nll.values())
    assert best.nll[best.penalty] == min(losses)
    assert len(losses) == losses.index(min(losses)) + 1 + PATIENCE < len(PENALTIES)

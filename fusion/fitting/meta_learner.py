"""The meta-learners of stacks: how heads on out-of-fold log-probabilities are fitted, and what all stacks have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from fusion.fitting.blocks import Splits
from fusion.fitting.cross_validation import PENALTIES, Folds, SeparateFolds, best_penalty, cross_validated, shuffled_splits
from fusion.fitting.joint_folds import JointFolds
from fusion.fitting.logistic import fit_logistic
from fusion.fitting.shrinkage import Head, MemberWeightsProblem, ShrinkageProblem, solve_head
from fusion.interface import FusionMethod, NetworkOutputs, Trainings
from fusion.metrics.calibration import TINY, calibrated_losses, log_probabilities, temperatures
from fusion.metrics.scores import bootstrap
from fusion.predictions import Floats, FusionInputs, Inputs, Labels, Predictions, log_softmax, softmax

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from torch import Tensor

FEW_ROWS = 5000
ROWS_A_PARAMETER = 10
MATERIAL_NATS = 0.005  # a smaller gain on OOF rows promised nothing
WEAKER = (*PENALTIES, 0.03, 0.01, 0.003)  # there are many more rows than parameters
SMALL_HESSIAN = 1e10  # multiplications for one


@dataclass(frozen=True)
class FittedHead:
    """A head on (n, M*C) log-probabilities, fitted to out-of-fold predictions, and how it was fitted.

    Attributes:
        coef: (C, M*C).
        intercept: (C,).
        penalty: The penalty.
        form: "matrix", or "weights" for one weight per member.
        rows: Number of rows that it was fitted on.
        losses: (n,) cross-validated NLL of each row.
        uniform: (n,) NLL of each row by the calibrated start.
    """

    coef: Floats
    intercept: Floats
    penalty: float
    form: str
    rows: int
    losses: Floats  # (n,) cross-validated NLL of each row, and beside it
    uniform: Floats  # (n,) that of the calibrated start


def fit_head(predictions: Predictions, folds: Labels | None, penalty: float | None = None) -> FittedHead:
    """Fit the meta-learner.

    Args:
        predictions: Predictions to learn from.
        folds: The fold of each row, which cross-validation reuses; None for folds of its own.
        penalty: The penalty; chosen by cross-validation where left out.
    """
    x, y = meta_features(predictions.logits, temperatures(predictions)), predictions.labels
    members, _, classes = predictions.logits.shape
    parameters = classes * (members * classes + 1)
    start = (np.tile(np.eye(classes), members) / members, np.zeros(classes))
    splits = _splits(folds) if folds is not None else shuffled_splits(len(y))
    form, kind, of_folds = _form(x, y, start, splits, len(y) >= ROWS_A_PARAMETER * parameters)
    losses = cross_validated(of_folds, WEAKER if penalty is None else (np.inf, penalty))
    chosen = best_penalty(losses) if penalty is None else penalty
    coef, intercept = solve_head(kind(x, y, start), chosen)
    return FittedHead(coef, intercept, chosen, form, len(y), losses[chosen], losses[np.inf])


def _form(x: Inputs, y: Labels, start: Head, splits: Splits, is_matrix: bool) -> tuple[str, type[ShrinkageProblem], Folds]:
    """Return the name of a form of heads, its problem, and the problems of its folds."""
    if is_matrix:
        return "matrix", ShrinkageProblem, JointFolds(x, y, [start] * len(splits), splits)
    return "weights", MemberWeightsProblem, SeparateFolds(MemberWeightsProblem, x, y, start, splits)


class LinearStack(FusionMethod):
    """What stacks have in common: a linear head on log-probabilities at the members' temperatures.

    Attributes after fit: `temperatures_` (M,), `coef_` (C, M*C), `intercept_` (C,), `few_rows_`, and `gained_`: nats per row over
    uniform averaging, on out-of-fold rows that the head was not fitted on.
    """

    stored_name = "Meta"
    pays_for: ClassVar[tuple[Trainings, ...]] = ("full", "folds")
    learns_from_folds = True

    temperatures_: Floats
    coef_: Floats
    intercept_: Floats
    few_rows_: bool
    gained_: float

    @classmethod
    def members_of(cls, inputs: FusionInputs) -> tuple[int, ...] | None:
        """Return the members with fold trainings; all where none has any, for it is blending then."""
        return inputs.with_oof or None

    def predict_proba(self, predictions: Predictions) -> Floats:
        """Return probabilities (n, C)."""
        return softmax(meta_features(predictions.logits, self.temperatures_) @ self.coef_.T + self.intercept_)

    def doubts(self, name: str) -> list[str]:
        """Return a sentence where it was fitted on few rows."""
        return [f"{name} was fitted on fewer than {FEW_ROWS:,} rows: its gain may not carry over."] if self.few_rows_ else []

    def as_seen(self, predictions: Predictions) -> Predictions:
        """Return the predictions as the head sees them."""
        return predictions

    def leak_warning(self, name: str, fuse: Predictions) -> str | None:
        """Warn where what was gained on out-of-fold rows is missing on *fuse*: fold trainings and full trainings differ then.

        *fuse* rows were held out from the head, from fold trainings and from full trainings alike. Both sides have their last
        stage.

        Args:
            name: Name of the stack.
            fuse: Predictions on *fuse*, of the members that the stack uses.
        """
        losses = calibrated_losses(log_probabilities(self.predict_proba(fuse)), fuse.labels)
        gain = calibrated_losses(uniform_log_probabilities(self.as_seen(fuse)), fuse.labels) - losses
        low, high = bootstrap(gain)
        if self.gained_ < MATERIAL_NATS or high >= self.gained_ / 2:
            return None
        return (
            f"{name} gains {self.gained_:.4f} nats over uniform averaging on OOF rows but {gain.mean():+.4f} "
            f"({low:+.4f} to {high:+.4f}) on fuse rows: its gain does not carry over."
        )

    def warnings(self, name: str, inputs: FusionInputs) -> list[str]:
        """Warn of a gain that does not carry over from out-of-fold rows to *fuse*."""
        leak = self.leak_warning(name, inputs.fuse) if inputs.with_oof else None
        return [leak] if leak else []

    def arrays(self, used: Sequence[int]) -> dict[str, ArrayLike]:
        """Return the head (C, M*C) and (C,), and the temperatures (M,)."""
        return {"coef": self.coef_, "intercept": self.intercept_, "temperatures": self.temperatures_}

    @staticmethod
    def combine(arrays: Mapping[str, Tensor], outputs: NetworkOutputs) -> Tensor:
        """Return the log-softmax of the head on log-probabilities."""
        x = (outputs.logits / arrays["temperatures"][:, None, None]).log_softmax(2).clamp(min=float(np.log(TINY)))
        return (x.permute(1, 0, 2).flatten(1) @ arrays["coef"].T + arrays["intercept"]).log_softmax(1)


@dataclass(frozen=True)
class PlainHead:
    """A plain head.

    Attributes:
        coef: (C, M*C).
        intercept: (C,).
        gained: What it gains on held-out rows over uniform averaging, in nats per row.
    """

    coef: Floats
    intercept: Floats
    gained: float


def fit_plain_head(predictions: Predictions, folds: Labels | None) -> PlainHead:
    """Fit the logistic regression on log-probabilities, and measure its gain by another one, fitted without the first fold."""
    x = meta_features(predictions.logits, np.ones(len(predictions.logits)))
    count = predictions.logits.shape[-1]
    gained = 0.0
    if folds is not None:
        fitted_rows, held_out = _splits(folds)[0]
        coef, intercept = _regression(x[fitted_rows], predictions.labels[fitted_rows], count)
        held_out_predictions = predictions.take(held_out)
        losses = calibrated_losses(x[held_out] @ coef.T + intercept, held_out_predictions.labels)
        gained = float(
            (calibrated_losses(uniform_log_probabilities(held_out_predictions), held_out_predictions.labels) - losses).mean()
        )
    return PlainHead(*_regression(x, predictions.labels, count), gained)


def uniform_log_probabilities(predictions: Predictions) -> Floats:
    """Return the mean of the members' log-probabilities, each at its own temperature: (n, C)."""
    x = meta_features(predictions.logits, temperatures(predictions))
    return np.asarray(x.reshape(len(x), len(predictions.logits), -1).mean(1))


def meta_features(logits: Floats, temperatures: Floats) -> Floats:
    """Return log-probabilities, bounded below: logits (M, n, C) and temperatures (M,) -> (n, M*C)."""
    scaled = np.maximum(log_softmax(logits / temperatures[:, None, None]), np.log(TINY))
    return np.concatenate(list(scaled), axis=1)


def _splits(folds: Labels) -> Splits:
    rows = np.arange(len(folds))
    return [(rows[folds != k], rows[folds == k]) for k in np.unique(folds)]


def _regression(x: Floats, y: Labels, count: int) -> tuple[Floats, Floats]:
    """Return coefficients (count, D) and intercept (count,) for all classes, whichever of them the rows have."""
    seen = np.unique(y)
    coef, intercept = np.zeros((1, x.shape[1])), np.zeros(1)
    if len(seen) > 1:
        mean = softmax(x.reshape(len(x), -1, count).mean(1)[:, seen])
        coef, intercept = _fitted(x, np.searchsorted(seen, y), mean)
    if len(seen) == 2 and len(coef) == 1:  # scikit-learn gives one row for two classes
        coef, intercept = np.concatenate([-coef, coef]) / 2, np.concatenate([-intercept, intercept]) / 2
    full, bias = np.zeros((count, x.shape[1])), np.full(count, np.log(TINY))
    full[seen], bias[seen] = coef, intercept
    return full, bias


def _fitted(x: Floats, y: Labels, mean: Floats) -> tuple[Floats, Floats]:
    """Fit by Newton's method where the Hessian is small: it converges to the last digit. `mean` is what the members say."""
    from sklearn.linear_model import LogisticRegression

    classes = mean.shape[1]
    if classes == 2 or len(x) * (x.shape[1] * classes) ** 2 <= SMALL_HESSIAN:
        model = LogisticRegression(solver="newton-cholesky", max_iter=100, tol=1e-8).fit(x, y)
        return model.coef_, model.intercept_
    return fit_logistic(x, y, mean)

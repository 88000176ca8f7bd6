"""Stack: a multinomial logistic regression on the members' out-of-fold log-probabilities of all *fit* rows.

Each member has one temperature for its out-of-fold logits and one for its full training, so that both are equally confident. The
penalty pulls the weights towards uniform averaging, so an unreliable stack falls back to a calibrated vote. It fits a full matrix
if there are ten rows per parameter, else one weight per member. Without fold trainings it is blending on *fuse*.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from fusion.fitting.cross_validation import PENALTIES, CrossValidatedHead, describe_penalty, fit_heads, splits_of
from fusion.fitting.heads import HeadProblem, MatrixProblem, Split, Start, WeightsProblem
from fusion.interface import FUSIONS, Description, FusionMethod, NetworkOutputs, Trainings
from fusion.metrics.calibration import TINY, calibrated_losses, log_probabilities, temperatures
from fusion.metrics.scores import mean_interval
from fusion.predictions import Floats, FusionInputs, Labels, Predictions, log_softmax, softmax

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from torch import Tensor

FEW_ROWS = 5000
ROWS_PER_PARAMETER = 10
MATERIAL_NATS = 0.005  # smaller gains on out-of-fold rows are not checked on *fuse*
WEAKER_PENALTIES = (*PENALTIES, 0.03, 0.01, 0.003)  # there are many more rows than parameters


def fit_stack_head(predictions: Predictions, folds: Labels | None) -> tuple[CrossValidatedHead, str]:
    """Fit the head of a stack: coefficients (C, M * C) and intercept (C,) on (n, M * C) log-probabilities.

    Args:
        predictions: Predictions to learn from.
        folds: (n,) the fold of each row, which cross-validation reuses; None to draw folds.

    Returns:
        The head, and its form in words.
    """
    x, y = meta_features(predictions.logits, temperatures(predictions)).astype(np.float32), predictions.labels
    members, _, classes = predictions.logits.shape
    is_matrix = len(y) >= ROWS_PER_PARAMETER * classes * (members * classes + 1)
    start = Start(np.tile(np.eye(classes), members) / members, np.zeros(classes))

    def problem_of(split: Split) -> HeadProblem:
        return MatrixProblem(x, y, start, split, members) if is_matrix else WeightsProblem(x, y, start, split)

    splits = [held_out for _, held_out in splits_of(predictions)]
    parts = splits if folds is None else [np.flatnonzero(folds == k) for k in np.unique(folds)]
    best = fit_heads(problem_of, len(y), parts, WEAKER_PENALTIES)[0]
    return best, "a full matrix" if is_matrix else "one weight per member"


@FUSIONS.register
class Stack(FusionMethod):
    """A linear head on log-probabilities at the members' temperatures.

    Attributes after fit: `temperatures_` (M,), `coef_` (C, M * C), `intercept_` (C,), `penalty_`, `form_`, `few_rows_`, and
    `gained_`: nats per row over uniform averaging, on out-of-fold rows that the head was not fitted on.
    """

    description = "a logistic regression on out-of-fold log-probabilities, shrunk towards averaging"
    order = 60
    stored_name = "Meta"
    pays_for: ClassVar[tuple[Trainings, ...]] = ("full", "folds")
    learns_from_folds = True

    @classmethod
    def members_of(cls, inputs: FusionInputs) -> tuple[int, ...] | None:
        """Return the members with fold trainings; None (all members, blending) if no member has any."""
        return inputs.with_oof or None

    def fit(self, inputs: FusionInputs) -> Self:
        """Fit the head on out-of-fold predictions, and the members' temperatures on *fuse*."""
        fuse, oof, folds = self.as_seen(inputs.fuse), inputs.oof, inputs.folds
        best, self.form_ = fit_stack_head(fuse, None) if oof is None else oof.once("stack", lambda: fit_stack_head(oof, folds))
        self.temperatures_, self.penalty_ = temperatures(fuse), best.penalty
        self.coef_, self.intercept_ = best.head
        self.gained_ = best.nll[np.inf] - best.nll[best.penalty]
        self.few_rows_ = len((fuse if oof is None else oof).labels) < FEW_ROWS
        return self

    def predict_proba(self, predictions: Predictions) -> Floats:
        """Return probabilities (n, C)."""
        return softmax(meta_features(self.as_seen(predictions).logits, self.temperatures_) @ self.coef_.T + self.intercept_)

    def describe(self, names: Sequence[str], predictions: Predictions) -> Description:
        """Return the form of the head, and the penalty."""
        return Description(f"{self.form_}; {describe_penalty(self.penalty_)}")

    def doubts(self, name: str) -> list[str]:
        """Return a sentence if it was fitted on few rows."""
        return [f"{name} was fitted on fewer than {FEW_ROWS:,} rows: its gain may not carry over."] if self.few_rows_ else []

    def as_seen(self, predictions: Predictions) -> Predictions:
        """Return the predictions that the head takes."""
        return predictions

    def warnings(self, name: str, inputs: FusionInputs) -> list[str]:
        """Warn if the gain on out-of-fold rows is missing on *fuse*, because fold and full trainings differ.

        *fuse* rows were held out from the head, from fold trainings and from full trainings alike. Both sides are calibrated.

        Args:
            name: Name of the stack.
            inputs: Data that it was fitted on.
        """
        fuse = self.as_seen(inputs.fuse)
        uniform = meta_features(fuse.logits, temperatures(fuse)).reshape(len(fuse.labels), len(fuse.logits), -1).mean(1)
        losses = calibrated_losses(log_probabilities(self.predict_proba(inputs.fuse)), fuse.labels)
        gain = calibrated_losses(uniform, fuse.labels) - losses
        low, high = mean_interval(gain, fuse.groups)
        if not inputs.with_oof or self.gained_ < MATERIAL_NATS or high >= self.gained_ / 2:
            return []
        return [
            f"{name} gains {self.gained_:.4f} nats over uniform averaging on out-of-fold rows but {gain.mean():+.4f} "
            f"({low:+.4f} to {high:+.4f}) on fuse rows: its gain does not carry over."
        ]

    def arrays(self, used: Sequence[int]) -> dict[str, ArrayLike]:
        """Return the head (C, M * C) and (C,), and the temperatures (M,)."""
        return {"coef": self.coef_, "intercept": self.intercept_, "temperatures": self.temperatures_}

    @staticmethod
    def combine(arrays: Mapping[str, Tensor], outputs: NetworkOutputs) -> Tensor:
        """Return the log-softmax of the head on log-probabilities."""
        x = (outputs.logits / arrays["temperatures"][:, None, None]).log_softmax(2).clamp(min=float(np.log(TINY)))
        return (x.permute(1, 0, 2).flatten(1) @ arrays["coef"].T + arrays["intercept"]).log_softmax(1)


def meta_features(logits: Floats, temperatures: Floats) -> Floats:
    """Return log-probabilities, bounded below: logits (M, n, C) and temperatures (M,) -> (n, M * C)."""
    scaled = np.maximum(log_softmax(logits / temperatures[:, None, None]), np.log(TINY))
    return np.concatenate(list(scaled), axis=1)

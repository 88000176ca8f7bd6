"""Stack: a multinomial logistic regression on the members' out-of-fold log-probabilities of all *fit* rows.

Each member has one temperature for its out-of-fold logits and one for its full training, so that both speak alike. The penalty
pulls the weights towards uniform averaging, so an unreliable stack falls back to a calibrated vote. It fits a full matrix where
there are ten rows per parameter, else one weight per member. Without fold trainings it is blending on *fuse*.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from fusion.fitting.cross_validation import penalty_in_words
from fusion.fitting.meta_learner import FEW_ROWS, LinearStack, fit_head
from fusion.interface import FUSIONS, Description
from fusion.metrics.calibration import temperatures
from fusion.predictions import FusionInputs, Predictions


@FUSIONS.register
class Stack(LinearStack):
    """The stack. Attributes after fit, beside those of all stacks: `penalty_`, `form_`.

    Args:
        penalty: The penalty; chosen by cross-validation where left out.
    """

    description = "a logistic regression on out-of-fold log-probabilities, which shrinks towards averaging"
    order = 60

    def __init__(self, penalty: float | None = None) -> None:
        self.penalty = penalty

    def fit(self, inputs: FusionInputs) -> Self:
        """Fit the head on out-of-fold predictions, and the members' temperatures on *fuse*."""
        self.temperatures_ = temperatures(inputs.fuse)
        oof, folds, penalty = inputs.oof, inputs.folds, self.penalty
        if oof is None:
            head = fit_head(inputs.fuse, None, penalty)
        else:
            head = oof.once(("stack", penalty), lambda: fit_head(oof, folds, penalty))
        self.coef_, self.intercept_ = head.coef, head.intercept
        self.penalty_, self.form_, self.few_rows_ = head.penalty, head.form, head.rows < FEW_ROWS
        self.gained_ = float((head.uniform - head.losses).mean())
        return self

    def describe(self, names: Sequence[str], predictions: Predictions) -> Description:
        """Return the form of the head, and the penalty."""
        form = "a full matrix" if self.form_ == "matrix" else "one weight per member"
        return Description(f"{form}; {penalty_in_words(self.penalty_)}")

"""Plain stack: scikit-learn's common form of stacking, which shrinks to zero."""

from __future__ import annotations

from typing import Self

import numpy as np

from fusion.fitting.meta_learner import FEW_ROWS, LinearStack, fit_plain_head
from fusion.interface import FUSIONS
from fusion.predictions import FusionInputs


@FUSIONS.register
class PlainStack(LinearStack):
    """scikit-learn's StackingClassifier over log-probabilities: no temperatures, C = 1, shrinks to zero."""

    description = "a logistic regression on out-of-fold log-probabilities, as scikit-learn stacks"
    order = 70

    def fit(self, inputs: FusionInputs) -> Self:
        """Fit the regression on out-of-fold predictions."""
        oof, folds, source = inputs.oof, inputs.folds, inputs.oof or inputs.fuse
        self.temperatures_ = np.ones(len(source.logits))
        head = fit_plain_head(source, None) if oof is None else oof.once("stack_plain", lambda: fit_plain_head(oof, folds))
        self.coef_, self.intercept_, self.gained_ = head.coef, head.intercept, head.gained
        self.few_rows_ = len(source.labels) < FEW_ROWS
        return self

"""Concatenate the members' features under one linear head, fitted on *fuse*.

The head starts as the block-concatenation of the members' own heads (W_m / M), which is exactly the mean of their logits, and
is penalised for the distance to that start. An infinite penalty, one of the candidates, is the logit vote. Where recipes differ
there is a second logit vote, of members at their own temperatures; the one with the lower NLL is the start.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Self

import numpy as np

from fusion.fitting.cross_validation import penalty_in_words, solve_parts
from fusion.fitting.shrinkage import Head, ShrinkageProblem, solve_head
from fusion.interface import FUSIONS, Description, FusionMethod, NetworkOutputs
from fusion.metrics.calibration import calibrated_losses, temperatures
from fusion.predictions import Floats, FusionInputs, Inputs, Labels, Predictions, softmax
from workers.errors import ConclaveError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from torch import Tensor

FOLDS = 5  # by which each part chooses its penalty
MOST_NUMBERS = 30_000_000  # of logits of all folds that are solved at once: a quarter of a gigabyte, a few times


@FUSIONS.register
class Concat(FusionMethod):
    """A linear head on concatenated features.

    Attributes after fit: `coef_` (C, sum of D_m) and `intercept_` (C,) on raw features, `penalty_`, `start_`.

    Args:
        penalty: The penalty; chosen by cross-validation where left out.
    """

    description = "one linear head on all members' features"
    order = 80
    stored_name = "Linear"
    needs_linear_heads = True
    uses_features = True

    coef_: Floats
    intercept_: Floats
    penalty_: float
    start_: Head

    def __init__(self, penalty: float | None = None) -> None:
        self.penalty = penalty

    def fit(self, inputs: FusionInputs) -> Self:
        """Fit the head on *fuse*. Raises ConclaveError where a member has no linear head."""
        rows = np.arange(len(inputs.fuse.labels))
        vars(self).update(vars(self.fit_parts(inputs, [rows])[0]))
        return self

    def fit_parts(self, inputs: FusionInputs, parts: Sequence[Labels]) -> list[Self]:
        """Return one fitted on each part. As many are solved at once as memory allows."""
        if not inputs.heads:
            raise ConclaveError("concat needs members that end in a Linear head.")
        x: Inputs = np.concatenate(inputs.fuse.features, axis=1)
        y = inputs.fuse.labels
        light = replace(inputs, fuse=replace(inputs.fuse, features=()))  # a start needs no features
        starts = [averaging_head(light.with_fuse(rows)) for rows in parts]
        at_once = max(1, MOST_NUMBERS // (FOLDS * inputs.fuse.logits[0].size))
        fitted: list[Self] = []
        for first in range(0, len(parts), at_once):
            some = slice(first, first + at_once)
            solved = self._solved(x, y, starts[some], parts[some])
            fitted += [self._with(start, *one) for start, one in zip(starts[some], solved, strict=True)]
        return fitted

    def _solved(self, x: Inputs, y: Labels, starts: Sequence[Head], parts: Sequence[Labels]) -> list[tuple[float, Head]]:
        """Return the penalty and the head of each part."""
        if self.penalty is None:
            return solve_parts(x, y, starts, parts)
        problems = [ShrinkageProblem(x[rows], y[rows], start) for start, rows in zip(starts, parts, strict=True)]
        return [(self.penalty, solve_head(problem, self.penalty)) for problem in problems]

    def _with(self, start: Head, penalty: float, head: Head) -> Self:
        """Return one like this with a fitted head."""
        made = copy.copy(self)
        made.start_, made.penalty_ = start, penalty
        made.coef_, made.intercept_ = head
        return made

    def predict_proba(self, predictions: Predictions) -> Floats:
        """Return probabilities (n, C)."""
        x: Inputs = np.concatenate(predictions.features, axis=1)
        return softmax(x @ self.coef_.T.astype(x.dtype) + self.intercept_)

    def describe(self, names: Sequence[str], predictions: Predictions) -> Description:
        """Return the penalty."""
        return Description(penalty_in_words(self.penalty_))

    def arrays(self, used: Sequence[int]) -> dict[str, ArrayLike]:
        """Return the head: (C, sum of D_m) and (C,)."""
        return {"coef": self.coef_, "intercept": self.intercept_}

    @staticmethod
    def combine(arrays: Mapping[str, Tensor], outputs: NetworkOutputs) -> Tensor:
        """Return the log-softmax of the head on the concatenated features."""
        assert outputs.features is not None
        return (outputs.features @ arrays["coef"].T + arrays["intercept"]).log_softmax(1)


def averaging_head(inputs: FusionInputs) -> Head:
    """Return the head (C, sum of D_m), (C,) that gives the mean of the members' logits, each at its temperature or as it is."""
    fuse, count = inputs.fuse, len(inputs.heads)
    votes = [np.ones(count)] if inputs.alike else [np.ones(count), temperatures(fuse)]
    best = min(votes, key=lambda by: calibrated_losses((fuse.logits / by[:, None, None]).mean(0), fuse.labels).sum())
    heads = [(w / (t * count), b / (t * count)) for (w, b), t in zip(inputs.heads, best, strict=True)]
    return np.concatenate([w for w, _ in heads], axis=1), np.sum([b for _, b in heads], axis=0)

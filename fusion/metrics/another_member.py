"""Forecast what another member would bring to the vote, from what those that are there bring.

The vote of k exchangeable members loses a + b / k. So the last of them brought b / (k (k - 1)), and one more brings
b / (k (k + 1)): (k - 1) / (k + 1) of what each of them brings now. Here a member counts as all that one training makes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fusion.metrics.scores import TWO_SIDED, accuracy_and_nll_losses, standard_error
from fusion.predictions import Floats, Labels
from fusion.results import ExpectedGain

Expected = tuple[ExpectedGain, ExpectedGain]  # in accuracy and in NLL


def expected_gains(gains: Floats, each: Floats | None = None, errors: Floats | None = None) -> Expected:
    """Return what (2, n) rows gain on average, in accuracy and in NLL.

    Args:
        gains: (2, n).
        each: (k, 2) what it is for each of the k trainings that the gains are the mean of: a new one differs as these do.
        errors: (2,) how far such forecasts were off.
    """
    spread = np.zeros(2) if each is None or len(each) < 2 else each.var(0, ddof=1) * (1 + 1 / len(each))
    found = []
    for i, row in enumerate(gains):
        mean, half = float(row.mean()), float(TWO_SIDED * np.sqrt(standard_error(row) ** 2 + spread[i]))
        found.append(ExpectedGain(mean, (mean - half, mean + half), None if errors is None else float(errors[i])))
    return found[0], found[1]


@dataclass(frozen=True)
class Vote:
    """The vote of a team, and what it would be without some of its trainings.

    Attributes:
        probabilities: (M, n, C) of the members, on rows that none of them trained on.
        labels: (n,).
        temperature: The last stage of the vote.
        trainings: Positions of the members that each training made.
    """

    probabilities: Floats
    labels: Labels
    temperature: float
    trainings: Sequence[Sequence[int]]

    @cached_property
    def _sum(self) -> Floats:
        return np.asarray(self.probabilities.sum(0))

    def another(self, alike: Sequence[int]) -> Expected | None:
        """Forecast what another training would bring that is like these, by their positions; None where one alone votes.

        It is checked by leaving out each of them in turn, and forecasting from the others what it brings.
        """
        count = len(self.trainings)
        if count < 2:
            return None
        brought = np.array([self.brought(one) for one in alike])
        share = (count - 1) / (count + 1)
        return expected_gains(share * brought.mean(0), share * brought.mean(2), self._error(alike, brought.mean(2)))

    def _error(self, alike: Sequence[int], brought: Floats) -> Floats | None:
        """Return how far the forecasts are off for trainings that are there, (2,), from what these bring, (k, 2)."""
        count = len(self.trainings)
        if count < 3 or len(alike) < 2:
            return None
        forecasts = []
        for one in alike:
            others = [self.brought(other, without=(one,)).mean(1) for other in alike if other != one]
            forecasts.append((count - 2) / count * np.mean(others, axis=0))
        return np.asarray(np.abs(np.array(forecasts) - brought).mean(0))

    def brought(self, training: int, without: Sequence[int] = ()) -> Floats:
        """Return what a training brings to the vote of the others, by row, in accuracy and in NLL: (2, n)."""
        return self._losses((*without, training)) - self._losses(without)

    def _losses(self, without: Sequence[int]) -> Floats:
        absent = [member for training in without for member in self.trainings[training]]
        voting = self._sum - self.probabilities[absent].sum(0)
        return accuracy_and_nll_losses(voting / (len(self.probabilities) - len(absent)), self.labels, self.temperature)

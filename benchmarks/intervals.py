"""Coverage of the intervals that the report prints: how often each holds the truth, in synthetic teams whose truth is known.

Each team is of one of the four kinds of `benchmarks.verdicts`; its candidates are its members and their vote. The truth is what
the candidates score on 100,000 rows. With groups, four rows of a group share most of their noise.

    python -m benchmarks.intervals           # 2,000 draws at 36, 200 and 1,000 rows; results/intervals.json
"""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat

import numpy as np

from benchmarks.machine import write_result
from benchmarks.verdicts import ANSWERS, CLASSES, KINDS
from fusion.metrics.contributions import contributions
from fusion.metrics.paired import Sample, accuracy_gain, compare_losses
from fusion.metrics.scores import accuracy_interval, mean_interval
from fusion.predictions import Floats, Labels, softmax
from fusion.results import Interval, Metric

SIZES = (36, 200, 1000)
TEAMS, TRUTH = 20, 100_000
IN_GROUP, OWN_NOISE = 4, 0.3  # rows of a group, and the noise that each has beside that of its group
ROUNDING = 1e-9  # copies of one member differ by this in their last digits
METRICS: tuple[Metric, ...] = ("nll", "accuracy", "balanced_accuracy")


class Population:
    """A team whose true scores are known.

    Args:
        number: Determines its kind and its members.
        grouped: Whether rows come in groups.
    """

    def __init__(self, number: int, grouped: bool) -> None:
        draw = np.random.default_rng(number)
        self.grouped, members = grouped, int(draw.integers(3, 6))
        self.answers = ANSWERS[KINDS[number % len(KINDS)]](members, draw)

    def truth(self) -> dict[str, list[float]]:
        """Return what the candidates score on many rows, in the order of `Estimates`."""
        return estimates(*self.rows(TRUTH, np.random.default_rng(0))).values

    def rows(self, count: int, draw: np.random.Generator) -> tuple[Floats, Labels, Labels | None]:
        """Return the members' probabilities (M, n, C) for new rows, their labels (n,) and their groups (n,) or None."""
        if not self.grouped:
            labels = draw.integers(0, CLASSES, count)
            return softmax(self.answers(labels)), labels, None
        groups = np.arange(count) // IN_GROUP
        labels = draw.integers(0, CLASSES, groups[-1] + 1)
        logits = self.answers(labels)[:, groups]
        return softmax(logits + OWN_NOISE * draw.normal(size=logits.shape)), labels[groups], groups


class Estimates:
    """What a report says of a team: `values` and `intervals` by what is estimated."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {}
        self.intervals: dict[str, list[Interval]] = {}

    def add(self, what: str, value: float, interval: Interval) -> None:
        """Add the estimate for one more candidate."""
        self.values.setdefault(what, []).append(value)
        self.intervals.setdefault(what, []).append(interval)


def estimates(probabilities: Floats, labels: Labels, groups: Labels | None) -> Estimates:
    """Estimate everything that a report gives an interval for."""
    found, sample = Estimates(), Sample(labels, groups)
    names = [f"m{i}" for i in range(len(probabilities))]
    candidates = {**dict(zip(names, probabilities, strict=True)), "vote": probabilities.mean(0)}
    for one in candidates.values():
        hits = (one.argmax(1) == labels).astype(np.float64)
        found.add("accuracy", float(hits.mean()), accuracy_interval(hits, groups))
    gain = accuracy_gain(candidates["vote"], candidates["m0"], sample)
    found.add("gain in accuracy", gain.difference, gain.interval)
    for metric in METRICS:
        for one in compare_losses(candidates, "vote", sample, metric).values():
            found.add(f"differences in {metric}, all at once", one.difference, one.interval)
            found.add(f"upper bounds in {metric}, all at once", one.difference, (-np.inf, one.upper))
    for one in contributions(names, probabilities, labels, groups).values():
        found.add("contribution in accuracy", one.accuracy, one.accuracy_interval)
        found.add("contribution in nats", one.nll, one.nll_interval)
    gained = sample.row_losses(candidates["m0"], "nll") - sample.row_losses(candidates["vote"], "nll")
    found.add("gain of mirror images in nats", float(gained.mean()), mean_interval(gained, groups))
    return found


def truth_of(number: int, grouped: bool) -> dict[str, list[float]]:
    """Return the true scores of a team."""
    return Population(number, grouped).truth()


def covered(rows: int, grouped: bool, number: int, truths: list[dict[str, list[float]]]) -> dict[str, float]:
    """Return the share of the intervals that hold the truth in one draw; 1 or 0 for intervals of all candidates at once."""
    team, truth_of_team = Population(number % TEAMS, grouped), truths[number % TEAMS]
    found, shares = estimates(*team.rows(rows, np.random.default_rng([rows, number]))), {}
    for what, intervals in found.intervals.items():
        holds = [
            low - ROUNDING <= truth <= high + ROUNDING for (low, high), truth in zip(intervals, truth_of_team[what], strict=True)
        ]
        shares[what] = float(all(holds) if what.endswith("at once") else np.mean(holds))
    return shares


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--draws", type=int, default=2000)
    draws = parser.parse_args().draws
    table: dict[str, dict[str, float]] = {}
    with ProcessPoolExecutor() as pool:
        for grouped in (False, True):
            truths = list(pool.map(truth_of, range(TEAMS), repeat(grouped)))
            for rows in SIZES:
                name = f"{rows} rows" + (f" in groups of {IN_GROUP}" if grouped else "")
                shares = list(pool.map(covered, repeat(rows), repeat(grouped), range(draws), repeat(truths), chunksize=20))
                table[name] = {what: float(np.mean([draw[what] for draw in shares])) for what in shares[0]}
                for what, share in table[name].items():
                    print(f"{name:25} {what:45} {share:.1%}", flush=True)
    write_result("intervals", " ".join(["python -m benchmarks.intervals", *sys.argv[1:]]), {"draws": draws, "coverage": table})


if __name__ == "__main__":
    main()

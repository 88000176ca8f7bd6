"""Our fusions beside other people's, on the same outputs of the same members, `results/table/`: `python -m benchmarks.peers`.

scikit-learn's VotingClassifier and StackingClassifier are asked as their users would, by estimators that give a member's kept
outputs; AutoGluon's greedy selection is its own class, where `autogluon.core` is installed. Every fusion is fitted on *fuse*
(stacks: on out-of-fold outputs) and scored on *test*. Seconds are of fitting and answering; ours choose their strength by
cross-validation in them.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.ensemble import StackingClassifier, VotingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import PredefinedSplit

from benchmarks import table
from benchmarks.machine import describe, write_result
from fusion.interface import FUSIONS
from fusion.metrics.calibration import apply_temperature, fit_temperature, log_probabilities
from fusion.metrics.scores import scores
from fusion.predictions import Floats, Labels, TeamPredictions, softmax

MAX_ROUNDS = 40  # of greedy selection, as ours
Fusion = Callable[[], Floats]  # fits, and gives probabilities on *test*


class Kept(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A member as an estimator of scikit-learn's, whose inputs are row numbers. Fitted on all *fit* rows it gives the full fit's
    outputs, on all but one fold those of that fold's fit.

    `logits` (N, C) of the full fit, `oof` (N, C), `folds` (N,), -1 outside of *fit*.
    """

    def __init__(self, logits: Any = None, oof: Any = None, folds: Any = None) -> None:
        self.logits, self.oof, self.folds = logits, oof, folds

    def fit(self, x: Labels, y: Labels) -> Kept:
        self.classes_ = np.arange(self.logits.shape[1])
        among = set(self.folds[x[:, 0]].tolist()) - {-1}
        all_but_one = among and among != set(self.folds[self.folds >= 0].tolist())
        self.given_ = self.oof if all_but_one and self.oof is not None else self.logits
        return self

    def predict(self, x: Labels) -> Labels:
        return self.classes_[self.predict_proba(x).argmax(1)]  # type: ignore[no-any-return]

    def predict_proba(self, x: Labels) -> Floats:
        return softmax(self.given_[x[:, 0]])


def estimators(team: TeamPredictions) -> list[tuple[str, Kept]]:
    """Rows are counted *fit*, *fuse*, *test*, one after another. Members without fold fits have no `oof`."""
    inputs, fit = team.inputs, len(team.fit_rows)
    rest = len(team.fuse_rows) + len(team.test_rows)
    folds = np.concatenate([inputs.folds, np.full(rest, -1)])
    members = []
    for i, name in enumerate(team.names):
        nothing = np.zeros((fit, inputs.fuse.logits.shape[2]))
        logits = np.concatenate([nothing, inputs.fuse.logits[i], team.test.logits[i]])
        oof = None
        if inputs.oof is not None and i in inputs.with_oof:
            at = inputs.oof.logits[inputs.with_oof.index(i)]
            oof = np.concatenate([at, np.zeros((rest, at.shape[1]))])
        members.append((name, Kept(logits, oof, folds)))
    return members


def rows_of(team: TeamPredictions) -> tuple[Labels, Labels, Labels]:
    """Row numbers of *fit*, *fuse* and *test*, each (n, 1)."""
    ends = np.cumsum([0, len(team.fit_rows), len(team.fuse_rows), len(team.test_rows)])
    fit, fuse, test = (np.arange(a, b)[:, None] for a, b in itertools.pairwise(ends))
    return fit, fuse, test


def peers(team: TeamPredictions) -> dict[str, Fusion]:
    """Other people's, by name."""
    members, (fit, fuse, test) = estimators(team), rows_of(team)
    labels = team.inputs.fuse.labels

    def voting() -> Floats:
        return np.asarray(VotingClassifier(members, voting="soft").fit(fuse, labels).predict_proba(test))

    def blending() -> Floats:
        ready = [(name, member.fit(fuse, labels)) for name, member in members]
        stack = StackingClassifier(ready, LogisticRegression(max_iter=2000), cv="prefit")
        return np.asarray(stack.fit(fuse, labels).predict_proba(test))

    def stacking() -> Floats:
        stack = StackingClassifier(
            [(n, member) for n, member in members if member.oof is not None],
            LogisticRegression(max_iter=2000),
            cv=PredefinedSplit(team.inputs.folds),
        )
        assert team.inputs.oof is not None
        return np.asarray(stack.fit(fit, team.inputs.oof.labels).predict_proba(test))

    def greedy() -> Floats:
        from autogluon.core.metrics import log_loss
        from autogluon.core.models.greedy_ensemble.ensemble_selection import EnsembleSelection

        chosen = EnsembleSelection(ensemble_size=MAX_ROUNDS, problem_type="multiclass", metric=log_loss)
        chosen.fit([softmax(z) for z in team.inputs.fuse.logits], labels)
        weighted = (weight * softmax(z) for weight, z in zip(chosen.weights_, team.test.logits, strict=True))
        return np.asarray(sum(weighted))

    known: dict[str, Fusion] = {"scikit-learn VotingClassifier": voting, "scikit-learn StackingClassifier, prefit": blending}
    if team.inputs.oof is not None:
        known["scikit-learn StackingClassifier, folds"] = stacking
    if importlib.util.find_spec("autogluon") is not None:
        known["AutoGluon EnsembleSelection"] = greedy
    return known


def ours(team: TeamPredictions) -> dict[str, Fusion]:
    """The same steps, with the temperature that is the last stage of each."""

    def of(name: str) -> Fusion:
        def fusion() -> Floats:
            members = team.inputs.with_oof if name == "stack" and team.inputs.oof is not None else None
            inputs = team.inputs if members is None else team.inputs.only(members)
            method = FUSIONS[name]().fit(inputs)
            temperature = fit_temperature(log_probabilities(method.predict_proba(inputs.fuse)), inputs.fuse.labels)
            return apply_temperature(method.predict_proba(team.test if members is None else team.test.only(members)), temperature)

        return fusion

    return {f"conclave {name}": of(name) for name in ("vote", "weighted", "concat", "stack")}


def main() -> None:
    team, _ = table.gathered()
    result = {}
    for name, fusion in {**peers(team), **ours(team)}.items():
        began = time.perf_counter()
        probabilities = fusion()
        seconds = time.perf_counter() - began
        result[name] = {**scores(probabilities, team.test.labels).model_dump(), "seconds": seconds}
        row = result[name]
        print(f"{name:40} {row['accuracy']:.2%}  NLL {row['nll']:.4f}  ECE {row['ece']:.4f}  {seconds:.2f} s", flush=True)
    write_result("peers", "python -m benchmarks.peers", {"members": list(team.names), "rows": result})
    print(json.dumps(describe()))


if __name__ == "__main__":
    main()

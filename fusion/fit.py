"""Fit every fusion, calibrate it, judge it on *fuse* by nested cross-validation, and say which one to use."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, Self

import numpy as np
from sklearn.model_selection import KFold

from fusion.calibration import apply_temperature, fit_temperature, logs, nll
from fusion.cascade import Cascade
from fusion.concat import Concat
from fusion.names import KNOWN, STACKS
from fusion.outputs import Evidence, Floats, Gathered, Table
from fusion.score import nll_lower
from fusion.stacking import Meta, PlainMeta, PlainStack, Stack, StackBag, learn, learn_plain
from fusion.voting import Single, Student, Vote, VoteLogits
from fusion.weighting import Weighted


class Method(Protocol):
    def fit(self, evidence: Evidence) -> Self: ...
    def predict_proba(self, table: Table) -> Floats: ...


METHODS: dict[str, Callable[[], Method]] = {
    "student": Student,
    "cascade": Cascade,
    "vote": Vote,
    "vote_logits": VoteLogits,
    "weighted": Weighted,
    "stack": Stack,
    "stack_plain": PlainStack,
    "concat": Concat,
    "stack_bag": StackBag,
}


@dataclass
class Fitted:
    """A fusion or a single member with its last stage, and its honest probabilities on *fuse*."""

    name: str
    method: Any
    temperature: float
    nested: Floats  # (n_fuse, C): everything refitted without the row that is predicted
    members: tuple[int, ...] | None = None  # of the team, where the fusion could not use all

    def predict_proba(self, table: Table) -> Floats:
        used = table if self.members is None else table.only(self.members)
        return apply_temperature(self.method.predict_proba(used), self.temperature)


def fit_one(name: str, make: Callable[[], Method], evidence: Evidence) -> Fitted:
    method, temperature = _calibrated(make, evidence)
    nested = np.zeros(evidence.fuse.logits.shape[1:])
    rows = len(evidence.fuse.labels)
    for kept, out in KFold(min(5, rows), shuffle=True, random_state=1).split(np.arange(rows)):
        inner, inner_temperature = _calibrated(make, evidence.with_fuse(kept))
        nested[out] = apply_temperature(inner.predict_proba(evidence.fuse.take(out)), inner_temperature)
    return Fitted(name, method, temperature, nested)


def _calibrated(make: Callable[[], Method], evidence: Evidence) -> tuple[Method, float]:
    method = make().fit(evidence)
    return method, fit_temperature(logs(method.predict_proba(evidence.fuse)), evidence.fuse.labels)


def fit_all(gathered: Gathered, fusions: Sequence[str]) -> dict[str, Fitted]:
    """Singles under their members' names, then the fusions asked for, in the order of inference cost."""
    evidence, learned = gathered.evidence, _Learned(gathered.evidence)
    fitted = {n: fit_one(n, lambda i=i: Single(i), evidence) for i, n in enumerate(gathered.names)}  # type: ignore[misc]
    for name in (n for n in KNOWN if n in fusions):
        if (name == "stack_bag" and not can_bag(evidence)) or (name == "student" and evidence.fuse.student is None):
            continue
        if name in STACKS and evidence.with_oof:
            fitted[name] = fit_one(name, learned.make(name), evidence.only(evidence.with_oof))
            fitted[name].members = evidence.with_oof
        else:
            fitted[name] = fit_one(name, METHODS[name], evidence)
    return fitted


def can_bag(evidence: Evidence) -> bool:
    """Whether the fold fits of all members that have them gave outputs on *fuse* too."""
    folds = evidence.fuse.folds
    return bool(evidence.with_oof) and folds is not None and not np.isnan(folds[list(evidence.with_oof)]).any()


class _Learned:
    """What stacks learn from OOF outputs, learnt once: no refit on a part of *fuse* changes it."""

    def __init__(self, evidence: Evidence) -> None:
        self.oof, self.folds = evidence.oof, evidence.folds

    @cached_property
    def shrunken(self) -> Meta:
        assert self.oof is not None
        return learn(self.oof, self.folds)

    @cached_property
    def plain(self) -> PlainMeta:
        assert self.oof is not None
        return learn_plain(self.oof, self.folds)

    def make(self, name: str) -> Callable[[], Method]:
        if name == "stack_plain":
            return lambda: PlainStack(self.plain)
        return lambda: (StackBag if name == "stack_bag" else Stack)(learned=self.shrunken)


def best_single(gathered: Gathered, fitted: Mapping[str, Fitted]) -> str:
    """By NLL on *fuse*."""
    labels = gathered.evidence.fuse.labels
    return min(gathered.names, key=lambda name: nll(fitted[name].nested, labels))


def recommend(gathered: Gathered, fitted: dict[str, Fitted]) -> tuple[str, str]:
    """The candidate to use and why: made on *fuse* alone, a costlier one only where it is surely better."""
    labels = gathered.evidence.fuse.labels
    chosen = best_single(gathered, fitted)
    why = f"{chosen} has the lowest NLL on fuse of the single members"
    for name in (n for n in KNOWN if n in fitted):
        ours, other = fitted[name].nested, fitted[chosen].nested
        no_worse = (ours.argmax(1) == labels).sum() >= (other.argmax(1) == labels).sum()
        if no_worse and nll_lower(ours, other, labels):
            why = f"{name} has a lower NLL on fuse than {chosen} with 95 % confidence, and is not less accurate"
            chosen = name
    return chosen, why

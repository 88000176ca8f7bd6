"""stack: a meta-learner on the members' log-probabilities, fitted on OOF outputs of all *fit* rows.

Each member has one temperature for its OOF logits and one for its full fit, so that both speak alike. The meta-learner
starts as uniform averaging and pays for leaving it: a full matrix where there are ten rows a parameter, else one weight a
member. Without fold fits it is blending on *fuse*. `PlainStack` is the common form, which shrinks to zero instead.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from sklearn.linear_model import LogisticRegression

from fusion.calibration import TINY, calibrated_losses, logs, temperatures
from fusion.outputs import Evidence, Floats, Inputs, Labels, Table, log_softmax, softmax
from fusion.score import bootstrap
from fusion.shrunken import PENALTIES, MemberWeights, Problem, Splits, best_penalty, cross_validated, fit_head, shuffled_splits
from workers.errors import ConclaveError

FEW_ROWS = 5000
ROWS_A_PARAMETER = 10
MATERIAL_NATS = 0.005  # a smaller gain on OOF rows promised nothing
WEAKER = (*PENALTIES, 0.03, 0.01, 0.003)  # there are many more rows than parameters
SMALL_HESSIAN = 1e10  # multiplications for one


@dataclass(frozen=True)
class Meta:
    """What was learnt from one table: the head on (n, M*C) log-probabilities, and how."""

    coef: Floats
    intercept: Floats
    penalty: float
    form: str
    rows: int
    losses: Floats  # (n,) cross-validated NLL of each row, and beside it
    uniform: Floats  # (n,) that of the calibrated start


def learn(table: Table, folds: Labels | None, penalty: float | None = None) -> Meta:
    """Fit the meta-learner; its strength by cross-validation over the folds of the fold fits, where there are any."""
    x, y = meta_features(table.logits, temperatures(table)), table.labels
    members, _, classes = table.logits.shape
    matrix = classes * (members * classes + 1)
    form = "matrix" if len(y) >= ROWS_A_PARAMETER * matrix else "weights"
    kind: type[Problem] = Problem if form == "matrix" else MemberWeights
    start = (np.tile(np.eye(classes), members) / members, np.zeros(classes))

    def make(x: Inputs, y: Labels) -> Problem:
        return kind(x, y, start)

    splits = _splits(folds) if folds is not None else shuffled_splits(len(y))
    losses = cross_validated(x, y, make, splits, WEAKER if penalty is None else (np.inf, penalty))
    chosen = best_penalty(losses) if penalty is None else penalty
    coef, intercept = fit_head(make(x, y), chosen)
    return Meta(coef, intercept, chosen, form, len(y), losses[chosen], losses[np.inf])


class _MetaHead:
    """What every stack is once it is fitted: a linear head on log-probabilities at the members' temperatures."""

    temperatures_: Floats
    coef_: Floats
    intercept_: Floats
    gained_: float  # nats a row over uniform averaging, on OOF rows that the head was not fitted on

    def predict_proba(self, table: Table) -> Floats:
        """(n, C)."""
        return softmax(meta_features(table.logits, self.temperatures_) @ self.coef_.T + self.intercept_)

    def heard(self, table: Table) -> Table:
        """The table as the head hears it."""
        return table

    def leak(self, name: str, fuse: Table) -> str | None:
        """Whether what was gained on OOF rows is missing on *fuse*, in words: then fold fits and full fits differ.

        *fuse* rows were held out from the head, fold fits and full fits alike. Both sides have their last stage.
        """
        ours = calibrated_losses(logs(self.predict_proba(fuse)), fuse.labels)
        carried = calibrated_losses(uniform(self.heard(fuse)), fuse.labels) - ours
        low, high = bootstrap(carried)
        if self.gained_ < MATERIAL_NATS or high >= self.gained_ / 2:
            return None
        return (
            f"{name} gains {self.gained_:.4f} nats over uniform averaging on OOF rows but {carried.mean():+.4f} "
            f"({low:+.4f} to {high:+.4f}) on fuse rows: its gain does not carry over. Prefer vote."
        )


class Stack(_MetaHead):
    """`learned`: what `learn` gave for the OOF outputs, so that refits on parts of *fuse* don't repeat it.

    Attributes after fit: `temperatures_` (M,) of the full fits, `coef_` (C, M*C), `intercept_` (C,), `penalty_`, `form_`,
    `few_rows_`.
    """

    def __init__(self, penalty: float | None = None, learned: Meta | None = None) -> None:
        self.penalty = penalty
        self.learned = learned

    def fit(self, evidence: Evidence) -> Self:
        self.temperatures_ = temperatures(evidence.fuse)
        source = evidence.oof or evidence.fuse
        self.meta_ = self.learned or learn(source, evidence.folds if evidence.oof is not None else None, self.penalty)
        self.coef_, self.intercept_ = self.meta_.coef, self.meta_.intercept
        self.penalty_, self.form_, self.few_rows_ = self.meta_.penalty, self.meta_.form, self.meta_.rows < FEW_ROWS
        self.gained_ = float((self.meta_.uniform - self.meta_.losses).mean())
        return self


class StackBag(Stack):
    """The same meta-learner over the fold fits: each member speaks as the mean of its K fold fits' probabilities.

    K networks a member at inference, and no full fit is needed. For evidence with the fold fits' outputs alone.
    """

    def fit(self, evidence: Evidence) -> Self:
        return super().fit(replace(evidence, fuse=bagged(evidence.fuse)))

    def heard(self, table: Table) -> Table:
        """Of the fold fits' means."""
        return bagged(table)

    def predict_proba(self, table: Table) -> Floats:
        """(n, C)."""
        return super().predict_proba(bagged(table))


def bagged(table: Table) -> Table:
    """The table whose members are the bags of their fold fits. Raises ConclaveError where fold fits gave no outputs."""
    if table.folds is None:
        raise ConclaveError("stack_bag needs the outputs of every member's fold fits on fuse and test: set data.folds.")
    return Table(logs(softmax(table.folds).mean(1)), (), table.labels)


class PlainStack(_MetaHead):
    """scikit-learn's StackingClassifier over log-probabilities: no temperatures, C = 1, shrinks to zero.

    `learned`: what `learn_plain` gave for the OOF outputs.
    """

    def __init__(self, learned: PlainMeta | None = None) -> None:
        self.learned = learned

    def fit(self, evidence: Evidence) -> Self:
        source = evidence.oof or evidence.fuse
        self.temperatures_ = np.ones(len(source.logits))
        learned = self.learned or learn_plain(source, evidence.folds if evidence.oof is not None else None)
        self.coef_, self.intercept_, self.gained_ = learned.coef, learned.intercept, learned.gained
        self.few_rows_ = len(source.labels) < FEW_ROWS
        return self


@dataclass(frozen=True)
class PlainMeta:
    """Coefficients (C, M*C), intercept (C,), and what they gain on rows held out, in nats a row over uniform averaging."""

    coef: Floats
    intercept: Floats
    gained: float


def learn_plain(table: Table, folds: Labels | None) -> PlainMeta:
    """The logistic regression on a table's log-probabilities; its gain by another one, fitted without the first of the folds."""
    x = meta_features(table.logits, np.ones(len(table.logits)))
    count = table.logits.shape[-1]
    gained = 0.0
    if folds is not None:
        kept, out = _splits(folds)[0]
        coef, intercept = _regression(x[kept], table.labels[kept], count)
        held = table.take(out)
        ours = calibrated_losses(x[out] @ coef.T + intercept, held.labels)
        gained = float((calibrated_losses(uniform(held), held.labels) - ours).mean())
    return PlainMeta(*_regression(x, table.labels, count), gained)


def uniform(table: Table) -> Floats:
    """(n, C): the mean of the members' log-probabilities, each at its own temperature."""
    x = meta_features(table.logits, temperatures(table))
    return np.asarray(x.reshape(len(x), len(table.logits), -1).mean(1))


def meta_features(logits: Floats, temperatures: Floats) -> Floats:
    """(M, n, C) -> (n, M*C) log-probabilities, bounded below."""
    scaled = np.maximum(log_softmax(logits / temperatures[:, None, None]), np.log(TINY))
    return np.concatenate(list(scaled), axis=1)


def _splits(folds: Labels) -> Splits:
    rows = np.arange(len(folds))
    return [(rows[folds != k], rows[folds == k]) for k in np.unique(folds)]


def _regression(x: Floats, y: Labels, count: int) -> tuple[Floats, Floats]:
    """Coefficients (count, D) and intercept (count,), of all classes, whichever the rows have."""
    seen = np.unique(y)
    coef, intercept = np.zeros((1, x.shape[1])), np.zeros(1)
    if len(seen) > 1:
        model = _fitted(x, y, len(seen))
        coef, intercept = model.coef_, model.intercept_
    if len(seen) == 2 and len(coef) == 1:  # scikit-learn gives one row for two classes
        coef, intercept = np.concatenate([-coef, coef]) / 2, np.concatenate([-intercept, intercept]) / 2
    full, bias = np.zeros((count, x.shape[1])), np.full(count, np.log(TINY))
    full[seen], bias[seen] = coef, intercept
    return full, bias


def _fitted(x: Floats, y: Labels, classes: int) -> LogisticRegression:
    """Newton's method where the Hessian is small: it converges to the last digit, and faster than lbfgs."""
    if len(x) * (x.shape[1] * classes) ** 2 <= SMALL_HESSIAN:
        return LogisticRegression(solver="newton-cholesky", max_iter=100, tol=1e-8).fit(x, y)
    return LogisticRegression(solver="lbfgs", max_iter=5000, tol=1e-4).fit(x, y)

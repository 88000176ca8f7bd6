"""stack: multinomial logistic regression on the members' log-probabilities.

Fitted on OOF outputs of all *fit* rows and applied to the full fits; without fold fits it is blending on *fuse*. Each
member has one temperature for its OOF logits and one for its full fit, so that both speak alike.
"""

from __future__ import annotations

from typing import Self

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import KFold

from fusion.calibration import TINY, fit_temperature
from fusion.outputs import Evidence, Floats, Labels, Table, log_softmax, softmax

STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0)
FEW_ROWS = 5000
SMALL_HESSIAN = 2000


class Stack:
    """`plain=True`: no temperatures and C = 1, scikit-learn's StackingClassifier over log-probabilities.

    Attributes after fit: `temperatures_` (M,) of the full fits, `coef_` (C, M*C), `intercept_` (C,), `few_rows_`.
    """

    def __init__(self, plain: bool = False, strength: float | None = None) -> None:
        self.plain = plain
        self.strength = 1.0 if plain and strength is None else strength

    def fit(self, evidence: Evidence) -> Self:
        source = evidence.oof or evidence.fuse
        groups = evidence.folds if evidence.oof is not None else None
        self.temperatures_ = self._temperatures(evidence.fuse)
        x, y = meta_features(source.logits, self._temperatures(source)), source.labels
        self.strength_ = self.strength if self.strength is not None else _choose(x, y, groups)
        model = _regression(self.strength_, x, y)
        self.coef_, self.intercept_ = _every_class(model, source.logits.shape[-1])
        self.few_rows_ = len(y) < FEW_ROWS
        return self

    def predict_proba(self, table: Table) -> Floats:
        """(n, C)."""
        return softmax(meta_features(table.logits, self.temperatures_) @ self.coef_.T + self.intercept_)

    def _temperatures(self, table: Table) -> Floats:
        if self.plain:
            return np.ones(len(table.logits))
        return np.array([fit_temperature(logits, table.labels) for logits in table.logits])


def meta_features(logits: Floats, temperatures: Floats) -> Floats:
    """(M, n, C) -> (n, M*C) log-probabilities, bounded below."""
    scaled = np.maximum(log_softmax(logits / temperatures[:, None, None]), np.log(TINY))
    return np.concatenate(list(scaled), axis=1)


def _regression(strength: float, x: Floats, y: Labels) -> LogisticRegression:
    """Newton's method where the Hessian is small: it converges to the last digit, and faster than lbfgs."""
    small = x.shape[1] * len(np.unique(y)) <= SMALL_HESSIAN
    solver = "newton-cholesky" if small else "lbfgs"
    return LogisticRegression(C=strength, solver=solver, max_iter=100 if small else 5000, tol=1e-8 if small else 1e-4).fit(x, y)


def _choose(x: Floats, y: Labels, folds: Labels | None) -> float:
    """C with the lowest cross-validated NLL. The validation folds are those of the fold fits where there are any."""
    parts = [(folds != k, folds == k) for k in np.unique(folds)] if folds is not None and (folds >= 0).all() else None
    splits = parts or list(KFold(min(5, len(y)), shuffle=True, random_state=0).split(x))
    classes = np.unique(y)
    losses = []
    for strength in STRENGTHS:
        loss = 0.0
        for kept, out in splits:
            model = _regression(strength, x[kept], y[kept])
            probabilities = np.full((len(y[out]), len(classes)), TINY)
            probabilities[:, np.searchsorted(classes, model.classes_)] = model.predict_proba(x[out])
            loss += log_loss(y[out], probabilities / probabilities.sum(1, keepdims=True), labels=classes, normalize=False)
        losses.append(loss)
    return STRENGTHS[int(np.argmin(losses))]


def _every_class(model: LogisticRegression, count: int) -> tuple[Floats, Floats]:
    """Coefficients for all classes: scikit-learn gives one row for two classes, none for a class it never saw."""
    coef, intercept = model.coef_, model.intercept_
    if len(model.classes_) == 2 and len(coef) == 1:
        coef, intercept = np.concatenate([-coef, coef]) / 2, np.concatenate([-intercept, intercept]) / 2
    full, bias = np.zeros((count, coef.shape[1])), np.full(count, np.log(TINY))
    full[model.classes_], bias[model.classes_] = coef, intercept
    return full, bias

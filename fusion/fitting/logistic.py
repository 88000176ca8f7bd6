"""Fit a plain multinomial logistic regression on many rows: scikit-learn's objective, solved in coordinates that suit it.

Log-probabilities of members that mostly agree are nearly the same column many times over, and L-BFGS then takes hundreds of
steps. The Hessian is about the Gram matrix of the inputs, each row weighted by how unsure the answer is. In coordinates in which
that is the identity, some thirty steps are enough.
"""

from __future__ import annotations

import numpy as np

from fusion.predictions import Floats, Labels, log_softmax

GRADIENT = 1e-4  # the largest entry of the gradient of the summed loss at the end, in these coordinates
MOST_STEPS = 1000


def fit_logistic(x: Floats, y: Labels, guess: Floats) -> tuple[Floats, Floats]:
    """Minimise the summed NLL plus half of the squared coefficients, the objective of scikit-learn's LogisticRegression.

    Args:
        x: (n, D) inputs.
        y: (n,) labels from 0.
        guess: (n, C) probabilities that are about those of the optimum: the nearer, the fewer steps.

    Returns:
        Coefficients (C, D) and intercept (C,).
    """
    from scipy.optimize import minimize

    rows, classes = np.arange(len(y)), guess.shape[1]
    unsure = (guess * (1 - guess)).mean(1)
    mean = np.average(x, axis=0, weights=unsure)
    gram = (x - mean).T @ ((x - mean) * unsure[:, None]) + np.eye(x.shape[1])
    back = np.linalg.inv(np.linalg.cholesky(gram))  # (D, D): coefficients = moves @ back
    z, step = (x - mean) @ back.T, 1 / np.sqrt(unsure.sum())
    one_hot = np.eye(classes)[y]

    def objective(flat: Floats) -> tuple[float, Floats]:
        moves = flat.reshape(classes, -1)
        coef = moves[:, :-1] @ back
        log_p = log_softmax(z @ moves[:, :-1].T + step * moves[:, -1])
        error = np.exp(log_p) - one_hot
        gradient = np.concatenate([error.T @ z + coef @ back.T, step * error.sum(0)[:, None]], axis=1)
        return float(0.5 * (coef**2).sum() - log_p[rows, y].sum()), gradient.ravel()

    options = {"maxiter": MOST_STEPS, "ftol": 1e-14, "gtol": GRADIENT}
    start = np.zeros(classes * (x.shape[1] + 1))
    moves = minimize(objective, start, jac=True, method="L-BFGS-B", options=options).x.reshape(classes, -1)
    coef = moves[:, :-1] @ back
    return coef, step * moves[:, -1] - coef @ mean

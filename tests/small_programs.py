"""Random small convex programs of every kind the solvers meet, degenerate on purpose."""

import warnings
from dataclasses import dataclass, replace

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning

from sklearn_convexbn.losses._base import LOSSES, optimal_intercept
from sklearn_convexbn.program._problem import relative_gap
from sklearn_convexbn.program.units._activations import StoredActivations
from sklearn_convexbn.solvers._lasso import lasso_refit
from sklearn_convexbn.solvers._multi_output_refit import multi_output_refit
from sklearn_convexbn.support._sharding import ALL_HERE
from tests.helpers import make_problem, solve

#: Correlations below this are rounding errors of a target that the constant model fits.
ROUNDING = 1e-14

#: Name -> (losses and their numbers of outputs, what solves it).
KINDS = {
    "gated, newton": [("squared", 1), ("logistic", 1)],
    "gated, fista": [("squared", 1), ("logistic", 1), ("squared", 2), ("softmax", 3)],
    "relu list": [("squared", 1), ("logistic", 1)],
    "lasso": [("squared", 1), ("logistic", 1)],
    "several outputs": [("squared", 2), ("softmax", 3), ("softmax", 4)],
}

#: Kind of a program on a list of arrangements -> its solver.
SOLVERS = {
    "gated, newton": "group_newton",
    "gated, fista": "fista",
    "relu list": "interior_point",
}


def random_rows(rng):
    """Draw X (n, d): few rows or one feature now and then, equal rows and columns, integers."""
    n, d = int(rng.integers(2, 25)), int(rng.choice([1, 1, 2, 3, 5]))
    if rng.random() < 0.15:
        d = n + int(rng.integers(0, 4))
    X = rng.normal(size=(n, d))
    if rng.random() < 0.2:
        X = rng.integers(-1, 2, size=(n, d)).astype(float)
    if rng.random() < 0.1:
        X = np.where(rng.random((n, d)) < 0.1, 100.0, 1.0) * X
    if rng.random() < 0.2:
        X = X[rng.integers(n, size=n)]
    if rng.random() < 0.2:
        X = np.hstack([X, X[:, :1]])
    return X


def random_targets(rng, n, loss, C):
    """Draw targets (n, C); all classes occur where there are rows enough, at least two do."""
    if loss == "squared":
        Y = rng.normal(size=(n, C))
        return np.round(Y) if rng.random() < 0.2 else Y
    codes = rng.permutation(np.arange(n) % max(C, 2))
    return codes[:, None].astype(float) if C == 1 else np.eye(C)[codes]


def random_weights(rng, n):
    """Draw weights: equal, uneven, or over twelve orders of magnitude."""
    if rng.random() < 0.5:
        return np.ones(n)
    return 10.0 ** rng.uniform(-12 if rng.random() < 0.5 else -2, 0, size=n)


def random_gates(rng, k):
    """Draw gates (k, P), some of them equal, opposite or on axes."""
    gates = rng.normal(size=(k, int(rng.integers(1, 33))))
    if rng.random() < 0.3:
        gates = np.hstack([gates, gates, -gates[:, :1]])
    if rng.random() < 0.2:
        gates = np.hstack([gates, np.eye(k)])
    return gates


def random_problem(seed, kind):
    """State a random program on a list of arrangements."""
    rng = np.random.default_rng(seed)
    loss, C = KINDS[kind][rng.integers(len(KINDS[kind]))]
    X = random_rows(rng)
    problem = make_problem(
        X,
        random_targets(rng, len(X), loss, C),
        loss,
        1.0,
        "relu" if kind == "relu list" else "gated_relu",
        fit_intercept=bool(rng.random() < 0.7),
        weights=random_weights(rng, len(X)),
        shrinkage=float(rng.choice([0.0, 0.0, 0.3])),
    )
    gates = random_gates(rng, problem.Z.shape[1])
    gates = np.hstack([gates, np.eye(problem.Z.shape[1])[:, -1:]])  # never none
    problem = replace(problem, gates=gates)
    constant = np.zeros_like(problem.Y) + problem.constant()
    largest = float(problem.gate_norms(problem.dual_point(constant)).max())
    share = 10.0 ** rng.uniform(-4, 0)
    return replace(problem, alpha=share * largest if largest > ROUNDING else 1.0)


@dataclass(frozen=True)
class Refit:
    """A refit of output weights: activations (n, m) with `cells` columns a neuron."""

    A: np.ndarray
    Y: np.ndarray
    p: np.ndarray
    loss: str
    alpha: float
    fit_intercept: bool
    cells: int
    start: np.ndarray

    def norms(self, T):
        return np.linalg.norm(T.reshape(-1, self.cells * T.shape[1]), axis=1)

    def solved(self, tol):
        """Return output weights (m, C) and the intercept (C,)."""
        A, Y, p, V = (torch.as_tensor(a) for a in (self.A, self.Y, self.p, self.start))
        arguments = (StoredActivations(A, ALL_HERE, self.cells), Y, p, LOSSES[self.loss])
        arguments = (*arguments, self.alpha, self.fit_intercept, V)
        if Y.shape[1] * self.cells == 1:
            V, b = lasso_refit(*arguments, tol=tol)
        else:
            V, b = multi_output_refit(*arguments, torch.zeros_like(Y[0]), tol=tol)
        return V.numpy(), b.numpy()

    def value(self, V, b):
        F = self.A @ V + b
        return float(LOSSES[self.loss].value(F, self.Y, self.p)) + self.alpha * self.norms(V).sum()

    def dual(self, V, b):
        """Return the lower bound on the optimum that output weights give, from the definitions."""
        F, loss = self.A @ V, LOSSES[self.loss]
        if self.fit_intercept:
            b = b + optimal_intercept(loss, F + b, self.Y, self.p, ALL_HERE)
        G = loss.gradient(F + b, self.Y, self.p)
        largest = self.norms(self.A.T @ G).max(initial=0.0)
        scale = min(1.0, self.alpha / largest) if largest > 0 else 1.0
        return -float(loss.conjugate(scale * G, self.Y, self.p))

    def gap(self, V, b, tol):
        """Return the relative duality gap, with the bound of a finer solution where needed."""
        value, dual = self.value(V, b), self.dual(V, b)
        if relative_gap(value, dual) > tol:
            dual = max(dual, self.dual(*self.solved(1e-3 * tol)))
        return relative_gap(value, dual)


def random_refit(seed, kind):
    """State a random refit, with equal, opposite, dependent and zero columns now and then."""
    rng = np.random.default_rng(seed)
    loss, C = KINDS[kind][rng.integers(len(KINDS[kind]))]
    X = random_rows(rng)
    weights = random_weights(rng, len(X))
    problem = make_problem(X, random_targets(rng, len(X), loss, C), loss, 1.0, weights=weights)
    cells = 2 if kind != "lasso" and rng.random() < 0.2 else 1
    m = cells * int(rng.integers(1, 30))
    A = np.maximum(problem.Z @ rng.normal(size=(problem.Z.shape[1], m)), 0.0)
    if rng.random() < 0.3:
        A = np.hstack([A, A, 0.5 * A[:, ::-1]])
    if rng.random() < 0.2:
        A = np.hstack([A, A + 1e-8 * rng.normal(size=A.shape) * np.abs(A).max()])
    if rng.random() < 0.2:
        A = np.hstack([A, 0.0 * A[:, :cells]])
    start = np.zeros((A.shape[1], C))
    if rng.random() < 0.5:
        start = rng.normal(size=start.shape) * (rng.random((len(start), 1)) < 0.5)
    fit_intercept = bool(rng.random() < 0.7)
    refit = Refit(A, problem.Y, problem.p, loss, 1.0, fit_intercept, cells, start)
    b = (
        optimal_intercept(LOSSES[loss], 0.0 * refit.Y, refit.Y, refit.p, ALL_HERE)
        if fit_intercept
        else 0.0
    )
    slopes = A.T @ LOSSES[loss].gradient(0.0 * refit.Y + b, refit.Y, refit.p)
    largest, share = refit.norms(slopes).max(), 10.0 ** rng.uniform(-4, 0)
    return replace(refit, alpha=share * largest if largest > ROUNDING else 1.0)


def solved_gap(seed, kind, tol=1e-6):
    """Solve a random program of a kind; return it and the gap that was reached."""
    if kind in ("lasso", "several outputs"):
        refit = random_refit(seed, kind)
        return refit, refit.gap(*refit.solved(tol), tol)
    problem = random_problem(seed, kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the gap says it
        certificate = solve(problem, SOLVERS[kind], tol=tol, max_iter=1000).certificate
    return problem, certificate.gap

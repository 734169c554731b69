"""Small messy problems drawn at random, and what must hold for the fit of each of them.

``python -m tests.fuzz 10000`` fits that many and prints those that fail, with their seeds;
``python -m tests.fuzz --seed 17`` draws and judges one. A seed is the whole case: the same on
every machine, whatever was drawn before it.
"""

from __future__ import annotations

import argparse
import pickle
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning

from sklearn_convexbn import ConvexBNClassifier, ConvexBNRegressor, certify

#: Relative accuracy of objectives and bounds.
ACCURACY = 1e-9


@dataclass(frozen=True)
class Case:
    """A problem and the estimator for it; `kinds` says in words what was drawn."""

    seed: int
    kinds: dict[str, str]
    X: np.ndarray
    y: np.ndarray
    weights: np.ndarray | None
    estimator: ConvexBNRegressor | ConvexBNClassifier

    @property
    def row_weights(self) -> np.ndarray:
        return np.ones(len(self.X)) if self.weights is None else self.weights

    def __str__(self) -> str:
        kinds = ", ".join(f"{name}: {kind}" for name, kind in self.kinds.items())
        estimator = " ".join(repr(self.estimator).split())
        return f"seed {self.seed}: {len(self.X)} x {self.X.shape[1]}, {kinds}; {estimator}"


# Kinds of X: functions of a generator, n and d.


def _normal(rng, n, d):
    return rng.normal(size=(n, d))


def _with_constants(rng, n, d):
    X = rng.normal(size=(n, d))
    X[:, rng.random(d) < 0.5] = rng.choice([0.0, 1.0, -3.7])
    return X


def _duplicated(rng, n, d):
    rows = rng.normal(size=(max(1, n // 3), d))[rng.integers(0, max(1, n // 3), n)]
    return rows[:, rng.integers(0, d, d)]


def _one_hot(rng, n, d):
    return np.eye(max(2, d))[rng.integers(0, max(2, d), n)]


def _integers(rng, n, d):
    return rng.integers(-2, 3, (n, d)).astype(float)


def _near_collinear(rng, n, d):
    base, size = rng.normal(size=(n, 1)), 10.0 ** rng.uniform(-6, -2)
    return base * rng.normal(size=d) + size * rng.normal(size=(n, d))


def _mixed_scale(rng, n, d):
    return rng.normal(size=(n, d)) * 10.0 ** rng.uniform(-4, 4, d)


def _heavy_tails(rng, n, d):
    return rng.standard_t(1.2, size=(n, d))


def _offset(rng, n, d):
    return rng.normal(size=(n, d)) + 10.0 ** rng.uniform(0, 5, d)


def _wide(rng, n, d):
    return rng.normal(size=(n, n + d))


X_KINDS: dict[str, Callable[..., np.ndarray]] = {
    "normal": _normal,
    "constant columns": _with_constants,
    "duplicated": _duplicated,
    "one-hot": _one_hot,
    "integers": _integers,
    "near-collinear": _near_collinear,
    "mixed scale": _mixed_scale,
    "heavy tails": _heavy_tails,
    "offset": _offset,
    "wide": _wide,
}

# Kinds of y, of a generator and X.


def _score(rng, X):
    """Return a nonlinear function (n,) of X with noise."""
    Z = (X - X.mean(axis=0)) / np.maximum(X.std(axis=0), 1e-12)
    u, v = rng.normal(size=(2, X.shape[1])) / np.sqrt(X.shape[1])
    return np.abs(Z @ u) + Z @ v + 0.3 * rng.normal(size=len(X))


def _with_all_classes(codes, n_classes):
    codes[:n_classes] = np.arange(n_classes)
    return codes


def _classes(rng, X):
    n_classes = int(rng.integers(3, 6))
    score = _score(rng, X)
    ranks = np.argsort(np.argsort(score, kind="stable"), kind="stable")
    return _with_all_classes(ranks * n_classes // len(X), n_classes)


REGRESSION_KINDS: dict[str, Callable[..., np.ndarray]] = {
    "one output": _score,
    "several outputs": lambda rng, X: np.column_stack(
        [_score(rng, X) for _ in range(rng.integers(2, 5))]
    ),
    "constant": lambda rng, X: np.full(len(X), rng.choice([0.0, 3.3, -1e4])),
    "heavy tails": lambda rng, X: rng.standard_t(1.2, size=len(X)),
    "large": lambda rng, X: 1e6 + 1e4 * _score(rng, X),
}

CLASS_KINDS: dict[str, Callable[..., np.ndarray]] = {
    "binary": lambda rng, X: _with_all_classes((_score(rng, X) > 0.5).astype(int), 2),
    "several classes": _classes,
    "unbalanced": lambda rng, X: _with_all_classes((rng.random(len(X)) < 0.05).astype(int), 2),
    "unbalanced, three": lambda rng, X: _with_all_classes(
        rng.choice(3, size=len(X), p=[0.9, 0.07, 0.03]), 3
    ),
}


def _weights(rng, kind, y, *, classify):
    """Return sample weights (n,) of a kind, positive on a row of every class."""
    n = len(y)
    if kind == "none":
        return None
    if kind == "zeros":
        weights = rng.uniform(0.5, 2.0, n) * (rng.random(n) < 0.7)
    elif kind == "integers":
        weights = rng.integers(0, 4, n).astype(float)
    else:
        weights = 10.0 ** rng.uniform(-9, 3, n)
    needed = np.unique(y, return_index=True)[1] if classify else np.array([0])
    weights[needed] = np.maximum(weights[needed], 1e-9)
    weights[needed[weights[needed] < 1e-8]] += 1.0 if kind in ("zeros", "integers") else 0.0
    if kind == "integers":
        weights = np.round(weights)
    return weights


WEIGHT_KINDS = ("none", "zeros", "integers", "twelve orders of magnitude")


def draw(seed: int) -> Case:
    """Draw a case."""
    rng = np.random.default_rng([seed, 20260])
    # 3 to 60 rows, most often few: proofs take long of many.
    n, d = round(3 * 20.0 ** rng.random()), int(rng.integers(1, 7))
    of_X = str(rng.choice(list(X_KINDS)))
    X = X_KINDS[of_X](rng, n, d)
    classify = bool(rng.random() < 0.5)
    kinds = CLASS_KINDS if classify else REGRESSION_KINDS
    of_y = str(rng.choice(list(kinds)))
    n = max(n, 6 if classify else 3)
    if len(X) < n:
        X = X_KINDS[of_X](rng, n, d)
    y = kinds[of_y](rng, X)
    of_weights = str(rng.choice(WEIGHT_KINDS))
    weights = _weights(rng, of_weights, y, classify=classify)
    estimator, program = _estimator(rng, n, X.shape[1], y, classify=classify)
    described = {"X": of_X, "y": of_y, "weights": of_weights, "program": program}
    return Case(seed, described, X, y, weights, estimator)


def _estimator(rng, n, d, y, *, classify):
    """Return an estimator, and its program in words."""
    loss = str(rng.choice(["log_loss", "log_loss", "squared_error"])) if classify else None
    outputs = max(len(np.unique(y)) if classify else 1, 1 if y.ndim == 1 else y.shape[1])
    one_output = (outputs <= 2) if classify else (outputs == 1)
    programs = ["relu"] * 6 + ["gated_relu"] * 3 + (["relu list"] * 2 if one_output else [])
    program = str(rng.choice(programs))
    solver = "auto"
    if program != "relu":
        small = n <= 20 and d <= 4
        own = "interior_point" if program == "relu list" else "group_newton"
        own = own if one_output else "fista"
        solver = "cvxpy" if small and rng.random() < 0.3 else own
    # Networks of several outputs take long at small alpha and tol.
    slow = program == "relu" and not one_output
    options = {
        "alpha": float(10.0 ** rng.uniform(-2 if slow else -3, 0)),
        "tol": float(10.0 ** rng.uniform(-2.5 if slow else -3.5, -1)),
        "n_components": [None, None, None, 1, 2, 0.9][rng.integers(6)],
        "shrinkage": [0.0, 0.0, 0.0, 0.1, 1.0, "auto"][rng.integers(6)],
        "activation": "gated_relu" if program == "gated_relu" else "relu",
        "solver": solver,
        "n_gates": int(rng.choice([4, 8, 20])),
        "fit_intercept": bool(rng.random() < 0.8),
        "random_state": int(rng.integers(1000)),
    }
    if classify:
        return ConvexBNClassifier(loss=loss, **options), f"{program}, {loss}, {solver}"
    return ConvexBNRegressor(**options), f"{program}, {solver}"


@dataclass
class Verdict:
    """What was wrong with a case: kind of fault -> numbers in words."""

    case: Case
    faults: dict[str, str] = field(default_factory=dict)
    stopped: str = ""

    def expect(self, holds: bool, fault: str, details: str = "") -> None:
        if not holds:
            self.faults[fault] = details


def judge(seed: int) -> Verdict:
    """Fit a case and check all that must hold."""
    case = draw(seed)
    verdict = Verdict(case)
    try:
        fitted, verdict.stopped = _fitted(case.estimator, case.X, case.y, case.weights)
        _check_values(verdict, fitted)
        _check_predictions(verdict, fitted)
        _check_rows(verdict, fitted)
        if fitted.activation == "relu":
            _check_certify(verdict, fitted)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        words = f"{type(error).__name__}: {str(error)[:200]} ({where.filename}:{where.lineno})"
        verdict.faults["raises"] = words
    return verdict


def _fitted(estimator, X, y, weights):
    """Return a fitted clone, and the warning that it has stopped short, if any."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fitted = clone(estimator).fit(X, y, sample_weight=weights)
    others = [str(w.message) for w in caught if not issubclass(w.category, ConvergenceWarning)]
    if others:
        raise AssertionError(f"warns: {others[0]}")
    return fitted, next((str(w.message) for w in caught), "")


def _check_values(verdict: Verdict, fitted) -> None:
    """Objective and bound: finite, the bound below, the objective as recomputed."""
    certificate = fitted.certificate_
    numbers = (certificate.primal, certificate.dual, certificate.gap, certificate.infeasibility)
    verdict.expect(bool(np.isfinite(numbers).all()), "certificate not finite", str(numbers))
    verdict.expect(fitted.dual_gap_ >= 0.0, "gap below zero", f"{fitted.dual_gap_:.3g}")
    slack = ACCURACY * abs(certificate.primal)
    verdict.expect(
        certificate.dual <= certificate.primal + slack,
        "bound above the objective",
        f"{certificate.dual!r} > {certificate.primal!r}",
    )
    verdict.expect(certificate.dual >= 0.0, "bound below zero", f"{certificate.dual:.3g}")
    expected = recomputed_objective(verdict.case, fitted)
    error = abs(fitted.objective_ - expected) / max(abs(expected), 1e-300)
    scale = _loss_of_nothing(verdict.case, fitted)
    close = abs(fitted.objective_ - expected) <= ACCURACY * abs(expected) + 1e-14 * scale
    verdict.expect(close, "objective differs", f"{fitted.objective_!r}, {expected!r}, {error:.2g}")
    stuck = "Progress has come to a halt" in verdict.stopped
    verdict.expect(not stuck, "stalled", verdict.stopped)


def recomputed_objective(case: Case, fitted) -> float:
    """Return the objective of the network in ``coefs_`` and ``intercepts_``, in plain NumPy."""
    X, p = case.X, case.row_weights / case.row_weights.sum()
    W, V = fitted.coefs_
    mean = p @ X
    centred = (X - mean) @ W
    hidden = centred + (fitted.intercepts_[0] + mean @ W)
    on = hidden > 0
    if fitted.activation == "gated_relu":
        G = fitted.gates_
        on = (X - mean) @ G[:-1] + (G[-1] + mean @ G[:-1]) >= 0
    F = (hidden * on) @ V + fitted.intercepts_[1]
    variance = p @ centred**2
    if fitted.shrinkage_ > 0:
        s, columns = fitted.shrinkage_, p @ (X - mean) ** 2
        variance = (1 - s) * variance + s * (columns @ W**2)
    shift = fitted.intercepts_[0] + mean @ W
    mass = float(np.sqrt(variance + shift**2) @ np.linalg.norm(V, axis=1))
    return _mean_loss(case, fitted, F, p) + fitted.weight_decay_ * mass


def _mean_loss(case: Case, fitted, F: np.ndarray, p: np.ndarray) -> float:
    """Return the mean loss of outputs F (n, C)."""
    if isinstance(fitted, ConvexBNRegressor):
        return 0.5 * float(p @ ((F - case.y.reshape(len(F), -1)) ** 2).sum(axis=1))
    kept = p > 0
    F, p, y = F[kept], p[kept], case.y[kept]
    codes = np.searchsorted(fitted.classes_, y)
    if fitted.loss == "squared_error":
        binary = len(fitted.classes_) == 2
        Y = 2.0 * codes[:, None] - 1.0 if binary else np.eye(len(fitted.classes_))[codes]
        return 0.5 * float(p @ ((F - Y) ** 2).sum(axis=1))
    if F.shape[1] == 1:
        F = np.hstack([np.zeros_like(F), F])
    own = F[np.arange(len(F)), codes]
    return float(p @ (np.logaddexp.reduce(F - own[:, None], axis=1)))


def _loss_of_nothing(case: Case, fitted) -> float:
    """Return a size that rounding errors of an objective are relative to."""
    if isinstance(fitted, ConvexBNClassifier):
        return 1.0
    return float(np.abs(case.y).max()) ** 2


def _check_predictions(verdict: Verdict, fitted) -> None:
    """Predictions are finite, follow from the scores and survive pickling."""
    X = verdict.case.X
    predicted = fitted.predict(X)
    raw = fitted._raw_predict(X)
    verdict.expect(bool(np.isfinite(raw).all()), "predictions not finite")
    if isinstance(fitted, ConvexBNClassifier):
        scores = fitted.decision_function(X)
        codes = (scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(axis=1)
        same = np.array_equal(fitted.classes_[codes], predicted)
        verdict.expect(same, "predict is not the argmax of decision_function")
        if fitted.loss == "log_loss":
            probabilities = fitted.predict_proba(X)
            likeliest = fitted.classes_[probabilities.argmax(axis=1)]
            same = np.array_equal(likeliest, predicted)
            verdict.expect(same, "predict is not the argmax of predict_proba")
            sums = np.abs(probabilities.sum(axis=1) - 1.0).max()
            verdict.expect(bool(sums < 1e-12), "probabilities do not sum to one", f"{sums:.2g}")
    again = pickle.loads(pickle.dumps(fitted)).predict(X)
    verdict.expect(np.array_equal(again, predicted), "pickling changes predictions")


def _check_rows(verdict: Verdict, fitted) -> None:
    """Rows in another order, and written as often as they weigh, give the same network."""
    case = verdict.case
    rewritten = list(_rewritten_rows(case))
    index, weights = (np.array(column) for column in zip(*rewritten, strict=True))
    order = np.random.default_rng(case.seed).permutation(len(index))
    index, weights = index[order], weights[order]
    other, _ = _fitted(case.estimator, case.X[index], case.y[index], weights)
    same = np.array_equal(other._raw_predict(case.X), fitted._raw_predict(case.X))
    difference = np.abs(other._raw_predict(case.X) - fitted._raw_predict(case.X)).max()
    verdict.expect(same, "depends on how rows are written", f"{difference:.2g}")


def _rewritten_rows(case: Case) -> Iterator[tuple[int, float]]:
    """Yield indices of rows and weights that say the same as the case's.

    Whole weights are written as that many rows, no weights as one row of the weight of all that
    are equal to it; rows of weight zero are left out.
    """
    if case.weights is None:
        whole = np.column_stack([case.X, case.y])
        _, first, counts = np.unique(whole, axis=0, return_index=True, return_counts=True)
        yield from zip(first, counts.astype(float), strict=True)
        return
    for i, weight in enumerate(case.weights):
        if case.kinds["weights"] == "integers":
            yield from [(i, 1.0)] * int(weight)
        elif weight > 0:
            yield i, weight


def _check_certify(verdict: Verdict, fitted) -> None:
    """The certificate of the network as any other's agrees with that of the fit."""
    case = verdict.case
    judged = certify(
        fitted,
        case.X,
        case.y,
        alpha=fitted.alpha,
        sample_weight=case.weights,
        effort=100,
        random_state=0,
    )
    primal, bound = judged.primal, judged.dual
    verdict.expect(bool(np.isfinite([primal, bound]).all()), "certify is not finite")
    scale = _loss_of_nothing(case, fitted)
    error = abs(primal - fitted.objective_)
    verdict.expect(
        error <= ACCURACY * primal + 1e-14 * scale,
        "certify has another objective",
        f"{primal!r}, {fitted.objective_!r}",
    )
    verdict.expect(0.0 <= judged.gap <= 1.0, "certify's gap is not in [0, 1]", f"{judged.gap:.3g}")
    verdict.expect(
        bound <= fitted.objective_ * (1 + ACCURACY) + 1e-14 * scale,
        "certify's bound is above the fit's objective",
        f"{bound!r} > {fitted.objective_!r}",
    )
    every = fitted.certificate_.program == "all arrangements"
    if fitted.certificate_.kind == judged.kind == "exact" and every:
        verdict.expect(
            judged.gap <= max(2 * fitted.dual_gap_, fitted.tol) + 1e-6,
            "certify proves less than the fit",
            f"{judged.gap:.3g}, {fitted.dual_gap_:.3g}",
        )


def main(arguments: list[str] | None = None) -> int:
    """Judge many cases; print what fails and how often."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("count", type=int, nargs="?", default=300)
    parser.add_argument("--first", type=int, default=0, help="seed of the first case")
    parser.add_argument("--seed", type=int, help="judge this case alone")
    options = parser.parse_args(arguments)
    first, count = (options.first, options.count) if options.seed is None else (options.seed, 1)
    begin, tally, failing = time.perf_counter(), Counter(), 0
    if options.seed is not None:
        print(draw(options.seed))
    for seed in range(first, first + count):
        start = time.perf_counter()
        verdict = judge(seed)
        seconds = time.perf_counter() - start
        if seconds > 10.0:
            print(f"{seconds:.0f} s for {verdict.case}", flush=True)
        failing += bool(verdict.faults)
        for fault, details in verdict.faults.items():
            tally[fault] += 1
            print(f"{fault} ({details})\n    {verdict.case}", flush=True)
    print(f"{failing} of {count} cases fail, {time.perf_counter() - begin:.0f} s")
    for fault, times in tally.most_common():
        print(f"{times:6d} {fault}")
    return int(failing > 0)


if __name__ == "__main__":
    sys.exit(main())

"""alpha="auto": how it begins, and that noise in the targets raises it."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning

from sklearn_convexbn import ConvexBNClassifier, ConvexBNRegressor, Patches
from sklearn_convexbn.fit._automatic_alpha import (
    FACTOR,
    FREEDOM,
    MOST_RAISES,
    RISE,
    SCALE,
    RiseOfEstimate,
    first_alpha,
)
from sklearn_convexbn.losses import Huber, Poisson, Quantile
from sklearn_convexbn.losses._base import LOSSES
from sklearn_convexbn.program._problem import Neurons
from sklearn_convexbn.solvers import Result
from tests.helpers import problem_and_whitening


def noisy(n=300, d=8, seed=0):
    """Return rows and a target that is mostly noise."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d))
    return X, np.maximum(X[:, 0], 0) + 1.5 * rng.standard_normal(n)


def clean(n=300, d=8):
    """Return rows and a target that three neurons fit."""
    X, _ = noisy(n, d)
    return X, np.maximum(X[:, 0], 0) - np.maximum(X[:, 1] - X[:, 2], 0)


def fitted(model, X, y, sample_weight=None):
    """Fit; no warning may arise."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return model.set_params(random_state=0).fit(X, y, sample_weight=sample_weight)


def steps(model, n):
    """Return how often alpha was raised."""
    return np.log(model.alpha_ / first_alpha(n)) / np.log(FACTOR)


def test_first_alpha_falls_with_the_total_weight():
    X, y = clean()
    assert fitted(ConvexBNRegressor(), X, y).alpha_ == SCALE / 300**0.25
    assert fitted(ConvexBNRegressor(), X, y, np.full(300, 2.5)).alpha_ == SCALE / 750**0.25
    assert fitted(ConvexBNRegressor(), X, y, np.full(300, 1e-3)).alpha_ == SCALE


@pytest.mark.parametrize(
    "model",
    [
        ConvexBNRegressor(),
        ConvexBNRegressor(loss="huber"),
        ConvexBNRegressor(loss="quantile"),
        ConvexBNClassifier(),
        ConvexBNClassifier(loss="squared_error"),
    ],
    ids=lambda model: f"{type(model).__name__} {model.loss}",
)
def test_noise_raises_alpha_by_whole_steps(model):
    X, y = noisy()
    y = y > 0.4 if isinstance(model, ConvexBNClassifier) else y
    count = steps(fitted(model, X, y), 300)
    assert round(count) >= 1
    assert count == pytest.approx(round(count), abs=1e-9)
    assert model.alpha_ <= FACTOR**MOST_RAISES * first_alpha(300)
    assert model.dual_gap_ <= model.tol  # that of the last alpha


def test_noise_raises_alpha_for_several_classes_outputs_and_counts():
    X, y = noisy()
    classes = np.digitize(y, [0.0, 1.0])
    assert round(steps(fitted(ConvexBNClassifier(), X, classes), 300)) >= 1
    outputs = np.c_[y, np.roll(y, 1)]
    assert round(steps(fitted(ConvexBNRegressor(), X, outputs), 300)) >= 1
    counts = np.random.default_rng(0).poisson(np.exp(0.5 * X[:, 0]))
    assert round(steps(fitted(ConvexBNRegressor(loss="poisson"), X, counts), 300)) >= 1


def test_a_raised_alpha_predicts_better_than_the_first():
    X, y = noisy()
    X_new, y_new = noisy(2000, seed=1)
    raised = fitted(ConvexBNRegressor(), X, y)
    first = fitted(ConvexBNRegressor(first_alpha(300)), X, y)
    assert raised.score(X_new, y_new) > first.score(X_new, y_new) + 0.2


def test_the_result_is_that_of_the_last_alpha():
    """A fit with the alpha that was found has the same optimum."""
    X, y = noisy()
    model = fitted(ConvexBNRegressor(tol=1e-2), X, y)
    again = fitted(ConvexBNRegressor(model.alpha_, tol=1e-2), X, y)
    assert model.objective_ == pytest.approx(again.objective_, rel=1e-2)
    assert len(model.history_["objective"]) == model.n_iter_
    assert model.history_["objective"][-1] == model.objective_
    assert model.weight_decay_ == pytest.approx(model.alpha_ * y.std())


def test_a_weight_of_two_is_the_row_twice():
    X, y = noisy()
    weights = np.where(np.arange(300) % 3 == 0, 2.0, 1.0)
    weighted = fitted(ConvexBNRegressor(), X, y, weights)
    twice = np.repeat(np.arange(300), weights.astype(int))
    repeated = fitted(ConvexBNRegressor(), X[twice], y[twice])
    assert weighted.alpha_ == repeated.alpha_ > first_alpha(weights.sum())
    assert weighted.predict(X) == pytest.approx(repeated.predict(X), abs=1e-6)


def test_alphas_given_solvers_of_lists_and_patches_keep_their_alpha():
    X, y = noisy()
    assert fitted(ConvexBNRegressor(0.001), X, y).alpha_ == 0.001
    gated = fitted(ConvexBNRegressor(activation="gated_relu"), X, y)
    assert gated.alpha_ == first_alpha(300)
    images = fitted(ConvexBNRegressor(patches=Patches((2, 4), size=2)), X, y)
    assert images.alpha_ == first_alpha(300)


def test_max_iter_counts_the_rounds_of_all_alphas(capsys):
    X, y = noisy()
    fitted(ConvexBNRegressor(verbose=1), X, y)
    printed = capsys.readouterr().out
    rounds, raises = printed.count("round "), printed.count("fit noise: alpha=")
    assert raises >= 1
    for fewer in range(1, rounds - 1):
        with pytest.warns(ConvergenceWarning, match="Increase max_iter"):
            ConvexBNRegressor(max_iter=fewer, random_state=0, verbose=1).fit(X, y)
        assert capsys.readouterr().out.count("round ") == fewer


def test_warm_start_goes_on_and_raises_alpha_again():
    X, y = noisy()
    model = fitted(ConvexBNRegressor(warm_start=True), X, y)
    alpha = model.alpha_
    fitted(model, X, y)
    assert first_alpha(300) < model.alpha_ <= FACTOR * alpha


def test_rows_in_another_order_raise_it_alike():
    X, y = noisy()
    order = np.random.default_rng(0).permutation(300)
    model = fitted(ConvexBNRegressor(), X, y)
    assert fitted(ConvexBNRegressor(), X[order], y[order]).alpha_ == model.alpha_


def test_the_rise_is_that_above_the_least_estimate():
    """Rounds with made-up losses and numbers of neurons, next to the formula."""
    X, y = noisy(100)
    problem, _ = problem_and_whitening(X, y, "squared", 0.01)
    rise = RiseOfEstimate(problem, 100.0)

    def looks(loss, m):
        neurons = Neurons(np.ones((m, 9)) / 3.0, np.ones((m, 1)), np.zeros(1))
        certificate = problem.certificate(neurons, largest_correlation=1.0)[1]
        certificate = replace(certificate, primal=loss + 0.01 * m)
        return rise(Result.of(problem, (neurons, certificate), [(0, 0, 0, 0, "")], False))

    estimates = [1.0 / (1 - 0.15) ** 2, 0.8 / (1 - 0.3) ** 2, 0.7 / (1 - 0.45) ** 2]
    assert FREEDOM == 3.0
    assert estimates[1] < (1 + RISE) * estimates[0] < estimates[2]
    assert [looks(1.0, 5), looks(0.8, 10), looks(0.7, 15)] == [False, False, True]
    assert not looks(0.1, 15)
    assert looks(0.4, 15)


def test_light_rows_count_by_their_effective_number():
    X, y = noisy(100)
    weights = np.where(np.arange(100) < 50, 1.0, 3.0)
    problem, _ = problem_and_whitening(X, y, "squared", 0.01, weights=weights)
    assert RiseOfEstimate(problem, 200.0).n_rows == 200.0
    assert RiseOfEstimate(problem, 1.0).n_rows == pytest.approx(80.0)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (LOSSES["squared"], 0.5 / 0.64),
        (Huber(), 0.5 / 0.64),
        (Quantile(), 0.5 / 0.8),
        (LOSSES["logistic"], 0.7),
        (LOSSES["softmax"], 0.7),
        (Poisson(), 0.7),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_estimated_errors_of_losses(loss, expected):
    assert loss.estimated_error(0.5, 0.2) == pytest.approx(expected, rel=1e-12)
    assert loss.estimated_error(0.5, 0.0) == 0.5
    assert np.isfinite(loss.estimated_error(0.5, 1.0))
    assert loss.estimated_error(0.5, 2.0) >= loss.estimated_error(0.5, 0.9)


def test_the_estimate_is_near_the_error_on_new_rows_of_a_linear_fit():
    """Generalized cross-validation where degrees of freedom are known: least squares."""
    rng = np.random.default_rng(0)
    n, d = 200, 50
    estimates, errors = [], []
    for _ in range(50):
        X, noise = rng.standard_normal((n, d)), rng.standard_normal(n)
        w = np.linalg.lstsq(X, noise, rcond=None)[0]
        value = 0.5 * np.mean((noise - X @ w) ** 2)
        estimates.append(LOSSES["squared"].estimated_error(value, d / n))
        errors.append(0.5 * (1 + w @ w))
    assert np.mean(estimates) == pytest.approx(np.mean(errors), rel=0.05)

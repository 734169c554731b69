"""The refit of one output: the lasso, from the definitions and against independent solvers."""

import cvxpy as cp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import Lasso

from sklearn_convexbn.losses._base import LOSSES
from sklearn_convexbn.program.units._activations import StoredActivations
from sklearn_convexbn.solvers._lasso import lasso_refit, quadratic_lasso
from sklearn_convexbn.support._sharding import ALL_HERE


def refit_data(seed, n=60, m=25, loss="squared"):
    """Activations (non-negative, many zeros), targets, uneven weights and a mid-path alpha."""
    rng = np.random.default_rng(seed)
    A = np.maximum(rng.normal(size=(n, m)), 0.0)
    y = A @ (rng.normal(size=m) * (rng.random(m) < 0.3)) + 0.5 * rng.normal(size=n)
    if loss == "logistic":
        y = (y > np.median(y)).astype(float)
    p = rng.uniform(0.2, 2.0, size=n)
    p /= p.sum()
    centred = y - p @ y
    return A, y, p, 0.03 * float(np.abs(A.T @ (p * centred)).max())


def refit(A, y, p, alpha, loss="squared", fit_intercept=True, start=None):
    start = torch.zeros(A.shape[1], 1, dtype=torch.float64) if start is None else start
    tensors = (torch.as_tensor(a) for a in (A, y[:, None], p))
    A, Y, p = tensors
    A = StoredActivations(A, ALL_HERE)
    v, b = lasso_refit(A, Y, p, LOSSES[loss], alpha, fit_intercept, start)
    return v.numpy()[:, 0], float(b[0])


def refit_gap(A, y, p, alpha, v, b, loss="squared", fit_intercept=True):
    """Return the relative duality gap of output weights, from the definitions."""
    p, Y = np.asarray(p), y[:, None]
    F = (A @ v + b)[:, None]
    Lambda = -LOSSES[loss].gradient(F, Y, p)
    scale = min(1.0, alpha / np.abs(A.T @ Lambda).max())
    primal = LOSSES[loss].value(F, Y, p) + alpha * np.abs(v).sum()
    if fit_intercept:
        assert abs(Lambda.sum()) <= 1e-12
    return (primal + LOSSES[loss].conjugate(-scale * Lambda, Y, p)) / primal


@pytest.mark.parametrize("fit_intercept", [True, False])
def test_refit_is_the_lasso(fit_intercept):
    A, y, p, alpha = refit_data(0)
    v, b = refit(A, y, p, alpha, fit_intercept=fit_intercept)
    assert refit_gap(A, y, p, alpha, v, b, fit_intercept=fit_intercept) <= 1e-9
    lasso = Lasso(alpha, fit_intercept=fit_intercept, tol=1e-14, max_iter=100_000)
    lasso.fit(A, y, sample_weight=p * len(y))
    np.testing.assert_allclose(v, lasso.coef_, atol=1e-7)
    assert b == pytest.approx(lasso.intercept_, abs=1e-7)
    assert 0 < np.count_nonzero(v) < len(v)


@pytest.mark.parametrize("fit_intercept", [True, False])
def test_logistic_refit_has_the_value_of_cvxpy(fit_intercept):
    A, y, p, alpha = refit_data(1, loss="logistic")
    v, b = refit(A, y, p, alpha, "logistic", fit_intercept)
    assert refit_gap(A, y, p, alpha, v, b, "logistic", fit_intercept) <= 1e-9
    w, c = cp.Variable(A.shape[1]), cp.Variable() if fit_intercept else 0.0
    F = A @ w + c
    mean = p @ (cp.logistic(F) - cp.multiply(y, F))
    program = cp.Problem(cp.Minimize(mean + alpha * cp.norm1(w)))
    program.solve(solver="CLARABEL", tol_gap_rel=1e-11, tol_gap_abs=1e-11)
    F = (A @ v + b)[:, None]
    value = LOSSES["logistic"].value(F, y[:, None], p) + alpha * np.abs(v).sum()
    assert value == pytest.approx(program.value, rel=1e-8)


@pytest.mark.parametrize("loss", ["squared", "logistic"])
@pytest.mark.parametrize("noise", [0.0, 1e-12, 1e-6])
def test_refit_with_equal_and_nearly_equal_columns(noise, loss):
    A, y, p, alpha = refit_data(2, loss=loss)
    rng = np.random.default_rng(0)
    wide = np.hstack([A, A + noise * rng.normal(size=A.shape), A])
    v, _ = refit(A, y, p, alpha, loss)
    wide_v, wide_b = refit(wide, y, p, alpha, loss)
    assert refit_gap(wide, y, p, alpha, wide_v, wide_b, loss) <= 1e-9
    narrow, full = (np.abs(x).sum() for x in (v, wide_v))
    assert full == pytest.approx(narrow, rel=1e-4)


@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_refit_from_a_start(loss):
    A, y, p, alpha = refit_data(3, loss=loss)
    v, b = refit(A, y, p, alpha, loss)
    for start in (v, np.zeros_like(v), 10 * np.random.default_rng(0).normal(size=len(v))):
        again, c = refit(A, y, p, alpha, loss, start=torch.as_tensor(start)[:, None])
        np.testing.assert_allclose(again, v, atol=1e-5)
        assert c == pytest.approx(b, abs=1e-5)


def test_refit_of_more_neurons_than_rows_and_of_none():
    A, y, p, alpha = refit_data(4, n=20, m=100)
    v, b = refit(A, y, p, alpha)
    assert refit_gap(A, y, p, alpha, v, b) <= 1e-9
    v, b = refit(A[:, :0], y, p, alpha)
    assert v.shape == (0,)
    assert b == pytest.approx(p @ y)
    v, b = refit(A, y, p, 1e3)
    assert not v.any()


@given(st.integers(0, 2**32 - 1), st.integers(1, 20), st.floats(0.01, 1.0))
def test_quadratic_lasso_is_optimal_for_any_gram_matrix_and_start(seed, m, alpha):
    """Integer data, so that equal, opposite and dependent columns are common."""
    rng = np.random.default_rng(seed)
    A = rng.integers(-2, 3, size=(8, m)).astype(float)
    H, c = A.T @ A, A.T @ rng.integers(-3, 4, size=8)
    v = quadratic_lasso(H, c, alpha, rng.integers(-1, 2, size=m) * 5.0)
    slopes = c - H @ v
    assert np.abs(slopes).max() <= alpha * (1 + 1e-6) + 1e-9
    np.testing.assert_allclose(slopes[v != 0], alpha * np.sign(v[v != 0]), atol=1e-6)
    assert np.linalg.matrix_rank(A[:, v != 0], tol=1e-8) == np.count_nonzero(v)


def test_active_columns_are_independent_at_no_loss():
    """Carathéodory: ten copies of three columns end as at most three."""
    rng = np.random.default_rng(0)
    base = np.maximum(rng.normal(size=(30, 3)), 0.0)
    A, y, p = (
        base @ rng.dirichlet(np.ones(3), size=10).T,
        base @ [1.0, 2.0, 3.0],
        np.full(30, 1 / 30),
    )
    start = torch.ones(10, 1, dtype=torch.float64)
    v, _ = refit(A, y, p, 1e-3, fit_intercept=False, start=start)
    assert 0 < np.count_nonzero(v) <= 3

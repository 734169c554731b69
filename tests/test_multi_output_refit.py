"""The refit of several outputs: optimality, agreement with other solvers, degenerate inputs."""

from functools import partial

import cvxpy as cp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import make_regression

from sklearn_convexbn import convexbn_path
from sklearn_convexbn.losses._base import (
    LOSSES,
    _summed_hessian,
    newton_change,
    optimal_intercept,
)
from sklearn_convexbn.program.units._activations import StoredActivations
from sklearn_convexbn.solvers import _multi_output_refit
from sklearn_convexbn.solvers._lasso import lasso_refit
from sklearn_convexbn.solvers._multi_output_refit import multi_output_refit
from sklearn_convexbn.solvers._refit_metric import GramMetric, RowMetric, scale_product
from sklearn_convexbn.support._sharding import ALL_HERE

stored = partial(StoredActivations, shards=ALL_HERE)

SEVERAL = [("squared", 3), ("softmax", 4)]


def refit_data(seed, loss, C, n=80, m=25, share=0.03):
    """Return activations with many zeros, targets, uneven weights and a mid-path alpha."""
    rng = np.random.default_rng(seed)
    A = np.maximum(rng.normal(size=(n, m)), 0.0)
    F = A @ (rng.normal(size=(m, C)) * (rng.random((m, 1)) < 0.3)) + 0.5 * rng.normal(size=(n, C))
    if loss == "softmax":
        F = np.eye(C)[F.argmax(axis=1)]
    elif loss == "logistic":
        F = (np.median(F) < F).astype(float)
    p = rng.uniform(0.2, 2.0, size=n)
    p /= p.sum()
    A, Y, p = (torch.as_tensor(a) for a in (A, F, p))
    return A, Y, p, share * float((A.T @ (p[:, None] * (Y - p @ Y))).norm(dim=1).max())


def refit(A, Y, p, alpha, loss, fit_intercept=True, start=None, tol=1e-9, **limits):
    V = A.new_zeros(A.shape[1], Y.shape[1]) if start is None else start
    b = torch.zeros_like(Y[0])
    loss = LOSSES[loss]
    return multi_output_refit(stored(A), Y, p, loss, alpha, fit_intercept, V, b, tol, **limits)


def objective(A, Y, p, alpha, loss, V, b):
    return float(LOSSES[loss].value(A @ V + b, Y, p) + alpha * V.norm(dim=1).sum())


def assert_optimal(A, Y, p, alpha, loss, V, b, fit_intercept=True, tol=1e-5):
    """Check the optimality conditions, relative to alpha."""
    G = LOSSES[loss].gradient(A @ V + b, Y, p)
    gradient, norms = A.T @ G, V.norm(dim=1)
    support = norms > 0
    assert bool((gradient.norm(dim=1) <= alpha * (1 + tol)).all())
    residual = gradient[support] + alpha * V[support] / norms[support, None]
    assert bool((residual.norm(dim=1) <= tol * alpha).all())
    if fit_intercept:
        assert float(G.sum(dim=0).abs().max()) <= 1e-12


def relative_gap(A, Y, p, alpha, loss, V, b):
    """Return the relative duality gap, from the definitions."""
    primal = objective(A, Y, p, alpha, loss, V, b)
    G = LOSSES[loss].gradient(A @ V + b, Y, p)
    G = G * min(1.0, alpha / float((A.T @ G).norm(dim=1).max()))
    assert float(G.sum(dim=0).abs().max()) <= 1e-12
    return (primal + float(LOSSES[loss].conjugate(G, Y, p))) / primal


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize(("loss", "C"), [*SEVERAL, ("squared", 1), ("logistic", 1)])
@pytest.mark.parametrize("share", [0.3, 0.1, 0.003])
def test_optimality_conditions(loss, C, share, fit_intercept):
    A, Y, p, alpha = refit_data(0, loss, C, share=share)
    V, b = refit(A, Y, p, alpha, loss, fit_intercept, tol=1e-11)
    assert_optimal(A, Y, p, alpha, loss, V, b, fit_intercept)
    assert share < 0.01 or 0 < int((V.norm(dim=1) > 0).sum()) < len(V)


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_one_output_is_the_lasso(loss, fit_intercept):
    A, Y, p, alpha = refit_data(1, loss, 1)
    V, b = refit(A, Y, p, alpha, loss, fit_intercept, tol=1e-11)
    start = torch.zeros_like(V)
    v, c = lasso_refit(stored(A), Y, p, LOSSES[loss], alpha, fit_intercept, start, tol=1e-11)
    torch.testing.assert_close(V, v, rtol=0, atol=1e-6)
    torch.testing.assert_close(b, c, rtol=0, atol=1e-6)


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize(("loss", "C"), SEVERAL)
def test_value_of_cvxpy(loss, C, fit_intercept):
    A, Y, p, alpha = refit_data(2, loss, C, n=40, m=12)
    V, b = refit(A, Y, p, alpha, loss, fit_intercept)
    W = cp.Variable(V.shape)
    c = cp.Variable((1, C)) if fit_intercept else np.zeros((1, C))
    a, y, weights = A.numpy(), Y.numpy(), p.numpy()
    F = a @ W + np.ones((len(a), 1)) @ c
    if loss == "squared":
        fit = 0.5 * cp.sum_squares(cp.multiply(np.sqrt(weights)[:, None], F - y))
    else:
        fit = weights @ (cp.log_sum_exp(F, axis=1) - cp.sum(cp.multiply(y, F), axis=1))
    program = cp.Problem(cp.Minimize(fit + alpha * cp.sum(cp.norm(W, axis=1))))
    program.solve(solver="CLARABEL", tol_gap_rel=1e-10, tol_gap_abs=1e-10)
    assert objective(A, Y, p, alpha, loss, V, b) == pytest.approx(program.value, rel=1e-8)


@pytest.mark.parametrize(("loss", "C"), SEVERAL)
def test_long_fista_ends_at_the_same_weights(loss, C):
    A, Y, p, alpha = refit_data(3, loss, C)
    V, b = refit(A, Y, p, alpha, loss)
    ones = torch.cat([A, torch.ones_like(A[:, :1])], dim=1)
    step = 1.0 / float(torch.linalg.eigvalsh(ones.T @ (p[:, None] * ones))[-1])
    W = X = torch.zeros(len(V) + 1, C, dtype=A.dtype)
    t = 1.0
    for _ in range(20_000):
        new = X - step * (ones.T @ LOSSES[loss].gradient(ones @ X, Y, p))
        norms = new[:-1].norm(dim=1, keepdim=True).clamp_min(1e-300)
        new[:-1] *= (1.0 - step * alpha / norms).clamp_min(0)
        t = 1.0 if float(((X - new) * (new - W)).sum()) > 0 else t
        following = 0.5 * (1.0 + (1.0 + 4.0 * t * t) ** 0.5)
        W, X, t = new, new + (t - 1.0) / following * (new - W), following
    torch.testing.assert_close(V, W[:-1], rtol=0, atol=1e-5)
    assert torch.equal(V.norm(dim=1) > 0, W[:-1].norm(dim=1) > 0)
    value = objective(A, Y, p, alpha, loss, V, b)
    assert value == pytest.approx(objective(A, Y, p, alpha, loss, W[:-1], W[-1]), rel=1e-9)


@pytest.mark.parametrize(("loss", "C"), SEVERAL)
@pytest.mark.parametrize("noise", [0.0, 1e-12, 1e-6, 1e-3])
def test_equal_nearly_equal_and_zero_columns(loss, C, noise):
    A, Y, p, alpha = refit_data(4, loss, C)
    near = A + noise * torch.as_tensor(np.random.default_rng(0).normal(size=A.shape))
    wide = torch.cat([A, near, A, torch.zeros_like(A[:, :2])], dim=1)
    V, b = refit(wide, Y, p, alpha, loss)
    assert_optimal(wide, Y, p, alpha, loss, V, b)
    assert not V[-2:].any()
    narrow = objective(A, Y, p, alpha, loss, *refit(A, Y, p, alpha, loss))
    assert objective(wide, Y, p, alpha, loss, V, b) == pytest.approx(narrow, rel=noise + 1e-8)


@pytest.mark.parametrize(("loss", "C"), SEVERAL)
def test_every_start_ends_at_the_same_weights(loss, C):
    A, Y, p, alpha = refit_data(5, loss, C)
    V, b = refit(A, Y, p, alpha, loss)
    noise = torch.as_tensor(np.random.default_rng(0).normal(size=V.shape))
    for start in (V, V + 0.1 * noise, noise, 100.0 * noise):
        again, c = refit(A, Y, p, alpha, loss, start=start)
        torch.testing.assert_close(again, V, rtol=0, atol=1e-5)
        shift = float((c - b).mean()) if loss == "softmax" else 0.0
        torch.testing.assert_close(c - shift, b, rtol=0, atol=1e-5)
        assert torch.equal(again.norm(dim=1) > 0, V.norm(dim=1) > 0)


@pytest.mark.parametrize(("loss", "C"), SEVERAL)
def test_a_solution_is_returned_as_it_is(loss, C):
    A, Y, p, alpha = refit_data(5, loss, C)
    V, b = refit(A, Y, p, alpha, loss)
    again, c = multi_output_refit(stored(A), Y, p, LOSSES[loss], alpha, True, V, b, tol=2e-9)
    torch.testing.assert_close(again, V, rtol=0, atol=0)
    torch.testing.assert_close(c, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("loss", "C"), SEVERAL)
def test_rounds_never_raise_the_objective(loss, C):
    A, Y, p, alpha = refit_data(6, loss, C, share=0.003)
    start = 0.1 * torch.as_tensor(np.random.default_rng(0).normal(size=(A.shape[1], C)))
    shift = optimal_intercept(LOSSES[loss], A @ start, Y, p, ALL_HERE)
    values = [objective(A, Y, p, alpha, loss, start, shift)]
    for rounds in range(6):
        found = refit(A, Y, p, alpha, loss, start=start, max_rounds=rounds)
        values.append(objective(A, Y, p, alpha, loss, *found))
    assert np.all(np.diff(values) <= 1e-13)
    assert values[-1] < values[0]


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(0, 8), st.sampled_from(SEVERAL))
def test_random_programs(seed, n, m, kind):
    loss, C = kind
    rng = np.random.default_rng(seed)
    A = torch.as_tensor(np.maximum(rng.normal(size=(n + C, m)), 0.0))
    Y = np.vstack([np.eye(C), np.eye(C)[rng.integers(0, C, size=n)]])
    Y = torch.as_tensor(Y if loss == "softmax" else rng.normal(size=Y.shape))
    p, alpha = A.new_full((n + C,), 1.0 / (n + C)), float(10.0 ** rng.uniform(-5, 0))
    V, b = refit(A, Y, p, alpha, loss, tol=1e-8)
    assert_optimal(A, Y, p, alpha, loss, V, b, tol=0.05)


@pytest.mark.parametrize(("loss", "C"), SEVERAL)
def test_alpha_so_large_that_all_is_zero(loss, C):
    A, Y, p, alpha = refit_data(7, loss, C, share=1.001)
    start = torch.as_tensor(np.random.default_rng(0).normal(size=(A.shape[1], C)))
    for weights in (start, torch.zeros_like(start)):
        V, b = refit(A, Y, p, alpha, loss, start=weights)
        assert not V.any()
        mean = optimal_intercept(LOSSES[loss], 0.0 * Y, Y, p, ALL_HERE)
        torch.testing.assert_close(b - b.mean(), mean - mean.mean())


@pytest.mark.parametrize(("loss", "C"), SEVERAL)
def test_constant_targets_need_no_neurons(loss, C):
    A, Y, p, _ = refit_data(8, loss, C)
    Y = torch.zeros_like(Y) + torch.eye(C, dtype=Y.dtype)[0]
    start = torch.as_tensor(np.random.default_rng(0).normal(size=(A.shape[1], C)))
    V, b = refit(A, Y, p, 0.01, loss, start=start, tol=1e-6)
    assert objective(A, Y, p, 0.01, loss, V, b) <= 1e-5
    assert bool(b.isfinite().all())


@pytest.mark.parametrize("loss", ["squared", "softmax"])
@pytest.mark.parametrize("alpha", [1e-3, 1e-5, 1e-7])
def test_targets_that_can_be_fitted_exactly_at_tiny_alpha(alpha, loss):
    A, Y, p, _ = refit_data(9, loss, 3, n=30, m=60)
    V, b = refit(A, Y, p, alpha, loss, tol=1e-6)
    assert relative_gap(A, Y, p, alpha, loss, V, b) <= 1e-6


@pytest.mark.parametrize(("loss", "C"), SEVERAL)
def test_a_fixed_intercept_is_kept(loss, C):
    A, Y, p, alpha = refit_data(10, loss, C)
    b = torch.as_tensor(np.random.default_rng(0).normal(size=C))
    start = torch.zeros(A.shape[1], C, dtype=A.dtype)
    V, c = multi_output_refit(stored(A), Y, p, LOSSES[loss], alpha, False, start, b, tol=1e-10)
    assert torch.equal(b, c)
    assert_optimal(A, Y, p, alpha, loss, V, c, fit_intercept=False)


@pytest.mark.parametrize("loss", ["squared", "softmax"])
def test_row_hessians_are_those_of_the_loss(loss):
    _, Y, p, _ = refit_data(11, loss, 3)
    F = torch.as_tensor(np.random.default_rng(0).normal(size=Y.shape))
    D, U = LOSSES[loss].curvatures(F, Y, p)
    full = torch.diag_embed(D) - torch.einsum("rnc,rnd->ncd", U, U)
    torch.testing.assert_close(full, LOSSES[loss].hessian(F, Y, p))
    inverse = _multi_output_refit._summed_inverse(D, U, ALL_HERE)
    torch.testing.assert_close(inverse, torch.linalg.pinv(full.sum(dim=0), hermitian=True))


def test_many_classes_share_a_metric_while_it_gains(monkeypatch):
    """One Gram matrix for twelve classes leads to the same optimum as one for each."""
    metric, matrices = _multi_output_refit._metric, []

    def spy(*arguments):
        matrices.append(len((found := metric(*arguments)).H))
        return found

    monkeypatch.setattr(_multi_output_refit, "_metric", spy)
    A, Y, p, alpha = refit_data(5, "softmax", 12, n=200)
    V, b = refit(A, Y, p, alpha, "softmax", tol=0.05)
    assert relative_gap(A, Y, p, alpha, "softmax", V, b) <= 0.05
    assert set(matrices) == {1}
    V, b = refit(A, Y, p, alpha, "softmax")
    assert_optimal(A, Y, p, alpha, "softmax", V, b)
    monkeypatch.setattr(_multi_output_refit, "ENOUGH", 0.0)
    matrices.clear()
    W, c = refit(A, Y, p, alpha, "softmax")
    assert 12 in matrices
    assert objective(A, Y, p, alpha, "softmax", V, b) == pytest.approx(
        objective(A, Y, p, alpha, "softmax", W, c), rel=1e-9
    )


@pytest.mark.parametrize("loss", ["squared", "softmax"])
def test_the_best_intercept_of_many_outputs_needs_no_matrix_a_row(loss, monkeypatch):
    _, Y, p, _ = refit_data(11, loss, 5)
    F = torch.as_tensor(np.random.default_rng(0).normal(size=Y.shape))
    H = LOSSES[loss].hessian(F, Y, p)
    step = torch.arange(5.0, dtype=torch.float64)
    monkeypatch.setattr(type(LOSSES[loss]), "hessian", None)
    torch.testing.assert_close(_summed_hessian(LOSSES[loss], F, Y, p), H.sum(dim=0))
    torch.testing.assert_close(newton_change(LOSSES[loss], F, Y, p, step), H @ step)
    b = optimal_intercept(LOSSES[loss], F, Y, p, ALL_HERE)
    assert float(LOSSES[loss].gradient(F + b, Y, p).sum(dim=0).abs().max()) <= 1e-15


def test_violators_enter_where_the_scale_hessian_is_singular():
    """67 neurons on 8 rows: undamped Newton steps on the scales overshoot and none enters."""
    X, y = make_regression(random_state=42, n_targets=5, n_samples=11, n_features=10)
    _, _, gaps = convexbn_path(
        X[:8], y[:8], alphas=[0.1, 0.01], tol=0.01, max_iter=60, random_state=1
    )
    assert gaps[1] <= 0.01


def test_targets_of_very_rare_classes_are_fitted():
    """Classes of weight 1e-7: residuals must not be differences of numbers near one."""
    rng = np.random.RandomState(0)
    A = torch.as_tensor(np.maximum(rng.randn(40, 6), 0.0))
    Y = torch.eye(3, dtype=torch.float64)[torch.as_tensor(np.arange(40) % 3)]
    p = torch.where(Y[:, 0] > 0, 1.0, 1e-7).double()
    p = p / p.sum()
    zero = torch.zeros(6, 3, dtype=torch.float64)
    V, b = multi_output_refit(stored(A), Y, p, LOSSES["softmax"], 2e-9, True, zero, zero[0], 1e-4)
    value = float(LOSSES["softmax"].value(A @ V + b, Y, p) + 2e-9 * V.norm(dim=1).sum())
    constant = optimal_intercept(LOSSES["softmax"], 0.0 * Y.numpy(), Y.numpy(), p.numpy(), ALL_HERE)
    empty = LOSSES["softmax"].value(np.tile(constant, (40, 1)), Y.numpy(), p.numpy())
    assert value < 0.99 * float(empty)
    G = LOSSES["softmax"].gradient(A @ V + b, Y, p)
    assert float(G.sum(dim=0).abs().max()) <= 1e-11 * float(G.abs().sum())
    assert float((A.T @ G).norm(dim=1).max()) <= 2e-9 * (1 + 1e-2)


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize(("loss", "C"), SEVERAL)
def test_more_neurons_than_rows_lead_to_the_optimum_through_rows(
    loss, C, fit_intercept, monkeypatch
):
    """Through columns they do, too."""
    A, Y, p, alpha = refit_data(12, loss, C, n=40, m=90)
    metric, kinds = _multi_output_refit._row_metric, []

    def spy(*arguments):
        kinds.append(arguments)
        return metric(*arguments)

    monkeypatch.setattr(_multi_output_refit, "_row_metric", spy)
    V, b = refit(A, Y, p, alpha, loss, fit_intercept)
    assert kinds
    assert_optimal(A, Y, p, alpha, loss, V, b, fit_intercept)
    monkeypatch.setattr(_multi_output_refit, "ALL_HERE", None)
    kinds.clear()
    W, c = refit(A, Y, p, alpha, loss, fit_intercept)
    assert not kinds
    assert objective(A, Y, p, alpha, loss, V, b) == pytest.approx(
        objective(A, Y, p, alpha, loss, W, c), rel=1e-8
    )


@pytest.mark.parametrize("cells", [1, 2])
def test_metrics_through_rows_and_columns_are_the_same(cells):
    rng = np.random.default_rng(0)
    B, w, R = (torch.as_tensor(rng.standard_normal(s)) for s in ((9, 12), (12, 3), (12, 3)))
    rows, means = torch.arange(12 // cells), torch.zeros(1, 12).double()
    dense = GramMetric(means, 0.3, rows, cells, (B.T @ B)[None])
    other = RowMetric(means, 0.3, rows, cells, B)
    eta = torch.as_tensor(rng.random(12 // cells))
    eta[1] = 0.0
    at, there = dense.ridge(eta, R), other.ridge(eta, R)
    torch.testing.assert_close(at.V, there.V)
    assert at.phi == pytest.approx(there.phi)
    some = torch.tensor([0, 1, 3])
    hessian = dense.scale_hessian(at, w, some)
    torch.testing.assert_close(hessian, other.scale_hessian(there, w, some))
    torch.testing.assert_close(dense.part(some).H, other.part(some).H)
    x = torch.as_tensor(rng.standard_normal(12 // cells))
    everything = other.scale_hessian(there, w, rows)
    torch.testing.assert_close(scale_product(other, there, w, x), everything @ x)

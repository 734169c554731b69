from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sklearn_convexbn.losses._base import LOSSES, optimal_intercept, softmax
from sklearn_convexbn.support._sharding import ALL_HERE
from tests.helpers import targets

CASES = [("squared", 1), ("squared", 3), ("logistic", 1), ("softmax", 2), ("softmax", 4)]
per_case = pytest.mark.parametrize(("name", "C"), CASES)


def _point(name, C, n=8, seed=0, scale=2.0):
    rng = np.random.default_rng(seed)
    p = rng.uniform(0.1, 1.0, size=n)
    return scale * rng.normal(size=(n, C)), targets(rng, n, name, C), p / p.sum()


def _differences(function, F, h=1e-5):
    """Central differences of a function along every entry of F; shape F.shape + output."""
    rows = []
    for index in np.ndindex(*F.shape):
        E = np.zeros_like(F)
        E[index] = h
        rows.append((function(F + E) - function(F - E)) / (2 * h))
    return np.array(rows).reshape(*F.shape, *np.shape(rows[0]))


@per_case
def test_value(name, C):
    F, Y, p = _point(name, C)
    rows = {
        "squared": lambda f, y: 0.5 * sum((f - y) ** 2),
        "logistic": lambda f, y: np.log1p(np.exp(f[0])) - y[0] * f[0],
        "softmax": lambda f, y: -np.log(np.exp(f[y == 1][0]) / np.exp(f).sum()),
    }[name]
    expected = sum(w * rows(f, y) for w, f, y in zip(p, F, Y, strict=True))
    assert LOSSES[name].value(F, Y, p) == pytest.approx(expected, rel=1e-12)


@per_case
def test_gradient(name, C):
    F, Y, p = _point(name, C)
    loss = LOSSES[name]
    numeric = _differences(lambda G: loss.value(G, Y, p), F)
    np.testing.assert_allclose(loss.gradient(F, Y, p), numeric, atol=1e-9)


@per_case
def test_hessian(name, C):
    F, Y, p = _point(name, C)
    loss = LOSSES[name]
    numeric = _differences(lambda G: loss.gradient(G, Y, p), F)
    rows = np.arange(len(F))
    np.testing.assert_allclose(loss.hessian(F, Y, p), numeric[rows, :, rows], atol=1e-9)
    numeric[rows, :, rows] = 0.0
    np.testing.assert_array_equal(numeric, 0.0)


@pytest.mark.parametrize("case", CASES)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.01, 20.0), shrink=st.floats(0.0, 1.0))
def test_fenchel_young(case, seed, scale, shrink):
    name, C = case
    loss = LOSSES[name]
    F, Y, p = _point(name, C, seed=seed, scale=scale)
    U = loss.gradient(F, Y, p)
    value = loss.value(F, Y, p)
    size = 1.0 + abs(value) + np.abs(U * F).sum()
    assert value + loss.conjugate(U, Y, p) == pytest.approx((U * F).sum(), abs=1e-9 * size)
    elsewhere = shrink * loss.gradient(_point(name, C, seed=seed + 1)[0], Y, p)
    conjugate = loss.conjugate(elsewhere, Y, p)
    assert np.isfinite(conjugate)
    assert value + conjugate >= (elsewhere * F).sum() - 1e-9 * size


@per_case
def test_conjugate_of_zero_is_minus_the_smallest_value(name, C):
    F, Y, p = _point(name, C)
    smallest = 0.0 if name == "squared" else LOSSES[name].value(60.0 * (2 * Y - 1), Y, p)
    assert LOSSES[name].conjugate(0.0 * F, Y, p) == pytest.approx(-smallest, abs=1e-12)


@pytest.mark.parametrize(("name", "C"), [("logistic", 1), ("softmax", 3)])
def test_conjugate_is_infinite_outside_its_domain(name, C):
    F, Y, p = _point(name, C)
    loss = LOSSES[name]
    U = loss.gradient(F, Y, p)
    assert loss.conjugate(-U, Y, p) == np.inf
    assert loss.conjugate(-1e-14 * U, Y, p) < np.inf


def test_softmax_conjugate_is_infinite_where_rows_do_not_sum_to_zero():
    _, Y, p = _point("softmax", 3)
    U = -0.5 * p[:, None] * Y  # <U, F> - value(F) has no bound along F = -t 1
    assert LOSSES["softmax"].conjugate(U, Y, p) == np.inf


@pytest.mark.parametrize("scale", [0.0, 0.5, 5.0, 50.0])
@per_case
def test_curvature_bounds_the_hessian(name, C, scale):
    F, Y, p = _point(name, C, n=50, scale=scale)
    largest = np.linalg.eigvalsh(LOSSES[name].hessian(F, Y, p) / p[:, None, None]).max()
    assert largest <= LOSSES[name].curvature + 1e-12


@pytest.mark.parametrize(
    ("name", "F", "Y"),
    [
        ("squared", [[3.0]], [[1.0]]),
        ("logistic", [[0.0]], [[1.0]]),
        ("softmax", [[0.0, 0.0, -99.0]], [[1.0, 0.0, 0.0]]),
    ],
)
def test_curvature_is_attained(name, F, Y):
    H = LOSSES[name].hessian(np.array(F), np.array(Y), np.ones(1))
    assert np.linalg.eigvalsh(H).max() == pytest.approx(LOSSES[name].curvature, rel=1e-12)


@per_case
def test_torch_agrees_with_numpy(name, C):
    loss = LOSSES[name]
    F, Y, p = _point(name, C)
    tensors = [torch.as_tensor(a) for a in (F, Y, p)]
    for method in (loss.value, loss.gradient, loss.hessian):
        np.testing.assert_allclose(method(*tensors).numpy(), method(F, Y, p), atol=1e-14)
    U = loss.gradient(F, Y, p)
    conjugate = loss.conjugate(torch.as_tensor(U), *tensors[1:])
    assert float(conjugate) == pytest.approx(loss.conjugate(U, Y, p), rel=1e-12)
    b = optimal_intercept(loss, *tensors, ALL_HERE)
    np.testing.assert_allclose(b.numpy(), optimal_intercept(loss, F, Y, p, ALL_HERE), atol=1e-9)
    np.testing.assert_allclose(
        optimal_intercept(loss, 0.0 * tensors[1], *tensors[1:], ALL_HERE).numpy(),
        optimal_intercept(loss, 0.0 * Y, Y, p, ALL_HERE),
        atol=1e-9,
    )


@per_case
def test_torch_gradient_is_the_one_of_autograd(name, C):
    F, Y, p = (torch.as_tensor(a) for a in _point(name, C))
    F.requires_grad_(True)
    LOSSES[name].value(F, Y, p).backward()
    gradient = LOSSES[name].gradient(F.detach(), Y, p)
    np.testing.assert_allclose(gradient.numpy(), F.grad.numpy(), atol=1e-14)


@pytest.mark.parametrize("size", [700.0, 1e5])
@pytest.mark.parametrize(("name", "C"), [("logistic", 1), ("softmax", 3)])
def test_large_logits_neither_overflow_nor_lose_the_value(name, C, size):
    _, Y, p = _point(name, C)
    loss = LOSSES[name]
    right = size * Y if name == "softmax" else size * (2 * Y - 1)
    assert loss.value(right, Y, p) == pytest.approx(0.0, abs=1e-12)
    # Every row is wrong by `size`; in softmax the two other classes share the lead.
    lead = np.log(2) if name == "softmax" else 0.0
    assert loss.value(-right, Y, p) == pytest.approx(size + lead, rel=1e-12)
    for F in (right, -right):
        assert np.isfinite(loss.gradient(F, Y, p)).all()
        assert np.isfinite(loss.hessian(F, Y, p)).all()


def test_softmax_rows_sum_to_one_at_any_size():
    F = np.array([[1e4, -1e4, 0.0], [1.0, 1.0, 1.0]])
    np.testing.assert_allclose(softmax(F), [[1.0, 0.0, 0.0], [1 / 3] * 3])


def _slope(name, F, Y, p):
    """Largest column sum of the gradient at the optimal intercept, relative to its entries."""
    loss = LOSSES[name]
    gradient = loss.gradient(F + optimal_intercept(loss, F, Y, p, ALL_HERE), Y, p)
    return np.abs(gradient.sum(axis=0)).max() / np.abs(gradient).sum()


@per_case
@pytest.mark.parametrize("scale", [0.0, 1.0, 10.0, 100.0])
@pytest.mark.parametrize("seed", range(3))
def test_optimal_intercept_is_stationary(name, C, scale, seed):
    assert _slope(name, *_point(name, C, n=24, seed=seed, scale=scale)) <= 1e-9


@pytest.mark.parametrize(
    ("name", "C"),
    [
        ("squared", 3),
        ("logistic", 1),
        ("softmax", 4),
    ],
)
def test_optimal_intercept_is_stationary_at_huge_logits(name, C):
    assert _slope(name, *_point(name, C, n=24, scale=1000.0)) <= 1e-9


@pytest.mark.parametrize("shift", [-8.0, 3.0, 8.0])
@pytest.mark.parametrize("name", ["squared", "logistic", "softmax"])
def test_optimal_intercept_undoes_a_shift_of_the_fit(name, shift):
    _check_shift(name, shift)


@pytest.mark.parametrize("shift", [-800.0, -40.0, 40.0, 800.0])
@pytest.mark.parametrize("name", ["squared", *((name) for name in ("logistic", "softmax"))])
def test_optimal_intercept_undoes_a_large_shift_of_the_fit(name, shift):
    _check_shift(name, shift)


def _check_shift(name, shift):
    C = 1 if name == "logistic" else 3
    F, Y, p = _point(name, C, n=24)
    loss = LOSSES[name]
    shifts = shift * np.arange(1, C + 1)
    best = loss.value(F + optimal_intercept(loss, F, Y, p, ALL_HERE), Y, p)
    b = optimal_intercept(loss, F + shifts, Y, p, ALL_HERE)
    assert loss.value(F + shifts + b, Y, p) == pytest.approx(best, rel=1e-9)


@per_case
def test_constant_fit_is_the_closed_form(name, C):
    _, Y, p = _point(name, C, n=25)
    b = optimal_intercept(LOSSES[name], 0.0 * Y, Y, p, ALL_HERE)
    mean = p @ Y
    if name == "squared":
        np.testing.assert_allclose(b, mean, atol=1e-12)
    elif name == "logistic":
        np.testing.assert_allclose(b, np.log(mean / (1 - mean)), atol=1e-9)
    else:
        np.testing.assert_allclose(softmax(b[None])[0], mean, atol=1e-9)


# --- certificates of tiny objectives ----------------------------------------------------------


def _exact_row(f, y, name):
    """Value of one row and, at its gradient times `SHRINK`, its conjugate, to 200 digits."""
    f, own = [Decimal(float(x)) for x in f], int(y[0]) if name == "logistic" else int(y.argmax())
    outputs = [Decimal(0), *f] if name == "logistic" else f
    e = [x.exp() for x in outputs]
    value = (sum(e) / e[own]).ln()
    pi = [x / sum(e) * SHRINK for x in e]
    pi[own] += 1 - SHRINK
    return value, sum(x * x.ln() for x in pi)


SHRINK = Decimal("0.75")


@pytest.mark.parametrize("lead", [-30.0, 1.0, 25.0, 60.0])
@pytest.mark.parametrize(("name", "C"), [("logistic", 1), ("softmax", 3), ("softmax", 5)])
def test_values_and_conjugates_are_accurate_relative_to_themselves(name, C, lead):
    F, Y, p = _point(name, C, n=12)
    F += lead * (2 * Y - 1)
    with localcontext() as context:
        context.prec = 200
        rows = [_exact_row(f, y, name) for f, y in zip(F, Y, strict=True)]
        expected = [
            float(sum(Decimal(float(w)) * x for w, x in zip(p, column, strict=True)))
            for column in zip(*rows, strict=True)
        ]
    loss = LOSSES[name]
    U = float(SHRINK) * loss.gradient(F, Y, p)
    assert loss.value(F, Y, p) == pytest.approx(expected[0], rel=1e-13, abs=0.0)
    assert loss.value_and_gradient(F, Y, p)[0] == pytest.approx(expected[0], rel=1e-13, abs=0.0)
    assert loss.conjugate(U, Y, p) == pytest.approx(expected[1], rel=1e-12, abs=0.0)
    tensors = [torch.as_tensor(a) for a in (F, U, Y, p)]
    assert float(loss.value(tensors[0], *tensors[2:])) == pytest.approx(
        expected[0], rel=1e-13, abs=0.0
    )
    assert float(loss.conjugate(*tensors[1:])) == pytest.approx(expected[1], rel=1e-12, abs=0.0)


@pytest.mark.parametrize("exponent", [-12, -6])
@pytest.mark.parametrize(("name", "C"), [("logistic", 1), ("softmax", 3), ("softmax", 5)])
@pytest.mark.parametrize("seed", range(3))
def test_optimal_intercept_where_a_class_weighs_next_to_nothing(name, C, exponent, seed):
    F, Y, p = _point(name, C, n=20, seed=seed, scale=3.0)
    p = p * np.where(Y[:, -1] == 1, 10.0**exponent, 1.0)
    p /= p.sum()
    loss = LOSSES[name]
    b = optimal_intercept(loss, F, Y, p, ALL_HERE)
    gradient = loss.gradient(F + b, Y, p)
    # The dual value is off by the slope times b; rounding of b alone changes the slope.
    slopes, sizes = np.abs(gradient.sum(axis=0)), np.abs(gradient).sum(axis=0)
    assert slopes.max() <= (4 + np.abs(b).max()) * np.finfo(float).eps * sizes.sum()
    value = loss.value(F + b, Y, p)
    dual = (gradient * F).sum() - loss.conjugate(gradient, Y, p)
    assert dual == pytest.approx(value, rel=1e-13, abs=0.0)


def test_outside_is_judged_without_tolerance():
    for name, C in (("logistic", 1), ("softmax", 3)):
        F, Y, p = _point(name, C)
        loss = LOSSES[name]
        U = loss.gradient(F, Y, p)
        assert loss.outside(U, Y, p) == loss.outside(0.0 * U, Y, p) == 0.0
        assert loss.outside(-1e-14 * U, Y, p) > 0.0
    F, Y, p = _point("squared", 2)
    assert LOSSES["squared"].outside(-1e9 * F, Y, p) == 0.0

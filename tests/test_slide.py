"""The slide: L-BFGS in compact form, its line search, and what it does to networks."""

import numpy as np
import pytest
import torch

from sklearn_convexbn.program._problem import Neurons
from sklearn_convexbn.solvers._pursuit import _TorchProblem, merge_equal_units, refit
from sklearn_convexbn.solvers._slide import Memory, flushed_denormals, minimise, slide
from tests.helpers import make_problem, random_neurons


def two_loops(pairs, g):
    """Minus the L-BFGS product with the gradient, as Nocedal's recursion has it."""
    q, parts = g.copy(), []
    for s, y in reversed(pairs):
        parts.append(s @ q / (s @ y))
        q -= parts[-1] * y
    s, y = pairs[-1]
    q *= s @ y / (y @ y)
    for (s, y), part in zip(pairs, reversed(parts), strict=True):
        q += (part - y @ q / (s @ y)) * s
    return -q


def test_compact_form_is_the_two_loop_recursion_over_the_last_pairs():
    rng = np.random.default_rng(0)
    H = rng.standard_normal((9, 9))
    H, x, memory, pairs = H @ H.T + np.eye(9), np.zeros(9), Memory(9, n_pairs=4), []
    for _ in range(11):
        s = rng.standard_normal(9)
        x = x + s
        memory.add(s, H @ s, H @ x)
        pairs = [*pairs[-3:], (s, H @ s)]
        expected = two_loops(pairs, H @ x)
        np.testing.assert_allclose(memory.direction(H @ x), expected, rtol=1e-8)
        memory.add(s, -s, H @ x)  # curves downwards: left aside
        np.testing.assert_allclose(memory.direction(H @ x), expected, rtol=1e-8)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_quadratic_is_minimised_to_rounding_and_never_raised(scale):
    rng = np.random.default_rng(1)
    curvatures, centre = np.logspace(-1, 1, 40), rng.standard_normal(40)
    values = []

    def objective(x, gradient):
        np.multiply(scale * curvatures, x - centre, out=gradient)
        values.append(0.5 * gradient @ (x - centre))
        return values[-1]

    start = np.zeros(40)
    x = minimise(objective, start, n_steps=200)
    assert not start.any()
    np.testing.assert_allclose(x, centre, atol=1e-4)
    assert objective(x, np.empty(40)) <= 1e-7 * values[0]


def test_kinks_and_values_that_are_not_finite_end_in_a_lower_point():
    def objective(x, gradient):
        gradient[:] = np.sign(x) + 0.2 * x
        return float(np.abs(x).sum() + 0.1 * x @ x) if np.abs(x).max() < 5 else float("nan")

    x = minimise(objective, np.array([4.0, -3.0, 2.0]), n_steps=50)
    assert np.abs(x).max() < 0.05


@pytest.mark.parametrize("loss", ["squared", "softmax", "logistic"])
@pytest.mark.parametrize("tol", [1e-6, 0.1])
def test_slide_lowers_the_objective_as_far_in_float32(loss, tol):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((80, 4))
    Y = np.digitize(X[:, 0] * X[:, 1], [-0.5, 0.5])
    Y = {"squared": X[:, :1] ** 2, "softmax": np.eye(3)[Y], "logistic": (Y[:, None] == 1) * 1.0}
    problem = make_problem(X, Y[loss], loss, 0.01)
    training = _TorchProblem(problem, "cpu", tol)
    assert training.precision == (torch.float32 if tol == 0.1 else torch.float64)
    start = refit(training, random_neurons(problem, 25, rng))
    moved = slide(training, start, n_steps=100)
    ended = problem.objective(refit(training, merge_equal_units(problem, moved)))
    assert moved.directions.dtype == np.float64
    exact = slide(_TorchProblem(problem, "cpu"), start, n_steps=100)
    assert problem.objective(moved) < 0.95 * problem.objective(start)
    assert problem.objective(moved) == pytest.approx(problem.objective(exact), rel=0.02)
    assert ended <= problem.objective(moved) * (1 + 1e-9)


def test_slide_leaves_no_network_and_no_steps_as_they_are():
    X = np.random.default_rng(0).standard_normal((9, 2))
    problem = make_problem(X, X[:, :1], "squared", 0.01)
    empty = Neurons.empty(3, np.zeros(1))
    assert slide(_TorchProblem(problem, "cpu"), empty, n_steps=5) is empty
    some = random_neurons(problem, 3, np.random.default_rng(0))
    assert slide(_TorchProblem(problem, "cpu"), some, n_steps=0) is some


@pytest.mark.parametrize("before", [False, True])
def test_denormals_count_as_zero_within_a_slide_only(before):
    small = torch.tensor([2e-38])
    torch.set_flush_denormal(before)
    try:
        with flushed_denormals():
            assert float(small * 0.1) == 0.0
        assert (float(small * 0.1) == 0.0) == before
    finally:
        torch.set_flush_denormal(False)

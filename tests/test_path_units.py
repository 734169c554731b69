"""Units with a hidden layer of their own, against their definitions and an independent program."""

from dataclasses import replace

import cvxpy as cp
import numpy as np
import pytest
import torch

from sklearn_convexbn.losses._base import LOSSES
from sklearn_convexbn.program._arrangements import enumerate_gates
from sklearn_convexbn.program.units._activations import ComputedActivations, StoredActivations
from sklearn_convexbn.program.units._paths import NORMS, L1PathUnits, PathUnits, inner_signs
from sklearn_convexbn.solvers._orthant_slide import orthant_descent, orthant_slide
from sklearn_convexbn.solvers._pursuit import _TorchProblem
from tests.helpers import make_problem, solve

N, K = 37, 4  # rows and columns of Z


@pytest.fixture(params=[N, 9000], ids=["one block", "several blocks"])
def n(request):
    return request.param


def tensors(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [torch.as_tensor(rng.standard_normal(shape)) for shape in shapes]


def values(Z, Q, h):
    """Activations (n, m) of units (K, m), by the definition."""
    W = Q.reshape(h + 1, Z.shape[1], -1)
    g = Z @ W[h]
    for i, sign in enumerate(inner_signs(h)):
        g = g + sign * (Z @ W[i]).clamp_min(0)
    return g.clamp_min(0)


def test_signs():
    assert [inner_signs(h) for h in range(4)] == [[], [1], [1, -1], [1, 1, -1]]


@pytest.mark.parametrize("h", [0, 1, 4])
@pytest.mark.parametrize("C", [1, 3])
def test_sums_and_ascent(C, h, n):
    Z, Q, V, L = tensors((n, K), ((h + 1) * K, 6), (6, C), (n, C))
    units, A = PathUnits(Z, h), values(Z, Q, h)
    assert (units.n_samples, units.n_parameters) == (n, (h + 1) * K)
    torch.testing.assert_close(units.fit(Q, V), A @ V)
    np.testing.assert_allclose(units.fit(Q.numpy(), V.numpy()), A @ V)
    torch.testing.assert_close(units.correlations(L, Q), L.T @ A)
    found, gradient = units.ascent(L, Q)
    Q = Q.clone().requires_grad_()
    expected = torch.linalg.vector_norm(L.T @ values(Z, Q, h), dim=0)
    torch.testing.assert_close(found, expected.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), Q)[0])


@pytest.mark.parametrize("h", [0, 3])
@pytest.mark.parametrize(
    ("loss", "C"), [("squared", 1), ("squared", 3), ("logistic", 1), ("softmax", 3)]
)
def test_loss_has_the_gradients_of_automatic_differentiation(loss, C, h, n):
    Z, Q, V, b, Y, p = tensors((n, K), ((h + 1) * K, 6), (6, C), (C,), (n, C), (n,))
    p = torch.softmax(p, dim=0)
    if loss != "squared":
        Y = (Y.amax(dim=1, keepdim=True) == Y).double() if C > 1 else (Y > 0).double()
    value, *gradients = PathUnits(Z, h).loss(LOSSES[loss], Y, p, Q, V, b)
    variables = [a.clone().requires_grad_() for a in (Q, V, b)]
    expected = LOSSES[loss].value(values(Z, variables[0], h) @ variables[1] + variables[2], Y, p)
    assert value == pytest.approx(float(expected.detach()), rel=1e-12)
    for own, automatic in zip(gradients, torch.autograd.grad(expected, variables), strict=True):
        torch.testing.assert_close(own, automatic)


@pytest.mark.parametrize("stored", [True, False])
def test_activations(stored, n):
    Z, Q, V = tensors((n, K), (3 * K, 6), (6, 2))
    A = PathUnits(Z, 2).activations(Q, stored_bytes=2**20 if stored else 0)
    assert isinstance(A, StoredActivations if stored else ComputedActivations)
    torch.testing.assert_close(A.fit(V), values(Z, Q, 2) @ V)


def test_norms_are_of_degree_one_and_the_gradient_of_the_penalty_is_that_of_differences():
    Z, Q = tensors((N, K), (3 * K, 6))
    Q = Q.numpy()
    Q[2, 3] = 0.0
    for name, norms in (("l1", np.abs(Q).sum(axis=0)), ("l2", np.linalg.norm(Q, axis=0))):
        units = NORMS[name](Z, 2)
        np.testing.assert_allclose(units.norms(Q), norms)
        np.testing.assert_allclose(units.norms(units.unit(torch.as_tensor(Q)).numpy()), 1.0)
        value, gradient = units.penalty(Q)
        assert value == pytest.approx(0.5 * (norms**2).sum())
        for entry in [(0, 0), (5, 2), (2, 3)]:
            step = np.zeros_like(Q)
            step[entry] = 1e-6
            slope = (units.penalty(Q + step)[0] - units.penalty(Q - step)[0]) / 2e-6
            assert gradient[entry] == pytest.approx(slope, rel=1e-6, abs=1e-9)


def test_a_unit_of_copies_gains_nothing():
    """Inner units that are copies share the size of one: the same values, at the same norm."""
    Z, q = tensors((N, K), (2 * K, 1))
    w, s = q[:K], q[K:]
    one, copies = torch.cat([w, s]), torch.cat([w / 2, w / 2, 0 * w, s])
    a, b = values(Z, one, 1), values(Z, copies, 3)
    torch.testing.assert_close(a, b)
    norm = NORMS["l1"](Z, 3).norms
    np.testing.assert_allclose(norm(one.numpy()), norm(copies.numpy()))


def test_steps_rise_and_stop_at_zero():
    Z, Q, L = tensors((N, K), (3 * K, 50), (N, 1))
    units = L1PathUnits(Z, 2)
    Q = units.unit(Q)
    first, _ = units.ascent(L, Q)
    lengths = torch.full((50,), 0.02, dtype=Q.dtype)
    for _ in range(60):
        Q = units.step(Q, units.ascent(L, Q)[1], lengths)
        np.testing.assert_allclose(units.norms(Q.numpy()), 1.0)
    last, _ = units.ascent(L, Q)
    assert (last > first).double().mean() > 0.9
    assert (Q == 0).double().mean() > 0.3


def test_units_without_idle_parts_have_the_same_values_and_no_larger_norm():
    Z = torch.cat([tensors((N, K - 1))[0], torch.ones(N, 1, dtype=torch.float64)], dim=1)
    h, Q = 4, tensors((5 * K, 8))[0]
    W = Q.reshape(5, K, 8)
    W[0, -1, :2], W[1, -1, 1:3] = 50.0, -50.0  # active everywhere, nowhere
    W[3, :, 4] = 2.0 * W[2, :, 4]
    units = L1PathUnits(Z, h)
    same = units.simplified(units.unit(Q).numpy())
    torch.testing.assert_close(values(Z, torch.as_tensor(same), h), values(Z, units.unit(Q), h))
    assert (units.norms(same) <= 1.0 + 1e-12).all()
    parts = same.reshape(5, K, 8)
    assert not parts[0, :, :2].any()
    assert not parts[1, :, 1:3].any()
    assert not parts[3, :, 4].any()
    assert (same == 0).sum() == 5 * K


def test_units_of_equal_patterns_add_up():
    Z, Q = tensors((N, K), (3 * K, 5))
    near = Q * torch.linspace(0.5, 2.0, 5, dtype=Q.dtype)
    units = PathUnits(Z, 2)
    patterns = units.patterns(Q.numpy())
    assert (patterns == units.patterns(near.numpy())).all()
    assert len(np.unique(patterns, axis=0)) == 5
    torch.testing.assert_close(values(Z, Q + near, 2), values(Z, Q, 2) + values(Z, near, 2))


def test_starts_and_relatives_have_no_part_of_zero():
    Z, known = tensors((N, K), (5 * K, 3))
    units, random_state = L1PathUnits(Z, 4), np.random.RandomState(0)
    for some in (known.numpy(), known.numpy()[:, :0]):
        starts, first = units.starts(31, None, random_state, some)
        assert starts.shape == (5 * K, 31)
        assert first.shape == (31,)
        assert (np.linalg.norm(starts.reshape(5, K, 31), axis=1) > 0).all()
    found = units.relatives(torch.zeros(N, 1), known.numpy(), 9, None, random_state, generation=0)
    np.testing.assert_allclose(units.norms(found.double().numpy()), 1.0, rtol=1e-5)


# ------------------------------------------------------------------------------- the program


def path_problem(X, Y, loss, alpha, h, norm="l1"):
    problem = make_problem(X, Y, loss, alpha)
    Z = torch.as_tensor(np.c_[X, np.ones(len(X))])
    return replace(problem, units=NORMS[norm](Z, h))


def data(seed=0, n=9):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, 2))
    Y = np.maximum(np.c_[X, np.ones(n)] @ rng.standard_normal((3, 4)), 0) @ rng.standard_normal(4)
    return X, (Y - Y.mean())[:, None] / Y.std()


def optimum(X, Y, alpha):
    """Objective of the best shallow units, over all arrangements, by CVXPY."""
    Z = np.c_[X, np.ones(len(X))]
    D = (Z @ enumerate_gates(Z) >= 0).astype(float)
    parts, b = [cp.Variable((3, D.shape[1])) for _ in range(2)], cp.Variable()
    cones = [cp.multiply(2 * D - 1, Z @ part) >= 0 for part in parts]
    fit = cp.sum(cp.multiply(D, Z @ (parts[0] - parts[1])), axis=1) + b
    mass = sum(cp.sum(cp.abs(part)) for part in parts)
    objective = 0.5 * cp.sum_squares(fit - Y[:, 0]) / len(X) + alpha * mass
    program = cp.Problem(cp.Minimize(objective), cones)
    program.solve(solver="CLARABEL")
    return program.value


@pytest.mark.parametrize("seed", range(4))
def test_without_inner_units_the_optimum_is_that_of_the_program_over_all_arrangements(seed):
    X, Y = data(seed)
    best = optimum(X, Y, 0.03)
    result = solve(path_problem(X, Y, "squared", 0.03, 0), "pursuit", tol=1e-3)
    assert result.converged
    assert result.certificate.kind == "estimated"
    assert result.certificate.primal >= best * (1 - 1e-6)
    assert result.certificate.primal == pytest.approx(best, rel=2e-3)
    np.testing.assert_allclose(np.abs(result.neurons.directions).sum(axis=1), 1.0)


@pytest.mark.parametrize("seed", range(4))
def test_with_inner_units_the_optimum_is_not_above_that_without(seed):
    X, Y = data(seed, n=30)
    shallow, deep = (
        solve(path_problem(X, Y, "squared", 0.03, h), "pursuit", tol=1e-2) for h in (0, 4)
    )
    assert deep.certificate.primal <= shallow.certificate.primal * 1.01
    assert deep.certificate.dual <= deep.certificate.primal
    assert shallow.certificate.dual <= shallow.certificate.primal


def test_slide_does_not_raise_the_objective_and_makes_zeros():
    X, Y = data(n=40)
    problem = path_problem(X, Y, "squared", 0.03, 4)
    neurons = solve(problem, "pursuit", tol=0.1).neurons
    noise = 1e-2 * np.random.default_rng(0).standard_normal(neurons.directions.shape)
    directions = neurons.directions + noise
    norms = problem.units.norms(directions.T)[:, None]
    neurons = replace(neurons, directions=directions / norms, weights=neurons.weights * norms)
    moved = orthant_slide(_TorchProblem(problem, "cpu"), neurons, n_steps=200)
    assert problem.objective(moved) < problem.objective(neurons)
    assert not (neurons.directions == 0).any()
    assert (moved.directions == 0).mean() > 0.3
    stays = orthant_slide(_TorchProblem(problem, "cpu"), neurons, n_steps=0)
    assert problem.objective(stays) <= problem.objective(neurons)


@pytest.mark.parametrize("squared", [False, True])
def test_orthant_descent_solves_a_lasso(squared):
    """Against CVXPY, with a constant price or one that is the norm itself."""
    rng = np.random.default_rng(0)
    A, y = rng.standard_normal((30, 12)), rng.standard_normal(30)

    def evaluate(x):
        r, norm = A @ x - y, np.abs(x).sum()
        penalty, price = (3.0 * norm**2 / 2, 3.0 * norm) if squared else (3.0 * norm, 3.0)
        return 0.5 * r @ r + penalty, A.T @ r, np.full(12, price)

    x = orthant_descent(evaluate, rng.standard_normal(12), 500)
    variable = cp.Variable(12)
    norm = cp.norm1(variable)
    penalty = 1.5 * cp.square(norm) if squared else 3.0 * norm
    program = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(A @ variable - y) + penalty))
    program.solve(solver="CLARABEL")
    assert evaluate(x)[0] == pytest.approx(program.value, rel=1e-5)
    assert ((x == 0) == (np.abs(variable.value) < 1e-5)).all()


@pytest.mark.parametrize("norm", NORMS)
def test_part_has_the_same_norm_and_some_of_the_rows(norm):
    Z, Q, L = tensors((N, K), (3 * K, 5), (10, 1))
    units = NORMS[norm](Z, 2, torch.float32)
    part = units.part(slice(4, 14))
    assert type(part) is type(units)
    assert (part.n_samples, part.precision) == (10, torch.float32)
    np.testing.assert_array_equal(part.norms(Q.numpy()), units.norms(Q.numpy()))
    torch.testing.assert_close(part.correlations(L, Q), L.T @ values(Z[4:14], Q, 2))

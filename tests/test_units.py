"""Sums over rows a block at a time, against their definitions."""

from dataclasses import replace

import cvxpy as cp
import numpy as np
import pytest
import torch

from sklearn_convexbn.losses._base import LOSSES
from sklearn_convexbn.program._arrangements import enumerate_gates
from sklearn_convexbn.program.units._activations import ComputedActivations, StoredActivations
from sklearn_convexbn.program.units._base import Units
from sklearn_convexbn.program.units._whitened import WhitenedUnits
from sklearn_convexbn.support._sharding import ALL_HERE
from tests.helpers import make_problem, solve


@pytest.fixture(params=[37, 9000], ids=["one block", "several blocks"])
def n(request):
    return request.param


def tensors(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [torch.as_tensor(rng.standard_normal(shape)) for shape in shapes]


@pytest.mark.parametrize("C", [1, 3])
def test_fit_and_correlations(C, n):
    Z, Q, V, L = tensors((n, 4), (4, 6), (6, C), (n, C))
    layer, A = WhitenedUnits(Z, ALL_HERE), (Z @ Q).clamp_min(0)
    assert (layer.n_samples, layer.n_parameters) == (n, 4)
    torch.testing.assert_close(layer.fit(Q, V), A @ V)
    torch.testing.assert_close(layer.correlations(L, Q), L.T @ A)


@pytest.mark.parametrize("C", [1, 3])
def test_ascent_has_the_values_and_gradients_of_automatic_differentiation(C, n):
    Z, Q, L = tensors((n, 4), (4, 6), (n, C))
    values, gradient = WhitenedUnits(Z, ALL_HERE).ascent(L, Q)
    Q = Q.clone().requires_grad_()
    expected = torch.linalg.vector_norm(L.T @ (Z @ Q).clamp_min(0), dim=0)
    torch.testing.assert_close(values, expected.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), Q)[0])


@pytest.mark.parametrize(
    ("loss", "C"), [("squared", 1), ("squared", 3), ("logistic", 1), ("softmax", 3)]
)
def test_loss_has_the_gradients_of_automatic_differentiation(loss, C, n):
    Z, Q, V, b, Y, p = tensors((n, 4), (4, 6), (6, C), (C,), (n, C), (n,))
    p = torch.softmax(p, dim=0)
    if loss != "squared":
        Y = (Y.amax(dim=1, keepdim=True) == Y).double() if C > 1 else (Y > 0).double()
    value, *gradients = WhitenedUnits(Z, ALL_HERE).loss(LOSSES[loss], Y, p, Q, V, b)
    variables = [a.clone().requires_grad_() for a in (Q, V, b)]
    F = (Z @ variables[0]).clamp_min(0) @ variables[1] + variables[2]
    expected = LOSSES[loss].value(F, Y, p)
    assert value == pytest.approx(float(expected.detach()), rel=1e-12)
    for own, automatic in zip(gradients, torch.autograd.grad(expected, variables), strict=True):
        torch.testing.assert_close(own, automatic)


def test_rows_in_float32_give_float64_sums_of_the_rounded_rows(n):
    Z, Q, L = tensors((n, 4), (4, 6), (n, 2))
    compact = WhitenedUnits(Z.float(), ALL_HERE)
    torch.testing.assert_close(
        compact.correlations(L, Q), WhitenedUnits(Z.float().double(), ALL_HERE).correlations(L, Q)
    )
    assert compact.correlations(L, Q.float()).dtype == torch.float32


@pytest.mark.parametrize("count", [1, 5, 37, 50])
def test_nearest_hyperplanes(count, n):
    Z, Q = tensors((n, 4), (4, 6))
    found = WhitenedUnits(Z, ALL_HERE).nearest(Q, count)
    expected = (Z @ Q).abs().argsort(dim=0)[:count]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("stored", [True, False])
def test_products_of_activations(stored, n):
    Z, Q, V, G, W, c = tensors((n, 4), (4, 6), (3, 2), (n, 2), (n, 2), (6,))
    A = WhitenedUnits(Z, ALL_HERE).activations(Q, stored_bytes=2**20 if stored else 0)
    assert isinstance(A, StoredActivations if stored else ComputedActivations)
    units = torch.tensor([4, 0, 2])
    expected = ((Z @ Q).clamp_min(0) - c)[:, units]
    A = A.centred(c).columns(units)
    assert A.shape == (n, 3)
    torch.testing.assert_close(A.fit(V), expected @ V)
    torch.testing.assert_close(A.correlations(G), expected.T @ G)
    torch.testing.assert_close(A.means(W[:, 0]), expected.T @ W[:, 0])
    gram = torch.stack([expected.T @ (w[:, None] * expected) for w in W.T])
    torch.testing.assert_close(A.gram(W), gram)


# ------------------------------------------------------------------- a kind of unit of one's own


class LassoUnits(Units):
    """ReLU units on the rows of a matrix X (n, k), with the l1 norm of their weights."""

    shards, is_flat, precision = ALL_HERE, True, torch.float64

    def __init__(self, X):
        self.X, self.device = torch.as_tensor(X), torch.device("cpu")
        (self.n_samples, self.n_parameters), self.n_rows = X.shape, len(X)

    def part(self, samples):
        return LassoUnits(self.X[samples])

    def norms(self, Q):
        return np.abs(Q).sum(axis=0)

    def unit(self, Q):
        return Q / Q.abs().sum(dim=0).clamp_min(1e-300)

    def penalty(self, Q):
        norms = np.abs(Q).sum(axis=0)
        return 0.5 * float(norms @ norms), norms * np.sign(Q)

    def _hidden(self, Q):
        Q = torch.as_tensor(Q)
        return (self.X.to(Q.dtype) @ Q).clamp_min(0)

    def fit(self, Q, V):
        return (self._hidden(Q) @ torch.as_tensor(V)).numpy()

    def correlations(self, Lambda, Q):
        H = self._hidden(Q)
        return torch.as_tensor(Lambda).to(H.dtype).T @ H

    def activations(self, Q):
        return StoredActivations(self._hidden(Q), ALL_HERE)

    def ascent(self, Lambda, Q):
        Q = Q.clone().requires_grad_()
        values = self.correlations(Lambda, Q).norm(dim=0)
        return values.detach(), torch.autograd.grad(values.sum(), Q)[0]

    def loss(self, loss, Y, p, Q, V, b):
        variables = [a.clone().requires_grad_() for a in (Q, V, b)]
        F = self._hidden(variables[0]) @ variables[1] + variables[2]
        value = loss.value(F, Y, p)
        return float(value.detach()), *torch.autograd.grad(value, variables)

    def patterns(self, Q):
        return np.packbits(self._hidden(Q).numpy() > 0, axis=0).T

    def on(self, device):
        return self

    def here(self):
        return self

    def sample(self, index):
        return LassoUnits(self.X[index])

    def of_rows(self, Lambda, index):
        return Lambda[index]

    def starts(self, count, draw, random_state, known):
        return draw(count), np.full(count, 0.5)

    def relatives(self, Lambda, known, count, draw, random_state, *, generation):
        noise = 0.1 * draw(count)
        return torch.as_tensor(known[:, random_state.randint(known.shape[1], size=count)] + noise)


@pytest.mark.parametrize("C", [1, 2])
def test_pursuit_of_units_with_another_norm_reaches_the_optimum_over_all_arrangements(C):
    """Against CVXPY on an enumeration: for two outputs, one direction of them for every cone."""
    rng = np.random.default_rng(0)
    X = np.c_[rng.standard_normal((9, 2)), np.ones(9)]
    Y = np.maximum(X @ rng.standard_normal((3, 4)), 0) @ rng.standard_normal((4, 1))
    Y = (Y - Y.mean()) @ np.ones((1, C))  # equal outputs: so are a neuron's output weights
    problem = replace(make_problem(X[:, :2], Y, "squared", 0.03), units=LassoUnits(X))
    result = solve(problem, "pursuit", tol=1e-3)
    assert result.converged
    assert result.neurons.directions.shape[1] == 3
    np.testing.assert_allclose(np.abs(result.neurons.directions).sum(axis=1), 1.0)
    D = (X @ enumerate_gates(X) >= 0).astype(float)
    S = [[cp.Variable((3, D.shape[1])) for _ in range(2)], cp.Variable()]
    signs = 2 * D - 1
    cones = [cp.multiply(signs, X @ part) >= 0 for part in S[0]]
    fit = cp.sum(cp.multiply(D, X @ (S[0][0] - S[0][1])), axis=1) + S[1]
    mass = sum(cp.sum(cp.abs(part)) for part in S[0])
    objective = C * 0.5 * cp.sum_squares(fit - Y[:, 0]) / 9 + 0.03 * np.sqrt(C) * mass
    program = cp.Problem(cp.Minimize(objective), cones)
    program.solve(solver="CLARABEL")
    assert result.certificate.primal >= program.value * (1 - 1e-6)
    assert result.certificate.primal == pytest.approx(program.value, rel=2e-3)

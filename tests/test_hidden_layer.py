"""Sums over rows a block at a time, against their definitions."""

import numpy as np
import pytest
import torch

from sklearn_convexbn import _hidden_layer
from sklearn_convexbn._hidden_layer import (
    ComputedActivations,
    HiddenLayer,
    StoredActivations,
)
from sklearn_convexbn._losses import LOSSES


@pytest.fixture(autouse=True, params=[20, 2**18], ids=["small blocks", "one block"])
def block(request, monkeypatch):
    monkeypatch.setattr(_hidden_layer, "BLOCK_ELEMENTS", {"cpu": request.param})
    monkeypatch.setattr(_hidden_layer, "LEAST_ROWS", 3)


def tensors(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [torch.as_tensor(rng.standard_normal(shape)) for shape in shapes]


@pytest.mark.parametrize("C", [1, 3])
def test_fit_and_correlations(C):
    Z, Q, V, L = tensors((37, 4), (4, 6), (6, C), (37, C))
    layer, A = HiddenLayer(Z), (Z @ Q).clamp_min(0)
    assert layer.shape == (37, 4)
    torch.testing.assert_close(layer.fit(Q, V), A @ V)
    torch.testing.assert_close(layer.correlations(L, Q), L.T @ A)


@pytest.mark.parametrize("C", [1, 3])
def test_ascent_has_the_values_and_gradients_of_automatic_differentiation(C):
    Z, Q, L = tensors((37, 4), (4, 6), (37, C))
    values, gradient = HiddenLayer(Z).ascent(L, Q)
    Q = Q.clone().requires_grad_()
    expected = torch.linalg.vector_norm(L.T @ (Z @ Q).clamp_min(0), dim=0)
    torch.testing.assert_close(values, expected.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), Q)[0])


@pytest.mark.parametrize(
    ("loss", "C"), [("squared", 1), ("squared", 3), ("logistic", 1), ("softmax", 3)]
)
def test_loss_has_the_gradients_of_automatic_differentiation(loss, C):
    Z, Q, V, b, Y, p = tensors((37, 4), (4, 6), (6, C), (C,), (37, C), (37,))
    p = torch.softmax(p, dim=0)
    if loss != "squared":
        Y = (Y.amax(dim=1, keepdim=True) == Y).double() if C > 1 else (Y > 0).double()
    value, *gradients = HiddenLayer(Z).loss(LOSSES[loss], Y, p, Q, V, b)
    variables = [a.clone().requires_grad_() for a in (Q, V, b)]
    F = (Z @ variables[0]).clamp_min(0) @ variables[1] + variables[2]
    expected = LOSSES[loss].value(F, Y, p)
    assert value == pytest.approx(float(expected.detach()), rel=1e-12)
    for own, automatic in zip(gradients, torch.autograd.grad(expected, variables), strict=True):
        torch.testing.assert_close(own, automatic)


def test_rows_in_float32_give_float64_sums_of_the_rounded_rows():
    Z, Q, L = tensors((37, 4), (4, 6), (37, 2))
    compact = HiddenLayer(Z.float())
    torch.testing.assert_close(
        compact.correlations(L, Q), HiddenLayer(Z.float().double()).correlations(L, Q)
    )
    assert compact.correlations(L, Q.float()).dtype == torch.float32


@pytest.mark.parametrize("count", [1, 5, 37, 50])
def test_nearest_hyperplanes(count):
    Z, Q = tensors((37, 4), (4, 6))
    found = HiddenLayer(Z).nearest(Q, count)
    expected = (Z @ Q).abs().argsort(dim=0)[:count]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("stored", [True, False])
def test_products_of_activations(stored, monkeypatch):
    monkeypatch.setattr(_hidden_layer, "STORED_BYTES", 2**20 if stored else 0)
    Z, Q, V, G, W, c = tensors((37, 4), (4, 6), (3, 2), (37, 2), (37, 2), (6,))
    A = HiddenLayer(Z).activations(Q)
    assert isinstance(A, StoredActivations if stored else ComputedActivations)
    units = torch.tensor([4, 0, 2])
    expected = ((Z @ Q).clamp_min(0) - c)[:, units]
    A = A.centred(c).columns(units)
    assert A.shape == (37, 3)
    torch.testing.assert_close(A.fit(V), expected @ V)
    torch.testing.assert_close(A.correlations(G), expected.T @ G)
    torch.testing.assert_close(A.means(W[:, 0]), expected.T @ W[:, 0])
    gram = torch.stack([expected.T @ (w[:, None] * expected) for w in W.T])
    torch.testing.assert_close(A.gram(W), gram)

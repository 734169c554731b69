"""Curvature of the hidden layer: against automatic differentiation, invariances, bad input."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from sklearn.datasets import load_diabetes, load_iris
from sklearn.neural_network import MLPRegressor

from sklearn_convexbn import ConvexBNClassifier, ConvexBNRegressor, Patches, conditioning
from sklearn_convexbn.estimators import _conditioning

X, Y = load_diabetes(return_X_y=True)
X = X[:60, :4] * [1.0, 10.0, 100.0, 3.0] + [5.0, 0.0, 0.0, 1.0]
Y = Y[:60]
KINDS = ("plain", "batch_norm", "whitened")


def regressor(**changes):
    return ConvexBNRegressor(**{"alpha": 0.05, "shrinkage": 0.0, "random_state": 0, **changes})


def balanced(model, V):
    """Hidden weights (d, m), offsets and output weights with |(scale, shift)| = |v|."""
    norm = model.batch_norm_
    factor = np.sqrt(np.hypot(norm["scale"], norm["shift"]) / np.linalg.norm(V, axis=1))
    return model.coefs_[0] / factor, model.intercepts_[0] / factor, V * factor[:, None]


def squared_error(F, y):
    return 0.5 * ((F[:, 0] - y) ** 2).mean()


CASES = {
    "numbers": (X, (Y - Y.mean()) / Y.std(), ConvexBNRegressor, squared_error),
    "classes": (*load_iris(return_X_y=True), ConvexBNClassifier, torch.nn.functional.cross_entropy),
}


@pytest.mark.parametrize("case", CASES)
def test_plain_and_normalized_spectra_are_those_of_automatic_differentiation(case):
    X, y, kind, loss = CASES[case]
    model = kind(0.05, shrinkage=0.0, random_state=0).fit(X, y)
    W, w0, V = map(torch.tensor, balanced(model, model.coefs_[1]))
    rows, target, b = torch.tensor(X), torch.tensor(y), torch.tensor(model.intercepts_[1])
    spectra = conditioning(model, X, y)

    def plain(W_and_w0):
        return loss(torch.relu(rows @ W_and_w0[:-1] + W_and_w0[-1]) @ V + b, target)

    def outputs(w, scale, shift):
        H = rows @ w
        H = (H - H.mean(0)) / H.std(0, correction=0)
        return torch.relu(H * scale + shift) @ V + b

    hessian = torch.autograd.functional.hessian(plain, torch.vstack([W, w0])).reshape(
        (W.numel() + len(w0),) * 2
    )
    expected = torch.linalg.eigvalsh(hessian).numpy()[::-1]
    found = spectra.plain.final.eigenvalues
    np.testing.assert_allclose(found, expected[: len(found)], rtol=1e-6, atol=1e-12 * found[0])

    at = (W / W.norm(dim=0), (rows @ W).std(0, correction=0), (rows @ W + w0).mean(0))
    J = torch.autograd.functional.jacobian(outputs, at)
    J = torch.cat([part.reshape(*part.shape[:2], -1) for part in J], dim=2)
    H = torch.autograd.functional.hessian(lambda F: loss(F, target), outputs(*at))
    H = torch.einsum("icid->icd", H)
    expected = torch.linalg.eigvalsh(torch.einsum("icp,icd,idq->pq", J, H, J)).numpy()[::-1]
    found = spectra.batch_norm.final.eigenvalues
    np.testing.assert_allclose(found, expected[: len(found)], rtol=1e-6, atol=1e-12 * found[0])


def test_whitened_spectra_do_not_depend_on_the_units_of_columns():
    mixed = np.array([[1.0, 2, 0, 0], [0, 3, 1, 0], [0, 0, 0.1, 1], [1, 0, 0, 9]])
    network = regressor().fit(X, Y).to_torch(fold=True)
    same = deepcopy(network)
    with torch.no_grad():
        W = network[0].weight @ torch.tensor(np.linalg.inv(mixed)).T
        same[0].weight.copy_(W)
        same[0].bias -= 7 * W.sum(dim=1)
    one = conditioning(network, X, Y, loss="squared_error")
    other = conditioning(same, X @ mixed + 7, Y, loss="squared_error")
    np.testing.assert_allclose(one.whitened.gram.eigenvalues, np.ones(5), rtol=1e-9)
    np.testing.assert_allclose(
        one.whitened.final.eigenvalues, other.whitened.final.eigenvalues, rtol=1e-6
    )
    for name in ("gram", "final"):
        plain = [getattr(s.plain, name).condition_number() for s in (one, other)]
        assert plain[1] != pytest.approx(plain[0], rel=0.5)


def test_offsets_of_columns_are_what_plain_layers_suffer_from_and_normalized_ones_do_not():
    model = regressor().fit(X, Y)
    far = X + 1000 * X.std(axis=0)
    moved = conditioning(regressor().fit(far, Y), far, Y, random_state=0)
    spectra = conditioning(model, X, Y, random_state=0)
    for name in ("initial", "gram"):
        before, after = (getattr(s.batch_norm, name).condition_number() for s in (spectra, moved))
        assert after == pytest.approx(before, rel=1e-6)
        before, after = (getattr(s.plain, name).condition_number() for s in (spectra, moved))
        assert after > 100 * before


def test_row_of_weight_two_is_the_row_twice():
    weights = np.ones(60)
    weights[:7] = 2.0
    twice = (np.vstack([X, X[:7]]), np.append(Y, Y[:7]))
    model = regressor().fit(*twice)
    one = conditioning(model, X, Y, sample_weight=weights, random_state=0)
    other = conditioning(model, *twice, random_state=0)
    for kind in KINDS:
        for a, b in zip(getattr(one, kind), getattr(other, kind), strict=True):
            np.testing.assert_allclose(a.eigenvalues, b.eigenvalues, rtol=1e-6)


def test_networks_of_torch_and_scikit_learn_are_taken():
    model = regressor().fit(X, Y)
    for network in (model.to_torch(), MLPRegressor(hidden_layer_sizes=(5,), tol=1e9).fit(X, Y)):
        spectra = conditioning(network, X, Y, loss="squared_error", random_state=0)
        assert spectra.whitened.final.condition_number() >= 1.0
    same = conditioning(model.to_torch(), X, Y, loss="squared_error", random_state=0)
    for a, b in zip(conditioning(model, X, Y, random_state=0), same, strict=True):
        np.testing.assert_allclose(a.final.eigenvalues, b.final.eigenvalues, rtol=1e-5)


def test_condition_number_of_a_share_of_the_spectrum():
    spectrum = _conditioning.CurvatureSpectrum(np.array([8.0, 4.0, 2.0, 1.0]))
    assert spectrum.condition_number() == 8.0
    assert spectrum.condition_number(0.5) == 2.0
    assert spectrum.condition_number(0.0) == 1.0
    assert np.isnan(_conditioning.CurvatureSpectrum(np.zeros(0)).condition_number())


def test_refusals_name_the_cause(monkeypatch):
    with pytest.raises(ValueError, match="no hidden units"):
        conditioning(regressor(alpha=10.0).fit(X, Y), X, Y)
    images = regressor(patches=Patches((2, 2), size=1)).fit(X, Y)
    with pytest.raises(ValueError, match="images"):
        conditioning(images, X, Y)
    with pytest.raises(TypeError, match="network must be"):
        conditioning("network", X, Y)
    with pytest.raises(ValueError, match="conditioning needs activation='relu'"):
        conditioning(regressor(activation="gated_relu").fit(X, Y), X, Y)
    with pytest.raises(ValueError, match="'shrinkage' parameter of conditioning"):
        conditioning(regressor().fit(X, Y), X, Y, shrinkage=2)
    monkeypatch.setattr(_conditioning, "MAX_SIDE", 10)
    with pytest.raises(ValueError, match=r"60 distinct rows and 1 outputs .* Pass fewer rows"):
        conditioning(regressor().fit(X, Y), X, Y)

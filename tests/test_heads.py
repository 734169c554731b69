"""Heads of torch networks, replaced: what is returned, what stays as it was, what is refused."""

import copy

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from sklearn_convexbn import (
    ConvexBNClassifier,
    ConvexBNRegressor,
    ConvexBNRegressorCV,
    Patches,
    certify,
    replace_head,
)

CLASSIFIER = ConvexBNClassifier(alpha=0.1, random_state=0)
REGRESSOR = ConvexBNRegressor(alpha=0.1, random_state=0)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def body(d, width=6):
    """Return features that depend on the mode, not yet used in train mode."""
    return nn.Sequential(nn.BatchNorm1d(d), nn.Linear(d, width), nn.Dropout(0.5), nn.Tanh())


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_outputs_are_those_of_the_decision_function(dtype, rtol, wine):
    X, y = wine
    X, y = np.tile(X, (3, 1)), np.tile(y, 3)  # several batches
    X = (X - X.mean(axis=0)) / X.std(axis=0)
    network, head = replace_head(body(13).to(dtype), X, y, estimator=CLASSIFIER)
    assert not any(module.training for module in network.modules())
    assert {p.dtype for p in network.parameters()} == {dtype}
    assert [type(layer).__name__ for layer in network[1:]] == [
        "Linear",
        "BatchNorm1d",
        "ReLU",
        "Linear",
    ]
    with torch.no_grad():
        rows = torch.as_tensor(X, dtype=dtype)
        outputs, values = network(rows).numpy(), network[0](rows).numpy()
    expected = head.decision_function(values)
    np.testing.assert_allclose(outputs, expected, rtol=0, atol=rtol * np.abs(expected).max())
    assert head.dual_gap_ <= head.tol
    assert not hasattr(CLASSIFIER, "coefs_")
    settings = {"alpha": 0.1, "shrinkage": head.shrinkage_, "effort": 100, "random_state": 0}
    found = certify(network[1:].double(), values, y, **settings)
    assert found.primal == pytest.approx(head.objective_, rel=1e-4)


def test_the_module_given_keeps_modes_weights_and_statistics(wine):
    X, y = wine
    features = body(13)
    features[2].eval()
    modes = [module.training for module in features.modules()]
    state = copy.deepcopy(features.state_dict())
    network, _ = replace_head(features, X, y, estimator=CLASSIFIER)
    assert [module.training for module in features.modules()] == modes
    for name, tensor in features.state_dict().items():
        assert torch.equal(tensor, state[name])
    nn.init.zeros_(network[0][1].weight)
    assert features[1].weight.any()


def test_images_and_integers():
    digits = load_digits(n_class=3)
    images, y = digits.images[:100, None].astype(np.float32) / 16, digits.target[:100]
    cnn = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(3), nn.Flatten())
    network, head = replace_head(cnn, images, y, estimator=CLASSIFIER)
    with torch.no_grad():
        codes = network(torch.as_tensor(images)).argmax(1).numpy()
        np.testing.assert_array_equal(codes, head.predict(cnn(torch.as_tensor(images)).numpy()))
    assert head.n_features_in_ == 8
    words = torch.as_tensor(digits.target[:100])
    network, _ = replace_head(nn.Embedding(3, 2), words, y, estimator=CLASSIFIER)
    assert (network(words).argmax(1).numpy() == y).all()
    network, _ = replace_head(nn.Flatten(), digits.target[:100, None], y, estimator=REGRESSOR)
    assert network[1].weight.dtype == torch.float32


@pytest.mark.parametrize(
    "estimator", [REGRESSOR, ConvexBNRegressorCV(alphas=[0.3, 0.1], cv=2, random_state=0)], ids=str
)
def test_regressors_and_weights(estimator, diabetes):
    X, y = diabetes
    weights = np.random.default_rng(0).integers(0, 3, len(y))
    args = (nn.Identity(), torch.as_tensor(X), torch.as_tensor(y))
    weights_of = torch.as_tensor(weights)
    network, head = replace_head(*args, estimator=estimator, sample_weight=weights_of)
    with torch.no_grad():
        outputs = network(torch.as_tensor(X))[:, 0].numpy()
    np.testing.assert_allclose(outputs, head.predict(X), rtol=1e-9)
    expected = estimator.__class__(**estimator.get_params()).fit(X, y, weights)
    assert head.objective_ == pytest.approx(expected.objective_, rel=1e-6)


def test_an_empty_head_is_a_constant(diabetes):
    X, y = diabetes
    network, head = replace_head(nn.Identity(), X, y, estimator=ConvexBNRegressor(alpha=10.0))
    assert head.n_neurons_ == 0
    np.testing.assert_allclose(network(torch.as_tensor(X)).detach().numpy(), y.mean())


class Pair(nn.Module):
    def forward(self, x):
        return x, x


@pytest.mark.parametrize(
    ("features", "estimator", "error", "message"),
    [
        (lambda x: x, CLASSIFIER, TypeError, r"features must be a torch\.nn\.Module"),
        (nn.Identity(), nn.Identity(), TypeError, "The estimator of replace_head must be a Conv"),
        (nn.Identity(), ConvexBNClassifier, TypeError, "Got the class ConvexBNClassifier"),
        (nn.Identity(), ConvexBNClassifier(activation="gated_relu"), ValueError, "needs an estim"),
        (nn.Unflatten(1, (1, 13)), CLASSIFIER, ValueError, r"Got shape \(178, 1, 13\)"),
        (nn.Flatten(0), CLASSIFIER, ValueError, r"of 178 rows\. Got shape \(2314,\)"),
        (Pair(), CLASSIFIER, TypeError, "must return a tensor. Got tuple"),
    ],
)
def test_refusals(features, estimator, error, message, wine):
    X, y = wine
    with pytest.raises(error, match=message):
        replace_head(features, X, y, estimator=estimator)


def test_rows_that_are_missing_or_do_not_fit_are_refused(wine):
    X, y = wine
    with pytest.raises(ValueError, match="at least one row"):
        replace_head(nn.Identity(), X[:0], y[:0], estimator=CLASSIFIER)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        replace_head(nn.Identity(), X, y[:-1], estimator=CLASSIFIER)


def test_convolutional_heads_are_refused():
    model = ConvexBNClassifier(patches=Patches((2, 2), size=1))
    with pytest.raises(ValueError, match="flat features"):
        replace_head(torch.nn.Flatten(), np.zeros((4, 4)), [0, 1, 0, 1], estimator=model)

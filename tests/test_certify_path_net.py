"""The gap of path networks: those of this package, and torch modules of two hidden layers."""

import warnings

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.datasets import make_classification, make_friedman1
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.linear_model import LinearRegression
from sklearn.neural_network import MLPRegressor

from sklearn_convexbn import (
    ConvexBNRegressor,
    PathNetClassifier,
    PathNetRegressor,
    certify,
    certify_path_net,
)
from sklearn_convexbn.fit._foreign_paths import parallel
from sklearn_convexbn.program.units._paths import inner_signs

ALPHA = 0.02


@pytest.fixture(scope="module")
def friedman():
    return make_friedman1(120, n_features=6, noise=0.1, random_state=0)


@pytest.fixture(scope="module")
def fitted(friedman):
    return PathNetRegressor(ALPHA, tol=0.01, random_state=0).fit(*friedman)


def dense(d, C=1, *, seed=0, sizes=(7, 5), bias=True):
    """A torch network in which every inner unit feeds every unit."""
    torch.manual_seed(seed)
    nn = torch.nn
    return nn.Sequential(
        nn.Linear(d, sizes[0]),
        nn.ReLU(),
        nn.Linear(sizes[0], sizes[1]),
        nn.ReLU(),
        nn.Linear(sizes[1], C, bias=bias),
    ).double()


def values(network, X):
    """A network's outputs by the definition of its sub-networks."""
    g = X @ network.linear + network.linear_offsets
    inner = zip(network.inner, network.inner_offsets, network.signs, strict=True)
    for W, c, sign in inner:
        g = g + sign * np.maximum(X @ W + c, 0)
    return np.maximum(g, 0) @ network.output + network.intercept


def path_norms(network, X):
    """The l1 norms (m,) of sub-networks on the standardised columns of X."""
    total = 0.0
    parts = [(network.linear, network.linear_offsets)]
    for W, c in [*parts, *zip(network.inner, network.inner_offsets, strict=True)]:
        total = total + np.abs(W * X.std(axis=0)[:, None]).sum(axis=0)
        total = total + np.abs(X.mean(axis=0) @ W + c)
    return total


def two_outputs(X, y):
    return np.stack([y, X[:, 0] - y], axis=1)


CASES = {
    "plain": (PathNetRegressor(0.05), None),
    "l2": (PathNetRegressor(0.05, norm="l2"), None),
    "one layer": (PathNetRegressor(0.05, inner_width=0, fit_intercept=False), None),
    "huber": (PathNetRegressor(0.05, loss="huber"), None),
    "outputs": (PathNetRegressor(0.05), two_outputs),
    "classes": (PathNetClassifier(0.05, class_weight="balanced"), lambda X, y: y > np.median(y)),
    "three classes": (PathNetClassifier(0.05), lambda X, y: np.digitize(y, [10, 16])),
    "squared": (PathNetClassifier(0.05, loss="squared_error"), lambda X, y: y > 14),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("weighted", [False, True])
def test_agrees_with_the_fit(case, weighted, friedman):
    """The same objective, and a bound that is a search's, about what the fit's own search saw."""
    model, target = CASES[case]
    X, y = friedman
    y = y if target is None else target(X, y)
    weights = np.random.RandomState(0).randint(0, 3, size=len(X)) if weighted else None
    model.set_params(random_state=0).fit(X, y, sample_weight=weights)
    judged = certify_path_net(
        model, X, y, alpha=0.05, sample_weight=weights, random_state=1, effort="quick"
    )
    assert judged.primal == pytest.approx(model.objective_, rel=1e-7)
    assert judged.kind == "estimated"
    assert judged.n_verified == 2000
    assert 0.0 <= judged.gap <= judged.cautious_gap < 0.6
    assert judged.dual == pytest.approx(judged.primal * (1.0 - judged.gap), rel=1e-9)


def test_exported_network_is_the_same_network(friedman, fitted):
    X, y = friedman
    options = {"alpha": ALPHA, "random_state": 0, "effort": "quick"}
    own = certify_path_net(fitted, X, y, **options)
    torch_ = certify_path_net(fitted.to_torch(), X, y, inner_width=4, **options)
    assert torch_.primal == pytest.approx(own.primal, rel=1e-9)
    assert torch_.dual == pytest.approx(own.dual, rel=0.02)
    single = certify_path_net(fitted.to_torch().float(), X, y, **options)
    assert single.primal == pytest.approx(own.primal, rel=1e-4)


@pytest.mark.parametrize("sizes", [(7, 5), (1, 4), (12, 1)])
def test_plain_layers_as_sub_networks_are_the_same_function(sizes):
    module = dense(3, 2, sizes=sizes)
    with torch.no_grad():
        module[2].weight[0, 0] = 0.0
    coefs = [layer.weight.detach().numpy().T for layer in module[::2]]
    intercepts = [layer.bias.detach().numpy() for layer in module[::2]]
    network = parallel(coefs, intercepts)
    np.testing.assert_array_equal(network.signs, inner_signs(len(network.signs)))
    X = np.random.RandomState(0).standard_normal((50, 3))
    expected = module(torch.tensor(X)).detach().numpy()
    np.testing.assert_allclose(values(network, X), expected, rtol=1e-12, atol=1e-12)
    assert not network.linear.any()
    wider = parallel(coefs, intercepts, 40)
    assert len(wider.signs) == 40
    np.testing.assert_allclose(values(wider, X), expected, rtol=1e-12, atol=1e-12)


def test_two_inner_units_of_a_line_are_its_linear_part():
    rng = np.random.RandomState(0)
    w, other = rng.standard_normal((2, 3))
    coefs = [np.stack([w, -w, other, -other], axis=1), np.array([[2.0], [-2.0], [1.0], [-3.0]])]
    intercepts = [np.array([0.5, -0.5, 0.0, -0.0]), np.array([0.25]), np.zeros(1)]
    network = parallel([*coefs, np.ones((1, 1))], intercepts)
    np.testing.assert_array_equal(network.linear[:, 0], 2 * w)
    assert network.linear_offsets == 0.25 + 2 * 0.5
    np.testing.assert_array_equal(network.inner[:, :, 0], [other, -3 * other])
    X = rng.standard_normal((20, 3))
    H = np.maximum(np.maximum(X @ coefs[0] + intercepts[0], 0) @ coefs[1] + intercepts[1], 0)
    np.testing.assert_allclose(values(network, X), H, rtol=1e-12, atol=1e-12)


def test_torch_network_has_its_loss_and_the_price_of_its_paths(friedman):
    X, y = friedman
    y = (y - y.mean()) / y.std()
    module = dense(6)
    coefs = [layer.weight.detach().numpy().T for layer in module[::2]]
    intercepts = [layer.bias.detach().numpy() for layer in module[::2]]
    network = parallel(coefs, intercepts)
    residual = values(network, X)[:, 0] - y
    mass = path_norms(network, X) @ np.abs(network.output[:, 0])
    before = [p.clone() for p in module.parameters()]
    judged = certify_path_net(module, X, y, alpha=ALPHA, random_state=0, effort=100)
    assert judged.primal == pytest.approx(0.5 * (residual**2).mean() + ALPHA * mass, rel=1e-9)
    assert judged.gap > 0.3  # it is not trained
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))


def test_mlps_of_two_hidden_layers(friedman):
    X, y = friedman
    X = (X - X.mean(axis=0)) / X.std(axis=0)
    y = (y - y.mean()) / y.std()
    mlp = MLPRegressor(hidden_layer_sizes=(6, 5), max_iter=20, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        mlp.fit(X, y)
    judged = certify_path_net(mlp, X, y, alpha=ALPHA, random_state=0, effort=200)
    network = parallel(mlp.coefs_, mlp.intercepts_)
    loss = 0.5 * ((mlp.predict(X) - y) ** 2).mean()
    mass = path_norms(network, X) @ np.abs(network.output[:, 0])
    assert judged.primal == pytest.approx(loss + ALPHA * mass, rel=1e-9)
    assert judged.direction.inner.shape == (len(network.signs), 6)
    with pytest.raises(ValueError, match="Got a MLPRegressor with other layers"):
        certify_path_net(
            MLPRegressor(hidden_layer_sizes=(4,), tol=10.0).fit(X, y), X, y, alpha=ALPHA
        )
    with pytest.raises(ValueError, match="needs activation='relu'"):
        certify_path_net(mlp.set_params(activation="tanh"), X, y, alpha=ALPHA)


def test_bounds_what_better_networks_reach(friedman, fitted):
    X, y = friedman
    far = PathNetRegressor(ALPHA, max_iter=1, tol=0.9, random_state=0)
    far.set_params(alpha=0.3).fit(X, y)
    judged = certify_path_net(far, X, y, alpha=ALPHA, random_state=0, effort="normal")
    near = certify_path_net(fitted, X, y, alpha=ALPHA, random_state=0, effort="normal")
    assert judged.dual < near.primal < judged.primal
    assert near.dual < near.primal
    assert near.gap < 0.15 < judged.gap


@pytest.mark.parametrize("weighted", [False, True])
def test_the_direction_has_its_correlation_and_lowers_the_objective(weighted, friedman):
    X, y = friedman
    y = (y - y.mean()) / y.std()
    weights = np.arange(len(X)) % 3 + 1.0 if weighted else np.ones(len(X))
    p = weights / weights.sum()
    mean = p @ y
    y = (y - mean) / np.sqrt(p @ (y - mean) ** 2)
    model = PathNetRegressor(0.2, random_state=0).fit(X, y, sample_weight=weights)
    judged = certify_path_net(
        model, X, y, alpha=ALPHA, sample_weight=weights, random_state=0, effort="quick"
    )
    unit = judged.direction
    g = X @ unit.linear + unit.linear_offset
    for w, c, sign in zip(unit.inner, unit.inner_offsets, unit.signs, strict=True):
        g = g + sign * np.maximum(X @ w + c, 0)
    activations = np.maximum(g, 0)
    centre = p @ X
    deviations = np.sqrt(p @ (X - centre) ** 2)
    norm = sum(
        np.abs(w * deviations).sum() + abs(centre @ w + c)
        for w, c in [
            (unit.linear, unit.linear_offset),
            *zip(unit.inner, unit.inner_offsets, strict=True),
        ]
    )
    assert norm == pytest.approx(1.0, rel=1e-6)
    residual = y - model.predict(X)
    residual = residual - p @ residual
    correlation = (p * residual) @ activations
    assert unit.output[0] * correlation > 0
    assert abs(correlation) == pytest.approx(ALPHA * (1.0 + judged.violation), rel=1e-5)
    size = 1e-3
    changed = residual - size * unit.output[0] * activations
    fall = 0.5 * p @ residual**2 - 0.5 * p @ changed**2
    assert fall > ALPHA * size


def test_order_weights_and_constant_columns_change_nothing_but_the_search(friedman, fitted):
    X, y = friedman
    options = {"alpha": ALPHA, "random_state": 0, "effort": "quick"}
    own = certify_path_net(fitted, X, y, **options)
    assert certify_path_net(fitted, X, y, **options).dual == own.dual
    order = np.random.RandomState(0).permutation(len(X))
    other = certify_path_net(fitted, X[order], y[order], **options)
    twice = certify_path_net(fitted, np.vstack([X, X[:10]]), np.append(y, y[:10]), **options)
    weights = np.where(np.arange(len(X)) < 10, 2, 1)
    weighted = certify_path_net(fitted, X, y, sample_weight=weights, **options)
    assert other.primal == pytest.approx(own.primal, rel=1e-12)
    assert weighted.primal == pytest.approx(twice.primal, rel=1e-9)
    assert other.dual == pytest.approx(own.dual, rel=0.05)
    assert weighted.dual == pytest.approx(twice.dual, rel=0.05)
    wide = np.column_stack([X, np.full(len(X), 1e3)])
    constant = PathNetRegressor(ALPHA, tol=0.01, random_state=0).fit(wide, y)
    judged = certify_path_net(constant, wide, y, **options)
    assert judged.primal == pytest.approx(constant.objective_, rel=1e-7)
    assert judged.direction.inner.shape[1] == 7
    assert not judged.direction.inner[:, -1].any()


def test_in_words_and_progress(friedman, fitted, capsys):
    judged = certify_path_net(
        fitted, *friedman, alpha=ALPHA, random_state=0, effort=150, verbose=True
    )
    assert "[certify] 150 of 150 starts: violation of" in capsys.readouterr().out
    assert str(judged).startswith(
        f"objective {judged.primal:.6g}, estimated, by an independent search of 150 starts,"
    )
    assert f"largest violation found {100 * judged.violation:.3g} %" in str(judged)


def test_the_constant_network(friedman):
    X, y = friedman
    model = PathNetRegressor(10.0, random_state=0).fit(X, y)
    assert model.n_neurons_ == 0
    judged = certify_path_net(model, X, y, alpha=10.0, random_state=0, effort=100)
    assert judged.gap <= 1e-12
    assert judged.primal == pytest.approx(0.5 * y.var(), rel=1e-12)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"inner_width": 6}, "The PathNetRegressor needs inner_width=4. Got inner_width=6"),
        ({"inner_width": -1}, "inner_width"),
        ({"fit_intercept": False}, "output bias"),
        ({"loss": "log_loss"}, "cannot judge a PathNetRegressor by loss='log_loss'"),
        ({"alpha": 0.0}, "alpha"),
    ],
)
def test_wrong_parameters(options, words, friedman, fitted):
    with pytest.raises(ValueError, match=words):
        certify_path_net(fitted, *friedman, **{"alpha": ALPHA, **options})


def test_wrong_networks_and_data(friedman, fitted):
    X, y = friedman
    with pytest.raises(NotFittedError):
        certify_path_net(PathNetRegressor(), X, y, alpha=ALPHA)
    with pytest.raises(TypeError, match="certify_path_net does not take sparse X"):
        certify_path_net(fitted, sparse.csr_array(X), y, alpha=ALPHA)
    with pytest.raises(ValueError, match="X has 5 features"):
        certify_path_net(fitted, X[:, :5], y, alpha=ALPHA)
    with pytest.raises(ValueError, match="network expects 6"):
        certify_path_net(dense(6), X[:, :5], y, alpha=ALPHA)
    with pytest.raises(
        ValueError, match=r"The torch module needs inner_width=\d+ or more. Got inner_w"
    ):
        certify_path_net(dense(6), X, y, alpha=ALPHA, inner_width=1)
    module = dense(6)
    module[2] = torch.nn.Linear(4, 5).double()
    with pytest.raises(ValueError, match="do not fit together"):
        certify_path_net(module, X, y, alpha=ALPHA)
    module = dense(6)
    with torch.no_grad():
        module[0].weight[0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN or infinity"):
        certify_path_net(module, X, y, alpha=ALPHA)
    with pytest.raises(ValueError, match="outputs"):
        certify_path_net(dense(6, 2), X, y, alpha=ALPHA)
    convex = ConvexBNRegressor(0.1).fit(X, y)
    with pytest.raises(ValueError, match="Got a ConvexBNRegressor with other layers"):
        certify_path_net(convex, X, y, alpha=0.1)
    with pytest.raises(TypeError, match=r"network must be a fitted PathNet.* Got LinearRegression"):
        certify_path_net(LinearRegression().fit(X, y), X, y, alpha=0.1)
    with pytest.raises(ValueError, match=r"Got a Sequential of \(Linear, ReLU, Linear\)"):
        certify_path_net(dense(6)[2:], X, y, alpha=0.1)
    with pytest.raises(
        TypeError, match=r"Got PathNetRegressor. For that there is certify_path_net"
    ):
        certify(fitted, X, y, alpha=0.1)


def test_classes_of_another_fit_are_refused():
    X, y = make_classification(100, n_features=5, random_state=0)
    model = PathNetClassifier(0.1, random_state=0).fit(X, y)
    with pytest.raises(ValueError, match="the network was trained on"):
        certify_path_net(model, X, y + 1, alpha=0.1)
    names = np.array(["no", "yes"])[y]
    judged = certify_path_net(model.to_torch(), X, names, alpha=0.1, random_state=0, effort=100)
    assert judged.primal == pytest.approx(model.objective_, rel=1e-6)

"""alpha_max and the warm-started path."""

import numpy as np
import pytest
from sklearn.datasets import load_diabetes

from sklearn_convexbn import (
    ConvexBNClassifier,
    ConvexBNRegressor,
    alpha_max,
    convexbn_path,
)
from sklearn_convexbn.program._arrangements import enumerate_gates
from tests.helpers import whiten


@pytest.fixture(scope="module")
def diabetes():
    X, y = load_diabetes(return_X_y=True)
    return X[:150], y[:150]


def test_alpha_max_in_one_dimension_is_the_largest_over_all_arrangements():
    rng = np.random.RandomState(0)
    X, y = rng.randn(30, 1), rng.randn(30)
    Z, _ = whiten(X, np.ones(30))
    residual = (y - y.mean()) / y.std() / 30
    patterns = Z @ enumerate_gates(Z) >= 0
    # For each pattern the maximum over its cone: on the boundary, or inside if that lies there.
    best = 0.0
    for mask in patterns.T:
        for c in (Z.T @ (mask * residual), -(Z.T @ (mask * residual))):
            angles = np.linspace(0, 2 * np.pi, 20001)
            q = np.vstack([np.cos(angles), np.sin(angles)])
            inside = (((2.0 * mask - 1.0)[:, None] * (Z @ q)) >= 0).all(axis=0)
            if inside.any():
                best = max(best, (c @ q)[inside].max())
    assert alpha_max(X, y) == pytest.approx(best, rel=1e-4)


@pytest.mark.parametrize("n_components", [1, 2])
def test_network_is_empty_from_alpha_max_on_and_not_below(diabetes, n_components):
    largest = alpha_max(*diabetes, n_components=n_components)
    for share, empty in ((1.0 + 1e-9, True), (0.98, False)):
        model = ConvexBNRegressor(
            share * largest, n_components=n_components, tol=1e-4, random_state=0
        ).fit(*diabetes)
        assert model.certificate_.kind == "exact"
        assert (model.n_neurons_ == 0) == empty


def test_alpha_max_of_classes_bounds_the_classifier(iris):
    X, y = iris
    largest = alpha_max(X, y, random_state=0)
    assert ConvexBNClassifier(1.001 * largest, random_state=0).fit(X, y).n_neurons_ == 0
    assert ConvexBNClassifier(0.9 * largest, tol=1e-4, random_state=0).fit(X, y).n_neurons_ > 0


def test_alpha_max_of_gates_is_at_least_that_of_cones_on_the_same_list(diabetes):
    few = {"n_gates": 20, "random_state": 0}
    gated = alpha_max(*diabetes, activation="gated_relu", **few)
    cones = alpha_max(*diabetes, solver="interior_point", **few)
    assert cones <= gated * (1 + 1e-12)
    pairs = [
        (
            alpha_max(*diabetes, solver="interior_point", n_gates=2, random_state=seed),
            alpha_max(*diabetes, activation="gated_relu", n_gates=2, random_state=seed),
        )
        for seed in range(5)
    ]
    assert any(c < 0.99 * g for c, g in pairs)  # for want of the cones the bound is too large
    everything = alpha_max(*diabetes, random_state=0)
    assert cones < gated
    assert cones <= everything * (1 + 1e-9)
    model = ConvexBNRegressor(activation="gated_relu", tol=1e-6, **few)
    assert model.set_params(alpha=gated * 1.0001).fit(*diabetes).n_neurons_ == 0
    assert model.set_params(alpha=gated * 0.99).fit(*diabetes).n_neurons_ > 0
    listed = ConvexBNRegressor(solver="interior_point", tol=1e-6, **few)
    assert listed.set_params(alpha=cones * 1.0001).fit(*diabetes).n_neurons_ == 0
    assert listed.set_params(alpha=cones * 0.98).fit(*diabetes).n_neurons_ > 0


def test_alpha_max_has_no_unit_and_counts_weights_as_repeats(diabetes):
    X, y = diabetes
    weights = np.arange(len(y)) % 3
    largest = alpha_max(X, y, sample_weight=weights, random_state=0)
    repeated = np.repeat(X, weights, axis=0), np.repeat(y, weights)
    assert alpha_max(*repeated, random_state=0) == pytest.approx(largest, rel=1e-9)
    assert alpha_max(X, 7.0 * y, sample_weight=weights, random_state=0) == pytest.approx(largest)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"n_components": 3},
        {"shrinkage": 0.5},
        {"activation": "gated_relu", "n_gates": 40},
        {"solver": "interior_point", "n_gates": 20},
    ],
)
def test_path_gives_what_single_fits_give(diabetes, settings):
    X, y = diabetes
    alphas, networks, gaps = convexbn_path(
        X, y, alphas=5, eps=0.05, tol=1e-3, random_state=0, **settings
    )
    assert alphas[-1] == pytest.approx(0.05 * alphas[0])
    assert (np.diff(alphas) < 0).all()
    assert (gaps <= 1e-3).all()
    assert len(networks[0].intercepts[0]) <= 1
    for alpha, network in zip(alphas, networks, strict=True):
        model = ConvexBNRegressor(alpha, tol=1e-3, random_state=0, **settings).fit(X, y)
        objectives = []
        for output, coefs in (
            (network.forward(X)[:, 0], network.coefs),
            (model.predict(X), model.coefs_),
        ):
            mass = (coefs[1] ** 2).sum()  # the scales are balanced: |q_j| = |v_j|
            objectives.append(0.5 * np.mean((output - y) ** 2) + model.weight_decay_ * mass)
        assert objectives[1] == pytest.approx(model.objective_, rel=1e-9)
        assert objectives[0] == pytest.approx(objectives[1], rel=1e-3)


def test_path_of_a_classifier_and_given_alphas(breast_cancer):
    X, y = breast_cancer
    alphas, networks, gaps = convexbn_path(X, y, alphas=[0.1, 0.03], tol=0.01, random_state=0)
    assert alphas.tolist() == [0.1, 0.03]
    assert (gaps <= 0.01).all()
    model = ConvexBNClassifier(0.03, tol=0.01, random_state=0).fit(X, y)
    labels = (networks[1].forward(X)[:, 0] > 0).astype(int)
    assert np.mean(labels == model.predict(X)) > 0.99


def test_loss_is_told_from_y(iris):
    X, y = iris
    labels = alpha_max(X, y, random_state=0)
    assert labels == alpha_max(X, y, loss="log_loss", random_state=0)
    numbers = alpha_max(X, y, loss="squared_error", random_state=0)
    assert numbers == pytest.approx(alpha_max(X, y.astype(float) + 0.5, random_state=0))
    assert abs(numbers - labels) > 0.1


def test_constant_target_has_alpha_max_zero_and_a_path_of_empty_networks():
    X = np.random.RandomState(0).randn(20, 3)
    assert alpha_max(X, np.full(20, 2.5)) == 0.0
    alphas, networks, _ = convexbn_path(X, np.full(20, 2.5), alphas=3)
    assert (alphas > 0).all()
    assert [len(n.intercepts[0]) for n in networks] == [0, 0, 0]
    assert networks[-1].forward(X) == pytest.approx(2.5)


@pytest.mark.parametrize(
    ("alphas", "message"),
    [
        ([0.1, 0.2], "strictly descending"),
        ([0.1, 0.1], "strictly descending"),
        ([0.1, 0.0], "positive"),
        ([0.1, -1.0], "positive"),
        ([np.inf, 1.0], "finite"),
        ([np.nan], "finite"),
        ([], "non-empty"),
        ([[0.1]], "non-empty"),
        (0, "alphas"),
        ("many", "alphas"),
    ],
)
def test_bad_alphas_are_refused(diabetes, alphas, message):
    with pytest.raises(ValueError, match=message):
        convexbn_path(*diabetes, alphas=alphas)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eps": 0.0}, "eps"),
        ({"eps": 1.0}, "eps"),
        ({"loss": "hinge"}, "loss"),
        ({"n_components": 0}, "n_components"),
        ({"solver": "closed_form"}, "closed_form"),
        ({"tol": 0.0}, "tol"),
    ],
)
def test_bad_settings_are_refused(diabetes, settings, message):
    with pytest.raises(ValueError, match=message):
        convexbn_path(*diabetes, **settings)


def test_labels_that_are_not_numbers_are_refused_for_squared_error():
    X = np.random.RandomState(0).randn(6, 2)
    with pytest.raises(ValueError, match="could not convert"):
        alpha_max(X, list("ababab"), loss="squared_error")
    with pytest.raises(ValueError, match="one class"):
        alpha_max(X, list("aaaaaa"), loss="log_loss")

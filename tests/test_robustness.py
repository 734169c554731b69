"""Lipschitz bounds and certified radii: sound wherever one looks, exact where that is known."""

from itertools import product

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.datasets import load_digits, load_iris, make_moons
from sklearn.neural_network import MLPClassifier, MLPRegressor

from sklearn_convexbn import (
    ConvexBNClassifier,
    ConvexBNRegressor,
    Patches,
    certified_radius,
    lipschitz_bound,
)
from sklearn_convexbn.fit import _lipschitz


def torch_network(W, w0, V, v0):
    """Return ``relu(x W + w0) V + v0`` as a torch module."""
    hidden, output = torch.nn.Linear(*W.shape).double(), torch.nn.Linear(*V.shape).double()
    with torch.no_grad():
        for layer, A, a in ((hidden, W, w0), (output, V, v0)):
            layer.weight.copy_(torch.as_tensor(A.T.copy()))
            layer.bias.copy_(torch.as_tensor(a))
    return torch.nn.Sequential(hidden, torch.nn.ReLU(), output)


def random_network(d, m, C, seed=0):
    rng = np.random.default_rng(seed)
    W, w0 = rng.normal(size=(d, m)), rng.normal(size=m)
    return W, w0, rng.normal(size=(m, C)), rng.normal(size=C)


def jacobian_norms(X, W, w0, V):
    return np.array([np.linalg.norm((W * (x @ W + w0 > 0)) @ V, 2) for x in X])


def test_absolute_value_has_constant_one():
    network = torch_network(
        np.array([[1.0, -1.0]]), np.zeros(2), np.array([[1.0], [1.0]]), np.zeros(1)
    )
    assert lipschitz_bound(network) == pytest.approx(1.0, rel=1e-9)  # the plain sum is 2
    np.testing.assert_allclose(lipschitz_bound(network, [[-2.0], [3.0]]), 1.0, rtol=1e-9)


def test_orthogonal_units_of_one_sign_have_the_length_of_all_of_them():
    W = np.diag([3.0, 4.0, 12.0])
    assert _lipschitz.lipschitz(W, np.ones((3, 1))) == pytest.approx(13.0, rel=1e-9)
    two = _lipschitz.lipschitz(W, np.diag([1.0, 1.0, 0.5]))  # the largest of 3, 4 and 6
    assert two == pytest.approx(6.0, rel=1e-9)


def test_network_without_slope_has_constant_zero():
    W, V = np.zeros((2, 3)), np.ones((3, 1))
    assert _lipschitz.lipschitz(W, V) == 0.0
    assert _lipschitz.lipschitz(np.ones((2, 0)), np.ones((0, 2))) == 0.0


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("C", [1, 4])
def test_semidefinite_bounds_hold_for_all_patterns_and_are_near_the_worst(C, seed):
    W, _, V, _ = random_network(5, 12, C, seed)
    patterns = np.array(list(product((0.0, 1.0), repeat=12)))
    worst = np.linalg.norm(W @ (patterns[:, :, None] * V), 2, axis=(1, 2)).max()
    if C == 1:
        bound = _lipschitz.semidefinite_of_one_output(W * V[:, 0])
    else:
        bound = _lipschitz.semidefinite(W, V)
    assert worst <= bound * (1 + 1e-12)
    assert bound <= 1.15 * worst
    assert _lipschitz.lipschitz(W, V) <= bound * (1 + 1e-9)


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_semidefinite_bounds_hold_after_few_steps(steps):
    W, _, V, _ = random_network(4, 10, 3)
    patterns = np.array(list(product((0.0, 1.0), repeat=10)))
    worst = np.linalg.norm(W @ (patterns[:, :, None] * V), 2, axis=(1, 2)).max()
    assert worst <= _lipschitz.semidefinite(W, V, steps) * (1 + 1e-12)
    worst = np.linalg.norm((patterns * V[:, 0]) @ W.T, axis=1).max()
    bound = _lipschitz.semidefinite_of_one_output(W * V[:, 0], steps)
    assert worst <= bound * (1 + 1e-12)


@pytest.mark.parametrize("scale", [1e-150, 1.0, 1e100])
@pytest.mark.parametrize(("d", "m", "C"), [(3, 7, 1), (3, 7, 2), (20, 60, 1), (20, 60, 5)])
def test_bound_is_above_every_difference_and_below_the_plain_sum(d, m, C, scale):
    W, w0, V, v0 = random_network(d, m, C)
    W, w0 = W * scale, w0 * scale
    network = torch_network(W, w0, V, v0)
    bound = lipschitz_bound(network)
    rng = np.random.default_rng(1)
    x, z = rng.normal(size=(2, 2000, d)) * rng.lognormal(size=(2, 2000, 1))
    F, G = (np.maximum(A @ W + w0, 0) @ V + v0 for A in (x, z))
    slopes = np.linalg.norm(F - G, axis=1) / np.linalg.norm(x - z, axis=1)
    assert slopes.max() <= bound
    assert jacobian_norms(x, W, w0, V).max() <= bound
    assert bound <= 0.9 * np.linalg.norm(W, axis=0) @ np.linalg.norm(V, axis=1)


@pytest.mark.parametrize("C", [1, 3])
def test_local_bounds_hold_on_the_balls_and_grow_to_the_bound_of_all_rows(C):
    W, w0, V, v0 = random_network(6, 30, C)
    network = torch_network(W, w0, V, v0)
    rng = np.random.default_rng(2)
    X = rng.normal(size=(10, 6))
    at_the_rows = lipschitz_bound(network, X)
    np.testing.assert_allclose(at_the_rows, jacobian_norms(X, W, w0, V), rtol=1e-9)
    before = at_the_rows
    for radius in (0.01, 0.1, 1.0):
        bounds = lipschitz_bound(network, X, radius=radius)
        for x, bound in zip(X, bounds, strict=True):
            steps = rng.normal(size=(500, 6))
            steps *= radius * rng.uniform(size=(500, 1)) / np.linalg.norm(steps, axis=1)[:, None]
            assert jacobian_norms(x + steps, W, w0, V).max() <= bound
        assert (bounds >= before).all()
        before = bounds
    far = lipschitz_bound(network, X, radius=1e6)
    np.testing.assert_allclose(far, lipschitz_bound(network), rtol=1e-9)


def classes_of(network, X):
    W, V = network.coefs_
    F = np.maximum(X @ W + network.intercepts_[0], 0) @ V + network.intercepts_[1]
    return (F[:, 0] > 0).astype(int) if F.shape[1] == 1 else F.argmax(axis=1)


def distances_to_another_class(network, X, reach):
    """Return the smallest distance to another class on a dense polar grid around each row."""
    angles = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    radii = np.linspace(0, reach, 400)[1:]
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    found = []
    for x in X:
        points = x + radii[:, None, None] * circle
        changed = classes_of(network, points.reshape(-1, 2)) != classes_of(network, x[None])
        changed = changed.reshape(len(radii), -1).any(axis=1)
        found.append(radii[changed.argmax()] if changed.any() else np.inf)
    return np.array(found)


@pytest.mark.parametrize("kind", ["ours", "mlp"])
@pytest.mark.parametrize("name", ["moons", "iris"])
def test_class_is_the_same_within_the_radius_and_the_radius_is_of_use(name, kind):
    if name == "moons":
        X, y = make_moons(150, noise=0.2, random_state=0)
    else:
        X, y = load_iris(return_X_y=True)
        X = X[:, 2:]
    if kind == "ours":
        model = ConvexBNClassifier(0.01, n_components=2, tol=0.05, random_state=0).fit(X, y)
    else:
        model = MLPClassifier((20,), max_iter=300, tol=1.0, n_iter_no_change=300, random_state=0)
        with pytest.warns(match="Maximum iterations"):
            model.fit(X, y)
    rows = X[::5]
    radius = certified_radius(model, rows)
    true = distances_to_another_class(model, rows, 3.0)
    assert (radius <= true).all()
    near = np.isfinite(true)
    assert near.sum() > 10
    assert np.median(radius[near] / true[near]) > 0.5


def test_radius_of_a_linear_classifier_is_the_distance_from_its_hyperplane():
    # relu(x + 100) - 100 = x near the rows, along (3, 4) / 5 and five times as steep.
    W, w0 = np.array([[3.0], [4.0]]), np.array([500.0])
    network = torch_network(W, w0, np.ones((1, 1)), np.array([-500.0]))
    X = np.array([[3.0, 4.0], [-6.0, -8.0], [0.0, 0.0]])
    np.testing.assert_allclose(certified_radius(network, X), [5.0, 10.0, 0.0], rtol=1e-6)


def test_radius_is_that_of_the_point_where_a_unit_turns_on():
    # x - 5 relu(x - 1) + 1 falls to zero where x + 1 = 5 (x - 1), at 1.5, seen from x = 0.5; along
    # the other side at -1, where it is 1.5 away.
    W, w0 = np.array([[1.0, 1.0]]), np.array([100.0, -1.0])
    network = torch_network(W, w0, np.array([[1.0], [-5.0]]), np.array([-99.0]))
    # Slope 1 down to a distance of 0.5, then 1 + 5 at most: 1.5 = 0.5 + 6 s.
    bound = min(6.0, lipschitz_bound(network))
    expected = 0.5 + 1.0 / bound
    np.testing.assert_allclose(certified_radius(network, [[0.5]]), [expected], rtol=1e-6)
    assert expected <= 1.0


def test_empty_network_is_constant(iris):
    X, y = iris
    model = ConvexBNClassifier(100.0, random_state=0).fit(X, y)
    assert model.n_neurons_ == 0
    assert lipschitz_bound(model) == 0.0
    np.testing.assert_array_equal(lipschitz_bound(model, X), np.zeros(150))
    assert set(certified_radius(model, X)) <= {0.0, np.inf}  # balanced classes are a tie


def test_output_that_cannot_change_has_an_infinite_radius():
    network = torch_network(np.ones((2, 1)), np.zeros(1), np.zeros((1, 1)), np.ones(1))
    assert certified_radius(network, [[1.0, 2.0]]) == [np.inf]


def test_attacks_on_digits_stay_without_effect_within_the_radius(digits):
    X, y = digits
    X = X[:400] / 16
    model = ConvexBNClassifier(0.03, n_components=20, tol=0.1, random_state=0).fit(X, y[:400])
    rows = X[:100]
    radius = certified_radius(model, rows)
    network, labels = model.to_torch(fold=True), torch.as_tensor(model.predict(rows))
    moved = torch.as_tensor(rows).clone()
    for _ in range(30):
        moved.requires_grad_(True)
        F = network(moved)
        own = F.gather(1, labels[:, None])[:, 0]
        others = F.scatter(1, labels[:, None], -torch.inf).max(dim=1).values
        (gradient,) = torch.autograd.grad((others - own).sum(), moved)
        size = gradient.norm(dim=1, keepdim=True) + 1e-12
        step = (
            moved.detach() + 0.2 * torch.as_tensor(radius)[:, None] * gradient / size
        ).numpy() - rows
        step *= np.minimum(1, 0.999 * radius / np.linalg.norm(step, axis=1))[:, None]
        moved = torch.as_tensor(rows + step)
        np.testing.assert_array_equal(model.predict(moved.numpy()), labels)
    assert np.median(radius) > 0.1


def test_bounds_are_in_the_units_of_X_and_y():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(80, 3))
    y = np.abs(X[:, 0]) + X[:, 1]
    model = ConvexBNRegressor(0.03, tol=1e-3, random_state=0)
    bound = lipschitz_bound(model.fit(X, y))
    assert lipschitz_bound(model.fit(10 * X, 3 * y)) == pytest.approx(0.3 * bound, rel=0.02)
    np.testing.assert_array_equal(
        lipschitz_bound(model, sparse.csr_matrix(10 * X)), lipschitz_bound(model, 10 * X)
    )


@pytest.mark.parametrize("pooling", [1, 2])
def test_images_are_bounded_as_the_dense_network_they_are(pooling):
    X, y = load_digits(n_class=3, return_X_y=True)
    X = X[:200] / 16
    patches = Patches((8, 8), size=3, stride=2, pooling=pooling)
    model = ConvexBNClassifier(0.03, patches=patches, tol=0.1, random_state=0).fit(X, y[:200])
    bound, radius = lipschitz_bound(model), certified_radius(model, X[:50])
    rng = np.random.default_rng(0)
    x, z = rng.normal(size=(2, 500, 64))
    difference = model.decision_function(x) - model.decision_function(z)
    slopes = np.linalg.norm(difference, axis=1) / np.linalg.norm(x - z, axis=1)
    assert slopes.max() <= bound
    step = rng.normal(size=(50, 64))
    step *= (0.999 * radius / np.linalg.norm(step, axis=1))[:, None]
    np.testing.assert_array_equal(model.predict(X[:50] + step), model.predict(X[:50]))
    network = model.to_torch()
    images = X[:50].reshape(-1, 1, 8, 8)
    np.testing.assert_allclose(certified_radius(network, images), radius, rtol=1e-6)


def test_torch_networks_are_taken_in_eval_mode():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(80, 3))
    model = ConvexBNRegressor(0.1, random_state=0).fit(X, np.abs(X[:, 0]))
    bounds = [lipschitz_bound(model.to_torch(fold=fold).train()) for fold in (False, True)]
    np.testing.assert_allclose(bounds, lipschitz_bound(model), rtol=1e-9)
    network = torch.nn.Sequential(
        torch.nn.Linear(3, 4),
        torch.nn.BatchNorm1d(4, track_running_stats=False),
        torch.nn.ReLU(),
        torch.nn.Linear(4, 1),
    )
    with pytest.raises(ValueError, match="track_running_stats=False"):
        lipschitz_bound(network)


def test_what_cannot_be_bounded_is_refused(iris):
    X, y = iris
    model = ConvexBNClassifier(0.1, random_state=0).fit(X, y)
    with pytest.raises(TypeError, match="network must be"):
        lipschitz_bound(X)
    with pytest.raises(ValueError, match="'radius' parameter of lipschitz_bound"):
        lipschitz_bound(model, X, radius=-1.0)
    with pytest.raises(ValueError, match="X has 3 features"):
        certified_radius(model, X[:, :3])
    with pytest.raises(ValueError, match="X has 3 features, but the network expects 4"):
        certified_radius(model.to_torch(), X[:, :3])
    gated = ConvexBNClassifier(0.1, activation="gated_relu", random_state=0).fit(X, y)
    with pytest.raises(ValueError, match="lipschitz_bound needs activation='relu'"):
        lipschitz_bound(gated)
    regressor = MLPRegressor(hidden_layer_sizes=(5,), max_iter=1, tol=10.0)
    with pytest.warns(match="Maximum iterations"):
        regressor.fit(X, y)
    with pytest.raises(ValueError, match="certified_radius needs a classifier"):
        certified_radius(regressor, X)
    several = MLPClassifier((5,), max_iter=1, tol=10.0)
    with pytest.warns(match="Maximum iterations"):
        several.fit(X, np.eye(3)[y][:, :2])
    with pytest.raises(ValueError, match="one class a row"):
        certified_radius(several, X)
    digits, labels = load_digits(n_class=2, return_X_y=True)
    patches = Patches((8, 8), size=4, stride=4, normalize=True)
    model = ConvexBNClassifier(0.3, patches=patches, max_iter=2, tol=0.5, random_state=0)
    model.fit(digits[:60], labels[:60])
    with pytest.raises(ValueError, match="normalize=False"):
        lipschitz_bound(model)

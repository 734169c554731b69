import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris

from sklearn_convexbn.program._arrangements import enumerate_gates, project_onto_cone
from sklearn_convexbn.program.units._whitened import WhitenedUnits
from sklearn_convexbn.search._exact import exact_search_operations, largest_correlation
from sklearn_convexbn.search._search import ascend
from sklearn_convexbn.support._sharding import ALL_HERE
from tests.helpers import make_problem


def _values(Z, Lambda, Q):
    """Evaluate the function at directions Q (k, m) of any length."""
    Q = Q / np.linalg.norm(Q, axis=0)
    return np.linalg.norm(Lambda.T @ np.maximum(Z @ Q, 0.0), axis=0)


def _checked(Z, Lambda):
    """Return the exact maximum after checking that its maximiser is a unit vector with it."""
    value, q = largest_correlation(Z, Lambda)
    assert isinstance(value, float)
    assert q.shape == (Z.shape[1],)
    assert np.linalg.norm(q) == pytest.approx(1.0, abs=1e-12)
    assert _values(Z, Lambda, q[:, None])[0] == pytest.approx(value, rel=1e-12, abs=1e-300)
    return value


def _searched(Z, Lambda, n_starts=2000, n_steps=120):
    """Return the largest value that ascent from random directions finds, polished."""
    rng = np.random.default_rng(7)
    tensors = (torch.from_numpy(a) for a in (Lambda, rng.normal(size=(Z.shape[1], n_starts))))
    layer = WhitenedUnits(torch.from_numpy(Z), ALL_HERE)
    values, Q = (found.numpy() for found in ascend(layer, *tensors, n_steps=n_steps, last=1e-7))
    best = Q[:, np.argsort(-values)[:10]]
    # Steps in random directions also climb along kinks, where those along gradients zigzag.
    for size in np.geomspace(0.1, 1e-7, 60):
        steps = size * rng.normal(size=(*best.shape, 20))
        steps[..., 0] = 0.0
        tried = best[..., None] + steps
        tried /= np.linalg.norm(tried, axis=0)
        chosen = _values(Z, Lambda, tried.reshape(len(tried), -1)).reshape(-1, 20).argmax(axis=1)
        best = tried[:, np.arange(best.shape[1]), chosen]
    return float(_values(Z, Lambda, best).max())


def _from_cones(Z, Lambda):
    """Return the maximum for one output from the projections onto every cone."""
    patterns = Z @ enumerate_gates(Z, max_arrangements=None) >= 0
    correlations = Z.T @ (patterns * Lambda)
    found = [
        project_onto_cone(Z, pattern, sign * c)
        for pattern, c in zip(patterns.T, correlations.T, strict=True)
        for sign in (1.0, -1.0)
    ]
    points = np.array([q for q in found if q.any()]).T
    return float(_values(Z, Lambda, points).max()) if points.size else 0.0


def _data(kind, n, k, C, seed):
    rng = np.random.default_rng(seed)
    A, Lambda = rng.normal(size=(n, k)), rng.normal(size=(n, C))
    Z = {
        "general": A,
        "intercept": np.hstack([A[:, :-1], np.ones((n, 1))]),
        "grid": rng.integers(-1, 2, size=(n, k)).astype(float),
        "grid with intercept": np.hstack(
            [rng.integers(-2, 3, size=(n, k - 1)).astype(float), np.ones((n, 1))]
        ),
        "parallel": np.vstack([A[: n - 4], A[:2], -3.0 * A[1:3]]),
        "zero": np.vstack([A[: n - 2], np.zeros((2, k))]),
        "rank": rng.normal(size=(n, k - 1)) @ rng.normal(size=(k - 1, k)),
        "zero Lambda": A,
    }[kind]
    if kind == "zero Lambda":
        Lambda[: n // 2] = 0.0
    elif seed % 2:
        Lambda -= Lambda.mean(axis=0)
    return Z, Lambda


KINDS = [
    "general",
    "intercept",
    "grid",
    "grid with intercept",
    "parallel",
    "zero",
    "rank",
    "zero Lambda",
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "k"), [(6, 2), (25, 2), (6, 3), (14, 3), (7, 4), (9, 4), (6, 5)])
@pytest.mark.parametrize("seed", range(2))
def test_one_output_agrees_with_the_projections_onto_all_cones(kind, n, k, seed):
    Z, Lambda = _data(kind, n, k, 1, seed)
    assert _checked(Z, Lambda) == pytest.approx(_from_cones(Z, Lambda), rel=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("C", [1, 2, 3])
@pytest.mark.parametrize("n", [5, 40])
def test_plane_agrees_with_a_dense_grid(kind, C, n):
    Z, Lambda = _data(kind, n, 2, C, 1)
    angles = np.linspace(0.0, 2.0 * np.pi, 200_001)
    on_grid = _values(Z, Lambda, np.vstack([np.cos(angles), np.sin(angles)])).max()
    # The function is |M q|: within half a step of the maximum it loses less than this.
    lost = 2e-5 * (np.linalg.norm(Z, axis=1) * np.linalg.norm(Lambda, axis=1)).sum()
    assert on_grid <= _checked(Z, Lambda) * (1 + 1e-12) <= on_grid + lost


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("C", [1, 2, 3, 5])
@pytest.mark.parametrize(("n", "k"), [(30, 3), (12, 4), (6, 5)])
def test_search_from_many_starts_finds_the_same_and_nothing_larger(kind, C, n, k):
    Z, Lambda = _data(kind, n, k, C, 2)
    value, found = _checked(Z, Lambda), _searched(Z, Lambda, 500, 60)
    assert found <= value * (1 + 1e-10)
    assert found >= value * (1 - 1e-4)


@pytest.mark.parametrize("C", [1, 2, 3])
@pytest.mark.parametrize("k", [2, 3, 4])
def test_result_does_not_rest_on_the_first_search(C, k):
    Z, Lambda = _data("grid with intercept", 20, k, C, 3)
    expected = largest_correlation(Z, Lambda)[0]
    assert largest_correlation(Z, Lambda, n_starts=0)[0] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("C", [1, 2])
@pytest.mark.parametrize("k", [2, 3, 4])
def test_result_is_invariant(C, k):
    rng = np.random.default_rng(0)
    Z, Lambda = _data("intercept", 15, k, C, 0)
    value = _checked(Z, Lambda)
    rotation = np.linalg.qr(rng.normal(size=(k, k)))[0]
    outputs = np.linalg.qr(rng.normal(size=(C, C)))[0]
    scales = 10.0 ** rng.uniform(-4, 4, size=(15, 1))
    order = rng.permutation(15)
    same = [
        (Z @ rotation, Lambda @ outputs),
        (Z * scales, Lambda / scales),
        (Z[order], Lambda[order]),
        (np.repeat(Z, 2, axis=0), np.repeat(Lambda, 2, axis=0) * np.tile([[0.3], [0.7]], (15, 1))),
        (np.hstack([Z, np.zeros((15, 2))]), Lambda),
        (Z, np.hstack([Lambda, np.zeros((15, 3))])),
        (-Z, -Lambda),
    ]
    for Z_same, Lambda_same in same:
        assert _checked(Z_same, Lambda_same) == pytest.approx(value, rel=1e-10)


@pytest.mark.parametrize("noise", [0.0, 1e-16, 1e-13, 1e-9, 1e-7])
@pytest.mark.parametrize("k", [2, 3, 4])
def test_rows_that_nearly_coincide(noise, k):
    rng = np.random.default_rng(3)
    Z, Lambda = _data("intercept", 8, k, 1, 3)
    doubled = np.vstack([Z, Z + noise * rng.normal(size=Z.shape), -Z])
    weights = np.vstack([Lambda, -0.4 * Lambda, 0.2 * rng.normal(size=Lambda.shape)])
    exact = np.vstack([Z, -Z]), np.vstack([0.6 * Lambda, weights[16:]])
    assert _checked(doubled, weights) == pytest.approx(
        largest_correlation(*exact)[0], rel=1e-8 + 100 * noise
    )


def test_known_maxima():
    Z = np.array([[3.0, 4.0]])
    value, q = largest_correlation(Z, np.array([[-2.0]]))
    assert value == pytest.approx(10.0)
    np.testing.assert_allclose(q, [0.6, 0.8])
    # Opposite rows with opposite multipliers: the function is |z . q|.
    assert _checked(np.vstack([Z, -Z]), np.array([[1.0], [-1.0]])) == pytest.approx(5.0)
    # An orthant in which every row is active.
    assert _checked(np.eye(4), np.ones((4, 1))) == pytest.approx(2.0)
    assert _checked(np.eye(4), np.eye(4)) == pytest.approx(1.0)
    # The best unit is active on one of them only.
    assert _checked(np.eye(3), np.array([[1.0], [-2.0], [0.5]])) == pytest.approx(2.0)
    # One column of ones.
    assert _checked(np.ones((3, 1)), np.array([[1.0], [-4.0], [1.0]])) == pytest.approx(2.0)
    assert _checked(np.ones((3, 2)), np.array([[1.0], [-4.0], [1.0]])) == pytest.approx(8**0.5)


@pytest.mark.parametrize("C", [1, 2])
def test_nothing_to_find(C):
    for Z in (np.zeros((4, 3)), np.random.default_rng(0).normal(size=(4, 3)), np.zeros((0, 3))):
        assert _checked(Z, np.zeros((len(Z), C))) == 0.0
    assert _checked(np.zeros((4, 3)), np.ones((4, C))) == 0.0
    # Copies whose multipliers cancel; one column of ones and multipliers that sum to zero.
    Z = np.repeat(np.random.default_rng(0).normal(size=(3, 3)), 2, axis=0)
    assert _checked(Z, np.tile([[1.0], [-1.0]], (3, C))) == pytest.approx(0.0, abs=1e-12)
    assert _checked(np.ones((2, 1)), np.tile([[1.0], [-1.0]], (1, C))) == pytest.approx(0.0)


def _dual_point(name, loss):
    load = {"diabetes": load_diabetes, "cancer": load_breast_cancer, "iris": load_iris}[name]
    X, y = load(return_X_y=True)
    if name == "iris":
        y = np.eye(3)[y]
    elif name == "diabetes":
        y = (y - y.mean()) / y.std()
    problem = make_problem(X[:250], y[:250], loss, 0.01, n_components=2)
    return problem, problem.dual_point(np.tile(problem.constant(), (len(problem.Z), 1)))


@pytest.mark.parametrize(
    ("name", "loss"),
    [("diabetes", "squared"), ("cancer", "squared"), ("iris", "squared")],
)
def test_no_search_finds_more_on_real_data(name, loss):
    problem, Lambda = _dual_point(name, loss)
    value, found = _checked(problem.Z, Lambda), _searched(problem.Z, Lambda)
    assert found <= value * (1 + 1e-10)
    assert found >= value * (1 - 1e-6)
    # Residuals of a fitted network have many maxima that are almost as large.
    rng = np.random.default_rng(0)
    noise = Lambda * rng.choice([-1.0, 1.0], size=(len(Lambda), 1))
    assert _searched(problem.Z, noise) <= _checked(problem.Z, noise) * (1 + 1e-10)


def test_blocks_do_not_matter():
    Z, Lambda = _data("intercept", 40, 3, 2, 0)
    expected = largest_correlation(Z, Lambda)[0]
    assert largest_correlation(Z, Lambda, block=1)[0] == pytest.approx(expected, rel=1e-12)


def test_operations_grow_with_every_size():
    count = exact_search_operations(100, 3, 2)
    assert exact_search_operations(200, 3, 2) > 3.5 * count
    assert exact_search_operations(100, 4, 2) > 50 * count
    assert exact_search_operations(100, 3, 4) > count
    # More dimensions than rows add nothing.
    assert exact_search_operations(3, 50, 1) == exact_search_operations(3, 3, 1)
    assert exact_search_operations(10, 1, 1) < exact_search_operations(10, 2, 1)
    for k in (100, 2000):
        assert exact_search_operations(2000, k, 1) == np.inf  # no float holds n^(k - 1)

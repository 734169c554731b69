"""DC steps: the inner problem, and maxima that ascent alone does not reach."""

import numpy as np
import pytest
import torch
from scipy.optimize import lsq_linear

from sklearn_convexbn.data._pooling import grid_pooling
from sklearn_convexbn.program.units._whitened import WhitenedUnits
from sklearn_convexbn.search._dc_step import DCStep, nearest_of_zonotope
from sklearn_convexbn.search._exact import largest_correlation
from sklearn_convexbn.search._search import Effort, Search, ascend
from sklearn_convexbn.support._sharding import ALL_HERE

EFFORT = Effort(n_starts=20, n_relatives=1, n_steps=20, n_generations=0)


def value(Z, L, Q):
    return np.linalg.norm(L.T @ np.maximum(Z @ Q, 0.0), axis=0)


def polished(Z, L, Q):
    values, units = DCStep(torch.as_tensor(Z), torch.as_tensor(L)).polished(torch.as_tensor(Q))
    return values.numpy(), units.numpy()


def of_norm_one(rng, k, count):
    Q = rng.standard_normal((k, count))
    return Q / np.linalg.norm(Q, axis=0)


@pytest.mark.parametrize(("m", "k"), [(24, 5), (3, 1), (42, 14), (10, 20)])
def test_inner_problem_against_a_bounded_least_squares_solver(m, k):
    rng = np.random.default_rng(0)
    H = rng.standard_normal((8, m, k)) * np.exp(2 * rng.standard_normal((8, m, 1)))
    A = 10 * rng.standard_normal((8, k))
    H[1], H[2, : m // 2] = 0.0, H[2, 0]  # rows of other slopes, the same row several times
    H[3], A[4] = 1e-200 * H[3], 0.0
    X = nearest_of_zonotope(torch.as_tensor(H), torch.as_tensor(A)).numpy()
    for h, a, x in zip(H, A, X, strict=True):
        u = lsq_linear(h.T, a, (0.0, 1.0), method="bvls", tol=1e-14, max_iter=1000).x
        np.testing.assert_allclose(
            x, a - h.T @ u, atol=1e-5 * max(np.abs(a).max(), np.abs(h).max())
        )


@pytest.mark.parametrize("C", [1, 3])
@pytest.mark.parametrize("scale", [1.0, 1e-12, 1e-300])
def test_steps_raise_values_that_are_those_of_the_formula(C, scale):
    rng = np.random.default_rng(0)
    Z, L, Q = rng.standard_normal((60, 5)), rng.standard_normal((60, C)), of_norm_one(rng, 5, 40)
    values, units = polished(Z, L * scale, Q)
    np.testing.assert_allclose(np.linalg.norm(units, axis=0), 1.0)
    np.testing.assert_allclose(values / scale, value(Z, L, units), rtol=1e-10)
    before = value(Z, L, Q)
    assert (values / scale >= before * (1 - 1e-12)).all()
    assert np.median(values / scale / before) > 1.2


DEGENERATE = {
    "fewer rows than are kept": (np.eye(3), -np.ones((3, 1))),
    "no negative slope": (np.c_[np.arange(5.0), np.ones(5)], np.ones((5, 1))),
    "nothing": (np.c_[np.arange(5.0), np.ones(5)], np.zeros((5, 1))),
    "zero rows": (np.zeros((4, 2)), np.ones((4, 1))),
    "one parameter": (np.array([[1.0], [-2.0], [1.0]]), np.array([[1.0], [-1.0], [-1.0]])),
    "one row": (np.array([[1.0, 2.0]]), np.array([[-1.0]])),
    "the same row": (np.ones((50, 2)), np.tile([[1.0], [-1.0]], (25, 1))),
    "denormal": (np.eye(3), np.full((3, 1), 1e-310)),
}


@pytest.mark.parametrize("kind", list(DEGENERATE))
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_degenerate_problems_are_no_worse_afterwards(kind, dtype):
    Z, L = DEGENERATE[kind]
    Z = Z.astype(dtype)
    Q = of_norm_one(np.random.default_rng(0), Z.shape[1], 9)
    values, units = polished(Z, L, Q)
    assert np.isfinite(units).all()
    assert (values >= value(Z, L, Q) * (1 - 1e-9)).all()
    np.testing.assert_allclose(values, value(Z, L, units), rtol=1e-6, atol=1e-300)
    np.testing.assert_allclose(np.linalg.norm(units, axis=0), 1.0)


@pytest.mark.parametrize(("C", "n"), [(1, 60), (2, 30)])
def test_steps_reach_proven_maxima_that_ascent_does_not(C, n):
    reached = np.zeros(2, dtype=int)
    for seed in range(12):
        rng = np.random.default_rng(seed)
        Z, L = np.c_[rng.standard_normal((n, 3)), np.ones(n)], rng.standard_normal((n, C))
        L -= Z @ np.linalg.lstsq(Z, L, rcond=None)[0]  # orthogonal, as when the linear part is fit
        best = largest_correlation(Z, L)[0]
        units = WhitenedUnits(torch.as_tensor(Z), ALL_HERE)
        starts = torch.as_tensor(of_norm_one(rng, 4, 60))
        values, Q = ascend(units, torch.as_tensor(L), starts, n_steps=20)
        raised, _ = polished(Z, L, Q.numpy())
        assert raised.max() <= best * (1 + 1e-9)
        reached += [bool(v.max() >= best * (1 - 1e-6)) for v in (values, raised)]
    assert reached[1] >= 10
    assert reached[0] <= 2


def searched(units, L, effort, k, **rows):
    rng = np.random.RandomState(0)
    search = Search(units, lambda count: rng.normal(size=(k, count)), rng, **rows)
    return search(L, np.zeros((k, 0)), effort)


@pytest.mark.parametrize("C", [1, 2])
@pytest.mark.parametrize("cells", [0, 1, 2])
def test_polished_search_finds_more_and_returns_values_on_all_rows(C, cells):
    rng = np.random.default_rng(0)
    pooling = (
        grid_pooling((2, 2), (2, 3 - cells), (1, 1))
        if cells
        else grid_pooling((1, 1), (1, 1), (1, 1))
    )
    n = 40
    Z = rng.standard_normal((n * pooling.n_patches, 5))
    L = rng.standard_normal((n, C))
    units = WhitenedUnits(torch.as_tensor(Z), ALL_HERE, pooling)
    plain, _ = searched(units, L, EFFORT, 5)
    values, Q = searched(units, L, EFFORT._replace(polished=True), 5)
    direct = np.linalg.norm(units.correlations(torch.as_tensor(L), torch.as_tensor(Q)), axis=0)
    np.testing.assert_allclose(values, direct, rtol=1e-9)
    np.testing.assert_array_equal(values[: len(plain)], plain)
    assert len(plain) < len(values) <= len(plain) + 20
    assert values.max() > plain.max() * (1 + 1e-5)


def test_no_steps_of_other_kinds_of_units_of_many_rows_or_of_many_parameters():
    rng = np.random.default_rng(0)
    Z, L = rng.standard_normal((50, 5)), rng.standard_normal((50, 1))
    polishing = EFFORT._replace(polished=True)
    units = WhitenedUnits(torch.as_tensor(Z), ALL_HERE)
    assert len(searched(units, L, polishing, 5)[0]) > 20
    other = WhitenedUnits(torch.as_tensor(Z), ALL_HERE)
    other.rectified_rows = None
    assert len(searched(other, L, polishing, 5)[0]) == 20
    wide = WhitenedUnits(torch.as_tensor(rng.standard_normal((50, 300))), ALL_HERE)
    assert len(searched(wide, L, polishing, 300)[0]) == 20
    assert len(searched(units, L, polishing, 5, steering_rows=30)[0]) == 20

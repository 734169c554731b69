import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import sparse
from sklearn.utils import compute_class_weight

from sklearn_convexbn.data import _canonical as _data
from sklearn_convexbn.data._canonical import (
    balanced_class_weights,
    canonical_data,
    one_hot,
    scale_target,
)
from sklearn_convexbn.data._rows import Rows
from sklearn_convexbn.support._sharding import ALL_HERE


def _bits(data):
    return data.rows.to_array().tobytes(), data.y.tobytes(), data.weights.tobytes()


def _table(n=40, d=3, C=2, seed=0):
    rng = np.random.default_rng(seed)
    # Few values, so that whole rows repeat.
    return rng.integers(3, size=(n, d)) / 3.0, rng.integers(2, size=(n, C)) / 7.0


@pytest.mark.parametrize("one_dimensional", [True, False])
def test_integer_weights_are_repeated_rows(one_dimensional):
    X, y = _table()
    y = y[:, 0] if one_dimensional else y
    repeats = np.random.default_rng(1).integers(4, size=len(X))
    weighted = canonical_data(X, y, repeats)
    repeated = canonical_data(np.repeat(X, repeats, axis=0), np.repeat(y, repeats, axis=0))
    assert _bits(weighted) == _bits(repeated)
    assert weighted.weights.sum() == repeats.sum()
    assert weighted.y.ndim == y.ndim


@given(
    rows=hnp.arrays(
        np.int8, st.tuples(st.integers(1, 12), st.just(3)), elements=st.integers(-1, 1)
    ),
    seed=st.integers(0, 2**16),
)
def test_rows_in_any_order_and_multiplicity(rows, seed):
    rng = np.random.default_rng(seed)
    X, y = rows[:, :2] / 3.0, rows[:, 2] * 1.0
    repeats = rng.integers(1, 4, size=len(X))
    order = rng.permutation(repeats.sum())
    repeated = [np.repeat(a, repeats, axis=0)[order] for a in (X, y)]
    assert _bits(canonical_data(X, y, repeats)) == _bits(canonical_data(*repeated))


def test_sums_of_float_weights_do_not_depend_on_the_order_of_rows():
    rng = np.random.default_rng(0)
    X, y = _table(n=60, d=1, C=1)  # ten rows of each kind: sums of two would not show it
    weights = rng.random(len(X)) * 10.0 ** rng.integers(-3, 3, size=len(X))
    expected = _bits(canonical_data(X, y, weights))
    for _ in range(5):
        order = rng.permutation(len(X))
        assert _bits(canonical_data(X[order], y[order], weights[order])) == expected


def test_rows_of_zero_weight_are_dropped():
    X, y = _table(C=1)
    X = np.vstack([X, [[9.0, 9.0, 9.0]]])
    y = np.vstack([y, [[9.0]]])
    weights = np.append(np.ones(len(X) - 1), 0.0)
    assert _bits(canonical_data(X, y, weights)) == _bits(canonical_data(X[:-1], y[:-1]))


def test_rows_are_distinct_and_nothing_is_lost():
    X, y = _table()
    data = canonical_data(X, y)
    expected, counts = np.unique(np.hstack([X, y]), axis=0, return_counts=True)
    got = np.hstack([data.rows.to_array(), data.y])
    order = np.lexsort(got.T[::-1])
    np.testing.assert_array_equal(got[order], expected)
    np.testing.assert_array_equal(data.weights[order], counts)


def test_equal_rows_with_different_targets_stay_apart():
    data = canonical_data(np.ones((3, 2)), np.array([0, 1, 0]))
    assert sorted(zip(data.y, data.weights, strict=True)) == [(0, 2.0), (1, 1.0)]


def test_negative_zero_is_zero():
    rng = np.random.default_rng(0)
    X = rng.choice([0.0, -0.0, 1.0, 2.0], size=(300, 3))
    y = rng.choice([0.0, -0.0], size=300)
    data, positive = canonical_data(X, y), canonical_data(X + 0.0, y + 0.0)
    np.testing.assert_array_equal(data.rows.to_array(), positive.rows.to_array())
    np.testing.assert_array_equal(data.weights, positive.weights)
    assert len(data.rows.to_array()) == 27


@pytest.mark.parametrize("hashes", [lambda X: 0 * X[:, 0], lambda X: np.round(3 * X[:, 0]) % 2])
def test_hash_collisions_fall_back_to_a_full_sort(hashes):
    X, y = _table(seed=2)
    y = y[:, 0]
    reference = canonical_data(X, y)

    def canonical(*data):
        of_rows = lambda rows: hashes(rows.to_array()).astype(np.uint64)  # noqa: E731
        return canonical_data(*data, hashes_of=of_rows)

    data = canonical(X, y)
    order = np.random.default_rng(0).permutation(len(X))
    assert _bits(canonical(X[order], y[order])) == _bits(data)
    X, y, weights = X[:, :1], 0.0 * y, np.random.default_rng(1).random(len(X))
    one, other = canonical(X, y, weights), canonical(X[order], y[order], weights[order])
    assert _bits(one) == _bits(other)
    rows, expected = (
        sorted(map(tuple, np.column_stack([a.rows.to_array(), a.y, a.weights])))
        for a in (data, reference)
    )
    assert rows == expected


def test_hash_sees_every_column_and_its_place_but_not_the_row_number():
    X = np.zeros((9000, 4))  # longer than one block
    X[1, 0], X[2, 1], X[3, 2], X[4, 3], X[8999, 0] = 1.0, 1.0, 1.0, 1.0, 1.0
    hashes = _data._row_hashes(Rows(X))
    np.testing.assert_array_equal(_data._row_hashes(Rows(sparse.csr_array(X))), hashes)
    assert len(set(hashes[:5])) == 5
    assert hashes[8999] == hashes[1]
    assert len(set(hashes[5:8999])) == 1


@pytest.mark.parametrize("C", [1, 3])
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_scaled_target_has_unit_size_and_scales_back(C, fit_intercept):
    rng = np.random.default_rng(0)
    y = 5.0 + 3.0 * rng.normal(size=(30, C)) * np.arange(1, C + 1)
    weights = rng.uniform(0.1, 2.0, size=30)
    p = weights / weights.sum()
    Y, scaling = scale_target(y, weights, fit_intercept=fit_intercept, shards=ALL_HERE)
    assert np.isclose(np.mean(p @ Y**2), 1.0, rtol=1e-12)
    np.testing.assert_allclose(scaling.offset + scaling.scale * Y, y, rtol=1e-12)
    expected = p @ y if fit_intercept else np.zeros(C)
    np.testing.assert_allclose(scaling.offset, expected, rtol=1e-12)


@pytest.mark.parametrize("c", [2.0**40, -3.7, 1e150, 1e-150])
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_scaled_target_follows_the_unit_of_the_target(c, fit_intercept):
    rng = np.random.default_rng(1)
    y, weights = rng.normal(size=(20, 2)) + 1.0, rng.random(20)
    Y, scaling = scale_target(y, weights, fit_intercept=fit_intercept, shards=ALL_HERE)
    Yc, scaling_c = scale_target(c * y, weights, fit_intercept=fit_intercept, shards=ALL_HERE)
    np.testing.assert_allclose(Yc, np.sign(c) * Y, rtol=1e-12)
    np.testing.assert_allclose(scaling_c.scale, abs(c) * scaling.scale, rtol=1e-12)
    np.testing.assert_allclose(scaling_c.offset, c * scaling.offset, rtol=1e-12)


@pytest.mark.parametrize("constant", [0.0, 0.1, -7.3, 1e150, -1e-150])
def test_constant_target(constant):
    for n in range(1, 40):
        weights = np.random.default_rng(n).random(n) + 0.1
        y = np.full((n, 2), [constant, constant / 3])
        Y, scaling = scale_target(y, weights, fit_intercept=True, shards=ALL_HERE)
        np.testing.assert_array_equal(Y, 0.0)
        assert np.isfinite(scaling.scale)
        assert scaling.scale > 0
        np.testing.assert_allclose(scaling.offset, y[0], rtol=1e-14)


def test_constant_target_without_intercept_is_not_zero():
    Y, scaling = scale_target(
        np.full((5, 1), -4.0), np.ones(5), fit_intercept=False, shards=ALL_HERE
    )
    np.testing.assert_allclose(Y, -1.0)
    assert scaling.scale == 4.0


def test_one_hot():
    np.testing.assert_array_equal(one_hot(np.array([2, 0]), 3), [[0, 0, 1], [1, 0, 0]])


def test_balanced_class_weights_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    codes, repeats = rng.permutation(np.arange(40) % 7 % 3), rng.integers(1, 4, size=40)
    counted = np.repeat(codes, repeats)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=counted)
    np.testing.assert_allclose(balanced_class_weights(codes, repeats, 3, ALL_HERE), expected)
    assert np.ptp(expected) > 0.1


def test_sparse_entries_given_in_parts_are_their_sums():
    X = np.array([[3.0, 0.0], [3.0, 0.0], [0.0, 1.0]])
    parts = sparse.csr_array(([1.0, 2.0, 3.0, 1.0], [0, 0, 0, 1], [0, 2, 3, 4]), shape=(3, 2))
    y, before = np.zeros(3), parts.nnz
    assert _bits(canonical_data(parts, y)) == _bits(canonical_data(X, y))
    assert parts.nnz == before

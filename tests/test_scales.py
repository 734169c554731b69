"""Columns, targets and weights of very unequal or extreme scale."""

import warnings

import numpy as np
import pytest
from scipy import sparse

from sklearn_convexbn import ConvexBNClassifier, ConvexBNRegressor, certify
from sklearn_convexbn.data._rows import Rows
from tests.helpers import whiten


def _ordinary(n=60, seed=0):
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(n, 3))
    return A, np.abs(A[:, 0]) + A[:, 1]


def _objective(model, X, y):
    """Recompute the objective of a regressor from its layers."""
    H = X @ model.coefs_[0] + model.intercepts_[0]
    output = np.maximum(H, 0.0) @ model.coefs_[1] + model.intercepts_[1]
    norms = np.sqrt((H**2).mean(axis=0)) * np.linalg.norm(model.coefs_[1], axis=1)
    return 0.5 * ((output[:, 0] - y) ** 2).mean() + model.alpha * y.std() * norms.sum()


def _microseconds():
    rng = np.random.default_rng(0)
    t = 1.7e15 + rng.uniform(0, 3e13, 400)
    A = rng.normal(size=(400, 2))
    return np.column_stack([t, A]), A[:, 0] + np.maximum(A[:, 1], 0) + (t - 1.7e15) / 1e13


def _seconds_and_returns():
    rng = np.random.default_rng(0)
    A = rng.normal(size=(3000, 3))
    X = np.column_stack([1.7e9 + 60.0 * np.arange(3000), 1e-4 * A])
    return X, A[:, 0] + np.maximum(A[:, 1], 0) + 0.1 * rng.normal(size=3000)


@pytest.mark.parametrize("data", [_microseconds, _seconds_and_returns])
def test_time_stamps_do_not_hide_the_other_columns(data):
    X, y = data()
    model = ConvexBNRegressor(3e-3, shrinkage=0.0, tol=0.01, random_state=0).fit(X, y)
    assert model.n_components_ == X.shape[1]
    assert model.score(X, y) >= 0.98
    assert model.objective_ == pytest.approx(_objective(model, X, y), rel=1e-8)


@pytest.mark.parametrize("kind", ["dense", "mapped", "float32", "tensor", "sparse"])
def test_rank_does_not_depend_on_the_units_of_columns(kind, tmp_path):
    A = np.random.default_rng(1).normal(size=(50, 4))
    A = np.hstack([A, A[:, :1], np.full((50, 1), 0.1)])  # dependent and constant: silent
    units = np.array([1.0, 2.0**-40, 2.0**50, 2.0**10, 1.0, 1.0])
    given = A * units
    if kind == "mapped":
        np.save(tmp_path / "X.npy", given)
        given = np.load(tmp_path / "X.npy", mmap_mode="r")
    elif kind == "float32":
        given, A = given.astype(np.float32), A.astype(np.float32).astype(float)
    elif kind == "tensor":
        given = pytest.importorskip("torch").as_tensor(given)
    elif kind == "sparse":
        given = sparse.csr_array(np.hstack([given, np.zeros((50, 1200))]))
    Z, whitening = whiten(given, np.ones(50))
    plain = whiten(A, np.ones(50))[0]
    assert whitening.n_components == 4
    Z = np.asarray(Z)
    np.testing.assert_allclose(Z @ Z.T, plain @ plain.T, atol=1e-9)
    assert len(whitening.lost_columns) == 0


@pytest.mark.parametrize("n", [30, 300])
@pytest.mark.parametrize("d", [4, 60])
def test_small_columns_keep_their_digits_and_the_spectrum_its_meaning(n, d):
    rng = np.random.default_rng(2)
    A, units = rng.normal(size=(n, d)), 10.0 ** np.linspace(-12, 3, d)
    Z, whitening = whiten(A * units, np.ones(n))
    k = min(n - 1, d)
    assert whitening.n_components == k
    np.testing.assert_allclose(Z.T @ Z / n, np.eye(k + 1), atol=1e-9)
    V = whitening.components
    np.testing.assert_allclose(V.T @ V, np.eye(k), atol=1e-10)
    s = whitening.singular_values
    assert (np.diff(s) <= 0).all()
    # The product of the singular values of a square matrix is that of its columns' scales.
    if d < n:
        R = np.linalg.qr(A - A.mean(axis=0), mode="r")
        expected = np.log(np.abs(np.diag(R))).sum() + np.log(units).sum()
        np.testing.assert_allclose(np.log(s).sum(), expected, atol=1e-9)


def test_truncation_keeps_the_directions_of_largest_variance():
    A = np.random.default_rng(3).normal(size=(50, 3))
    whitening = whiten(A * [1e-9, 1.0, 1e9], np.ones(50), n_components=1)[1]
    np.testing.assert_allclose(np.abs(whitening.components[:, 0]), [0, 0, 1], atol=1e-8)


def test_mean_is_taken_to_the_last_digit_at_a_large_offset():
    A = np.random.default_rng(4).normal(size=(50, 2)) * 1e3 + [[1e12, 0.0]]
    Z = whiten(A, np.random.default_rng(4).uniform(1, 2, 50))[0]
    p = np.random.default_rng(4).uniform(1, 2, 50)
    np.testing.assert_allclose(p @ Z[:, :-1] / p.sum(), 0.0, atol=1e-12)


def test_column_lost_in_the_rounding_of_its_offset_is_named():
    pd = pytest.importorskip("pandas")
    A, y = _ordinary()
    steps = np.random.default_rng(0).integers(-3, 3, 60)
    X = pd.DataFrame(np.column_stack([A, 1e16 + 2.0 * steps]), columns=["a", "b", "c", "clock"])
    with pytest.warns(UserWarning, match="1 columns of X .* left out: 'clock'"):
        model = ConvexBNRegressor(random_state=0).fit(X, y)
    assert model.n_components_ == 3
    with pytest.warns(UserWarning, match="left out: 3"):
        ConvexBNRegressor(random_state=0).fit(X.to_numpy(), y)


@pytest.mark.parametrize("difference", [1e-5, 1e-7, 1e-9, 1e-11])
def test_certify_takes_own_networks_on_nearly_equal_columns(difference):
    A, y = _ordinary()
    noise = np.random.default_rng(5).normal(size=60)
    X = np.column_stack([A, A[:, 0] + difference * noise])
    model = ConvexBNRegressor(3e-3, shrinkage=0.0, tol=0.01, random_state=0).fit(X, y)
    assert model.n_components_ == 4
    found = certify(model, X, y, alpha=model.alpha_, effort=2000, random_state=0)
    # Weights of 1 / difference cancel in the hidden units, which costs eps / difference of their
    # values at most and, where rounding is not all of what is left, a twentieth of it and less.
    lost = np.finfo(float).eps / difference
    rel = 1e-9 + 0.05 * lost if difference > 1e-10 else lost
    assert found.primal == pytest.approx(model.objective_, rel=rel)


@pytest.mark.parametrize("kind", ["outlier", "powers", "small columns"])
def test_objective_is_that_of_the_layers(kind):
    rng = np.random.default_rng(6)
    X, y = rng.normal(size=(50, 4)), rng.normal(size=50)
    if kind == "outlier":
        X[0] *= 1e6
    elif kind == "powers":
        X = rng.uniform(0, 30, size=(50, 1)) ** np.arange(1, 5)
    else:
        X *= [1e-6, 1e-3, 1.0, 1e5]
    model = ConvexBNRegressor(alpha=0.05, shrinkage=0.0, random_state=0).fit(X, y)
    assert model.objective_ == pytest.approx(_objective(model, X, y), rel=1e-9)


@pytest.mark.parametrize("unit", [1e-280, 1e-200, 1e200, 1e280])
def test_data_near_the_ends_of_the_range(unit):
    A, y = _ordinary()
    model = ConvexBNRegressor(random_state=0).fit(unit * A, y)
    assert model.n_components_ == 3
    assert model.score(unit * A, y) >= 0.99


@pytest.mark.parametrize("units", [1e-310, [1.0, 1e-310, 1.0], [1e200, 1.0, 1e-200], 1e303])
def test_data_beyond_the_range_are_named(units):
    A, y = _ordinary()
    with pytest.raises(ValueError, match=r"Column \d of X has a standard deviation of"):
        ConvexBNRegressor().fit(A * units, y)


@pytest.mark.parametrize("unit", [1e-310, 1e-160, 1e140])
def test_targets_near_the_ends_of_the_range(unit):
    A, y = _ordinary()
    model = ConvexBNRegressor(random_state=0).fit(A, unit * y)
    np.testing.assert_allclose(model.predict(A) / unit, y, atol=0.3)


def test_target_whose_square_is_no_number_is_named():
    A, y = _ordinary()
    with pytest.raises(ValueError, match=r"y varies by 1.\d*e\+160"):
        ConvexBNRegressor().fit(A, 1e160 * y)


@pytest.mark.parametrize("constant", [1e300, -1e300, 1e-320, 0.0])
def test_constant_target_of_any_size(constant):
    A, _ = _ordinary()
    model = ConvexBNRegressor().fit(A, np.full(60, constant))
    np.testing.assert_allclose(model.predict(A), np.full(60, constant), rtol=1e-14)
    assert model.objective_ == model.dual_gap_ == 0.0


@pytest.mark.parametrize("size", [1e307, 1e-307, 1e-320])
def test_only_ratios_of_weights_count(size):
    A, y = _ordinary()
    for model, target in ((ConvexBNRegressor(), y), (ConvexBNClassifier(), y > 1)):
        model.set_params(alpha=3e-3, shrinkage=0.0, tol=0.01, random_state=0)
        model.fit(A, target, np.full(60, size))
        assert 0.0 <= model.dual_gap_ <= model.tol
        assert model.score(A, target) >= 0.99


FORMATS = ["bsr", "coo", "csc", "csr", "dia", "dok", "lil"]


@pytest.mark.parametrize("index", [np.int32, np.int64])
@pytest.mark.parametrize("family", ["matrix", "array"])
@pytest.mark.parametrize("name", FORMATS)
def test_wide_sparse_rows_of_every_class(name, family, index):
    rng = np.random.default_rng(7)
    X = rng.random((12, 1100)) * (rng.random((12, 1100)) < 0.05)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sparse.SparseEfficiencyWarning)  # many diagonals
        given = getattr(sparse, f"{name}_{family}")(X)
    for part in ("indices", "indptr", "row", "col", "offsets"):
        if isinstance(getattr(given, part, None), np.ndarray):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    setattr(given, part, getattr(given, part).astype(index))
                except AttributeError:  # a property of what is kept as "coords"
                    given.coords = tuple(c.astype(index) for c in given.coords)
    Z, plain = whiten(given, np.ones(12))[0], whiten(X, np.ones(12))[0]
    np.testing.assert_allclose(Z, plain, atol=1e-9)
    rows = Rows(given)
    assert rows.stay_sparse


@pytest.mark.parametrize("family", ["matrix", "array"])
def test_wide_sparse_fit(family):
    rng = np.random.default_rng(8)
    X = rng.random((30, 1200)) * (rng.random((30, 1200)) < 0.05)
    given = getattr(sparse, f"csr_{family}")(X)
    model = ConvexBNRegressor(random_state=0).fit(given, X[:, 0] + rng.normal(size=30))
    np.testing.assert_allclose(model.predict(given), model.predict(X), atol=1e-12)

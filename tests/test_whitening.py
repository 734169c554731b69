from dataclasses import replace

import numpy as np
import pytest
from scipy import sparse
from sklearn.covariance import ledoit_wolf_shrinkage
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from sklearn_convexbn.data._decomposition import _number_kept
from sklearn_convexbn.data._rows import Rows
from tests.helpers import whiten


def _data(n=40, d=6, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + 3.0 * rng.normal(size=d)


def _weights(n, seed=0):
    return np.random.default_rng(seed).uniform(0.2, 3.0, size=n)


@pytest.mark.parametrize(("n", "d"), [(40, 6), (6, 40), (7, 7), (1, 3), (30, 1)])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_whitened_rows_are_orthonormal(n, d, offset):
    weights = _weights(n)
    Z, whitening = whiten(_data(n, d) + offset, weights)
    gram = Z.T @ (Z * (weights / weights.sum())[:, None])
    np.testing.assert_allclose(gram, np.eye(Z.shape[1]), atol=1e-8)
    assert Z.shape[1] == min(n - 1, d) + 1
    np.testing.assert_array_equal(Z[:, -1], 1.0)
    np.testing.assert_array_equal(whitening.spectrum, 1.0)


def test_wide_data_gives_a_square_orthogonal_matrix():
    Z, whitening = whiten(_data(200, 2000), np.ones(200))
    assert Z.shape == (200, 200)
    np.testing.assert_allclose(Z @ Z.T / 200, np.eye(200), atol=1e-10)
    np.testing.assert_allclose(
        whitening.components.T @ whitening.components, np.eye(199), atol=1e-10
    )


@pytest.mark.parametrize(("n", "d"), [(40, 6), (12, 30)])
def test_spectrum_is_that_of_pca(n, d):
    X = _data(n, d)
    whitening = whiten(X, np.ones(n))[1]
    r = min(n - 1, d)
    pca = PCA(n_components=r, svd_solver="full").fit(X)
    np.testing.assert_allclose(whitening.singular_values, pca.singular_values_, rtol=1e-9)
    np.testing.assert_allclose(
        whitening.explained_variance_ratio, pca.explained_variance_ratio_, rtol=1e-9
    )
    cosines = np.abs((whitening.components * pca.components_.T).sum(axis=0))
    np.testing.assert_allclose(cosines, 1.0, rtol=1e-9)
    np.testing.assert_allclose(whitening.mean, pca.mean_)


@pytest.mark.parametrize("n_components", [1, 2, 5, 0.2, 0.5, 0.7, 0.9, 0.99, 0.999])
@pytest.mark.parametrize("seed", range(3))
def test_number_of_components_is_that_of_pca(n_components, seed):
    X = _data(seed=seed)
    Z, whitening = whiten(X, np.ones(len(X)), n_components=n_components)
    pca = PCA(n_components=n_components, svd_solver="full").fit(X)
    assert whitening.n_components == pca.n_components_
    full = whiten(X, np.ones(len(X)))[0]
    np.testing.assert_allclose(Z[:, :-1], full[:, : whitening.n_components], atol=1e-12)


def test_share_of_variance_that_is_met_exactly_keeps_one_more_as_pca_does():
    assert _number_kept(0.5, np.array([0.5, 0.25, 0.25])) == 2


def test_more_components_than_the_rank_means_all():
    assert whiten(_data(), np.ones(40), n_components=100)[1].n_components == 6


def test_leading_components_are_kept_and_all_singular_values_reported():
    whitening = whiten(_data(), np.ones(40), n_components=2)[1]
    assert len(whitening.singular_values) == 6
    assert (np.diff(whitening.singular_values) < 0).all()
    sigma = whitening.singular_values[:2] / np.sqrt(40)
    np.testing.assert_allclose(whitening.scales, sigma)


@pytest.mark.parametrize("shrinkage", [0.0, 0.3, "auto"])
def test_weights_are_repeats(shrinkage):
    X = _data()
    repeats = np.random.default_rng(1).integers(1, 5, size=len(X))
    Z, weighted = whiten(X, repeats.astype(float), shrinkage=shrinkage)
    Zr, repeated = whiten(
        np.repeat(X, repeats, axis=0), np.ones(repeats.sum()), shrinkage=shrinkage
    )
    np.testing.assert_allclose(np.repeat(Z, repeats, axis=0), Zr, atol=1e-10)
    np.testing.assert_allclose(weighted.singular_values, repeated.singular_values)
    np.testing.assert_allclose(weighted.shrinkage, repeated.shrinkage)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("n", [8, 30, 300])
def test_automatic_shrinkage_is_ledoit_wolf(n, seed):
    X = _data(n, 6, seed)
    of_mean = whiten(X, np.ones(n), shrinkage="auto", by_column=False)[1]
    assert of_mean.shrinkage == pytest.approx(ledoit_wolf_shrinkage(X), rel=1e-9)


@pytest.mark.parametrize("d", [6, 50])
@pytest.mark.parametrize("n", [8, 30, 300])
def test_automatic_shrinkage_of_columns_is_ledoit_wolf_of_standardised_ones(n, d):
    X = np.hstack([_data(n, d) * 10.0 ** np.arange(-d // 2, d - d // 2), np.ones((n, 1))])
    whitening = whiten(X, np.ones(n), shrinkage="auto")[1]
    expected = ledoit_wolf_shrinkage(StandardScaler().fit_transform(X[:, :d]))
    assert whitening.shrinkage == pytest.approx(expected, rel=1e-7)


def test_automatic_shrinkage_has_no_unit():
    X = _data()
    expected = whiten(X, np.ones(40), shrinkage="auto")[1].shrinkage
    assert 0.0 < expected < 1.0
    assert whiten(1e5 * X, np.ones(40), shrinkage="auto")[1].shrinkage == pytest.approx(expected)


def _dependent(kind):
    A = np.random.default_rng(0).normal(size=(50, 3))
    ones = np.ones((50, 1))
    return {
        "duplicated": np.hstack([A, A[:, :2]]),
        "constant": np.hstack([A, 0.1 * ones, 1e9 * ones]),
        "combination": np.hstack([A, A @ [[1.0], [2.0], [3.0]]]),
        "offset": np.hstack([A, A[:, :1] + A[:, 1:2]]) + 1e7,
        "tiny": np.hstack([A, A[:, :1]]) * 1e-150,
        "huge": np.hstack([A, A[:, :1]]) * 1e150,
    }[kind]


@pytest.mark.parametrize(
    "kind", ["duplicated", "constant", "combination", "offset", "tiny", "huge"]
)
def test_dependent_columns_are_not_part_of_the_rank(kind):
    Z, whitening = whiten(_dependent(kind), np.ones(50))
    assert whitening.n_components == 3
    np.testing.assert_allclose(Z.T @ Z / 50, np.eye(4), atol=1e-6)


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e12])
def test_constant_data_leave_the_column_of_ones(constant):
    Z, whitening = whiten(np.full((7, 3), constant), _weights(7), shrinkage="auto")
    np.testing.assert_array_equal(Z, np.ones((7, 1)))
    assert whitening.n_components == 0
    assert len(whitening.singular_values) == len(whitening.explained_variance_ratio) == 0


def test_large_offset_hides_only_what_rounding_hides():
    X = np.random.default_rng(0).normal(size=(50, 3))
    assert whiten(X + 1e6, np.ones(50))[1].n_components == 3
    # At 1e18 the spacing of doubles is 128: nothing of X is left.
    assert whiten(X + 1e18, np.ones(50))[1].n_components == 0


@pytest.mark.parametrize("n_columns", [6, 60])
def test_invertible_maps_leave_the_projector_alone(n_columns):
    rng = np.random.default_rng(3)
    X, weights = _data(30, n_columns), _weights(30)
    mapped = X @ (rng.normal(size=(n_columns, n_columns)) + 3.0 * np.eye(n_columns)) + 5.0
    Z, Zm = whiten(X, weights)[0], whiten(mapped, weights)[0]
    np.testing.assert_allclose(Zm @ Zm.T, Z @ Z.T, atol=1e-7)


def test_columns_in_another_unit_give_the_same_rows():
    X = _data()
    Z = whiten(X, np.ones(40))[0]
    for unit in (1e150, 1e-150, 2.0):
        np.testing.assert_allclose(whiten(unit * X, np.ones(40))[0], Z, atol=1e-9)


@pytest.mark.parametrize("shrinkage", [0.0, 0.4])
def test_transform_of_new_rows(shrinkage):
    X, new = _data(), _data(seed=9)
    Z, whitening = whiten(X, _weights(40), n_components=4, shrinkage=shrinkage)
    np.testing.assert_array_equal(whitening.transform(X), Z)
    # An affine map is known by its values on the training rows.
    design = np.hstack([X, np.ones((40, 1))])
    affine = np.linalg.lstsq(design, Z, rcond=None)[0]
    np.testing.assert_allclose(
        whitening.transform(new), np.hstack([new, np.ones((40, 1))]) @ affine, atol=1e-9
    )


@pytest.mark.parametrize("shrinkage", [0.0, 0.4])
@pytest.mark.parametrize("n_components", [None, 2])
def test_hidden_layer_reproduces_units(shrinkage, n_components):
    X, new = _data(), _data(seed=9)
    whitening = whiten(X, _weights(40), n_components=n_components, shrinkage=shrinkage)[1]
    q = np.random.default_rng(1).normal(size=(5, whitening.n_components + 1))
    W, b = whitening.hidden_layer(q)
    assert W.shape == (6, 5)
    np.testing.assert_allclose(new @ W + b, whitening.transform(new) @ q.T, atol=1e-9)


@pytest.mark.parametrize("shrinkage", [0.0, 0.3, 1.0, "auto"])
@pytest.mark.parametrize("n_components", [None, 2])
def test_spectrum_is_the_second_moment_of_the_rows(shrinkage, n_components):
    X, weights = _data(), _weights(40)
    p = weights / weights.sum()
    Z, whitening = whiten(X, weights, n_components=n_components, shrinkage=shrinkage)
    np.testing.assert_allclose(Z.T @ (Z * p[:, None]), np.diag(whitening.spectrum), atol=1e-10)


@pytest.mark.parametrize("by_column", [True, False])
@pytest.mark.parametrize("shrinkage", [0.3, 1.0])
def test_shrinkage_whitens_with_the_shrunk_covariance(shrinkage, by_column):
    X, weights = _data(), _weights(40)
    covariance = np.cov(X.T, aweights=weights, bias=True)
    level = np.trace(covariance) / 6
    target = np.diag(np.diag(covariance)) if by_column else level * np.eye(6)
    shrunk = (1 - shrinkage) * covariance + shrinkage * target
    Z, whitening = whiten(X, weights, shrinkage=shrinkage, by_column=by_column)
    Xc = X - np.average(X, axis=0, weights=weights)
    expected = Xc @ np.linalg.solve(shrunk, Xc.T)
    np.testing.assert_allclose(Z[:, :-1] @ Z[:, :-1].T, expected, atol=1e-9)
    if shrinkage == 1.0:
        np.testing.assert_allclose(whitening.scales, 1.0 if by_column else np.sqrt(level))
    # The deviation after whitening along a principal direction v, by its definition.
    V = np.linalg.svd(Xc * np.sqrt(weights / weights.sum())[:, None], full_matrices=False)[2].T
    norms = np.einsum("ik,ij,jk->k", V, shrunk, V) / np.einsum("ik,ij,jk->k", V, covariance, V)
    np.testing.assert_allclose(whitening.damping, 1.0 / np.sqrt(norms), rtol=1e-9)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_shrinkage_among_the_leading_directions(k):
    """Weights in the span of k principal directions V: the metric (1 - s) C + s diag(C) there."""
    X, weights = _data() * [1.0, 1e-2, 10.0, 3.0, 1.0, 5.0], _weights(40)
    Xc = X - np.average(X, axis=0, weights=weights)
    covariance = np.cov(X.T, aweights=weights, bias=True)
    V = np.linalg.eigh(covariance)[1][:, ::-1][:, :k]
    metric = V.T @ (0.7 * covariance + 0.3 * np.diag(np.diag(covariance))) @ V
    Z, whitening = whiten(X, weights, n_components=k, shrinkage=0.3)
    expected = Xc @ V @ np.linalg.solve(metric, V.T @ Xc.T)
    np.testing.assert_allclose(Z[:, :-1] @ Z[:, :-1].T, expected, atol=1e-9)
    p = weights / weights.sum()
    np.testing.assert_allclose(Z.T @ (Z * p[:, None]), np.diag(whitening.spectrum), atol=1e-10)
    # Nothing depends on the directions that are cut.
    q = np.random.default_rng(0).normal(size=(4, k + 1))
    W = whitening.hidden_layer(q)[0]
    np.testing.assert_allclose(V @ (V.T @ W), W, atol=1e-12 * np.abs(W).max())
    np.testing.assert_allclose(whitening.projected(W), W, atol=1e-12 * np.abs(W).max())


@pytest.mark.parametrize(
    ("n", "d", "shrinkage"),
    [(n, d, s) for n, d in [(40, 6), (8, 30)] for s in (0.01, 0.5, "auto")] + [(40, 6, "eps")],
)
def test_units_of_columns_do_not_matter_to_shrinkage(n, d, shrinkage):
    X, new = _data(n, d), _data(9, d, seed=4)
    units = 10.0 ** np.random.default_rng(2).uniform(-6, 6, size=d)
    duplicated = X[:, [0, *range(d)]], (X * units)[:, [0, *range(d)]]
    for given, scaled in [(X, X * units), duplicated]:
        first = np.arange(given.shape[1]) - (given.shape[1] - d)
        other = new[:, first.clip(min=0)], (new * units)[:, first.clip(min=0)]
        (Z, whitening), (Zu, in_units) = (
            whiten(rows, np.ones(n), shrinkage=shrinkage) for rows in (given, scaled)
        )
        assert in_units.shrinkage == pytest.approx(whitening.shrinkage, rel=1e-9)
        np.testing.assert_allclose(Zu @ Zu.T, Z @ Z.T, atol=1e-6)
        out, same = whitening.transform(other[0]), in_units.transform(other[1])
        np.testing.assert_allclose(same @ Zu.T, out @ Z.T, atol=1e-6 * np.abs(out @ Z.T).max())


def test_eps_is_a_hundredth_where_rows_outnumber_directions():
    def used(n, d, **settings):
        return whiten(_data(n, d), np.ones(n), shrinkage="eps", **settings)[1].shrinkage

    assert used(40, 6) == used(40, 6, by_column=False) == used(8, 6) == 0.01
    assert used(7, 6) == used(7, 40) == used(1, 3) == used(7, 40, n_components=6) == 0.0
    assert used(7, 40, n_components=5) == used(8, 40, n_components=0.5) == 0.01


def test_numbers_are_taken_exactly_as_shrinkage():
    for n, d in [(40, 6), (6, 40)]:
        for number in (0.0, 0.01, 0.3, 1.0):
            assert whiten(_data(n, d), np.ones(n), shrinkage=number)[1].shrinkage == number


def test_eps_bounds_directions_of_rounding():
    """A column that nearly repeats others does not rule the network on new rows."""
    X = np.random.default_rng(0).normal(size=(200, 3))
    noise = 1e-6 * np.random.default_rng(1).normal(size=(200, 1))
    X = np.hstack([X, X.sum(axis=1, keepdims=True) + noise])
    new = np.ones((1, 4))  # does not satisfy the dependence
    bare, shrunk = (whiten(X, np.ones(200), shrinkage=s)[1] for s in (0.0, "eps"))
    assert np.abs(bare.transform(new)).max() > 1e4
    assert np.abs(shrunk.transform(new)).max() < 100.0


def test_signs_of_components_do_not_depend_on_the_decomposition():
    X = _data()
    V = whiten(X, np.ones(40))[1].components
    assert (V[np.abs(V).argmax(axis=0), np.arange(6)] > 0).all()
    flipped = whiten(X[::-1].copy(), np.ones(40))[1].components
    np.testing.assert_allclose(flipped, V, atol=1e-9)


def test_whitening_is_immutable():
    whitening = whiten(_data(), np.ones(40))[1]
    with pytest.raises(AttributeError):
        whitening.shrinkage = 1.0
    assert replace(whitening, shrinkage=1.0).shrinkage == 1.0


@pytest.mark.parametrize("kind", ["dense", "sparse"])
@pytest.mark.parametrize(("n", "d"), [(300, 5), (30, 40)])
def test_blocks_and_storage_make_no_difference(kind, n, d):
    rng = np.random.default_rng(0)
    X = _data(n, d) * (rng.random((n, d)) < 0.3)
    whole = whiten(X, _weights(n), shrinkage="auto")[1]
    given = Rows(sparse.csr_array(X) if kind == "sparse" else X)
    given.block_numbers = 7 * d
    Z, parts = whiten(given, _weights(n), shrinkage="auto")
    assert parts.shrinkage == pytest.approx(whole.shrinkage, rel=1e-9)
    np.testing.assert_allclose(parts.singular_values, whole.singular_values, rtol=1e-9)
    np.testing.assert_allclose(Z, whole.transform(X), atol=1e-8)


@pytest.mark.parametrize("kind", ["dense", "sparse"])
@pytest.mark.parametrize(("n", "d"), [(1300, 1100), (1100, 1300)])
def test_few_of_many_directions_by_a_randomized_decomposition(kind, n, d):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, 30)) * 0.8 ** np.arange(30) @ rng.normal(size=(30, d))
    X = X + 0.01 * rng.normal(size=(n, d)) + 5.0
    pca = PCA(n_components=10, svd_solver="full").fit(X)
    given = sparse.csr_array(X) if kind == "sparse" else X
    Z, whitening = whiten(given, np.ones(n), n_components=10)
    assert whitening.n_components == len(whitening.singular_values) == 10
    np.testing.assert_allclose(whitening.singular_values, pca.singular_values_, rtol=1e-6)
    np.testing.assert_allclose(
        whitening.explained_variance_ratio, pca.explained_variance_ratio_, rtol=1e-6
    )
    cosines = np.abs((whitening.components * pca.components_.T).sum(axis=0))
    np.testing.assert_allclose(cosines, 1.0, rtol=1e-6)
    # Whatever the subspace, the rows are white in it.
    np.testing.assert_allclose(Z.T @ Z / n, np.eye(11), atol=1e-8)
    again = whiten(given, np.ones(n), n_components=10)[0]
    np.testing.assert_array_equal(again, Z)
    shrunk, whitening = whiten(given, np.ones(n), n_components=10, shrinkage="eps")
    assert len(whitening.singular_values) == 10
    assert whitening.shrinkage == 0.01
    V, s = pca.components_.T, pca.singular_values_**2 / n
    metric = 0.99 * np.diag(s) + 0.01 * V.T @ (V * X.var(axis=0)[:, None])
    Xc = (X - X.mean(axis=0)) @ V
    expected = Xc @ np.linalg.solve(metric, Xc.T)
    np.testing.assert_allclose(shrunk[:, :-1] @ shrunk[:, :-1].T, expected, atol=1e-4)


def test_wide_sparse_rows_are_never_made_dense(monkeypatch):
    rng = np.random.default_rng(0)
    X = (rng.random((1100, 1300)) < 0.01) * rng.normal(size=(1100, 1300))
    weights = _weights(1100)
    Z, whitening = whiten(X, weights, n_components=10)
    given = sparse.csr_array(X)
    monkeypatch.setattr(type(given), "toarray", None)
    own, parts = whiten(given, weights, n_components=10)
    np.testing.assert_allclose(parts.mean, whitening.mean, atol=1e-15)
    np.testing.assert_allclose(parts.singular_values, whitening.singular_values, rtol=1e-8)
    np.testing.assert_allclose(
        parts.explained_variance_ratio, whitening.explained_variance_ratio, rtol=1e-8
    )
    np.testing.assert_allclose(own, Z, atol=1e-6)


def test_rows_may_be_stored_in_float32():
    X = _data()
    Z, whitening = whiten(X, np.ones(40))
    compact = whitening.transform(X, compact=True)
    assert compact.dtype == np.float32
    np.testing.assert_array_equal(compact, Z.astype(np.float32))

"""Whitened rows that are computed when they are read: the same numbers, and the same networks."""

import numpy as np
import pytest
from scipy import sparse
from sklearn.datasets import make_classification

torch = pytest.importorskip("torch")

from sklearn_convexbn import ConvexBNClassifier, ConvexBNRegressor, Patches  # noqa: E402
from sklearn_convexbn.data._patches import PatchRows, patch_grid  # noqa: E402
from sklearn_convexbn.data._rows import Rows  # noqa: E402
from sklearn_convexbn.data._whitened_rows import WhitenedRows  # noqa: E402
from sklearn_convexbn.fit import _memory  # noqa: E402
from tests.helpers import whiten  # noqa: E402


def fitted_without_memory(model, X, y):
    """Fit with room for no whitened rows; return the matrices that are computed when read, too."""
    made = []

    class Counted(WhitenedRows):
        def __init__(self, *args):
            super().__init__(*args)
            made.append(self)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(_memory, "physical_memory", lambda: 1000)
        monkeypatch.setattr("sklearn_convexbn.data._whitened_rows.WhitenedRows", Counted)
        return model.fit(X, y), made


def rows_of_kind(kind):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(400, 24)) * np.linspace(1, 3, 24)
    if kind == "patches":
        images = Rows(X[:, :16], device="cpu")
        return PatchRows(images, patch_grid(Patches(size=(3, 2), pooling=1), (4, 4, 1)))
    if kind == "sparse":
        return Rows(sparse.csr_array(X * (rng.random(X.shape) < 0.3)), device="cpu")
    return Rows(X, rng.permutation(400)[:300], device="cpu")


@pytest.mark.parametrize("kind", ["dense", "sparse", "patches"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_are_those_of_the_stored_matrix(kind, dtype):
    rows = rows_of_kind(kind)
    whitening = whiten(rows, np.ones(len(rows)), n_components=5)[1]
    stored = whitening.transform(rows, compact=dtype == torch.float32)
    rows.block_numbers = 24 * 50  # several blocks
    computed = WhitenedRows(rows, whitening, dtype)
    assert computed.shape == tuple(stored.shape)
    assert len(computed) == len(stored)
    assert computed[:].dtype == stored.dtype == dtype
    tolerance = {"rtol": 0, "atol": 1e-6 if dtype == torch.float32 else 1e-13}
    for part in (slice(None), slice(7, 130), slice(len(stored) - 3, None), slice(5, 5)):
        torch.testing.assert_close(computed[part], stored[part], **tolerance)
    index = torch.tensor([[3, 299, 3], [0, 120, 47]])
    torch.testing.assert_close(computed[index], stored[index], **tolerance)


@pytest.mark.parametrize("kind", ["dense", "sparse", "patches"])
def test_parts_are_slices_still_to_be_computed(kind):
    rows = rows_of_kind(kind)
    whitening = whiten(rows, np.ones(len(rows)), n_components=5)[1]
    computed = WhitenedRows(rows, whitening, torch.float64)
    unit = rows.patches.n_patches if kind == "patches" else 1
    for samples in (slice(20, 70), slice(50), slice(90, None)):
        first, last, _ = samples.indices(len(rows) // unit)
        here = slice(unit * first, unit * last)
        part = computed.part(here)
        assert isinstance(part, WhitenedRows)
        assert len(part) == unit * (last - first)
        torch.testing.assert_close(part[:], computed[here], rtol=0, atol=1e-13)


def assert_same_network(model, other, X):
    assert model.n_neurons_ == other.n_neurons_
    np.testing.assert_allclose(model.objective_, other.objective_, rtol=1e-7)
    np.testing.assert_allclose(model.dual_gap_, other.dual_gap_, atol=1e-6)
    np.testing.assert_allclose(outputs(model, X), outputs(other, X), atol=1e-4)


def outputs(model, X):
    return getattr(model, "decision_function", model.predict)(X)


@pytest.mark.parametrize("as_sparse", [False, True])
def test_dense_fit_is_that_with_stored_rows(as_sparse, diabetes):
    X, y = diabetes
    X = sparse.csr_array(X) if as_sparse else X
    model, (Z,) = fitted_without_memory(ConvexBNRegressor(0.1, random_state=0), X, y)
    assert len(Z) == 442
    assert_same_network(model, ConvexBNRegressor(0.1, random_state=0).fit(X, y), X)


def test_large_fit_is_that_with_stored_rows():
    """More rows than those that steer the search, in float32."""
    X, y = make_classification(21_000, 50, n_redundant=0, random_state=0)
    settings = {"alpha": 0.1, "tol": 0.1, "random_state": 0}
    model, (Z, *parts) = fitted_without_memory(ConvexBNClassifier(**settings), X, y)
    assert len(Z) == 21_000
    assert {len(part) for part in parts} >= {10_500, 5000}  # of early rounds, and behind
    assert all(rows.dtype == torch.float32 for rows in (Z, *parts))
    other = ConvexBNClassifier(**settings).fit(X, y)
    np.testing.assert_allclose(model.objective_, other.objective_, rtol=1e-3)
    assert model.dual_gap_ <= 0.1
    assert np.mean(model.predict(X) == other.predict(X)) > 0.99


@pytest.mark.parametrize("contrast", [False, True])
def test_convolutional_fit_is_that_with_stored_patches(contrast, digits):
    X, y = digits
    X, y = X[:150], y[:150]
    patches = Patches((8, 8), size=3, stride=2, normalize=contrast)
    settings = {"patches": patches, "alpha": 0.05, "tol": 0.05, "random_state": 0}
    model, (Z,) = fitted_without_memory(ConvexBNClassifier(**settings), X, y)
    assert len(Z) == 150 * 9
    other = ConvexBNClassifier(**settings).fit(X, y)
    if contrast:  # blank patches: rounding decides on which side of a kink they are
        np.testing.assert_allclose(model.objective_, other.objective_, rtol=1e-3)
        assert max(model.dual_gap_, other.dual_gap_) <= 0.05
    else:
        assert_same_network(model, other, X)


def test_few_columns_have_an_exact_certificate():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 1))
    y = np.abs(x[:, 0]) + 0.1 * rng.normal(size=60)
    model, (_,) = fitted_without_memory(ConvexBNRegressor(0.05, random_state=0), x, y)
    assert model.certificate_.kind == "exact"


def test_other_solvers_say_what_memory_they_need(diabetes):
    model = ConvexBNRegressor(activation="gated_relu", n_gates=5)
    with pytest.raises(ValueError, match="n_components"):
        fitted_without_memory(model, *diabetes)

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
from sklearn_convexbn.data._whitening import whitening_of  # noqa: E402
from sklearn_convexbn.fit import _memory  # noqa: E402


@pytest.fixture
def no_memory(monkeypatch):
    """Have room for no whitened rows; count the matrices that are computed when read."""
    made = []

    class Counted(WhitenedRows):
        def __init__(self, *args):
            super().__init__(*args)
            made.append(self)

    monkeypatch.setattr(_memory, "STORED_SHARE", 0.0)
    monkeypatch.setattr("sklearn_convexbn.data._whitened_rows.WhitenedRows", Counted)
    return made


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
def test_rows_are_those_of_the_stored_matrix(kind, dtype, monkeypatch):
    rows = rows_of_kind(kind)
    whitening = whitening_of(rows, np.ones(len(rows)), n_components=5)
    stored = whitening.transform(rows, compact=dtype == torch.float32)
    monkeypatch.setattr("sklearn_convexbn.data._rows.BLOCK_NUMBERS", 24 * 50)  # several blocks
    computed = WhitenedRows(rows, whitening, dtype)
    assert computed.shape == tuple(stored.shape)
    assert len(computed) == len(stored)
    assert computed[:].dtype == stored.dtype == dtype
    tolerance = {"rtol": 0, "atol": 1e-6 if dtype == torch.float32 else 1e-13}
    for part in (slice(None), slice(7, 130), slice(len(stored) - 3, None), slice(5, 5)):
        torch.testing.assert_close(computed[part], stored[part], **tolerance)
    index = torch.tensor([[3, 299, 3], [0, 120, 47]])
    torch.testing.assert_close(computed[index], stored[index], **tolerance)


def assert_same_network(model, other, X):
    assert model.n_neurons_ == other.n_neurons_
    np.testing.assert_allclose(model.objective_, other.objective_, rtol=1e-7)
    np.testing.assert_allclose(model.dual_gap_, other.dual_gap_, atol=1e-6)
    np.testing.assert_allclose(outputs(model, X), outputs(other, X), atol=1e-4)


def outputs(model, X):
    return getattr(model, "decision_function", model.predict)(X)


@pytest.mark.parametrize("as_sparse", [False, True])
def test_dense_fit_is_that_with_stored_rows(no_memory, as_sparse, monkeypatch, diabetes):
    X, y = diabetes
    X = sparse.csr_array(X) if as_sparse else X
    model = ConvexBNRegressor(0.1, random_state=0).fit(X, y)
    (Z,) = no_memory
    assert len(Z) == 442
    monkeypatch.setattr(_memory, "STORED_SHARE", 1.0)
    assert_same_network(model, ConvexBNRegressor(0.1, random_state=0).fit(X, y), X)
    assert len(no_memory) == 1


def test_large_fit_is_that_with_stored_rows(no_memory, monkeypatch):
    """More rows than those that steer the search, in float32."""
    X, y = make_classification(21_000, 50, n_redundant=0, random_state=0)
    settings = {"alpha": 0.1, "tol": 0.1, "random_state": 0}
    model = ConvexBNClassifier(**settings).fit(X, y)
    (Z,) = no_memory
    assert Z.dtype == torch.float32
    monkeypatch.setattr(_memory, "STORED_SHARE", 1.0)
    other = ConvexBNClassifier(**settings).fit(X, y)
    np.testing.assert_allclose(model.objective_, other.objective_, rtol=1e-3)
    assert model.dual_gap_ <= 0.1
    assert np.mean(model.predict(X) == other.predict(X)) > 0.99


@pytest.mark.parametrize("contrast", [False, True])
def test_convolutional_fit_is_that_with_stored_patches(no_memory, contrast, monkeypatch, digits):
    X, y = digits
    X, y = X[:150], y[:150]
    patches = Patches((8, 8), size=3, stride=2, normalize=contrast)
    settings = {"patches": patches, "alpha": 0.05, "tol": 0.05, "random_state": 0}
    model = ConvexBNClassifier(**settings).fit(X, y)
    (Z,) = no_memory
    assert len(Z) == 150 * 9
    monkeypatch.setattr(_memory, "STORED_SHARE", 1.0)
    other = ConvexBNClassifier(**settings).fit(X, y)
    if contrast:  # blank patches: rounding decides on which side of a kink they are
        np.testing.assert_allclose(model.objective_, other.objective_, rtol=1e-3)
        assert max(model.dual_gap_, other.dual_gap_) <= 0.05
    else:
        assert_same_network(model, other, X)


def test_few_columns_have_an_exact_certificate(no_memory):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 1))
    model = ConvexBNRegressor(0.05, random_state=0).fit(
        x, np.abs(x[:, 0]) + 0.1 * rng.normal(size=60)
    )
    assert len(no_memory) == 1
    assert model.certificate_.kind == "exact"


def test_other_solvers_say_what_memory_they_need(no_memory, monkeypatch, diabetes):
    X, y = diabetes
    monkeypatch.setattr(_memory, "physical_memory", lambda: 1000)
    with pytest.raises(ValueError, match="n_components"):
        ConvexBNRegressor(activation="gated_relu", n_gates=5).fit(X, y)
    assert no_memory == []

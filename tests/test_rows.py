"""Rows read a block at a time: any storage, the same numbers."""

import numpy as np
import pytest
from scipy import sparse

from sklearn_convexbn.data._rows import Rows

KINDS = {
    "float64": lambda X: X,
    "float32": lambda X: X.astype(np.float32),
    "int16": lambda X: X.astype(np.int16),
    "bool": lambda X: X.astype(bool),
    "fortran": np.asfortranarray,
    "csr": sparse.csr_array,
    "csc": sparse.csc_matrix,
}


class FewRows(Rows):
    """Rows of which a block holds few."""

    block_numbers = 40


@pytest.fixture(params=KINDS)
def stored(request):
    """Return a matrix as it is stored, and in float64."""
    X = np.random.default_rng(0).integers(0, 3, size=(23, 5)).astype(np.float64)
    X = (X > 0) * 1.0 if request.param == "bool" else X
    return KINDS[request.param](X), X


@pytest.mark.parametrize("picked", [False, True])
def test_blocks_are_the_rows_in_their_order(stored, picked):
    given, X = stored
    index = np.random.default_rng(1).permutation(23)[:17] if picked else None
    rows, expected = FewRows(given, index), X if index is None else X[index]
    assert rows.shape == expected.shape
    blocks = list(rows.blocks())
    assert len(blocks) > 2
    assert all(part.dtype == np.float64 for _, part in blocks)
    np.testing.assert_array_equal(np.vstack([part for _, part in blocks]), expected)
    np.testing.assert_array_equal(rows.to_array(), expected)
    again = rows.take(np.array([3, 1, 1]))
    np.testing.assert_array_equal(again.to_array(), expected[[3, 1, 1]])


def test_products(stored):
    given, X = stored
    rng, index = np.random.default_rng(2), np.arange(22, -1, -2)
    rows, V, W = FewRows(given, index), rng.normal(size=(5, 3)), rng.normal(size=(12, 2))
    np.testing.assert_allclose(rows.dot(V), X[index] @ V, atol=1e-12)
    np.testing.assert_allclose(rows.transposed_dot(W), X[index].T @ W, atol=1e-12)


def test_a_memory_map_is_read_where_it_lies(tmp_path):
    np.save(tmp_path / "X.npy", np.arange(12.0).reshape(4, 3))
    X = np.load(tmp_path / "X.npy", mmap_mode="r")
    rows = Rows(X).take(np.array([2, 0]))
    assert rows.X is X
    np.testing.assert_array_equal(rows.to_array(), [[6, 7, 8], [0, 1, 2]])

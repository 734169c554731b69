"""Rows of a matrix in an order of their own, read a block at a time.

Training data may be float64 or not, sparse, or mapped from a file larger than memory. All that the
package computes from them is sums over rows and products with thin matrices, so that blocks of
dense float64 rows are enough; X is never copied whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy import sparse

#: Numbers in a block of rows: 16 MiB in float64.
BLOCK_NUMBERS = 2**21


class Rows:
    """Rows of X in the order of an index.

    Parameters
    ----------
    X : ndarray or sparse matrix of shape (n_given, d)
        Of any real dtype; a memory map is read where it lies.
    index : ndarray of shape (n,), default=None
        Which rows, in which order; None means all as they are.
    """

    def __init__(self, X: Any, index: np.ndarray | None = None) -> None:
        self.X = X.tocsr() if sparse.issparse(X) else X
        self.index = index

    def __len__(self) -> int:
        return self.X.shape[0] if self.index is None else len(self.index)

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of rows and columns (n, d)."""
        return len(self), self.X.shape[1]

    def take(self, index: np.ndarray) -> Rows:
        """Return some of these rows, by their places here."""
        return Rows(self.X, index if self.index is None else self.index[index])

    def slices(self, width: int = 0) -> Iterator[slice]:
        """Yield slices of rows that are read together, for `width` numbers a row besides d."""
        n, d = self.shape
        size = max(1, BLOCK_NUMBERS // max(1, d + width))
        for start in range(0, n, size):
            yield slice(start, min(start + size, n))

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Return a block of rows (rows, d), dense and in float64."""
        block = self._stored(rows)
        block = block.toarray() if sparse.issparse(block) else block
        return np.asarray(block, dtype=np.float64)

    def _stored(self, rows: slice) -> Any:
        return self.X[rows if self.index is None else self.index[rows]]

    def blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield slices of rows and these rows, dense and in float64."""
        for rows in self.slices():
            yield rows, self[rows]

    def to_array(self) -> np.ndarray:
        """Return all rows (n, d), dense and in float64."""
        return self[slice(0, len(self))]

    def dot(self, V: np.ndarray) -> np.ndarray:
        """Return ``X V`` (n, m) for V (d, m)."""
        out = np.empty((len(self), V.shape[1]))
        for rows in self.slices(V.shape[1]):
            out[rows] = self.multipliable(rows) @ V
        return out

    def transposed_dot(self, W: np.ndarray) -> np.ndarray:
        """Return ``X^T W`` (d, m) for W (n, m)."""
        out = np.zeros((self.shape[1], W.shape[1]))
        for rows in self.slices(W.shape[1]):
            out += self.multipliable(rows).T @ W[rows]
        return out

    def multipliable(self, rows: slice) -> Any:
        """Return a block of rows that multiplies: sparse where X is."""
        block = self._stored(rows)
        return block.astype(np.float64) if sparse.issparse(block) else np.asarray(block, np.float64)

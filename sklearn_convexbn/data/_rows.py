"""Rows of a matrix in an order of their own, read a block at a time.

Training data may be float64 or not, sparse, or mapped from a file larger than memory. All that the
package computes from them is sums over rows and products with thin matrices, so that blocks of
dense float64 rows are enough; X is never copied whole.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Self

import numpy as np
from scipy import sparse

from sklearn_convexbn.support._arrays import (
    Array,
    array_namespace,
    float64,
    is_tensor,
    like,
    on_cpu,
    on_device,
    writable,
)

#: Sparse rows of more columns than this are not made dense.
DENSE_COLUMNS = 1000


class RowBlocks(ABC):
    """A matrix (n, d) that is read a block of rows at a time, dense and in float64."""

    #: Numbers in a block of rows: 16 MiB in float64.
    block_numbers = 2**21

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, rows: slice) -> Any:
        """Return a block of rows (rows, d), dense and in float64."""

    @abstractmethod
    def part(self, rows: slice) -> Self:
        """Return some of the rows, still to be read."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """Numbers of rows and columns (n, d)."""

    @property
    @abstractmethod
    def example(self) -> Array:
        """An array without numbers, of the kind and on the device of the blocks."""

    @property
    def stay_sparse(self) -> bool:
        """Whether blocks had better be multiplied as they are, sparse."""
        return False

    def slices(self, width: int = 0, numbers: int | None = None) -> Iterator[slice]:
        """Yield slices of rows that are read together.

        A block and `width` numbers more for each of its rows are about `numbers` numbers,
        `block_numbers` if that is None.
        """
        yield from self._slices(self.shape[1] + width, numbers)

    def _slices(self, a_row: int, numbers: int | None, unit: int = 1) -> Iterator[slice]:
        """Yield slices of multiples of `unit` rows that take `a_row` numbers each."""
        n = len(self)
        size = max(1, (numbers or self.block_numbers) // max(1, a_row * unit)) * unit
        for start in range(0, n, size):
            yield slice(start, min(start + size, n))

    def blocks(self) -> Iterator[tuple[slice, Array]]:
        """Yield slices of rows and these rows, dense and in float64."""
        for rows in self.slices():
            yield rows, self[rows]

    def multipliable(self, width: int, numbers: int | None = None) -> Iterator[tuple[slice, Any]]:
        """Yield :meth:`slices` and these rows, sparse where X is and stays on the CPU."""
        for rows in self.slices(width, numbers):
            yield rows, self[rows]

    def to_array(self) -> Any:
        """Return all rows (n, d), dense and in float64."""
        return self[slice(0, len(self))]

    def empty(self, width: int) -> Any:
        """Return an array (n, width) to be filled, of the kind of the blocks and where they are."""
        example = self.example
        shape = (len(self), width)
        return array_namespace(example).empty(shape, dtype=example.dtype, **on_device(example))

    def dot(self, V: Array) -> Array:
        """Return ``X V`` (n, m) for V (d, m)."""
        xp = array_namespace(V)
        out = xp.empty((len(self), V.shape[1]), dtype=V.dtype, **on_device(V))
        for rows, block in self.multipliable(V.shape[1]):
            out[rows] = block @ V
        return out

    def transposed_dot(self, W: Array) -> Array:
        """Return ``X^T W`` (d, m) for W (n, m)."""
        xp = array_namespace(W)
        out = xp.zeros((self.shape[1], W.shape[1]), dtype=W.dtype, **on_device(W))
        for rows, block in self.multipliable(W.shape[1]):
            out += block.T @ W[rows]
        return out


class Rows(RowBlocks):
    """Rows of X in the order of an index.

    Parameters
    ----------
    X : ndarray, torch.Tensor or sparse matrix of shape (n_given, d)
        Of any real dtype; a memory map is read where it lies. Blocks of a tensor are tensors.
    index : ndarray of shape (n,), default=None
        Which rows, in which order; None means all as they are.
    device : str, default=None
        torch device to send blocks to; None leaves them where X is.
    """

    def __init__(self, X: Any, index: np.ndarray | None = None, device: str | None = None) -> None:
        if sparse.issparse(X):
            X = sparse.csr_array(X)  # sums of rows of the *_matrix classes are matrices
            if not X.has_canonical_format:  # entries given in parts belong together
                X = X.copy()
                X.sum_duplicates()
        self.X = X
        self.index = index
        self.device = device

    def __len__(self) -> int:
        return self.X.shape[0] if self.index is None else len(self.index)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self), self.X.shape[1]

    @property
    def stay_sparse(self) -> bool:
        return sparse.issparse(self.X) and self.device is None and self.shape[1] > DENSE_COLUMNS

    def take(self, index: np.ndarray) -> Self:
        """Return some of these rows, by their places here."""
        return type(self)(self.X, index if self.index is None else self.index[index], self.device)

    def part(self, rows: slice) -> Self:
        return self.take(np.arange(*rows.indices(len(self))))

    def to(self, device: str | None) -> Rows:
        """Return the same rows with blocks on a torch device; None: where X is."""
        return type(self)(self.X, self.index, device)

    def on_cpu(self) -> Rows:
        """Return the same rows with NumPy blocks; a tensor is copied."""
        return type(self)(on_cpu(self.X), self.index)

    @property
    def example(self) -> Array:
        if sparse.issparse(self.X):
            return self._placed(np.zeros((0, self.shape[1])))
        return self[slice(0, 0)]

    def __getitem__(self, rows: slice) -> Any:
        block = self._stored(rows)
        return self._placed(block.toarray() if sparse.issparse(block) else block)

    def _stored(self, rows: slice) -> Any:
        if self.index is None:
            return self.X[rows]
        return self.X[like(self.index[rows], self.X) if is_tensor(self.X) else self.index[rows]]

    def _placed(self, block: Any) -> Array:
        if self.device is None:
            return float64(block)
        import torch

        block = block if is_tensor(block) else writable(block)
        return torch.as_tensor(block, dtype=torch.float64, device=self.device)

    def multipliable(self, width: int, numbers: int | None = None) -> Iterator[tuple[slice, Any]]:
        if not sparse.issparse(self.X) or self.device is not None:
            yield from super().multipliable(width, numbers)
            return
        stored = self.X.nnz // max(1, self.X.shape[0])
        for rows in self._slices(stored + width, numbers):
            yield rows, self._stored(rows).astype(np.float64)

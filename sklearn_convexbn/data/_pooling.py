"""Pooling of activations over the patches of a sample: what convolution changes.

A unit of a convolutional network sees every patch of an image, and its activations are averaged
over the cells of a grid. A dense unit sees one patch, the whole row, and there is one cell.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from sklearn_convexbn.support._arrays import Same, array_namespace, like


@dataclass(frozen=True, eq=False)
class Pooling:
    """Weighted sums over the K patches of each sample, one for each of G cells.

    Patches of a sample are consecutive rows. Pooled units are (n, G, m), one matrix a sample.

    Attributes
    ----------
    weights : ndarray of shape (K, G)
        What a patch adds to a cell; the columns sum to one.
    """

    weights: np.ndarray

    @property
    def n_patches(self) -> int:
        """Number of patches of a sample, K."""
        return int(self.weights.shape[0])

    @property
    def n_cells(self) -> int:
        """Number of cells, G."""
        return int(self.weights.shape[1])

    @property
    def is_identity(self) -> bool:
        """Whether a sample is one patch, so that nothing is pooled."""
        return self.weights.shape == (1, 1)

    def rows(self, samples: slice) -> slice:
        """Return the rows of the patches of some samples."""
        return slice(samples.start * self.n_patches, samples.stop * self.n_patches)

    def samples(self, rows: slice) -> slice:
        """Return the samples whose patches are these rows."""
        return slice(rows.start // self.n_patches, rows.stop // self.n_patches)

    def pool(self, H: Same) -> Same:
        """Return pooled units (n, G, m) of units (n K, m)."""
        if self.is_identity:
            return H[:, None]
        return self._weights(H).T @ H.reshape(len(H) // self.n_patches, self.n_patches, H.shape[1])

    def features(self, H: Same) -> Same:
        """Return pooled units as features (n, m G), the cells of a unit next to each other."""
        pooled = self.pool(H).swapaxes(1, 2)
        return pooled.reshape(len(pooled), H.shape[1] * self.n_cells)

    def spread(self, S: Same) -> Same:
        """Return the adjoint of :meth:`pool`: (n K, m) for (n, G, m)."""
        if self.is_identity:
            return S[:, 0]
        return (self._weights(S) @ S).reshape(len(S) * self.n_patches, S.shape[2])

    def fit(self, F: Same) -> Same:
        """Return the fit (n, C) of the products (n K, G C) of units on patches and their weights.

        The weights of a unit are cell by cell. This is the adjoint of :meth:`on_rows`.
        """
        if self.is_identity:
            return F
        C = F.shape[1] // self.n_cells
        weights = self._weights(F).reshape(-1)
        return (F.reshape(-1, len(weights), C) * weights[:, None]).sum(axis=1)

    def multiply_spread(self, H: Same, S: Same) -> Same:
        """Multiply H (n K, m) in place by ``spread(S)``, S (n, G, m), and return it."""
        if self.n_cells > 1:
            H *= self.spread(S)
        else:
            whole = H.reshape(len(S), self.n_patches, H.shape[1])
            whole *= S if self.is_identity else self._weights(S) * S
        return H

    def of_rows(self, Lambda: Same, index: Any) -> Same:
        """Return rows (r, G C) of the spread of Lambda (n, C): cell by cell, by numbers of rows."""
        weights = self._weights(Lambda)[index % self.n_patches]
        parts = weights[:, :, None] * Lambda[index // self.n_patches][:, None, :]
        return parts.reshape(len(parts), -1)

    def on_rows(self, Lambda: Same) -> Same:
        """Return :meth:`of_rows` for all rows: the dual point (n K, G C) of a layer of patches.

        The correlations of pooled units with Lambda are those of units on patches with it.
        """
        if self.is_identity:
            return Lambda
        return self.of_rows(Lambda, like(np.arange(len(Lambda) * self.n_patches), Lambda))

    @cached_property
    def longest(self) -> tuple[float, np.ndarray, np.ndarray]:
        """The longest pooled vector of activations (K,) of mean square one, and its parts.

        Returns
        -------
        length : float
        activations : ndarray of shape (K,)
            They attain it. Of those that do the nearest to being equal; non-negative, as a part of
            a top singular vector of weights that are (Perron and Frobenius).
        cells : ndarray of shape (G,)
            The unit vector, non-negative too, that they are pooled to, up to the length.
        """
        left, scales, _ = np.linalg.svd(self.weights, full_matrices=False)
        top = left[:, scales >= scales[0] * (1.0 - 1e-12)]
        activations = np.maximum(top @ top.sum(axis=0), 0.0)
        activations /= np.sqrt(np.mean(activations**2))
        pooled = self.weights.T @ activations
        length = float(np.linalg.norm(pooled))
        return length, activations, pooled / length

    def _weights(self, reference: Same) -> Same:
        weights = like(self.weights, reference)
        return array_namespace(reference).asarray(weights, dtype=reference.dtype)


#: A sample is one patch: the dense layer.
IDENTITY = Pooling(np.ones((1, 1)))


def columns_of(units: Same, cells: int) -> Same:
    """Return the numbers of the columns of some units, of which each has `cells` together."""
    if cells == 1:
        return units
    return (units[:, None] * cells + like(np.arange(cells), units)).reshape(-1)


def grid_pooling(grid: tuple[int, int], shape: tuple[int, int], stride: tuple[int, int]) -> Pooling:
    """Return means over windows of a grid of patches, those of an average pooling layer.

    Parameters
    ----------
    grid : tuple of int
        Rows and columns of patches; a patch's number counts along a row first.
    shape : tuple of int
        Rows and columns of a window, of which at least one fits into the grid.
    stride : tuple of int
        Patches between neighbouring windows, downwards and to the right.
    """
    if grid == (1, 1):
        return IDENTITY
    vertical, horizontal = map(_windows, grid, shape, stride)
    weights = np.einsum("ra,cb->rcab", vertical, horizontal)
    return Pooling(weights.reshape(vertical.shape[0] * horizontal.shape[0], -1))


def pooling_window(size: int, cells: int) -> tuple[int, int]:
    """Return kernel and stride of average pooling of `size` patches to `cells` cells.

    The stride is ``floor(size / cells)``, and the kernel the smallest that reaches the border:
    where `cells` does not divide `size` the windows overlap.
    """
    stride = size // cells
    return size - (cells - 1) * stride, stride


def _windows(size: int, kernel: int, stride: int) -> np.ndarray:
    cells = (size - kernel) // stride + 1
    W = np.zeros((size, cells))
    for cell in range(cells):
        W[cell * stride : cell * stride + kernel, cell] = 1.0 / kernel
    return W

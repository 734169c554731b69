r"""Batch normalization as whitening: the spectrum of the data and what is kept of it.

Centre X with row weights p (summing to one) and let :math:`X_c^T \mathrm{diag}(p) X_c = V
\Lambda V^T`. The network of one hidden BN layer on X is a plain two-layer network on the
rows of :math:`Z = [X_c V \Lambda^{-1/2}, 1]`, for which :math:`Z^T \mathrm{diag}(p) Z = I`
(Ergen et al., "Demystifying Batch Normalization in ReLU Networks", ICLR 2022). Batch
normalization divides by the root of the variance plus eps: for weights w on columns of deviation
one and of length one that is whitening with the covariance plus eps times the identity, shrinkage.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from sklearn_convexbn.data._rows import RowBlocks, Rows
from sklearn_convexbn.support._arrays import Array, array_namespace, as_numpy, like, on_device
from sklearn_convexbn.support._sharding import Shards


@dataclass(frozen=True)
class ClippedCoordinates:
    """Whitened coordinates of rows, limited to the range that they have on the training rows.

    They are ``clip(X @ coefs + intercepts, *limits)``.

    Attributes
    ----------
    coefs : ndarray of shape (d, k)
    intercepts : ndarray of shape (k,)
    limits : ndarray of shape (2, k)
        Minimum and maximum of each coordinate.
    """

    coefs: Any
    intercepts: Any
    limits: Any

    def on(self, example: Array) -> Self:
        """Return the same in arrays of the kind, and on the device, of an example."""
        coefs, intercepts, limits = (
            like(a, example) for a in (self.coefs, self.intercepts, self.limits)
        )
        return replace(self, coefs=coefs, intercepts=intercepts, limits=limits)

    def of_block(self, X: Any) -> Any:
        """Map rows X (n, d), dense or sparse, to their coordinates (n, k)."""
        Z = X @ self.coefs
        Z += self.intercepts
        return Z.clip(self.limits[0], self.limits[1])


@dataclass(frozen=True)
class Whitening:
    """The whitening of one training set, as a map that applies to new rows too.

    Attributes
    ----------
    mean : ndarray of shape (d,)
        Weighted mean of X.
    remainder : ndarray of shape (d,)
        What rounding has left out of the mean, which is ``mean + remainder``.
    units : ndarray of shape (d,)
        What the columns are divided by first: ones, or their standard deviations where the
        covariance is shrunk towards its diagonal.
    components : ndarray of shape (d, k)
        Orthonormal directions of columns in these units: where nothing is shrunk the leading
        principal directions of X.
    scales : ndarray of shape (k,)
        Standard deviation each kept direction is divided by (after shrinkage).
    spectrum : ndarray of shape (k + 1,)
        Diagonal of Z^T diag(p) Z: ones, or below/above one where shrinkage damps or
        amplifies a direction; the last entry belongs to the column of ones.
    singular_values : ndarray of shape (r,)
        Singular values of the centred (weighted) X up to its rank, decreasing; only those kept
        where the decomposition was randomized.
    explained_variance_ratio : ndarray of shape (r,)
    shrinkage : float
        The shrinkage used, in [0, 1].
    damping : ndarray of shape (k,)
        Standard deviation, after whitening, along each of the leading principal directions.
    lost_columns : ndarray of int
        Columns left out because they vary by no more than the rounding of their offset. Constant
        columns are not among them.
    """

    mean: np.ndarray
    remainder: np.ndarray
    units: np.ndarray
    components: np.ndarray
    scales: np.ndarray
    spectrum: np.ndarray
    singular_values: np.ndarray
    explained_variance_ratio: np.ndarray
    shrinkage: float
    damping: np.ndarray
    lost_columns: np.ndarray

    @property
    def n_components(self) -> int:
        """Number of directions kept."""
        return int(self.scales.shape[0])

    @property
    def _directions(self) -> np.ndarray:
        """The directions (d, k) for columns as they are."""
        return self.components / self.units[:, None]

    def transform(self, X: Any, *, compact: bool = False) -> Array:
        """Map rows of X (n, d), an array or :class:`RowBlocks`, to rows of Z (n, k + 1).

        The last column is ones. Computed in float64 and stored in that, or in float32 if
        `compact`, where X is.
        """
        rows = X if isinstance(X, RowBlocks) else Rows(X)
        example = rows.example
        xp = array_namespace(example)
        dtype = xp.float32 if compact else xp.float64
        Z = xp.empty((len(rows), self.n_components + 1), dtype=dtype, **on_device(example))
        if rows.stay_sparse:
            directions = self._directions
            centre = self.mean @ directions + self.remainder @ directions
            Z[:, -1] = 1.0
            for block, part in rows.multipliable(0):
                Z[block, :-1] = (part @ directions - centre) / self.scales
            return Z
        for block, part in rows.blocks():
            Z[block] = self.of_block(part, dtype)
        return Z

    def of_block(self, X: Array, dtype: Any) -> Any:
        """Map rows of X (n, d), float64, to rows of Z (n, k + 1) of a dtype."""
        directions = self._directions
        rest = like(self.remainder @ directions, X)
        mean, directions, scales = (like(a, X) for a in (self.mean, directions, self.scales))
        xp = array_namespace(X)
        Z = xp.ones((len(X), self.n_components + 1), dtype=dtype, **on_device(X))
        Z[:, :-1] = ((X - mean) @ directions - rest) / scales
        return Z

    def clipped_to(self, rows: RowBlocks, shards: Shards) -> ClippedCoordinates:
        """Return the map to coordinates without the ones, limited to their range on all rows."""
        coefs, k = self._directions / self.scales, self.n_components
        everywhere = np.array([np.full(k, -np.inf), np.full(k, np.inf)])
        clipped = ClippedCoordinates(coefs, -self.mean_of(coefs), everywhere)
        here, low, high = clipped.on(rows.example), np.full(k, np.inf), np.full(k, -np.inf)
        for _, part in rows.multipliable(k):
            Z = as_numpy(here.of_block(part))
            low, high = np.minimum(low, Z.min(axis=0)), np.maximum(high, Z.max(axis=0))
        lows, highs = zip(*shards.parts((low, high)), strict=True)
        limits = np.array([np.min(lows, axis=0), np.max(highs, axis=0)])
        return replace(clipped, limits=limits)

    def hidden_layer(self, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return weights (d, m) and biases (m,) with ``X @ W + b == Z(X) @ directions.T``."""
        W = self._directions @ (directions[:, :-1] / self.scales).T
        return W, directions[:, -1] - self.mean_of(W)

    def mean_of(self, W: np.ndarray) -> np.ndarray:
        """Return the mean of ``X @ W`` (m,) for weights W (d, m)."""
        return self.mean @ W + self.remainder @ W

    def projected(self, W: np.ndarray) -> np.ndarray:
        """Return the part of weights W (d, m) that the coordinates can express."""
        return self._directions @ (self.components.T @ (W * self.units[:, None]))

    def coordinates(self, W: np.ndarray, offset: np.ndarray) -> np.ndarray:
        """Return the directions (m, k + 1) of units ``X @ W + offset``.

        The inverse of :meth:`hidden_layer` on what it returns.
        """
        q = (self.components.T @ (W * self.units[:, None])).T * self.scales
        return np.column_stack([q, offset + self.mean_of(W)])

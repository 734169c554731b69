"""Centred rows with columns at scale one: what whitening decomposes, and which columns vary."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import linalg

from sklearn_convexbn.data._rows import RowBlocks, Rows
from sklearn_convexbn.support._arrays import Array, array_namespace, as_numpy, is_tensor, like
from sklearn_convexbn.support._sharding import Shards

#: A column whose standard deviation is below this many roundings of its root mean square is lost
#: in them: no network on X could be evaluated to two digits.
LOST_IN_ROUNDING = 64

#: Standard deviations of columns, as they are and relative to the largest one, and entries beyond
#: these leave weights no room in float64.
SMALLEST_SCALE, LARGEST_SCALE = 2.0**-960, 2.0**1000


@dataclass(frozen=True)
class Centred:
    """Rows of X less their weighted mean over a number of their size, as they are asked for.

    The mean is taken in two passes, ``mean + remainder``. Columns have a scale of their own, a
    power of two near their standard deviation: `scales`, relative to the `size` of all. It is zero
    for columns that are constant, and for those `lost` in the rounding of their offset. `noise` is
    the size of that rounding relative to the scale, and `deviations` are the standard deviations
    relative to `size`, zero where the scale is. These and `shape` are of the rows of all shards.
    """

    rows: RowBlocks
    p: Array
    total: float
    mean: Array
    remainder: Array
    size: float
    scales: np.ndarray
    noise: np.ndarray
    deviations: np.ndarray
    lost: np.ndarray
    shape: tuple[int, int]
    shards: Shards

    @classmethod
    def of(cls, rows: RowBlocks, weights: np.ndarray, shards: Shards) -> Centred:
        total = shards.total(float(weights.sum()))
        p = like(weights / total, rows.example)
        columns = _moments(rows, p, shards)
        scaled = _column_scales(columns, shards)
        n = int(shards.total(float(len(rows))))
        shape = (n, rows.shape[1])
        return cls(rows, p, total, columns.mean, columns.remainder, *scaled, shape, shards)

    @property
    def variance(self) -> float:
        """The total variance, in squares of `size`."""
        return float(self.deviations @ self.deviations)

    def fourth_moment(self, units: np.ndarray) -> float:
        """Return the mean fourth power of the length of rows with columns over units (d,).

        Units are relative to `size`. Columns that are left out count nothing.
        """
        moment = 0.0
        for block, squares in self._squared_lengths(units):
            moment += float(self.p[block] @ squares**2)
        return self.shards.total(moment)

    def _squared_lengths(self, units: np.ndarray) -> Iterator[tuple[slice, Array]]:
        """Yield slices of rows and the squared lengths of the centred rows over units (d,)."""
        inverse = np.zeros_like(units)
        np.divide(1.0, units * self.size, out=inverse, where=self.scales > 0.0)
        kept = like(inverse, self.p)
        if not _stays_sparse(self.rows):
            for block, X in self.rows.blocks():
                yield block, (((X - self.mean - self.remainder) * kept) ** 2).sum(axis=1)
            return
        mean = (self.mean + self.remainder) * kept
        for block, X in self.rows.multipliable(0):
            scaled = X.multiply(kept[None, :]).tocsr()
            squares = scaled.multiply(scaled).sum(axis=1) - 2.0 * (scaled @ mean) + mean @ mean
            yield block, np.maximum(squares, 0.0)

    def weighted(self, rows: slice) -> Array:
        """Return centred rows, columns at scale one, times the roots of their weights (rows, d)."""
        # Zero in place of columns that are left out.
        units = np.zeros_like(self.scales)
        np.divide(1.0, self.scales * self.size, out=units, where=self.scales > 0.0)
        X = self.rows[rows]
        return (X - self.mean - self.remainder) * like(units, X) * (self.p[rows] ** 0.5)[:, None]

    def dot(self, V: Array) -> Array:
        """Return the product (n, m) of all centred, weighted rows over `size` with V (d, m)."""
        V = V * self._kept()
        centre = self.mean @ V + self.remainder @ V
        return (self.rows.dot(V) - centre) * (self.p**0.5 / self.size)[:, None]

    def transposed_dot(self, W: Array) -> Array:
        """Return the product (d, m) of the transpose of the same with W (n, m)."""
        W = W * (self.p**0.5 / self.size)[:, None]
        mean = self.mean + self.remainder
        product = self.rows.transposed_dot(W) - mean[:, None] * W.sum(axis=0)
        return self.shards.total(product) * self._kept()

    def _kept(self) -> Array:
        return like((self.scales > 0.0).astype(float)[:, None], self.p)

    def factor(self) -> np.ndarray:
        """Return a matrix (at most d, d) with the singular values and right vectors of all rows.

        That is the triangle of a QR factorization, updated block by block, or the rows
        themselves where they are fewer than d.
        """
        factor = self.shards.joined(self._factor_here())
        return (
            factor if self.shards.size == 1 or len(factor) <= factor.shape[1] else triangle(factor)
        )

    def _factor_here(self) -> np.ndarray:
        n, d = self.rows.shape
        if n <= d:
            return as_numpy(self.weighted(slice(0, n)))
        R, step = None, max(4 * d, self.rows.block_numbers // max(1, d))
        for start in range(0, n, step):
            block = self.weighted(slice(start, min(start + step, n)))
            R = triangle(block if R is None else array_namespace(R).concatenate([R, block]))
        return as_numpy(R)


@dataclass(frozen=True)
class _Moments:
    """Of each column (d,): mean in two parts, least and largest value, deviation."""

    mean: Array
    remainder: Array
    low: np.ndarray
    high: np.ndarray
    deviation: np.ndarray


def _stays_sparse(rows: RowBlocks) -> bool:
    return isinstance(rows, Rows) and rows.stay_sparse


def _moments(rows: RowBlocks, p: Any, shards: Shards) -> _Moments:
    """Return the moments of the columns of rows (n, d) with weights p (n,)."""
    if _stays_sparse(rows):
        return _sparse_moments(rows, p, shards)
    d = rows.shape[1]
    mean = shards.total(sum(p[block] @ X for block, X in rows.blocks()))
    low, high, remainder = np.full(d, np.inf), np.full(d, -np.inf), 0.0
    for block, X in rows.blocks():
        xp = array_namespace(X)
        low = np.minimum(low, as_numpy(xp.amin(X, axis=0)))
        high = np.maximum(high, as_numpy(xp.amax(X, axis=0)))
        remainder = remainder + p[block] @ (X - mean)
    low, high = _extremes(low, high, shards)
    remainder = shards.total(remainder)
    size = _power_of_two(np.maximum(high - as_numpy(mean), as_numpy(mean) - low))
    variance: Any = 0.0
    for block, X in rows.blocks():
        variance = variance + p[block] @ ((X - mean - remainder) / like(size, X)) ** 2
    deviation = np.sqrt(as_numpy(shards.total(variance))) * size
    return _Moments(mean, remainder, low, high, deviation)


def _sparse_moments(rows: Any, p: np.ndarray, shards: Shards) -> _Moments:
    """Do the same without subtracting the mean from rows."""
    mean = shards.total(rows.transposed_dot(p[:, None])[:, 0])
    low, high = np.full(len(mean), np.inf), np.full(len(mean), -np.inf)
    for _, X in rows.multipliable(0):
        low = np.minimum(low, X.min(axis=0).toarray().ravel())
        high = np.maximum(high, X.max(axis=0).toarray().ravel())
    low, high = _extremes(low, high, shards)
    size = _power_of_two(np.maximum(high - mean, mean - low))
    # Zeros count by their weight, the other entries one by one.
    variance, weight = np.zeros(len(mean)), np.zeros(len(mean))
    for block, X in rows.multipliable(0):
        where, of_rows = X.indices, np.repeat(p[block], np.diff(X.indptr))
        squares = ((X.data - mean[where]) / size[where]) ** 2
        variance += np.bincount(where, of_rows * squares, minlength=len(mean))
        weight += np.bincount(where, of_rows, minlength=len(mean))
    variance, weight = shards.totals(variance, weight)
    variance = variance + np.maximum(1.0 - weight, 0.0) * (mean / size) ** 2
    return _Moments(mean, np.zeros_like(mean), low, high, np.sqrt(variance) * size)


def _extremes(low: np.ndarray, high: np.ndarray, shards: Shards) -> tuple[np.ndarray, np.ndarray]:
    """Return the least and largest values (d,) over the rows of all shards."""
    if shards.size == 1:
        return low, high
    return np.min(shards.parts(low), axis=0), np.max(shards.parts(high), axis=0)


def _power_of_two(a: np.ndarray) -> np.ndarray:
    """Return powers of two near positive numbers, and 1 for zero."""
    return np.where(a > 0.0, np.ldexp(1.0, np.frexp(a)[1]), 1.0)


def _column_scales(
    columns: _Moments, shards: Shards
) -> tuple[float, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return size, scales, noise, deviations and lost columns as :class:`Centred` has them.

    Raises
    ------
    ValueError
        If a column varies on a scale that no network in float64 can undo.
    """
    eps = np.finfo(float).eps
    root_mean_square = np.hypot(as_numpy(columns.mean), columns.deviation)
    varies = columns.high > columns.low
    lost = varies & (columns.deviation <= LOST_IN_ROUNDING * eps * root_mean_square)
    kept = varies & ~lost & (columns.deviation > 0.0)
    largest = np.maximum(np.abs(columns.low), np.abs(columns.high))
    smallest = SMALLEST_SCALE * max(1.0, float((columns.deviation * kept).max(initial=0.0)))
    outside = (kept & (columns.deviation < smallest)) | (largest > LARGEST_SCALE)
    if outside.any():
        j = int(np.flatnonzero(outside)[0])
        raise ValueError(
            f"Column {j} of X has a standard deviation of {columns.deviation[j]:.3g} and values up "
            f"to {largest[j]:.3g} in size: weights for it, beside the other columns, leave the "
            "range of float64. Multiply X, or the column, by a constant that brings it near 1."
        )
    units = np.where(kept, _power_of_two(columns.deviation), 0.0)
    size = float(units.max(initial=0.0)) or 1.0
    noise = np.divide(eps * root_mean_square, units, out=np.zeros_like(units), where=kept)
    deviations = np.where(kept, columns.deviation / size, 0.0)
    return size, units / size, noise, deviations, np.flatnonzero(lost)


def triangle(A: Array) -> Any:
    """Return R of a QR factorization of A (m, d), shape (at most d, d)."""
    if is_tensor(A):
        return array_namespace(A).linalg.qr(A, mode="r")[1]
    return linalg.qr(A, mode="r", check_finite=False)[0][: A.shape[1]]

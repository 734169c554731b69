r"""Batch normalization as whitening: the spectrum of the data and what is kept of it.

Centre X with row weights p (summing to one) and let :math:`X_c^T \mathrm{diag}(p) X_c = V
\Lambda V^T`. The network of one hidden BN layer on X is a plain two-layer network on the
rows of :math:`Z = [X_c V \Lambda^{-1/2}, 1]`, for which :math:`Z^T \mathrm{diag}(p) Z = I`
(Ergen et al., "Demystifying Batch Normalization in ReLU Networks", ICLR 2022).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

import numpy as np
from scipy import linalg
from scipy.linalg import lapack

from sklearn_convexbn._arrays import (
    Array,
    array_namespace,
    as_numpy,
    is_tensor,
    like,
    on_device,
)
from sklearn_convexbn._rows import BLOCK_NUMBERS, RowBlocks, Rows
from sklearn_convexbn._sharding import ALL_HERE, Shards

#: The decomposition is randomized where the smaller side of X is at least this size and at least
#: this many times the number of components; so many more directions than asked for take part
#: in so many iterations.
RANDOMIZED_SIZE, RANDOMIZED_SHARE, OVERSAMPLING, SUBSPACE_ITERATIONS = 1000, 10, 20, 6

#: A column whose standard deviation is below this many roundings of its root mean square is lost
#: in them: no network on X could be evaluated to two digits.
LOST_IN_ROUNDING = 64

#: Directions below this many roundings are not part of the rank.
RANK_TOLERANCE = 16

#: Columns are of unequal scales below this ratio.
GRADED = 1e-3

#: Standard deviations of columns, as they are and relative to the largest one, and entries beyond
#: these leave weights no room in float64.
SMALLEST_SCALE, LARGEST_SCALE = 2.0**-960, 2.0**1000


@dataclass(frozen=True)
class Whitening:
    """The whitening of one training set, as a map that applies to new rows too.

    Attributes
    ----------
    mean : ndarray of shape (d,)
        Weighted mean of X.
    remainder : ndarray of shape (d,)
        What rounding has left out of the mean, which is ``mean + remainder``.
    components : ndarray of shape (d, k)
        Orthonormal principal directions V of X that are kept.
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
    lost_columns : ndarray of int
        Columns left out because they vary by no more than the rounding of their offset. Constant
        columns are not among them.
    """

    mean: np.ndarray
    remainder: np.ndarray
    components: np.ndarray
    scales: np.ndarray
    spectrum: np.ndarray
    singular_values: np.ndarray
    explained_variance_ratio: np.ndarray
    shrinkage: float
    lost_columns: np.ndarray

    @property
    def n_components(self) -> int:
        """Number of directions kept."""
        return int(self.scales.shape[0])

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
            Z[:, -1] = 1.0
            for block, part in rows.multipliable(0):
                centre = self.mean @ self.components + self.remainder @ self.components
                Z[block, :-1] = (part @ self.components - centre) / self.scales
            return Z
        for block, part in rows.blocks():
            Z[block] = self.of_block(part, dtype)
        return Z

    def of_block(self, X: Array, dtype: Any) -> Array:
        """Map rows of X (n, d), float64, to rows of Z (n, k + 1) of a dtype."""
        mean, components, scales = (like(a, X) for a in (self.mean, self.components, self.scales))
        rest = like(self.remainder @ self.components, X)
        xp = array_namespace(X)
        Z = xp.ones((len(X), self.n_components + 1), dtype=dtype, **on_device(X))
        Z[:, :-1] = ((X - mean) @ components - rest) / scales
        return Z

    def hidden_layer(self, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return weights (d, m) and biases (m,) with ``X @ W + b == Z(X) @ directions.T``."""
        W = self.components @ (directions[:, :-1] / self.scales).T
        return W, directions[:, -1] - self.mean_of(W)

    def mean_of(self, W: np.ndarray) -> np.ndarray:
        """Return the mean of ``X @ W`` (m,) for weights W (d, m)."""
        return self.mean @ W + self.remainder @ W

    def coordinates(self, W: np.ndarray, offset: np.ndarray) -> np.ndarray:
        """Return the directions (m, k + 1) of units ``X @ W + offset``.

        The inverse of :meth:`hidden_layer` on what it returns.
        """
        q = (self.components.T @ W).T * self.scales
        return np.column_stack([q, offset + self.mean_of(W)])


def whiten(
    X: Any,
    weights: np.ndarray,
    *,
    n_components: int | float | None = None,
    shrinkage: float | str = 0.0,
) -> tuple[Array, Whitening]:
    """Whiten the rows of X, keeping the leading directions.

    Parameters
    ----------
    X : array of shape (n, d), sparse matrix or RowBlocks
    weights : ndarray of shape (n,)
        Positive row weights.
    n_components : int, float or None
        Directions to keep: a number (at most the rank), a share of the variance in
        (0, 1), or all.
    shrinkage : float in [0, 1] or "auto"
        Whiten with ``(1 - s) C + s tr(C)/r I`` in place of the covariance C on its range.

    Returns
    -------
    Z : ndarray of shape (n, k + 1)
        ``[sqrt(n) U_k, 1]`` when rows weigh the same and nothing is shrunk.
    whitening : Whitening
    """
    whitening = whitening_of(X, weights, n_components=n_components, shrinkage=shrinkage)
    return whitening.transform(X), whitening


def whitening_of(
    X: Any,
    weights: np.ndarray,
    *,
    n_components: int | float | None = None,
    shrinkage: float | str = 0.0,
    shards: Shards = ALL_HERE,
) -> Whitening:
    """Return the whitening of :func:`whiten` without the whitened rows.

    It is that of the rows of all `shards`. Where X is large and `n_components` a small number (and
    nothing is shrunk), the leading directions come from a randomized singular value decomposition,
    an approximation; the rows are whitened exactly in the directions that are found. All singular
    values are then not known.
    """
    centred = _Centred.of(X if isinstance(X, RowBlocks) else Rows(X), weights, shards)
    randomized = _is_randomized(centred.shape, n_components, shrinkage)
    if randomized:
        s, V = _leading_directions(centred, int(n_components))  # type: ignore[arg-type]
    else:
        s, V = _principal_directions(centred)
    s, V = shards.agreed((s, V))
    variances = s**2
    total = centred.variance if randomized else variances.sum()
    ratio = variances / total if s.size else variances
    k = _number_kept(n_components, ratio)
    automatic = shrinkage == "auto"
    d = _ledoit_wolf(centred, variances) if automatic else float(shrinkage)
    level = float(variances.mean()) if s.size else 0.0
    # Squares of the smallest may underflow, so that they are not taken without need.
    scales = np.sqrt((1.0 - d) * variances[:k] + d * level) if d > 0.0 else s[:k]
    return Whitening(
        mean=as_numpy(centred.mean),
        remainder=as_numpy(centred.remainder),
        components=V[:, :k],
        scales=scales * centred.size,
        spectrum=np.append((s[:k] / scales) ** 2, 1.0),
        singular_values=s * centred.size * np.sqrt(centred.total),
        explained_variance_ratio=ratio,
        shrinkage=d,
        lost_columns=centred.lost,
    )


@dataclass(frozen=True)
class _Centred:
    """Rows of X less their weighted mean over a number of their size, as they are asked for.

    The mean is taken in two passes, ``mean + remainder``. Columns have a scale of their own, a
    power of two near their standard deviation: `scales`, relative to the `size` of all. It is zero
    for columns that are constant, and for those `lost` in the rounding of their offset. `noise` is
    the size of that rounding relative to the scale. `variance` is the total variance and `fourth`
    the mean fourth power of the length. These and `shape` are of the rows of all shards.
    """

    rows: RowBlocks
    p: Array
    total: float
    mean: Array
    remainder: Array
    size: float
    scales: np.ndarray
    noise: np.ndarray
    lost: np.ndarray
    variance: float
    fourth: float
    shape: tuple[int, int]
    shards: Shards

    @classmethod
    def of(cls, rows: RowBlocks, weights: np.ndarray, shards: Shards) -> _Centred:
        total = shards.total(float(weights.sum()))
        p = like(weights / total, rows.example)
        columns = _moments(rows, p, shards)
        scaled = _column_scales(columns, shards)
        mean, remainder = columns.mean, columns.remainder
        n = int(shards.total(float(len(rows))))
        shape = (n, rows.shape[1])
        centred = cls(rows, p, total, mean, remainder, *scaled, 0.0, 0.0, shape, shards)
        variance = fourth = 0.0
        for block, squares in centred._squared_lengths():
            variance += float(p[block] @ squares)
            fourth += float(p[block] @ squares**2)
        variance, fourth = shards.totals(variance, fourth)
        return replace(centred, variance=variance, fourth=fourth)

    def _squared_lengths(self) -> Iterator[tuple[slice, Array]]:
        """Yield slices of rows and the squared lengths of the centred rows over `size`."""
        kept = like(np.where(self.scales > 0.0, 1.0 / self.size, 0.0), self.p)
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
            factor if self.shards.size == 1 or len(factor) <= factor.shape[1] else _triangle(factor)
        )

    def _factor_here(self) -> np.ndarray:
        n, d = self.rows.shape
        if n <= d:
            return as_numpy(self.weighted(slice(0, n)))
        R, step = None, max(4 * d, BLOCK_NUMBERS // max(1, d))
        for start in range(0, n, step):
            block = self.weighted(slice(start, min(start + step, n)))
            R = _triangle(block if R is None else array_namespace(R).concatenate([R, block]))
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


def _moments(rows: RowBlocks, p: Array, shards: Shards) -> _Moments:
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
) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
    """Return size, scales, noise and lost columns as :class:`_Centred` has them.

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
    return size, units / size, noise, np.flatnonzero(lost)


def _orthonormal(W: Array, shards: Shards) -> Array:
    """Return an orthonormal basis of the columns of W (n, m), whose rows may be spread."""
    Q, R = array_namespace(W).linalg.qr(W)
    if shards.size == 1:
        return Q
    top = np.linalg.qr(shards.joined(as_numpy(R)))[0]
    start = shards.offset(len(R))
    return Q @ like(top[start : start + len(R)], Q)


def _triangle(A: Array) -> Array:
    """Return R of a QR factorization of A (m, d), shape (at most d, d)."""
    if is_tensor(A):
        return array_namespace(A).linalg.qr(A, mode="r")[1]
    return linalg.qr(A, mode="r", check_finite=False)[0][: A.shape[1]]


def _is_randomized(
    shape: tuple[int, int], n_components: int | float | None, shrinkage: float | str
) -> bool:
    """Return whether only the leading directions are computed, approximately."""
    few = isinstance(n_components, Integral) and RANDOMIZED_SHARE * n_components <= min(shape)
    return few and min(shape) >= RANDOMIZED_SIZE and shrinkage == 0.0


def _leading_directions(centred: _Centred, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return about the k largest singular values and their right vectors (d, k).

    Randomized subspace iteration (Halko, Martinsson and Tropp, "Finding structure with
    randomness", SIAM Review 2011), with a fixed seed: the same for the same rows.
    """
    d = centred.shape[1]
    V = np.random.default_rng(0).standard_normal((d, k + OVERSAMPLING))
    V = like(V, centred.p)
    qr = array_namespace(V).linalg.qr
    for _ in range(SUBSPACE_ITERATIONS):
        V = qr(centred.transposed_dot(_orthonormal(centred.dot(V), centred.shards)))[0]
    factor = centred.shards.joined(as_numpy(_triangle(centred.dot(V))))
    _, s, rotation = linalg.svd(_triangle(factor))
    V = as_numpy(V)
    rank = int(np.count_nonzero(s > np.finfo(float).eps * max(centred.shape) * s[0]))
    return s[: min(k, rank)], _signed((V @ rotation.T)[:, : min(k, rank)])


def _principal_directions(centred: _Centred) -> tuple[np.ndarray, np.ndarray]:
    """Return the singular values (r,) and right singular vectors (d, r) up to the rank.

    The rank is that of the rows with all columns at scale one, so that a column's unit does not
    matter. Directions at rounding level there, relative to the largest one or to the offsets that
    were subtracted from the columns that take part in them, are not part of it.
    """
    kept = np.flatnonzero(centred.scales)
    if min(len(kept), centred.shape[0]) == 0:
        return np.zeros(0), np.zeros((centred.shape[1], 0))
    scales, noise = centred.scales[kept], centred.noise[kept]
    A = centred.factor()[:, kept]
    if not _is_certainly_of_full_rank(A, noise):
        _, s, right = _svd(A)
        tolerance = RANK_TOLERANCE * np.maximum(
            np.finfo(float).eps * s[0], np.sqrt(right**2 @ noise**2)
        )
        rank = s > tolerance
        A = s[rank, None] * right[rank]
    # The rows of the transpose are in the columns' units again.
    V = np.zeros((centred.shape[1], len(A)))
    V[kept], s = _graded_svd(A.T * scales[:, None], scales)
    return s, _signed(V)


def _svd(A: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a thin singular value decomposition.

    LAPACK reduces a tall matrix by a QR factorization first, so 200 x 10000 is transposed and costs
    as much as its 200 x 200 triangle.
    """
    if A.shape[0] >= A.shape[1]:
        return linalg.svd(A, full_matrices=False)
    left, s, right = linalg.svd(A.T, full_matrices=False)
    return right.T, s, left.T


def _is_certainly_of_full_rank(A: np.ndarray, noise: np.ndarray) -> bool:
    """Return whether a triangle A (d, d) is far from deficient, by an estimate of its condition."""
    d = A.shape[1]
    if A.shape[0] != d or np.tril(A, -1).any():
        return False
    reciprocal, info = lapack.dtrcon(A, norm="1", uplo="U")
    worst = max(float(np.finfo(float).eps), float(noise.max()))
    return info == 0 and reciprocal > 1e3 * d * worst


def _graded_svd(A: np.ndarray, row_scales: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the left singular vectors (d, r) and singular values (r,) of A (d, r) of full rank.

    Where the rows are of very unequal scales, all digits of the small ones come from the
    one-sided Jacobi method after QR with pivoting of rows and columns (Drmac and Veselic, "New fast
    and accurate Jacobi SVD algorithm", SIMAX 2008).
    """
    if A.shape[1] and row_scales.min() < GRADED * row_scales.max():
        # Options F, U, V, N, N, N: pivoting of rows; no small value is set to zero.
        s, left, _, work, _, info = lapack.dgejsv(A, joba=2, jobu=0, jobv=0, jobr=0, jobt=1, jobp=1)
        if info == 0:
            return left, s * (work[0] / work[1])
    left, s, _ = _svd(A)
    return left, s


def _signed(V: np.ndarray) -> np.ndarray:
    """Return the columns of V with signs that make the largest entry of each positive."""
    largest = V[np.abs(V).argmax(axis=0), np.arange(V.shape[1])]
    return V * np.where(largest < 0, -1.0, 1.0)


def _number_kept(n_components: int | float | None, ratio: np.ndarray) -> int:
    """Resolve `n_components` against the explained variance ratios (r,)."""
    rank = ratio.shape[0]
    if n_components is None:
        return rank
    if isinstance(n_components, Integral):
        return min(int(n_components), rank)
    # As in PCA: the smallest k whose directions explain more than this share.
    return min(int(np.searchsorted(np.cumsum(ratio), n_components, side="right")) + 1, rank)


def _ledoit_wolf(centred: _Centred, variances: np.ndarray) -> float:
    """Return the Ledoit-Wolf shrinkage on the range of the covariance.

    Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance
    matrices" (2004), with weighted moments; the total weight counts the samples, so that a row
    of weight 2 is two samples. With full column rank and unit weights this equals
    :func:`sklearn.covariance.ledoit_wolf_shrinkage`.
    """
    r = variances.shape[0]
    if r == 0:
        return 0.0
    frobenius = float((variances**2).sum())
    distance = frobenius - r * float(variances.mean()) ** 2
    error = (centred.fourth - frobenius) / centred.total
    if distance <= 0.0:
        return 1.0 if error > 0.0 else 0.0
    return float(min(max(error, 0.0), distance) / distance)

r"""Batch normalization as whitening: the spectrum of the data and what is kept of it.

Centre X with row weights p (summing to one) and let :math:`X_c^T \mathrm{diag}(p) X_c = V
\Lambda V^T`. The network of one hidden BN layer on X is a plain two-layer network on the
rows of :math:`Z = [X_c V \Lambda^{-1/2}, 1]`, for which :math:`Z^T \mathrm{diag}(p) Z = I`
(Ergen et al., "Demystifying Batch Normalization in ReLU Networks", ICLR 2022).
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
from scipy import linalg

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


@dataclass(frozen=True)
class Whitening:
    """The whitening of one training set, as a map that applies to new rows too.

    Attributes
    ----------
    mean : ndarray of shape (d,)
        Weighted mean of X.
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
    """

    mean: np.ndarray
    components: np.ndarray
    scales: np.ndarray
    spectrum: np.ndarray
    singular_values: np.ndarray
    explained_variance_ratio: np.ndarray
    shrinkage: float

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
                centre = self.mean @ self.components
                Z[block, :-1] = (part @ self.components - centre) / self.scales
            return Z
        for block, part in rows.blocks():
            Z[block] = self.of_block(part, dtype)
        return Z

    def of_block(self, X: Array, dtype: Any) -> Array:
        """Map rows of X (n, d), float64, to rows of Z (n, k + 1) of a dtype."""
        mean, components, scales = (like(a, X) for a in (self.mean, self.components, self.scales))
        xp = array_namespace(X)
        Z = xp.ones((len(X), self.n_components + 1), dtype=dtype, **on_device(X))
        Z[:, :-1] = (X - mean) @ components / scales
        return Z

    def hidden_layer(self, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return weights (d, m) and biases (m,) with ``X @ W + b == Z(X) @ directions.T``."""
        W = self.components @ (directions[:, :-1] / self.scales).T
        return W, directions[:, -1] - self.mean @ W


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
    shrunk = (1.0 - d) * variances[:k] + d * level
    return Whitening(
        mean=as_numpy(centred.mean),
        components=V[:, :k],
        scales=np.sqrt(shrunk) * centred.size,
        spectrum=np.append(variances[:k] / shrunk, 1.0),
        singular_values=s * centred.size * np.sqrt(centred.total),
        explained_variance_ratio=ratio,
        shrinkage=d,
    )


@dataclass(frozen=True)
class _Centred:
    """Rows of X less their weighted mean over a number of their size, as they are asked for.

    `noise` is the size of X beside that of the centred rows: rounding in X - mean is relative to
    the former. `variance` is the total variance and `fourth` the mean fourth power of the length.
    These and `shape` are of the rows of all shards.
    """

    rows: RowBlocks
    p: Array
    total: float
    mean: Array
    size: float
    noise: float
    variance: float
    fourth: float
    shape: tuple[int, int]
    shards: Shards

    @classmethod
    def of(cls, rows: RowBlocks, weights: np.ndarray, shards: Shards) -> _Centred:
        total = shards.total(float(weights.sum()))
        p = like(weights / total, rows.example)
        if isinstance(rows, Rows) and rows.stay_sparse:
            return cls._of_sparse(rows, p, total, shards)
        mean = shards.total(sum(p[block] @ X for block, X in rows.blocks()))
        size = largest = 0.0
        for _, X in rows.blocks():
            size = max(size, float(abs(X - mean).max()))
            largest = max(largest, float(abs(X).max()))
        size, largest = shards.maximum(size) or 1.0, shards.maximum(largest)
        variance = fourth = 0.0
        for block, X in rows.blocks():
            squares = (((X - mean) / size) ** 2).sum(axis=1)
            variance += float(p[block] @ squares)
            fourth += float(p[block] @ squares**2)
        variance, fourth, n = shards.totals(variance, fourth, float(len(rows)))
        shape, noise = (int(n), rows.shape[1]), largest / size
        return cls(rows, p, total, mean, size, noise, variance, fourth, shape, shards)

    @classmethod
    def _of_sparse(cls, rows: Rows, p: np.ndarray, total: float, shards: Shards) -> _Centred:
        """Do the same without subtracting the mean from rows."""
        mean = shards.total(rows.transposed_dot(p[:, None])[:, 0])
        largest = float(max(abs(rows.X.min()), abs(rows.X.max())))
        size = shards.maximum(max(largest, float(np.abs(mean).max()))) or 1.0
        largest = shards.maximum(largest)
        variance = fourth = 0.0
        for block, X in rows.multipliable(0):
            squares = X.multiply(X).sum(axis=1) - 2.0 * (X @ mean) + mean @ mean
            squares = np.maximum(squares, 0.0) / size**2
            variance += float(p[block] @ squares)
            fourth += float(p[block] @ squares**2)
        variance, fourth, n = shards.totals(variance, fourth, float(len(rows)))
        shape, noise = (int(n), rows.shape[1]), largest / size
        return cls(rows, p, total, mean, size, noise, variance, fourth, shape, shards)

    def weighted(self, rows: slice) -> Array:
        """Return centred rows times the square roots of their weights (rows, d)."""
        return (self.rows[rows] - self.mean) * (self.p[rows] ** 0.5 / self.size)[:, None]

    def dot(self, V: Array) -> Array:
        """Return the product (n, m) of all rows of :meth:`weighted` with V (d, m)."""
        return (self.rows.dot(V) - self.mean @ V) * (self.p**0.5 / self.size)[:, None]

    def transposed_dot(self, W: Array) -> Array:
        """Return the product (d, m) of the transpose of :meth:`weighted` with W (n, m)."""
        W = W * (self.p**0.5 / self.size)[:, None]
        return self.shards.total(self.rows.transposed_dot(W) - self.mean[:, None] * W.sum(axis=0))

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

    The smaller side is decomposed: LAPACK reduces the transpose of a wide matrix by a QR
    factorization first, so 200 x 10000 costs as much as its 200 x 200 triangle. Directions at
    rounding level, relative to the largest one or to the data that were centred, are not part
    of the rank.
    """
    n, d = centred.shape
    if min(n, d) == 0:
        return np.zeros(0), np.zeros((d, 0))
    A = centred.factor()
    wide = A.shape[0] < A.shape[1]
    left, s, right = linalg.svd(A.T if wide else A, full_matrices=False)
    V = left if wide else right.T
    tolerance = np.finfo(float).eps * max(n, d) * max(float(s[0]), centred.noise)
    rank = int(np.count_nonzero(s > tolerance))
    return s[:rank], _signed(V[:, :rank])


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

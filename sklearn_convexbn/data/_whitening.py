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
from scipy.linalg import lapack

from sklearn_convexbn.data._centring import Centred, triangle
from sklearn_convexbn.data._rows import RowBlocks, Rows
from sklearn_convexbn.support._arrays import (
    Array,
    array_namespace,
    as_numpy,
    like,
    on_device,
)
from sklearn_convexbn.support._sharding import ALL_HERE, Shards

#: The decomposition is randomized where the smaller side of X is at least this size and at least
#: this many times the number of components; so many more directions than asked for take part
#: in so many iterations.
RANDOMIZED_SIZE, RANDOMIZED_SHARE, OVERSAMPLING, SUBSPACE_ITERATIONS = 1000, 10, 20, 6

#: Directions below this many roundings are not part of the rank.
RANK_TOLERANCE = 16

#: Columns are of unequal scales below this ratio.
GRADED = 1e-3


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

    def of_block(self, X: Array, dtype: Any) -> Any:
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
    centred = Centred.of(X if isinstance(X, RowBlocks) else Rows(X), weights, shards)
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


def _orthonormal(W: Array, shards: Shards) -> Array:
    """Return an orthonormal basis of the columns of W (n, m), whose rows may be spread."""
    Q, R = array_namespace(W).linalg.qr(W)
    if shards.size == 1:
        return Q
    top = np.linalg.qr(shards.joined(as_numpy(R)))[0]
    start = shards.offset(len(R))
    return Q @ like(top[start : start + len(R)], Q)


def _is_randomized(
    shape: tuple[int, int], n_components: int | float | None, shrinkage: float | str
) -> bool:
    """Return whether only the leading directions are computed, approximately."""
    few = isinstance(n_components, Integral) and RANDOMIZED_SHARE * n_components <= min(shape)
    return few and min(shape) >= RANDOMIZED_SIZE and shrinkage == 0.0


def _leading_directions(centred: Centred, k: int) -> tuple[np.ndarray, np.ndarray]:
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
    factor = centred.shards.joined(as_numpy(triangle(centred.dot(V))))
    _, s, rotation = linalg.svd(triangle(factor))
    V = as_numpy(V)
    rank = int(np.count_nonzero(s > np.finfo(float).eps * max(centred.shape) * s[0]))
    return s[: min(k, rank)], _signed((V @ rotation.T)[:, : min(k, rank)])


def _principal_directions(centred: Centred) -> tuple[np.ndarray, np.ndarray]:
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
        left, s, right = _svd(A)
        tolerance = RANK_TOLERANCE * np.maximum(
            np.finfo(float).eps * s[0], np.sqrt(right**2 @ noise**2)
        )
        rank = s > tolerance
        if _is_graded(scales) and rank.sum() < min(A.shape):
            V = np.zeros((centred.shape[1], rank.sum()))
            V[kept], s = _dependent_svd(A, int(rank.sum()), scales)
            return s, _signed(V)
        A = left[:, rank].T @ A
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


def _is_graded(scales: np.ndarray) -> bool:
    """Return whether scales (d,) of columns are very unequal."""
    return bool(scales.min() < GRADED * scales.max())


def _dependent_svd(A: np.ndarray, rank: int, scales: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return right singular vectors (d, r) and values (r,) of ``A * scales``, A of a given rank.

    Columns that depend on others are written by their coefficients, without those that are
    rounding: these would outweigh columns of much smaller scale.
    """
    R, order = linalg.qr(A, mode="r", pivoting=True)
    first = R[:rank, :rank]
    coefficients = linalg.solve_triangular(first, R[:rank, rank:])
    coefficients[np.abs(coefficients) <= RANK_TOLERANCE * np.finfo(float).eps] = 0.0
    basis = np.vstack([np.eye(rank), coefficients.T]) * scales[order, None]
    rows = order[np.argsort(-scales[order], kind="stable")]
    place = np.argsort(order)[rows]
    Q, L, columns = linalg.qr(basis[place], mode="economic", pivoting=True)
    core = L @ first.T[columns]
    left, s = _graded_svd(core, np.abs(np.diag(L)))
    V = np.empty((A.shape[1], rank))
    V[rows] = Q @ left
    return V, s


def _graded_svd(A: np.ndarray, row_scales: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the left singular vectors (d, r) and singular values (r,) of A (d, r) of full rank.

    Where the rows are of very unequal scales, all digits of the small ones come from the
    one-sided Jacobi method after QR with pivoting of rows and columns (Drmac and Veselic, "New fast
    and accurate Jacobi SVD algorithm", SIMAX 2008).
    """
    if _is_graded(row_scales):
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


def _ledoit_wolf(centred: Centred, variances: np.ndarray) -> float:
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

"""The spectrum of centred rows: one decomposition, from which whitenings are read off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from typing import Any

import numpy as np
from scipy import linalg
from scipy.linalg import lapack

from sklearn_convexbn.data._centring import Centred, triangle
from sklearn_convexbn.data._rows import RowBlocks, Rows
from sklearn_convexbn.data._whitening import Whitening
from sklearn_convexbn.support._arrays import Array, array_namespace, as_numpy, like
from sklearn_convexbn.support._sharding import Shards

#: The decomposition is randomized where the smaller side of X is at least this size and at least
#: this many times the number of components; so many more directions than asked for take part
#: in so many iterations.
RANDOMIZED_SIZE, RANDOMIZED_SHARE, OVERSAMPLING, SUBSPACE_ITERATIONS = 1000, 10, 20, 6

#: Directions below this many roundings are not part of the rank.
RANK_TOLERANCE = 16

#: The shrinkage named "eps": what batch normalization adds to a variance, as a share of it.
EPS = 0.01

#: Columns are of unequal scales below this ratio.
GRADED = 1e-3


@dataclass(frozen=True, eq=False)
class Decomposition:
    """The singular value decomposition of centred rows.

    Attributes
    ----------
    centred : Centred
    factor : ndarray of shape (at most d, any) or None
        The triangle of all rows, of the columns that vary, at scale one; None where only leading
        directions are known.
    singular_values : ndarray of shape (r,)
        In units of the size of the rows.
    directions : ndarray of shape (d, r)
    by_column : bool
        Whether the covariance is shrunk towards its diagonal, or a multiple of the identity.
    """

    centred: Centred
    factor: np.ndarray | None
    singular_values: np.ndarray
    directions: np.ndarray
    by_column: bool

    @classmethod
    def of(
        cls,
        X: Any,
        weights: np.ndarray,
        settings: Sequence[tuple[int | float | None, float | str]],
        *,
        by_column: bool = True,
        shards: Shards,
    ) -> Decomposition:
        """Decompose the rows of all `shards` as far as settings need it.

        Where X is large and the numbers of components small (and the shrinkage needs no other), the
        leading directions come from a randomized singular value decomposition, an approximation;
        the rows are whitened exactly in the directions that are found.

        Parameters
        ----------
        X : array of shape (n, d), sparse matrix or RowBlocks
        weights : ndarray of shape (n,)
            Positive row weights.
        settings : sequence of pairs
            Of `n_components` and `shrinkage`, for :meth:`whitening`.
        by_column : bool, default=True
        shards : Shards
        """
        centred = Centred.of(X if isinstance(X, RowBlocks) else Rows(X), weights, shards)
        if all(_is_randomized(centred.shape, *setting, by_column) for setting in settings):
            k = max(int(n_components) for n_components, _ in settings)  # type: ignore[arg-type]
            s, V = shards.agreed(_leading_directions(centred, k))
            return cls(centred, None, s, V, by_column)
        factor = centred.factor()[:, np.flatnonzero(centred.scales)]
        s, V = shards.agreed(_principal_directions(centred, factor))
        return cls(centred, factor, s, V, by_column)

    def whitening(self, n_components: int | float | None, shrinkage: float | str) -> Whitening:
        """Return the whitening of a setting, one of those decomposed for.

        Parameters
        ----------
        n_components : int, float or None
            Directions to keep: a number (at most the rank), a share of the variance in
            (0, 1), or all.
        shrinkage : float in [0, 1], "eps" or "auto"
            Whiten with ``(1 - s) C + s T`` in place of the covariance C on its range; T is
            ``diag(C)`` if `by_column`, so that the units of columns do not matter, or
            ``tr(C)/r I``. "eps" is `EPS` where rows outnumber directions, zero where they are
            linearly independent; "auto" is the estimate of Ledoit and Wolf.
        """
        centred, s, V = self.centred, self.singular_values, self.directions
        variances = s**2
        total = centred.variance if self.factor is None else variances.sum()
        ratio = variances / total if s.size else variances
        k = _number_kept(n_components, ratio)
        d = self._amount(shrinkage, k)
        units = np.ones(len(V))
        if d == 0.0:
            # Squares of the smallest may underflow, so that they are not taken without need.
            components, kept, scales = V[:, :k], s[:k] * centred.size, s[:k] * centred.size
        elif self.by_column:
            whole = k == len(s) and self.factor is not None
            kept, components = self._standardised if whole else self._relative(k)
            scales = np.sqrt((1.0 - d) * kept**2 + d)
            units = np.where(centred.scales > 0.0, centred.deviations * centred.size, 1.0)
        else:
            components = V[:, :k]
            kept = s[:k] * centred.size
            scales = np.sqrt((1.0 - d) * variances[:k] + d * variances.mean()) * centred.size
        # A function of deviation one along a principal direction has these coordinates.
        along = (components.T @ (V[:, :k] * (units / centred.size)[:, None] / s[:k])).T * scales
        return Whitening(
            mean=as_numpy(centred.mean),
            remainder=as_numpy(centred.remainder),
            units=units,
            components=components,
            scales=scales,
            spectrum=np.append((kept / scales) ** 2, 1.0),
            singular_values=s * centred.size * np.sqrt(centred.total),
            explained_variance_ratio=ratio,
            shrinkage=d,
            damping=1.0 / np.linalg.norm(along, axis=1) if d > 0.0 else np.ones(k),
            lost_columns=centred.lost,
        )

    def _amount(self, shrinkage: float | str, k: int) -> float:
        """Return the shrinkage of k directions as a number."""
        if shrinkage == "eps":
            return EPS if self.centred.shape[0] > k + 1 else 0.0
        return self._ledoit_wolf if shrinkage == "auto" else float(shrinkage)

    @cached_property
    def _standardised(self) -> tuple[np.ndarray, np.ndarray]:
        """Singular values (r,) and right vectors (d, r) of rows with columns of deviation one."""
        centred, r = self.centred, len(self.singular_values)
        V = np.zeros_like(self.directions)
        if r == 0:
            return self.singular_values, V
        kept = np.flatnonzero(centred.scales)
        assert self.factor is not None  # only asked for where all directions are known
        _, s, right = _svd(self.factor * (centred.scales[kept] / centred.deviations[kept]))
        V[kept] = right[:r].T
        return centred.shards.agreed((s[:r], _signed(V)))

    def _relative(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return what stands for the same where only the k leading directions of X are kept.

        With D the diagonal of the covariance, V and s what is kept and the singular value
        decomposition ``D^{1/2} V / s = P diag(1/t) W^T``, the weights ``D^{-1/2} P`` are in the
        span of V, orthonormal in the metric D, and of uncorrelated outputs of deviations t.
        """
        s, V = self.singular_values[:k], self.directions[:, :k]
        P, inverse, _ = linalg.svd(self.centred.deviations[:, None] * V / s, full_matrices=False)
        return self.centred.shards.agreed((1.0 / inverse[::-1], _signed(P[:, ::-1])))

    @cached_property
    def _ledoit_wolf(self) -> float:
        """The Ledoit-Wolf shrinkage, with columns of deviation one if `by_column`.

        Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance matrices"
        (2004), with weighted moments; the total weight counts the samples, so that a row of
        weight 2 is two samples. For unit weights this equals
        :func:`sklearn.covariance.ledoit_wolf_shrinkage` (where not `by_column` for full column
        rank: it is that on the range of the covariance).
        """
        centred = self.centred
        if len(self.singular_values) == 0:
            return 0.0
        if self.by_column:
            variances, units = self._standardised[0] ** 2, centred.deviations
            n_directions = int(np.count_nonzero(centred.scales))
        else:
            variances, units = self.singular_values**2, np.ones_like(centred.deviations)
            n_directions = len(variances)
        frobenius = float((variances**2).sum())
        distance = frobenius - float(variances.sum()) ** 2 / n_directions
        error = (centred.fourth_moment(units) - frobenius) / centred.total
        if distance <= 0.0:
            return 1.0 if error > 0.0 else 0.0
        return float(min(max(error, 0.0), distance) / distance)


def _orthonormal(W: Array, shards: Shards) -> Array:
    """Return an orthonormal basis of the columns of W (n, m), whose rows may be spread."""
    Q, R = array_namespace(W).linalg.qr(W)
    if shards.size == 1:
        return Q
    top = np.linalg.qr(shards.joined(as_numpy(R)))[0]
    start = shards.offset(len(R))
    return Q @ like(top[start : start + len(R)], Q)


def _is_randomized(
    shape: tuple[int, int],
    n_components: int | float | None,
    shrinkage: float | str,
    by_column: bool,
) -> bool:
    """Return whether only the leading directions are computed, approximately."""
    few = isinstance(n_components, Integral) and RANDOMIZED_SHARE * n_components <= min(shape)
    # The mean variance and Ledoit and Wolf's estimate need the rank and all variances.
    suffices = shrinkage == 0.0 or (by_column and shrinkage != "auto")
    return few and min(shape) >= RANDOMIZED_SIZE and suffices


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


def _principal_directions(centred: Centred, A: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the singular values (r,) and right singular vectors (d, r) up to the rank.

    A has them of the columns that vary, at scale one. The rank is that of A, so that a column's
    unit does not matter. Directions at rounding level there, relative to the largest one or to the
    offsets that were subtracted from the columns that take part in them, are not part of it.
    """
    kept = np.flatnonzero(centred.scales)
    if min(len(kept), centred.shape[0]) == 0:
        return np.zeros(0), np.zeros((centred.shape[1], 0))
    scales, noise = centred.scales[kept], centred.noise[kept]
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

"""Canonical training data: the same program for the same data, however it is written down.

Rows of zero weight are dropped, equal rows are merged and their weights added, and the
rest is put in an order that depends on the rows' content alone. A row of weight 2 and the
row given twice then lead to the same arrays, bit for bit, and so to the same network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from sklearn_convexbn.data._rows import Rows
from sklearn_convexbn.support._arrays import as_numpy
from sklearn_convexbn.support._sharding import Shards

#: A target may vary by this much: its square, and a sum of some, are finite numbers.
LARGEST_DEVIATION = 1e152

#: Largest sample weights beyond these are brought to one; in between they stay as they are.
SMALLEST_WEIGHT, LARGEST_WEIGHT = 2.0**-900, 2.0**900


@dataclass(frozen=True)
class CanonicalData:
    """Distinct weighted rows in canonical order.

    Attributes
    ----------
    rows : Rows
        n distinct rows of X.
    y : ndarray of shape (n,) or (n, C)
        Targets of the rows, as given (class labels stay class codes).
    weights : ndarray of shape (n,)
        Positive; the weight of a row is the sum over the rows merged into it.
    keys : ndarray of shape (n,)
        64-bit hashes of the rows of X, which they are sorted by.
    """

    rows: Rows
    y: np.ndarray
    weights: np.ndarray
    keys: np.ndarray


def canonical_data(
    X: Any,
    y: np.ndarray,
    sample_weight: np.ndarray | None = None,
    *,
    hashes_of: Callable[[Rows], np.ndarray] | None = None,
) -> CanonicalData:
    """Drop rows of zero weight, merge equal rows (X and y) and fix the order of the rows.

    Parameters
    ----------
    X : ndarray, torch.Tensor or sparse matrix of shape (n, d)
    y : ndarray of shape (n,) or (n, C)
    sample_weight : ndarray of shape (n,), default=None
        Non-negative; None means one each.
    hashes_of : callable, default=None
        ``hashes_of(rows)`` returns a uint64 for each row, equal ones for equal rows.

    Returns
    -------
    CanonicalData
        It refers to X, which is not copied.
    """
    rows = Rows(X)
    weights = np.ones(len(rows)) if sample_weight is None else np.asarray(sample_weight, float)
    index = np.flatnonzero(weights > 0)
    rows, y, weights = rows.take(index), y[index], weights[index]
    hashes = (hashes_of or _row_hashes)(rows)
    order = _content_order(rows, hashes, y, weights)
    rows, y, weights, hashes = rows.take(order), y[order], weights[order], hashes[order]
    repeated = np.flatnonzero(hashes[1:] == hashes[:-1]) + 1
    columns = y.reshape(len(rows), -1)
    repeated = repeated[(columns[repeated] == columns[repeated - 1]).all(axis=1)]
    repeated = repeated[_equal(rows, repeated, repeated - 1)]
    first = np.ones(len(rows), dtype=bool)
    first[repeated] = False
    first = np.flatnonzero(first)
    weights = np.add.reduceat(weights, first)
    return CanonicalData(rows.take(first), y[first], weights, hashes[first])


def _content_order(
    rows: Rows, hashes: np.ndarray, y: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Return a sorting permutation that depends on the content of the rows alone.

    Rows are sorted by a 64-bit hash of X, then by y. Should two different rows share a hash
    (probability about n^2 / 2^65), it cannot order them and a full lexicographic sort of X is
    used. The weight is the last key, so that sums of weights do not depend on row order either.
    """
    targets = y.reshape(len(rows), -1).T
    order = np.lexsort((weights, *targets, hashes))
    ties = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
    if not _equal(rows, order[ties], order[ties + 1]).all():
        order = np.lexsort((weights, *targets, *as_numpy(rows.to_array()).T))
    return order


def _equal(rows: Rows, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return whether the rows of two indices (m,) are equal, pair by pair."""
    equal = np.ones(len(left), dtype=bool)
    a, b = rows.take(left), rows.take(right)
    for part in a.slices():
        equal[part] = as_numpy((a[part] == b[part]).all(axis=1))
    return equal


def _row_hashes(X: Rows) -> np.ndarray:
    """Hash the rows of X (n, d), bit-exactly and without regard to their position."""
    n, d = X.shape
    draws = np.random.default_rng(d).integers(1, 2**63, size=d, dtype=np.uint64)
    multipliers = draws | np.uint64(1)

    def mixed(numbers: np.ndarray, factors: np.ndarray) -> np.ndarray:
        # Adding zero turns -0.0 into 0.0, which compares equal and must hash equal.
        words = (np.ascontiguousarray(numbers) + 0.0).view(np.uint64)
        words = (words ^ (words >> np.uint64(29))) * factors
        words ^= words >> np.uint64(32)
        return words * factors

    hashes = np.empty(n, dtype=np.uint64)
    if sparse.issparse(X.X):  # a zero adds nothing
        for rows, block in X.multipliable(0):
            sums = np.zeros(block.nnz + 1, dtype=np.uint64)
            np.cumsum(mixed(block.data, multipliers[block.indices]), out=sums[1:])
            hashes[rows] = sums[block.indptr[1:]] - sums[block.indptr[:-1]]
        return hashes
    for rows, block in X.blocks():
        hashes[rows] = mixed(as_numpy(block), multipliers).sum(axis=1, dtype=np.uint64)
    return hashes


@dataclass(frozen=True)
class TargetScaling:
    """The affine map between a regression target and what the solver sees.

    The target is ``offset + scale * Y``; `scale` is one number for all outputs.

    Attributes
    ----------
    offset : ndarray of shape (C,)
    scale : float
        Positive.
    """

    offset: np.ndarray
    scale: float


def scale_target(
    y: np.ndarray, weights: np.ndarray, *, fit_intercept: bool, shards: Shards
) -> tuple[np.ndarray, TargetScaling]:
    """Centre a regression target and give it unit variance (mean over its outputs).

    Without an intercept the target is not centred, since the network could not undo it,
    and is divided by its root mean square. A constant target becomes zero, at the scale of its
    largest entry.

    Parameters
    ----------
    y : ndarray of shape (n, C)
    weights : ndarray of shape (n,)
        Positive row weights.
    fit_intercept : bool
    shards : Shards

    Returns
    -------
    Y : ndarray of shape (n, C)
    scaling : TargetScaling

    Raises
    ------
    ValueError
        If y varies so much that its square is not a number.
    """
    p = weights / shards.total(weights.sum())
    # Dividing by the largest entry first keeps squares finite at any scale.
    size = shards.maximum(float(np.abs(y).max())) or 1.0
    Y = y / size
    offset = shards.total(p @ Y) if fit_intercept else np.zeros(Y.shape[1])
    Y = Y - offset
    deviation = float(np.sqrt(np.mean(shards.total(p @ Y**2))))
    # Centring entries of size one leaves rounding errors of this size in a constant target.
    rounding = 8 * np.finfo(float).eps if fit_intercept else 0.0
    if deviation <= rounding:
        # The objective is zero in any unit whose square is a number.
        unit = min(max(size, 1.0 / LARGEST_DEVIATION), LARGEST_DEVIATION)
        return np.zeros_like(Y), TargetScaling(offset * size, unit)
    if deviation * size > LARGEST_DEVIATION:
        raise ValueError(
            f"y varies by {deviation * size:.3g} (root mean square): the objective, in squared "
            f"units of y, leaves the range of float64. Divide y by a number that brings it below "
            f"{LARGEST_DEVIATION:.0e}."
        )
    return Y / deviation, TargetScaling(offset * size, deviation * size)


def summable_weights(weights: np.ndarray, shards: Shards) -> np.ndarray:
    """Return row weights (n,), over a power of two where their sum would leave float64's range.

    Only ratios of weights shape a network. Such weights count as if they had been given in the
    other unit, in singular values and in automatic shrinkage.
    """
    largest = shards.maximum(float(weights.max(initial=0.0)))
    if largest == 0.0 or SMALLEST_WEIGHT <= largest <= LARGEST_WEIGHT:
        return weights
    return np.ldexp(weights, -int(np.frexp(largest)[1]))


def one_hot(codes: np.ndarray, n_classes: int) -> np.ndarray:
    """Return the one-hot rows (n, n_classes) of integer class codes (n,)."""
    return np.eye(n_classes)[codes]


def balanced_class_weights(
    codes: np.ndarray, weights: np.ndarray, n_classes: int, shards: Shards
) -> np.ndarray:
    """Return scikit-learn's "balanced" weight of each class, counting rows by their weight."""
    totals = shards.total(np.bincount(codes, weights=weights, minlength=n_classes))
    return totals.sum() / (n_classes * totals)

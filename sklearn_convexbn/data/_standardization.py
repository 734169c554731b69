"""Columns of mean zero and unit variance, as a whitening that keeps every column to itself."""

from __future__ import annotations

from typing import Any

import numpy as np

from sklearn_convexbn.data._centring import Centred
from sklearn_convexbn.data._rows import RowBlocks, Rows
from sklearn_convexbn.data._whitening import Whitening
from sklearn_convexbn.support._arrays import as_numpy
from sklearn_convexbn.support._sharding import ALL_HERE


def standardization_of(X: Any, weights: np.ndarray) -> Whitening:
    """Return the map of rows to standardised columns and a column of ones.

    Constant columns, and those lost in the rounding of their offset, are left out; the others
    keep their order.

    Parameters
    ----------
    X : array of shape (n, d) or RowBlocks
    weights : ndarray of shape (n,)
        Positive row weights.
    """
    centred = Centred.of(X if isinstance(X, RowBlocks) else Rows(X), weights, ALL_HERE)
    kept = np.flatnonzero(centred.scales)
    variances = np.zeros(len(kept))
    for rows in centred.rows.slices():
        variances += (as_numpy(centred.weighted(rows))[:, kept] ** 2).sum(axis=0)
    deviations = np.sqrt(variances) * centred.scales[kept]
    order = np.sort(deviations**2)[::-1]
    return Whitening(
        mean=as_numpy(centred.mean),
        remainder=as_numpy(centred.remainder),
        units=np.ones(centred.shape[1]),
        components=np.eye(centred.shape[1])[:, kept],
        scales=deviations * centred.size,
        spectrum=np.ones(len(kept) + 1),
        singular_values=np.sqrt(order) * centred.size * np.sqrt(centred.total),
        explained_variance_ratio=order / order.sum() if len(order) else order,
        shrinkage=0.0,
        damping=np.ones(len(kept)),
        lost_columns=centred.lost,
    )

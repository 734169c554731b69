"""Cholesky factors and triangular solves of NumPy arrays and of torch tensors alike.

Small programs on the CPU are solved in NumPy: a call costs about a fifth of one of torch, and
LAPACK is called without a copy more than needed. Programs on another device are torch tensors.
Factors are lower triangular and what is above their diagonal is undefined.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.linalg import blas, lapack

from sklearn_convexbn.support._arrays import Array, array_namespace, on_device


def safe_cholesky(matrix: Array) -> Array:
    """Return the lower factor; a growing diagonal is added when rounding made it indefinite.

    Only the lower triangle of the matrix is read.
    """
    factor, failed = _cholesky(matrix)
    if not failed:
        return factor
    top = float(abs(matrix.diagonal()).max())
    jitter = (1e-13 if is_double(matrix) else 1e-6) * top
    while failed and jitter < 1e300:
        jitter = max(100.0 * jitter, 1e-300)
        shifted = matrix + jitter * array_namespace(matrix).eye(len(matrix), **kind_of(matrix))
        factor, failed = _cholesky(shifted)
    return factor


def _cholesky(matrix: Array) -> tuple[Array, bool]:
    if isinstance(matrix, np.ndarray):
        if len(matrix) == 0:
            return matrix, False
        potrf = lapack.dpotrf if is_double(matrix) else lapack.spotrf
        # The transpose is in LAPACK's order, and its upper triangle is our lower one.
        upper, info = potrf(matrix.T, lower=0, clean=0)
        return upper.T, info != 0
    import torch

    factor, status = torch.linalg.cholesky_ex(matrix)
    return factor, int(status) != 0


def cholesky_solve(column: Array, factor: Array) -> Array:
    """Solve with the matrix of a factor; `column` is (m, c)."""
    if isinstance(factor, np.ndarray):
        if len(factor) == 0:
            return column
        potrs = lapack.dpotrs if is_double(factor) else lapack.spotrs
        return potrs(factor.T, column, lower=0)[0]
    import torch

    return torch.cholesky_solve(column, factor)


def squared_by_inverse(X: Array, factor: Array) -> Array:
    """Return ``X^T A^-1 X`` for the matrix A of a factor, with one triangular solve."""
    if isinstance(factor, np.ndarray):
        if len(factor) == 0:
            return X.T @ X
        trsm = blas.dtrsm if is_double(factor) else blas.strsm
        half = trsm(1.0, factor.T, X.T, side=1, lower=0)
        return half @ half.T
    import torch

    half = torch.linalg.solve_triangular(factor, X, upper=False)
    return half.T @ half


def lower_outer(X: Array, weights: Array) -> Array:
    """Return the lower triangle of ``(X X^T) o weights``; the rest is undefined."""
    if isinstance(X, np.ndarray):
        syrk = blas.dsyrk if is_double(X) else blas.ssyrk
        out = syrk(1.0, X.T, trans=1, lower=0).T
        out *= weights
        return out
    n, out = len(X), array_namespace(X).zeros_like(weights)
    for i in range(6):  # stripes, which skip most of the upper triangle
        low, high = n * i // 6, n * (i + 1) // 6
        out[low:high, :high] = (X[low:high] @ X[:high].T) * weights[low:high, :high]
    return out


def kind_of(a: Array) -> dict[str, Any]:
    """Return dtype and device of `a`, as keywords that create another array."""
    return {"dtype": a.dtype, **on_device(a)}


def single(a: Array) -> Array:
    """Return `a` in float32."""
    return a.astype(np.float32) if isinstance(a, np.ndarray) else a.float()


def cast(a: Array, other: Array) -> Array:
    """Return `a` in the precision of another array; `a` itself where it has it."""
    return a.astype(other.dtype, copy=False) if isinstance(a, np.ndarray) else a.to(other.dtype)


def index_array(numbers: Any, beside: Array) -> Array:
    """Return a list of integers as an index array on the device of `beside`."""
    if isinstance(beside, np.ndarray):
        return np.asarray(numbers, dtype=np.intp)
    import torch

    return torch.as_tensor(numbers, dtype=torch.long, device=beside.device)


def largest_entries(a: Array, count: int) -> Array:
    """Return the positions of the `count` largest entries, in no special order."""
    count = min(len(a), count)
    if isinstance(a, np.ndarray):
        return np.argpartition(a, len(a) - count)[len(a) - count :] if count else a[:0].nonzero()[0]
    return a.topk(count).indices


def row_norms(S: Array) -> Array:
    """Return the Euclidean length of every row."""
    return (S * S).sum(1) ** 0.5


def is_double(a: Array) -> bool:
    return a.dtype == array_namespace(a).float64

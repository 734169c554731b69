"""Cholesky factors, triangular solves and norms of NumPy arrays and of torch tensors alike.

Small programs on the CPU are solved in NumPy: a call costs about a fifth of one of torch, and
LAPACK is called without a copy more than needed. Programs on another device are torch tensors.
Factors are lower triangular and what is above their diagonal is undefined.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.linalg import blas, lapack

from sklearn_convexbn.support._arrays import Array, Same, array_namespace, on_device

if TYPE_CHECKING:
    from torch import Tensor

#: Powers of ten of what is added, relative to its diagonal, where a block or a matrix that is built
#: in place could not be factorised.
BUMPS = (-15, -13, -11, -9, -6)


def safe_cholesky(matrix: Any) -> Any:
    """Return the lower factor; a growing diagonal is added when rounding made it indefinite.

    Only the lower triangle of the matrix is read. To a matrix (m, m) a multiple of the identity is
    added until that helps. Of a stack (..., m, m), a tensor, the diagonal grows by parts of itself,
    as scales of barriers differ widely, and an ArithmeticError says where that does not help.
    """
    if len(matrix.shape) > 2:
        return _factors_of_stack(matrix)
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


def _cholesky(matrix: Any) -> tuple[Any, bool]:
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


def _factors_of_stack(A: Tensor) -> Tensor:
    import torch

    for power in (None, *BUMPS):
        bumped = A
        if power is not None:
            bumped = A + torch.diag_embed(A.diagonal(dim1=-2, dim2=-1).abs() * 10.0**power)
        L, info = torch.linalg.cholesky_ex(bumped)
        # What is not finite reaches the diagonal.
        if not bool(info.any()) and bool(torch.isfinite(L.diagonal(dim1=-2, dim2=-1)).all()):
            return L
    raise ArithmeticError("The Newton matrix is not positive definite.")


def cholesky_solve(column: Any, factor: Any) -> Any:
    """Solve with the matrix of a factor; `column` is (m, c)."""
    if isinstance(factor, np.ndarray):
        if len(factor) == 0:
            return column
        potrs = lapack.dpotrs if is_double(factor) else lapack.spotrs
        return potrs(factor.T, column, lower=0)[0]
    import torch

    return torch.cholesky_solve(column, factor)


def squared_by_inverse(X: Same, factor: Same) -> Same:
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


def lower_outer(X: Same, weights: Same) -> Same:
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


def kind_of(a: Same) -> dict[str, Any]:
    """Return dtype and device of `a`, as keywords that create another array."""
    return {"dtype": a.dtype, **on_device(a)}


def index_array(numbers: Any, beside: Array) -> Any:
    """Return a list of integers as an index array on the device of `beside`."""
    if isinstance(beside, np.ndarray):
        return np.asarray(numbers, dtype=np.intp)
    import torch

    return torch.as_tensor(numbers, dtype=torch.long, device=beside.device)


def largest_entries(a: Any, count: int) -> Any:
    """Return the positions of the `count` largest entries, in no special order."""
    count = min(len(a), count)
    if isinstance(a, np.ndarray):
        return np.argpartition(a, len(a) - count)[len(a) - count :] if count else a[:0].nonzero()[0]
    return a.topk(count).indices


def row_norms(S: Same) -> Same:
    """Return the Euclidean length of every row."""
    return (S * S).sum(1) ** 0.5


def is_double(a: Same) -> bool:
    return a.dtype == array_namespace(a).float64


def gram_of_smaller_side(X: Same) -> Same:
    """Return X^T X or X X^T (m, r, r) of matrices X (m, k, C), r = min(k, C)."""
    transposed = X.swapaxes(1, 2)
    return transposed @ X if X.shape[1] >= X.shape[2] else X @ transposed


def spectral_norms(X: Same) -> Same:
    """Return the largest singular values (m,) of matrices (m, k, C)."""
    if min(X.shape[1:]) <= 1:
        return (X * X).sum((1, 2)) ** 0.5
    squares = array_namespace(X).linalg.eigvalsh(gram_of_smaller_side(X))[:, -1]
    return squares.clip(min=0.0) ** 0.5

r"""The search for the most violated direction of the ReLU dual.

The dual constraint of the full ReLU problem, :math:`|\Lambda^T (Z q)_+| \le \alpha` for every
unit q, is non-convex in q. Ascent from many starts at once, all of it matrix products, finds
large values; their maximum is a lower bound on the true one, so a certificate that rests on
it is an estimate.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

#: Rows times starts held at once, in elements; bounds the memory of a search.
BLOCK_ELEMENTS = 4_000_000


def ascend(
    Z: Tensor,
    Lambda: Tensor,
    starts: Tensor,
    *,
    n_steps: int,
    first: float = 0.5,
    last: float = 0.01,
) -> tuple[Tensor, Tensor]:
    """Raise ``|Lambda^T (Z q)_+|`` over unit q from many starts at once.

    Each step moves along the normalized gradient by a length that falls geometrically from
    `first` to `last`; the best point each start has met is kept.

    Parameters
    ----------
    Z : torch.Tensor of shape (n, k)
    Lambda : torch.Tensor of shape (n, C)
    starts : torch.Tensor of shape (k, S)
    n_steps : int

    Returns
    -------
    values : torch.Tensor of shape (S,)
    directions : torch.Tensor of shape (k, S)
        Unit columns.
    """
    block = max(1, BLOCK_ELEMENTS // max(1, Z.shape[0]))
    parts = [
        _ascend_block(Z, Lambda, chunk, n_steps, first, last)
        for chunk in torch.split(starts, block, dim=1)
    ]
    values, directions = zip(*parts, strict=True)
    return torch.cat(values), torch.cat(directions, dim=1)


def _ascend_block(
    Z: Tensor, Lambda: Tensor, Q: Tensor, n_steps: int, first: float, last: float
) -> tuple[Tensor, Tensor]:
    Q = torch.nn.functional.normalize(Q, dim=0)
    best, best_Q = torch.full_like(Q[0], -1.0), Q.clone()
    ratio = (last / first) ** (1.0 / max(1, n_steps - 1))
    for i in range(n_steps + 1):
        H = Z @ Q
        T = Lambda.T @ H.clamp_min(0)
        values = torch.linalg.vector_norm(T, dim=0)
        better = values > best
        best = torch.where(better, values, best)
        best_Q = torch.where(better, Q, best_Q)
        if i == n_steps:
            break
        slopes = Lambda @ torch.nn.functional.normalize(T, dim=0)
        gradient = Z.T @ slopes.mul_(H > 0)
        Q = Q + first * ratio**i * torch.nn.functional.normalize(gradient, dim=0)
        Q = torch.nn.functional.normalize(Q, dim=0)
    return best, best_Q


def correlations(Z: Tensor, Lambda: Tensor, Q: Tensor) -> Tensor:
    """Return ``|Lambda^T (Z q)_+|`` (S,) for directions Q (k, S)."""
    block = max(1, BLOCK_ELEMENTS // max(1, Z.shape[0]))
    parts = [Lambda.T @ (Z @ q).clamp_min(0) for q in torch.split(Q, block, dim=1)]
    return torch.linalg.vector_norm(torch.cat(parts, dim=1), dim=0)


def distinct_violators(
    values: np.ndarray, directions: np.ndarray, threshold: float, *, most: int, cosine: float
) -> np.ndarray:
    """Return the indices of the largest values above `threshold`, pairwise apart.

    Parameters
    ----------
    values : ndarray of shape (S,)
    directions : ndarray of shape (k, S)
        Unit columns.
    threshold : float
    most : int
        Largest number to return.
    cosine : float
        Two of them have at most this cosine.

    Returns
    -------
    chosen : ndarray of shape (at most `most`,)
        Largest value first.
    """
    chosen: list[int] = []
    for i in np.argsort(-values, kind="stable"):
        if values[i] <= threshold or len(chosen) >= most:
            break
        if not chosen or (directions[:, chosen].T @ directions[:, i]).max() <= cosine:
            chosen.append(int(i))
    return np.array(chosen, dtype=np.intp)

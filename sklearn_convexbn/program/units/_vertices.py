r"""Starts of a search for the largest :math:`|\Lambda^T (Z q)_+|`: where hyperplanes meet.

How wide a basin of attraction is decides what finds it. Random starts with long first steps find
wide basins, also in many dimensions. In few dimensions the worst violators are needles: vertices of
the arrangement, where the hyperplanes :math:`z_i \cdot q = 0` of nearly k - 1 rows meet and the
function has a kink across each. Starts at random vertices, with short first steps, find some.
Many lie near other high maxima in the sense of the arrangement: they share all but a few
hyperplanes with them. On the circle on which the shared ones meet, the function is known between
breakpoints, and one sort finds its maximum.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from scipy import special
from torch import Tensor

from sklearn_convexbn.program.units._base import FAR, NEAR, Draw, unit_columns

#: Rows times circles that are sorted together.
CIRCLE_ELEMENTS = 2**18

#: Hyperplanes of at most this many rows meet in a start.
VERTEX_ROWS = 16

#: The part of a circle around its base left out.
CIRCLE_GAP = 0.05


class Hyperplanes(Protocol):
    """What is asked of ReLU units: the rows, whose hyperplanes are where units change sides."""

    Z: Any
    n_rows: int
    n_parameters: int

    def rows(self, numbers: np.ndarray) -> np.ndarray:
        """Return some of all rows (*numbers.shape, k), by their numbers."""

    def nearest(self, Q: Tensor, count: int) -> Tensor:
        """Return the rows (count, S) whose hyperplanes are nearest to directions (k, S)."""


def fresh_starts(
    units: Hyperplanes, count: int, draw: Draw, random_state: np.random.RandomState
) -> tuple[np.ndarray, np.ndarray]:
    """Return random directions and random vertices, half of each, (k, count), and first steps.

    Parameters
    ----------
    units : Hyperplanes
    count : int
    draw : callable
    random_state : numpy.random.RandomState
        Draws rows.

    Returns
    -------
    starts : ndarray of shape (k, count)
    first : ndarray of shape (count,)
        Lengths of the first steps of an ascent.
    """
    n_far = count // 2
    n_near, n_rows = count - n_far, min(units.n_parameters - 1, VERTEX_ROWS)
    rows = random_state.randint(units.n_rows, size=(n_near, n_rows))
    far = _through_rows(units, draw(n_far))
    starts = np.hstack([far, vertices(draw(n_near), units.rows(rows))])
    return starts, np.where(np.arange(count) < n_far, FAR, NEAR)


def _through_rows(units: Hyperplanes, directions: np.ndarray) -> np.ndarray:
    """Move every other hyperplane (k, S) in parallel until it passes through a random row.

    A random offset is small beside the length of a random direction, so hyperplanes that cut
    off few rows would hardly be drawn. The row is picked by the offset's own quantile.
    """
    moved = directions.copy()
    rows = (special.ndtr(moved[-1, ::2]) * units.n_rows).astype(np.intp)
    through = units.rows(rows)[:, :-1]
    moved[-1, ::2] = -np.einsum("ks,sk->s", moved[:-1, ::2], through)
    return moved


def vertices(directions: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Project directions (k, S) onto what is orthogonal to rows (S, r, k), r < k."""
    Q, _ = np.linalg.qr(rows.transpose(0, 2, 1))
    q = directions.T[:, :, None]
    for _ in range(2):  # once more, for what cancellation leaves of nearly dependent ones
        q = q - Q @ (Q.transpose(0, 2, 1) @ q)
    return q[:, :, 0].T


def circles_through(
    units: Hyperplanes,
    known: np.ndarray,
    count: int,
    draw: Draw,
    random_state: np.random.RandomState,
    *,
    whole: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Return circles through known maxima or their antipodes as orthonormal pairs (k, count).

    They keep to all but one of the k - 1 hyperplanes nearest to the base (at most
    `VERTEX_ROWS`), or if `whole` to none. Antipodes are bases because, once the linear part of
    the fit is settled, the residuals on both sides of a hyperplane say the same.

    Parameters
    ----------
    units : Hyperplanes
        With all rows here.
    known : ndarray of shape (k, any)
    count : int
    draw : callable
    random_state : numpy.random.RandomState
    whole : bool
    """
    k, size = known.shape
    bases = known[:, random_state.randint(size, size=count)]
    bases = np.where(np.arange(count) % 2 == 1, -bases, bases)
    kept = 0 if whole else max(0, min(k - 2, VERTEX_ROWS))
    at = torch.as_tensor(bases, device=units.Z.device).float()
    nearest = units.nearest(at, kept + 1).T.cpu().numpy()
    dropped = random_state.randint(kept + 1, size=count)
    others = np.arange(kept) + (np.arange(kept) >= dropped[:, None])
    rows = units.rows(np.take_along_axis(nearest, others, axis=1))
    fixed = np.concatenate([bases.T[:, None], rows], axis=1)[:, : k - 1]
    tangents = vertices(draw(count), fixed)
    lengths = np.linalg.norm(tangents, axis=0)
    return bases, tangents / np.maximum(lengths, 1e-300)


def circle_maxima(
    units: Hyperplanes, Lambda: Tensor, bases: np.ndarray, tangents: np.ndarray
) -> Tensor:
    """Return the best vertices (k, 2 S) on both halves of circles, away from their bases.

    For several outputs, the best for the output direction of the base.

    Parameters
    ----------
    units : Hyperplanes
        On n rows, not pooled.
    Lambda : torch.Tensor of shape (n, C)
        Its precision is that of the sums.
    bases, tangents : ndarray of shape (k, S)
        Orthonormal pairs; a circle is ``cos(t) base + sin(t) tangent``.
    """
    Z = units.Z[:].to(Lambda.dtype)
    pairs = [torch.as_tensor(a, device=Z.device).to(Z.dtype) for a in (bases, tangents)]
    block = max(1, CIRCLE_ELEMENTS // max(1, Z.shape[0]))
    parts = [
        _circle_block(Z, Lambda, q, t)
        for q, t in zip(*(torch.split(a, block, dim=1) for a in pairs), strict=True)
    ]
    return torch.cat(parts, dim=1)


def _circle_block(Z: Tensor, Lambda: Tensor, bases: Tensor, tangents: Tensor) -> Tensor:
    H, G = (Z @ bases).T.contiguous(), (Z @ tangents).T.contiguous()
    T = torch.nn.functional.normalize(H.clamp_min(0) @ Lambda, dim=1)
    slopes = T @ Lambda.T
    # Row i changes sides where h_i cos t + g_i sin t = 0, once in every half turn. Between such
    # breakpoints the function is a cos t + b sin t, with sums a and b over the active rows.
    angles, order = torch.remainder(torch.atan2(-H, G), torch.pi).sort(dim=1)
    active = H > 0
    cos, sin = angles.cos(), angles.sin()

    def sums(weighted: Tensor) -> Tensor:
        changes = torch.where(active, -weighted, weighted).gather(1, order).cumsum(dim=1)
        return (weighted * active).sum(dim=1, keepdim=True) + changes

    a, b = slopes * H, slopes * G
    first = sums(a) * cos + sums(b) * sin
    # f(q) - f(-q) is linear in q, which gives the other half turn.
    second = first - (a.sum(dim=1, keepdim=True) * cos + b.sum(dim=1, keepdim=True) * sin)
    apart = (angles > CIRCLE_GAP) & (angles < torch.pi - CIRCLE_GAP)
    best = [torch.where(apart, half.abs(), -1.0).argmax(dim=1) for half in (first, second)]
    t1, t2 = (angles.gather(1, i[:, None])[:, 0] for i in best)
    t2 = t2 + torch.pi
    found = [bases * t.cos() + tangents * t.sin() for t in (t1, t2)]
    return unit_columns(torch.cat(found, dim=1))

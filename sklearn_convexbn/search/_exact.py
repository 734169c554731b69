r"""The largest correlation over all directions, exactly, for few dimensions.

The function :math:`f(q) = |\Lambda^T (Z q)_+|` is :math:`|M q|` on each cell of the arrangement
of the hyperplanes :math:`z_i \cdot q = 0`, with a matrix M (C x k) that changes by
:math:`\lambda_i z_i^T` across hyperplane i. Its maximum over unit q is attained at the top
singular vector of a cell's M, or on a hyperplane, where the problem is the same in one
dimension less. So the maximum is that of f over the top singular vectors of the faces of every
dimension. Every face has an arc among its own faces: a piece of a circle on which k - 2
hyperplanes meet. Along a circle the patterns change one by one, cumulative sums give the M of
all its arcs, and a few more additions those of the faces around it. Only faces whose spectral
norm exceeds the best value so far are looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, product
from math import inf, log2

import numpy as np
import torch

from sklearn_convexbn.program.units._whitened import WhitenedUnits
from sklearn_convexbn.search._search import ascend
from sklearn_convexbn.support._sharding import ALL_HERE

#: Binary exponent from which on a count of operations is called infinite.
LARGEST_EXPONENT = 500

#: Elements of the sums held at once; bounds the memory and keeps them in the cache.
BLOCK_ELEMENTS = 200_000

#: Unit normals closer than this, or opposite, are the same hyperplane.
SAME_LINE = 1e-10

#: How far outside a hyperplane a point may lie and still be tried.
TOLERANCE = 1e-9

#: Lines on either side of an arc that a point has to be on the right side of to be tried.
NEIGHBOURS = 6

#: Directions the search for a first lower bound starts from, and its steps.
N_STARTS, N_STEPS = 256, 40


def largest_correlation(
    Z: np.ndarray, Lambda: np.ndarray, *, n_starts: int = N_STARTS, block: int = BLOCK_ELEMENTS
) -> tuple[float, np.ndarray]:
    """Return the maximum of ``|Lambda^T (Z q)_+|`` over all unit q, and a maximiser.

    The time grows with n^(k-1); see :func:`exact_search_operations`.

    Parameters
    ----------
    Z : ndarray of shape (n, k)
    Lambda : ndarray of shape (n, C)
    n_starts : int, default=256
        Ascents that a large value comes from to begin with; the result does not depend on them.
    block : int, default=200_000
        Numbers in a block of arrays.

    Returns
    -------
    value : float
        Attained at `q`. The maximum is larger by no more than rounding, a part in 1e10.
    q : ndarray of shape (k,)
        Unit vector.
    """
    first = np.eye(Z.shape[1])[0]
    sizes = np.linalg.norm(Z, axis=1) * np.linalg.norm(Lambda, axis=1)
    keep = sizes > 1e-15 * sizes.max(initial=0.0)
    Z, Lambda = np.asarray(Z[keep], dtype=float), np.asarray(Lambda[keep], dtype=float)
    if Z.shape[0] == 0:
        return 0.0, first
    lengths = np.linalg.norm(Z, axis=1)
    # A maximiser lies in the span of the rows; within it every subspace meets some hyperplane.
    _, scales, axes = np.linalg.svd(Z / lengths[:, None], full_matrices=False)
    span = axes[scales > SAME_LINE * scales[0]].T
    k, C = span.shape[1], Lambda.shape[1]
    reduced = Z @ span
    search = _Search(reduced, Lambda, block)
    normals = reduced / np.linalg.norm(reduced, axis=1, keepdims=True)
    jumps = Lambda[:, :, None] * reduced[:, None, :]
    whole = _merged(_Flat(k, normals, jumps, np.zeros((C, k)), (), np.eye(k)))
    if k == 1:
        search.offer(np.array([[1.0, -1.0]]))
    else:
        if k > 2 and n_starts:  # in the plane the breakpoints are a good start
            search.start(n_starts)
        _search_flat(search, whole)
    q = span @ search.q
    q /= np.linalg.norm(q)
    return float(np.linalg.norm(Lambda.T @ np.maximum(Z @ q, 0.0))), q


def exact_search_operations(n: int, k: int, C: int) -> float:
    """Return about how many operations :func:`largest_correlation` takes.

    Calibrated so that one takes about 2 ns on one core, within a factor of three.

    Parameters
    ----------
    n : int
        Rows; those that are parallel count once.
    k : int
        Dimensions, at most `n` counted.
    C : int
        Outputs.

    Returns
    -------
    count : float
        Infinite where it would not fit into a float.
    """
    k = min(k, n)
    if k <= 1:
        return float(n * C)
    if (k - 1) * log2(n) + k > LARGEST_EXPONENT:
        return inf
    arcs, faces = float(n) ** (k - 1), 2.0**k - 2.0
    # Singular vectors of larger matrices are found one by one, and a block has its overhead.
    vectors = 20.0 if min(C, k) <= 2 else 300.0
    blocks = max(1.0, float(n) ** (k - 3), arcs * C * k / BLOCK_ELEMENTS)
    per_arc = C * k * (k + 4) + 10.0 * log2(n + 1) + faces * (2.0 * C * k + vectors)
    return arcs * per_arc + blocks * faces * 1e5


@dataclass(frozen=True)
class _Flat:
    """The function on the subspace of the first `dimension` coordinates of a rotated frame.

    At q in the subspace it is ``|M q|``, M the sum of `base` and of the jumps of the lines
    with ``normal . q > 0``. M is kept for all k coordinates, as it is near the subspace with
    the `sides` inactive.

    Attributes
    ----------
    dimension : int
    normals : ndarray of shape (n, k)
        Of one row of each hyperplane that crosses the subspace.
    jumps : ndarray of shape (n, C, k)
    base : ndarray of shape (C, k)
    sides : tuple of (ndarray of shape (k,), ndarray of shape (C, k))
        Normal and jump of the hyperplanes whose intersection the subspace is. Number j, from
        zero, is the one that bounds it within the first ``dimension + 1 + j`` coordinates.
    frame : ndarray of shape (k, k)
        Rotation from these coordinates to the original ones.
    """

    dimension: int
    normals: np.ndarray
    jumps: np.ndarray
    base: np.ndarray
    sides: tuple[tuple[np.ndarray, np.ndarray], ...]
    frame: np.ndarray


def _merged(flat: _Flat) -> _Flat:
    """Merge the lines that are the same hyperplane of the subspace.

    A line that is turned round, ``u -> -u``, is inactive where it was active: its jump J
    becomes -J, and J is added to the base.
    """
    lines = flat.normals[:, : flat.dimension]
    lines = lines / np.linalg.norm(lines, axis=1, keepdims=True)
    lead = lines[np.arange(len(lines)), (np.abs(lines) > 1e-9).argmax(axis=1)]
    signs = np.where(lead < 0, -1.0, 1.0)
    rounded = np.round(signs[:, None] * lines / SAME_LINE)
    _, first, group = np.unique(rounded + 0.0, axis=0, return_index=True, return_inverse=True)
    jumps = np.zeros((len(first), *flat.base.shape))
    np.add.at(jumps, group.ravel(), signs[:, None, None] * flat.jumps)
    return _Flat(
        flat.dimension,
        (signs[:, None] * flat.normals)[first],
        jumps,
        flat.base + flat.jumps[signs < 0].sum(axis=0),
        flat.sides,
        flat.frame,
    )


class _Search:
    """The best point so far, and the function to improve it on.

    Parameters
    ----------
    Z : ndarray of shape (n, k)
    Lambda : ndarray of shape (n, C)
    block : int
        Numbers in a block of arrays.
    """

    def __init__(self, Z: np.ndarray, Lambda: np.ndarray, block: int) -> None:
        self.Z, self.Lambda, self.block = Z, Lambda, block
        self.best, self.q = -1.0, np.eye(Z.shape[1])[0]

    def offer(self, points: np.ndarray) -> None:
        """Evaluate the function at unit points (k, m) and keep the best."""
        block = max(1, 10 * self.block // self.Z.shape[0])
        for start in range(0, points.shape[1], block):
            chunk = points[:, start : start + block]
            values = np.linalg.norm(self.Lambda.T @ np.maximum(self.Z @ chunk, 0.0), axis=0)
            i = int(values.argmax())
            if values[i] > self.best:
                self.best, self.q = float(values[i]), chunk[:, i]

    def start(self, n_starts: int) -> None:
        """Find a large value by ascent from random directions."""
        starts = np.random.default_rng(0).standard_normal((self.Z.shape[1], n_starts))
        Z, Lambda = torch.from_numpy(self.Z), torch.from_numpy(self.Lambda)
        units, first = WhitenedUnits(Z, ALL_HERE), torch.from_numpy(starts)
        _, found = ascend(units, Lambda, first, n_steps=N_STEPS, last=1e-4)
        self.offer(found.numpy())


def _search_flat(search: _Search, flat: _Flat) -> None:
    """Try the faces of every dimension that have an arc in the subspace."""
    n, C, k = flat.jumps.shape
    if flat.dimension == 2:
        _search_circles(search, _Circles.of(flat, np.eye(k)[None], None))
        return
    frames = _frames(flat)
    if flat.dimension > 3:
        for i in range(n):
            _search_flat(search, _on_hyperplane(flat, i, frames[i]))
        return
    block = max(1, search.block // (n * C * k))
    for start in range(0, n, block):
        own = np.arange(start, min(n, start + block))
        _search_circles(search, _Circles.of(flat, frames[own], own))


def _frames(flat: _Flat) -> np.ndarray:
    """Return rotations (n, k, k): column ``dimension - 1`` becomes the normal of line i."""
    (n, k), d = flat.normals.shape, flat.dimension
    axes = np.linalg.svd(flat.normals[:, None, :d])[2]
    frames = np.tile(np.eye(k), (n, 1, 1))
    frames[:, :d, : d - 1] = axes[:, 1:].transpose(0, 2, 1)
    frames[:, :d, d - 1] = axes[:, 0]
    return frames


def _on_hyperplane(flat: _Flat, i: int, rotation: np.ndarray) -> _Flat:
    """Return the function on the hyperplane of line i of the subspace."""
    normals, jumps = flat.normals @ rotation, flat.jumps @ rotation
    outer = tuple((normal @ rotation, jump @ rotation) for normal, jump in flat.sides)
    return _merged(
        _Flat(
            flat.dimension - 1,
            np.delete(normals, i, axis=0),
            np.delete(jumps, i, axis=0),
            flat.base @ rotation,
            ((normals[i], jumps[i]), *outer),
            flat.frame @ rotation,
        )
    )


@dataclass(frozen=True)
class _Circles:
    """Circles of a subspace, and M on the arcs of the half of each from angle 0 to pi.

    Each circle has a rotated frame of its own, in which it is that of the first two
    coordinates. Arc j lies between the breakpoints j - 1 and j.

    Attributes
    ----------
    flat : _Flat
    rotations : ndarray of shape (b, k, k)
        From the coordinates of circle i to those of the subspace.
    own : ndarray of shape (b,), int, or None
        The line that is zero on each circle; None if the subspace is the circle.
    order : ndarray of shape (b, m), int
        Lines by the angle at which they are crossed.
    turns_on : ndarray of shape (b, m), bool
        Whether the line becomes active there.
    slopes : ndarray of shape (b, m)
        The breakpoints are at (-slope, 1), scaled to length one.
    sums : ndarray of shape (C, k, b, m + 1)
        M of the arcs, with all sides inactive.
    opposite : ndarray of shape (C, k, b, 1)
        M of the arc at the other end of the diameter is `opposite` minus that of the arc.
    """

    flat: _Flat
    rotations: np.ndarray
    own: np.ndarray | None
    order: np.ndarray
    turns_on: np.ndarray
    slopes: np.ndarray
    sums: np.ndarray
    opposite: np.ndarray

    @classmethod
    def of(cls, flat: _Flat, rotations: np.ndarray, own: np.ndarray | None) -> _Circles:
        """Sort the lines around each circle and sum their jumps."""
        b, (n, C, k) = len(rotations), flat.jumps.shape
        coordinates = np.tensordot(flat.normals, rotations[:, :, :2], (1, 1))
        x, y = coordinates.transpose(2, 1, 0)
        jumps = np.tensordot(flat.jumps, rotations, (2, 1)).transpose(1, 3, 2, 0)
        jumps = np.ascontiguousarray(jumps)
        base = np.tensordot(flat.base, rotations, (1, 1)).transpose(0, 2, 1)[..., None]
        # The sign of x tells whether a line is active at angle 0 and turns off before pi.
        x = np.where(x == 0.0, 1e-200, x)
        slopes = y / x
        if own is not None:
            rows = np.arange(b)
            slopes[rows, own] = np.inf
            jumps[:, :, rows, own] = 0.0
        order = np.argsort(slopes, axis=1)[:, : n if own is None else n - 1]
        rows = np.arange(b)[:, None]
        turns_on = x[rows, order] < 0
        sums = np.empty((C, k, b, order.shape[1] + 1))
        sums[..., :1] = base + np.einsum("ckbn,bn->ckb", jumps, x > 0)[..., None]
        np.multiply(jumps[:, :, rows, order], np.where(turns_on, 1.0, -1.0), out=sums[..., 1:])
        np.cumsum(sums, axis=-1, out=sums)
        opposite = 2.0 * base + jumps.sum(axis=-1, keepdims=True)
        return cls(flat, rotations, own, order, turns_on, slopes[rows, order], sums, opposite)

    def sides(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Normals (b, k) and jumps (C, k, b, 1) of the hyperplanes that meet in the circle."""
        pairs = list(self.flat.sides)
        normals = [np.einsum("k,bkl->bl", u, self.rotations) for u, _ in pairs]
        jumps = [np.einsum("ck,bkl->clb", J, self.rotations)[..., None] for _, J in pairs]
        if self.own is not None:
            normals.insert(0, np.einsum("bk,bkl->bl", self.flat.normals[self.own], self.rotations))
            J = np.einsum("bck,bkl->clb", self.flat.jumps[self.own], self.rotations)
            jumps.insert(0, J[..., None])
        return list(zip(normals, jumps, strict=True))


def _search_circles(search: _Search, circles: _Circles) -> None:
    """Try the breakpoints and arcs of circles and all faces around the arcs."""
    _try_breakpoints(search, circles)
    sides = circles.sides()
    for end in (1.0, -1.0):
        sums = circles.sums if end > 0 else circles.opposite - circles.sums
        for signs, M in _faces(sums, [jump for _, jump in sides]):
            around = [(normal, s) for (normal, _), s in zip(sides, signs, strict=False)]
            _try_faces(search, circles, M, around, end)


def _faces(
    sums: np.ndarray, jumps: list[np.ndarray]
) -> Iterator[tuple[tuple[float, ...], np.ndarray]]:
    """Yield the sides (+1 active, -1 not) and M (C, d, b, arcs) of the faces around arcs.

    A face of dimension d lies in the first d coordinates, on some side of the first d - 2
    hyperplanes that meet in the circle.
    """
    for count in range(len(jumps) + 1):
        for signs in product((-1.0, 1.0), repeat=count):
            M = sums[:, : count + 2]
            active = [jump[:, : count + 2] for jump, s in zip(jumps, signs, strict=False) if s > 0]
            yield signs, M + sum(active[1:], active[0]) if active else M


def _try_breakpoints(search: _Search, circles: _Circles) -> None:
    """Try the point of the largest value among those where lines cross the circles."""
    length = np.hypot(1.0, circles.slopes)
    x, y = -circles.slopes / length, 1.0 / length
    after, opposite = circles.sums[:, :2, :, 1:], circles.opposite[:, :2]
    for M, end in ((after, 1.0), (opposite - after, -1.0)):
        T = M[:, 0] * x + M[:, 1] * y
        values = np.einsum("cbm,cbm->bm", T, T)
        i, j = np.unravel_index(values.argmax(), values.shape)
        point = circles.rotations[i][:, :2] @ [end * x[i, j], end * y[i, j]]
        search.offer(circles.flat.frame @ point[:, None])


def _try_faces(
    search: _Search,
    circles: _Circles,
    M: np.ndarray,
    sides: list[tuple[np.ndarray, float]],
    end: float,
) -> None:
    """Try the top singular vectors of the faces' M (C, d, b, arcs) that may lie in their face.

    Parameters
    ----------
    search : _Search
    circles : _Circles
    M : ndarray of shape (C, d, b, m + 1)
    sides : list of d - 2 tuples of (ndarray of shape (b, k), float)
        Normals of hyperplanes that meet in the circle; +1 or -1, the side the faces are on.
    end : float
        -1 for the arcs opposite to those of `circles`.
    """
    i, j = np.nonzero(np.einsum("cdbm,cdbm->bm", M, M) > search.best**2)
    M = M[:, :, i, j]
    larger = np.flatnonzero(_norm_bounds(M) > search.best)
    i, j = i[larger], j[larger]
    if larger.size == 0:
        return
    values, points = _top_directions(M[:, :, larger])
    larger = np.flatnonzero(values > search.best)
    i, j, points = i[larger], j[larger], points[larger]
    heights = [sign * np.einsum("md,md->m", u[i, : points.shape[1]], points) for u, sign in sides]
    for turn in (1.0, -1.0):
        inside = np.ones(len(points), dtype=bool)
        for height in heights:
            inside &= turn * height >= -TOLERANCE
        # Coordinates of the subspace, not of the circle.
        rotations = circles.rotations[i[inside], :, : points.shape[1]]
        turned = turn * np.einsum("mkl,ml->mk", rotations, points[inside])
        near = _between_neighbours(circles, i[inside], j[inside], turned, end)
        search.offer(circles.flat.frame @ turned[near].T)


def _between_neighbours(
    circles: _Circles, i: np.ndarray, j: np.ndarray, points: np.ndarray, end: float
) -> np.ndarray:
    """Return the indices of the points (m, k) that may lie in a face at arc j of circle i.

    They are on the face's side of the lines that bound the arc and of some more nearby.
    """
    normals, n_lines = circles.flat.normals, circles.order.shape[1]
    left = np.arange(len(points))
    for step in [s for width in range(NEIGHBOURS) for s in (-1 - width, width)]:
        if left.size == 0:
            break
        circle, arc = i[left], j[left]
        at = (arc + step) % n_lines
        active = circles.turns_on[circle, at] == (at < arc)
        height = np.einsum("mk,mk->m", normals[circles.order[circle, at]], points[left])
        left = left[np.where(active, end, -end) * height >= -TOLERANCE]
    return left


def _norm_bounds(M: np.ndarray) -> np.ndarray:
    """Return upper bounds (m,) on the spectral norms of matrices (C, d, m).

    With the mean and the variance of the squared singular values (Wolkowicz and Styan, 1980);
    exact where there are two of them or one.
    """
    C, d = M.shape[:2]
    if d < C:
        M, p = M.transpose(1, 0, 2), d
    else:
        p = C
    squares = [np.einsum("dm,dm->m", M[r], M[r]) for r in range(p)]
    mean = np.sum(squares, axis=0) / p
    variance = np.sum([(s - mean) ** 2 for s in squares], axis=0)
    for r, s in combinations(range(p), 2):
        variance += 2.0 * np.einsum("dm,dm->m", M[r], M[s]) ** 2
    return np.sqrt(mean + np.sqrt((p - 1) / p * variance))


def _top_directions(M: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the spectral norms (m,) and top right singular vectors (m, d) of M (C, d, m)."""
    if M.shape[0] == 1:
        points = M[0]
    elif M.shape[0] == 2:
        # Half the angle of (c00 - c11, 2 c01) is that of the top left singular vector.
        rows = np.einsum("cdm,cdm->cm", M, M)
        angle = 0.5 * np.arctan2(2.0 * np.einsum("dm,dm->m", M[0], M[1]), rows[0] - rows[1])
        points = np.cos(angle) * M[0] + np.sin(angle) * M[1]
    else:
        squares, axes = np.linalg.eigh(np.einsum("cdm,cem->mde", M, M))
        return np.sqrt(np.maximum(squares[:, -1], 0.0)), axes[:, :, -1]
    lengths = np.linalg.norm(points, axis=0)
    return lengths, (points / np.maximum(lengths, 1e-300)).T

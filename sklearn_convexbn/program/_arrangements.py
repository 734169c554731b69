"""Hyperplane arrangements: which rows a ReLU unit can be active on.

A unit q (k,) is active on the rows where ``Z q >= 0``. The 0/1 patterns that occur, as q
runs over all directions, are the arrangements of the rows of Z; each is represented by a
gate, one q strictly inside its cone. This module samples them, enumerates them all where
that is possible, and counts them.
"""

from __future__ import annotations

from math import comb

import numpy as np
from scipy import optimize

from sklearn_convexbn.data._whitening import Whitening

#: "all" arrangements are enumerated up to this many (an upper bound is checked first).
MAX_ARRANGEMENTS = 20_000


def activation_patterns(Z: np.ndarray, gates: np.ndarray) -> np.ndarray:
    """Return the patterns ``Z q >= 0`` (n, P), bool, of gates (k, P)."""
    return Z @ gates >= 0


def random_directions(
    whitening: Whitening, count: int, random_state: np.random.RandomState
) -> np.ndarray:
    """Draw directions q ~ N(0, I) (k, count) for the coordinates of a whitening.

    They are drawn in feature space and mapped through the principal directions
    (``q = [V^T h, t]``, h ~ N(0, I_d), t ~ N(0, 1)), so they do not depend on the signs or
    the rotation that a singular value decomposition happens to return.
    """
    d = whitening.components.shape[0]
    h = random_state.standard_normal((count, d + 1))
    return np.vstack([whitening.components.T @ h[:, :-1].T, h[:, -1]])


def distinct_gates(Z: np.ndarray, gates: np.ndarray) -> np.ndarray:
    """Keep the first gate of each pattern and drop the pattern of a unit that is never active."""
    patterns = activation_patterns(Z, gates)
    packed = np.packbits(patterns, axis=0).T
    _, first = np.unique(packed, axis=0, return_index=True)
    first = np.sort(first)
    return gates[:, first[patterns[:, first].any(axis=0)]]


def arrangement_bound(n: int, k: int) -> int:
    """Return Cover's count of the arrangements of n rows in general position in R^k.

    An upper bound for any n rows: ``2 sum_{j<k} C(n-1, j)`` (Cover, 1965).
    """
    return 2 * sum(comb(n - 1, j) for j in range(min(k, n)))


def enumerate_gates(
    Z: np.ndarray, *, max_arrangements: int | None = MAX_ARRANGEMENTS
) -> np.ndarray:
    """Return one gate in the interior of the cone of every arrangement of the rows of Z.

    Every cone has a facet, and a facet is a cone of the arrangement that the other rows
    leave on one row's hyperplane. Points of all facets, found by the same recursion, moved
    a little to either side, therefore visit every cone. In the plane the cones are read
    off the sorted angles.

    Parameters
    ----------
    Z : ndarray of shape (n, k)
    max_arrangements : int or None
        Refuse when there may be more; None never refuses.

    Returns
    -------
    gates : ndarray of shape (k, P)
        Unit vectors; the pattern that is active on no row is left out.

    Raises
    ------
    ValueError
        If the upper bound on the count exceeds `max_arrangements`.
    """
    rows = _distinct_lines(Z)
    count = arrangement_bound(rows.shape[0], Z.shape[1])
    if max_arrangements is not None and count > max_arrangements:
        raise ValueError(
            f"n_gates='all' would enumerate up to {count} arrangements of {rows.shape[0]} "
            f"distinct rows in {Z.shape[1]} dimensions, more than the bound of "
            f"{max_arrangements}. Keep fewer directions with n_components (1 or 2), use fewer "
            "rows, or sample: n_gates=256."
        )
    cells = _cells(rows)
    return distinct_gates(Z, cells)


def _distinct_lines(Z: np.ndarray, tolerance: float = 1e-12) -> np.ndarray:
    """Return unit normals, one of each set of parallel rows; zero rows are dropped."""
    norms = np.linalg.norm(Z, axis=1)
    rows = Z[norms > tolerance * max(float(norms.max(initial=0.0)), 1e-300)]
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    # Opposite rows share a hyperplane: make the first clearly non-zero entry positive.
    lead = rows[np.arange(rows.shape[0]), (np.abs(rows) > 1e-9).argmax(axis=1)]
    rows = rows * np.where(lead < 0, -1.0, 1.0)[:, None]
    _, first = np.unique(np.round(rows, 10) + 0.0, axis=0, return_index=True)
    return rows[np.sort(first)]


def _cells(rows: np.ndarray) -> np.ndarray:
    """Return points (k, P), at least one in every cell of the arrangement of unit normals."""
    n, k = rows.shape
    if n == 0 or k == 0:
        return np.eye(k)[:, :1]
    if k == 1:
        return np.array([[1.0, -1.0]])
    if k == 2:
        return _cells_in_the_plane(rows)
    sides = []
    for i in range(n):
        basis = np.linalg.svd(rows[i : i + 1])[2][1:]
        others = np.delete(rows, i, axis=0) @ basis.T
        facets = basis.T @ _cells(_distinct_lines(others))
        sides += [_step_off(rows, facets, rows[i], i), _step_off(rows, facets, -rows[i], i)]
    cells = np.hstack(sides)
    patterns = np.packbits(rows @ cells > 0, axis=0).T
    return cells[:, np.sort(np.unique(patterns, axis=0, return_index=True)[1])]


def _cells_in_the_plane(rows: np.ndarray) -> np.ndarray:
    """Return the bisector (2, 2n) of every sector between neighbouring lines through zero."""
    # Cell borders are perpendicular to the normals, on both sides.
    angles = np.sort(np.mod(np.arctan2(rows[:, 1], rows[:, 0]) + np.pi / 2, np.pi))
    borders = np.concatenate([angles, angles + np.pi, angles[:1] + 2 * np.pi])
    middle = 0.5 * (borders[1:] + borders[:-1])
    return np.vstack([np.cos(middle), np.sin(middle)])


def _step_off(rows: np.ndarray, facets: np.ndarray, normal: np.ndarray, i: int) -> np.ndarray:
    """Move facet points (k, F) along `normal`, less far than any other hyperplane is."""
    margin = np.abs(rows @ facets)
    margin[i] = np.inf
    speed = np.abs(rows @ normal)
    speed[i] = 0.0
    with np.errstate(divide="ignore"):
        reach = np.min(margin / np.maximum(speed, 1e-300)[:, None], axis=0)
    moved = facets + 0.5 * np.minimum(reach, 1.0) * normal[:, None]
    return moved / np.linalg.norm(moved, axis=0)


def project_onto_cone(Z: np.ndarray, pattern: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Project c (k,) onto the cone ``{q : (2D - I) Z q >= 0}`` of one arrangement.

    By Moreau's decomposition the projection is ``c + M mu`` with ``M = Z^T (2D - I)`` and mu
    the non-negative least-squares solution of ``M mu = -c``; rows are scaled to unit length,
    which leaves the cone as it is.

    Parameters
    ----------
    Z : ndarray of shape (n, k)
    pattern : ndarray of shape (n,), bool
    c : ndarray of shape (k,)

    Returns
    -------
    q : ndarray of shape (k,)
    """
    size = float(np.linalg.norm(c))
    if size == 0.0:
        return c
    M = (np.where(pattern, 1.0, -1.0)[:, None] * Z).T
    lengths = np.linalg.norm(M, axis=0)
    M = M[:, lengths > 0] / lengths[lengths > 0]
    if M.shape[1] == 0:  # no hyperplane: the cone is the whole space
        return c
    return size * _project_unit_vector(M, c / size)


def _project_unit_vector(M: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Project unit c (k,) onto ``{q : M^T q >= 0}``, the columns of M (k, n) of unit length."""
    try:
        q = c + M @ optimize.nnls(M, -c, maxiter=20 * max(M.shape))[0]
        if np.linalg.norm(q) <= 1.0 + 1e-9 and (M.T @ q).min() >= -1e-7:
            return q
        # SciPy's nnls has been seen to return such a q for degenerate integer rows.
    except RuntimeError:
        pass  # nnls before SciPy 1.15 cycles where the projection onto some cones is zero.
    with np.errstate(invalid="ignore"):  # steps that meet no bound are infinite
        return c + M @ optimize.lsq_linear(M, -c, bounds=(0.0, np.inf), tol=1e-14).x


def cone_norm(Z: np.ndarray, pattern: np.ndarray, c: np.ndarray) -> float:
    """Return ``max <c, q>`` over unit q in the cone of one arrangement (0 if all are negative)."""
    return float(np.linalg.norm(project_onto_cone(Z, pattern, c)))


def largest_in_cones(
    Z: np.ndarray, patterns: np.ndarray, correlations: np.ndarray
) -> tuple[float, np.ndarray]:
    """Return the largest ``max <c_i, q>`` over unit q in cone i, over all i, and its q.

    Cones are tried from the largest ``|c_i|`` down, until no other can hold a larger value.

    Parameters
    ----------
    Z : ndarray of shape (n, k)
    patterns : ndarray of shape (n, P), bool
        Pattern of each cone.
    correlations : ndarray of shape (k, P)
        The c_i.

    Returns
    -------
    largest : float
        At least 0.
    q : ndarray of shape (k,)
        Unit vector; zero where `largest` is.
    """
    largest, best = 0.0, np.zeros(Z.shape[1])
    sizes = np.linalg.norm(correlations, axis=0)
    for i in np.argsort(-sizes, kind="stable"):
        if sizes[i] <= largest:
            break
        q = project_onto_cone(Z, patterns[:, i], correlations[:, i])
        length = float(np.linalg.norm(q))
        if length > largest:
            largest, best = length, q / length
    return largest, best

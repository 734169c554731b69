"""Upper bounds on how fast the output of a two-layer ReLU network can change.

With hidden weights W (d, m) and output weights V (m, C) the Jacobian at a row is ``(W D V)^T``,
D the 0/1 diagonal of the units that are on there. A Lipschitz constant is the largest norm over
the patterns D that occur; the bounds here are over more than those: over all D with entries in
[0, 1].
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product

import numpy as np
from scipy import linalg, optimize

from sklearn_convexbn.fit._network import Network

#: Factor that outweighs the rounding of the norms here.
ROUNDING = 1.0 + 1e-10

#: Hidden units up to which all their patterns are tried.
MAX_TRIED_UNITS = 10

#: Hidden units up to which a semidefinite bound is computed: its matrices are m x m.
MAX_SEMIDEFINITE_UNITS = 1500

#: Steps for the semidefinite bounds; their value is an upper bound after any number of them.
SIGN_STEPS, SCALE_STEPS = 60, 60

#: Parts of the identity with eigenvalues down to this are inverted with ten digits left.
SMALLEST_INVERTED = 1e-5

#: Numbers in the Jacobians, or the sorted units, of a block of rows.
BLOCK_NUMBERS = 2**22


def lipschitz(W: np.ndarray, V: np.ndarray) -> float:
    """Return an upper bound of the Lipschitz constant, the smallest of several.

    Parameters
    ----------
    W : ndarray of shape (d, m)
    V : ndarray of shape (m, C)
    """
    W, V = _units_that_count(W, V)
    m = V.shape[0]
    if m == 0:
        return 0.0
    W = _rotated(W)
    bounds = [_plain(W, V), _product(W, V)]
    if m <= MAX_TRIED_UNITS:
        bounds.append(_all_patterns(W, V))
    elif m <= MAX_SEMIDEFINITE_UNITS:
        one = V.shape[1] == 1
        bounds.append(semidefinite_of_one_output(W * V[:, 0]) if one else semidefinite(W, V))
    return ROUNDING * min(bounds)


def _units_that_count(W: np.ndarray, V: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    counts = W.any(axis=0) & V.any(axis=1)
    return W[:, counts], V[counts]


def _rotated(W: np.ndarray) -> np.ndarray:
    """Return weights (min(d, m), m) of the same lengths and angles."""
    return W if W.shape[0] <= W.shape[1] else np.asarray(np.linalg.qr(W, mode="r"))


def _plain(W: np.ndarray, V: np.ndarray) -> float:
    """Return the sum over units of |w_j| |v_j|."""
    return float(np.linalg.norm(W, axis=0) @ np.linalg.norm(V, axis=1))


def _product(W: np.ndarray, V: np.ndarray) -> float:
    """Return ``(|W V| + |W T^-1| |T V|) / 2``, in spectral norms.

    D is half the identity plus half a diagonal of entries in [-1, 1], which the diagonal T, here
    such that ``w_j / t_j`` and ``t_j v_j`` are of one length, passes through.
    """
    t = np.sqrt(np.linalg.norm(W, axis=0) / np.linalg.norm(V, axis=1))
    scaled = np.linalg.norm(W / t, 2) * np.linalg.norm(V * t[:, None], 2)
    return float(np.linalg.norm(W @ V, 2) + scaled) / 2


def _all_patterns(W: np.ndarray, V: np.ndarray) -> float:
    """Return the largest norm over all 2^m patterns: the constant itself if W has rank m."""
    patterns = np.array(list(product((0.0, 1.0), repeat=V.shape[0])))
    return max(float(norms.max()) for norms in _spectral_norms(W, patterns, V))


def _spectral_norms(W: np.ndarray, D: np.ndarray, V: np.ndarray) -> Iterable[np.ndarray]:
    """Yield the norms of ``W diag(D_i) V`` for the rows D_i (n, m), a block of rows at a time."""
    step = max(1, BLOCK_NUMBERS // max(1, V.size))
    for start in range(0, len(D), step):
        block = D[start : start + step]
        if V.shape[1] == 1:
            yield np.linalg.norm((block * V[:, 0]) @ W.T, axis=1)
        else:
            yield np.linalg.norm(W @ (block[:, :, None] * V), 2, axis=(1, 2))


def semidefinite_of_one_output(M: np.ndarray, n_steps: int = SIGN_STEPS) -> float:
    """Bound ``|M delta|`` over all delta in [0, 1]^m, for M (k, m) with columns ``v_j w_j``.

    With ``delta = (1 + s) / 2`` it is a quadratic form of signs s and one more sign. Its
    semidefinite relaxation is solved by power iterations on factors of low rank [1]_; the
    multipliers they end with are made feasible by a shift or a scale, so that what is returned is
    an upper bound whatever they have reached in `n_steps`.

    References
    ----------
    .. [1] P.-W. Wang, W.-C. Chang, J. Z. Kolter, "The Mixing Method: Low-Rank Coordinate Descent
       for Semidefinite Programming with Diagonal Constraints", 2017, arXiv:1706.00476.
    """
    A = np.hstack([M, M.sum(axis=1, keepdims=True)])
    scale = np.linalg.norm(A)
    if scale == 0.0:
        return 0.0
    A = A / scale
    n = A.shape[1]
    factors = np.random.default_rng(0).normal(size=(n, int(np.sqrt(2 * n)) + 2))
    for _ in range(n_steps):
        factors = A.T @ (A @ factors)
        factors /= np.maximum(np.linalg.norm(factors, axis=1, keepdims=True), 1e-300)
    multipliers = np.linalg.norm(A.T @ (A @ factors), axis=1)
    G = A.T @ A
    shift = max(0.0, _largest_eigenvalue(G - np.diag(multipliers)))
    bound = multipliers.sum() + n * (shift + 1e-15)
    return float(scale * np.sqrt(bound) / 2)


def semidefinite(W: np.ndarray, V: np.ndarray, n_steps: int = SCALE_STEPS) -> float:
    """Bound ``|W D V|`` over all diagonal D with entries in [0, 1], for any number of outputs.

    ``h = D z`` satisfies ``h_j (z_j - h_j) >= 0``. Weighted with any T > 0 and added, these give
    LipSDP [1]_, which for two layers is the square root of the largest eigenvalue of
    ``W T W^T / 2 + W V (I - V^T T^-1 V / 2)^-1 V^T W^T / 4`` wherever the inverse is positive;
    T is improved by `n_steps` of a quasi-Newton method.

    References
    ----------
    .. [1] M. Fazlyab, A. Robey, H. Hassani, M. Morari, G. Pappas, "Efficient and Accurate
       Estimation of Lipschitz Constants for Deep Neural Networks", NeurIPS 2019, arXiv:1906.04893.
    """
    WV, identity = W @ V, np.eye(V.shape[1])
    best = np.inf

    def value(log_t: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal best
        t = np.exp(log_t)
        inner = identity - V.T @ (V / t[:, None]) / 2
        sizes, axes = linalg.eigh(inner)
        if sizes[0] < SMALLEST_INVERTED:  # not positive, or too near to it: no bound
            return np.inf, np.zeros_like(t)
        inverse = (axes / sizes) @ (axes.T @ WV.T)
        matrix = (W * t) @ W.T / 2 + WV @ inverse / 4
        largest, x = linalg.eigh(matrix, subset_by_index=[len(W) - 1, len(W) - 1])
        best = min(best, float(largest[0]))
        slope = t * (W.T @ x[:, 0]) ** 2 / 2 - (V @ (inverse @ x[:, 0])) ** 2 / t / 8
        return float(np.log(largest[0])), slope / largest[0]

    t = np.linalg.norm(V, axis=1) / np.linalg.norm(W, axis=0)
    t *= np.linalg.norm(V / np.sqrt(t)[:, None], 2) ** 2
    optimize.minimize(value, np.log(t), jac=True, method="L-BFGS-B", options={"maxiter": n_steps})
    return float(np.sqrt(best))


def _largest_eigenvalue(A: np.ndarray) -> float:
    last = len(A) - 1
    return float(linalg.eigh(A, eigvals_only=True, subset_by_index=[last, last])[0])


def lipschitz_around(
    H: np.ndarray, W: np.ndarray, V: np.ndarray, radius: float, overall: float
) -> np.ndarray:
    """Return upper bounds (n,) of the Lipschitz constant on the balls around n rows.

    Units that no point of the ball switches are on or off; half of the others is counted as on,
    and the other half, either way, by its length.

    Parameters
    ----------
    H : ndarray of shape (n, m)
        Inputs of the ReLUs at the rows.
    W : ndarray of shape (d, m)
    V : ndarray of shape (m, C)
    radius : float
        Of the balls, which are closed.
    overall : float
        Upper bound for all rows.
    """
    lengths = np.linalg.norm(W, axis=0)
    open_ = np.abs(H) <= radius * lengths
    D = np.where(open_, 0.5, H > 0)
    norms = np.concatenate(list(_spectral_norms(_rotated(W), D, V))) if len(H) else np.zeros(0)
    norms = norms + 0.5 * open_ @ (lengths * np.linalg.norm(V, axis=1))
    return np.minimum(ROUNDING * norms, overall)


def radius_of_decrease(
    H: np.ndarray, W: np.ndarray, g: np.ndarray, margin: np.ndarray, overall: float
) -> np.ndarray:
    """Return how far from each row ``relu(.) @ g`` cannot have fallen by `margin`.

    Units of positive g are convex, and no lower than their tangent at the row. One of negative g
    falls below its tangent only where the ball of radius s reaches its hyperplane, at
    ``|h_j| / |w_j|``, and then by at most ``|g_j| (s |w_j| - |h_j|)``. The slope of this bound, no
    more than `overall` either, is integrated up to `margin`.

    Parameters
    ----------
    H : ndarray of shape (n, m)
        Inputs of the ReLUs at the rows.
    W : ndarray of shape (d, m)
    g : ndarray of shape (m,)
    margin : ndarray of shape (n,)
    overall : float
        Upper bound of the Lipschitz constant of ``relu(.) @ g``.

    Returns
    -------
    radius : ndarray of shape (n,)
        Not negative; infinite where the output cannot fall that far.
    """
    lengths, W = np.linalg.norm(W, axis=0), _rotated(W)
    harmful = (g < 0) & (lengths > 0)
    radius, step = np.zeros(len(H)), max(1, BLOCK_NUMBERS // max(1, len(g)))
    for start in range(0, len(H), step):
        rows = slice(start, start + step)
        h = H[rows]
        tangent = ROUNDING * np.linalg.norm(((h > 0) * g) @ W.T, axis=1)
        reached = np.abs(h[:, harmful]) / lengths[harmful]
        steeper = ROUNDING * np.abs(g[harmful]) * lengths[harmful]
        radius[rows] = _where_spent(tangent, reached, steeper, margin[rows], overall)
    return radius


def _where_spent(
    slope: np.ndarray,
    breaks: np.ndarray,
    steeper: np.ndarray,
    margin: np.ndarray,
    steepest: float,
) -> np.ndarray:
    """Return where the integral of a slope that grows at breaks (n, p) reaches a margin (n,)."""
    n = len(breaks)
    order = np.argsort(breaks, axis=1)
    at = np.hstack([np.zeros((n, 1)), np.take_along_axis(breaks, order, axis=1)])
    growth = np.cumsum(np.hstack([slope[:, None], steeper[order]]), axis=1)
    slopes = np.minimum(growth, steepest)
    spent = np.cumsum(slopes[:, :-1] * np.diff(at, axis=1), axis=1)
    spent = np.hstack([np.zeros((n, 1)), spent])
    last = (spent <= margin[:, None]).sum(axis=1, keepdims=True) - 1
    last = np.maximum(last, 0)
    at, spent, slopes = (np.take_along_axis(a, last, axis=1)[:, 0] for a in (at, spent, slopes))
    left = np.maximum(margin - spent, 0.0)
    with np.errstate(divide="ignore", over="ignore"):
        further = np.where(slopes > 0, left / np.where(slopes > 0, slopes, 1.0), np.inf)
    return np.where(margin > 0, at + further, 0.0)


def rounding_of_output(lengths_of_rows: np.ndarray, network: Network) -> np.ndarray:
    """Return by how much the output of rows of given lengths (n,) may be off through rounding."""
    (W, V), (w0, v0) = network.coefs, network.intercepts
    sizes = np.abs(V).max(axis=1, initial=0.0)
    terms = lengths_of_rows * (np.linalg.norm(W, axis=0) @ sizes) + np.abs(w0) @ sizes
    terms = terms + np.abs(v0).max(initial=0.0)
    return np.finfo(float).eps * (sum(W.shape) + 10) * terms

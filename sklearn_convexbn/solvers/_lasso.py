r"""Refit of one output: a lasso over the activations of given neurons, solved to rounding.

.. math:: \min_{v, b} \sum_i p_i \ell\big((A v)_i + b, y_i\big) + \alpha \sum_j |v_j|

Newton's method on the loss (one step is exact for the squared loss); each quadratic model is
a lasso with a Gram matrix, solved by an active-set method ("feature-sign search", Lee, Battle,
Raina & Ng, NIPS 2006). Activations of neighbouring neurons are nearly collinear, which slows
first-order and coordinate methods down and does not concern this one; warm starts make it a few
solves long. At the end mass moves along null vectors of dependent active columns, at no cost,
until they are linearly independent and so at most as many as rows: Carathéodory steps.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import linalg
from torch import Tensor

from sklearn_convexbn._losses import Loss, optimal_intercept
from sklearn_convexbn._units._activations import Activations

#: Newton steps of one refit, and changes of the active set of one quadratic model.
MAX_NEWTON_STEPS, MAX_CHANGES = 50, 5000

#: Added to the diagonal of a Gram matrix, relative to its mean: where columns are dependent it
#: turns the undetermined solution into a long step along the null vector.
RIDGE = 1e-11

#: Stands for the ridge where a Gram matrix is zero.
TINY = 1e-300

#: Active columns are dependent where a unit vector shrinks to the square root of this.
DEPENDENT = 1e-10


def lasso_refit(
    A: Activations,
    Y: Tensor,
    p: Tensor,
    loss: Loss,
    alpha: float,
    fit_intercept: bool,
    start_weights: Tensor,
    tol: float = 1e-9,
) -> tuple[Tensor, Tensor]:
    """Minimise ``loss.value(A v + b) + alpha |v|_1`` over the output weights v and b.

    Parameters
    ----------
    A : Activations
        Of n rows and m units, float64. Equal or collinear columns are allowed.
    Y : torch.Tensor of shape (n, 1)
    p : torch.Tensor of shape (n,)
        Row weights, summing to one.
    loss : Loss
    alpha : float
        Positive.
    fit_intercept : bool
    start_weights : torch.Tensor of shape (m, 1)
    tol : float, default=1e-9
        Relative duality gap, reached unless rounding errors forbid it.

    Returns
    -------
    weights : torch.Tensor of shape (m, 1)
    b : torch.Tensor of shape (1,)
        Zero without an intercept.
    """

    total = A.shards.total

    def fit(v: Tensor) -> tuple[Tensor, Tensor, float]:
        F = A.fit(v)
        b = torch.zeros_like(F[0])
        if fit_intercept:
            b = optimal_intercept(loss, F, Y, p, shards=A.shards)
        value = float(total(loss.value(F + b, Y, p))) + alpha * float(v.abs().sum())
        return F + b, b, value

    v = start_weights
    if not len(v):
        return v, fit(v)[1]
    F, b, value = fit(v)
    for _ in range(MAX_NEWTON_STEPS):
        G = loss.gradient(F, Y, p)
        slopes = A.correlations(G)
        scale = min(1.0, alpha / max(float(slopes.abs().amax()), 1e-300))
        dual = -float(total(loss.conjugate(scale * G, Y, p)))
        if value - dual <= tol * abs(value):
            break
        H = _hessian(A, loss.curvatures(F, Y, p)[0][:, 0], fit_intercept)
        old = v.cpu().numpy()[:, 0]
        new = quadratic_lasso(H, H @ old - slopes.cpu().numpy()[:, 0], alpha, old)
        newton = torch.as_tensor(new, device=v.device)[:, None]
        for halving in range(30):
            trial = v + (newton - v) * 0.5**halving
            F_new, b_new, new_value = fit(trial)
            if new_value < value:
                break
        else:
            break
        v, F, b, value = trial, F_new, b_new, new_value
    return v, b


def _hessian(A: Activations, h: Tensor, centred: bool) -> np.ndarray:
    """Return ``A^T diag(h) A`` (m, m), with the intercept eliminated if `centred`."""
    H = A.gram(h[:, None])[0]
    if centred:
        mean = A.means(h)
        H = H - mean[:, None] * (mean / A.shards.total(h.sum()).clamp_min(1e-300))
    return H.cpu().numpy()


def quadratic_lasso(H: np.ndarray, c: np.ndarray, alpha: float, start: np.ndarray) -> np.ndarray:
    """Minimise ``v^T H v / 2 - c^T v + alpha |v|_1`` by feature-sign search.

    Parameters
    ----------
    H : ndarray of shape (m, m)
        Positive semi-definite.
    c : ndarray of shape (m,)
    alpha : float
    start : ndarray of shape (m,)

    Returns
    -------
    v : ndarray of shape (m,)
        With exact zeros.
    """
    v, sign = start.copy(), np.sign(start)
    ridge = max(RIDGE * np.trace(H) / max(1, len(start)), TINY)
    barred = np.zeros(len(v), dtype=bool)
    for _ in range(MAX_CHANGES):
        moved = _descend_active(H, c, alpha, v, sign, ridge)
        gradient = H @ v - c
        barred &= not moved  # columns that entered and left without moving anything
        violation = np.where((sign != 0) | barred, 0.0, np.abs(gradient) - alpha)
        # A tenth of the support may enter at once while that leads anywhere.
        most = 1 + (np.count_nonzero(sign) // 10 if moved else 0)
        worst = np.argsort(-violation, kind="stable")[:most]
        worst = worst[violation[worst] > 1e-9 * alpha]
        if not len(worst):
            break
        sign[worst] = -np.sign(gradient[worst])
        barred[worst] = True
    return _independent(H, v)


def _descend_active(
    H: np.ndarray, c: np.ndarray, alpha: float, v: np.ndarray, sign: np.ndarray, ridge: float
) -> bool:
    """Minimise over the active coordinates, in place; say whether anything moved.

    A coordinate that reaches zero on the way leaves, and the way goes on without it.
    """
    moved = False
    while True:
        active = np.flatnonzero(sign)
        if not len(active):
            return moved
        system = H[np.ix_(active, active)]
        system[np.diag_indices(len(active))] += ridge
        factor = linalg.cho_factor(system, overwrite_a=True, check_finite=False)
        target = linalg.cho_solve(factor, c[active] - alpha * sign[active], check_finite=False)
        values, signs = v[active], sign[active]
        moved |= _walk(factor, target, values, signs)
        v[active], sign[active] = values, signs
        if signs.all():
            return True
        # Once more with a new factor: without those that left, the old one loses accuracy.


def _walk(
    factor: tuple[np.ndarray, bool], target: np.ndarray, v: np.ndarray, sign: np.ndarray
) -> bool:
    """Go towards the minimiser, in place, turning where a coordinate reaches zero and leaves.

    Parameters
    ----------
    factor : tuple
        Of the system of all coordinates, from :func:`scipy.linalg.cho_factor`.
    target : ndarray of shape (m,)
        The minimiser with all coordinates. Without those that left, R, it is
        ``target - W_R (W_RR)^-1 target_R``, with W the inverse of the system.
    v, sign : ndarray of shape (m,)

    Returns
    -------
    moved : bool
    """
    of_all, moved = target, False
    left, columns = np.empty(0, dtype=np.intp), np.empty((len(v), 0))
    while len(left) < len(v):
        crossing = target * sign < 0
        if not crossing.any():
            v[:] = target
            return True
        ratios = np.full(len(v), np.inf)
        ratios[crossing] = v[crossing] / (v[crossing] - target[crossing])
        step = ratios.min()
        moved |= step > 0
        v += step * (target - v)
        leaving = np.flatnonzero(ratios <= step)
        v[leaving], sign[leaving] = 0.0, 0.0
        units = np.zeros((len(v), len(leaving)))
        units[leaving, np.arange(len(leaving))] = 1.0
        inverse = linalg.cho_solve(factor, units, check_finite=False)
        left, columns = np.append(left, leaving), np.hstack([columns, inverse])
        target = of_all - columns @ np.linalg.solve(columns[left], of_all[left])
        target[left] = 0.0
    return moved


def _independent(H: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Move an optimal v along null vectors of its active columns until these are independent.

    Neither the fit nor the objective changes: at an optimum all active columns have the same
    correlation up to sign, so a change that leaves the fit leaves ``|v|_1``.
    """
    v = v.copy()
    while True:
        active = np.flatnonzero(v)
        if len(active) < 2:
            return v
        scale = 1.0 / np.sqrt(np.diag(H)[active])
        system = scale[:, None] * H[np.ix_(active, active)] * scale
        pivots = np.diag(linalg.cholesky(system + RIDGE * np.eye(len(active)), check_finite=False))
        if pivots.min() ** 2 > len(active) ** 2 * DEPENDENT:
            return v  # far from dependent: spare the eigenvalue
        smallest, vector = linalg.eigh(system, subset_by_index=[0, 0], check_finite=False)
        if smallest[0] > DEPENDENT:
            return v
        null = scale * vector[:, 0]
        with np.errstate(divide="ignore"):
            ratios = v[active] / null
        first = np.abs(ratios).argmin()
        v[active] -= ratios[first] * null
        v[active[first]] = 0.0

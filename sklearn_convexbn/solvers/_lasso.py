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

from dataclasses import dataclass

import numpy as np
import torch
from scipy import linalg
from torch import Tensor

from sklearn_convexbn.losses._base import Loss
from sklearn_convexbn.program._objective import Objective
from sklearn_convexbn.program.units._activations import Activations
from sklearn_convexbn.solvers._block_descent import descend_units

#: Newton steps of one refit, and changes of the active set of one quadratic model.
MAX_NEWTON_STEPS, MAX_CHANGES = 50, 5000

#: Halvings of a Newton step, and the part by which equal values may differ.
MAX_HALVINGS, ROUNDING = 30, 1e-15

#: Sweeps of block coordinate descent where a Newton step fails; twice as many every time.
FIRST_SWEEPS, MAX_SWEEPS = 8, 1024

#: Added to the diagonal of a Gram matrix, relative to its mean: where columns are dependent it
#: turns the undetermined solution into a long step along the null vector.
RIDGE = 1e-11

#: Excess of a column's correlation over alpha, relative to alpha, with which it enters.
VIOLATION = 1e-10

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
    program = _Program(
        A=A, Y=Y, p=p, loss=loss, alpha=alpha, fit_intercept=fit_intercept, shards=A.shards
    )
    point, sweeps, last_gap = program.at(start_weights), FIRST_SWEEPS, float("inf")
    for _ in range(MAX_NEWTON_STEPS if len(start_weights) else 0):
        slopes, gap = program.slopes_and_gap(point)
        if gap <= tol:
            break
        # At the end values are equal up to rounding while the gap still falls.
        new = _newton_step(program, point, slopes, closer=gap <= 0.5 * last_gap)
        if new is None:
            safe = descend_units(A, program, point.v, point.b, point.F, sweeps=sweeps)
            new = program.at(torch.as_tensor(safe.V[:, 0], device=point.v.device))
            sweeps = min(2 * sweeps, MAX_SWEEPS)
            if not new.value < point.value:
                break
        point, last_gap = new, gap
    return point.v, point.b


@dataclass(frozen=True)
class _Point:
    """Output weights v (m, 1) with the best intercept b (1,), the fit (n, 1), the objective."""

    v: Tensor
    b: Tensor
    F: Tensor
    value: float


@dataclass(frozen=True, eq=False, kw_only=True)
class _Program(Objective[Tensor]):
    """The data of one refit."""

    A: Activations

    def at(self, v: Tensor) -> _Point:
        F = self.A.fit(v)
        b = self.best_intercept(F)
        return _Point(v, b, F + b, self.mean_loss(F + b) + self.alpha * float(v.abs().sum()))

    def slopes_and_gap(self, point: _Point) -> tuple[Tensor, float]:
        """Return the gradient of the loss in v (m, 1), and the relative duality gap."""
        G = self.gradient(point.F)
        slopes = self.A.correlations(G)
        dual = self.dual_value(-G, float(slopes.abs().amax()))
        return slopes, (point.value - dual) / max(abs(point.value), 1e-300)


def _newton_step(
    program: _Program, point: _Point, slopes: Tensor, *, closer: bool
) -> _Point | None:
    """Go towards the solution of the quadratic model until the value falls; None if it does not.

    Where the last step brought the bound `closer`, a full step need only not raise the value.
    """
    weights = program.curvatures(point.F)[0][:, 0]
    H = _hessian(program.A, weights, program.fit_intercept)
    old = point.v.cpu().numpy()[:, 0]
    new = quadratic_lasso(H, H @ old - slopes.cpu().numpy()[:, 0], program.alpha, old)
    newton = torch.as_tensor(new, device=point.v.device)[:, None]
    step = newton - point.v
    for halving in range(MAX_HALVINGS):
        # In full the step's exact zeros stay.
        trial = program.at(point.v + step * 0.5**halving if halving else newton)
        bound = point.value * (1.0 + ROUNDING) if closer and not halving else point.value
        if trial.value < bound:
            return trial
    return None


def _hessian(A: Activations, h: Tensor, centred: bool) -> np.ndarray:
    """Return ``A^T diag(h) A`` (m, m), with the intercept eliminated if `centred`."""
    if centred:  # the columns, not their products, which would cancel
        A = A.centred(A.means(h) / A.shards.total(h.sum()).clamp_min(1e-300))
    return A.gram(h[:, None])[0].cpu().numpy()


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
        worst = worst[violation[worst] > VIOLATION * alpha]
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
        block = H[np.ix_(active, active)]
        system = block.copy()
        system[np.diag_indices(len(active))] += ridge
        factor = linalg.cho_factor(system, overwrite_a=True, check_finite=False)
        right = c[active] - alpha * sign[active]
        target = linalg.cho_solve(factor, right, check_finite=False)
        # The ridge is there for the factor, not for the solution.
        target += linalg.cho_solve(factor, right - block @ target, check_finite=False)
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
        diagonal = np.diag(H)[active]
        scale = 1.0 / np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
        system = scale[:, None] * H[np.ix_(active, active)] * scale
        if _far_from_dependent(system):
            return v
        smallest, vector = linalg.eigh(system, subset_by_index=[0, 0], check_finite=False)
        if smallest[0] > DEPENDENT:
            return v
        null = scale * vector[:, 0]
        with np.errstate(divide="ignore"):
            ratios = v[active] / null
        first = np.abs(ratios).argmin()
        v[active] -= ratios[first] * null
        v[active[first]] = 0.0


def _far_from_dependent(system: np.ndarray) -> bool:
    """Say whether pivots show that no eigenvalue is near zero, which spares computing it."""
    try:
        ridge = RIDGE * np.eye(len(system))
        pivots = np.diag(linalg.cholesky(system + ridge, check_finite=False))
    except linalg.LinAlgError:  # not even positive definite, by rounding
        return False
    return bool(pivots.min() ** 2 > len(system) ** 2 * DEPENDENT)

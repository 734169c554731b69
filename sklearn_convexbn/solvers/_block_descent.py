r"""Block coordinate descent for group lassos: slow but safe, for where the fast methods stop.

.. math:: \min_{V, b} L\Big(\sum_g A_g V_g + 1 b^T\Big) + \alpha \sum_g |V_g|_2

Newton's methods on the scales of the groups (:mod:`_group_newton`, :mod:`_multi_output_refit`) and
on the active set (:mod:`_lasso`) can stop short: far from the solution where rows are saturated and
their curvature underflows, and near it where dependent groups make the Hessian singular. Here one
group at a time moves, together with the intercept, to the minimiser of its own quadratic model.
Where that does not lower the objective the model is damped, up to a bound on the objective, whose
minimiser must. So every step lowers the objective, and the fast method goes on from there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from scipy import optimize

from sklearn_convexbn.program._objective import Objective
from sklearn_convexbn.support._arrays import as_numpy

if TYPE_CHECKING:
    from torch import Tensor

    from sklearn_convexbn.program.units._activations import Activations

#: Damping of a group's model, as parts of the diagonal of the bound, and the step lengths tried.
DAMPINGS, LENGTHS = (0.0, 1e-10, 1e-8, 1e-6, 1e-4, 1e-2, 1.0), (1.0, 0.25)

#: Steps of which an entry, or a change of the fit, is larger are not tried.
LONGEST = 1e100

#: Smallest eigenvalue of a group's model, relative to the largest.
SMALLEST_CURVATURE = 1e-14

#: Sweeps that lower the objective by less than this part of it are the last of a call.
LEAST_DECREASE = 1e-14


@dataclass(frozen=True, eq=False, kw_only=True)
class Groups(Objective[np.ndarray]):
    """The program: A_g (n, d) by `columns`, and A_g^T G (m, d, C) of all groups by `slopes`."""

    columns: Callable[[int], np.ndarray]
    slopes: Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class BlockPoint:
    """Blocks V (m, d, C), the intercept b (C,), the fit F (n, C) with it, and the objective."""

    V: np.ndarray
    b: np.ndarray
    F: np.ndarray
    value: float


def descend_units(
    A: Activations,
    objective: Objective,
    V: Tensor,
    b: Tensor,
    F: Tensor,
    *,
    sweeps: int,
) -> BlockPoint:
    """Do the same for the output weights V (m, C) of units, a group each with all its cells."""
    import torch

    def columns(unit: int) -> np.ndarray:
        of_unit = A.columns(torch.as_tensor([unit], device=V.device))
        return as_numpy(torch.cat([block for _, block in of_unit.blocks()]))

    def slopes(G: np.ndarray) -> np.ndarray:
        return as_numpy(A.correlations(torch.as_tensor(G, device=V.device))).reshape(shape)

    shape = (len(V) // A.cells, A.cells, V.shape[1])
    groups = Groups(columns=columns, slopes=slopes, **objective.converted(as_numpy))
    return descend(groups, as_numpy(V).reshape(shape), as_numpy(b), as_numpy(F), sweeps)


def descend(groups: Groups, V: np.ndarray, b: np.ndarray, F: np.ndarray, sweeps: int) -> BlockPoint:
    """Sweep over the groups that are active or violate the dual constraint; never goes up.

    Parameters
    ----------
    groups : Groups
    V : ndarray of shape (m, d, C)
    b : ndarray of shape (C,)
    F : ndarray of shape (n, C)
        Fit of V and b.
    sweeps : int
        Fewer where nothing is gained.
    """
    mass = groups.alpha * float(np.linalg.norm(V, axis=(1, 2)).sum())
    point = BlockPoint(V.copy(), b, F, groups.mean_loss(F) + mass)
    for _ in range(sweeps):
        before = point.value
        slopes = groups.slopes(groups.gradient(point.F))
        norms = np.linalg.norm(slopes, axis=(1, 2))
        for g in np.flatnonzero((norms > groups.alpha) | point.V.any(axis=(1, 2))):
            point = _group_step(groups, int(g), point)
        if groups.fit_intercept:
            shift = groups.best_intercept(point.F)
            F = point.F + shift
            mass = groups.alpha * float(np.linalg.norm(point.V, axis=(1, 2)).sum())
            point = replace(point, b=point.b + shift, F=F, value=groups.mean_loss(F) + mass)
        if not point.value < before * (1.0 - LEAST_DECREASE):
            break
    return point


def _group_step(groups: Groups, g: int, point: BlockPoint) -> BlockPoint:
    """Move one group and the intercept to where their model is smallest, in place for V."""
    A, V, total = groups.columns(g), point.V[g], groups.shards.total
    X = np.hstack([A, np.ones((len(A), 1))]) if groups.fit_intercept else A
    gradient = total(X.T @ groups.gradient(point.F))
    D, U = groups.curvatures(point.F)
    H = total(_hessian(X, D, U))
    sizes = total(groups.p @ (X * X))
    # Half of the largest curvature everywhere, in every direction of the group; of a loss without
    # one, of that here.
    curvature = groups.loss.curvature
    if not np.isfinite(curvature):
        curvature = groups.shards.maximum(float((D / groups.p[:, None]).max()))
    bound = np.repeat(curvature * X.shape[1] * sizes, V.shape[1])
    here = groups.mean_loss(point.F) + groups.alpha * float(np.linalg.norm(V))
    for damping in DAMPINGS:
        # Where curvature has underflowed undamped steps may leave the range of floats.
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            dV, db = _model_step(H + np.diag(damping * bound), gradient, V, groups.alpha)
            dF = A @ dV + db
        if not float(abs(dF).max()) + float(abs(dV).max()) < LONGEST:
            continue
        for length in LENGTHS:
            F, new = point.F + length * dF, V + length * dV
            change = groups.mean_loss(F) + groups.alpha * float(np.linalg.norm(new)) - here
            if change < 0.0:
                point.V[g] = new
                return replace(point, b=point.b + length * db, F=F, value=point.value + change)
    return point


def _hessian(X: np.ndarray, D: np.ndarray, U: np.ndarray) -> np.ndarray:
    """Return the Hessian (e C, e C) of the loss in weights (e, C) of the columns X (n, e).

    D (n, C) and U (R, n, C) are as in :meth:`Loss.curvatures`.
    """
    e, C = X.shape[1], D.shape[1]
    diagonal = np.zeros((e, C, e, C))
    for c in range(C):
        diagonal[:, c, :, c] = X.T @ (D[:, c : c + 1] * X)
    H = diagonal.reshape(e * C, e * C)
    for u in U:
        coupled = (X[:, :, None] * u[:, None, :]).reshape(len(X), e * C)
        H -= coupled.T @ coupled
    return H


def _model_step(
    H: np.ndarray, gradient: np.ndarray, V: np.ndarray, alpha: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the step (d, C) to the minimiser of a group's model, and that of the intercept."""
    size = V.size
    Haa, Hab, Hbb = H[:size, :size], H[:size, size:], H[size:, size:]
    inverse = _pseudoinverse(Hbb)
    ga, gb = gradient[: len(V)].reshape(-1), gradient[len(V) :].reshape(-1)
    reduced = Haa - Hab @ inverse @ Hab.T
    r = reduced @ V.reshape(-1) - (ga - Hab @ (inverse @ gb))
    dV = shrunken(reduced, r, alpha) - V.reshape(-1)
    db = -inverse @ (gb + Hab.T @ dV)
    return dV.reshape(V.shape), db if len(db) else np.zeros(V.shape[1])


def _pseudoinverse(H: np.ndarray) -> np.ndarray:
    """Return the pseudoinverse of a small positive semi-definite matrix, scaled to a unit diagonal.

    One class may weigh next to nothing beside the others; softmax has one free direction.
    """
    diagonal = np.diag(H)
    d = np.where(diagonal > 0, 1.0 / np.sqrt(np.where(diagonal > 0, diagonal, 1.0)), 0.0)
    return d[:, None] * np.linalg.pinv(H * d[:, None] * d, rcond=1e-12, hermitian=True) * d


def shrunken(H: np.ndarray, r: np.ndarray, alpha: float) -> np.ndarray:
    """Minimise ``v^T H v / 2 - r^T v + alpha |v|`` for a small positive semi-definite H (d, d).

    With eigenvalues e and ``rho = Q^T r``, ``v = Q (t rho / (t e + alpha))`` where t = |v| is the
    root of ``|rho / (t e + alpha)| = 1``.
    """
    size = float(np.linalg.norm(r))
    if not size > alpha:
        return np.zeros_like(r)
    e, Q = np.linalg.eigh(H)
    e = e.clip(min=max(SMALLEST_CURVATURE * e[-1], 1e-300))
    rho = Q.T @ r

    def excess(t: float) -> float:
        return float(np.linalg.norm(rho / (t * e + alpha))) - 1.0

    low, high = 0.999 * (size - alpha) / e[-1], 1.001 * (size - alpha) / e[0]
    if not (high < np.inf and excess(low) > 0.0 > excess(high)):
        return np.full_like(r, np.nan)  # beyond the range of floats
    t = optimize.brentq(excess, low, high, xtol=1e-300, rtol=1e-14)
    return Q @ (rho * t / (t * e + alpha))

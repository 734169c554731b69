r"""A Newton method on the scales of the groups, for group lassos with one output.

.. math:: \min_{S, b} \sum_i p_i \ell(F_i, y_i) + \alpha \sum_g |S_g|_2, \qquad
          F = \sum_g \mathrm{diag}(M_g) Z S_g + b,

is the gated program, M the 0/1 patterns of the gates. With
:math:`|S_g| = \min_{\eta_g \ge 0} (|S_g|^2 / \eta_g + \eta_g) / 2`,

.. math:: \phi(\eta) = \min_{S, b} \sum_i p_i \ell(F_i, y_i)
          + \frac{\alpha}{2} \sum_g (|S_g|^2 / \eta_g + \eta_g)

is a smooth convex function of one number a group. Its inner problem is a ridge regression,
solved by :math:`S_g = \eta_g w_g / \alpha`, :math:`w_g = Z^T \mathrm{diag}(M_g) \lambda`,
:math:`\lambda = -p \ell'(F)`, and

.. math:: \partial_g \phi = (\alpha - |w_g|^2 / \alpha) / 2, \qquad
          \partial_g \partial_h \phi = V_g^T C V_h / \alpha^2, \quad
          V_g = \mathrm{diag}(M_g) Z w_g,

with :math:`C = (W^{-1} + A\,\mathrm{diag}(\eta) A^T / \alpha)^{-1}`, projected against the
intercept, where A stacks the active columns and :math:`W = p \ell''`. One round is one Newton
step on eta over the active groups and the worst violators; the quadratic model with eta >= 0
decides which groups enter and leave.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sklearn_convexbn.solvers._block_descent import Groups, descend
from sklearn_convexbn.solvers._group_ridge import Factor, Program, State, factorise, solve_ridge
from sklearn_convexbn.solvers._scale_newton import (
    EQUAL,
    SMALLEST_SCALE,
    Attempt,
    Method,
    attempts_at,
    numbers,
    scale_step,
)
from sklearn_convexbn.support._arrays import Array, array_namespace, as_numpy, cast, like
from sklearn_convexbn.support._linear_algebra import index_array, largest_entries, row_norms


@dataclass(frozen=True)
class GroupSolution:
    """One round: the groups that are active, their S, b and the relative duality gap.

    `Lambda` (n, 1) is minus the gradient of the loss and `largest` the largest
    ``|Z^T diag(M_g) Lambda|`` over all groups. `stalled` says that further rounds would not
    improve it: rounding level.
    """

    active: Array
    S: Array
    b: float
    gap: float
    Lambda: Array
    largest: float
    stalled: bool = False


def group_newton(
    Z: Array,
    M: Array,
    *,
    start: tuple[Array, Array, float] | None = None,
    tol: float = 1e-9,
    **data: Any,
) -> Iterator[GroupSolution]:
    """Yield better and better solutions until one has a relative duality gap of at most `tol`.

    Parameters
    ----------
    Z : numpy.ndarray or torch.Tensor of shape (n, k), float64
        The arrays that follow are of the same kind and, for tensors, on the same device.
    M : array of shape (n, P), float64 or float32
        One multiplier of the rows a group: 0/1 patterns, or any real numbers.
    start : tuple of (groups, S, b), optional
        Distinct group indices (m,), their S (m, k) and b to start from.
    tol : float, default=1e-9
    **data
        Of the :class:`~sklearn_convexbn.program._objective.Objective`.

    Yields
    ------
    GroupSolution
        The first one is the start, or the constant model. Where Newton steps lead no further block
        coordinate descent goes on, and they from there. The last one meets `tol`, or it repeats
        the one before it and is `stalled`: rounding hides what there is to gain.
    """
    program = Program(Z, M, single=True, **data)
    method = _GroupNewton(program, tol, n_slow=5, n_creeping=10)
    for state, gap, stalled in method.rounds(_initial_state(program, start)):
        Lambda, largest = -method.gradient, method.largest
        yield GroupSolution(state.active, state.S, state.b, gap, Lambda, largest, stalled)


class _GroupNewton(Method[State]):
    """Rounds on one program; `gradient` (n, 1) and `largest` are of the point that was judged."""

    def __init__(self, program: Program, tol: float, **patience: int) -> None:
        super().__init__(program, tol, **patience)
        self.program, self.last_gap = program, math.inf

    def values(self, point: State) -> tuple[float, float]:
        program, self.gradient = self.program, self.program.gradient(point.F)
        self.w, self.norms = program.all_correlations(-self.gradient, point.active)
        self.largest = float(self.norms.max()) if len(self.norms) else 0.0
        primal = program.value(point.F, point.S)
        return primal, program.dual_value(-self.gradient, self.largest)

    def step(self, point: State, gap: float) -> State | None:
        program, last_gap, self.last_gap = self.program, self.last_gap, gap
        # Newton's method gains more than this near the end, unless factors are too coarse.
        if program.single and (gap <= 1e-6 or 1e-3 > gap > 0.1 * last_gap):
            point = _in_double(program, point)
        program.accuracy = min(max(1e-4 * gap, 1e-11), 1e-5)
        return _newton_round(program, point, self.w, self.norms)

    def safe_step(self, point: State, sweeps: int) -> State | None:
        return _safe_round(self.program, point, sweeps)


def _initial_state(program: Program, start: tuple[Array, Array, float] | None) -> State:
    """Return the constant model, or the ridge solution with eta_g = |S_g| of a better start."""
    F = 0.0 * program.Y
    F = F + program.best_intercept(F)
    none = index_array([], F)
    state = solve_ridge(program, none, F[:0, 0], F, float("inf"))
    if start is None or len(start[0]) == 0:
        return state
    order = start[0].argsort()
    groups, S = start[0][order], start[1][order]
    eta = row_norms(S)
    keep = eta > 0
    F = program.fit(program.columns(groups), S) + start[2]
    warm = solve_ridge(program, groups[keep], eta[keep], F, state.phi)
    return warm if warm.phi < state.phi else state


# -------------------------------------------------------------------------- Newton step in eta


def _newton_round(program: Program, state: State, w: Array, norms: Array) -> State | None:
    """Take one Newton step on eta, or where none decreases phi another; None when nothing does."""
    new = _newton_step(program, state, w, norms)
    if new is None:
        state, exact = _solved_again(program, state)
        w, norms = program.all_correlations(-program.gradient(state.F), state.active)
        new = _newton_step(program, state, w, norms) or _reweighted_round(program, state, norms)
        new = new or exact
    return new


def _solved_again(program: Program, state: State) -> tuple[State, State | None]:
    """Solve the ridge problem of a state to all digits; also return it if that has lowered phi.

    Steps fail where S was not accurate enough for the gradient in eta.
    """
    state, program.accuracy = _in_double(program, state), 1e-13
    exact = solve_ridge(program, state.active, state.eta, state.F, -math.inf)
    if not exact.phi <= state.phi:
        return state, None
    return exact, exact if exact.phi < state.phi * (1.0 - EQUAL) else None


def _safe_round(program: Program, state: State, sweeps: int) -> State | None:
    """Lower the objective by block coordinate descent; None where it cannot."""
    Z, M = as_numpy(program.Z), as_numpy(program.M)

    def columns(group: int) -> np.ndarray:
        return M[:, group, None] * Z

    def slopes(G: np.ndarray) -> np.ndarray:
        return ((G * Z).T @ M).T[:, :, None]

    V = np.zeros((M.shape[1], Z.shape[1], 1))
    V[as_numpy(state.active)] = as_numpy(state.S)[:, :, None]
    groups = Groups(columns=columns, slopes=slopes, **program.converted(as_numpy))
    point = descend(groups, V, np.array([state.b]), as_numpy(state.F), sweeps)
    active = np.flatnonzero(point.V.any(axis=(1, 2)))
    if not point.value < program.value(state.F, state.S) or len(active) == 0:
        return None
    S, F = like(point.V[active, :, 0], program.Z), like(point.F, program.Z)
    index, eta = index_array(active, program.Z), row_norms(S)
    factor = factorise(program, index, program.columns(index), eta, program.weights(F))
    return State(index, eta, S, float(point.b[0]), F, point.value, factor)


def _in_double(program: Program, state: State) -> State:
    """Give up factors in float32, from this state's on."""
    program.single = False
    M, weights = program.columns(state.active), program.weights(state.F)
    return replace(state, factor=factorise(program, state.active, M, state.eta, weights))


def _newton_step(program: Program, state: State, w: Array, norms: Array) -> State | None:
    """Take a Newton step on eta with backtracking on phi; None when no step decreases it."""
    attempts = attempts_at(program.alpha, float(norms.max()))
    if program.single:  # a step that fails may fail by rounding
        attempts = [Attempt(attempts[0].level, True, 2)]
    target = state.phi + 1e-13 * abs(state.phi)

    def working_set(level: float) -> tuple[Array, Array]:
        return _working_set(state, norms, level)

    def hessian(groups: Array) -> Array:
        return _eta_hessian(program, state.factor, program.M[:, groups], w[groups])

    def solve(groups: Array, eta: Array) -> State:
        keep = eta > SMALLEST_SCALE * eta.max()
        return solve_ridge(program, groups[keep], eta[keep], state.F, target)

    return scale_step(attempts, norms, program.alpha, target, working_set, hessian, solve)


def _reweighted_round(program: Program, state: State, norms: Array) -> State | None:
    """Set eta_g = |S_g| and let the worst violators in a little; None where nothing decreases.

    For the active groups this is alternating minimisation, which cannot fail in exact arithmetic
    and does not need the Hessian, which is nearly singular where Newton's method fails.
    """
    eta = 0.0 * norms
    eta[state.active] = state.eta * norms[state.active] / program.alpha
    inactive = eta == 0
    violation = (inactive * (norms / program.alpha - 1.0)).clip(0.0)
    scale = float(eta.mean()) or program.alpha
    for most in (16, 1):
        worst = largest_entries(violation, most)
        for exponent in range(8):
            trial = 1.0 * eta
            trial[worst] += scale * 10.0**-exponent * violation[worst]
            groups = numbers(trial > SMALLEST_SCALE * trial.max())
            new = solve_ridge(program, groups, trial[groups], state.F, state.phi)
            if new.phi < state.phi * (1.0 - 1e-12):
                return new
    return None


def _working_set(state: State, norms: Array, level: float) -> tuple[Array, Array]:
    """Return the active groups and the worst violators (as many, at least 16), and their eta."""
    eta = 0.0 * norms
    eta[state.active] = state.eta
    score = ((norms > level) & (eta == 0)) * norms
    worst = largest_entries(score, max(16, len(state.active)))
    chosen = eta > 0
    chosen[worst[score[worst] > 0]] = True
    groups = numbers(chosen)
    return groups, eta[groups]


def _eta_hessian(program: Program, factor: Factor, M: Array, w: Array) -> Array:
    """Return ``V^T C V / alpha^2`` with the intercept eliminated."""
    V = cast(M, factor.root.dtype) * cast(program.Z @ w.T, factor.root.dtype)
    if program.fit_intercept:
        xp = array_namespace(V)
        full = factor.quadratic(xp.concatenate([V, xp.ones_like(V[:, :1])], 1))
        H, edge, corner = full[:-1, :-1], full[:-1, -1:], full[-1, -1]
        H = H - edge * (edge.T / corner) if float(corner) > 0 else H
    else:
        H = factor.quadratic(V)
    return cast(H, w.dtype) / program.alpha**2

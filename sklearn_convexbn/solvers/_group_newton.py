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

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sklearn_convexbn._losses import Loss
from sklearn_convexbn.solvers._group_ridge import (
    Factor,
    Program,
    State,
    safe_cholesky,
    solve_ridge,
)


@dataclass(frozen=True)
class GroupSolution:
    """One round: the groups that are active, their S, b and the relative duality gap.

    `Lambda` (n, 1) is minus the gradient of the loss and `largest` the largest
    ``|Z^T diag(M_g) Lambda|`` over all groups. `stalled` says that further rounds would not
    improve it: rounding level.
    """

    active: Tensor
    S: Tensor
    b: float
    gap: float
    Lambda: Tensor
    largest: float
    stalled: bool = False


def group_newton(
    Z: Tensor,
    M: Tensor,
    Y: Tensor,
    p: Tensor,
    loss: Loss,
    alpha: float,
    fit_intercept: bool,
    start: tuple[Tensor, Tensor, float] | None = None,
    tol: float = 1e-9,
) -> Iterator[GroupSolution]:
    """Yield better and better solutions until one has a relative duality gap of at most `tol`.

    Parameters
    ----------
    Z : torch.Tensor of shape (n, k), float64
    M : torch.Tensor of shape (n, P)
        One multiplier of the rows a group: 0/1 patterns, or any real numbers.
    Y : torch.Tensor of shape (n, 1)
    p : torch.Tensor of shape (n,)
        Row weights, summing to one.
    loss : Loss
    alpha : float
        Positive.
    fit_intercept : bool
    start : tuple of (groups, S, b), optional
        Distinct group indices (m,), their S (m, k) and b to start from.
    tol : float, default=1e-9

    Yields
    ------
    GroupSolution
        The first one is the start, or the constant model. The last one meets `tol`, or it repeats
        the one before it and is `stalled`.
    """
    program = Program(Z, M.to(Z), Y, p, loss, float(alpha), fit_intercept)
    floor = 1e-12 * float(loss.value(torch.zeros_like(Y), Y, p))  # data that are fitted exactly
    state, best_dual, slow = _initial_state(program, start), -float("inf"), 0
    while True:
        gradient = program.gradient(state.F)
        w = program.correlations(-gradient, program.M)
        norms = w.norm(dim=1)
        largest = float(norms.amax()) if len(norms) else 0.0
        scaled = gradient * min(1.0, alpha / largest if largest > 0 else 1.0)
        best_dual = max(best_dual, -float(loss.conjugate(scaled, Y, p)))
        primal = float(loss.value(state.F, Y, p) + alpha * state.S.norm(dim=1).sum())
        gap = max(primal - best_dual, 0.0) / max(primal, floor, 1e-300)
        solution = GroupSolution(state.active, state.S, state.b, gap, -gradient, largest)
        # Before the next round is computed: the caller may need no better one.
        yield solution
        if gap <= tol:
            return
        new = _newton_round(program, state, w, norms)
        slow = slow + 1 if new and new.phi >= state.phi * (1.0 - 1e-3 * tol) else 0
        if new is None or slow > 5:
            yield replace(solution, stalled=True)
            return
        state = new


def _initial_state(program: Program, start: tuple[Tensor, Tensor, float] | None) -> State:
    """Return the constant model, or the ridge solution with eta_g = |S_g| of a better start."""
    F = torch.zeros_like(program.Y)
    F = F + program.best_shift(F)
    none = torch.zeros(0, dtype=torch.long, device=F.device)
    state = solve_ridge(program, none, F.new_zeros(0), F, float("inf"))
    if start is None or len(start[0]) == 0:
        return state
    groups, order = start[0].sort()
    S = start[1].to(F)[order]
    eta = S.norm(dim=1)
    keep = eta > 0
    F = program.fit(program.M[:, groups], S) + start[2]
    warm = solve_ridge(program, groups[keep], eta[keep], F, state.phi)
    return warm if warm.phi < state.phi else state


# -------------------------------------------------------------------------- Newton step in eta


def _newton_round(program: Program, state: State, w: Tensor, norms: Tensor) -> State | None:
    """Take one Newton step on eta with backtracking on phi; None when no step decreases it.

    Far from the solution the step aims at the solution for a larger alpha, `level`, so that
    max |w_g| falls by at most the factor 0.3: asking for more overshoots eta by orders of
    magnitude and makes the ridge systems singular to working precision.
    """
    alpha = program.alpha
    level = max(alpha, 0.3 * float(norms.amax()))
    attempts = [(level, True, 3), (level, False, 6)]
    if level > alpha:
        attempts.append((alpha, False, 12))
    target = state.phi + 1e-13 * abs(state.phi)
    for level, secular, halvings in attempts:
        groups, eta = _working_set(state, norms, level)
        if len(groups) == 0:
            continue
        H = _eta_hessian(program, state.factor, program.M[:, groups], w[groups])
        slope = _eta_slopes(norms[groups], level, alpha, secular)
        full = _nonnegative_quadratic(H, slope - H @ eta, (eta > 0) | (slope < 0))
        for halving in range(halvings):
            trial = eta + (full - eta) * 0.5**halving
            keep = trial > 1e-13 * trial.amax()
            new = solve_ridge(program, groups[keep], trial[keep], state.F, target)
            if new.phi <= target:
                return new
    return _reweighted_round(program, state, norms)


def _reweighted_round(program: Program, state: State, norms: Tensor) -> State | None:
    """Set eta_g = |S_g| and let the worst violators in a little; None where nothing decreases.

    For the active groups this is alternating minimisation, which cannot fail in exact arithmetic
    and does not need the Hessian, which is nearly singular where Newton's method fails.
    """
    eta = torch.zeros_like(norms)
    eta[state.active] = state.eta * norms[state.active] / program.alpha
    inactive = eta == 0
    violation = torch.where(inactive, norms / program.alpha - 1.0, 0.0).clamp_min(0.0)
    scale = float(eta.mean()) or program.alpha
    for most in (16, 1):
        worst = violation.topk(min(len(norms), most)).indices
        for exponent in range(8):
            trial = eta.clone()
            trial[worst] += scale * 10.0**-exponent * violation[worst]
            groups = (trial > 1e-13 * trial.amax()).nonzero()[:, 0]
            new = solve_ridge(program, groups, trial[groups], state.F, state.phi)
            if new.phi < state.phi * (1.0 - 1e-12):
                return new
    return None


def _working_set(state: State, norms: Tensor, level: float) -> tuple[Tensor, Tensor]:
    """Return the active groups and the worst violators (as many, at least 16), and their eta."""
    eta = torch.zeros_like(norms)
    eta[state.active] = state.eta
    score = torch.where((norms > level) & (eta == 0), norms, torch.zeros_like(norms))
    worst = score.topk(min(len(norms), max(16, len(state.active)))).indices
    chosen = eta > 0
    chosen[worst[score[worst] > 0]] = True
    groups = chosen.nonzero()[:, 0]
    return groups, eta[groups]


def _eta_hessian(program: Program, factor: Factor, M: Tensor, w: Tensor) -> Tensor:
    """Return ``V^T C V / alpha^2`` with the intercept eliminated, very slightly regularised."""
    V = M * (program.Z @ w.T)
    if program.fit_intercept:
        full = factor.quadratic(torch.cat([V, torch.ones_like(program.Y)], dim=1))
        H, edge, corner = full[:-1, :-1], full[:-1, -1:], full[-1, -1]
        H = H - edge * (edge.T / corner) if float(corner) > 0 else H
    else:
        H = factor.quadratic(V)
    H = H / program.alpha**2
    # Duplicate or dependent groups make H singular; the gradient is consistent there, so a
    # relative 1e-9 only selects a minimiser.
    diagonal = H.diagonal()
    diagonal.copy_(diagonal.clamp_min(0.0) * (1 + 1e-9) + 1e-14 * diagonal.amax())
    return H


def _eta_slopes(norms: Tensor, level: float, alpha: float, secular: bool) -> Tensor:
    """Return dphi/deta for the condition |w_g| = level on the support, or its secular version.

    |w_g| behaves like 1 / (c + eta_g). Newton's method on 1/|w_g| = 1/level is exact for that
    model where Newton on |w_g|^2 = level^2 only gains a factor 1.5 a step; it has the same
    matrix and only another right-hand side.
    """
    if secular:
        return norms.square() * (1.0 - norms / level) / alpha
    return 0.5 * (level**2 - norms.square()) / alpha


def _nonnegative_quadratic(H: Tensor, q: Tensor, free: Tensor) -> Tensor:
    """Minimise ``x^T H x / 2 + q^T x`` over x >= 0 by block principal pivoting (H > 0).

    All infeasible coordinates change sides at once; when that stops making progress only the
    last one does, which terminates. The cap is a safeguard: the caller checks for descent.
    """
    fewest, patience = len(q) + 1, 5
    tolerance = 1e-12 * float(q.abs().amax())
    x = torch.zeros_like(q)
    for _ in range(200):
        x = torch.zeros_like(q)
        index = free.nonzero()[:, 0]
        if len(index):
            chol = safe_cholesky(H[index][:, index])
            x[index] = -torch.cholesky_solve(q[index].unsqueeze(1), chol)[:, 0]
        bad = torch.where(free, x < 0, H @ x + q < -tolerance)
        count = int(bad.sum())
        if count == 0:
            break
        if count < fewest:
            fewest, patience = count, 5
        elif patience > 0:
            patience -= 1
        else:
            last = bad.nonzero()[-1]
            bad = torch.zeros_like(bad)
            bad[last] = True
        free = free ^ bad
    return x.clamp_min(0.0)

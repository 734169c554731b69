r"""A Newton method on the scales of the groups, for group lassos with one output.

.. math:: \min_{S, b} \sum_i p_i \ell(F_i, y_i) + \alpha \sum_g |S_g|_2, \qquad
          F = \sum_g \mathrm{diag}(M_g) Z S_g + b,

is the gated program (M: the 0/1 patterns of the gates) and, with Z = 1 and M the activations
of given neurons, the refit of their output weights (a lasso). With
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
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sklearn_convexbn._losses import Loss

#: Above this many rows only the active columns are factorised.
MAX_ROW_SIDE = 8000


@dataclass(frozen=True)
class GroupSolution:
    """One round: the groups that are active, their S, b and the relative duality gap.

    `stalled` says that further rounds would not improve it: rounding level.
    """

    active: Tensor
    S: Tensor
    b: float
    gap: float
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
        The first one is the start, or the constant model. The last one meets `tol` or is
        `stalled`.
    """
    program = _Program(Z, M.to(Z), Y, p, loss, float(alpha), fit_intercept)
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
        new = _newton_round(program, state, w, norms) if gap > tol else None
        slow = slow + 1 if new and new.phi >= state.phi * (1.0 - 1e-3 * tol) else 0
        stalled = gap > tol and (new is None or slow > 5)
        yield GroupSolution(state.active, state.S, state.b, gap, stalled)
        if new is None or stalled:
            return
        state = new


def group_lasso_refit(
    A: Tensor,
    Y: Tensor,
    p: Tensor,
    loss: Loss,
    alpha: float,
    fit_intercept: bool,
    start_weights: Tensor | None = None,
    tol: float = 1e-9,
) -> tuple[Tensor, float]:
    """Minimise ``loss.value(A v + b) + alpha |v|_1`` over the output weights v and b.

    Parameters
    ----------
    A : torch.Tensor of shape (n, m), float64
        Activations. Equal or nearly collinear columns are allowed.
    Y : torch.Tensor of shape (n, 1)
    p : torch.Tensor of shape (n,)
        Row weights, summing to one.
    loss : Loss
    alpha : float
        Positive.
    fit_intercept : bool
    start_weights : torch.Tensor of shape (m,), optional
    tol : float, default=1e-9
        Relative duality gap, reached unless rounding errors forbid it.

    Returns
    -------
    weights : torch.Tensor of shape (m,)
    b : float
    """
    start = None
    if start_weights is not None:
        groups = start_weights.reshape(-1).nonzero()[:, 0]
        start = (groups, start_weights.reshape(-1, 1)[groups], 0.0)
    ones = A.new_ones(len(A), 1)
    best = None
    for solution in group_newton(ones, A, Y, p, loss, alpha, fit_intercept, start, tol):
        best = solution if best is None or solution.gap <= best.gap else best
    assert best is not None
    weights = A.new_zeros(A.shape[1])
    weights[best.active] = best.S[:, 0]
    return weights, best.b


# ------------------------------------------------------------------------- program and state


class _GramCache:
    """Rows ``(W^1/2 diag(M_g) Z)^T`` and their Gram matrix, kept while W does not change.

    With the squared loss W never changes, so every group pays for its block once. Buffers
    grow by doubling, and groups that left the support keep their slots.
    """

    root: Tensor | None = None

    def missing(self, root: Tensor, groups: list[int]) -> list[int]:
        """Return the groups whose blocks have to be computed for these weights."""
        if self.root is None or not torch.equal(self.root, root):
            return groups
        return [g for g in groups if g not in self.slots]

    def blocks(
        self, program: _Program, root: Tensor, groups: list[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return all cached rows, the positions of the groups' rows, and the groups' Gram."""
        new = self.missing(root, groups)
        if self.root is None or not torch.equal(self.root, root):
            # New buffers: the factor of the last accepted point still reads the old ones.
            self.root, self.slots = root, dict[int, int]()
            self.rows, self.gram = root.new_empty(0, len(root)), root.new_empty(0, 0)
        if new:
            self._append(program, root, new)
        k = program.Z.shape[1]
        index = torch.tensor([self.slots[g] for g in groups], device=root.device)
        index = (index.unsqueeze(1) * k + torch.arange(k, device=root.device)).reshape(-1)
        used = len(self.slots) * k
        gram = self.gram[:used, :used].index_select(0, index).index_select(1, index)
        return self.rows[:used], index, gram

    def _append(self, program: _Program, root: Tensor, new: list[int]) -> None:
        k = program.Z.shape[1]
        old, used = len(self.slots) * k, (len(self.slots) + len(new)) * k
        if used > len(self.rows):
            capacity = max(2 * used, 256)
            rows, gram = root.new_empty(capacity, len(root)), root.new_empty(capacity, capacity)
            rows[:old], gram[:old, :old] = self.rows[:old], self.gram[:old, :old]
            self.rows, self.gram = rows, gram
        M = program.M[:, torch.tensor(new, device=root.device)].T
        rows = self.rows[:used]
        target = rows[old:].view(len(new), k, -1)
        torch.mul(M.unsqueeze(1), (root * program.Z).T.unsqueeze(0), out=target)
        block = rows[old:] @ rows.T
        self.gram[old:used, :used] = block
        self.gram[:old, old:used] = block[:, :old].T
        for group in new:
            self.slots[group] = len(self.slots)


@dataclass
class _Program:
    """The data of one program."""

    Z: Tensor
    M: Tensor
    Y: Tensor
    p: Tensor
    loss: Loss
    alpha: float
    fit_intercept: bool
    kernel: Tensor | None = None  # Z Z^T, built when first needed
    gram: _GramCache = field(default_factory=_GramCache)

    def gradient(self, F: Tensor) -> Tensor:
        return self.loss.gradient(F, self.Y, self.p)

    def weights(self, F: Tensor) -> Tensor:
        return self.loss.hessian(F, self.Y, self.p)[:, :, 0]

    def correlations(self, column: Tensor, M: Tensor) -> Tensor:
        """Return ``Z^T diag(M_g) column`` of every group (P, k), without the n x Pk design."""
        # In this order the wide factor is contiguous, twice as fast as M.T @ (...).
        return ((column * self.Z).T @ M).T

    def fit(self, M: Tensor, S: Tensor) -> Tensor:
        """Return ``sum_g diag(M_g) Z S_g`` (n, 1)."""
        return ((M @ S) * self.Z).sum(dim=1, keepdim=True)

    def best_shift(self, F: Tensor) -> float:
        """Return the b that minimises the loss of F + b: Newton in a bracket of the root."""
        # As optimal_intercept, for one output, where scalars save most of the time.
        if not self.fit_intercept:
            return 0.0
        b, low, high = 0.0, -float("inf"), float("inf")
        for _ in range(60):
            slope = float(self.gradient(F + b).sum())
            curvature = float(self.weights(F + b).sum())
            low, high = (b, high) if slope < 0 else (low, b)
            step = -slope / curvature if curvature > 0 else -slope
            step = min(max(step, -4.0 - abs(b)), 4.0 + abs(b))
            if not low <= b + step <= high:
                step = 0.5 * (low + high) - b
            b += step
            if abs(step) <= 1e-14 * (1.0 + abs(b)):
                break
        return b


@dataclass
class _State:
    """A point (eta, S, b) on the groups `active`, with F, phi and the factor it came from."""

    active: Tensor
    eta: Tensor
    S: Tensor
    b: float
    F: Tensor
    phi: float
    factor: _Factor


def _initial_state(program: _Program, start: tuple[Tensor, Tensor, float] | None) -> _State:
    """Return the constant model, or the ridge solution with eta_g = |S_g| of a better start."""
    F = torch.zeros_like(program.Y)
    F = F + program.best_shift(F)
    none = torch.zeros(0, dtype=torch.long, device=F.device)
    state = _solve_ridge(program, none, F.new_zeros(0), F, float("inf"))
    if start is None or len(start[0]) == 0:
        return state
    groups, order = start[0].sort()
    S = start[1].to(F)[order]
    eta = S.norm(dim=1)
    keep = eta > 0
    F = program.fit(program.M[:, groups], S) + start[2]
    warm = _solve_ridge(program, groups[keep], eta[keep], F, state.phi)
    return warm if warm.phi < state.phi else state


# ----------------------------------------------------------------------------- linear algebra


def _safe_cholesky(matrix: Tensor) -> Tensor:
    """Return the lower factor; a growing diagonal is added when rounding made it indefinite."""
    factor, info = torch.linalg.cholesky_ex(matrix)
    jitter = 1e-13 * float(matrix.diagonal().abs().amax()) if matrix.shape[0] else 0.0
    while int(info) != 0 and jitter < 1e300:
        jitter = max(100.0 * jitter, 1e-300)
        shifted = matrix.clone()
        shifted.diagonal().add_(jitter)
        factor, info = torch.linalg.cholesky_ex(shifted)
    return factor


@dataclass
class _ColumnFactor:
    """C through the m active columns, or W where there are none.

    With ``B = W^1/2 A diag(eta)^1/2``, ``C = W^1/2 (I - B (alpha I + B^T B)^-1 B^T) W^1/2``.
    """

    root: Tensor
    chol: Tensor
    rows: Tensor  # cached (W^1/2 diag(M_g) Z)^T, also of groups that are not active
    index: Tensor  # rows that are active
    scale: Tensor  # eta^1/2 of each active row, as a column

    def _project(self, scaled: Tensor) -> Tensor:
        return (self.rows @ scaled).index_select(0, self.index) * self.scale

    def apply(self, X: Tensor) -> Tensor:
        """Return C X."""
        scaled = self.root * X
        inner = torch.cholesky_solve(self._project(scaled), self.chol) * self.scale
        spread = inner.new_zeros(len(self.rows), X.shape[1]).index_copy_(0, self.index, inner)
        return self.root * (scaled - self.rows.T @ spread)

    def quadratic(self, X: Tensor) -> Tensor:
        """Return X^T C X, with one triangular solve."""
        scaled = self.root * X
        half = torch.linalg.solve_triangular(self.chol, self._project(scaled), upper=False)
        return scaled.T @ scaled - half.T @ half


@dataclass
class _RowFactor:
    """C through n rows: ``alpha W^1/2 (alpha I + W^1/2 A diag(eta) A^T W^1/2)^-1 W^1/2``."""

    root: Tensor
    chol: Tensor
    alpha: float

    def apply(self, X: Tensor) -> Tensor:
        """Return C X."""
        return self.alpha * self.root * torch.cholesky_solve(self.root * X, self.chol)

    def quadratic(self, X: Tensor) -> Tensor:
        """Return X^T C X, with one triangular solve."""
        half = torch.linalg.solve_triangular(self.chol, self.root * X, upper=False)
        return self.alpha * (half.T @ half)


_Factor = _ColumnFactor | _RowFactor


def _row_side_matrix(program: _Program, M: Tensor, eta: Tensor, root: Tensor) -> Tensor:
    """Return the lower triangle of ``W^1/2 A diag(eta) A^T W^1/2``.

    It is (M diag(eta) M^T) o (Z Z^T), scaled: the elementwise product saves a factor k; the
    stripes skip most of the upper triangle.
    """
    if program.kernel is None:
        program.kernel = program.Z @ program.Z.T
    n, kernel = len(M), program.kernel
    left, right = M * (eta * root), (M * root).T
    out = torch.zeros_like(kernel)
    for i in range(6):
        low, high = n * i // 6, n * (i + 1) // 6
        block = out[low:high, :high]
        torch.mul(left[low:high] @ right[:, :high], kernel[low:high, :high], out=block)
    return out


def _factorise(
    program: _Program, active: Tensor, M: Tensor, eta: Tensor, weights: Tensor
) -> _Factor:
    """Factorise on the cheaper side, active columns or rows, by flop counts."""
    (n, k), count = program.Z.shape, len(eta)
    root = weights.sqrt()
    if count == 0:
        none = root.new_zeros(0, 1)
        return _ColumnFactor(root, none.new_zeros(0, 0), none.new_zeros(0, n), active, none)
    groups, m = active.tolist(), count * k
    new = k * len(program.gram.missing(root, groups))
    column_cost = 2.0 * n * m * new + m**3 / 3 + 4.0 * m * m + 2.0 * n * m * count
    row_cost = 2.2 * n * n * count + n**3 / 3 + 4.0 * n * n
    # The column form subtracts nearly equal matrices when eta A^T W A is far above alpha; the
    # row form does not, so it is kept for accuracy then (unless n x n is out of the question).
    sizes = (M.square().T @ (weights * program.Z.square())).amax(dim=1)
    stiffness = float(eta @ sizes) / program.alpha
    if n > MAX_ROW_SIDE or (column_cost <= row_cost and stiffness < 1e6):
        rows, index, matrix = program.gram.blocks(program, root, groups)
        scale = eta.sqrt().repeat_interleave(k).unsqueeze(1)
        matrix.mul_(scale).mul_(scale.T).diagonal().add_(program.alpha)
        return _ColumnFactor(root, _safe_cholesky(matrix), rows, index, scale)
    matrix = _row_side_matrix(program, M, eta, root)
    matrix.diagonal().add_(program.alpha)
    return _RowFactor(root, _safe_cholesky(matrix), program.alpha)


# ----------------------------------------------------------------- ridge regression in (S, b)


def _ridge_newton(
    program: _Program, active: Tensor, M: Tensor, eta: Tensor, F: Tensor
) -> tuple[_State, bool]:
    """Take one Newton step of the ridge problem at fixed eta; say whether it was exact.

    The unknown is lambda and weights are never divided by, so saturated logistic rows
    (weight 0) are harmless.
    """
    weights = program.weights(F)
    factor = _factorise(program, active, M, eta, weights)
    ones = factor.apply(torch.ones_like(F)) if program.fit_intercept else None
    pull = weights * F - program.gradient(F)
    lam = _solve_dual(program, factor, M, eta, ones, pull)
    state = _state_from_dual(program, active, M, eta, factor, lam)
    for _ in range(3):
        # For a quadratic this is iterative refinement, otherwise a Newton step with the old
        # matrix; the unknown of both is the change of lambda that makes it consistent with F.
        error = -program.gradient(state.F) - lam
        if float(error.abs().amax()) <= 1e-11 * float(lam.abs().amax()):
            break
        lam = lam + _solve_dual(program, factor, M, eta, ones, error)
        refined = _state_from_dual(program, active, M, eta, factor, lam)
        if not refined.phi <= state.phi + 1e-13 * abs(state.phi):
            break
        state = refined
    return state, torch.equal(weights, program.weights(state.F))


def _solve_dual(
    program: _Program,
    factor: _Factor,
    M: Tensor,
    eta: Tensor,
    ones: Tensor | None,
    right: Tensor,
) -> Tensor:
    """Solve ``lam + W (A diag(eta) A^T lam / alpha + b) = right`` with sum(lam) = 0 through b.

    `ones` is C applied to the ones column, or None without intercept.
    """
    ratio = (eta / program.alpha).unsqueeze(1)
    lam = right - factor.apply(program.fit(M, ratio * program.correlations(right, M)))
    if ones is None or float(ones.sum()) <= 0:
        return lam
    return lam - ones * (lam.sum() / ones.sum())


def _state_from_dual(
    program: _Program, active: Tensor, M: Tensor, eta: Tensor, factor: _Factor, lam: Tensor
) -> _State:
    """Return the point ``S_g = eta_g Z^T diag(M_g) lam / alpha`` with the best intercept."""
    S = (eta / program.alpha).unsqueeze(1) * program.correlations(lam, M)
    F = program.fit(M, S)
    b = program.best_shift(F)
    F = F + b
    fit = float(program.loss.value(F, program.Y, program.p))
    penalty = float((S.square().sum(dim=1) / eta + eta).sum())
    return _State(active, eta, S, b, F, fit + 0.5 * program.alpha * penalty, factor)


def _solve_ridge(
    program: _Program, active: Tensor, eta: Tensor, F: Tensor, target: float
) -> _State:
    """Take Newton steps at fixed eta until phi is below target and S roughly follows eta."""
    M = program.M[:, active]
    for _ in range(4):
        state, exact = _ridge_newton(program, active, M, eta, F)
        if exact or len(eta) == 0:
            break
        if state.phi <= target and _ridge_residual(program, state, M) <= 0.1:
            break
        F = state.F
    return state


def _ridge_residual(program: _Program, state: _State, M: Tensor) -> float:
    """Return the relative violation of ``S_g = eta_g w_g / alpha`` at the true gradient."""
    w = program.correlations(-program.gradient(state.F), M)
    error = program.alpha * state.S / state.eta.unsqueeze(1) - w
    scale = float(w.norm(dim=1).amax())
    return float(error.norm(dim=1).amax()) / scale if scale > 0 else 0.0


# -------------------------------------------------------------------------- Newton step in eta


def _newton_round(program: _Program, state: _State, w: Tensor, norms: Tensor) -> _State | None:
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
            new = _solve_ridge(program, groups[keep], trial[keep], state.F, target)
            if new.phi <= target:
                return new
    return None


def _working_set(state: _State, norms: Tensor, level: float) -> tuple[Tensor, Tensor]:
    """Return the active groups and the worst violators (as many, at least 16), and their eta."""
    eta = torch.zeros_like(norms)
    eta[state.active] = state.eta
    score = torch.where((norms > level) & (eta == 0), norms, torch.zeros_like(norms))
    worst = score.topk(min(len(norms), max(16, len(state.active)))).indices
    chosen = eta > 0
    chosen[worst[score[worst] > 0]] = True
    groups = chosen.nonzero()[:, 0]
    return groups, eta[groups]


def _eta_hessian(program: _Program, factor: _Factor, M: Tensor, w: Tensor) -> Tensor:
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
            chol = _safe_cholesky(H[index][:, index])
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

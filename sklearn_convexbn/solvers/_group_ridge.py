"""The ridge regression at fixed group scales, inside the Newton method of `_group_newton`.

For scales eta, ``min_{S, b} sum_i p_i loss(F_i, y_i) + alpha/2 sum_g (|S_g|^2 / eta_g + eta_g)``
with ``F = sum_g diag(M_g) Z S_g + b``; and the matrix
``C = (W^-1 + A diag(eta) A^T / alpha)^-1``, W = p loss'', that its Newton steps and the
Hessian in eta need, through whichever is cheaper: the active columns A, or the rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from sklearn_convexbn._losses import Loss

#: Above this many rows only the active columns are factorised.
MAX_ROW_SIDE = 8000


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
        self, program: Program, root: Tensor, groups: list[int]
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

    def _append(self, program: Program, root: Tensor, new: list[int]) -> None:
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
class Program:
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
class State:
    """A point (eta, S, b) on the groups `active`, with F, phi and the factor it came from."""

    active: Tensor
    eta: Tensor
    S: Tensor
    b: float
    F: Tensor
    phi: float
    factor: Factor


# ----------------------------------------------------------------------------- linear algebra


def safe_cholesky(matrix: Tensor) -> Tensor:
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


Factor = _ColumnFactor | _RowFactor


def _row_side_matrix(program: Program, M: Tensor, eta: Tensor, root: Tensor) -> Tensor:
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


def _factorise(program: Program, active: Tensor, M: Tensor, eta: Tensor, weights: Tensor) -> Factor:
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
        return _ColumnFactor(root, safe_cholesky(matrix), rows, index, scale)
    matrix = _row_side_matrix(program, M, eta, root)
    matrix.diagonal().add_(program.alpha)
    return _RowFactor(root, safe_cholesky(matrix), program.alpha)


# ----------------------------------------------------------------- ridge regression in (S, b)


def _ridge_newton(
    program: Program, active: Tensor, M: Tensor, eta: Tensor, F: Tensor
) -> tuple[State, bool]:
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
    program: Program,
    factor: Factor,
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
    program: Program, active: Tensor, M: Tensor, eta: Tensor, factor: Factor, lam: Tensor
) -> State:
    """Return the point ``S_g = eta_g Z^T diag(M_g) lam / alpha`` with the best intercept."""
    S = (eta / program.alpha).unsqueeze(1) * program.correlations(lam, M)
    F = program.fit(M, S)
    b = program.best_shift(F)
    F = F + b
    fit = float(program.loss.value(F, program.Y, program.p))
    penalty = float((S.square().sum(dim=1) / eta + eta).sum())
    return State(active, eta, S, b, F, fit + 0.5 * program.alpha * penalty, factor)


def solve_ridge(program: Program, active: Tensor, eta: Tensor, F: Tensor, target: float) -> State:
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


def _ridge_residual(program: Program, state: State, M: Tensor) -> float:
    """Return the relative violation of ``S_g = eta_g w_g / alpha`` at the true gradient."""
    w = program.correlations(-program.gradient(state.F), M)
    error = program.alpha * state.S / state.eta.unsqueeze(1) - w
    scale = float(w.norm(dim=1).amax())
    return float(error.norm(dim=1).amax()) / scale if scale > 0 else 0.0

"""The ridge regression at fixed group scales, inside the Newton method of `_group_newton`.

For scales eta, ``min_{S, b} sum_i p_i loss(F_i, y_i) + alpha/2 sum_g (|S_g|^2 / eta_g + eta_g)``
with ``F = sum_g diag(M_g) Z S_g + b``; and the matrix
``C = (W^-1 + A diag(eta) A^T / alpha)^-1``, W = p loss'', that its Newton steps and the
Hessian in eta need, through whichever is cheaper: the active columns A, or the rows.

Factors are in float32 where their condition allows it, at half the time: the Newton steps use
them as a preconditioner of equations in float64, and the Hessian needs few digits. Arrays are
NumPy's, or torch tensors of one device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sklearn_convexbn.program._objective import Objective
from sklearn_convexbn.support._arrays import Array, array_namespace, cast, single
from sklearn_convexbn.support._linear_algebra import (
    cholesky_solve,
    index_array,
    is_double,
    kind_of,
    lower_outer,
    row_norms,
    safe_cholesky,
    squared_by_inverse,
)

#: Above this many rows only the active columns are factorised.
MAX_ROW_SIDE = 8000

#: Largest ratio of eigenvalues, about, of matrices that are factorised in float32, in the row
#: form and in the column form, and in the column form at all. The column form subtracts nearly
#: equal matrices when eta A^T W A is far above alpha; the row form does not.
MAX_STIFFNESS_ROWS_SINGLE = 1e5
MAX_STIFFNESS_COLUMNS_SINGLE = 1e4
MAX_STIFFNESS_COLUMNS = 1e6


class _GramCache:
    """Rows ``(W^1/2 diag(M_g) Z)^T`` and their Gram matrix, kept while W does not change.

    With the squared loss W never changes, so every group pays for its block once. Buffers
    grow by doubling, and groups that left the support keep their slots.
    """

    root: Array | None = None

    def _serves(self, root: Array) -> bool:
        if self.root is None or self.root.dtype != root.dtype:
            return False
        return bool((self.root == root).all())

    def missing(self, root: Array, groups: list[int]) -> list[int]:
        """Return the groups whose blocks have to be computed for these weights."""
        return [g for g in groups if g not in self.slots] if self._serves(root) else groups

    def blocks(
        self, program: Program, root: Array, groups: list[int]
    ) -> tuple[Array, Array, Array]:
        """Return all cached rows, the positions of the groups' rows, and the groups' Gram."""
        new = self.missing(root, groups)
        xp = array_namespace(root)
        if not self._serves(root):
            # New buffers: the factor of the last accepted point still reads the old ones.
            self.root, self.slots = root, dict[int, int]()
            self.rows = xp.empty((0, len(root)), **kind_of(root))
            self.gram = self.rows[:, :0]
        if new:
            self._append(program, root, new)
        k = program.Z.shape[1]
        first = k * index_array([self.slots[g] for g in groups], root)
        index = (first[:, None] + index_array(range(k), root)).reshape(-1)
        used = len(self.slots) * k
        return self.rows[:used], index, self.gram[index[:, None], index]

    def _append(self, program: Program, root: Array, new: list[int]) -> None:
        k, xp = program.Z.shape[1], array_namespace(root)
        old, used = len(self.slots) * k, (len(self.slots) + len(new)) * k
        if used > len(self.rows):
            capacity = max(2 * used, 256)
            rows = xp.empty((capacity, len(root)), **kind_of(root))
            gram = xp.empty((capacity, capacity), **kind_of(root))
            rows[:old], gram[:old, :old] = self.rows[:old], self.gram[:old, :old]
            self.rows, self.gram = rows, gram
        M = cast(program.M[:, index_array(new, root)], root.dtype).T
        rows = self.rows[:used]
        columns = (root * cast(program.Z, root.dtype)).T
        rows[old:].reshape(len(new), k, -1)[:] = M[:, None] * columns
        block = rows[old:] @ rows.T
        self.gram[old:used, :used] = block
        self.gram[:old, old:used] = block[:, :old].T
        for group in new:
            self.slots[group] = len(self.slots)


class Program(Objective[Any]):
    """The data of one program; `data` is that of the objective.

    M may be in float32, to halve the time of a look at all groups; what is computed from it
    is in float64 where it matters. `single` allows factors in float32; `accuracy` is what the
    ridge problems are solved to.
    """

    def __init__(self, Z: Array, M: Array, *, single: bool = False, **data: Any) -> None:
        super().__init__(**data)
        self.Z, self.M, self.single, self.accuracy = Z, M, single, 1e-11
        self.kernels: dict[Any, Array] = {}
        self.gram = _GramCache()

    def value(self, F: Array, S: Array) -> float:
        """Return the objective of blocks S (m, k) whose fit with b is F."""
        return self.mean_loss(F) + self.alpha * float(row_norms(S).sum())

    def weights(self, F: Array) -> Array:
        """Return the second derivatives of the mean loss (n, 1)."""
        return self.curvatures(F)[0]

    def correlations(self, column: Array, M: Array) -> Array:
        """Return ``Z^T diag(M_g) column`` of every group (P, k), without the n x Pk design."""
        # In this order the wide factor is contiguous, twice as fast as M.T @ (...).
        return ((column * self.Z).T @ M).T

    def fit(self, M: Array, S: Array) -> Array:
        """Return ``sum_g diag(M_g) Z S_g`` (n, 1)."""
        return ((M @ S) * self.Z).sum(1)[:, None]

    def columns(self, groups: Array) -> Array:
        """Return the multipliers of some groups, in float64."""
        return cast(self.M[:, groups], self.Z.dtype)

    def kernel(self, root: Array) -> Array:
        """Return ``Z Z^T`` in the precision of `root`, built when first needed."""
        if root.dtype not in self.kernels:
            Z = cast(self.Z, root.dtype)
            self.kernels[root.dtype] = Z @ Z.T
        return self.kernels[root.dtype]

    def all_correlations(self, column: Array, active: Array) -> tuple[Array, Array]:
        """Return ``Z^T diag(M_g) column`` of all groups and its norms (P,).

        With M in float32, those of the active groups and the largest are in float64, so that
        the largest is exact; the others have a relative error of about 1e-7.
        """
        if is_double(self.M):
            w = self.correlations(column, self.M)
            return w, row_norms(w)
        spread = column * self.Z
        size = float((spread * spread).sum()) ** 0.5 or 1.0
        w = cast((cast(spread / size, self.M.dtype).T @ self.M).T, column.dtype) * size
        norms = row_norms(w)
        # More than float32 can be wrong by.
        margin = 1e-6 * len(spread) ** 0.5 * size
        again = norms >= float(norms.max()) - margin
        again[active] = True
        w[again] = (spread.T @ self.columns(again)).T
        norms[again] = row_norms(w[again])
        return w, norms


@dataclass
class State:
    """A point (eta, S, b) on the groups `active`, with F, phi and the factor it came from."""

    active: Array
    eta: Array
    S: Array
    b: float
    F: Array
    phi: float
    factor: Factor


# ----------------------------------------------------------------------------- linear algebra


@dataclass
class _ColumnFactor:
    """C through the m active columns, or W where there are none.

    With ``B = W^1/2 A diag(eta)^1/2``, ``C = W^1/2 (I - B (alpha I + B^T B)^-1 B^T) W^1/2``.
    """

    root: Array
    chol: Array
    rows: Array  # cached (W^1/2 diag(M_g) Z)^T, also of groups that are not active
    index: Array  # rows that are active
    scale: Array  # eta^1/2 of each active row, as a column

    def _project(self, scaled: Array) -> Array:
        return (self.rows @ scaled)[self.index] * self.scale

    def apply(self, X: Array) -> Array:
        """Return C X."""
        xp, scaled = array_namespace(X), self.root * cast(X, self.root.dtype)
        inner = cholesky_solve(self._project(scaled), self.chol) * self.scale
        spread = xp.zeros((len(self.rows), X.shape[1]), **kind_of(inner))
        spread[self.index] = inner
        return cast(self.root * (scaled - self.rows.T @ spread), X.dtype)

    def quadratic(self, X: Array) -> Array:
        """Return X^T C X, with one triangular solve."""
        scaled = self.root * cast(X, self.root.dtype)
        return scaled.T @ scaled - squared_by_inverse(self._project(scaled), self.chol)


@dataclass
class _RowFactor:
    """C through n rows: ``alpha W^1/2 (alpha I + W^1/2 A diag(eta) A^T W^1/2)^-1 W^1/2``."""

    root: Array
    chol: Array
    alpha: float

    def apply(self, X: Array) -> Array:
        """Return C X."""
        scaled = self.root * cast(X, self.root.dtype)
        return self.alpha * cast(self.root * cholesky_solve(scaled, self.chol), X.dtype)

    def quadratic(self, X: Array) -> Array:
        """Return X^T C X, with one triangular solve."""
        scaled = self.root * cast(X, self.root.dtype)
        return self.alpha * squared_by_inverse(scaled, self.chol)


Factor = _ColumnFactor | _RowFactor


def factorise(
    program: Program,
    active: Array,
    M: Array,
    eta: Array,
    weights: Array,
    by_rows: bool | None = None,
) -> Factor:
    """Factorise by rows or by active columns, where None on the cheaper side by flop counts."""
    (n, k), count = program.Z.shape, len(eta)
    if count == 0:
        empty = program.Z[:0]
        return _ColumnFactor(weights**0.5, empty[:, :0], program.Z[:, :0].T, active, empty[:, :1])
    root, groups, m = weights**0.5, active.tolist(), count * k
    sizes = (M * M).T @ (weights * program.Z * program.Z)
    stiffness = float(eta @ array_namespace(eta).amax(sizes, 1)) / program.alpha
    coarse_rows = program.single and stiffness < MAX_STIFFNESS_ROWS_SINGLE
    coarse_columns = program.single and stiffness < MAX_STIFFNESS_COLUMNS_SINGLE
    column_root = single(root) if coarse_columns else root
    new = k * len(program.gram.missing(column_root, groups))
    column_cost = 2.0 * n * m * new + m**3 / 3 + 4.0 * m * m + 2.0 * n * m * count
    row_cost = 2.2 * n * n * count + n**3 / 3 + 4.0 * n * n
    cheaper = column_cost * (2 - coarse_columns) <= row_cost * (2 - coarse_rows)
    if by_rows is None:
        by_rows = n <= MAX_ROW_SIDE and not (cheaper and stiffness < MAX_STIFFNESS_COLUMNS)
    if not by_rows:
        return _column_factor(program, groups, eta, column_root)
    root = single(root) if coarse_rows else root
    # W^1/2 A diag(eta) A^T W^1/2 is (M diag(eta) M^T) o (Z Z^T), scaled: k times fewer operations.
    matrix = lower_outer(root * cast(M * eta**0.5, root.dtype), program.kernel(root))
    matrix.reshape(-1)[:: n + 1] += program.alpha
    return _RowFactor(root, safe_cholesky(matrix), program.alpha)


def _column_factor(program: Program, groups: list[int], eta: Array, root: Array) -> _ColumnFactor:
    rows, index, matrix = program.gram.blocks(program, root, groups)
    scale = cast(eta[:, None] ** 0.5 + 0.0 * program.Z[:1], root.dtype).reshape(-1, 1)
    matrix *= scale
    matrix *= scale.T
    matrix.reshape(-1)[:: len(matrix) + 1] += program.alpha
    return _ColumnFactor(root, safe_cholesky(matrix), rows, index, scale)


# ----------------------------------------------------------------- ridge regression in (S, b)


def _ridge_newton(
    program: Program, active: Array, M: Array, eta: Array, F: Array
) -> tuple[State, bool]:
    """Take one Newton step of the ridge problem at fixed eta; say whether it was exact.

    The unknown is lambda and weights are never divided by, so saturated logistic rows
    (weight 0) are harmless.
    """
    weights = program.weights(F)
    factor = factorise(program, active, M, eta, weights)
    ones = factor.apply(array_namespace(F).ones_like(F)) if program.fit_intercept else None
    pull = weights * F - program.gradient(F)
    lam = _solve_dual(program, factor, M, eta, ones, pull)
    state = _state_from_dual(program, active, M, eta, factor, lam)
    for _ in range(3):
        # For a quadratic this is iterative refinement, otherwise a Newton step with the old
        # matrix; the unknown of both is the change of lambda that makes it consistent with F.
        error = -program.gradient(state.F) - lam
        if float(abs(error).max()) <= program.accuracy * float(abs(lam).max()):
            break
        lam = lam + _solve_dual(program, factor, M, eta, ones, error)
        refined = _state_from_dual(program, active, M, eta, factor, lam)
        if not refined.phi <= state.phi + 1e-13 * abs(state.phi):
            break
        state = refined
    return state, bool((weights == program.weights(state.F)).all())


def _solve_dual(
    program: Program,
    factor: Factor,
    M: Array,
    eta: Array,
    ones: Array | None,
    right: Array,
) -> Array:
    """Solve ``lam + W (A diag(eta) A^T lam / alpha + b) = right`` with sum(lam) = 0 through b.

    `ones` is C applied to the ones column, or None without intercept.
    """
    ratio = (eta / program.alpha)[:, None]
    lam = right - factor.apply(program.fit(M, ratio * program.correlations(right, M)))
    if ones is None or float(ones.sum()) <= 0:
        return lam
    return lam - ones * (lam.sum() / ones.sum())


def _state_from_dual(
    program: Program, active: Array, M: Array, eta: Array, factor: Factor, lam: Array
) -> State:
    """Return the point ``S_g = eta_g Z^T diag(M_g) lam / alpha`` with the best intercept."""
    S = (eta / program.alpha)[:, None] * program.correlations(lam, M)
    F = program.fit(M, S)
    b = program.best_intercept(F)
    F = F + b
    penalty = float(((S * S).sum(1) / eta + eta).sum())
    phi = program.mean_loss(F) + 0.5 * program.alpha * penalty
    return State(active, eta, S, float(b[0]), F, phi, factor)


def solve_ridge(program: Program, active: Array, eta: Array, F: Array, target: float) -> State:
    """Take Newton steps at fixed eta until phi is below target and S roughly follows eta."""
    M = program.columns(active)
    for _ in range(4):
        state, exact = _ridge_newton(program, active, M, eta, F)
        if exact or len(eta) == 0:
            break
        if state.phi <= target and _ridge_residual(program, state, M) <= 0.1:
            break
        F = state.F
    return state


def _ridge_residual(program: Program, state: State, M: Array) -> float:
    """Return the relative violation of ``S_g = eta_g w_g / alpha`` at the true gradient."""
    w = program.correlations(-program.gradient(state.F), M)
    error = program.alpha * state.S / state.eta[:, None] - w
    scale = float(row_norms(w).max())
    return float(row_norms(error).max()) / scale if scale > 0 else 0.0

r"""Barrier method on the dual of small gated programs: safe where FISTA and factor steps creep.

.. math:: \max_\Lambda -L^*(-\Lambda) \quad\text{with}\quad
          |Z^T D_g \Lambda|_2 \le \alpha \text{ for every gate } g, \quad 1^T \Lambda = 0
          \text{ where b is free}

On blocks of fixed rank Newton's method runs into curved valleys: units that have to merge or to
leave do so by little steps. The dual has no such valleys, only n C unknowns, and a strictly
feasible point, from which damped Newton steps with the barrier
:math:`-\mu \sum_g \log\det(I - W_g^T W_g / \alpha^2)` of :math:`W_g = Z^T D_g \Lambda` follow the
central path (Nesterov and Nemirovskii, "Interior-Point Polynomial Algorithms in Convex
Programming", 1994). There :math:`S_g = 2 \mu W_g (\alpha^2 I - W_g^T W_g)^{-1}` solves the
program up to a gap in proportion to mu. A step costs about n C times the size of all blocks times
(n C + their number of entries), so that large programs are left to the other steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sklearn_convexbn.solvers._gated_program import GatedProgram, Point
from sklearn_convexbn.support._linear_algebra import safe_cholesky

#: Operations of one Newton step above which the program is too large.
MAX_STEP_COST = 3e8

#: Factor between barrier parameters, Newton steps for each, and the decrement that ends them.
SHRINK, MAX_STEPS, DECREMENT = 0.1, 50, 1e-2

#: Barrier parameters at most.
MAX_STAGES = 30

#: Singular values below these parts of the largest are tried to be left out.
CUTS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-10, 0.0)


def affordable(program: GatedProgram, n_gates: int, max_cost: float | None = None) -> bool:
    """Return whether a Newton step of the dual costs so little; it is solved in float64 alone.

    And for losses that know their conjugate with its derivatives, :meth:`Loss.dual_rows`.
    """
    (n, C), entries = program.Y.shape, program.Z.shape[1] * program.pooling.n_cells
    unknowns, entries = n * C, entries * C
    cost = float(unknowns) * n_gates * entries * (unknowns + entries)
    if program.Z.dtype != torch.float64 or cost > (MAX_STEP_COST if max_cost is None else max_cost):
        return False
    return program.loss.dual_rows(program.Y, program.p) is not None


def solve_dual(program: GatedProgram, tol: float) -> tuple[Point, Tensor]:
    """Solve the program on all gates to a relative gap of about `tol`, or as far as rounding lets.

    Returns
    -------
    point : Point
        Without the singular values that carry nothing.
    Lambda : Tensor of shape (n, C)
        A dual point that is feasible, up to rounding.
    """
    dual = _Dual(program)
    gates = torch.arange(program.M.shape[1], device=program.Z.device)
    x, mu, best = (
        dual.start(),
        0.1 * program.mean_loss(program.constant_fit()) / dual.parameter,
        None,
    )
    for _ in range(MAX_STAGES):
        x, S = dual.centre(x, mu)
        point = Point(gates, S, program.best_intercept(program.fit(S)))
        Lambda = dual.multipliers(x)
        value, bound = program.value(point), program.dual_value(Lambda, 0.0)
        gap = (value - bound) / max(value, 1e-300)
        if best is not None and not gap < best[0]:
            break
        best = gap, point, Lambda
        if gap <= 0.3 * tol:
            break
        mu *= SHRINK
    assert best is not None
    return _sparsest(program, best[1], max(0.3 * tol, 0.1 * best[0])), best[2]


def _sparsest(program: GatedProgram, point: Point, tol: float) -> Point:
    """Leave out as many small singular values as raise the objective by `tol` at most."""
    left, s, right = torch.linalg.svd(point.S, full_matrices=False)
    allowed = (1.0 + tol) * program.value(point)
    for cut in CUTS:
        kept = torch.where(s > cut * s.amax(), s, 0.0)
        S = (left * kept.unsqueeze(1)) @ right
        b = program.best_intercept(program.fit(S))
        if program.value(Point(point.gates, S, b)) <= allowed:
            some = (kept > 0).any(dim=1)
            return Point(point.gates[some], S[some], b)
    return point


@dataclass
class _State:
    """The barrier at a feasible x: blocks W, G = W M with M = (alpha^2 - W^T W)^-1, its value."""

    W: Tensor
    M: Tensor
    G: Tensor
    value: float


class _Dual:
    """The dual in the unknowns x (n, q) of the loss, ``Lambda_i = p_i M_i x_i``."""

    def __init__(self, program: GatedProgram) -> None:
        rows = program.loss.dual_rows(program.Y, program.p)
        assert rows is not None
        self.program, self.rows = program, rows
        n, _, q = rows.maps.shape
        self.shape = n, q
        basis = torch.eye(n * q, dtype=program.Z.dtype, device=program.Z.device).view(n * q, n, q)
        blocks = torch.stack([program.adjoint(self.multipliers(x)) for x in basis], dim=-1)
        self.transposed = blocks.shape[1] < blocks.shape[2]
        self.blocks = blocks.transpose(1, 2) if self.transposed else blocks  # (P, a, c, n q)
        self.parameter = self.blocks.shape[0] * self.blocks.shape[2]
        sums = torch.stack([self.multipliers(x).sum(dim=0) for x in basis], dim=-1)
        sums = sums[: q if program.fit_intercept else 0]  # those of softmax sum to zero themselves
        self.sums = sums / sums.norm(dim=1, keepdim=True).clamp_min(1e-300)

    def multipliers(self, x: Tensor) -> Tensor:
        """Return Lambda (n, C)."""
        return self.program.p[:, None] * (self.rows.maps @ x.unsqueeze(2))[:, :, 0]

    def start(self) -> Tensor:
        """Return the constant model's x, scaled until it is strictly feasible."""
        program = self.program
        residuals = -program.gradient(program.constant_fit()) / program.p[:, None]
        x = (torch.linalg.pinv(self.rows.maps) @ residuals.unsqueeze(2))[:, :, 0]
        largest = float(torch.linalg.matrix_norm(self._blocks(x), 2).amax())
        return x * min(0.5, 0.5 * program.alpha / max(largest, 1e-300))

    def centre(self, x: Tensor, mu: float) -> tuple[Tensor, Tensor]:
        """Return x on the central path, by damped Newton steps, and the blocks S there."""
        state = self._state(x, mu)
        assert state is not None
        for _ in range(MAX_STEPS):
            dx, decrement = self._newton(x, state, mu)
            new, t = None, 1.0
            while new is None and t > 1e-12:
                trial = x + t * dx
                new = self._state(trial, mu)
                slack = 1e-13 * abs(state.value)
                if new is not None and new.value > state.value - 0.1 * t * decrement + slack:
                    new = None
                t *= 0.5
            if new is None:
                break
            x, state = trial, new
            if decrement <= DECREMENT**2:
                break
        S = 2.0 * mu * state.G
        return x, (S.transpose(1, 2) if self.transposed else S).contiguous()

    def _blocks(self, x: Tensor) -> Tensor:
        return self.blocks @ x.reshape(-1)

    def _state(self, x: Tensor, mu: float) -> _State | None:
        """Return the barrier, or None outside of its domain."""
        W, alpha = self._blocks(x), self.program.alpha
        eye = torch.eye(W.shape[2], dtype=W.dtype, device=W.device)
        factor, failed = torch.linalg.cholesky_ex(eye - W.mT @ W / alpha**2)
        if bool(failed.any()) or not self.rows.inside(x):
            return None
        M = torch.cholesky_inverse(factor) / alpha**2
        barrier = -2.0 * float(factor.diagonal(dim1=1, dim2=2).log().sum())
        return _State(W, M, W @ M, self.rows.value(x) / mu + barrier)

    def _newton(self, x: Tensor, state: _State, mu: float) -> tuple[Tensor, float]:
        """Return the Newton step that keeps the sums, and the squared decrement."""
        gradient, hessians = self.rows.slopes(x)
        A = self.blocks.flatten(0, 2)
        g = gradient.reshape(-1) / mu + A.T @ (2.0 * state.G).reshape(-1)
        # d^2: 2 (I + G W^T) dW M + 2 G dW^T G.
        dW = self.blocks.permute(0, 3, 1, 2)
        W, M, G = (a.unsqueeze(1) for a in (state.W, state.M, state.G))
        moved = 2.0 * ((dW + G @ (W.mT @ dW)) @ M + G @ (dW.mT @ G))
        K = A.T @ moved.permute(0, 2, 3, 1).flatten(0, 2)
        n, q = self.shape
        K.view(n, q, n, q).diagonal(dim1=0, dim2=2).add_(hessians.permute(1, 2, 0) / mu)
        d = K.diagonal().clamp_min(1e-300).rsqrt()
        K = 0.5 * (K + K.T) * d[:, None] * d
        E, g = self.sums * d, d * g
        factor = safe_cholesky(K)
        solved = torch.cholesky_solve(torch.cat([g[None], E]).T, factor)
        s, T = solved[:, 0], solved[:, 1:]
        if len(E):
            s = s - T @ (torch.linalg.pinv(E @ T, hermitian=True) @ (E @ s))
        return -(d * s).view(n, q), max(float(g @ s), 0.0)

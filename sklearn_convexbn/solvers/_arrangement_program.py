"""The ReLU program on a list of arrangements in torch, and its Newton equations.

The 2P blocks s_i+, s_i- of the program couple through the fit
``F = sum_i D_i Z (s_i+ - s_i-) + b`` alone. So one Newton step needs 2P little (k, k) matrices
and one Cholesky factor: of order P k + 1, or of order n where that is cheaper. Shapes: blocks
(2, P, k) = sign, arrangement, coordinate; slacks and their multipliers (2, P, n).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from scipy.linalg import blas, lapack
from torch import Tensor

from sklearn_convexbn.program._objective import Objective
from sklearn_convexbn.support._linear_algebra import BUMPS, safe_cholesky

#: Numbers in a temporary array: matrices are summed over chunks of rows or blocks this large.
CHUNK = 2**23


@dataclass(frozen=True, eq=False, kw_only=True)
class Program(Objective[Tensor]):
    """The data in torch; `patterns` are the 0/1 rows (P, n) of D_i, `signs` those of 2 D_i - I."""

    Z: Tensor
    patterns: Tensor
    signs: Tensor

    def __len__(self) -> int:
        return int(self.patterns.shape[0])

    def restrict(self, rows: Tensor) -> Program:
        """Return the program on some of the arrangements."""
        return replace(self, patterns=self.patterns[rows], signs=self.signs[rows])

    def fit(self, S: Tensor) -> Tensor:
        """Return ``sum_i D_i Z (s_i+ - s_i-)`` (n, 1) of blocks S (2, P, k)."""
        return ((S[0] - S[1]) @ self.Z.T).mul_(self.patterns).sum(0)[:, None]

    def correlations(self, G: Tensor) -> Tensor:
        """Return ``+-Z^T D_i G`` (2, P, k) of G (n, 1)."""
        C = (self.patterns * G.T) @ self.Z
        return torch.stack([C, -C])

    def intercept(self, F: Tensor, near: float = 0.0) -> Tensor:
        """Return the best b (1,) for a fit F (n, 1) without it; Newton starts at `near`."""
        near *= self.fit_intercept
        return near + self.best_intercept(F + near)

    def value(self, F: Tensor, S: Tensor) -> float:
        """Return the objective of blocks S (2, P, k) whose fit with b is F."""
        mass = float(S.norm(dim=-1).sum())
        return self.mean_loss(F) + self.alpha * mass

    def cone_product(self, X: Tensor, out: Tensor) -> Tensor:
        """Return ``Z^T (2 D_i - I) x`` (2, P, k) for all blocks of X (2, P, n)."""
        torch.mul(X, self.signs, out=out)
        return (out.view(-1, X.shape[-1]) @ self.Z).view(*X.shape[:2], -1)

    def slack_product(self, S: Tensor, out: Tensor) -> Tensor:
        """Return ``(2 D_i - I) Z s`` (2, P, n) for all blocks of S (2, P, k)."""
        torch.matmul(S.reshape(-1, S.shape[-1]), self.Z.T, out=out.view(-1, out.shape[-1]))
        return out.mul_(self.signs)


def _costs(program: Program, P: int) -> tuple[float, float]:
    n, k = program.Z.shape
    columns = P * k
    # With a constant Hessian the Gram matrix is the same in all steps.
    gram = 0 if program.loss.identity_hessian else n * columns**2
    return gram + columns**3 / 3, n**2 * columns + n**3 / 3


def step_cost(program: Program, P: int) -> float:
    """Return about how many operations a Newton step on P arrangements takes."""
    return min(_costs(program, P))


def rows_are_cheaper(program: Program, P: int) -> bool:
    """Return whether :class:`RowSystem` is cheaper than :class:`BlockSystem`."""
    by_blocks, by_rows = _costs(program, P)
    return by_rows < by_blocks


def gram_matrix(program: Program, h: Tensor) -> Tensor:
    """Return the lower triangle of ``A^T diag(h) A``, A = [D_1 Z, ..., D_P Z, 1 if b is free].

    By chunks of rows.
    """
    (n, k), P = program.Z.shape, len(program)
    order = P * k + int(program.fit_intercept)
    gram = h.new_zeros(order, order)
    size = max(1, CHUNK // max(order, 1))
    for rows in torch.arange(n, device=h.device).split(size):
        D, Z = program.patterns[:, rows].T, program.Z[rows]
        A = (D[:, :, None] * Z[:, None, :]).reshape(len(rows), -1)
        if program.fit_intercept:
            A = torch.cat([A, A.new_ones(len(rows), 1)], 1)
        A *= h[rows].sqrt()
        add_gram(gram, A)
    return gram


class BlockSystem:
    """Solve ``B_e ds_e + e A^T h A x = r_e`` (e = +1, -1; x = (ds_+ - ds_-, db)) of order P k + 1.

    One sign is eliminated per arrangement: the one with the LARGER barrier Hessian, because
    the smaller one then stays in the reduced matrix uncancelled.
    """

    def __init__(self, program: Program, B: Tensor, gram: Tensor, reduced: Tensor) -> None:
        # `reduced` is overwritten: a fresh matrix would cost as much as half of its factorisation.
        P, k = B.shape[1], B.shape[2]
        trace = B.diagonal(dim1=-2, dim2=-1).sum(-1)
        self.kept = (trace[1] < trace[0]).long()
        self.rows = torch.arange(P, device=B.device)
        self.sign = (1.0 - 2.0 * self.kept)[:, None].to(B.dtype)
        self.Bk = B[self.kept, self.rows]
        self.sum_factor = safe_cholesky(B[0] + B[1])
        half = torch.linalg.solve_triangular(self.sum_factor, self.Bk, upper=False)

        def matrix() -> Tensor:
            reduced.copy_(gram)
            blocks = reduced[: P * k, : P * k].unflatten(0, (P, k)).unflatten(2, (P, k))  # a view
            blocks.diagonal(dim1=0, dim2=2).add_((self.Bk - half.mT @ half).permute(1, 2, 0))
            return reduced

        self.factor = Factor(matrix)

    def solve(self, r: Tensor, rb: Tensor) -> tuple[Tensor, Tensor]:
        """Return ds (2, P, k) and db (1 or 0 entries) for r (2, P, k) and rb."""
        total = r[0] + r[1]
        own = r[self.kept, self.rows]
        q = torch.cholesky_solve(total[..., None], self.sum_factor)
        rhs = self.sign * (own - (self.Bk @ q)[..., 0])
        x = self.factor.solve(torch.cat([rhs.reshape(-1), rb])[:, None])[:, 0]
        diff = self.sign * x[: rhs.numel()].view_as(rhs)
        rest = (total - (self.Bk @ diff[..., None])[..., 0])[..., None]
        other = torch.cholesky_solve(rest, self.sum_factor)[..., 0]
        ds = torch.empty_like(r)
        ds[self.kept, self.rows], ds[1 - self.kept, self.rows] = other + diff, other
        return ds, x[rhs.numel() :]


class RowSystem:
    """The same equations through the n forces ``f = h A x``: a matrix of order n.

    With ``B_+^-1 + B_-^-1 = R^T R`` per arrangement and V the stacked ``R Z^T D``, the matrix is
    ``I + h^1/2 V^T V h^1/2``.
    """

    def __init__(self, program: Program, B: Tensor, h: Tensor) -> None:
        n, k = program.Z.shape
        self.program, self.root = program, h.sqrt()
        self.factors = safe_cholesky(B)
        eye = torch.eye(k, dtype=B.dtype, device=B.device).expand_as(B)
        inverse = torch.linalg.solve_triangular(self.factors, eye, upper=False)
        # Of the stack, not of the sum of inverses: that sum would square its condition.
        R = torch.linalg.qr(torch.cat([inverse[0], inverse[1]], dim=1), mode="r")[1]
        scaled = (program.Z * self.root).T

        def matrix() -> Tensor:
            total = torch.eye(n, dtype=B.dtype, device=B.device)
            for rows in torch.arange(len(program), device=B.device).split(max(1, CHUNK // (n * k))):
                V = (R[rows].reshape(-1, k) @ scaled).view(len(rows), k, n)
                V *= program.patterns[rows][:, None, :]
                add_gram(total, V.view(-1, n))
            return total

        self.factor = Factor(matrix)
        self.root_solved = self.factor.solve(self.root)

    def solve(self, r: Tensor, rb: Tensor) -> tuple[Tensor, Tensor]:
        """Return ds (2, P, k) and db (1 or 0 entries) for r (2, P, k) and rb."""
        free = torch.cholesky_solve(r[..., None], self.factors)[..., 0]
        f = self.factor.solve(self.root * self.program.fit(free))
        db = rb
        if self.program.fit_intercept:
            db = (rb - (self.root * f).sum()) / (self.root * self.root_solved).sum()
            f = f + db * self.root_solved
        pull = r - self.program.correlations(self.root * f)
        return torch.cholesky_solve(pull[..., None], self.factors)[..., 0], db


def add_gram(total: Tensor, V: Tensor) -> None:
    """Add ``V^T V`` to the lower triangle of a matrix."""
    if total.device.type != "cpu":
        total.addmm_(V.T, V)
        return
    lower = total.numpy().T  # in the order of BLAS, where it is the upper triangle
    blas.dsyrk(1.0, V.numpy().T, beta=1.0, c=lower, overwrite_c=1, lower=0)


class Factor:
    """Cholesky factor of one large symmetric matrix, in its place on the CPU.

    There LAPACK is called through SciPy, without the copies and transpositions of torch.
    `build` returns the matrix, of which only the lower triangle is read; it is called again,
    for a larger diagonal, where rounding made the matrix indefinite.
    """

    def __init__(self, build: Callable[[], Tensor]) -> None:
        for power in (None, *BUMPS):
            A = build()
            if power is not None:
                A.diagonal().add_(A.diagonal().abs() * 10.0**power)
            self.in_place = A.device.type == "cpu"
            if self.in_place:
                # The transpose is in LAPACK's order.
                self.factor, failed = lapack.dpotrf(A.numpy().T, lower=0, clean=0, overwrite_a=1)
            else:
                A, failed = torch.linalg.cholesky_ex(A)
                self.factor = A
            # What is not finite reaches the diagonal.
            if not int(failed) and bool(torch.isfinite(A.diagonal()).all()):
                return
        raise ArithmeticError("The Newton matrix is not positive definite.")

    def solve(self, column: Tensor) -> Tensor:
        """Solve for one column (m, 1)."""
        if self.in_place:
            return torch.from_numpy(lapack.dpotrs(self.factor, column.numpy(), lower=0)[0])
        return torch.cholesky_solve(column, self.factor)

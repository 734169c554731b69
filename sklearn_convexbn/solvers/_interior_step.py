"""One step of the interior-point method for the ReLU program on a list of arrangements.

    minimise   sum_r p_r loss(F_r, y_r) + alpha sum_i (t_i+ + t_i-)
    F = sum_i D_i Z (s_i+ - s_i-) + b,   t >= |s|,   (2 D_i - I) Z s = v >= 0

has one second-order cone and n half-spaces a block. Shapes as in ``_arrangement_program``.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from sklearn_convexbn.solvers._arrangement_program import (
    BlockSystem,
    Program,
    RowSystem,
    gram_matrix,
    rows_are_cheaper,
)
from sklearn_convexbn.solvers._cones import Scaling, cone_divide, cone_step, nesterov_todd

#: A step may err in the gradient, per unit of its length, by this part of the dual residual or of
#: alpha; else it is halved, at most so many times.
TRUST, ACCURACY, MAX_HALVINGS = 0.5, 1.0, 15

#: Shorter steps give way to one towards the central path, at the complementarity of the point or
#: these multiples of it.
SHORT, CENTRED_GAPS = 1e-6, (1.0, 10.0, 100.0)


@dataclass
class Point:
    """Primal (s, b, t, v) and dual (z, mu) variables strictly inside their cones.

    The slacks start relaxed: ``(2 D - I) Z s - v = -theta * offset``, and theta falls to 0.
    """

    s: Tensor
    t: Tensor
    z: Tensor
    v: Tensor
    mu: Tensor
    offset: Tensor
    b: float
    theta: float = 1.0
    gap: float = float("inf")
    residual: float = float("inf")
    stalled: bool = False

    def complementarity(self, alpha: float) -> float:
        """Return <(t, s), (alpha, z)> + <v, mu>, the gap of a feasible point."""
        cone = float((self.t * alpha + (self.s * self.z).sum(-1)).sum())
        return cone + float(torch.dot(self.v.view(-1), self.mu.view(-1)))


def first_point(program: Program, b: float, value: float) -> Point:
    """Return s = 0 with slacks and t of the size that an objective of `value` allows."""
    P, n = program.patterns.shape
    k = program.Z.shape[1]
    size = 0.3 * value / (2 * max(P, 1) * program.alpha)
    new = program.Z.new_zeros
    return Point(
        s=new(2, P, k),
        t=new(2, P) + size,
        z=new(2, P, k),
        v=new(2, P, n) + size,
        mu=new(2, P, n) + 0.1 * program.alpha,
        offset=new(2, P, 1) + size,
        b=b,
    )


class Workspace:
    """Reused (2, P, n) arrays: page faults of fresh ones cost more than the arithmetic."""

    def __init__(self, program: Program, by_rows: bool | None = None) -> None:
        n, k = program.Z.shape
        shape = (2, len(program), n)
        #: Rows z z^T: the 2P barrier Hessians are then one matrix product.
        self.squares = (program.Z[:, :, None] * program.Z[:, None, :]).reshape(n, k * k)
        self.dv, self.dmu, self.ratio, self.target, self.scratch = (
            program.Z.new_empty(shape) for _ in range(5)
        )
        self.hessian = program.Z.new_empty(0)
        self.gram: Tensor | None = None
        self.by_rows = rows_are_cheaper(program, len(program)) if by_rows is None else by_rows

    def system(self, program: Program, B: Tensor, h: Tensor) -> BlockSystem | RowSystem:
        """Factorise the Newton matrix with barrier Hessians B (2, P, k, k) and loss Hessian h."""
        if self.by_rows:
            return RowSystem(program, B, h)
        if self.gram is None or not torch.equal(h, self.hessian):  # constant if squared
            self.hessian, self.gram = h.clone(), gram_matrix(program, h)
            self.reduced = torch.empty_like(self.gram)
        return BlockSystem(program, B, self.gram, self.reduced)


@dataclass
class Step:
    """One Newton direction, and what is needed for the next one at the same point."""

    program: Program
    point: Point
    work: Workspace
    scaling: Scaling
    system: BlockSystem | RowSystem
    hessian: Tensor
    dual_residual: Tensor
    intercept_residual: Tensor
    mu_product: Tensor  # Z^T (2D - I) mu
    ratio_product: Tensor  # Z^T (2D - I) (mu / v), the effect of the slack offset
    ds: Tensor = field(init=False)
    dt: Tensor = field(init=False)
    dz: Tensor = field(init=False)
    db: Tensor = field(init=False)

    def solve(self, q0: Tensor, q: Tensor, target: Tensor | None, *, refine: int) -> None:
        """Set the direction: conic right-hand side (q0, q), dmu = target - mu - ratio dv."""
        h00, h0 = self.scaling.squared_inverse()
        q = q - h0 * (q0 / h00)[..., None]
        shift = self.point.theta * self.point.offset
        pull = self.mu_product
        if target is not None:
            pull = pull - self.program.cone_product(target, self.work.scratch)
        r = -self.dual_residual + q - pull + shift * self.ratio_product
        self.ds, self.db = self.system.solve(r, -self.intercept_residual)
        self.dz = q - self.scaling.schur(self.ds)
        self._set_multipliers(shift, target)
        for _ in range(refine):
            more, db = self.system.solve(*self._newton_residual())
            self.ds, self.db = self.ds + more, self.db + db
            self.dz = self.dz - self.scaling.schur(more)
            self._set_multipliers(shift, target)
        self.dt = (q0 - (h0 * self.ds).sum(-1)) / h00

    def _newton_residual(self) -> tuple[Tensor, Tensor]:
        """Return what the direction leaves of the equations, by the operators, not the factors."""
        dF = self.program.fit(self.ds)
        if self.program.fit_intercept:
            dF = dF + self.db
        force = self.hessian * dF
        r = self.program.correlations(force) + self.dual_residual - self.dz
        r -= self.program.cone_product(self.work.dmu, self.work.scratch)
        rb = self.intercept_residual
        return -r, -(force.sum().reshape(1) + rb) if self.program.fit_intercept else rb

    def _set_multipliers(self, shift: Tensor, target: Tensor | None) -> None:
        """Set dv and dmu from ds."""
        work = self.work
        self.program.slack_product(self.ds, work.dv).sub_(shift)
        torch.mul(work.ratio, work.dv, out=work.dmu).neg_().sub_(self.point.mu)
        if target is not None:
            work.dmu.add_(target)

    def length(self) -> float:
        """Return the largest step that stays in all cones."""
        point, work = self.point, self.work
        low = float(torch.div(work.dv, point.v, out=work.scratch).min())
        low = min(low, float(torch.div(work.dmu, point.mu, out=work.scratch).min()))
        alpha = torch.full_like(point.t, self.program.alpha)
        return min(
            -1 / low if low < 0 else 1e30,
            cone_step(point.t, point.s, self.dt, self.ds),
            cone_step(alpha, point.z, torch.zeros_like(point.t), self.dz),
        )

    def gap_after(self, length: float) -> float:
        """Return the complementarity after a step of this length."""
        point, work = self.point, self.work
        cone = (point.t + length * self.dt) * self.program.alpha
        cone = cone + ((point.s + length * self.ds) * (point.z + length * self.dz)).sum(-1)
        v, mu, dv, dmu = (x.view(-1) for x in (point.v, point.mu, work.dv, work.dmu))
        cross = torch.dot(v, dmu) + torch.dot(mu, dv)
        return float(
            cone.sum() + torch.dot(v, mu) + length * cross + length**2 * torch.dot(dv, dmu)
        )

    def within_curvature(self, length: float) -> float:
        """Halve a step until the gradient of the loss is about what its linearisation says.

        A fixed curvature needs no such care. Elsewhere steps that are too long make the dual
        residual grow, and the iterates with it. What a full step would leave is judged relative to
        the residual and to the complementarity that are there.
        """
        program, point = self.program, self.point
        if program.loss.identity_hessian:
            return length
        direction = program.fit(self.ds)
        fit = program.fit(point.s) + point.b
        if program.fit_intercept:
            direction = direction + self.db
        gradient = program.gradient(fit)
        change = self.hessian * direction
        here = float(self.dual_residual.norm(dim=-1).max())
        allowed = max(TRUST * here, ACCURACY * program.alpha)
        for _ in range(MAX_HALVINGS):
            moved = program.gradient(fit + length * direction)
            error = program.correlations(moved - gradient - length * change)[0]
            if float(error.norm(dim=-1).max()) <= allowed * length:
                break
            length *= 0.5
        return length

    def take(self, length: float) -> None:
        """Move the point along the direction, in place."""
        point, work = self.point, self.work
        point.s = point.s + length * self.ds
        point.t = point.t + length * self.dt
        point.z = point.z + length * self.dz
        point.v.add_(work.dv, alpha=length)
        point.mu.add_(work.dmu, alpha=length)
        if self.program.fit_intercept:
            point.b += length * float(self.db)
        point.theta *= 1 - length
        point.gap = point.complementarity(self.program.alpha)


def linearise(program: Program, point: Point, work: Workspace) -> Step:
    """Return residuals, scaling and the factorised Newton matrix at the point."""
    k = program.Z.shape[1]
    F = program.fit(point.s) + point.b
    G = program.gradient(F)
    h = program.loss.hessian(F, program.Y, program.p)[:, :, 0]
    mu_product = program.cone_product(point.mu, work.scratch)
    dual_residual = program.correlations(G) - point.z - mu_product
    alpha = torch.full_like(point.t, program.alpha)
    scaling = nesterov_todd(point.t, point.s, alpha, point.z)
    torch.div(point.mu, point.v, out=work.ratio)
    B = (work.ratio.view(-1, work.ratio.shape[-1]) @ work.squares).view(2, -1, k, k)
    B += scaling.schur_matrix()
    point.residual = float(dual_residual.norm(dim=-1).max()) / program.alpha
    return Step(
        program=program,
        point=point,
        work=work,
        scaling=scaling,
        system=work.system(program, B, h),
        hessian=h,
        dual_residual=dual_residual,
        intercept_residual=G.sum().reshape(1) if program.fit_intercept else G.new_empty(0),
        mu_product=mu_product,
        ratio_product=program.cone_product(work.ratio, work.scratch),
    )


def newton_step(program: Program, point: Point, work: Workspace, *, reach: float = 0.99) -> None:
    """Take one Mehrotra predictor-corrector step, in place; set ``stalled`` where there is none.

    Mehrotra, "On the implementation of a primal-dual interior point method" (1992), with the
    Nesterov-Todd scaling of the second-order cones.
    """
    gap = point.complementarity(program.alpha)
    try:
        step = linearise(program, point, work)
    except ArithmeticError:
        point.stalled = True
        return
    l0, l = scaled = step.scaling.apply(torch.full_like(point.t, program.alpha), point.z)  # noqa: E741
    step.solve(*step.scaling.invert(-l0, -l), target=None, refine=0)
    length = min(1.0, step.length())
    share = min(1.0, max(step.gap_after(length) / gap, 2e-3)) ** 3
    length = _correct(step, scaled, share * gap, second_order=True, reach=reach)
    for more in CENTRED_GAPS:
        if length > SHORT:
            break
        # Infeasible points that come with little complementarity are far from the central path.
        length = _correct(step, scaled, more * gap, second_order=False, reach=reach)
    point.stalled = not length > SHORT  # true for NaN too
    if not point.stalled:
        step.take(length)


def _correct(
    step: Step, scaled: tuple[Tensor, Tensor], gap: float, *, second_order: bool, reach: float
) -> float:
    """Set the direction to the central path at the complementarity `gap`; return its length.

    `second_order` corrects both products, v * mu and (t, s) o (alpha, z), for the step before.
    """
    point, work, scaling = step.point, step.work, step.scaling
    l0, l = scaled  # noqa: E741
    tau = gap / (point.t.numel() + point.v.numel())
    u0, u = tau - (l0 * l0 + (l * l).sum(-1)), -2 * l0[..., None] * l
    if second_order:
        torch.mul(work.dv, work.dmu, out=work.target).neg_().add_(tau).div_(point.v)
        x0, x = scaling.invert(step.dt, step.ds)
        y0, y = scaling.apply(torch.zeros_like(step.dt), step.dz)
        u0 = u0 - (x0 * y0 + (x * y).sum(-1))
        u = u - (x0[..., None] * y + y0[..., None] * x)
    else:
        torch.reciprocal(point.v, out=work.target).mul_(tau)
    step.solve(*scaling.invert(*cone_divide(l0, l, u0, u)), target=work.target, refine=1)
    return step.within_curvature(min(1.0, reach * step.length()))

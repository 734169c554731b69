"""Newton steps on the factors of low-rank blocks: the fast end of FISTA (`_fista`)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sklearn_convexbn.solvers._gated_program import GatedProgram, Point, balanced_factors

#: Conjugate gradient steps for one Newton step.
MAX_CG_STEPS = 100


class Factors:
    """The objective in factors U (m, k), V (m, C) and b, flattened into one vector theta.

    Row j of U and of V are one neuron behind its gate; ``|U|^2 + |V|^2`` is twice the sum of
    the nuclear norms where the factors are balanced and orthogonal, and more elsewhere, so
    that a smaller value here is a smaller value of the program.
    """

    def __init__(self, program: GatedProgram, point: Point) -> None:
        self.part, self.shape = program.restricted(point.gates), point.S.shape
        self.which, U, V = balanced_factors(point.S)
        self.sizes = [U.numel(), V.numel(), len(point.b)]
        self.theta = self.join(U, V, point.b)

    def join(self, U: Tensor, V: Tensor, b: Tensor) -> Tensor:
        return torch.cat([U.reshape(-1), V.reshape(-1), b])

    def split(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        U, V, b = theta.split(self.sizes)
        return U.view(-1, self.shape[1]), V.view(-1, self.shape[2]), b

    def blocks(self, *products: tuple[Tensor, Tensor]) -> Tensor:
        """Return the sum of ``U_j V_j^T`` of every gate, over the given pairs (U, V)."""
        total = self.part.Z.new_zeros(self.shape)
        for U, V in products:
            total.index_add_(0, self.which, U.unsqueeze(2) * V.unsqueeze(1))
        return total

    def value(self, theta: Tensor) -> float:
        U, V, b = self.split(theta)
        penalty = float(U.square().sum() + V.square().sum())
        F = self.part.fit(self.blocks((U, V))) + b
        return self.part.mean_loss(F) + 0.5 * self.part.alpha * penalty

    def expand(self, theta: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor], Tensor]:
        """Return the gradient, the Hessian as an operator, and a scale for every unknown."""
        part, (U, V, b) = self.part, self.split(theta)
        F = part.fit(self.blocks((U, V))) + b
        G, rows = part.gradient(F), part.loss.hessian(F, part.Y, part.p)
        W = part.adjoint(G)[self.which]

        def assembled(X: Tensor, G: Tensor, at: Tensor) -> Tensor:
            slopes = (X @ V.unsqueeze(2)).squeeze(2), (U.unsqueeze(1) @ X).squeeze(1)
            return self.join(*slopes, G.sum(dim=0) * part.fit_intercept) + weights * at

        def hessian(d: Tensor) -> Tensor:
            dU, dV, db = self.split(d)
            dF = part.fit(self.blocks((dU, V), (U, dV))) + db
            dG = (rows @ dF.unsqueeze(2)).squeeze(2)
            cross = (W @ dV.unsqueeze(2)).squeeze(2), (dU.unsqueeze(1) @ W).squeeze(1)
            return assembled(part.adjoint(dG)[self.which], dG, d) + self.join(*cross, 0.0 * db)

        weights = torch.full_like(theta, part.alpha)
        weights[len(weights) - len(b) :] = 0.0
        # Half of the rows are active behind a typical gate, and Z is whitened.
        mean = float(rows.diagonal(dim1=1, dim2=2).sum()) / len(b)
        U_scale, V_scale = (
            part.alpha + 0.5 * mean * other.square().sum(dim=1, keepdim=True).expand(a.shape)
            for a, other in ((U, V), (V, U))
        )
        scale = self.join(U_scale, V_scale, torch.full_like(b, max(mean, part.eps))).rsqrt()
        return assembled(W, G, theta), hessian, scale


def newton_steps(program: GatedProgram, point: Point, accuracy: float, *, n_steps: int) -> Point:
    """Take trust-region Newton steps on the factors of the blocks; never raises the objective.

    Stops early when the gradient has fallen to `accuracy` times its largest.
    """
    if len(point.gates) == 0 or n_steps == 0:
        return point
    factors = Factors(program, point)
    theta, value = factors.theta, factors.value(factors.theta)
    radius, first = 0.0, 0.0
    for _ in range(n_steps):
        gradient, hessian, scale = factors.expand(theta)
        g = scale * gradient
        size = float(g.norm())
        first, radius = max(first, size), radius or float((theta / scale).norm())
        if size <= accuracy * first or size == 0.0:
            break

        def scaled(d: Tensor, hessian: Callable = hessian, scale: Tensor = scale) -> Tensor:
            return scale * hessian(scale * d)

        tolerance = min(0.1, (size / first) ** 0.5) * size
        d, predicted = truncated_cg(scaled, g, radius, tolerance, n_steps=MAX_CG_STEPS)
        length = float(d.norm())
        trial = theta + scale * d
        new = factors.value(trial)
        noise = 10 * program.eps * abs(value)
        ratio = (value - new + noise) / (predicted + noise)
        if ratio < 0.25:
            radius = 0.25 * length
        elif ratio > 0.75:
            radius = max(radius, 2.0 * length)
        if ratio > 1e-4:
            theta, value = trial, new
        elif predicted <= noise:
            break
    U, V, b = factors.split(theta)
    return Point(point.gates, factors.blocks((U, V)), b)


def truncated_cg(
    hessian: Callable[[Tensor], Tensor], g: Tensor, radius: float, tolerance: float, *, n_steps: int
) -> tuple[Tensor, float]:
    """Minimise ``<g, d> + <d, H d>/2`` over |d| <= radius by Steihaug's conjugate gradients.

    Returns
    -------
    d : torch.Tensor
    predicted : float
        The decrease of the quadratic model, positive.
    """
    d, Hd = torch.zeros_like(g), torch.zeros_like(g)
    r, q = -g, -g
    rr = float(r @ r)
    for _ in range(n_steps):
        Hq = hessian(q)
        curvature = float(q @ Hq)
        step = rr / curvature if curvature > 0 else float("inf")
        if curvature <= 0 or float((d + step * q).norm()) > radius:
            # On to the border.
            dq, qq, dd = float(d @ q), float(q @ q), float(d @ d)
            step = (-dq + max(dq * dq + qq * (radius * radius - dd), 0.0) ** 0.5) / qq
            d, Hd = d + step * q, Hd + step * Hq
            break
        d, Hd, r = d + step * q, Hd + step * Hq, r - step * Hq
        rr, last = float(r @ r), rr
        if rr**0.5 <= tolerance:
            break
        q = r + (rr / last) * q
    return d, -float(g @ d + 0.5 * (d @ Hd))

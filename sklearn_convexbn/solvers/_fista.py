r"""FISTA, with Newton steps, for gated programs.

.. math:: \min_{S, b} L\Big(\sum_g D_g Z S_g + 1 b^T\Big) + \alpha \sum_g |S_g|_*

over blocks S_g (k x C): a group lasso for one output (:mod:`_gated_newton` measured faster there),
nuclear norms for several. Each round looks at all gates, keeps the active ones and the worst
violators of the dual constraint, and solves the program on those. Accelerated proximal gradient
finds out which gates are active and the ranks of their blocks; it is slow to converge from there
on, but on blocks of fixed rank,
:math:`S_g = U_g V_g^T` with the penalty :math:`\frac{\alpha}{2} (|U_g|^2 + |V_g|^2)`, the
program is smooth and Newton's method finishes it. (Bareilles, Iutzeler and Malick, "Newton
acceleration on manifolds identified by proximal gradient methods", 2023.) Where that creeps, a
small program is solved in its dual (:mod:`_gated_dual`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any, ClassVar

from sklearn_convexbn.program._problem import Problem
from sklearn_convexbn.solvers._base import Iterate, RunSettings, Solver
from sklearn_convexbn.support._compat import Interval, StrOptions

if TYPE_CHECKING:
    from torch import Tensor

    from sklearn_convexbn.solvers._gated_program import GatedProgram, Point

#: Rounds without progress after which rounding is to blame.
PATIENCE = 4

#: Rounds after which the dual of a small program is solved, to this part of the tolerance; and
#: again after twice as many.
ROUNDS_TO_DUAL, DUAL_ACCURACY = 8, 0.1


class FISTA(Solver):
    """Solve the gated program by FISTA and Newton steps on the factors of its blocks, in torch.

    Parameters
    ----------
    dtype : {"float64", "float32"}, default="float64"
        Arithmetic. With "float32" relative gaps come down to about 1e-3.
    n_steps : int, default=100
        Largest number of proximal gradient steps in a round.
    n_newton_steps : int, default=10
        Largest number of Newton steps on the factors in a round; 0 is FISTA alone.
    """

    name = "fista"
    pools = True

    #: Programs whose dual takes more operations a Newton step are not solved in it; None for what
    #: pays.
    max_dual_cost: ClassVar[float | None] = None

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "dtype": [StrOptions({"float64", "float32"})],
        "n_steps": [Interval(Integral, 1, None, closed="left")],
        "n_newton_steps": [Interval(Integral, 0, None, closed="left")],
    }

    def __init__(
        self,
        dtype: str = "float64",
        n_steps: int = 100,
        n_newton_steps: int = 10,
    ) -> None:
        self.dtype = dtype
        self.n_steps = n_steps
        self.n_newton_steps = n_newton_steps

    def unsupported(self, problem: Problem) -> str:
        if problem.activation != "gated_relu":
            return f"activation={problem.activation!r}"
        return ""

    def iterates(self, problem: Problem, settings: RunSettings) -> Iterator[Iterate]:
        import torch

        from sklearn_convexbn.solvers._factor_newton import newton_steps
        from sklearn_convexbn.solvers._gated_dual import affordable, solve_dual
        from sklearn_convexbn.solvers._gated_program import GatedProgram

        program = GatedProgram(problem, settings.device, getattr(torch, self.dtype))
        point = program.start(problem, settings.start)
        watch, rounds, patience = _Progress(program.eps), 0, ROUNDS_TO_DUAL
        while True:
            norms, value, excess = program.look_at_all_gates(point)
            stalled, rounds = watch.stalled(value, excess), rounds + 1
            if (stalled or rounds >= patience) and affordable(
                program, len(norms), self.max_dual_cost
            ):
                yield Iterate(program.neurons(point))
                point, Lambda = solve_dual(program, DUAL_ACCURACY * settings.tol)
                if patience > ROUNDS_TO_DUAL:
                    # The dual point's own bound, where steps from there do not end, either.
                    neurons = program.neurons(point)
                    yield Iterate(neurons, Lambda.cpu().numpy(), stalled=stalled)
                patience = 2 * max(rounds, patience)
                norms, value, excess = program.look_at_all_gates(point)
                watch = _Progress(program.eps, value, excess)
            else:
                yield Iterate(program.neurons(point), stalled=stalled)
            # The gap is about proportional to the gradient: no need to go far below tol.
            accuracy = min(max(settings.tol / max(excess, 1e-30), 0.01), 0.1)
            point = program.working_set(point, norms)
            point = proximal_steps(program, point, accuracy, n_steps=self.n_steps)
            point = newton_steps(program, point, accuracy, n_steps=self.n_newton_steps)


@dataclass
class _Progress:
    """Notices when neither the objective nor the dual infeasibility falls any more."""

    eps: float
    value: float = float("inf")
    excess: float = float("inf")
    idle: int = 0

    def stalled(self, value: float, excess: float) -> bool:
        fell = self.value - value > 10.0 * self.eps * abs(value)
        self.idle = 0 if fell or excess < 0.9 * self.excess else self.idle + 1
        self.value, self.excess = min(self.value, value), min(self.excess, excess)
        return self.idle >= PATIENCE


def shrink_singular_values(X: Tensor, threshold: float) -> Tensor:
    """Return the proximal map of ``threshold * sum_g |X_g|_*`` at matrices X (m, k, C).

    From the eigenvectors of the smaller Gram matrix: singular values that matter are above
    the threshold, and those are accurate enough.
    """
    import torch

    from sklearn_convexbn.support._linear_algebra import gram_of_smaller_side

    if min(X.shape) == 0:
        return X
    if min(X.shape[1:]) == 1:
        norms = torch.linalg.vector_norm(X, dim=(1, 2), keepdim=True)
        return X * (1.0 - threshold / norms.clamp_min(1e-30)).clamp_min(0.0)
    values, vectors = torch.linalg.eigh(gram_of_smaller_side(X))
    factors = (1.0 - threshold / values.clamp_min(1e-30).sqrt()).clamp_min(0.0)
    filtered = (vectors * factors.unsqueeze(1)) @ vectors.mT
    return X @ filtered if X.shape[1] >= X.shape[2] else filtered @ X


def _largest_curvature(program: GatedProgram, F: Tensor) -> float:
    """Return the largest second derivative of one row's loss at the fit F (n, C)."""
    D = program.curvatures(F)[0] / program.p.unsqueeze(1)
    return max(float(D.max()), 1e-30)


def proximal_steps(program: GatedProgram, point: Point, accuracy: float, *, n_steps: int) -> Point:
    """FISTA with adaptive restart and step sizes from the local curvature of the loss.

    Stops early when the proximal gradient has fallen to `accuracy` times its largest.
    """
    import torch

    from sklearn_convexbn.solvers._gated_program import Point

    if len(point.gates) == 0:
        return point
    part = program.restricted(point.gates)
    lipschitz, bound = part.squared_norm(), program.loss.curvature
    scale = bound if bound < float("inf") else _largest_curvature(part, part.fit(point.S) + point.b)
    S, b = point.S, point.b
    fit = part.fit(S)
    S_old, b_old, fit_old = S, b, fit
    curvature, t, first = 0.25 * scale, 1.0, 0.0
    for i in range(n_steps):
        t_new = 0.5 * (1.0 + (1.0 + 4.0 * t * t) ** 0.5)
        momentum = (t - 1.0) / t_new
        W, c, at = (
            new + momentum * (new - old) for new, old in ((S, S_old), (b, b_old), (fit, fit_old))
        )
        F = at + c
        value, G = part.mean_loss(F), part.gradient(F)
        slope, slope_b = part.adjoint(G), G.sum(dim=0) * part.fit_intercept
        S_old, b_old, fit_old = S, b, fit
        curvature = max(0.9 * curvature, 1e-6 * scale)
        while True:
            step = 1.0 / (curvature * lipschitz)
            S = shrink_singular_values(W - step * slope, step * part.alpha)
            b = c - slope_b / curvature
            fit = part.fit(S)
            moves = float((S - W).square().sum()) / step + float((b - c).square().sum()) * curvature
            linear = float((slope * (S - W)).sum() + slope_b @ (b - c))
            model = value + linear + 0.5 * moves
            if curvature > 4.0 * bound or part.mean_loss(fit + b) <= model + 4 * part.eps * abs(
                value
            ):
                break
            curvature *= 2.0
        turned = float(((W - S) * (S - S_old)).sum()) * lipschitz
        t = 1.0 if turned + float((c - b) @ (b - b_old)) > 0 else t_new
        residual = moves * curvature
        first = max(first, residual)
        if residual <= accuracy**2 * first and i >= 10:
            break
    keep = torch.linalg.vector_norm(S, dim=(1, 2)) > 0
    return Point(point.gates[keep], S[keep], b)

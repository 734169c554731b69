r"""FISTA, with Newton steps, for the programs on a fixed list of arrangements.

.. math:: \min_{S, b} L\Big(\sum_g D_g Z S_g + 1 b^T\Big) + \alpha \sum_g |S_g|_*

over blocks S_g (k x C): a group lasso for one output, nuclear norms for several. Each round
looks at all gates, keeps the active ones and the worst violators of the dual constraint, and
solves the program on those. Accelerated proximal gradient finds out which gates are active and
the ranks of their blocks; it is slow to converge from there on, but on blocks of fixed rank,
:math:`S_g = U_g V_g^T` with the penalty :math:`\frac{\alpha}{2} (|U_g|^2 + |V_g|^2)`, the
program is smooth and Newton's method finishes it. (Bareilles, Iutzeler and Malick, "Newton
acceleration on manifolds identified by proximal gradient methods", 2023.) For one output
Newton's method on the scales of the groups needs no such help (:mod:`_group_newton`). The
exact ReLU program adds cone constraints; a structured interior-point method measured far
faster there than augmented Lagrangians or ADMM (:mod:`_interior_point`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sklearn_convexbn._problem import Neurons, Problem
from sklearn_convexbn.solvers._base import Iterate, RunSettings, Solver
from sklearn_convexbn.solvers._group_newton import group_newton
from sklearn_convexbn.solvers._interior_point import interior_point

#: Rounds without progress after which rounding is to blame.
PATIENCE = 4

#: Least number of gates that a round may add.
NEW_GATES = 64

#: Conjugate gradient steps for one Newton step.
MAX_CG_STEPS = 100


class FISTA(Solver):
    """Solve the program on a list of arrangements by FISTA and Newton steps, in torch.

    Parameters
    ----------
    method : {"auto", "fista", "newton"}, default="auto"
        Method for gated programs; the exact ReLU program has an interior-point method only.
        "newton": Newton steps on the scales of the gates, for gated programs with one output.
        "fista": proximal gradient steps and Newton steps on the factors of the blocks.
        "auto": "newton" where it applies, in float64, and "fista" elsewhere.
    dtype : {"float64", "float32"}, default="float64"
        Arithmetic of "fista"; "newton" always computes in float64. With "float32" rounds are
        faster on a GPU and relative gaps come down to about 1e-3.
    n_steps : int, default=100
        Largest number of proximal gradient steps in a round.
    n_newton_steps : int, default=10
        Largest number of Newton steps on the factors in a round; 0 is FISTA alone.
    """

    name = "fista"

    def __init__(
        self,
        method: str = "auto",
        dtype: str = "float64",
        n_steps: int = 100,
        n_newton_steps: int = 10,
    ) -> None:
        self.method = method
        self.dtype = dtype
        self.n_steps = n_steps
        self.n_newton_steps = n_newton_steps

    def unsupported(self, problem: Problem) -> str:
        if problem.activation == "relu" and problem.n_outputs > 1:
            return "ReLU networks with several outputs on a list of arrangements"
        if self.method == "newton" and problem.n_outputs > 1:
            return "several outputs with method='newton'"
        return ""

    def iterates(self, problem: Problem, settings: RunSettings) -> Iterator[Iterate]:
        self._check_parameters()
        if problem.activation == "relu":
            return interior_point(problem, settings)
        one_output = problem.n_outputs == 1
        auto_newton = self.method == "auto" and one_output and self.dtype == "float64"
        if self.method == "newton" or auto_newton:
            return _newton_iterates(problem, settings)
        return self._fista_iterates(problem, settings)

    def _check_parameters(self) -> None:
        if self.method not in ("auto", "fista", "newton"):
            raise ValueError(
                f"The 'method' parameter of FISTA must be 'auto', 'fista' or 'newton'. "
                f"Got {self.method!r} instead."
            )
        if self.dtype not in ("float64", "float32"):
            raise ValueError(
                f"The 'dtype' parameter of FISTA must be 'float64' or 'float32'. "
                f"Got {self.dtype!r} instead."
            )

    def _fista_iterates(self, problem: Problem, settings: RunSettings) -> Iterator[Iterate]:
        program = _Program(problem, settings.device, getattr(torch, self.dtype))
        point = program.start(problem, settings.start)
        watch = _Progress(program.eps)
        while True:
            norms, value, excess = program.look_at_all_gates(point)
            yield Iterate(program.neurons(point), stalled=watch.stalled(value, excess))
            # The gap is about proportional to the gradient: no need to go far below tol.
            accuracy = min(max(settings.tol / max(excess, 1e-30), 0.01), 0.1)
            point = program.working_set(point, norms)
            point = proximal_steps(program, point, accuracy, n_steps=self.n_steps)
            point = newton_steps(program, point, accuracy, n_steps=self.n_newton_steps)


def _newton_iterates(problem: Problem, settings: RunSettings) -> Iterator[Iterate]:
    """Gated program with one output: Newton's method on the scales of the gates."""

    def tensor(a: np.ndarray) -> Tensor:
        return torch.as_tensor(np.ascontiguousarray(a, dtype=np.float64), device=settings.device)

    start = None
    if settings.start is not None and settings.start.gates is not None:
        which, group = np.unique(settings.start.gates, return_inverse=True)
        S = np.zeros((len(which), problem.Z.shape[1]))
        np.add.at(S, group.ravel(), settings.start.directions * settings.start.weights)
        groups = torch.as_tensor(which, dtype=torch.long, device=settings.device)
        start = (groups, tensor(S), float(settings.start.intercept[0]))
    rounds = group_newton(
        tensor(problem.Z),
        tensor(problem.patterns),
        tensor(problem.Y),
        tensor(problem.p),
        problem.loss,
        problem.alpha,
        problem.fit_intercept,
        start,
        tol=1e-3 * settings.tol,  # so that the driver's certificate decides, not this one
    )
    for found in rounds:
        q, b = found.S.cpu().numpy(), np.array([found.b])
        gates = found.active.cpu().numpy().astype(np.intp)
        neurons = Neurons.from_products(q, np.ones((len(q), 1)), b, gates)
        yield Iterate(neurons, stalled=found.stalled or found.gap <= 1e-3 * settings.tol)


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


@dataclass(frozen=True)
class _Point:
    """Blocks S (m, k, C) behind distinct gates (m,), and b (C,) in centred columns."""

    gates: Tensor
    S: Tensor
    b: Tensor


class _Program:
    """The gated program's arrays on a torch device."""

    def __init__(self, problem: Problem, device: str, dtype: torch.dtype) -> None:
        def tensor(a: np.ndarray) -> Tensor:
            return torch.as_tensor(np.ascontiguousarray(a), device=device).to(dtype)

        self.Z, self.Y, self.p = tensor(problem.Z), tensor(problem.Y), tensor(problem.p)
        self.M = tensor(problem.patterns)
        self.loss, self.alpha = problem.loss, problem.alpha
        self.fit_intercept = float(problem.fit_intercept)
        # With b fitted, columns are centred: the loss then hardly couples b and the blocks.
        self.centres = (self.M.T @ (self.p[:, None] * self.Z)) * self.fit_intercept
        self.eps = torch.finfo(dtype).eps

    def restricted(self, gates: Tensor) -> _Program:
        """Return the same program on some of the gates."""
        part = copy(self)
        part.M, part.centres = self.M[:, gates], self.centres[gates]
        return part

    def value(self, F: Tensor) -> float:
        return float(self.loss.value(F, self.Y, self.p))

    def gradient(self, F: Tensor) -> Tensor:
        return self.loss.gradient(F, self.Y, self.p)

    def fit(self, S: Tensor) -> Tensor:
        """Return ``sum_g D_g Z S_g`` (n, C) in centred columns; S is (P, k, C)."""
        n, k = self.Z.shape
        rows = (self.M @ S.flatten(1)).view(n, k, S.shape[2])
        F = (self.Z.unsqueeze(1) @ rows).squeeze(1)
        return F - torch.einsum("mk,mkc->c", self.centres, S)

    def adjoint(self, G: Tensor) -> Tensor:
        """Return ``Z^T D_g G`` (P, k, C) in centred columns."""
        (n, k), C = self.Z.shape, G.shape[1]
        spread = (self.Z.unsqueeze(2) * G.unsqueeze(1)).reshape(n, k * C)
        w = (spread.T @ self.M).T.reshape(self.M.shape[1], k, C)
        return w - self.centres.unsqueeze(2) * G.sum(dim=0)

    def squared_norm(self) -> float:
        """Return the largest eigenvalue of A^T diag(p) A of the stacked columns, nearly."""
        # Power iteration from no special direction; the line search of the proximal steps
        # makes up for what is missing.
        S = torch.arange(self.centres.numel(), device=self.Z.device).to(self.Z).cos()
        S, size = S.view(*self.centres.shape, 1), 0.0
        for _ in range(20):
            S = S / float(torch.linalg.vector_norm(S).clamp_min(1e-30))
            S = self.adjoint(self.p[:, None] * self.fit(S))
            size, last = float(torch.linalg.vector_norm(S)), size
            if abs(size - last) <= 1e-3 * size:
                break
        return max(size, 1e-30)

    def start(self, problem: Problem, neurons: Neurons | None) -> _Point:
        """Return the point of a network, or the constant model."""
        if neurons is None or neurons.gates is None:
            neurons = Neurons.empty(self.Z.shape[1], problem.constant())
        neurons = problem.with_best_intercept(neurons)[0]
        assert neurons.gates is not None
        which, group = np.unique(neurons.gates, return_inverse=True)
        S = np.zeros((len(which), self.Z.shape[1], self.Y.shape[1]))
        products = neurons.directions[:, :, None] * neurons.weights[:, None, :]
        np.add.at(S, group.ravel(), products)
        gates = torch.as_tensor(which, dtype=torch.long, device=self.Z.device)
        blocks = torch.as_tensor(S).to(self.Z)
        shift = torch.einsum("mk,mkc->c", self.centres[gates], blocks)
        return _Point(gates, blocks, torch.as_tensor(neurons.intercept).to(self.Z) + shift)

    def neurons(self, point: _Point) -> Neurons:
        b = point.b - torch.einsum("mk,mkc->c", self.centres[point.gates], point.S)
        which, U, V = balanced_factors(point.S)
        q, v, intercept = (a.cpu().numpy().astype(np.float64) for a in (U, V, b))
        gates = point.gates[which].cpu().numpy().astype(np.intp)
        return Neurons.from_products(q, v, intercept, gates)

    def look_at_all_gates(self, point: _Point) -> tuple[Tensor, float, float]:
        """Return the norm of every gate's correlation (P,), the objective and ``max/alpha - 1``."""
        F = self.restricted(point.gates).fit(point.S) + point.b
        G = self.gradient(F)
        norms = spectral_norms(self.adjoint(G))
        value = self.value(F) + self.alpha * float(singular_values(point.S).sum())
        largest = float(norms.amax()) if len(norms) else 0.0
        return norms, value, max(largest / self.alpha - 1.0, 0.0)

    def working_set(self, point: _Point, norms: Tensor) -> _Point:
        """Add zero blocks for the worst violators: as many as are active, at least 64."""
        score = norms.clone()
        score[point.gates] = 0.0
        worst = score.topk(min(len(norms), max(NEW_GATES, len(point.gates)))).indices
        new = worst[score[worst] > self.alpha]
        gates, order = torch.cat([point.gates, new]).sort()
        zeros = point.S.new_zeros(len(new), *point.S.shape[1:])
        return _Point(gates, torch.cat([point.S, zeros])[order], point.b)


# ------------------------------------------------------------------------ proximal gradient


def gram_of_smaller_side(X: Tensor) -> Tensor:
    """Return X^T X or X X^T (m, r, r) of matrices X (m, k, C), r = min(k, C)."""
    return X.mT @ X if X.shape[1] >= X.shape[2] else X @ X.mT


def spectral_norms(X: Tensor) -> Tensor:
    """Return the largest singular values (m,) of matrices (m, k, C)."""
    if min(X.shape) <= 1:
        return torch.linalg.vector_norm(X, dim=(1, 2))
    return torch.linalg.eigvalsh(gram_of_smaller_side(X))[:, -1].clamp_min(0.0).sqrt()


def singular_values(X: Tensor) -> Tensor:
    """Return the singular values (m, r) of matrices (m, k, C)."""
    return torch.linalg.svdvals(X) if len(X) else X.new_zeros(0, min(X.shape[1:]))


def shrink_singular_values(X: Tensor, threshold: float) -> Tensor:
    """Return the proximal map of ``threshold * sum_g |X_g|_*`` at matrices X (m, k, C).

    From the eigenvectors of the smaller Gram matrix: singular values that matter are above
    the threshold, and those are accurate enough.
    """
    if min(X.shape) == 0:
        return X
    if min(X.shape[1:]) == 1:
        norms = torch.linalg.vector_norm(X, dim=(1, 2), keepdim=True)
        return X * (1.0 - threshold / norms.clamp_min(1e-30)).clamp_min(0.0)
    values, vectors = torch.linalg.eigh(gram_of_smaller_side(X))
    factors = (1.0 - threshold / values.clamp_min(1e-30).sqrt()).clamp_min(0.0)
    filtered = (vectors * factors.unsqueeze(1)) @ vectors.mT
    return X @ filtered if X.shape[1] >= X.shape[2] else filtered @ X


def proximal_steps(program: _Program, point: _Point, accuracy: float, *, n_steps: int) -> _Point:
    """FISTA with adaptive restart and step sizes from the local curvature of the loss.

    Stops early when the proximal gradient has fallen to `accuracy` times its largest.
    """
    if len(point.gates) == 0:
        return point
    part = program.restricted(point.gates)
    lipschitz, bound = part.squared_norm(), program.loss.curvature
    S, b = point.S, point.b
    fit = part.fit(S)
    S_old, b_old, fit_old = S, b, fit
    curvature, t, first = 0.25 * bound, 1.0, 0.0
    for i in range(n_steps):
        t_new = 0.5 * (1.0 + (1.0 + 4.0 * t * t) ** 0.5)
        momentum = (t - 1.0) / t_new
        W, c, at = (
            new + momentum * (new - old) for new, old in ((S, S_old), (b, b_old), (fit, fit_old))
        )
        F = at + c
        value, G = part.value(F), part.gradient(F)
        slope, slope_b = part.adjoint(G), G.sum(dim=0) * part.fit_intercept
        S_old, b_old, fit_old = S, b, fit
        curvature = max(0.9 * curvature, 1e-6 * bound)
        while True:
            step = 1.0 / (curvature * lipschitz)
            S = shrink_singular_values(W - step * slope, step * part.alpha)
            b = c - slope_b / curvature
            fit = part.fit(S)
            moves = float((S - W).square().sum()) / step + float((b - c).square().sum()) * curvature
            linear = float((slope * (S - W)).sum() + slope_b @ (b - c))
            model = value + linear + 0.5 * moves
            if curvature > 4.0 * bound or part.value(fit + b) <= model + 4 * part.eps * abs(value):
                break
            curvature *= 2.0
        turned = float(((W - S) * (S - S_old)).sum()) * lipschitz
        t = 1.0 if turned + float((c - b) @ (b - b_old)) > 0 else t_new
        residual = moves * curvature
        first = max(first, residual)
        if residual <= accuracy**2 * first and i >= 10:
            break
    keep = torch.linalg.vector_norm(S, dim=(1, 2)) > 0
    return _Point(point.gates[keep], S[keep], b)


# ----------------------------------------------------------------- Newton steps on the factors


class _Factors:
    """The objective in factors U (m, k), V (m, C) and b, flattened into one vector theta.

    Row j of U and of V are one neuron behind its gate; ``|U|^2 + |V|^2`` is twice the sum of
    the nuclear norms where the factors are balanced and orthogonal, and more elsewhere, so
    that a smaller value here is a smaller value of the program.
    """

    def __init__(self, program: _Program, point: _Point) -> None:
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
        return self.part.value(F) + 0.5 * self.part.alpha * penalty

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


def balanced_factors(S: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return (block, U, V) of every singular triple, ``S_g = sum_j U_j V_j^T``, |U_j| = |V_j|."""
    left, s, right = torch.linalg.svd(S, full_matrices=False)
    largest = float(s.amax()) if len(s) else 0.0
    which, triple = (s > 100 * torch.finfo(S.dtype).eps * largest).nonzero(as_tuple=True)
    root = s[which, triple].sqrt().unsqueeze(1)
    return which, left[which, :, triple] * root, right[which, triple] * root


def newton_steps(program: _Program, point: _Point, accuracy: float, *, n_steps: int) -> _Point:
    """Take trust-region Newton steps on the factors of the blocks; never raises the objective.

    Stops early when the gradient has fallen to `accuracy` times its largest.
    """
    if len(point.gates) == 0 or n_steps == 0:
        return point
    factors = _Factors(program, point)
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
    return _Point(point.gates, factors.blocks((U, V)), b)


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

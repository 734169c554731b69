r"""Refit of the output weights of fixed neurons, for several outputs: a group lasso.

.. math:: \min_{V, b} L(A V + 1 b^T) + \alpha \sum_j |V_j|_2

with one row :math:`V_j` a neuron, or G rows where its activations are pooled to G cells and it has
that many columns in A. A round has two steps, each with a line search.

1. A proximal Newton step in a metric that does not couple outputs: output c has the Gram matrix
   :math:`H_c = A^T \mathrm{diag}(W_c) A`, with W the diagonals of the Hessians of the loss.
   Where these are equal for all outputs one matrix does; for the squared loss it is exact.
   Otherwise one matrix of mean curvatures does, too, until it gains too little. The quadratic
   group lasso is solved by Newton's method on one scale a neuron, as in
   :mod:`~sklearn_convexbn.solvers._group_newton`:

   .. math:: \phi(\eta) = \min_V q(V) + \frac{\alpha}{2} \sum_j (|V_j|^2 / \eta_j + \eta_j),
             \qquad \partial_j \phi = (\alpha - |w_j|^2 / \alpha) / 2, \qquad
             \partial_j \partial_k \phi = \sum_c w_{jc} (C_c)_{jk} w_{kc} / \alpha^2

   with :math:`w = -\nabla q(V)` and
   :math:`C_c = H_c - H_c (\alpha \mathrm{diag}(1/\eta) + H_c)^{-1} H_c`. It decides which
   neurons enter and leave; those that leave are exactly zero.
2. A Newton step with the whole Hessian on the neurons that are left, where the objective is
   smooth, by conjugate gradients preconditioned with the metric.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from sklearn_convexbn.losses._base import Loss
from sklearn_convexbn.program._objective import Objective
from sklearn_convexbn.program.units._activations import Activations
from sklearn_convexbn.solvers._block_descent import descend_units
from sklearn_convexbn.solvers._factor_newton import truncated_cg
from sklearn_convexbn.solvers._refit_metric import (
    GramMetric,
    Metric,
    RowMetric,
    Scales,
    scale_product,
)
from sklearn_convexbn.solvers._scale_newton import (
    SMALLEST_SCALE,
    Attempt,
    Method,
    attempts_at,
    eta_slopes,
    scale_step,
)
from sklearn_convexbn.support._sharding import ALL_HERE, Shards

#: Rounds of one refit, and Newton steps on the scales in each: safeguards.
MAX_ROUNDS, MAX_SCALE_STEPS = 100, 50

#: One matrix, that of the outputs' root mean square curvatures, stands for all of theirs as long as
#: a round brings the gap to this part of what it was.
ENOUGH = 0.8

#: Damping of Newton's method on the scales where it fails undamped, because the Hessian is nearly
#: singular, relative to its largest diagonal entry. The largest ones take short gradient steps.
DAMPINGS = (1e-8, 1e-6, 1e-4, 1e-2, 1.0, 100.0)

#: More columns than rows are taken through rows unless a bound on eta H / alpha exceeds this: what
#: is left of the ridge solution then is a difference of large numbers.
MAX_STIFFNESS_ROWS = 1e7

#: Of more columns than rows steps on the scales are tried by conjugate gradients first: until the
#: residual has fallen to a part, and again as often while scales leave.
SCALE_CG_TOLERANCE, MAX_SCALE_CG_STEPS, MAX_PIVOTS = 0.5, 20, 3

#: Steps may raise the objective by this factor: rounding errors hide what they gain at the end.
ROUNDING = 1.0 + 1e-15

#: Conjugate gradient steps of one Newton step, and the decrease of the residual that ends them: at
#: least the first, or this share of the decrease of the gap that is still needed.
MAX_CG_STEPS, CG_TOLERANCE, CG_SHARE = 60, 1e-2, 0.3


@dataclass(frozen=True, eq=False, kw_only=True)
class _Program(Objective[Tensor]):
    """The data of one refit; activations are centred when the intercept is fitted."""

    A: Activations

    def norms(self, V: Tensor) -> Tensor:
        """Return the norm of each neuron's part of V (m G, C), shape (m,)."""
        return _norms(V, self.A.cells)

    def objective(self, V: Tensor, F: Tensor) -> float:
        return self.mean_loss(F) + self.alpha * float(self.norms(V).sum())


def _norms(V: Tensor, cells: int) -> Tensor:
    return V.reshape(-1, cells * V.shape[1]).norm(dim=1)


@dataclass(frozen=True)
class _Point:
    """Output weights with the best intercept, the objective phi, the gradient A^T dL/dF (m, C)."""

    V: Tensor
    b: Tensor
    F: Tensor
    phi: float
    gradient: Tensor
    dual: float  # lower bound on the optimum


def multi_output_refit(
    A: Activations,
    Y: Tensor,
    p: Tensor,
    loss: Loss,
    alpha: float,
    fit_intercept: bool,
    start_weights: Tensor,
    start_intercept: Tensor,
    tol: float = 1e-6,
    max_rounds: int = MAX_ROUNDS,
) -> tuple[Tensor, Tensor]:
    """Minimise ``loss.value(A V + b) + alpha sum_j |V_j|`` over the output weights V and b.

    Parameters
    ----------
    A : Activations
        Of n rows and m columns, those of a neuron together, float64. Zero, equal or nearly
        collinear columns are allowed.
    Y : torch.Tensor of shape (n, C)
    p : torch.Tensor of shape (n,)
        Row weights, summing to one.
    loss : Loss
    alpha : float
        Positive.
    fit_intercept : bool
        When False, `start_intercept` is kept.
    start_weights : torch.Tensor of shape (m, C)
    start_intercept : torch.Tensor of shape (C,)
    tol : float, default=1e-6
        Relative duality gap, reached unless rounding errors forbid it.
    max_rounds : int, default=100
        Rounds at most.

    Returns
    -------
    weights : torch.Tensor of shape (m, C)
        Neurons that are not needed have exact zeros. The objective is at most the start's.
    b : torch.Tensor of shape (C,)
    """
    centre = A.means(p) if fit_intercept else p.new_zeros(A.shape[1])
    program = _Program(
        A=A.centred(centre),
        Y=Y,
        p=p,
        loss=loss,
        alpha=float(alpha),
        fit_intercept=fit_intercept,
        shards=A.shards,
    )
    best = _evaluate(program, start_weights, start_intercept + centre @ start_weights)
    b = torch.zeros_like(start_intercept) if fit_intercept else start_intercept
    if program.mean_loss(torch.zeros_like(Y) + b) < best.phi:
        best = _evaluate(program, torch.zeros_like(start_weights), b)
    rounds = _Refit(program, tol, n_slow=1, n_creeping=4).rounds(best)
    for point, _, _ in islice(rounds, max_rounds + 1):
        best = point
    return best.V, best.b - centre @ best.V


class _Refit(Method[_Point]):
    """Rounds of both steps on one program."""

    def __init__(self, program: _Program, tol: float, **patience: int) -> None:
        super().__init__(program, tol, **patience)
        self.program, self.last_gap = program, math.inf
        self.shared = not program.loss.identity_hessian

    def values(self, point: _Point) -> tuple[float, float]:
        return point.phi, point.dual

    def step(self, point: _Point, gap: float) -> _Point | None:
        self.shared, self.last_gap = self.shared and gap <= ENOUGH * self.last_gap, gap
        best, first = point, gap
        metric = _metric(self.program, point, self.shared)
        for step in (_proximal_step, _newton_step):
            new = step(self.program, best, gap, self.tol, metric)
            best = new if new.phi <= best.phi * ROUNDING else best
            gap = self.gap(best.phi, new.dual)
            if gap <= self.tol:
                break
        return best if best is not point or gap < 0.9 * first else None

    def safe_step(self, point: _Point, sweeps: int) -> _Point | None:
        """Go on by block coordinate descent, one neuron at a time."""
        program = self.program
        found = descend_units(program.A, program, point.V, point.b, point.F, sweeps=sweeps)
        V, b = (torch.as_tensor(a, device=point.V.device) for a in (found.V, found.b))
        new = _evaluate(program, V.reshape(point.V.shape), b)
        return new if new.phi < point.phi else None


def _evaluate(program: _Program, V: Tensor, b: Tensor) -> _Point:
    F = program.A.fit(V) + b
    shift = program.best_intercept(F)
    b, F = b + shift, F + shift
    G = program.gradient(F)
    gradient = program.A.correlations(G)
    largest = float(program.norms(gradient).max()) if len(gradient) else 0.0
    U = G * min(1.0, program.alpha / max(largest, 1e-300))
    conjugate = program.loss.conjugate(U, program.Y, program.p)
    dual = float(program.shards.total((U.sum(dim=0) * b).sum() - conjugate))
    if program.fit_intercept:
        slope, size = program.shards.totals(G.sum(dim=0), G.abs().sum())
        if float(slope.abs().max()) > 1e-10 * float(size):
            dual = -float("inf")  # columns have to sum to zero when b is free
    return _Point(V, b, F, program.objective(V, F), gradient, dual)


def _summed_inverse(D: Tensor, U: Tensor, shards: Shards) -> Tensor:
    """Return the pseudoinverse (C, C) of the sum of the row Hessians."""
    U = U.flatten(0, 1)
    total = shards.total(torch.diag(D.sum(dim=0)) - U.T @ U)
    return torch.linalg.pinv(total, atol=1e-200, rtol=1e-12, hermitian=True)


def _search_line(program: _Program, point: _Point, V: Tensor, rows: Tensor, db: Tensor) -> _Point:
    """Halve the step from the weights of neurons to V, and by db, until the value falls."""
    change_of = program.A.columns(rows)
    rows = program.A.columns_of(rows)
    D = V - point.V[rows]
    change = change_of.fit(D) + db
    for halving in range(30):
        t = 0.5**halving
        trial = point.V.clone()
        trial[rows] = V if halving == 0 else point.V[rows] + t * D
        if program.objective(trial, point.F + t * change) <= point.phi * ROUNDING:
            return _evaluate(program, trial, point.b + t * db)
    return point


# ------------------------------------------------------------ quadratic model without couplings


def _metric(program: _Program, point: _Point, shared: bool) -> Metric:
    """Return the metric of the support and of violators at a point, or one for all outputs."""
    support = program.norms(point.V) > 0
    rows = (support | (program.norms(point.gradient) > program.alpha)).nonzero()[:, 0]
    A = program.A.columns(rows)
    D, U = program.curvatures(point.F)
    W = D - (U * U).sum(dim=0)
    alike = float((W - W[:, :1]).abs().max()) == 0.0 if len(W) else True
    if program.shards.maximum(float(not alike)) == 0.0:
        W = W[:, :1]
    elif shared:
        W = W.square().mean(dim=1, keepdim=True).sqrt()
    if A.shape[1] > len(W) and W.shape[1] == 1 and program.shards is ALL_HERE:
        by_rows = _row_metric(program, A, W, rows)
        # The mass is at most phi / alpha.
        stiffness = point.phi * float(by_rows.B.square().sum(dim=0).max()) / program.alpha**2
        if stiffness < MAX_STIFFNESS_ROWS:
            return by_rows
    H, means = A.gram(W), W.new_zeros(W.shape[1], A.shape[1])
    if program.fit_intercept:
        total = program.shards.total(W.sum(dim=0)).clamp_min(1e-300).unsqueeze(1)
        means = A.correlations(W).T / total
        H = H - (total * means).unsqueeze(2) * means.unsqueeze(1)
    return GramMetric(means, program.alpha, rows, A.cells, H)


def _row_metric(program: _Program, A: Activations, W: Tensor, rows: Tensor) -> RowMetric:
    """Return the metric of one weight W (n, 1) a row through rows, which are fewer than columns."""
    B, means = torch.cat([block for _, block in A.blocks()]), W.new_zeros(1, A.shape[1])
    if program.fit_intercept:
        means = (W.T @ B) / W.sum().clamp_min(1e-300)
    B = W.sqrt() * (B - means)
    return RowMetric(means, program.alpha, rows, A.cells, B)


def _solve_model(metric: Metric, R: Tensor, start: Tensor, constant: float, tol: float) -> Tensor:
    """Minimise ``<V, H V> / 2 - <R, V> + alpha sum_j |V_j|`` from the scales `start`.

    `constant` completes the model to a sum of squares; the relative gap to reach refers to it.
    """
    state = metric.ridge(start, R)
    for _ in range(MAX_SCALE_STEPS):
        w = R - metric.apply(state.V)
        norms, mass = _norms(w, metric.cells), float(_norms(state.V, metric.cells).sum())
        fitted, square = float((R * state.V).sum()), float(((R - w) * state.V).sum())
        primal = constant + 0.5 * square - fitted + metric.alpha * mass
        s = min(1.0, metric.alpha / max(float(norms.max()), 1e-300))
        dual = s * (2.0 * constant - fitted) - s * s * (constant - fitted + 0.5 * square)
        new = _scale_step(metric, R, state, w, norms) if primal - dual > tol * primal else None
        if new is None:
            break
        state = new
    return state.V


def _scale_step(
    metric: Metric, R: Tensor, state: Scales, w: Tensor, norms: Tensor
) -> Scales | None:
    """Take one Newton step on the scales; None where none lowers phi."""
    if isinstance(metric, RowMetric):
        new = _truncated_scale_step(metric, R, state, w, norms)
        if new is not None:
            return new
    alpha = metric.alpha
    attempts = attempts_at(alpha, float(norms.max()))
    attempts += [Attempt(alpha, False, 3, damping) for damping in DAMPINGS]

    def working_set(level: float) -> tuple[Tensor, Tensor]:
        rows = ((state.eta > 0) | (norms > level)).nonzero()[:, 0]
        return rows, state.eta[rows]

    def hessian(rows: Tensor) -> Tensor:
        return metric.scale_hessian(state, w, rows)

    def solve(rows: Tensor, eta: Tensor) -> Scales:
        return metric.ridge(torch.zeros_like(state.eta).index_copy(0, rows, eta), R)

    target = state.phi + 1e-13 * abs(state.phi)
    return scale_step(attempts, norms, alpha, target, working_set, hessian, solve)


def _truncated_scale_step(
    metric: RowMetric, R: Tensor, state: Scales, w: Tensor, norms: Tensor
) -> Scales | None:
    """Take the first of these steps by conjugate gradients, without the Hessian."""
    level = attempts_at(metric.alpha, float(norms.max()))[0].level
    slopes = eta_slopes(norms, level, metric.alpha, True)
    size = metric.scale_curvatures(state, w).clamp_min(1e-300).rsqrt()

    eta, slope, free = state.eta, slopes, (state.eta > 0) | (slopes < 0)
    for _ in range(MAX_PIVOTS):
        scale = size * free
        g = scale * slope
        length = float(g.norm())
        if length == 0.0:
            break

        def scaled(y: Tensor, scale: Tensor = scale) -> Tensor:
            return scale * scale_product(metric, state, w, scale * y)

        goal = SCALE_CG_TOLERANCE * length
        x, _ = truncated_cg(scaled, g, 1e6 * length, goal, n_steps=MAX_SCALE_CG_STEPS)
        eta = (eta + scale * x).clamp_min(0.0)
        bad = free & (eta == 0.0)
        if not bool(bad.any()):
            break
        slope = slopes + scale_product(metric, state, w, eta - state.eta)
        free = free & ~bad
    for halving in range(3):
        new = metric.ridge(state.eta + (eta - state.eta) * 0.5**halving, R)
        if new.phi <= state.phi:
            return new
    return None


def _proximal_step(
    program: _Program, point: _Point, gap: float, tol: float, metric: Metric
) -> _Point:
    """Step to the solution of the model without couplings, on the support and violators."""
    norms, rows = program.norms(point.V), metric.rows
    if len(rows) == 0:
        return point
    columns = program.A.columns_of(rows)
    V, g = point.V[columns], point.gradient[columns]
    R = metric.apply(V) - g
    fit = point.phi - program.alpha * float(norms.sum())
    constant = fit + 0.5 * float(((R - g) * V).sum())
    exact = program.loss.identity_hessian
    accuracy = 0.5 * tol if exact else max(0.5 * tol, 0.1 * min(gap, 1.0))
    new = _solve_model(metric, R, norms[rows], constant, accuracy)
    db = -(metric.means.unsqueeze(1) @ metric.split(new - V)).reshape(-1)
    return _search_line(program, point, new, rows, db)


# ------------------------------------------------------------------- Newton step on the support


def _newton_step(
    program: _Program, point: _Point, gap: float, tol: float, metric: Metric
) -> _Point:
    """Take a Newton step on the neurons that are not zero, where the objective is smooth."""
    norms, cells = program.norms(point.V), program.A.cells
    if not bool(norms.any()):
        return point
    rows = (norms > SMALLEST_SCALE * norms.amax()).nonzero()[:, 0]
    columns = program.A.columns_of(rows)
    size = norms[rows].repeat_interleave(cells).unsqueeze(1)
    A, unit, stiffness = program.A.columns(rows), point.V[columns] / size, program.alpha / size
    diagonal, root = program.curvatures(point.F)
    inverse = _summed_inverse(diagonal, root, program.shards) * float(program.fit_intercept)

    def curved(change: Tensor) -> Tensor:
        curved = diagonal * change
        for part in root:
            curved = curved - part * (part * change).sum(dim=1, keepdim=True)
        return curved

    def intercept(change: Tensor) -> Tensor:
        return -inverse @ program.shards.total(curved(change).sum(dim=0))

    def hessian(D: Tensor) -> Tensor:
        change = A.fit(D)
        along = (unit * D).reshape(len(rows), -1).sum(dim=1).repeat_interleave(cells)
        tangential = D - unit * along.unsqueeze(1)
        return A.correlations(curved(change + intercept(change))) + stiffness * tangential

    # Of the round's first point: it only preconditions.
    metric = metric.part(rows)
    factor = metric.ridge(norms[rows], point.V[columns]).factor

    def scaled(g: Tensor) -> Tensor:
        g = metric.split(size.sqrt() * g)
        return torch.linalg.solve_triangular(factor, g, upper=False).reshape(-1)

    def unscaled(x: Tensor) -> Tensor:
        x = x.reshape(factor.shape[0], len(columns), -1)
        return size.sqrt() * metric.join(torch.linalg.solve_triangular(factor.mT, x, upper=True))

    def product(x: Tensor) -> Tensor:
        return scaled(hessian(unscaled(x)))

    g = scaled(point.gradient[columns] + program.alpha * unit)
    length = float(g.norm())
    if length == 0.0:
        return point
    # Beyond this radius the Hessian is zero up to rounding errors.
    radius, goal = 1e6 * length, max(CG_TOLERANCE, CG_SHARE * min(tol / gap, 1.0)) * length
    x, _ = truncated_cg(product, g, radius, goal, n_steps=MAX_CG_STEPS)
    D = unscaled(x)
    return _search_line(program, point, point.V[columns] + D, rows, intercept(A.fit(D)))

"""Exact solver of the ReLU program on a list of arrangements, with a rigorous bound.

A primal-dual interior-point method (``_interior_step``): about 30 steps reach any accuracy.
Its multipliers give a dual point that is feasible after a tiny scaling, so the gap needs no
search. Long lists are solved on a working set that grows by the most violated cones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from sklearn_convexbn.program._problem import Neurons, Problem, relative_gap
from sklearn_convexbn.solvers._arrangement_program import Program, step_cost
from sklearn_convexbn.solvers._base import Iterate, RunSettings
from sklearn_convexbn.solvers._cones import project_on_cones
from sklearn_convexbn.solvers._interior_step import Point, Workspace, first_point, newton_step

#: A certificate is computed at least this often, in Newton steps.
STEPS_A_ROUND = 15

#: Sizes of the first point, relative to the usual one: the next is for where steps stall early.
START_SIZES = (1.0, 1e-2, 1e2, 1e-4)

#: With a complementarity below this part of the objective a step has to lower the error.
END = 1e-9


@dataclass(frozen=True)
class Plan:
    """How a list is solved: whole, or on a part of it that grows.

    Attributes
    ----------
    max_step_cost, max_entries : float
        Lists whose Newton step takes more operations, or that have more entries (arrangements
        times rows), are solved on working sets.
    first_columns : int
        The first of these has about so many unknowns.
    sparse_share, sparse_columns : float and int
        With alpha above this share of its largest value few arrangements are active. Then lists
        of more than four times so many unknowns start from these; below it, that is slower.
    by_rows : bool or None
        Which form the Newton equations have; None is the cheaper one.
    """

    max_step_cost: float = 5e9
    max_entries: float = 1e7
    first_columns: int = 400
    sparse_share: float = 0.08
    sparse_columns: int = 200
    by_rows: bool | None = None


def interior_point(
    problem: Problem, settings: RunSettings, plan: Plan | None = None
) -> Iterator[Iterate]:
    """Solve the ReLU program with one output on the problem's list of arrangements.

    Parameters
    ----------
    problem : Problem
        With one output, ``activation="relu"`` and a list of arrangements.
    settings : RunSettings
    plan : Plan, default=None

    Yields
    ------
    Iterate
        A network whose neurons lie in the cones they are listed in, and the dual point with an
        upper bound on its largest correlation. The last one says that it stalled.
    """
    full, listed = _torch_program(problem, settings.device)
    constant, fit = full.constant(), full.constant_fit()
    value = full.mean_loss(fit)
    bound = _bound(full, fit, torch.zeros(0, dtype=torch.long, device=fit.device), None)
    empty = Neurons.empty(full.Z.shape[1], constant)
    # Here all bounds are exact, so none above alpha proves that the network is empty.
    # A constant target leaves rounding errors to fit, or (one class only) an infinite b.
    nothing_left = value <= 1e-20 * full.mean_loss(0.0 * fit)
    done = bound.largest <= full.alpha * (1 + 1e-12) or nothing_left
    yield _iterate(empty, bound, stalled=done)
    if done:
        return
    start, start_rows = _listed_start(full, listed, settings.start)
    if len(start):
        part_fit = torch.as_tensor(problem.with_best_intercept(start)[1], device=fit.device)
        yield _iterate(start, _bound(full, part_fit, start_rows[:0], None), stalled=False)
    tol, plan = settings.tol, plan or Plan()
    rows = _first_rows(full, bound, start_rows, plan)
    solved = partial(
        _interior_points, value=value, b=float(constant[0]), tol=tol, by_rows=plan.by_rows
    )
    yield from _working_sets(full, listed, bound, rows, solved, value=value, tol=tol)


def _working_sets(
    full: Program,
    listed: np.ndarray,
    bound: _Bound,
    rows: Tensor,
    solved: Callable[..., Iterator[tuple[Point, bool]]],
    *,
    value: float,
    tol: float,
) -> Iterator[Iterate]:
    """Solve on growing parts of the list; `bound` and `value` are the constant model's.

    `solved` yields the points of a part.
    """
    # The first working sets are guesses: not worth solving well.
    target = tol if len(rows) == len(full) else max(tol, 3e-2)
    primal, dual = value, bound.value
    while True:
        finest = len(rows) == len(full) or target <= 0.1 * tol
        part = full.restrict(rows)
        points = solved(part, target=target, finest=finest)
        for point, last in points:
            network = _feasible_network(part, point)
            bound = _bound(full, _fit(part, point), rows, point)
            primal, dual = min(primal, network.value), max(dual, bound.value)
            more = _violated(full, bound, rows)
            stalled = last and (len(rows) == len(full) or (finest and len(more) == 0))
            yield _iterate(network.neurons(listed[rows.cpu().numpy()]), bound, stalled=stalled)
            if stalled:
                return
        # Dropping idle arrangements from the working set was tried: it saves no time.
        rows = torch.cat([rows, more[: len(rows)]])
        target = max(0.1 * tol, min(target, 0.1 * relative_gap(primal, dual)))


def _interior_points(
    part: Program,
    *,
    value: float,
    b: float,
    tol: float,
    target: float,
    finest: bool,
    by_rows: bool | None,
) -> Iterator[tuple[Point, bool]]:
    """Yield points worth a certificate, and whether they are the last of this working set.

    They come every ``STEPS_A_ROUND`` steps, every second one near the end. The end is the
    accuracy `target`; the `finest` run goes on while it has digits left. These are lost again
    where the matrix is so ill-conditioned that rounding errors raise the residual.
    """
    sizes = list(START_SIZES)
    point, work = first_point(part, b, sizes.pop(0) * value), Workspace(part, by_rows)
    near, error = False, np.inf
    while True:
        for _ in range(2 if near else STEPS_A_ROUND):
            before, error_before = deepcopy(point), error
            newton_step(part, point, work)
            objective = part.value(part.fit(point.s) + point.b, point.s)
            # Weights of a few 1e-12 have residuals of 1e-4 where complementarity is at rounding.
            error = point.gap / max(objective, 1e-300) + point.residual
            ending = before.gap <= END * objective
            # Steps at the end of float64's accuracy may overflow, too.
            if not np.isfinite(objective) or (ending and not error < error_before):
                yield before, True
                return
            accurate = point.gap <= 0.5 * target * objective
            near = accurate and point.theta < 1e-3 and point.residual < 1e-2
            if point.stalled or near:
                break
        if point.stalled and not near and sizes:
            # Steps from an infeasible point may end at the border of a cone, far from the solution.
            yield point, False
            point, error = first_point(part, b, sizes.pop(0) * value), np.inf
            continue
        last = point.stalled or (near and not finest) or error <= 1e-3 * tol
        yield point, last
        if last:
            return


# -- certificate -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Bound:
    """A dual point: bounds (2, P) on its correlation with every cone, and its dual value."""

    Lambda: Tensor
    norms: Tensor
    largest: float
    value: float


def _fit(part: Program, point: Point) -> Tensor:
    F = part.fit(point.s)
    return F + part.intercept(F, point.b)


def _bound(full: Program, F: Tensor, rows: Tensor, point: Point | None) -> _Bound:
    """Bound the optimum from below with the gradient at a fit F.

    F is best the solver's own, uncleaned one: removing idle blocks moves the dual point by
    much more, relative to alpha, than the objective. The point's multipliers bound the
    correlation with its own cones `rows`; the others are projected on.
    """
    Lambda = full.dual_point(F)
    C = full.correlations(Lambda)
    norms = C.norm(dim=-1)
    outside = torch.ones_like(norms, dtype=torch.bool)
    if point is not None:
        part = full.restrict(rows)
        moved = C[:, rows] + part.cone_product(point.mu, torch.empty_like(point.mu))
        norms[:, rows] = torch.minimum(norms[:, rows], moved.norm(dim=-1))
        outside[:, rows] = False
    e, i = (outside & (norms > full.alpha)).nonzero(as_tuple=True)
    if len(i):
        norms[e, i] = project_on_cones(full.Z, full.signs[i], C[e, i]).norm(dim=1)
    largest = float(norms.max()) if norms.numel() else 0.0
    return _Bound(Lambda, norms, largest, full.dual_value(Lambda, largest))


def _iterate(neurons: Neurons, bound: _Bound, *, stalled: bool) -> Iterate:
    return Iterate(
        neurons,
        Lambda=bound.Lambda.cpu().numpy(),
        largest_correlation=bound.largest,
        proven=True,
        stalled=stalled,
    )


# -- primal points ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _Network:
    """Blocks (2, A, k) on their cones, most of them zero, with the best b and the objective."""

    S: Tensor
    b: Tensor
    value: float

    def neurons(self, gates: np.ndarray) -> Neurons:
        """Return the nonzero blocks as neurons; `gates` numbers the arrangements."""
        e, i = (self.S.abs().amax(-1) > 0).nonzero(as_tuple=True)
        signs = (1.0 - 2.0 * e.double()).cpu().numpy()[:, None]
        blocks = self.S[e, i].cpu().numpy()
        return Neurons.from_products(blocks, signs, self.b.cpu().numpy(), gates[i.cpu().numpy()])


def _feasible_network(part: Program, point: Point) -> _Network:
    """Return the point on its cones, without the blocks that carry nothing.

    An interior point has mass on all blocks. On the central path an active block has |z| ->
    alpha and an idle one |s| -> 0. Of several cuts, the sparsest network is returned that is
    within a tenth of the point's gap of the best one.
    """
    sizes = point.s.norm(dim=-1)
    relative = sizes / sizes.max().clamp(min=1e-300)
    slack = 1 - point.z.norm(dim=-1) / part.alpha
    S = _onto_cones(part, point.s * (relative > 1e-9)[..., None])
    cuts = [relative > slack, *(relative > 10.0**power for power in (-1, -2, -3, -4, -6, -9))]
    networks = []
    for cut in cuts:
        kept = S * cut[..., None]
        F = part.fit(kept)
        b = part.intercept(F, point.b)
        networks.append(_Network(kept, b, part.value(F + b, kept)))
    enough = min(network.value for network in networks) + 0.1 * abs(point.gap)
    good = [network for network in networks if network.value <= enough]
    return min(good, key=lambda network: int(torch.count_nonzero(network.S[..., 0])))


def _onto_cones(part: Program, S: Tensor) -> Tensor:
    """Project the nonzero blocks that leave their cones; interior ones are left alone."""
    e, i = (S.abs().amax(-1) > 0).nonzero(as_tuple=True)
    if len(i) == 0:
        return S
    block, T = S[e, i], part.signs[i]
    # The second pass is for blocks that became much shorter: their rounding error counts more.
    for _ in range(2):
        out = _leaves(part, block, T)
        if not bool(out.any()):
            break
        block[out] = project_on_cones(part.Z, T[out], block[out])
    block[_leaves(part, block, T, 1e-10)] = 0.0
    S = S.clone()
    S[e, i] = block
    return S


def _leaves(part: Program, block: Tensor, T: Tensor, tolerance: float = 1e-14) -> Tensor:
    return ((block @ part.Z.T) * T).amin(1) < -tolerance * block.norm(dim=1)


# -- lists of arrangements -------------------------------------------------------------------


def _torch_program(problem: Problem, device: str) -> tuple[Program, np.ndarray]:
    """Return the program on the distinct arrangements, and their numbers in the problem's list.

    Equal patterns would share their mass; a unit that is never active carries none.
    """
    packed = np.packbits(problem.patterns, axis=0).T
    listed = np.sort(np.unique(packed, axis=0, return_index=True)[1])
    listed = listed[problem.patterns[:, listed].any(axis=0)]

    def tensor(a: np.ndarray) -> Tensor:
        return torch.as_tensor(np.ascontiguousarray(a), dtype=torch.float64, device=device)

    patterns = tensor(problem.patterns[:, listed].T)
    program = Program(
        Z=tensor(problem.Z),
        patterns=patterns,
        signs=2 * patterns - 1,
        **problem.converted(tensor),
    )
    return program, listed


def _first_rows(full: Program, bound: _Bound, start_rows: Tensor, plan: Plan) -> Tensor:
    """Return the whole list if it is short and not sparse, else the start's and the worst."""
    P, (n, k) = len(full), full.Z.shape
    columns = plan.first_columns
    if step_cost(full, P) <= plan.max_step_cost and P * n <= plan.max_entries:
        columns = plan.sparse_columns
        if full.alpha <= plan.sparse_share * bound.largest or P * k <= 4 * columns:
            return torch.arange(P, device=full.Z.device)
    order = bound.norms.amax(0).argsort(descending=True)[: max(columns // k, 8)]
    return torch.unique(torch.cat([start_rows, order]))


def _violated(full: Program, bound: _Bound, rows: Tensor) -> Tensor:
    """Return the arrangements outside `rows` whose constraint is violated, the worst first."""
    worst = bound.norms.amax(0).clone()
    worst[rows] = 0
    order = worst.argsort(descending=True)
    return order[worst[order] > full.alpha * (1 + 1e-9)]


def _listed_start(
    full: Program, listed: np.ndarray, start: Neurons | None
) -> tuple[Neurons, Tensor]:
    """Return the neurons of a start that lie in a listed cone, and the cones' rows."""
    if start is None or len(start) == 0 or start.weights.shape[1] != 1:
        empty = Neurons.empty(full.Z.shape[1], np.zeros(1))
        return empty, torch.zeros(0, dtype=torch.long, device=full.Z.device)
    Q = torch.as_tensor(start.directions, device=full.Z.device)
    H = full.Z @ Q.T
    # A neuron on a face lies in the cones on both sides: rows at rounding level match either.
    sides = H.sign() * (H.abs() > 1e-9 * full.Z.norm(dim=1, keepdim=True))
    mismatch = sides.abs().sum(0) - full.signs @ sides
    least, row = mismatch.min(0)
    found = least < 0.5
    rows = row[found]
    Q = project_on_cones(full.Z, full.signs[rows], Q[found])
    weights = start.weights[found.cpu().numpy()]
    gates = listed[rows.cpu().numpy()]
    # A start from elsewhere may have an intercept that this program does not allow.
    b = start.intercept if full.fit_intercept else np.zeros(1)
    neurons = Neurons.from_products(Q.cpu().numpy(), weights, b, gates)
    return neurons, torch.unique(rows)

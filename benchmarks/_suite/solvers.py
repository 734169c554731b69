"""Solvers of the gated program, with S (P, r + 1), and of the exact one, with S+, S- (2, P, r + 1).

A solver is a function of an objective, a rung of its ladder and a limit in seconds, which some can
keep to by themselves. It returns S, None when it has none, and may return a note with it.
"""

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

from _suite.data import Array
from _suite.objectives import GatedObjective, Loss, Objective, residual
from _suite.package import OWN, solve_on_gates
from _suite.runner import CLOCK, LIMIT, clock, run_apart

import numpy as np


class Answer(NamedTuple):
    """A solver's ``S``, None when it has none, with its seconds, set-up included."""

    S: Array | None
    seconds: float
    note: str = ""


@dataclass(frozen=True)
class Solver:
    """A column of a table."""

    name: str
    work: Callable[..., Any]
    #: What it is run with, from loose to tight, each rung from scratch: tolerances, or for some
    #: solvers numbers of steps.
    ladder: tuple[float, ...]
    modules: tuple[str, ...] = ()  # loaded before the clock starts
    compiled: bool = False  # on its first call, so that it is warmed up before it is timed
    accuracy: float = 0.0  # the gap that it comes to at best
    squared_only: str = ""  # why it takes the squared loss only, if so

    def why_skip(self, loss: Loss) -> str:
        """Return why this solver cannot be run on objectives with this loss, or nothing."""
        for package in dict.fromkeys(module.split(".")[0] for module in self.modules):
            if find_spec(package) is None:
                return f"{package} is not installed"
        return self.squared_only if loss == "logistic" else ""

    def solve(self, objective: Objective, rung: float, limit: float) -> Answer:
        """Solve from scratch."""
        for module in self.modules:
            import_module(module)
        start = clock()
        found = self.work(objective, rung, limit)
        S, note = found if isinstance(found, tuple) else (found, "")
        return Answer(S, clock() - start, note)

    def answers(self, *arguments: Any) -> Iterator[Answer]:
        """Yield the answer."""
        yield self.solve(*arguments)

    def solve_apart(self, objective: Objective, rung: float, limit: float) -> Answer:
        """Solve in a forked process that is ended soon after the limit."""
        answers, end = run_apart(self.answers, objective, rung, limit, limit=limit)
        ended = Answer(None, math.inf if end == LIMIT else math.nan, note=end)
        return answers[0] if answers else ended


def decades(first: float, last: float, per_decade: int = 2) -> tuple[float, ...]:
    """Return a geometric ladder from 10^first down (or up) to 10^last."""
    count = round(abs(first - last) * per_decade) + 1
    return tuple(float(f"{t:.2g}") for t in np.logspace(first, last, count))


def explicit_matrix(o: Objective) -> Array:
    """Return ``[D_1 Z, ..., D_P Z]`` in column order, a group being r + 1 columns."""
    n, width = o.Z.shape
    A = np.empty((n, o.masks.shape[1] * width), order="F")
    for j in range(width):
        A[:, j::width] = o.masks * o.Z[:, j : j + 1]
    return A


def ours(activation: str) -> Callable[..., Array]:
    """Return the package's solver of a program: a Newton method, or an interior-point method."""

    def work(o: Objective, rung: float, limit: float) -> Array:
        program = {"loss": o.loss, "alpha": o.alpha, "activation": activation}
        gates, directions, weights = solve_on_gates(o.Z, o.y, o.gates, tol=rung, **program)
        S = np.zeros((2, o.masks.shape[1], o.Z.shape[1]))
        np.add.at(S, ((weights < 0).astype(int), gates), directions * np.abs(weights)[:, None])
        return S if activation == "relu" else S[0] - S[1]

    return work


def numpy_fista(o: GatedObjective, tol: float, limit: float) -> Array:
    """FISTA with adaptive restart in plain NumPy to a relative gap, judged every 10 steps."""
    v, norm = np.random.default_rng(0).standard_normal(len(o.Z)), 1.0
    for _ in range(30):  # the power method gives the largest curvature
        v = o.predict(o.correlate(v / np.linalg.norm(v)))
        norm = float(np.linalg.norm(v))
    step = len(o.Z) / (1.05 * norm * (1.0 if o.loss == "squared" else 0.25))
    S = V = np.zeros((o.masks.shape[1], o.Z.shape[1]))
    F = F_V = np.zeros(len(o.y))
    t = 1.0
    for iteration in range(10**7):
        if iteration % 10 == 0 and o.judged(F, S).gap <= tol:
            break
        new = V + step * o.correlate(residual(F_V, o.y, o.loss))
        norms = np.linalg.norm(new, axis=1, keepdims=True)
        new *= np.maximum(1.0 - o.alpha * step / np.maximum(norms, 1e-300), 0.0)
        new_F = o.predict(new)
        if np.vdot(V - new, new - S) > 0:
            t = 1.0
        new_t = (1.0 + math.sqrt(1.0 + 4.0 * t * t)) / 2.0
        momentum = (t - 1.0) / new_t
        V, F_V = new + momentum * (new - S), new_F + momentum * (new_F - F)
        S, F, t = new, new_F, new_t
    return S


def run_scnn(o: Objective, model: Any, optimizer: Any) -> Array:
    """Run a solver of scnn in double precision; return blocks (1 or 2, P, r + 1).

    scnn's mean of half squared errors and its neuron penalty are these programs'. It is told
    not to rescale the columns (``unitize_data``) nor to add a bias. It sorts its gates: the blocks
    of the answer are put back in this program's order.
    """
    from scnn.metrics import Metrics
    from scnn.optimize import optimize_model
    from scnn.regularizers import NeuronGL1

    metrics, penalty = Metrics(objective=False, grad_norm=False), NeuronGL1(o.alpha)
    settings = {"return_convex": True, "unitize_data": False, "dtype": "float64"}
    model, _ = optimize_model(model, optimizer, metrics, o.Z, o.y, regularizer=penalty, **settings)
    place = {g.tobytes(): i for i, g in enumerate(o.gates.T)}
    S = np.zeros((len(model.parameters), o.masks.shape[1], o.Z.shape[1]))
    S[:, [place[g.tobytes()] for g in np.asarray(model.G).T]] = [p[0] for p in model.parameters]
    return S


def scnn_gated(o: Objective, rung: float, limit: float) -> Array:
    """scnn's R-FISTA. It stops on the squared least subgradient: the rung is relative to alpha."""
    from scnn.models import ConvexGatedReLU
    from scnn.solvers import RFISTA

    model = ConvexGatedReLU(o.gates, c=1, bias=False)
    return run_scnn(o, model, RFISTA(model, max_iters=10**7, tol=(rung * o.alpha) ** 2))[0]


def scnn_list(o: Objective, rung: float, limit: float, tol: float | None = None) -> Array:
    """scnn's augmented Lagrangian method.

    The ladder holds numbers of steps, for its own stopping rule does not tell the accuracy. Its
    multipliers are updated with the violated part of the constraints only (``constraint_gaps``
    of its ``AL_MLP``), and so never fall: it ends some 5e-4 above the optimum. `tol` is relative to
    alpha; None solves subproblems the better the more steps there are.
    """
    from scnn.models import ConvexReLU
    from scnn.solvers import AL

    logging.disable(logging.WARNING)  # it says when it stops at the number of steps
    model = ConvexReLU(o.gates, c=1, bias=False)
    settings = {} if tol else {"constraint_tol": 1e-8}
    settings["tol"] = ((tol or min(0.3, 1000.0 / rung)) * o.alpha) ** 2
    return run_scnn(o, model, AL(model, max_primal_iters=int(rung), **settings))


def skglm(o: Objective, rung: float, limit: float) -> Array:
    """skglm's block coordinate descent, or its prox-Newton for the logistic loss.

    ``LogisticGroup`` has no constants per group for ``GroupBCD`` (it inherits those per column),
    hence the other solver. The largest distance to the subdifferential is the rung times alpha.
    """
    from skglm.datafits import LogisticGroup, QuadraticGroup
    from skglm.penalties import WeightedGroupL2
    from skglm.solvers import GroupBCD, GroupProxNewton
    from skglm.utils.jit_compilation import compiled_clone

    n_groups, width, tol = o.masks.shape[1], o.Z.shape[1], rung * o.alpha
    indices = np.arange(n_groups * width, dtype=np.int32)
    pointers = np.arange(0, n_groups * width + 1, width, dtype=np.int32)
    penalty = WeightedGroupL2(o.alpha, np.ones(n_groups), pointers, indices)
    if o.loss == "squared":
        y, datafit = o.y, QuadraticGroup(pointers, indices)
        solver = GroupBCD(max_iter=10**5, max_epochs=1000, tol=tol)
    else:
        y, datafit = 2.0 * o.y - 1.0, LogisticGroup(pointers, indices)
        solver = GroupProxNewton(max_iter=10**5, tol=tol)
    w = solver.solve(explicit_matrix(o), y, compiled_clone(datafit), compiled_clone(penalty))[0]
    return w.reshape(n_groups, width)


def celer(o: Objective, rung: float, limit: float) -> Array:
    """celer's group lasso, until the gap is the rung times ``mean(y^2)``."""
    from celer import celer_path

    settings = {"max_iter": 10**4, "max_epochs": 10**6, "tol": rung}
    settings |= {"groups": o.Z.shape[1], "alphas": [o.alpha]}
    return celer_path(explicit_matrix(o), o.y, "grouplasso", **settings)[1].reshape(
        -1, o.Z.shape[1]
    )


def adelie(gated: bool) -> Callable[..., Any]:
    """Return adelie on its own matrix of the program, which is not built.

    It runs until coordinate descent changes little. Exact programs have a constraint a block.
    """

    def work(o: Objective, rung: float, limit: float) -> Any:
        import adelie as ad

        width, more = o.Z.shape[1], {}
        groups = o.masks.shape[1] * (1 if gated else 2)
        if not gated:
            cones = [np.ascontiguousarray(sign[:, None] * o.Z) for sign in 2.0 * o.masks.T - 1.0]
            bounds = np.zeros(len(o.y)), np.full(len(o.y), np.inf)
            many = {"max_iters": 10_000}  # its default, 100, is not enough for some cones
            linear = ad.constraint.linear
            more["constraints"] = [linear(A, *bounds, configs=many) for A in [*cones, *cones]]
        family = ad.glm.gaussian if o.loss == "squared" else ad.glm.binomial
        arrays = np.asfortranarray(o.Z), np.asfortranarray(o.masks > 0)
        more |= {"groups": np.arange(0, groups * width, width), "penalty": np.ones(groups)}
        more |= {"intercept": False, "early_exit": False, "progress_bar": False}
        more |= {"lmda_path": np.array([o.alpha]), "tol": rung, "irls_tol": rung}
        matrix = ad.matrix.convex_relu(*arrays, gated=gated)
        betas = ad.grpnet(matrix, family(o.y), **more).betas
        if betas.shape[0] == 0:
            return None, "adelie stopped with no solution"
        S = betas[-1].toarray().reshape(-1, o.masks.shape[1], width)
        return S[0] if gated else S

    return work


def clarabel(gated: bool) -> Callable[..., Any]:
    """Return CVXPY with Clarabel, in the forms that it solves soonest of those that were tried."""

    def work(o: Objective, rung: float, limit: float) -> Any:
        import cvxpy as cp

        shape, n = (o.masks.shape[1], o.Z.shape[1]), len(o.y)
        blocks = [cp.Variable(shape) for _ in range(1 if gated else 2)]
        if gated:
            F, cones = explicit_matrix(o) @ cp.vec(blocks[0], order="C"), []
        else:
            F = cp.sum(cp.multiply(o.masks, o.Z @ (blocks[0] - blocks[1]).T), axis=1)
            cones = [cp.multiply(2.0 * o.masks - 1.0, o.Z @ S.T) >= 0 for S in blocks]
        fit = cp.sum(cp.logistic(F) - cp.multiply(o.y, F)) / n
        if o.loss == "squared":
            fit = cp.sum_squares(F - o.y) / (2 * n)
        penalty = o.alpha * sum(cp.sum(cp.norm(S, 2, axis=1)) for S in blocks)
        program = cp.Problem(cp.Minimize(fit + penalty), cones)
        settings = dict.fromkeys(("tol_gap_abs", "tol_gap_rel", "tol_feas"), rung)
        settings |= {"time_limit": limit if CLOCK["name"] == "wall" else math.inf}
        try:
            program.solve(solver=cp.CLARABEL, max_iter=1000, **settings)
        except cp.SolverError as error:
            return None, str(error)[:200]
        S = None if blocks[0].value is None else np.stack([S.value for S in blocks])
        return S[0] if gated and S is not None else S, str(program.status)

    return work


SCNN_MODULES = ("scnn.metrics", "scnn.models", "scnn.optimize", "scnn.regularizers", "scnn.solvers")
SCNN_LOSS = "scnn's convex models have the squared loss only"
SCNN_LINEAR = f"{SCNN_LOSS} (its logistic loss serves linear models, in its private part)"
SKGLM_MODULES = (
    "skglm.datafits",
    "skglm.penalties",
    "skglm.solvers",
    "skglm.utils.jit_compilation",
)
CELER_LOSS = "celer's group lasso has the squared loss only"
CLARABEL_MODULES = ("cvxpy", "clarabel")
STEPS = (1000, 1500, 2000, 3000, 4500, 7000, 15_000)
TOLS, LIST_TOLS = (1e-4, 1e-6, 1e-8, 1e-10), (1e-3, 1e-4, 1e-5, 1e-6, 1e-8)
GATED = (
    Solver(OWN, ours("gated_relu"), decades(-1, -8), compiled=True),
    Solver("numpy_fista", numpy_fista, decades(-1, -7)),
    Solver("scnn", scnn_gated, decades(0.5, -6), SCNN_MODULES, squared_only=SCNN_LINEAR),
    Solver("skglm", skglm, decades(-0.5, -7), SKGLM_MODULES, compiled=True),
    Solver("celer", celer, decades(-2, -14), ("celer",), squared_only=CELER_LOSS),
    Solver("adelie", adelie(True), decades(-2, -18), ("adelie",)),
    Solver("cvxpy", clarabel(True), TOLS, CLARABEL_MODULES),
)
LISTS = (
    Solver(OWN, ours("relu"), decades(-1, -8), compiled=True),
    Solver("scnn", scnn_list, STEPS, SCNN_MODULES, accuracy=1e-3, squared_only=SCNN_LOSS),
    Solver("adelie", adelie(False), decades(-4, -12, 1), ("adelie",)),
    Solver("cvxpy", clarabel(False), LIST_TOLS, CLARABEL_MODULES),
)

# ruff: noqa: E402 - the thread variables are set before NumPy is imported
"""Time to a certified accuracy on the gated ReLU group lasso, against other solvers.

The program, for one output, ``P`` gates and no intercept, is::

    minimise_S  mean_i loss(F_i, y_i) + alpha * sum_g |S_g|_2,   F = sum_g D_g Z S_g

where ``Z = [sqrt(n) U, 1]`` comes from the thin SVD of the centred inputs,
``D_g = diag(Z G_g >= 0)`` and ``G`` is normal.  The loss is ``(f - y)^2 / 2`` (with
``y`` standardised) or ``log(1 + exp f) - y f``.  ``alpha`` is given as a fraction of
``alpha_max``, the smallest value for which ``S = 0`` is optimal.

Every answer is judged by the same code: a primal value, a dual bound that holds
whatever the answer is, and their relative gap ``(P - D) / P``.  A solver is run on
a ladder of decreasing tolerances, each rung from scratch, and its time for a target
gap is that of the first rung whose answer the judge accepts.  The time is that of the
solver call plus what the solver needs built before it (the explicit ``n x P (r + 1)``
matrix, or the compilation to cone form); that second part is also given by itself.
Each call runs in a forked process, which is ended at the time limit.  Imports and
just-in-time compilation are not timed.

Usage::

    python benchmarks/bench_gated.py [RESULTS_FOLDER] [--limit 60] [--gates 500]
    python benchmarks/bench_gated.py --check

The concrete and airfoil data are read from ``uci/NAME.npz`` (arrays ``X`` and ``y``)
in the folder named by the environment variable SKLEARN_CONVEXBN_DATA, or else in
``../shared/data`` beside the repository.  Where they are missing, scikit-learn's
diabetes data stand in for them.
"""

from __future__ import annotations

import os

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "RAYON_NUM_THREADS",
)
for _variable in THREAD_VARIABLES:  # before NumPy is imported
    os.environ.setdefault(_variable, os.environ.get("OMP_NUM_THREADS", "1"))

import argparse
import importlib.metadata
import json
import math
import multiprocessing
import platform
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr, expit
from sklearn.datasets import load_breast_cancer, load_diabetes

from sklearn_convexbn import _problem as convexbn_problem
from sklearn_convexbn._losses import LOSSES
from sklearn_convexbn.solvers import FISTA, RunSettings, run

Array = NDArray[np.float64]
Loss = Literal["squared", "logistic"]


# --------------------------------------------------------------------------------------
# The package's own solver
# --------------------------------------------------------------------------------------


def ours(
    Z: Array, y: Array, masks: Array, gates: Array, loss: Loss, alpha: float, tol: float
) -> Array:
    """Return ``S``, of shape (P, r + 1), to relative gap ``tol``.

    ``masks`` is (n, P) with entries 0.0 and 1.0 and ``gates`` is (r + 1, P). The time includes
    the package's driver, which certifies every round.
    """
    n, P = masks.shape
    problem = convexbn_problem.Problem(
        Z=Z,
        Y=y[:, None],
        p=np.full(n, 1.0 / n),
        loss=LOSSES[loss],
        alpha=alpha,
        fit_intercept=False,
        activation="gated_relu",
        gates=gates,
        all_arrangements=False,
        spectrum=np.ones(Z.shape[1]),
    )
    settings = RunSettings(tol=tol, device="cpu", random_directions=None, random_state=None)
    neurons = run(FISTA(), problem, settings, max_iter=500).neurons
    S = np.zeros((P, Z.shape[1]))
    np.add.at(S, neurons.gates, neurons.directions * neurons.weights)
    return S


# --------------------------------------------------------------------------------------
# The problem and its judge
# --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """One data set with its gates."""

    name: str
    loss: Loss
    Z: Array
    y: Array
    masks: Array
    gates: Array

    @property
    def alpha_max(self) -> float:
        """The smallest penalty for which ``S = 0`` is optimal."""
        start = residual(np.zeros_like(self.y), self.y, self.loss)
        return float(group_scores(self.Z, self.masks, start).max())


@dataclass(frozen=True)
class Verdict:
    """What the judge says of an answer."""

    primal: float
    dual: float

    @property
    def gap(self) -> float:
        return (self.primal - self.dual) / self.primal


def predict(Z: Array, masks: Array, S: Array) -> Array:
    """Return ``F = sum_g D_g Z S_g``."""
    return np.einsum("ij,ij->i", masks, Z @ S.T)


def correlate(Z: Array, masks: Array, v: Array) -> Array:
    """Return the (P, r + 1) array of ``Z^T D_g v``."""
    return masks.T @ (Z * v[:, None])


def group_scores(Z: Array, masks: Array, v: Array) -> Array:
    """Return ``|Z^T D_g v|_2`` for every gate."""
    return np.linalg.norm(correlate(Z, masks, v), axis=1)


def residual(F: Array, y: Array, loss: Loss) -> Array:
    """Return minus the gradient of the mean loss."""
    return (y - (F if loss == "squared" else expit(F))) / len(y)


def primal_value(F: Array, S: Array, y: Array, loss: Loss, alpha: float) -> float:
    """Return the objective at ``S``, whose predictions are ``F``."""
    if loss == "squared":
        fit = 0.5 * np.mean((F - y) ** 2)
    else:
        fit = np.mean(np.logaddexp(0.0, F) - y * F)
    return float(fit + alpha * np.linalg.norm(S, axis=1).sum())


def dual_value(Lambda: Array, largest_score: float, y: Array, loss: Loss, alpha: float) -> float:
    """Return the dual objective at ``Lambda`` shrunk until it is feasible."""
    n = len(y)
    c = min(1.0, alpha / largest_score) if largest_score > 0 else 1.0
    if loss == "squared":
        return float(c * (Lambda @ y) - n * c**2 * (Lambda @ Lambda) / 2)
    u = np.clip(y - c * n * Lambda, 0.0, 1.0)
    return float(np.mean(entr(u) + entr(1 - u)))


def judge(problem: Problem, alpha: float, S: Array) -> Verdict:
    """Return the primal value of ``S`` and a lower bound of the optimum."""
    Z, y, masks, loss = problem.Z, problem.y, problem.masks, problem.loss
    S = np.asarray(S, dtype=np.float64)
    F = predict(Z, masks, S)
    Lambda = residual(F, y, loss)
    largest = float(group_scores(Z, masks, Lambda).max())
    return Verdict(primal_value(F, S, y, loss, alpha), dual_value(Lambda, largest, y, loss, alpha))


def make_problem(name: str, X: Array, y: Array, loss: Loss, n_gates: int, seed: int = 0) -> Problem:
    """Whiten the inputs and draw the gates, keeping one of each non-empty pattern."""
    X = np.asarray(X, dtype=np.float64)
    y = np.asarray(y, dtype=np.float64)
    if loss == "squared":
        y = (y - y.mean()) / y.std()
    U, s, _ = np.linalg.svd(X - X.mean(axis=0), full_matrices=False)
    U = U[:, s >= 1e-10 * s[0]]
    Z = np.hstack([math.sqrt(len(y)) * U, np.ones((len(y), 1))])
    gates = np.random.default_rng(seed).standard_normal((Z.shape[1], n_gates))
    masks = Z @ gates >= 0
    _, first = np.unique(masks, axis=1, return_index=True)
    keep = np.sort(first[masks[:, first].any(axis=0)])
    return Problem(
        name,
        loss,
        np.ascontiguousarray(Z),
        y,
        np.ascontiguousarray(masks[:, keep], dtype=np.float64),
        np.ascontiguousarray(gates[:, keep]),
    )


def data_folder() -> Path:
    """Return the folder of the data that scikit-learn does not carry."""
    beside = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"
    return Path(os.environ.get("SKLEARN_CONVEXBN_DATA", beside))


def load_problems(n_gates: int) -> list[Problem]:
    """Return the benchmark's problems, with diabetes for data that are missing."""
    problems = []
    for name in ("concrete", "airfoil"):
        path = data_folder() / "uci" / f"{name}.npz"
        if path.is_file():
            with np.load(path) as data:
                problems.append(make_problem(name, data["X"], data["y"], "squared", n_gates))
        else:
            print(f"note: no uci/{name}.npz in the data folder; diabetes stands in")
    if len(problems) < 2:
        problems.append(diabetes("squared", n_gates))
    X, y = load_breast_cancer(return_X_y=True)
    problems.append(make_problem("breast_cancer", X, y, "logistic", n_gates))
    return problems


def diabetes(loss: Loss, n_gates: int) -> Problem:
    """Return scikit-learn's diabetes data, cut at the median for the logistic loss."""
    X, y = load_diabetes(return_X_y=True)
    if loss == "logistic":
        y = (y > np.median(y)).astype(np.float64)
    return make_problem("diabetes", X, y, loss, n_gates)


# --------------------------------------------------------------------------------------
# Solvers.  Each takes a problem, alpha, a tolerance and a limit in seconds.
# --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """A solver's ``S`` with its times in seconds; ``S`` is None when it has none."""

    S: Array | None
    solve: float
    setup: float = 0.0
    note: str = ""


def clock() -> float:
    """Return wall time, or this process's own time with ``--clock cpu``."""
    return time.process_time() if CLOCK["name"] == "cpu" else time.perf_counter()


CLOCK = {"name": "wall"}
SolverCall = Callable[[Problem, float, float, float], Answer]


def decades(first: float, last: float, per_decade: int = 2) -> tuple[float, ...]:
    """Return a geometric ladder from 10^first down to 10^last."""
    count = round((first - last) * per_decade) + 1
    return tuple(float(f"{t:.2g}") for t in np.logspace(first, last, count))


def explicit_matrix(problem: Problem) -> Array:
    """Return ``[D_1 Z, ..., D_P Z]`` in column order, a group being r + 1 columns."""
    n, width = problem.Z.shape
    A = np.empty((n, problem.masks.shape[1] * width), order="F")
    for j in range(width):
        A[:, j::width] = problem.masks * problem.Z[:, j : j + 1]
    return A


def lipschitz(Z: Array, masks: Array, loss: Loss, n_iter: int = 30) -> float:
    """Return the largest curvature of the mean loss in ``S``, by the power method."""
    v = np.random.default_rng(0).standard_normal(len(Z))
    norm = 1.0
    for _ in range(n_iter):
        v = predict(Z, masks, correlate(Z, masks, v / np.linalg.norm(v)))
        norm = float(np.linalg.norm(v))
    return 1.05 * norm / len(Z) * (1.0 if loss == "squared" else 0.25)


def numpy_fista(
    Z: Array,
    y: Array,
    masks: Array,
    gates: Array,
    loss: Loss,
    alpha: float,
    tol: float,
    check_every: int = 10,
) -> Array:
    """Run FISTA with adaptive restart in NumPy to a relative gap: a reference."""
    step = 1.0 / lipschitz(Z, masks, loss)
    S = V = np.zeros((masks.shape[1], Z.shape[1]))
    F = F_V = np.zeros(len(y))
    t = 1.0
    for iteration in range(10**7):
        if iteration % check_every == 0:
            Lambda = residual(F, y, loss)
            largest = float(group_scores(Z, masks, Lambda).max())
            primal = primal_value(F, S, y, loss, alpha)
            if primal - dual_value(Lambda, largest, y, loss, alpha) <= tol * primal:
                break
        new = V + step * correlate(Z, masks, residual(F_V, y, loss))
        norms = np.linalg.norm(new, axis=1, keepdims=True)
        new *= np.maximum(1.0 - alpha * step / np.maximum(norms, 1e-300), 0.0)
        new_F = predict(Z, masks, new)
        if np.vdot(V - new, new - S) > 0:
            t = 1.0
        new_t = (1.0 + math.sqrt(1.0 + 4.0 * t * t)) / 2.0
        momentum = (t - 1.0) / new_t
        V = new + momentum * (new - S)
        F_V = new_F + momentum * (new_F - F)
        S, F, t = new, new_F, new_t
    return S


def solve_ours(problem: Problem, alpha: float, tol: float, limit: float) -> Answer:
    """Run the package's solver; the tolerance is the relative gap."""
    start = clock()
    S = ours(problem.Z, problem.y, problem.masks, problem.gates, problem.loss, alpha, tol)
    return Answer(S, clock() - start)


def solve_numpy_fista(problem: Problem, alpha: float, tol: float, limit: float) -> Answer:
    """Run the NumPy reference; the tolerance is the relative gap."""
    start = clock()
    S = numpy_fista(problem.Z, problem.y, problem.masks, problem.gates, problem.loss, alpha, tol)
    return Answer(S, clock() - start)


def solve_scnn(problem: Problem, alpha: float, tol: float, limit: float) -> Answer:
    """Run scnn's R-FISTA on its gated ReLU model, in double precision.

    Its mean of half squared errors and its neuron penalty are this program's.  It is
    told not to rescale the columns (``unitize_data``) nor to add a bias.  It stops on
    the squared norm of the least subgradient, so the rung is taken relative to alpha.
    It sorts its gates: the rows of the answer are put back in this program's order.
    """
    from scnn.metrics import Metrics
    from scnn.models import ConvexGatedReLU
    from scnn.optimize import optimize_model
    from scnn.regularizers import NeuronGL1
    from scnn.solvers import RFISTA

    start = clock()
    model = ConvexGatedReLU(problem.gates, c=1, bias=False)
    model, _ = optimize_model(
        model,
        RFISTA(model, max_iters=10**7, tol=(tol * alpha) ** 2),
        Metrics(objective=False, grad_norm=False),
        problem.Z,
        problem.y,
        regularizer=NeuronGL1(alpha),
        return_convex=True,
        unitize_data=False,
        dtype="float64",
    )
    seconds = clock() - start
    place = {g.tobytes(): i for i, g in enumerate(problem.gates.T)}
    S = np.zeros((problem.masks.shape[1], problem.Z.shape[1]))
    S[[place[g.tobytes()] for g in np.asarray(model.G).T]] = model.parameters[0][0]
    return Answer(S, seconds)


def solve_skglm(problem: Problem, alpha: float, tol: float, limit: float) -> Answer:
    """Run skglm's block coordinate descent, or its prox-Newton for the logistic loss.

    It stops on the largest distance to the subdifferential, so the rung is taken
    relative to alpha.  ``LogisticGroup`` has no constants per group for ``GroupBCD``
    (it inherits those per column), hence the other solver.
    """
    from skglm.datafits import LogisticGroup, QuadraticGroup
    from skglm.penalties import WeightedGroupL2
    from skglm.solvers import GroupBCD, GroupProxNewton
    from skglm.utils.jit_compilation import compiled_clone

    n_groups, width = problem.masks.shape[1], problem.Z.shape[1]
    start = clock()
    A = explicit_matrix(problem)
    built = clock()
    indices = np.arange(n_groups * width, dtype=np.int32)
    pointers = np.arange(0, n_groups * width + 1, width, dtype=np.int32)
    penalty = WeightedGroupL2(alpha, np.ones(n_groups), pointers, indices)
    if problem.loss == "squared":
        y, datafit = problem.y, QuadraticGroup(pointers, indices)
        solver = GroupBCD(max_iter=10**5, max_epochs=1000, tol=tol * alpha)
    else:
        y, datafit = 2.0 * problem.y - 1.0, LogisticGroup(pointers, indices)
        solver = GroupProxNewton(max_iter=10**5, tol=tol * alpha)
    w = solver.solve(A, y, compiled_clone(datafit), compiled_clone(penalty))[0]
    return Answer(w.reshape(n_groups, width), clock() - built, built - start)


def solve_celer(problem: Problem, alpha: float, tol: float, limit: float) -> Answer:
    """Run celer's group lasso; it stops when the gap is ``tol * mean(y^2)``."""
    from celer import celer_path

    width = problem.Z.shape[1]
    start = clock()
    A = explicit_matrix(problem)
    built = clock()
    _, coefs, _ = celer_path(
        A,
        problem.y,
        "grouplasso",
        groups=width,
        alphas=[alpha],
        max_iter=10**4,
        max_epochs=10**6,
        tol=tol,
    )
    return Answer(coefs[:, 0].reshape(-1, width), clock() - built, built - start)


def solve_cvxpy(problem: Problem, alpha: float, tol: float, limit: float) -> Answer:
    """Run Clarabel through CVXPY; the set-up is all but Clarabel's own time."""
    import cvxpy as cp

    n, P, width = len(problem.y), problem.masks.shape[1], problem.Z.shape[1]
    start, wall = clock(), time.perf_counter()
    S = cp.Variable((P, width))
    F = explicit_matrix(problem) @ cp.vec(S, order="C")
    if problem.loss == "squared":
        fit = cp.sum_squares(F - problem.y) / (2 * n)
    else:
        fit = cp.sum(cp.logistic(F) - cp.multiply(problem.y, F)) / n
    program = cp.Problem(cp.Minimize(fit + alpha * cp.sum(cp.norm(S, 2, axis=1))))
    try:
        program.solve(
            solver=cp.CLARABEL,
            tol_gap_abs=tol,
            tol_gap_rel=tol,
            tol_feas=tol,
            max_iter=1000,
            time_limit=limit if CLOCK["name"] == "wall" else math.inf,
        )
    except cp.SolverError as error:
        return Answer(None, clock() - start, note=str(error)[:200])
    total, wall = clock() - start, time.perf_counter() - wall
    share = min(float(program.solver_stats.solve_time or wall) / wall, 1.0)
    solve = share * total
    return Answer(S.value, solve, total - solve, str(program.status))


@dataclass(frozen=True)
class Solver:
    """A row of the benchmark: what to call, at which tolerances, and its packages."""

    name: str
    call: SolverCall
    ladder: tuple[float, ...]
    packages: tuple[str, ...] = ()
    compiled: bool = False  # it compiles or loads on its first call: warmed up before timing
    skips: dict[str, str] = field(default_factory=dict)

    def why_skip(self, loss: Loss) -> str | None:
        """Return why this solver cannot be run on this loss, or None."""
        for package in self.packages:
            try:
                importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                return f"{package} is not installed"
        return self.skips.get(loss)


SOLVERS = (
    Solver("ours", solve_ours, decades(-3, -7), compiled=True),
    Solver("numpy_fista", solve_numpy_fista, decades(-3, -7)),
    Solver(
        "scnn",
        solve_scnn,
        decades(0.5, -6),
        ("pyscnn",),
        skips={
            "logistic": "scnn's convex models have the squared loss only (its logistic "
            "loss serves linear models, in its private part)"
        },
    ),
    Solver("skglm", solve_skglm, decades(-0.5, -7), ("skglm",), compiled=True),
    Solver(
        "celer",
        solve_celer,
        decades(-2, -14),
        ("celer",),
        skips={"logistic": "celer's group lasso has the squared loss only"},
    ),
    Solver("cvxpy", solve_cvxpy, (1e-4, 1e-6, 1e-8, 1e-10), ("cvxpy", "clarabel")),
)


# --------------------------------------------------------------------------------------
# Running under a limit
# --------------------------------------------------------------------------------------


GRACE = 10.0  # seconds beyond the limit, for imports and for solvers that stop late


def _child(
    pipe: Any, solver: Solver, problem: Problem, alpha: float, tol: float, limit: float
) -> None:
    """Send an answer, or the text of an error, through the pipe."""
    if CLOCK["name"] == "cpu":
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(limit + GRACE),) * 2)
    try:
        pipe.send(run_inline(solver, problem, alpha, tol, limit))
    except BaseException as error:
        pipe.send(Answer(None, math.nan, note=f"{type(error).__name__}: {error}"[:300]))
    pipe.close()


def run_inline(solver: Solver, problem: Problem, alpha: float, tol: float, limit: float) -> Answer:
    """Call a solver in this process."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return solver.call(problem, alpha, tol, limit)


def run_limited(
    solver: Solver, problem: Problem, alpha: float, tol: float, limit: float, inline: bool
) -> Answer:
    """Call a solver in a forked process that is ended soon after the limit."""
    if inline or "fork" not in multiprocessing.get_all_start_methods():
        return run_inline(solver, problem, alpha, tol, limit)
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(sender, solver, problem, alpha, tol, limit))
    process.start()
    sender.close()
    answer = None
    if receiver.poll(limit + GRACE if CLOCK["name"] == "wall" else None):
        try:
            answer = receiver.recv()
        except EOFError:  # the process was ended, by its limit of processor time or not
            process.join()
            if CLOCK["name"] == "wall":
                answer = Answer(None, math.nan, note=f"ended: {process.exitcode}")
    process.kill()
    process.join()
    return answer or Answer(None, math.inf, note="ended at the limit")


def warm_up(solvers: Sequence[Solver], losses: Sequence[Loss]) -> None:
    """Compile the code of just-in-time solvers on a small problem, in this process.

    The others are left alone: a solver with threads of its own (Clarabel's pool) that
    has once run here would hang in the forked processes.
    """
    for loss in losses:
        problem = diabetes(loss, 20)
        for solver in solvers:
            if solver.compiled and solver.why_skip(loss) is None:
                run_inline(solver, problem, 0.1 * problem.alpha_max, solver.ladder[2], 60.0)


# --------------------------------------------------------------------------------------
# Cells of the table
# --------------------------------------------------------------------------------------


@dataclass
class Cell:
    """The outcome of one solver on one problem, penalty and target gap."""

    data: str
    fraction: float
    target: float
    solver: str
    status: str  # "reached", "limit", "not reached", "skipped" or "failed"
    seconds: float | None = None
    setup: float | None = None
    tol: float | None = None
    gap: float | None = None
    note: str = ""


def climb(
    solver: Solver,
    problem: Problem,
    fraction: float,
    targets: Sequence[float],
    limit: float,
    inline: bool,
) -> list[Cell]:
    """Walk down a solver's ladder of tolerances until every target gap is reached."""
    cells = [Cell(problem.name, fraction, target, solver.name, "not reached") for target in targets]
    reason = solver.why_skip(problem.loss)
    if reason is not None:
        for cell in cells:
            cell.status, cell.note = "skipped", reason
        return cells
    alpha = fraction * problem.alpha_max
    waiting = list(cells)
    for tol in solver.ladder:
        answer = run_limited(solver, problem, alpha, tol, limit, inline)
        seconds = answer.setup + answer.solve
        if answer.S is None or seconds > limit:
            failed = answer.S is None and seconds != math.inf and not seconds > limit
            for cell in waiting:
                cell.status = "failed" if failed else "limit"
                cell.note = answer.note
            break
        gap = judge(problem, alpha, answer.S).gap
        for cell in waiting:
            cell.gap, cell.tol, cell.note = gap, tol, answer.note
            if gap <= cell.target:
                cell.status, cell.seconds, cell.setup = "reached", seconds, answer.setup
        waiting = [cell for cell in waiting if cell.status != "reached"]
        if not waiting:
            break
    return cells


# --------------------------------------------------------------------------------------
# Reports
# --------------------------------------------------------------------------------------


def environment() -> dict[str, str]:
    """Return the versions and thread settings that the numbers depend on."""
    info = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpus": str(os.cpu_count()),
    }
    packages = ["numpy", "scipy", "scikit-learn", "numba", "torch", "sklearn-convexbn"]
    for package in packages + [p for solver in SOLVERS for p in solver.packages]:
        try:
            info[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            info[package] = "not installed"
    return info | {v: os.environ[v] for v in THREAD_VARIABLES}


def seconds_text(cell: Cell, limit: float) -> str:
    """Return a cell's time as text."""
    if cell.status == "reached":
        return f"{cell.seconds:.3g}"
    if cell.status == "not reached":
        return f"gap {cell.gap:.0e}"
    return {"limit": f">{limit:g}", "skipped": "skip", "failed": "fail"}[cell.status]


def ratio_text(cell: Cell, own: Cell, limit: float) -> str:
    """Return a cell's time over ours as text."""
    if own.status != "reached" or cell.status not in ("reached", "limit"):
        return "-"
    assert own.seconds is not None
    if cell.status == "limit":
        return f">{limit / own.seconds:.3g}"
    assert cell.seconds is not None
    return f"{cell.seconds / own.seconds:.3g}"


def setup_text(cell: Cell, limit: float) -> str:
    """Return the part of a cell's time that went in building its input."""
    return f"{cell.setup:.3g}" if cell.setup is not None else "-"


def markdown_table(
    cells: Sequence[Cell], names: Sequence[str], text: Callable[[dict[str, Cell], Cell], str]
) -> str:
    """Return a table with one row for each data set, penalty and target gap."""
    rows: dict[tuple[str, float, float], dict[str, Cell]] = {}
    for cell in cells:
        rows.setdefault((cell.data, cell.fraction, cell.target), {})[cell.solver] = cell
    lines = [
        "| data | alpha/alpha_max | gap | " + " | ".join(names) + " |",
        "|---|---|---|" + "---:|" * len(names),
    ]
    for (data, fraction, target), row in rows.items():
        texts = [text(row, row[name]) if name in row else "" for name in names]
        lines.append(f"| {data} | {fraction:g} | {target:g} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def report(
    cells: Sequence[Cell], names: Sequence[str], limit: float, problems: Sequence[Problem]
) -> str:
    """Return the whole report in markdown."""
    reasons = dict.fromkeys(
        f"- {c.solver} on {c.data}: {c.note}" for c in cells if c.status == "skipped"
    )
    shapes = [
        f"- {p.name}: {p.loss} loss, n = {len(p.y)}, r + 1 = {p.Z.shape[1]}, "
        f"P = {p.masks.shape[1]}, alpha_max = {p.alpha_max:.4g}"
        for p in problems
    ]
    parts = [
        "# Gated ReLU group lasso: time to a certified relative gap",
        *shapes,
        f"\n## Seconds of {CLOCK['name']} time, set-up included (limit {limit:g} a call)\n",
        markdown_table(cells, names, lambda row, c: seconds_text(c, limit)),
        "\n## Seconds of set-up among these\n",
        markdown_table(cells, names, lambda row, c: setup_text(c, limit)),
    ]
    if "ours" in names:
        peers = [name for name in names if name != "ours"]
        parts += [
            "\n## Ratios peer / ours\n",
            markdown_table(
                cells,
                peers,
                lambda row, c: ratio_text(c, row["ours"], limit) if "ours" in row else "",
            ),
        ]
    if reasons:
        parts += ["\n## Skipped\n", *reasons]
    parts += [
        "\n## Versions and threads\n",
        *(f"- {key}: {value}" for key, value in environment().items()),
    ]
    return "\n".join(parts) + "\n"


def write_results(folder: Path, cells: Sequence[Cell], text: str, options: dict[str, Any]) -> None:
    """Write the report and the cells behind it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bench_gated.md").write_text(text, encoding="utf-8")
    content = {
        "environment": environment(),
        "options": options,
        "cells": [asdict(cell) for cell in cells],
    }
    (folder / "bench_gated.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


# --------------------------------------------------------------------------------------
# Commands
# --------------------------------------------------------------------------------------


def check(
    solvers: Sequence[Solver], n_gates: int = 50, tight: float = 3e-6, accuracy: float = 1e-5
) -> bool:
    """Say whether every solver's objective, at a tight tolerance, is CVXPY's.

    Each solver goes down its ladder until the judge's gap is ``tight``, so that a
    wrong scale anywhere shows as a gap that is never reached or as a difference.
    """
    reference = next(s for s in SOLVERS if s.name == "cvxpy")
    agree = True
    losses: tuple[Loss, ...] = ("squared", "logistic")
    warm_up(solvers, losses)
    for loss in losses:
        problem = diabetes(loss, n_gates)
        for fraction in (0.1, 0.01):
            alpha = fraction * problem.alpha_max
            exact = run_limited(reference, problem, alpha, 1e-9, 600.0, False).S
            assert exact is not None, "CVXPY has no answer"
            value = judge(problem, alpha, exact)
            print(
                f"{loss}, {fraction:g} alpha_max: CVXPY {value.primal:.9f}, "
                f"dual bound {value.dual:.9f}"
            )
            for solver in solvers:
                agree &= check_solver(solver, problem, alpha, value.primal, tight, accuracy)
    return agree


def check_solver(
    solver: Solver, problem: Problem, alpha: float, exact: float, tight: float, accuracy: float
) -> bool:
    """Say whether one solver's objective agrees with the exact one."""
    reason = solver.why_skip(problem.loss)
    if reason is not None:
        print(f"  {solver.name:12s} skipped: {reason}")
        return True
    for tol in solver.ladder:
        answer = run_limited(solver, problem, alpha, tol, 60.0, inline=False)
        if answer.S is None:
            print(f"  {solver.name:12s} no answer at {tol:g}: {answer.note}")
            return False
        verdict = judge(problem, alpha, answer.S)
        if verdict.gap <= tight:
            break
    difference = abs(verdict.primal - exact) / exact
    agrees = difference <= accuracy and verdict.gap <= tight
    print(
        f"  {solver.name:12s} {verdict.primal:.9f}  difference {difference:.1e}  "
        f"gap {verdict.gap:.1e} at {tol:g}  {'ok' if agrees else 'DIFFERS'}",
        flush=True,
    )
    return agrees


def run_table(solvers: Sequence[Solver], options: argparse.Namespace) -> None:
    """Fill the table, writing the results after each solver."""
    problems = [
        p for p in load_problems(options.gates) if not options.data or p.name in options.data
    ]
    names = [solver.name for solver in solvers]
    settings = {key: value for key, value in vars(options).items() if key != "results"}
    warm_up(solvers, sorted({p.loss for p in problems}))
    cells: list[Cell] = []
    for problem in problems:
        for fraction in options.fractions:
            for solver in solvers:
                new = climb(
                    solver, problem, fraction, options.targets, options.limit, options.inline
                )
                cells += new
                print(
                    problem.name,
                    f"{fraction:g}",
                    solver.name,
                    [seconds_text(cell, options.limit) for cell in new],
                    flush=True,
                )
                write_results(
                    options.results, cells, report(cells, names, options.limit, problems), settings
                )
    print("\n" + report(cells, names, options.limit, problems))


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "results",
        type=Path,
        nargs="?",
        help="folder for the results",
        default=Path(__file__).parent / "results",
    )
    parser.add_argument("--limit", type=float, default=60.0, help="seconds a call")
    parser.add_argument("--gates", type=int, default=500)
    parser.add_argument("--targets", type=float, nargs="+", default=[1e-3, 1e-5])
    parser.add_argument(
        "--fractions", type=float, nargs="+", default=[0.1, 0.01, 0.001], help="alpha / alpha_max"
    )
    parser.add_argument(
        "--solvers", nargs="+", choices=[s.name for s in SOLVERS], default=[s.name for s in SOLVERS]
    )
    parser.add_argument("--data", nargs="+", help="keep these data sets only")
    parser.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu: processor seconds, for a shared machine and one thread only",
    )
    parser.add_argument(
        "--inline", action="store_true", help="no forked processes: the limit is not enforced"
    )
    parser.add_argument(
        "--check", action="store_true", help="only compare objectives with CVXPY's on diabetes"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark, or its check."""
    options = parse_arguments(arguments)
    CLOCK["name"] = options.clock
    solvers = [solver for solver in SOLVERS if solver.name in options.solvers]
    if options.check:
        return 0 if check(solvers) else 1
    run_table(solvers, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())

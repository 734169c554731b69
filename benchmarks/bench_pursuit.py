"""The pursuit against gradient descent, and against programs on sampled arrangements.

All solvers minimise ``mean loss + alpha * sum_j |q_j| |g_j|`` over two-layer ReLU networks
with batch normalization: ``|q_j|^2 = gamma_j^2 + beta_j^2`` is what batch normalization's
scale and shift cost, ``g_j`` are the output weights, and the intercept is free.  Regression
targets have unit variance, all rows are used, values are judged in float64.

``adam``: Adam trains the network itself (Linear, BatchNorm1d, ReLU, Linear in torch, full
batches, weight decay, cosine schedule), once for each learning rate.  The table compares
the time of its better run to its best objective with the pursuit's time to the same
objective.  Adam's objective is taken at balanced scales, which lower it, and outside its
clock.  The pursuit's time includes whitening and the certificate of every round.  Its final
gap is then judged by a second search of 20 times the size, with other random numbers.

``lists``: the exact ReLU program on 1000 sampled arrangements, for one output: the objective
that the package's FISTA, CVXPY and scnn reach on the list, beside the pursuit's.

Times are processor seconds, on one thread unless OMP_NUM_THREADS says otherwise.

Usage::

    python benchmarks/bench_pursuit.py adam [RESULTS_FOLDER] [--problems yacht wine:0.01]
    python benchmarks/bench_pursuit.py lists [RESULTS_FOLDER] [--limit 120]

The data of ``uci/`` are found as ``bench_gated.py`` finds them; without them those problems
are left out.
"""

from __future__ import annotations

import _suite  # noqa: F401 - first: it sets the number of threads

# isort: split
import argparse
import json
import math
import multiprocessing
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _suite import data
from _suite.circumstances import circumstances, environment
from _suite.data import Array
from sklearn.exceptions import ConvergenceWarning

from sklearn_convexbn._arrangements import distinct_gates, random_directions
from sklearn_convexbn._bound import THOROUGH_GENERATIONS
from sklearn_convexbn._losses import LOSSES
from sklearn_convexbn._problem import Neurons, Problem
from sklearn_convexbn._search import Effort, Search
from sklearn_convexbn._whitening import Whitening, whiten
from sklearn_convexbn.solvers import Iterate, Result, RunSettings, Solver, make_solver, run
from sklearn_convexbn.solvers._pursuit import (
    LEAST_CERTIFY_FACTOR,
    Pursuit,
)

clock = time.process_time
MAX_ROUNDS = 200  # the estimators' default


@dataclass(frozen=True)
class Case:
    """One problem; `lowest` is the smallest objective seen before this benchmark."""

    data: str
    loss: str
    alpha: float
    lowest: float

    @property
    def name(self) -> str:
        return f"{self.data}:{self.alpha:g}"


CASES = (
    Case("diabetes", "squared", 0.03, 0.251008),
    Case("diabetes", "squared", 0.01, 0.194489),
    Case("yacht", "squared", 0.01, 0.030318),
    Case("yacht", "squared", 0.001, 0.006392),
    Case("energy", "squared", 0.01, 0.037587),
    Case("energy", "squared", 0.001, 0.005710),
    Case("concrete", "squared", 0.01, 0.097598),
    Case("concrete", "squared", 0.001, 0.030344),
    Case("airfoil", "squared", 0.01, 0.161761),
    Case("airfoil", "squared", 0.001, 0.060005),
    Case("wine", "softmax", 0.01, 0.115621),
    Case("breast_cancer", "logistic", 0.01, 0.128443),
    Case("digits", "softmax", 0.01, 0.345423),
)


def load(case: Case) -> tuple[Array, Array]:
    """Return inputs (n, d) and targets (n, C): of unit variance, 0/1 or one-hot."""
    X, y = data.load(case.data)
    if case.loss == "softmax":
        return X, np.eye(int(y.max()) + 1)[y.astype(int)]
    y = (y - y.mean()) / y.std() if case.loss == "squared" else y
    return X, y[:, None]


def chosen_cases(names: Sequence[str] | None) -> list[Case]:
    """Return the cases that are asked for, by data set or by name, and whose data are there."""
    cases = []
    for case in CASES:
        if names and not {case.data, case.name} & set(names):
            continue
        if data.has(case.data):
            cases.append(case)
        else:
            print(f"note: no uci/{case.data}.npz in the data folder; {case.name} is left out")
    return cases


# --------------------------------------------------------------------------------------
# The package's solvers, on a clock of their own
# --------------------------------------------------------------------------------------


class Clocked(Solver):
    """A solver that notes the seconds since it was made after each round, certificate included."""

    def __init__(self, solver: Solver, limit: float = math.inf) -> None:
        self.solver = solver
        self.limit = limit
        self.start = clock()
        self.seconds: list[float] = []

    def unsupported(self, problem: Problem) -> str:
        return self.solver.unsupported(problem)

    def iterates(self, problem: Problem, settings: RunSettings) -> Iterator[Iterate]:
        for iterate in self.solver.iterates(problem, settings):
            late = clock() - self.start > self.limit
            yield replace(iterate, stalled=iterate.stalled or late)
            self.seconds.append(clock() - self.start)  # the driver has certified the round

    def run(self, problem: Problem, settings: RunSettings) -> Result:
        """Run to the tolerance or the limit."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            result = run(self, problem, settings, max_iter=MAX_ROUNDS)
        self.seconds[result.n_iter - 1 :] = [clock() - self.start]
        return result


def make_problem(case: Case, X: Array, Y: Array) -> tuple[Problem, Whitening]:
    """Whiten the inputs and state the full ReLU problem."""
    weights = np.ones(len(X))
    Z, whitening = whiten(X, weights)
    problem = Problem(
        Z=Z,
        Y=Y,
        p=weights / len(X),
        loss=LOSSES[case.loss],
        alpha=case.alpha,
        fit_intercept=True,
        activation="relu",
        gates=None,
        all_arrangements=False,
        spectrum=whitening.spectrum,
    )
    return problem, whitening


def run_settings(whitening: Whitening, tol: float, seed: int) -> RunSettings:
    """Return what the estimators hand to a solver."""
    state = np.random.RandomState(seed)
    directions = partial(random_directions, whitening, random_state=state)
    return RunSettings(tol=tol, device="cpu", random_directions=directions, random_state=state)


def pursue(
    case: Case, X: Array, Y: Array, tol: float, seed: int
) -> tuple[Problem, Whitening, Clocked, Result]:
    """Run the pursuit with its default settings; nothing is left out of its time."""
    clocked = Clocked(make_solver("pursuit"))
    problem, whitening = make_problem(case, X, Y)
    result = clocked.run(problem, run_settings(whitening, tol, seed))
    return problem, whitening, clocked, result


def first_time(seconds: Sequence[float], objective: Sequence[float], to: float) -> float | None:
    """Return when the objective was first at most `to`, if ever."""
    return next((s for s, o in zip(seconds, objective, strict=True) if o <= to), None)


# --------------------------------------------------------------------------------------
# The second search
# --------------------------------------------------------------------------------------


def second_gap(problem: Problem, whitening: Whitening, result: Result, seed: int) -> float:
    """Return the gap after a search of 20 times the size of the one that certifies."""
    pursuit, (n, k) = Pursuit(), problem.Z.shape
    settings = run_settings(whitening, 0.0, seed)
    search = Search(problem.units.on("cpu"), settings.random_directions, settings.random_state)
    neurons, F = problem.with_best_intercept(result.neurons)
    values, _ = search(
        problem.dual_point(F),
        neurons.directions.T,
        Effort(
            n_starts=20 * pursuit.certifying_starts(n, k),
            n_relatives=20 * LEAST_CERTIFY_FACTOR * pursuit.n_starts,
            n_steps=pursuit.n_search_steps,
            n_generations=THOROUGH_GENERATIONS,
        ),
    )
    return problem.certificate(neurons, largest_correlation=float(values.max()))[1].gap


# --------------------------------------------------------------------------------------
# Adam
# --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Descent:
    """A run of Adam: its objective every few steps with the seconds of training until then."""

    rate: float
    seconds: list[float]
    objective: list[float]


def objective_of_network(case: Case, X: Array, Y: Array, net: torch.nn.Sequential) -> float:
    """Return the objective of a network at balanced scales, in float64."""
    W, gamma, beta, V, b = (t.detach().double().numpy() for t in net.parameters())
    H = X @ W.T
    H = (H - H.mean(axis=0)) / H.std(axis=0)
    F = np.maximum(H * gamma + beta, 0.0) @ V.T + b
    fit = float(LOSSES[case.loss].value(F, Y, np.full(len(Y), 1.0 / len(Y))))
    return fit + case.alpha * float(np.hypot(gamma, beta) @ np.linalg.norm(V, axis=0))


def torch_loss(loss: str) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Return the mean loss as torch has it."""
    functional = torch.nn.functional
    if loss == "squared":
        return lambda F, Y: 0.5 * functional.mse_loss(F, Y)
    if loss == "logistic":
        return functional.binary_cross_entropy_with_logits
    return functional.cross_entropy


def descend(
    case: Case, X: Array, Y: Array, rate: float, options: argparse.Namespace, every: int = 10
) -> Descent:
    """Train the network by full-batch Adam with weight decay and a cosine schedule."""
    torch.manual_seed(options.seed)
    dtype = getattr(torch, options.adam_dtype)
    X = X[:, X.std(axis=0) > 0]
    X = (X - X.mean(axis=0)) / X.std(axis=0)
    inputs, targets = torch.as_tensor(X, dtype=dtype), torch.as_tensor(Y, dtype=dtype)
    net = torch.nn.Sequential(
        torch.nn.Linear(X.shape[1], options.units, bias=False),
        torch.nn.BatchNorm1d(options.units, eps=1e-12, track_running_stats=False),
        torch.nn.ReLU(),
        torch.nn.Linear(options.units, Y.shape[1]),
    ).to(dtype)
    loss = torch_loss(case.loss)
    W, gamma, beta, V, b = net.parameters()
    groups: list[dict[str, Any]] = [
        {"params": [W, b], "weight_decay": 0.0},
        {"params": [gamma, beta, V], "weight_decay": case.alpha},  # alpha/2 |.|^2 in the loss
    ]
    adam = torch.optim.Adam(groups, lr=rate, fused=True)
    torch.set_flush_denormal(True)  # weights on their way to zero slow it down otherwise
    seconds, objective, spent, start = [], [], 0.0, clock()
    for step in range(options.steps):
        for group in adam.param_groups:
            group["lr"] = 0.5 * rate * (1.0 + math.cos(math.pi * step / options.steps))
        adam.zero_grad(set_to_none=True)
        loss(net(inputs), targets).backward()
        adam.step()
        if step % every == every - 1:
            spent += clock() - start
            seconds.append(spent)
            objective.append(objective_of_network(case, X, Y, net))
            start = clock()
    torch.set_flush_denormal(False)
    return Descent(rate, seconds, objective)


def best_descent(case: Case, X: Array, Y: Array, options: argparse.Namespace) -> Descent:
    """Return the better of Adam's runs, from the cache where there is one."""
    settings = (options.steps, options.units, options.adam_dtype, options.rates, options.seed)
    key = f"{case.name} {settings}"
    cache: dict[str, Any] = {}
    if options.adam_cache and options.adam_cache.is_file():
        cache = json.loads(options.adam_cache.read_text(encoding="utf-8"))
    if key not in cache:
        runs = [descend(case, X, Y, rate, options) for rate in options.rates]
        cache[key] = asdict(min(runs, key=lambda run: min(run.objective)))
        if options.adam_cache:
            options.adam_cache.write_text(json.dumps(cache), encoding="utf-8")
    return Descent(**cache[key])


# --------------------------------------------------------------------------------------
# Programs on a list of arrangements
# --------------------------------------------------------------------------------------

GRACE = 5.0  # seconds beyond the limit, for what stops by itself

#: What a method yields: processor seconds and the objective of its network.
Answers = Iterator[tuple[float, float]]


def listed_problem(case: Case, X: Array, Y: Array, n_gates: int, seed: int) -> Problem:
    """State the program on distinct sampled arrangements."""
    problem, whitening = make_problem(case, X, Y)
    draws = random_directions(whitening, n_gates, np.random.RandomState(seed))
    gates = distinct_gates(problem.Z, draws)
    return replace(problem, gates=gates)


def by_package(solver: Solver, problem: Problem, tol: float, limit: float) -> Answers:
    """Run one of the package's solvers on a list; these draw nothing."""
    settings = RunSettings(tol=tol, device="cpu", random_directions=None, random_state=None)
    clocked = Clocked(solver, limit)
    result = clocked.run(problem, settings)
    yield clocked.seconds[-1], result.certificate.primal
    if not result.converged:
        raise TimeoutError(f"a gap of {result.certificate.gap:.1e} when it ended")


def by_scnn(problem: Problem, tol: float, limit: float) -> Answers:
    """Run scnn's augmented Lagrangian with more and more steps, each time from scratch.

    Its program has no output intercept: its neurons are given the best one afterwards.  They
    may leave their cones a little, and so fall below the optimum over the list.
    """
    from scnn.metrics import Metrics
    from scnn.models import ConvexReLU
    from scnn.optimize import optimize_model
    from scnn.regularizers import NeuronGL1
    from scnn.solvers import AL

    for steps in (30, 100, 300, 1000, 3000, 10_000, 30_000):
        start = clock()
        model = ConvexReLU(problem.gates, c=1, bias=False)
        solver = AL(model, max_primal_iters=steps, tol=(tol * problem.alpha) ** 2)
        metrics = Metrics(objective=False, grad_norm=False)
        y = problem.Y[:, 0]
        settings = {"return_convex": True, "unitize_data": False, "dtype": "float64"}
        penalty = NeuronGL1(problem.alpha)
        model, _ = optimize_model(
            model, solver, metrics, problem.Z, y, regularizer=penalty, **settings
        )
        seconds = clock() - start
        Q = np.vstack([blocks[0] for blocks in model.parameters])
        signs = np.repeat([[1.0], [-1.0]], len(Q) // 2, axis=0)
        neurons = Neurons.from_products(Q, signs, problem.constant(), None)
        yield seconds, problem.objective(problem.with_best_intercept(neurons)[0])


CLARABEL = dict.fromkeys(("tol_gap_abs", "tol_gap_rel", "tol_feas"), 1e-6)
METHODS: dict[str, Callable[[Problem, float, float], Answers]] = {
    "FISTA": partial(by_package, make_solver("interior_point")),
    "CVXPY": partial(by_package, make_solver("cvxpy").set_params(options=CLARABEL)),
    "scnn": by_scnn,
}


#: What the table has of each method: additions to its name, and formats.
PARTS = ("", " / pursuit", " seconds"), (".6f", ".3f", ".3g")


def why_skip(method: str, problem: Problem) -> str:
    """Return why a method cannot be run on a problem, or nothing."""
    package = {"CVXPY": "cvxpy", "scnn": "pyscnn"}.get(method)
    if package and environment()[package] == "not installed":
        return f"{package} is not installed"
    if method == "scnn" and problem.loss.name != "squared":
        return "scnn's convex models have the squared loss only"
    return ""


def answers_within(
    method: str, problem: Problem, options: argparse.Namespace
) -> tuple[list[tuple[float, float]], str]:
    """Return the answers of a method in a process of its own, and how it ended."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(sender, method, problem, options))
    process.start()
    sender.close()
    answers, end = [], f"above {options.limit:g} s"
    try:
        while receiver.poll(3.0 * options.limit):  # the child itself counts processor seconds
            message = receiver.recv()
            if isinstance(message, str):
                end = message
                break
            answers.append(message)
    except EOFError:  # ended by the limit of processor time, or for its memory
        process.join()
        if process.exitcode != -signal.SIGXCPU:
            end = f"ended with code {process.exitcode}"
    process.kill()
    process.join()
    return answers, end


def _child(pipe: Any, method: str, problem: Problem, options: argparse.Namespace) -> None:
    """Send answers and, last, a text, within limits of processor time and memory."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    soft = math.ceil(clock() + options.limit + GRACE)  # SIGXCPU; SIGKILL a second later
    resource.setrlimit(resource.RLIMIT_CPU, (soft, soft + 1))
    resource.setrlimit(resource.RLIMIT_AS, (int(options.memory * 2**30),) * 2)
    try:
        for answer in METHODS[method](problem, options.tol, options.limit):
            pipe.send(answer)
        pipe.send("done")
    except MemoryError:
        pipe.send(f"above {options.memory:g} GiB of memory")
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}"[:200])


# --------------------------------------------------------------------------------------
# Tables
# --------------------------------------------------------------------------------------


def adam_row(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """Run Adam and the pursuit on one problem."""
    X, Y = load(case)
    descent = best_descent(case, X, Y, options)
    problem, whitening, clocked, result = pursue(case, X, Y, options.tol, options.seed)
    history, best = result.history, min(descent.objective)
    row: dict[str, Any] = asdict(case) | {"n": len(X), "d": X.shape[1]}
    row |= {"adam": best, "rate": descent.rate, "pursuit": result.certificate.primal}
    for key, target in (("", best), (" to 1 %", 1.01 * best)):
        own = first_time(clocked.seconds, history["objective"], target)
        other = first_time(descent.seconds, descent.objective, target)
        row |= {f"pursuit seconds{key}": own, f"adam seconds{key}": other}
        row[f"ratio{key}"] = None if own is None or other is None else other / own
    row |= {"final seconds": clocked.seconds[-1], "gap": result.certificate.gap}
    row |= {"n_neurons": len(result.neurons), "second gap": None}
    if not options.no_check:
        row["second gap"] = second_gap(problem, whitening, result, options.seed + 1)
    rounds = {key: history[key].tolist() for key in ("objective", "dual_gap", "n_neurons")}
    row["rounds"] = rounds | {"seconds": clocked.seconds}
    row["descent"] = {key: getattr(descent, key)[9::10] for key in ("seconds", "objective")}
    return row


def lists_row(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """Run the pursuit and every method on the list, on one problem."""
    X, Y = load(case)
    problem = listed_problem(case, X, Y, options.gates, options.seed)
    *_, clocked, result = pursue(case, X, Y, options.tol, options.seed)
    best = result.certificate.primal
    row: dict[str, Any] = asdict(case) | {"n": len(X), "d": X.shape[1]}
    row |= {"pursuit": best, "seconds": clocked.seconds[-1], "ends": {}}
    for method in METHODS:
        answers, end = [], why_skip(method, problem)
        if not end:
            answers, end = answers_within(method, problem, options)
        if answers:
            seconds, objective = min(answers, key=lambda answer: answer[1])
            row |= {method: objective, f"{method} / pursuit": objective / best}
            row[f"{method} seconds"] = seconds
        row["ends"][method] = end
    return row


#: The columns of each table with their formats.
COLUMNS = {
    "adam": {
        **{"data": "", "loss": "", "alpha": "g", "lowest": ".6f", "adam": ".6f", "rate": "g"},
        **{"adam seconds": ".3g", "pursuit seconds": ".3g", "ratio": ".3g"},
        **{"ratio to 1 %": ".3g", "pursuit": ".6f", "final seconds": ".3g"},
        **{"gap": ".1e", "second gap": ".1e", "n_neurons": "d"},
    },
    "lists": {
        **{"data": "", "loss": "", "alpha": "g", "pursuit": ".6f", "seconds": ".3g"},
        **{m + part: form for m in METHODS for part, form in zip(*PARTS, strict=True)},
    },
}


def cells(row: dict[str, Any], table: str) -> list[str]:
    """Return a row of a table as text, with dashes for what there is not."""
    values = [(row.get(key), form) for key, form in COLUMNS[table].items()]
    return ["-" if value is None else f"{value:{form}}" for value, form in values]


def report(rows: Sequence[dict[str, Any]], options: argparse.Namespace) -> str:
    """Return a table in markdown, with what is to be said before and after it."""
    head = list(COLUMNS[options.table])
    lines = [head, ["---"] * len(head), *(cells(row, options.table) for row in rows)]
    before, after = {"adam": adam_words, "lists": lists_words}[options.table](rows, options)
    return "\n".join([*before, "", *("| " + " | ".join(c) + " |" for c in lines), "", *after])


def adam_words(
    rows: Sequence[dict[str, Any]], options: argparse.Namespace
) -> tuple[list[str], list[str]]:
    """Return the words before and after the table of Adam and the pursuit."""
    before = [
        "# Pursuit and Adam: time to Adam's best objective\n",
        f"Adam: {options.units} units, {options.steps} full-batch steps in {options.adam_dtype}, "
        f"the better of the learning rates {options.rates}. Pursuit: defaults, "
        f"tol = {options.tol:g}. Processor seconds; a ratio is Adam's over the pursuit's, at "
        "Adam's best objective and at 1.01 times it. `lowest`: the smallest objective seen "
        "before this benchmark. `second gap`: by another search, of 20 times the size of the one "
        "that certifies.",
    ]
    if options.adam_cache:
        before.append("\n**Adam's runs may come from a cache.**")
    after = []
    for key in ("ratio", "ratio to 1 %"):
        ratios = [row[key] for row in rows if row[key] is not None]
        mean = float(np.exp(np.mean(np.log(ratios)))) if ratios else math.nan
        missed = len(rows) - len(ratios)
        after.append(
            f"- geometric mean of `{key}`: {mean:.3g} over {len(ratios)} problems; the pursuit "
            f"did not reach the objective on {missed}"
        )
    return before, after


def lists_words(
    rows: Sequence[dict[str, Any]], options: argparse.Namespace
) -> tuple[list[str], list[str]]:
    """Return the words before and after the table of lists."""
    before = [
        f"# Pursuit and exact ReLU on {options.gates} sampled arrangements\n",
        f"Objectives, their ratios to the pursuit's (tol = {options.tol:g}) and processor "
        f"seconds; a limit of {options.limit:g} s and {options.memory:g} GiB a method. scnn is "
        "run with more and more steps and shown with its best answer within the limit; its "
        "neurons may leave their cones, and so fall below the optimum over the list.",
    ]
    ends = [
        f"- {method} on {row['data']}, alpha = {row['alpha']:g}: {end}"
        for row in rows
        for method, end in row["ends"].items()
        if end != "done"
    ]
    return before, ["Not run to the end:\n", *ends] if ends else []


def write_results(rows: Sequence[dict[str, Any]], options: argparse.Namespace) -> None:
    """Write the report with its circumstances, and the numbers behind it."""
    facts = circumstances()
    ending = "\n".join(["\n## Circumstances\n", *(f"- {k}: {v}" for k, v in facts.items())])
    options.results.mkdir(parents=True, exist_ok=True)
    path = options.results / f"bench_pursuit_{options.table}.md"
    path.write_text(report(rows, options) + "\n" + ending + "\n", encoding="utf-8")
    lines = ",\n".join(json.dumps(row) for row in rows)
    content = f'{{"circumstances": {json.dumps(facts)},\n"rows": [\n{lines}\n]}}\n'
    path.with_suffix(".json").write_text(content, encoding="utf-8")


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", choices=("adam", "lists"))
    default = Path(__file__).parent / "results"
    parser.add_argument("results", type=Path, nargs="?", default=default)
    parser.add_argument("--problems", nargs="+", help="data sets, or names such as yacht:0.01")
    parser.add_argument("--tol", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=4000, help="Adam's steps")
    parser.add_argument("--units", type=int, default=200, help="Adam's hidden units")
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-2, 3e-2])
    parser.add_argument("--adam-dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--adam-cache", type=Path, help="file that keeps Adam's runs")
    parser.add_argument("--no-check", action="store_true", help="leave out the second search")
    parser.add_argument("--gates", type=int, default=1000, help="arrangements of a list")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds a method on a list")
    parser.add_argument("--memory", type=float, default=12.0, help="GiB a method on a list")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make a table, writing the results after every row."""
    options = parse_arguments(arguments)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    cases = chosen_cases(options.problems)
    if options.table == "lists":
        cases = [case for case in cases if case.loss != "softmax"]
    make_row = {"adam": adam_row, "lists": lists_row}[options.table]
    warm_up(options)
    print(" | ".join(COLUMNS[options.table]))
    rows: list[dict[str, Any]] = []
    for case in cases:
        rows.append(make_row(case, options))
        write_results(rows, options)
        print(" | ".join(cells(rows[-1], options.table)), flush=True)
    print("\n" + report(rows, options))
    return 0


def warm_up(options: argparse.Namespace) -> None:
    """Load what torch and the package load on their first calls."""
    case = CASES[0]
    X, Y = load(case)
    pursue(case, X[:100], Y[:100], 0.1, 0)
    short = argparse.Namespace(**(vars(options) | {"steps": 20}))
    descend(case, X[:100], Y[:100], 1e-2, short)


if __name__ == "__main__":
    sys.exit(main())

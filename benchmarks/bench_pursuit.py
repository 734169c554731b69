"""The pursuit against gradient descent, and against programs on sampled arrangements.

All solvers minimise ``mean loss + alpha * sum_j |q_j| |g_j|`` over two-layer ReLU networks with
batch normalization: ``|q_j|^2 = gamma_j^2 + beta_j^2`` is what its scale and shift cost, ``g_j``
are the output weights, and the intercept is free. Regression targets have unit variance, all rows
are used, values are judged in float64. Times are processor seconds.
"""

import math
import os
import sys
import warnings
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from _suite import data
from _suite.benchmark import Benchmark, command
from _suite.data import Array
from _suite.judge import judged_gap
from _suite.objectives import ListObjective, primal_value, whiten
from _suite.package import own_model
from _suite.runner import LIMIT, clock, run_apart, timed
from _suite.solvers import LISTS, scnn_list
from _suite.store import Cell
from _suite.tables import geometric_mean, markdown

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from torch import nn

from sklearn_convexbn.solvers import InteriorPoint, Pursuit

SECOND_STARTS = 200_000


class Case(NamedTuple):
    """One problem; `lowest` is the smallest objective seen before this benchmark."""

    data: str
    loss: str
    alpha: float
    lowest: float

    def load(self) -> tuple[Array, Array]:
        """Return inputs (n, d) and targets (n,), of unit variance for regression."""
        X, y = data.load(self.data)
        return X, (y - y.mean()) / y.std() if self.loss == "squared" else y.astype(int)


SQUARED = (
    *(("diabetes", 0.03, 0.251008), ("diabetes", 0.01, 0.194489), ("yacht", 0.01, 0.030318)),
    *(("yacht", 0.001, 0.006392), ("energy", 0.01, 0.037587), ("energy", 0.001, 0.005710)),
    *(("concrete", 0.01, 0.097598), ("concrete", 0.001, 0.030344), ("airfoil", 0.01, 0.161761)),
    ("airfoil", 0.001, 0.060005),
)
CASES = (
    *(Case(name, "squared", alpha, lowest) for name, alpha, lowest in SQUARED),
    Case("wine", "softmax", 0.01, 0.115621),
    Case("breast_cancer", "logistic", 0.01, 0.128443),
    Case("digits", "softmax", 0.01, 0.345423),
)


class Clocked:
    """Notes the time after each round of a solver, certificate included; stops it when late."""

    late = math.inf

    def iterates(self, problem: Any, settings: Any) -> Iterator[Any]:
        self.readings: list[float] = []
        for iterate in super().iterates(problem, settings):  # type: ignore[misc]
            yield replace(iterate, stalled=iterate.stalled or clock() > self.late)
            self.readings.append(clock())  # the driver has certified the round


ClockedPursuit, ClockedInteriorPoint = (
    type(f"Clocked{kind.__name__}", (Clocked, kind), {}) for kind in (Pursuit, InteriorPoint)
)


def fit(case: Case, X: Array, y: Array, **parameters: Any) -> tuple[Any, list[float]]:
    """Fit; return the model and the seconds to each round, the last to the end of the fit."""
    start = clock()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        # Rounds are the estimators' default; Adam's network and the lists have no shrinkage.
        parameters |= {"alpha": case.alpha, "max_iter": 200, "shrinkage": 0.0}
        model = own_model(case.loss != "squared", **parameters).fit(X, y)
    readings = [*model.solver_.readings[: model.n_iter_ - 1], clock()]
    return model, [reading - start for reading in readings]


def first_time(seconds: Sequence[float], objective: Sequence[float], to: float) -> float | None:
    """Return when the objective was first at most `to`, if ever."""
    return next((s for s, o in zip(seconds, objective, strict=True) if o <= to), None)


def mean_loss(loss: str, F: torch.Tensor, Y: torch.Tensor) -> torch.Tensor:
    """Return the mean loss of outputs for targets (n,)."""
    functional = torch.nn.functional
    if loss == "softmax":
        return functional.cross_entropy(F, Y)
    if loss == "logistic":
        return functional.binary_cross_entropy_with_logits(F[:, 0], Y.to(F))
    return 0.5 * functional.mse_loss(F[:, 0], Y.to(F))


def objective_of_network(case: Case, X: Array, Y: torch.Tensor, net: torch.nn.Sequential) -> float:
    """Return the objective of a network at balanced scales, in float64."""
    W, gamma, beta, V, b = (t.detach().double().numpy() for t in net.parameters())
    H = X @ W.T
    H = (H - H.mean(axis=0)) / H.std(axis=0)
    F = np.maximum(H * gamma + beta, 0.0) @ V.T + b
    penalty = float(np.hypot(gamma, beta) @ np.linalg.norm(V, axis=0))
    return float(mean_loss(case.loss, torch.as_tensor(F), Y)) + case.alpha * penalty


def descend(case: Case, X: Array, y: Array, rate: float, options: Any, every: int = 10) -> Cell:
    """Train by full-batch Adam; return objectives every few steps with the seconds until then."""
    torch.manual_seed(options.seed)
    X = X[:, X.std(axis=0) > 0]
    X = (X - X.mean(axis=0)) / X.std(axis=0)
    inputs, targets = torch.as_tensor(X, dtype=torch.float32), torch.as_tensor(y)
    net = nn.Sequential(
        nn.Linear(X.shape[1], options.units, bias=False),
        nn.BatchNorm1d(options.units, eps=1e-12, track_running_stats=False),
        nn.ReLU(),
        nn.Linear(options.units, int(y.max()) + 1 if case.loss == "softmax" else 1),
    )
    W, gamma, beta, V, b = net.parameters()
    decayed = {"params": [gamma, beta, V], "weight_decay": case.alpha}  # alpha/2 |.|^2 in the loss
    adam = torch.optim.Adam([{"params": [W, b]}, decayed], lr=rate, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, options.steps)
    torch.set_flush_denormal(True)  # weights on their way to zero slow it down otherwise
    seconds, objective, spent, start = [], [], 0.0, clock()
    for step in range(1, options.steps + 1):
        adam.zero_grad(set_to_none=True)
        mean_loss(case.loss, net(inputs), targets).backward()
        adam.step()
        schedule.step()
        if step % every == 0:
            spent += clock() - start
            seconds.append(spent)
            objective.append(objective_of_network(case, X, targets, net))
            start = clock()
    torch.set_flush_denormal(False)
    return {"rate": rate, "seconds": seconds, "objective": objective}


class PursuitTable(Benchmark):
    """What both tables have in common."""

    keys = ("data", "alpha")

    def add_options(self, add: Any) -> None:
        add("--problems", nargs="+", help="data sets, or names such as yacht:0.01")
        add("--tol", type=float, default=1e-3)
        add("--seed", type=int, default=0)

    def cases(self) -> list[Case]:
        """Return the problems, by data set or by name, whose data are there."""
        names = self.options.problems or [case.data for case in CASES]
        asked = [c for c in CASES if {c.data, f"{c.data}:{c.alpha:g}"} & set(names)]
        return [case for case in asked if data.has(case.data)]

    def plan(self) -> Iterable[Cell]:
        return [{key: getattr(case, key) for key in self.keys} for case in self.cases()]

    def prepare(self) -> None:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        X, y = CASES[0].load()
        fit(CASES[0], X[:100], y[:100], tol=0.1, solver=ClockedPursuit())  # loads torch

    def measure(self, cell: Cell) -> Cell:
        case = next(c for c in CASES if (c.data, c.alpha) == (cell["data"], cell["alpha"]))
        X, y = case.load()
        row = {"loss": case.loss, "lowest": case.lowest, "n": len(X), "d": X.shape[1]}
        own = {"tol": self.options.tol, "random_state": self.options.seed}
        return row | self.compare(case, X, y, own)

    @abstractmethod
    def compare(self, case: Case, X: Array, y: Array, own: dict[str, Any]) -> Cell:
        """Run all solvers on one problem; `own` are the parameters of our fits."""


class Adam(PursuitTable):
    """Time to Adam's best objective."""

    name = "bench_pursuit_adam"
    settings = ("tol", "seed", "steps", "units", "rates")
    title = "Pursuit and Adam: time to Adam's best objective"
    columns = (
        {"data": "", "loss": "", "alpha": "g", "lowest": ".6f", "adam": ".6f", "rate": "g"}
        | {"adam seconds": ".3g", "pursuit seconds": ".3g", "ratio": ".3g", "ratio to 1 %": ".3g"}
        | {"pursuit": ".6f", "final seconds": ".3g", "stopping gap": ".1e", "verified gap": ".1e"}
        | {"cautious gap": ".1e", "second gap": ".1e", "starts": "d", "n_neurons": "d"}
    )

    def add_options(self, add: Any) -> None:
        super().add_options(add)
        add("--steps", type=int, default=4000, help="Adam's steps")
        add("--units", type=int, default=200, help="Adam's hidden units")
        add("--rates", type=float, nargs="+", default=[1e-2, 3e-2])

    def compare(self, case: Case, X: Array, y: Array, own: dict[str, Any]) -> Cell:
        runs = [descend(case, X, y, rate, self.options) for rate in self.options.rates]
        descent = min(runs, key=lambda run: min(run["objective"]))
        model, seconds = fit(case, X, y, solver=ClockedPursuit(), **own)
        history, best = model.history_, min(descent["objective"])
        row: Cell = {"adam": best, "rate": descent["rate"], "pursuit": model.objective_}
        for key, target in (("", best), (" to 1 %", 1.01 * best)):
            ours = first_time(seconds, history["objective"], target)
            theirs = first_time(descent["seconds"], descent["objective"], target)
            row |= {f"pursuit seconds{key}": ours, f"adam seconds{key}": theirs}
            row[f"ratio{key}"] = None if ours is None or theirs is None else theirs / ours
        certificate = model.certificate_
        found = "verified gap" if certificate.n_verified else "stopping gap"
        row |= {"final seconds": seconds[-1], "stopping gap": None, "verified gap": None}
        row |= {found: certificate.gap, "cautious gap": certificate.cautious_gap}
        row |= {"starts": certificate.n_verified, "n_neurons": model.n_neurons_}
        outputs = (model.predict if case.loss == "squared" else model.decision_function)(X)
        network = y, outputs, case.alpha, model.objective_
        row["second gap"] = judged_gap(case.loss, X, *network, n_starts=SECOND_STARTS)
        return row

    def report(self, cells: list[Cell]) -> Iterable[str]:
        options = self.options
        yield self.title
        yield (
            f"Adam: {options.units} units, {options.steps} full-batch steps in float32, the better "
            f"of the learning rates {options.rates}. Pursuit: defaults, tol = {options.tol:g}. "
            "Processor seconds; a ratio is Adam's over the pursuit's, at Adam's best objective and "
            "at 1.01 times it. `lowest`: the smallest objective seen before this benchmark. "
            "`verified gap`: by the fit's independent search of so many `starts`; `stopping gap`, "
            "where there was none. `cautious gap`: at three times the violation found. "
            f"`second gap`: by {SECOND_STARTS} starts of another search."
        )
        yield markdown(cells, self.columns, "-")
        lines = []
        for key in ("ratio", "ratio to 1 %"):
            ratios = [cell[key] for cell in cells if cell[key] is not None]
            lines.append(
                f"- geometric mean of `{key}`: {geometric_mean(ratios):.3g} over {len(ratios)} "
                f"problems; the pursuit did not reach the objective on {len(cells) - len(ratios)}"
            )
        yield "\n".join(lines)


METHODS = ("interior point", "scnn")
SCNN_STEPS = (30, 100, 300, 1000, 3000, 10_000, 30_000)


def list_of(case: Case, X: Array, y: Array, n_gates: int, seed: int) -> ListObjective:
    """Return the list that the estimators draw: normal directions, in the space of the inputs."""
    Z, V = whiten(X)
    draws = np.random.RandomState(seed).standard_normal((n_gates, X.shape[1] + 1))
    gates = np.vstack([V.T @ draws[:, :-1].T, draws[:, -1]])
    return replace(ListObjective.on(case.data, "squared", Z, y, gates), alpha=case.alpha)


def by_package(case: Case, X: Array, y: Array, options: Any) -> Iterator[Any]:
    """Yield the seconds and the objective of the package's solver of programs on a list."""
    Clocked.late = clock() + options.limit
    own = {"tol": options.tol, "random_state": options.seed, "n_gates": options.gates}
    model, seconds = fit(case, X, y, solver=ClockedInteriorPoint(), **own)
    yield seconds[-1], model.objective_
    if model.dual_gap_ > options.tol:
        raise TimeoutError(f"a gap of {model.dual_gap_:.1e} when it ended")


def by_scnn(case: Case, X: Array, y: Array, options: Any) -> Iterator[Any]:
    """Yield the seconds and objectives of scnn with more and more steps, each from scratch.

    Its program has no output intercept: its neurons are given the best one afterwards.  They
    may leave their cones a little, and so fall below the optimum over the list.
    """
    objective = list_of(case, X, y, options.gates, options.seed)
    for steps in SCNN_STEPS:
        answer = timed(scnn_list, objective, steps, math.inf, options.tol)
        S = np.concatenate(list(answer.answer))
        outputs = np.maximum(objective.Z @ S.T, 0.0)
        F = outputs @ np.repeat([1.0, -1.0], len(S) // 2)
        yield answer.cpu, primal_value(F + (y - F).mean(), S, y, "squared", case.alpha)


class Lists(PursuitTable):
    """What a sample of arrangements misses."""

    name = "bench_pursuit_lists"
    settings = ("tol", "seed", "gates", "limit", "memory")
    columns = {"data": "", "loss": "", "alpha": "g", "pursuit": ".6f", "seconds": ".3g"} | {
        f"{method}{part}": form
        for method in METHODS
        for part, form in (("", ".6f"), (" / pursuit", ".3f"), (" seconds", ".3g"))
    }

    def add_options(self, add: Any) -> None:
        super().add_options(add)
        add("--gates", type=int, default=1000, help="arrangements of a list")
        add("--limit", type=float, default=120.0, help="seconds a method")
        add("--memory", type=float, default=12.0, help="GiB a method")

    def cases(self) -> list[Case]:
        return [case for case in super().cases() if case.loss == "squared"]

    def compare(self, case: Case, X: Array, y: Array, own: dict[str, Any]) -> Cell:
        options = self.options
        model, seconds = fit(case, X, y, solver=ClockedPursuit(), **own)
        row: Cell = {"pursuit": model.objective_, "seconds": seconds[-1], "ends": {}}
        for method in METHODS:
            answers, end = [], LISTS[1].why_skip("squared") if method == "scnn" else ""
            if not end:
                work = by_scnn if method == "scnn" else by_package
                limits = {"limit": options.limit, "memory": options.memory}
                answers, end = run_apart(work, case, X, y, options, **limits)
                end = f"above {options.limit:g} s" if end == LIMIT else end
            if answers:
                time, objective = min(answers, key=lambda answer: answer[1])
                row |= {method: objective, f"{method} / pursuit": objective / model.objective_}
                row[f"{method} seconds"] = time
            row["ends"][method] = end
        return row

    def report(self, cells: list[Cell]) -> Iterable[str]:
        options = self.options
        yield f"Pursuit and exact ReLU on {options.gates} sampled arrangements"
        yield (
            f"Objectives, their ratios to the pursuit's (tol = {options.tol:g}) and processor "
            f"seconds; a limit of {options.limit:g} s and {options.memory:g} GiB a method. scnn is "
            "run with more and more steps and shown with its best answer within the limit; its "
            "neurons may leave their cones, and so fall below the optimum over the list. CVXPY "
            "with Clarabel ended none of these within 30 s."
        )
        yield markdown(cells, self.columns, "-")
        ends = [
            f"- {method} on {cell['data']}, alpha = {cell['alpha']:g}: {end}"
            for cell in cells
            for method, end in cell["ends"].items()
            if end != "done"
        ]
        yield "\n".join(["Not run to the end:", "", *(ends or ["- none"])])


if __name__ == "__main__":
    sys.exit(command(Adam, Lists))

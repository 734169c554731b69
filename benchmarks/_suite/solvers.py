"""What a solver is to the benchmarks."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from _suite.circumstances import version
from _suite.data import Array
from _suite.objectives import Loss, Objective
from sklearn_convexbn._losses import LOSSES
from sklearn_convexbn._problem import Neurons, Problem
from sklearn_convexbn.solvers import RunSettings, make_solver, run

CLOCK = {"name": "wall"}


def clock() -> float:
    """Return wall time, or this process's own time with ``--clock cpu``."""
    return time.process_time() if CLOCK["name"] == "cpu" else time.perf_counter()


@dataclass(frozen=True)
class Answer:
    """A solver's ``S`` with its times in seconds; ``S`` is None when it has none."""

    S: Array | None
    solve: float
    setup: float = 0.0
    note: str = ""


class Solver(ABC):
    """A column of a table.

    Attributes
    ----------
    name : str
    ladder : tuple of float
        What it is run with, from loose to tight, each rung from scratch: tolerances, or for
        some solvers numbers of steps.
    packages : tuple of str
        What has to be installed.
    accuracy : float
        The gap that it comes to at best.
    compiled : bool
        Whether it compiles or loads on its first call, and is warmed up before it is timed.
    """

    name: str
    ladder: tuple[float, ...]
    packages: tuple[str, ...] = ()
    accuracy: float = 0.0
    compiled: bool = False

    def why_skip(self, loss: Loss) -> str | None:
        """Return why this solver cannot be run on objectives with this loss, or None."""
        for package in self.packages:
            if version(package) is None:
                return f"{package} is not installed"
        return self.unsupported(loss)

    def unsupported(self, loss: Loss) -> str | None:
        """Return what is the matter with the loss, or None."""
        return None

    @abstractmethod
    def solve(self, objective: Objective, rung: float, limit: float) -> Answer:
        """Solve from scratch; `limit`, in seconds, is for those that can stop themselves."""


def decades(first: float, last: float, per_decade: int = 2) -> tuple[float, ...]:
    """Return a geometric ladder from 10^first down (or up) to 10^last."""
    count = round(abs(first - last) * per_decade) + 1
    return tuple(float(f"{t:.2g}") for t in np.logspace(first, last, count))


def explicit_matrix(objective: Objective) -> Array:
    """Return ``[D_1 Z, ..., D_P Z]`` in column order, a group being r + 1 columns."""
    n, width = objective.Z.shape
    A = np.empty((n, objective.masks.shape[1] * width), order="F")
    for j in range(width):
        A[:, j::width] = objective.masks * objective.Z[:, j : j + 1]
    return A


class OwnSolver(Solver):
    """The package's solver; its time includes the driver, which certifies every round."""

    name = "ours"
    ladder = decades(-1, -8)
    compiled = True
    activation: str

    @abstractmethod
    def blocks(self, objective: Objective, neurons: Neurons) -> Array:
        """Return ``S`` of neurons."""

    def solve(self, objective: Objective, rung: float, limit: float) -> Answer:
        """Run to a relative gap."""
        start, n = clock(), len(objective.y)
        problem = Problem(
            Z=objective.Z,
            Y=objective.y[:, None],
            p=np.full(n, 1.0 / n),
            loss=LOSSES[objective.loss],
            alpha=objective.alpha,
            fit_intercept=False,
            activation=self.activation,
            gates=objective.gates,
            all_arrangements=False,
            spectrum=np.ones(objective.Z.shape[1]),
        )
        settings = RunSettings(tol=rung, device="cpu", random_directions=None, random_state=None)
        solver = make_solver("interior_point" if self.activation == "relu" else "group_newton")
        neurons = run(solver, problem, settings, max_iter=500).neurons
        return Answer(self.blocks(objective, neurons), clock() - start)


class Clarabel(Solver):
    """CVXPY with Clarabel; a subclass states the program."""

    name = "cvxpy"
    ladder = (1e-4, 1e-6, 1e-8, 1e-10)
    packages = ("cvxpy", "clarabel")

    @abstractmethod
    def state(self, objective: Objective) -> tuple[Any, Callable[[], Array | None]]:
        """Return the program in CVXPY, and a function that reads ``S``."""

    def solve(self, objective: Objective, rung: float, limit: float) -> Answer:
        """Solve to a tolerance; the set-up is all but Clarabel's own time."""
        import cvxpy as cp

        start, wall = clock(), time.perf_counter()
        program, read = self.state(objective)
        try:
            program.solve(
                solver=cp.CLARABEL,
                tol_gap_abs=rung,
                tol_gap_rel=rung,
                tol_feas=rung,
                max_iter=1000,
                time_limit=limit if CLOCK["name"] == "wall" else math.inf,
            )
        except cp.SolverError as error:
            return Answer(None, clock() - start, note=str(error)[:200])
        total, wall = clock() - start, time.perf_counter() - wall
        solve = min(float(program.solver_stats.solve_time or wall) / wall, 1.0) * total
        return Answer(read(), solve, total - solve, str(program.status))

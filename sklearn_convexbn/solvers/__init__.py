"""Solvers of the convex training problem, and the registry that names them.

A new solver is one module with a :class:`Solver` subclass and one line in ``REGISTRY``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from sklearn.base import clone

from sklearn_convexbn.program._problem import Problem
from sklearn_convexbn.solvers._base import Iterate, Monitor, Result, RunSettings, Solver, run

#: Name -> (module, class), in the order in which capable solvers are recommended.
REGISTRY: dict[str, tuple[str, str]] = {
    "closed_form": ("sklearn_convexbn.solvers._closed_form", "ClosedForm"),
    "pursuit": ("sklearn_convexbn.solvers._pursuit", "Pursuit"),
    "group_newton": ("sklearn_convexbn.solvers._gated_newton", "GroupNewton"),
    "interior_point": ("sklearn_convexbn.solvers._interior_point", "InteriorPoint"),
    "fista": ("sklearn_convexbn.solvers._fista", "FISTA"),
    "cvxpy": ("sklearn_convexbn.solvers._cvxpy", "CVXPY"),
}

#: What solver="auto" takes for an activation: the first that handles the problem.
AUTO = {"relu": ("closed_form", "pursuit"), "gated_relu": ("group_newton", "fista")}

__all__ = [
    "CVXPY",
    "FISTA",
    "REGISTRY",
    "ClosedForm",
    "GroupNewton",
    "InteriorPoint",
    "Iterate",
    "Monitor",
    "Pursuit",
    "Result",
    "RunSettings",
    "Solver",
    "capable_solvers",
    "check_supported",
    "make_solver",
    "run",
]


def __getattr__(name: str) -> Any:
    for module, class_name in REGISTRY.values():
        if class_name == name:
            return getattr(import_module(module), class_name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


def make_solver(name: str) -> Solver:
    """Return a new solver with default parameters by its registered name.

    Raises
    ------
    ValueError
        If no solver has this name.
    """
    if name not in REGISTRY:
        raise ValueError(
            f"The 'solver' parameter must be 'auto', one of {sorted(REGISTRY)}, or a solver "
            f"instance. Got {name!r} instead."
        )
    module, class_name = REGISTRY[name]
    return getattr(import_module(module), class_name)()


@dataclass(frozen=True)
class Outline:
    """What is known of a problem before its rows are whitened.

    Attributes
    ----------
    activation : str
    n_rows, n_columns : int
        Of X, or of all patches.
    n_outputs : int
    pooled : bool
        Whether units are pooled over patches.
    spread : bool
        Whether there are rows on other processes.
    """

    activation: str
    n_rows: int
    n_columns: int
    n_outputs: int
    pooled: bool
    spread: bool

    def suits(self, solver: Solver) -> bool:
        """Return whether a solver may handle the problem, by what it declares."""
        return (
            (solver.several_outputs or self.n_outputs == 1)
            and (solver.pools or not self.pooled)
            and (solver.reads_blocks or not self.spread)
            and (not solver.needs_independent_rows or self.n_rows <= self.n_columns + 1)
        )


def named_solvers(solver: str | Solver, activation: str) -> list[Solver]:
    """Return what the ``solver`` parameter stands for: one solver, or all that "auto" may take."""
    if isinstance(solver, Solver):
        return [clone(solver)]
    return [make_solver(name) for name in (AUTO[activation] if solver == "auto" else [solver])]


def candidates(solver: str | Solver, outline: Outline) -> list[Solver]:
    """Return the solvers that may have to be tried in turn on a problem: mostly one.

    A closed form may turn out, on the whitened rows, not to be proven; the next one is for that.
    """
    *preferred, last = named_solvers(solver, outline.activation)
    found = []
    for each in filter(outline.suits, preferred):
        found.append(each)
        if not each.needs_independent_rows:
            return found
    return [*found, last]


def first_capable(choice: Sequence[Solver], problem: Problem) -> Solver:
    """Return the first solver that handles a problem.

    Raises
    ------
    ValueError
        If none does; it says why the last one does not.
    """
    *preferred, last = choice
    for solver in preferred:
        if not unsupported(solver, problem):
            return solver
    check_supported(last, problem)
    return last


def capable_solvers(problem: Problem) -> list[str]:
    """Return the names of the registered solvers that handle `problem`."""
    return [name for name in REGISTRY if not unsupported(make_solver(name), problem)]


def unsupported(solver: Solver, problem: Problem) -> str:
    """Return why a solver cannot solve a problem, or "" when it can."""
    if not (solver.several_outputs or problem.n_outputs == 1):
        return "several outputs"
    if not (solver.pools or problem.pooling.is_identity):
        return f"{problem.pooling.n_patches} patches of an image"
    return solver.unsupported(problem)


def check_supported(solver: Solver, problem: Problem) -> None:
    """Refuse a problem the solver cannot handle, naming solvers that can.

    Raises
    ------
    ValueError
        With the reason and the alternatives.
    """
    reason = unsupported(solver, problem)
    if not reason:
        return
    names = [repr(name) for name in capable_solvers(problem)]
    remedy = "No solver handles it yet."
    if names:
        remedy = f"Use solver={' or '.join(names)}."
    raise ValueError(f"solver={solver.name!r} does not handle {reason}. {remedy}")

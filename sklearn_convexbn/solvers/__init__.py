"""Solvers of the convex training problem, and the registry that names them.

A new solver is one module with a :class:`Solver` subclass and one line in ``REGISTRY``.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from sklearn_convexbn._problem import Problem
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


def capable_solvers(problem: Problem) -> list[str]:
    """Return the names of the registered solvers that handle `problem`."""
    return [name for name in REGISTRY if not unsupported(make_solver(name), problem)]


def unsupported(solver: Solver, problem: Problem) -> str:
    """Return why a solver cannot solve a problem, or "" when it can."""
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

"""From canonical data and settings to a solved problem: the path every fit takes."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import partial
from numbers import Integral, Real
from typing import Any

import numpy as np
from sklearn.base import clone

from sklearn_convexbn import solvers
from sklearn_convexbn._arrangements import (
    distinct_gates,
    enumerate_gates,
    random_directions,
)
from sklearn_convexbn._compat import Interval, RealNotInt, StrOptions
from sklearn_convexbn._encoding import TrainingData
from sklearn_convexbn._network import Network, neurons_of_network, recover_network
from sklearn_convexbn._problem import Problem
from sklearn_convexbn._whitening import Whitening, whiten

#: What the parameters that state a problem may be, as scikit-learn's constraints.
PROBLEM_CONSTRAINTS: dict[str, list[Any]] = {
    "alpha": [Interval(Real, 0, None, closed="neither")],
    "n_components": [
        Interval(Integral, 1, None, closed="left"),
        Interval(RealNotInt, 0, 1, closed="neither"),
        None,
    ],
    "shrinkage": [Interval(Real, 0, 1, closed="both"), StrOptions({"auto"})],
    "fit_intercept": ["boolean"],
    "device": [str, None],
    "random_state": ["random_state"],
}


@dataclass(frozen=True)
class TrainingSettings:
    """The estimator parameters that shape the problem and the run, already validated."""

    alpha: float
    n_components: int | float | None
    shrinkage: float | str
    activation: str
    solver: str | solvers.Solver
    n_gates: int | str
    fit_intercept: bool
    tol: float
    max_iter: int
    device: str
    random_state: np.random.RandomState
    verbose: int


@dataclass(frozen=True)
class Trained:
    """What a fit produced."""

    network: Network
    result: solvers.Result
    whitening: Whitening
    solver: solvers.Solver


def state_problem(
    data: TrainingData,
    *,
    alpha: float,
    fit_intercept: bool,
    n_components: int | float | None,
    shrinkage: float | str,
    activation: str = "relu",
) -> tuple[Problem, Whitening]:
    """Whiten the rows and state the problem, without a list of arrangements."""
    Z, whitening = whiten(data.X, data.weights, n_components=n_components, shrinkage=shrinkage)
    problem = Problem(
        Z=Z,
        Y=data.Y,
        p=data.weights / data.weights.sum(),
        loss=data.loss,
        alpha=alpha,
        fit_intercept=fit_intercept,
        activation=activation,
        gates=None,
        all_arrangements=False,
        spectrum=whitening.spectrum,
    )
    return problem, whitening


def train(
    data: TrainingData, settings: TrainingSettings, *, start: Network | None = None
) -> Trained:
    """Whiten, state the problem, solve it and recover the network.

    Parameters
    ----------
    data : TrainingData
    settings : TrainingSettings
    start : Network, default=None
        A network to start from, in the units of X and y.

    Returns
    -------
    Trained

    Raises
    ------
    ValueError
        If the solver does not handle the problem, or it does not fit into memory.
    """
    problem, whitening = state_problem(
        data,
        alpha=settings.alpha,
        fit_intercept=settings.fit_intercept,
        n_components=settings.n_components,
        shrinkage=settings.shrinkage,
        activation=settings.activation,
    )
    solver = choose_solver(settings.solver, problem)
    solvers.check_supported(solver, problem)
    problem = with_arrangements(problem, whitening, solver, settings)
    neurons = None
    if start is not None and _has_shape(start, data.X.shape[1], data.Y.shape[1]):
        neurons = neurons_of_network(start, whitening, gates=problem.gates, target=data.target)
    run_settings = solvers.RunSettings(
        tol=settings.tol,
        device=settings.device,
        random_directions=partial(random_directions, whitening, random_state=settings.random_state),
        random_state=settings.random_state,
        start=neurons,
    )
    result = solvers.run(
        solver, problem, run_settings, max_iter=settings.max_iter, verbose=settings.verbose
    )
    gates = problem.gates if settings.activation == "gated_relu" else None
    network = recover_network(result.neurons, whitening, gates=gates, target=data.target)
    return Trained(network, result, whitening, solver)


def _has_shape(network: Network, n_features: int, n_outputs: int) -> bool:
    """Return whether a network maps `n_features` to `n_outputs`."""
    return network.coefs[0].shape[0] == n_features and network.coefs[1].shape[1] == n_outputs


def choose_solver(solver: str | solvers.Solver, problem: Problem) -> solvers.Solver:
    """Resolve the ``solver`` parameter; "auto" prefers a proven closed form."""
    if isinstance(solver, solvers.Solver):
        return clone(solver)
    if solver != "auto":
        return solvers.make_solver(solver)
    closed_form = solvers.make_solver("closed_form")
    if not closed_form.unsupported(problem):
        return closed_form
    return solvers.make_solver("fista" if problem.activation == "gated_relu" else "pursuit")


def with_arrangements(
    problem: Problem, whitening: Whitening, solver: solvers.Solver, settings: TrainingSettings
) -> Problem:
    """Give the problem its list of arrangements where the program or the solver needs one."""
    if problem.activation == "relu" and not solver.needs_arrangements:
        return problem
    every = settings.n_gates == "all"
    if every:
        gates = enumerate_gates(problem.Z)
    else:
        check_memory(problem, int(settings.n_gates))
        draws = random_directions(whitening, int(settings.n_gates), settings.random_state)
        gates = distinct_gates(problem.Z, draws)
    return replace(problem, gates=gates, all_arrangements=every)


def check_memory(problem: Problem, n_gates: int) -> None:
    """Refuse a program on a list of arrangements that cannot fit into this machine's memory.

    Raises
    ------
    ValueError
        With an estimate of what is needed.
    """
    # Doubles per row and gate: three work arrays an output for gated programs, seven for each
    # of both signs for cones; besides them the patterns, one byte each, and the weights.
    (n, k), n_outputs = problem.Z.shape, problem.n_outputs
    doubles = 3 * n_outputs if problem.activation == "gated_relu" else 14
    needed = n * n_gates * (1 + 8 * doubles) + 8 * n_gates * k * n_outputs
    available = physical_memory()
    if available is not None and needed > 0.8 * available:
        raise ValueError(
            f"n_gates={n_gates} with {n} rows and {n_outputs} outputs needs about "
            f"{needed / 2**30:.1f} GiB (an estimate), more than this machine's "
            f"{available / 2**30:.1f} GiB. Lower n_gates, or use activation='relu' with "
            "solver='pursuit', which needs no list of gates."
        )


def physical_memory() -> int | None:
    """Return the machine's memory in bytes, or None where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None

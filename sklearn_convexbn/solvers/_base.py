"""One driver, many solvers: stopping, certificates, history and the one warning live here.

A solver yields iterates; the driver bounds the gap of each of them in float64 from the network
alone, so that ``tol`` means the same for every solver and no solver vouches for itself.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning

from sklearn_convexbn.program._problem import Certificate, Neurons, Problem, relative_gap
from sklearn_convexbn.support._arrays import Array
from sklearn_convexbn.support._compat import check_parameters
from sklearn_convexbn.support._device import one_thread_after_fork
from sklearn_convexbn.support._warnings import warn_caller

#: Columns of ``history_``.
HISTORY = ("objective", "dual_gap", "n_neurons", "time", "kind")

#: From this tolerance on, rows and products may be in float32: rounding moves the objective by
#: much less.
COMPACT_TOLERANCE = 1e-3

#: One round in these columns.
Row = tuple[float, float, int, float, str]


@dataclass(frozen=True)
class Iterate:
    """One round of a solver.

    Attributes
    ----------
    neurons : Neurons
        A feasible network.
    Lambda : array of shape (n, C) or None
        A dual point better than the one the network itself gives.
    largest_correlation : float or None
        The largest ``|Lambda^T (Z q)_+|`` of the dual point: an upper bound (then `proven`) or
        the maximum of all searches in this round. None lets the problem compute it.
    proven : bool
        Whether `largest_correlation` bounds the true maximum.
    n_verified : int
        Random starts of the verification, an independent search that a solver makes once its own
        searches let the run stop; its maximum is part of `largest_correlation`. 0 if there was
        none.
    n_hits : int
        How many of them ended in its best maximum.
    stalled : bool
        Whether the solver can improve no further; the driver then stops.
    """

    neurons: Neurons
    Lambda: Array | None = None
    largest_correlation: float | None = None
    proven: bool = False
    n_verified: int = 0
    n_hits: int = 0
    stalled: bool = False


@dataclass(frozen=True)
class RunSettings:
    """What the driver hands to a solver besides the problem.

    Attributes
    ----------
    tol : float
        Relative gap the driver will accept; a hint for inner tolerances.
    device : str
        torch device for solvers that compute in torch.
    random_directions : callable
        ``random_directions(count, random_state)`` draws directions (k, count), the same ones for
        a ``random_state`` in the same state.
    random_state : numpy.random.RandomState
        The source of all other random numbers.
    start : Neurons or None
        Network to start from.
    provisional : bool
        Whether the network is one of many that are only compared, in cross-validation. Then the gap
        that ends the run is neither proven nor verified, and the caller is the one to warn.
    """

    tol: float
    device: str
    random_directions: Callable[[int, np.random.RandomState], np.ndarray]
    random_state: np.random.RandomState
    start: Neurons | None = None
    provisional: bool = False


class Monitor(Protocol):
    """Told of the rounds of a run.

    Attributes
    ----------
    stopped : bool
        Whether it stopped the run after the last round.
    """

    stopped: bool

    def begin_round(self) -> None:
        """Note that a round is about to begin."""

    def end_round(self, result: Result) -> bool:
        """Look at the best network so far; return whether to stop."""


@dataclass(frozen=True)
class Result:
    """Best network of a run, with the certificate that belongs to it."""

    neurons: Neurons
    certificate: Certificate
    alpha: float
    n_iter: int
    converged: bool
    history: dict[str, np.ndarray] = field(repr=False)

    @classmethod
    def of(
        cls,
        problem: Problem,
        best: tuple[Neurons, Certificate],
        rows: list[Row],
        converged: bool,
    ) -> Result:
        """Return the best network with the history in columns."""
        columns = zip(*rows, strict=True)
        history = {key: np.array(column) for key, column in zip(HISTORY, columns, strict=True)}
        return cls(
            *best, alpha=problem.alpha, n_iter=len(rows), converged=converged, history=history
        )


class Solver(BaseEstimator, ABC):
    """Base class of the solvers.

    A subclass sets `name`, says in class attributes and in :meth:`unsupported` what it cannot
    handle and yields networks from :meth:`iterates`. The attributes are looked at before rows are
    whitened, :meth:`unsupported` after it. Its constructor parameters are reachable from an
    estimator as ``solver__x``; what `_parameter_constraints` says of them, in scikit-learn's form,
    is checked before a fit begins.
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {}

    #: Name in the registry.
    name: str = ""
    #: Whether ReLU programs are restricted to a list of arrangements (``n_gates``).
    needs_arrangements: bool = True
    #: Whether networks may have several outputs.
    several_outputs: bool = True
    #: Whether units may be pooled over patches.
    pools: bool = False
    #: Whether rows must be linearly independent after centring: at most one more than columns.
    needs_independent_rows: bool = False
    #: Whether its rounds add neurons, as many as it takes.
    adds_neurons: bool = False
    #: Whether it only sums over blocks of rows. Then, in programs without a list, many whitened
    #: rows are where X is, in float32 where `tol` allows it, computed when they are read where
    #: memory is short, and may be spread over processes. Else they are NumPy arrays in float64.
    reads_blocks: bool = False

    @abstractmethod
    def unsupported(self, problem: Problem) -> str:
        """Return why the problem cannot be solved, or "" when it can.

        The text completes the sentence "solver=... does not handle ...".
        """

    @abstractmethod
    def iterates(self, problem: Problem, settings: RunSettings) -> Iterator[Iterate]:
        """Yield better and better networks, one a round."""


def run(
    solver: Solver,
    problem: Problem,
    settings: RunSettings,
    *,
    max_iter: int,
    verbose: int = 0,
    monitor: Monitor | None = None,
    leave: Callable[[Result], bool] | None = None,
    begin: float | None = None,
) -> Result:
    """Run a solver until the relative gap is at most ``settings.tol``.

    Parameters
    ----------
    solver : Solver
    problem : Problem
    settings : RunSettings
    max_iter : int
        Largest number of rounds.
    verbose : int, default=0
        Print one line a round when positive.
    monitor : Monitor, default=None
        Told of every round; may stop the run.
    leave : callable, default=None
        ``leave(result)`` returns whether to end the run after a round that is not the last one
        allowed, without a warning: the caller goes on from its network with another problem.
    begin : float, default=None
        When the fit began, as `time.perf_counter` says, that the times of the history count from;
        None is now.

    Returns
    -------
    Result
        The network with the smallest objective seen, and its own certificate. Not reaching
        the tolerance warns once with ConvergenceWarning, at the line outside this package and
        scikit-learn that led here.

    Raises
    ------
    ValueError
        If the first network or its certificate is not finite. Where a later one is not, the run
        ends with the best one before.
    """
    check_parameters(solver, solver._parameter_constraints)
    one_thread_after_fork()
    begin = time.perf_counter() if begin is None else begin
    rows: list[Row] = []
    best: tuple[Neurons, Certificate] | None = None
    converged, reason = False, ""
    iterates = solver.iterates(problem, settings)
    while not (converged or reason) and len(rows) < max_iter:
        if monitor is not None:
            monitor.begin_round()
        iterate = next(iterates, None)
        if iterate is None:
            break
        found, what = _certified(problem, iterate)
        if found is not None:
            best = _better(best, *found)
        if best is None:
            raise ValueError(_without_result(solver, what))
        certificate = best[1]
        elapsed = time.perf_counter() - begin
        rows.append((certificate.primal, certificate.gap, len(best[0]), elapsed, certificate.step))
        if verbose:
            print(f"[{solver.name}] round {len(rows)}: {certificate}, {len(best[0])} neurons")
        converged = certificate.gap <= settings.tol
        reason = "not finite" if found is None else "stalled" if iterate.stalled else ""
        result = Result.of(problem, best, rows, converged)
        stop = monitor is not None and monitor.end_round(result)
        if problem.shards.maximum(float(stop)):
            reason = "callback"
        elif leave is not None and not reason and len(rows) < max_iter and leave(result):
            return replace(result, converged=False)
    if best is None:
        raise RuntimeError(f"solver={solver.name!r} returned no network.")
    if not converged and not settings.provisional:
        warn_caller(_not_converged(best[1], settings.tol, len(rows), reason), ConvergenceWarning)
    return Result.of(problem, best, rows, converged)


def _certified(
    problem: Problem, iterate: Iterate
) -> tuple[tuple[Neurons, Certificate] | None, str]:
    """Return an iterate's network with the optimal b, and its certificate.

    Or the network without hidden units where that is no worse, as it is at large alpha and for
    constant targets, where numerical solvers leave units at rounding level. None where not all
    numbers are finite, and besides which are not, in words.
    """
    neurons = iterate.neurons
    what = _not_finite(
        {
            "the hidden weights": neurons.directions,
            "the output weights": neurons.weights,
            "the intercept": neurons.intercept,
        }
    )
    if problem.shards.maximum(float(bool(what))):
        return None, what
    with np.errstate(over="ignore", invalid="ignore"):
        neurons, certificate = problem.certificate(
            neurons,
            Lambda=iterate.Lambda,
            largest_correlation=iterate.largest_correlation,
            proven=iterate.proven,
            n_verified=iterate.n_verified,
            n_hits=iterate.n_hits,
        )
        nothing, value = problem.nothing
    what = _not_finite(
        {
            "the intercept": neurons.intercept,
            "the objective": certificate.primal,
            "the lower bound": certificate.dual,
        }
    )
    if problem.shards.maximum(float(bool(what))):
        return None, what
    if len(neurons) == 0 or not value <= certificate.primal:
        return (neurons, certificate), ""
    return (nothing, certificate.of_objective(value)), ""


def _not_finite(values: dict[str, np.ndarray | float]) -> str:
    """Return the names of values that are not finite, in words, or ""."""
    return " and ".join(name for name, value in values.items() if not np.isfinite(value).all())


def _without_result(solver: Solver, what: str) -> str:
    """Say that there is no result, and what to do."""
    return (
        f"solver={solver.name!r} returned numbers that are not finite: "
        f"{what or 'those of another process'}. X, y or sample_weight may hold numbers whose "
        "squares or sums overflow: scale them, or choose another solver."
    )


def _better(
    best: tuple[Neurons, Certificate] | None, neurons: Neurons, certificate: Certificate
) -> tuple[Neurons, Certificate]:
    """Keep the network of smaller objective, and the larger of two proven lower bounds.

    An estimated bound is not carried over to a later network: a later search may have shown it to
    be wrong. But the latest verification counts for the best network as well.
    """
    if best is None:
        return neurons, certificate
    old = best[1]
    if certificate.kind == "estimated" and certificate.primal > old.primal:
        verified = certificate.step == "verified" and old.kind == "estimated"
        return (best[0], certificate.of_objective(old.primal)) if verified else best
    if certificate.kind == "estimated":
        return neurons, certificate
    dual = max(old.dual, certificate.dual) if old.kind == "exact" else certificate.dual
    if certificate.primal > old.primal:
        neurons, certificate = best[0], replace(certificate, primal=old.primal)
    gap = relative_gap(certificate.primal, dual)
    return neurons, replace(certificate, dual=dual, gap=gap, cautious_gap=gap)


def _not_converged(certificate: Certificate, tol: float, rounds: int, reason: str) -> str:
    """Say what happened and what to do."""
    remedies = {
        "stalled": (
            "Progress has come to a halt at this accuracy: increase tol, or choose another solver."
        ),
        "not finite": (
            "The round after it gave numbers that are not finite: choose a larger alpha, or "
            "another solver."
        ),
        "callback": "A callback asked to stop.",
        "": "Increase max_iter or tol, or choose a larger alpha.",
    }
    estimate = "is estimated to" if certificate.kind == "estimated" else "may"
    return (
        f"Stopped after {rounds} rounds with a relative duality gap of {certificate.gap:.2g}, "
        f"above tol={tol:g}: the objective {certificate.primal:.6g} {estimate} be up to "
        f"{100 * max(certificate.gap, 0.0):.2g} % above the optimum. The network is usable. "
        f"{remedies[reason]}"
    )

"""All that the benchmarks take from private modules of the package, and from names that may move.

A move of these in the package touches this file only, and until then one benchmark: private
modules are imported where they are used.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any

import numpy as np

from sklearn_convexbn import (
    ConvexBNClassifier,
    ConvexBNClassifierCV,
    ConvexBNRegressor,
    ConvexBNRegressorCV,
    Patches,
    PathNetClassifier,
    PathNetClassifierCV,
    PathNetRegressor,
    PathNetRegressorCV,
)

#: Name of this package in tables.
OWN = "ours"


def own_model(classes: bool, **parameters: Any) -> Any:
    """Return the package's estimator, seeded."""
    kind = ConvexBNClassifier if classes else ConvexBNRegressor
    return kind(**({"random_state": 0} | parameters))


def own_search(classes: bool, **parameters: Any) -> Any:
    """Return the package's cross-validated estimator, seeded."""
    kind = ConvexBNClassifierCV if classes else ConvexBNRegressorCV
    return kind(**({"random_state": 0} | parameters))


def own_path_net(classes: bool, **parameters: Any) -> Any:
    """Return the package's estimator of two hidden layers, seeded."""
    kind = PathNetClassifier if classes else PathNetRegressor
    return kind(**({"random_state": 0} | parameters))


def own_path_search(classes: bool, **parameters: Any) -> Any:
    """Return its cross-validated form, seeded."""
    kind = PathNetClassifierCV if classes else PathNetRegressorCV
    return kind(**({"random_state": 0} | parameters))


def without_clip(model: Any) -> Any:
    """Return a fitted estimator of ``clip=True`` that predicts as if it had been without."""
    plain = copy(model)
    del plain.whitened_range_
    return plain


def warm_up() -> None:
    """Fit once: no later time has imports."""
    for classes in (False, True):
        own_model(classes).fit(np.arange(8.0)[:, None], [0, 1, 0, 1, 1, 0, 1, 1])


@contextmanager
def in_place_of(owner: Any, name: str, wrapped: Callable[[Any], Any]) -> Iterator[None]:
    """Replace an attribute by a function of it, within."""
    before = getattr(owner, name)
    setattr(owner, name, wrapped(before))
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def verifications() -> Iterator[list[float]]:
    """Yield the list that the processor seconds of each verification within are added to."""
    from sklearn_convexbn.search import _verification

    seconds: list[float] = []

    def wrapped(search: Any) -> Any:
        def clocked(*arguments: Any, **named: Any) -> Any:
            start = time.process_time()
            outcome = search(*arguments, **named)
            seconds.append(time.process_time() - start)
            return outcome

        return clocked

    with in_place_of(_verification, "independent_search", wrapped):
        yield seconds


class DualPoint:
    """Where the rounds of a fit, with DC steps or without, have ended: what searches are given."""

    def __init__(self, fit: Callable[[], object], polished: bool = True) -> None:
        from sklearn_convexbn.search import _search
        from sklearn_convexbn.solvers._round_search import RoundSearch

        def wrapped(search: Any) -> Any:
            def noted(rounds: Any, neurons: Any, Lambda: Any) -> Any:
                self.problem, self.neurons, self.Lambda = rounds.problem, neurons, Lambda
                return search(rounds, neurons, Lambda)

            return noted

        share = in_place_of(_search, "POLISHING", lambda part: part if polished else 0.0)
        with share, in_place_of(RoundSearch, "__call__", wrapped):
            fit()
        self.rows, self.alpha = self.problem.units.gathered(self.Lambda), self.problem.alpha
        self.known = self.neurons.directions.T

    def gap(self, bound: float) -> float:
        """Return the relative gap of the network if no correlation is larger than a bound."""
        return self.problem.certificate(self.neurons, largest_correlation=bound)[1].gap

    def searcher(self, seed: int, polished: bool) -> Callable[..., float]:
        """Return a search from so many starts and half as many relatives: its largest value."""
        from sklearn_convexbn.search._search import Effort, Search

        state, k = np.random.RandomState(seed), len(self.known)
        units = self.problem.units.on("cpu")
        search = Search(units, lambda count: state.standard_normal((k, count)), state)

        def largest(starts: int, known: int) -> float:
            effort = Effort(starts, min(500, starts // 2), 20, 1, polished=polished)
            return float(search(self.Lambda, self.known[:, :known], effort)[0].max())

        return largest

    def by_cones(self, gap: float | None, n_evaluations: int) -> tuple[float, int]:
        """Return the bound and the evaluations it took, on the way to a gap or the maximum."""
        from sklearn_convexbn.search._bound import tolerable_correlation
        from sklearn_convexbn.search._proof import prove

        wanted = 0.0
        if gap is not None:
            wanted = tolerable_correlation(self.problem, self.neurons, self.Lambda, gap)
        settings: dict[str, Any] = {"known": self.known, "n_evaluations": n_evaluations}
        proof = prove(*self.rows, wanted=wanted, **settings)
        return proof.bound, proof.n_evaluations

    def by_enumeration(self) -> tuple[float, bool]:
        """Return the largest correlation of all, and whether a fit would take the time for it."""
        from sklearn_convexbn.search._bound import QUICK_OPERATIONS
        from sklearn_convexbn.search._exact import exact_search_operations, largest_correlation

        operations = exact_search_operations(*self.rows[0].shape, self.Lambda.shape[1])
        return largest_correlation(*self.rows)[0], operations <= QUICK_OPERATIONS


def image_classifier(image_shape: tuple[int, ...], **parameters: Any) -> Any:
    """Return the classifier of images, one a row: convolutional where there is a `patch_size`."""
    names = {"patch_size": "size", "stride": "stride", "pooling": "pooling"}
    cut = {names[key]: parameters.pop(key, None) for key in names}
    if cut["size"] is None:
        return own_model(True, **parameters)
    return own_model(True, patches=Patches(image_shape, **cut), **parameters)


def solve_on_gates(
    Z: np.ndarray,
    y: np.ndarray,
    gates: np.ndarray,
    *,
    loss: str,
    alpha: float,
    activation: str,
    tol: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Solve a program on given gates, of one output and without intercept.

    Returns the number of the gate (m,), the direction (m, k) and the output weight (m,) of each
    neuron. The time includes the driver's, which certifies every round.
    """
    from sklearn_convexbn.losses._base import LOSSES
    from sklearn_convexbn.program._problem import Problem
    from sklearn_convexbn.program.units._whitened import WhitenedUnits
    from sklearn_convexbn.solvers import RunSettings, make_solver, run
    from sklearn_convexbn.support._sharding import ALL_HERE

    problem = Problem(
        units=WhitenedUnits(Z, ALL_HERE),
        Y=y[:, None],
        p=np.full(len(y), 1.0 / len(y)),
        loss=LOSSES[loss],
        alpha=alpha,
        fit_intercept=False,
        activation=activation,
        gates=gates,
        all_arrangements=False,
        spectrum=np.ones(Z.shape[1]),
        shards=ALL_HERE,
    )
    settings = RunSettings(tol=tol, device="cpu", random_directions=None, random_state=None)
    solver = make_solver("interior_point" if activation == "relu" else "group_newton")
    neurons = run(solver, problem, settings, max_iter=500).neurons
    return neurons.gates, neurons.directions, neurons.weights[:, 0]


def inner_steps(Z: Any, loss: str) -> tuple[Any, Any]:
    """Return the hidden layer on rows Z, which has the pursuit's inner steps, and a loss."""
    from sklearn_convexbn.losses._base import LOSSES
    from sklearn_convexbn.program.units._whitened import WhitenedUnits
    from sklearn_convexbn.support._sharding import ALL_HERE

    return WhitenedUnits(Z, ALL_HERE), LOSSES[loss]

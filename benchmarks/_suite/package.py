"""All that the benchmarks take from private modules of the package, and from names that may move.

A move of these in the package touches this file only, and until then one benchmark: private
modules are imported where they are used.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from sklearn_convexbn import ConvexBNClassifier, ConvexBNRegressor, Patches

#: Name of this package in tables.
OWN = "ours"


def own_model(classes: bool, **parameters: Any) -> Any:
    """Return the package's estimator, seeded."""
    kind = ConvexBNClassifier if classes else ConvexBNRegressor
    return kind(**({"random_state": 0} | parameters))


def warm_up() -> None:
    """Fit once: no later time has imports."""
    for classes in (False, True):
        own_model(classes).fit(np.arange(8.0)[:, None], [0, 1, 0, 1, 1, 0, 1, 1])


@contextmanager
def verifications() -> Iterator[list[float]]:
    """Yield the list that the processor seconds of each verification within are added to."""
    from sklearn_convexbn.search import _verification

    search, seconds = _verification.independent_search, []

    def clocked(*arguments: Any, **named: Any) -> Any:
        start = time.process_time()
        outcome = search(*arguments, **named)
        seconds.append(time.process_time() - start)
        return outcome

    _verification.independent_search = clocked
    try:
        yield seconds
    finally:
        _verification.independent_search = search


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
    from sklearn_convexbn.solvers import RunSettings, make_solver, run
    from sklearn_convexbn.support._sharding import ALL_HERE

    problem = Problem(
        Z=Z,
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

    return WhitenedUnits(Z), LOSSES[loss]

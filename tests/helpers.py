"""Problems, networks and data shared by the tests."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sklearn_convexbn import solvers
from sklearn_convexbn.data._decomposition import Decomposition
from sklearn_convexbn.losses._base import LOSSES
from sklearn_convexbn.program._arrangements import distinct_gates, enumerate_gates
from sklearn_convexbn.program._problem import Neurons, Problem
from sklearn_convexbn.program.units._whitened import WhitenedUnits
from sklearn_convexbn.support._sharding import ALL_HERE

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def shared_data(name):
    """Load ``<repository>/../shared/data/<name>.npz`` as a dict, or skip."""
    path = SHARED / f"{name}.npz"
    if not path.is_file():
        pytest.skip(f"{path} is not on this machine")
    with np.load(path) as file:
        return dict(file)


def output_with_array_api(code):
    """Return what code prints in a process of its own, with SCIPY_ARRAY_API set from its start."""
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=dict(os.environ, SCIPY_ARRAY_API="1"),
        check=False,
        cwd=Path(__file__).resolve().parents[1],
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def whiten(X, weights, *, n_components=None, shrinkage=0.0, by_column=True):
    """Return the whitened rows (n, k + 1) of X (n, d), an array or blocks, and the whitening."""
    setting = (n_components, shrinkage)
    decomposed = Decomposition.of(X, weights, [setting], by_column=by_column, shards=ALL_HERE)
    whitening = decomposed.whitening(*setting)
    return whitening.transform(X), whitening


def problem_and_whitening(
    X,
    Y,
    loss,
    alpha,
    activation="relu",
    *,
    gates=None,
    fit_intercept=True,
    weights=None,
    n_components=None,
    shrinkage=0.0,
    seed=0,
    loss_object=None,
):
    """State a problem on X (n, d), Y (n, C) as they are; gates: None, a number, or "all"."""
    weights = np.ones(len(X)) if weights is None else weights
    Z, whitening = whiten(X, weights, n_components=n_components, shrinkage=shrinkage)
    if gates == "all":
        listed = enumerate_gates(Z)
    elif gates is None:
        listed = None
    else:
        listed = distinct_gates(Z, np.random.default_rng(seed).normal(size=(Z.shape[1], gates)))
    problem = Problem(
        units=WhitenedUnits(Z, ALL_HERE),
        Y=np.asarray(Y, dtype=float).reshape(len(X), -1),
        p=weights / weights.sum(),
        loss=LOSSES[loss] if loss_object is None else loss_object,
        alpha=alpha,
        fit_intercept=fit_intercept,
        activation=activation,
        gates=listed,
        all_arrangements=gates == "all",
        spectrum=whitening.spectrum,
        shards=ALL_HERE,
    )
    return problem, whitening


def make_problem(*args, **kwargs):
    """Return the problem of :func:`problem_and_whitening` alone."""
    return problem_and_whitening(*args, **kwargs)[0]


def solve(problem, solver, *, tol=1e-3, max_iter=200, seed=0, start=None):
    """Run a solver (a name or an instance) through the driver."""
    if isinstance(solver, str):
        solver = solvers.make_solver(solver)
    rng = np.random.RandomState(seed)
    k = problem.units.n_parameters
    settings = solvers.RunSettings(
        tol=tol,
        device="cpu",
        random_directions=lambda count, random_state: random_state.normal(size=(k, count)),
        random_state=rng,
        start=start,
    )
    return solvers.run(solver, problem, settings, max_iter=max_iter)


def targets(rng, n, loss, C):
    """Draw targets (n, C) that the loss is defined for; every class occurs."""
    if loss == "squared":
        return rng.normal(size=(n, C))
    codes = rng.permutation(np.arange(n) % max(C, 2))
    return codes[:, None].astype(float) if C == 1 else np.eye(C)[codes]


def hidden(problem, directions, gates=None):
    """Return activations (n, m) of unit directions (m, k) of a problem that is not pooled."""
    H = problem.Z @ directions.T
    return np.maximum(H, 0.0) if gates is None else np.where(problem.patterns[:, gates], H, 0.0)


def random_neurons(problem, m, rng, scale=1.0):
    """Draw a network that is feasible for the problem without listed ReLU cones."""
    k, C = problem.Z.shape[1], problem.n_outputs
    gates = rng.integers(problem.gates.shape[1], size=m) if problem.gates is not None else None
    b = rng.normal(size=C) * scale if problem.fit_intercept else np.zeros(C)
    g = rng.normal(size=(m, C)) * scale / m
    return Neurons.from_products(rng.normal(size=(m, k)), g, b, gates)

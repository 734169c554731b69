"""The regularization path: the largest useful alpha, and networks along descending ones."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from numbers import Integral, Real
from typing import Any

import numpy as np

from sklearn_convexbn import solvers
from sklearn_convexbn.data._decomposition import Decomposition
from sklearn_convexbn.data._encoding import (
    TrainingData,
    classification_data,
    kind_of_target,
    loss_for,
    regression_data,
)
from sklearn_convexbn.data._patches import Patches, images_as_rows
from sklearn_convexbn.data._validation import check_numbers, natural_array, validated_data
from sklearn_convexbn.fit._network import Network
from sklearn_convexbn.fit._training import (
    FIT_CONSTRAINTS,
    Prepared,
    TrainingSettings,
    prepare,
    train_path,
)
from sklearn_convexbn.losses import loss_constraint, resolved_loss
from sklearn_convexbn.losses._base import Loss
from sklearn_convexbn.program._arrangements import random_directions
from sklearn_convexbn.search._bound import proven
from sklearn_convexbn.support._arrays import on_cpu
from sklearn_convexbn.support._compat import Interval, check_arguments
from sklearn_convexbn.support._device import plain_torch
from sklearn_convexbn.support._sharding import ALL_HERE, refuse_shards

#: Random starts of the search that estimates alpha_max.
N_STARTS = 2000

#: What the parameters of a path may be, besides those of its alphas.
CONSTRAINTS: dict[str, list[Any]] = {
    **{name: FIT_CONSTRAINTS[name] for name in FIT_CONSTRAINTS if name != "alpha"},
    "loss": [*loss_constraint("numbers", "labels"), None],
}

#: A fit's parameters that are not a path function's.
DEFAULTS = {"alpha": 1.0, "tol": 0.1, "max_iter": 200, "verbose": 0}

#: What the parameters may be that say which alphas a path has.
ALPHA_CONSTRAINTS: dict[str, list[Any]] = {
    "alphas": ["array-like", Interval(Integral, 1, None, closed="left")],
    "eps": [Interval(Real, 0, 1, closed="neither")],
}


@plain_torch()
def alpha_max(
    X: Any,
    y: Any,
    *,
    loss: str | Loss | None = None,
    n_components: int | float | None = None,
    shrinkage: float | str = "eps",
    activation: str = "relu",
    patches: Patches | None = None,
    solver: str | solvers.Solver = "auto",
    n_gates: int | str = 256,
    fit_intercept: bool = True,
    sample_weight: Any = None,
    device: str | None = None,
    random_state: int | np.random.RandomState | None = None,
) -> float:
    """Return the smallest alpha at which the optimal network has no hidden units.

    With Lambda minus the gradient of the mean loss at the best constant model, it is

    - for "relu" over all arrangements ``max |Lambda^T (Z q)_+|`` over unit q: exact where that
      maximum is affordable (as in :func:`certify`); where the rows are linearly independent after
      centring an upper bound, which one output attains; else the largest value that a search
      finds, so an estimate from below;
    - for "relu" on a list of arrangements (``solver="interior_point"`` or "cvxpy") the
      largest ``<+-Z^T D_i Lambda, q>`` over unit q in the cone of arrangement i;
    - for "gated_relu" the largest ``|Z^T D_i Lambda|`` (spectral norm for several outputs), which
      is at least as large on the same list, for want of the cones. This and the one before
      belong to the list that `random_state` draws.

    Parameters
    ----------
    X : {array-like, sparse matrix} of shape (n_samples, n_features)
        With `patches` images, (n_samples, height, width[, channels]) or flattened.
    y : array-like of shape (n_samples,) or (n_samples, n_outputs)
        Labels for "log_loss", numbers for other names.
    loss : {"squared_error", "huber", "poisson", "quantile", "log_loss"} or Loss, default=None
        None takes "log_loss" if y holds labels, that is one column of strings, booleans or
        integers, and "squared_error" for floats and several columns.
    n_components : int, float or None, default=None
        As in :class:`ConvexBNRegressor`, like the parameters below.
    shrinkage : float, "eps" or "auto", default="eps"
        Damping of small directions.
    activation : {"relu", "gated_relu"}, default="relu"
        Activation of the hidden units.
    patches : Patches or None, default=None
        Cut rows, which are images then, into patches.
    solver : str or Solver, default="auto"
        Decides whether "relu" is about all arrangements or a list.
    n_gates : int or "all", default=256
        Length of the list where there is one.
    fit_intercept : bool, default=True
        Whether the constant model is the best constant, or zero.
    sample_weight : array-like of shape (n_samples,), default=None
        Non-negative.
    device : str or None, default=None
        Where the search computes.
    random_state : int, RandomState instance or None, default=None
        Seeds gates and the search.

    Returns
    -------
    alpha : float
        In the unit of the estimators' `alpha`: for regression relative to a target of unit
        variance. Zero for a target that is constant.

    Raises
    ------
    ValueError
        For invalid parameters or data, or a solver that does not handle the problem.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn_convexbn import ConvexBNRegressor, alpha_max
    >>> X, y = load_diabetes(return_X_y=True)
    >>> largest = alpha_max(X, y, random_state=0)
    >>> ConvexBNRegressor(alpha=1.01 * largest, tol=1e-3, random_state=0).fit(X, y).n_neurons_
    0
    >>> ConvexBNRegressor(alpha=0.9 * largest, tol=1e-3, random_state=0).fit(X, y).n_neurons_
    1
    """
    values = {
        "n_components": n_components,
        "shrinkage": shrinkage,
        "activation": activation,
        "patches": patches,
        "solver": solver,
        "n_gates": n_gates,
        "fit_intercept": fit_intercept,
        "device": device,
        "random_state": random_state,
    }
    check_arguments("alpha_max", {**values, "loss": loss}, CONSTRAINTS)
    data = path_data(X, y, loss, sample_weight, fit_intercept=fit_intercept, patches=patches)
    return largest_alpha(data, TrainingSettings.of({**DEFAULTS, **values}))


@plain_torch()
def convexbn_path(
    X: Any,
    y: Any,
    *,
    eps: float = 1e-3,
    alphas: int | Any = 30,
    loss: str | Loss | None = None,
    n_components: int | float | None = None,
    shrinkage: float | str = "eps",
    activation: str = "relu",
    patches: Patches | None = None,
    solver: str | solvers.Solver = "auto",
    n_gates: int | str = 256,
    fit_intercept: bool = True,
    sample_weight: Any = None,
    tol: float = 0.2,
    max_iter: int = 200,
    device: str | None = None,
    random_state: int | np.random.RandomState | None = None,
    verbose: int | bool = 0,
) -> tuple[np.ndarray, list[Network], np.ndarray]:
    """Train networks along a path of descending alphas, each from the one before.

    X is whitened, and arrangements are drawn, once.

    Parameters
    ----------
    X : {array-like, sparse matrix} of shape (n_samples, n_features)
        With `patches` images, (n_samples, height, width[, channels]) or flattened.
    y : array-like of shape (n_samples,) or (n_samples, n_outputs)
        Labels for "log_loss", numbers for other names.
    eps : float, default=1e-3
        Smallest alpha divided by the largest, where `alphas` is a number.
    alphas : int or array-like of shape (n_alphas,), default=30
        Number of alphas, geometrically spaced from :func:`alpha_max` down, or the alphas
        themselves: positive, strictly descending.
        Labels for "log_loss", numbers for other names.
    loss : {"squared_error", "huber", "poisson", "quantile", "log_loss"} or Loss, default=None
        As in :func:`alpha_max`, like the parameters up to `sample_weight`.
    n_components : int, float or None, default=None
        Leading principal directions of X that are kept.
    shrinkage : float, "eps" or "auto", default="eps"
        Damping of small directions.
    activation : {"relu", "gated_relu"}, default="relu"
        Activation of the hidden units.
    patches : Patches or None, default=None
        Cut rows, which are images then, into patches.
    solver : str or Solver, default="auto"
        Solver, as in :class:`ConvexBNRegressor`.
    n_gates : int or "all", default=256
        Number of arrangements where the program needs a list.
    fit_intercept : bool, default=True
        Whether to fit the output intercept.
    sample_weight : array-like of shape (n_samples,), default=None
        Non-negative.
    tol : float, default=0.2
        Relative duality gap at which each fit stops.
    max_iter : int, default=200
        Largest number of rounds for each alpha.
    device : str or None, default=None
        Where solvers that use torch compute.
    random_state : int, RandomState instance or None, default=None
        Seeds gates and searches.
    verbose : int, default=0
        Print one line a round when positive.

    Returns
    -------
    alphas : ndarray of shape (n_alphas,)
    networks : list of n_alphas Network
        With `coefs`, `intercepts`, `batch_norm` and `gates` as the estimators' attributes of
        these names, and ``forward(X)``, which returns the raw output (n_samples, n_outputs).
    gaps : ndarray of shape (n_alphas,)
        Relative duality gaps, estimates where the estimators' certificates are.

    Raises
    ------
    ValueError
        For invalid parameters or data, or a solver that does not handle the problem.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn_convexbn import convexbn_path
    >>> X, y = load_diabetes(return_X_y=True)
    >>> alphas, networks, gaps = convexbn_path(X, y, alphas=5, eps=0.1, random_state=0)
    >>> len(networks)
    5
    >>> bool((gaps <= 0.2).all())
    True
    """
    values = {
        "n_components": n_components,
        "shrinkage": shrinkage,
        "activation": activation,
        "patches": patches,
        "solver": solver,
        "n_gates": n_gates,
        "fit_intercept": fit_intercept,
        "tol": tol,
        "max_iter": max_iter,
        "device": device,
        "random_state": random_state,
        "verbose": verbose,
    }
    check_arguments(
        "convexbn_path",
        {**values, "loss": loss, "alphas": alphas, "eps": eps},
        {**CONSTRAINTS, **ALPHA_CONSTRAINTS},
    )
    given = None if isinstance(alphas, Integral) else check_alphas(alphas)
    data = path_data(X, y, loss, sample_weight, fit_intercept=fit_intercept, patches=patches)
    settings = TrainingSettings.of({**DEFAULTS, **values})
    if given is None:
        given = alpha_grid(largest_alpha(data, settings.fresh()), int(alphas), eps)
    path = list(train_path(data, settings, given))
    gaps = np.array([trained.result.certificate.gap for trained in path])
    return given, [trained.network for trained in path], gaps


def path_data(
    X: Any,
    y: Any,
    loss: str | Loss | None,
    sample_weight: Any,
    *,
    fit_intercept: bool,
    patches: Patches | None = None,
) -> TrainingData:
    """Validate and encode the data of a path function."""
    refuse_shards("A path of alphas")
    X, grid = images_as_rows(patches, X)
    target = natural_array(y, "y")
    loss = loss_for(target) if loss is None else loss
    kind = kind_of_target(loss, target)
    chosen = resolved_loss(loss, kind)
    X, y, weights = validated_data(X, y, sample_weight, labels=kind == "labels")
    rows = on_cpu(X), y, weights
    if kind == "numbers":
        data = regression_data(*rows, fit_intercept=fit_intercept, loss=chosen, shards=ALL_HERE)
    else:
        data = classification_data(*rows, loss=chosen, shards=ALL_HERE)
    return data.cut(grid)


def check_alphas(alphas: Any) -> np.ndarray:
    """Return alphas (n_alphas,) as floats.

    Raises
    ------
    ValueError
        Unless they are finite, positive and strictly descending.
    """
    values = np.asarray(check_numbers(alphas, "alphas"), dtype=np.float64)
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"alphas must be a non-empty sequence of numbers. Got {alphas!r}.")
    if not np.isfinite(values).all() or values.min() <= 0.0:
        raise ValueError(f"alphas must be finite and positive. Got {alphas!r}.")
    if (np.diff(values) >= 0.0).any():
        raise ValueError(
            f"alphas must be strictly descending, largest first. Got {alphas!r}; "
            "np.unique(alphas)[::-1] has the right order."
        )
    return values


def alpha_grid(largest: float, n_alphas: int, eps: float) -> np.ndarray:
    """Return `n_alphas` geometrically spaced from `largest` down to `eps` times it.

    For a constant target, whose largest alpha is zero, the grid starts at one.
    """
    return np.geomspace(1.0, eps, n_alphas) * (largest if largest > 0.0 else 1.0)


def largest_alpha(
    data: TrainingData, settings: TrainingSettings, decomposition: Decomposition | None = None
) -> float:
    """Return the alpha at and above which the network is empty, or a search's estimate of it."""
    prepared = prepare(data, settings, decomposition)
    # No norm is below this alpha, so that none is left at an upper bound.
    problem = replace(prepared.problem, alpha=float(np.finfo(float).tiny))
    Lambda = problem.dual_point(np.broadcast_to(problem.constant(), problem.Y.shape))
    if problem.gates is None:
        return _largest_over_all(prepared, Lambda, settings)
    norms = problem.gate_norms if problem.activation == "gated_relu" else problem.cone_norms
    return float(norms(Lambda).max(initial=0.0))


def _largest_over_all(prepared: Prepared, Lambda: np.ndarray, settings: TrainingSettings) -> float:
    """Return the largest correlation over all arrangements, a search's where that is too much."""
    problem = prepared.problem
    from sklearn_convexbn.search._verification import independent_search

    bounded = proven(problem, Lambda)
    if bounded.proven:
        return bounded.bound
    return independent_search(
        problem.units.on(settings.device),
        partial(random_directions, prepared.whitening, random_state=settings.random_state),
        Lambda,
        np.zeros((problem.units.n_parameters, 0)),
        n_starts=N_STARTS,
        random_state=settings.random_state,
    ).found.largest

"""The optimality gap of networks of two hidden layers, whoever trained them."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse
from sklearn.utils import check_random_state

from sklearn_convexbn.data._encoding import TrainingData
from sklearn_convexbn.data._whitening import Whitening
from sklearn_convexbn.estimators._certify import CONSTRAINTS as OF_LAYERS
from sklearn_convexbn.estimators._certify import printing, size_of
from sklearn_convexbn.estimators._judged_problem import (
    check_output_bias,
    data_for_network,
    intercept_of_problem,
)
from sklearn_convexbn.fit._foreign_paths import read_parallel
from sklearn_convexbn.fit._path_network import neurons_of_paths, recover_paths
from sklearn_convexbn.fit._path_training import path_drawing, state_path_problem
from sklearn_convexbn.losses._base import Loss
from sklearn_convexbn.program._problem import Certificate, Neurons, Problem
from sklearn_convexbn.support._arrays import Array, as_numpy
from sklearn_convexbn.support._compat import Interval, check_arguments
from sklearn_convexbn.support._device import plain_torch, resolve_device
from sklearn_convexbn.support._sharding import refuse_shards

CONSTRAINTS: dict[str, list[Any]] = {
    **{name: OF_LAYERS[name] for name in ("alpha", "loss", "fit_intercept", "effort")},
    **{name: OF_LAYERS[name] for name in ("random_state", "device", "verbose")},
    "inner_width": [Interval(Integral, 0, None, closed="left"), None],
}


class SubNetwork(NamedTuple):
    """A sub-network ``relu(sum_i signs[i] relu(X @ w_i + c_i) + X @ s + t)`` and its output.

    Attributes
    ----------
    inner : ndarray of shape (inner_width, d)
        Weights w_i of the inner units, in the units of X; of path norm one, with `linear` and the
        offsets, on standardised columns.
    inner_offsets : ndarray of shape (inner_width,)
    signs : ndarray of shape (inner_width,)
    linear : ndarray of shape (d,)
        The linear part s.
    linear_offset : float
    output : ndarray of shape (C,)
        Unit vector.
    """

    inner: np.ndarray
    inner_offsets: np.ndarray
    signs: np.ndarray
    linear: np.ndarray
    linear_offset: float
    output: np.ndarray


@dataclass(frozen=True, eq=False)
class PathNetworkCertificate(Certificate):
    """How far sub-networks in parallel are from the optimum of their problem, by a search.

    Attributes
    ----------
    primal : float
        Mean loss plus ``alpha * sum_j |v_j| |q_j|`` of the network as it is, with the norms of its
        paths q_j, in squared units of y for regression.
    dual : float
        Estimated lower bound on the objective of every number of sub-networks, in the same unit.
    gap : float
        ``(primal - dual) / primal``, at least 0.
    infeasibility : float
        Relative excess over alpha of the correlation that `dual` rests on, at least 0.
    kind : {"estimated"}
        The largest correlation comes from a search, which may have missed a larger one.
    program : str
        The optimum that is bounded: that over "all arrangements".
    n_verified : int
        Random starts of the search.
    n_hits : int
        How many of them ended in its best maximum.
    cautious_gap : float
        The gap at three times the violation that was found; an estimate too.
    violation : float
        By how much the correlation of `direction` with the negative gradient of the loss exceeds
        alpha, relative to alpha, at least 0. Where it is positive, adding the sub-network improves
        the network.
    direction : SubNetwork
        The most violated sub-network found.
    """

    violation: float
    direction: SubNetwork

    def __str__(self) -> str:
        return f"{super().__str__()}; largest violation found {100 * self.violation:.3g} %"


class _Stated(NamedTuple):
    """A network as neurons of the problem on standardised columns; signs are its inner units'."""

    data: TrainingData
    problem: Problem
    whitening: Whitening
    neurons: Neurons
    signs: np.ndarray


@plain_torch()
def certify_path_net(
    network: Any,
    X: Any,
    y: Any,
    *,
    alpha: float,
    loss: str | Loss | None = None,
    sample_weight: Any = None,
    fit_intercept: bool | None = None,
    inner_width: int | None = None,
    effort: str | int = "thorough",
    random_state: int | np.random.RandomState | None = None,
    device: str | None = "cpu",
    verbose: int | bool = 0,
) -> PathNetworkCertificate:
    """Estimate the distance of a network of two hidden layers from the global optimum.

    The optimum is that of any number of sub-networks in parallel with a price on their paths, on
    standardised columns: the problem of :class:`PathNetRegressor` and :class:`PathNetClassifier`.
    The network enters as the function it computes, each unit of its second layer as a sub-network
    with the inner units that feed it, scales balanced. It is not modified.

    Parameters
    ----------
    network : estimator or torch.nn.Sequential
        A fitted :class:`PathNetRegressor` or :class:`PathNetClassifier`; a fitted
        :class:`~sklearn.neural_network.MLPRegressor` or
        :class:`~sklearn.neural_network.MLPClassifier` of two hidden relu layers; or
        ``Sequential(Linear, ReLU, Linear, ReLU, Linear)`` of any dtype, on any device, as
        ``to_torch`` returns. Outputs for classes are logits, in the sorted order of the labels: one
        output or two for two classes.
    X : array-like of shape (n_samples, n_features)
        Training data, as the network takes it.
    y : array-like of shape (n_samples,) or (n_samples, n_outputs)
        Training target: numbers for regression, labels (n_samples,) for classification.
    alpha : float
        Price of a path, as in the estimators: for regression relative to a target of unit
        variance (root mean square without an intercept). Must be positive.
    loss : {"squared_error", "huber", "poisson", "quantile", "log_loss"} or Loss, default=None
        As in the estimators. None takes an estimator's own; for a torch module "log_loss" if y
        holds labels, that is one column of strings, booleans or integers, and "squared_error" for
        floats and several columns.
    sample_weight : array-like of shape (n_samples,), default=None
        Non-negative. A weight of 2 equals the row twice, also in the columns' mean and variance.
    fit_intercept : bool, default=None
        Whether the output intercept is part of the problem. None takes an estimator's own
        parameter; for a torch module, whether its last layer has a bias.
    inner_width : int, default=None
        Number of inner units of a sub-network in the problem. None takes that of a path network,
        and for others as few as hold the network, half of them added and half subtracted: as many
        as the first layer has units, about; more may be asked for. The norm of paths is that of a
        path network, and l1 for others.
    effort : {"quick", "normal", "thorough"} or int, default="thorough"
        How hard the most violated sub-network is searched for: from 2000, 10,000 or 50,000 random
        starts, or that many; 50,000 take about 20 s on 1000 rows of ten columns with four inner
        units, and time grows with these. The network's own sub-networks are tried besides.
    random_state : int, RandomState instance or None, default=None
        Seeds the search. Pass an int for identical results across calls.
    device : str or None, default="cpu"
        Where the search computes: None or "cpu", "cuda", "cuda:1", or "auto".
    verbose : int or bool, default=0
        Print how far the search has come, every 5000 starts, when positive.

    Returns
    -------
    certificate : PathNetworkCertificate
        Objective, estimated bound, gap and the most violated sub-network. Its fields are those of
        an estimator's `certificate_`, and more.

    Raises
    ------
    TypeError
        If `network` is none of the kinds above, or for sparse X.
    ValueError
        For another architecture or activation, an estimator that is not fitted, layers that do not
        fit together, invalid parameters or data, numbers of features, outputs or labels that do not
        fit, fewer inner units than the network has, outputs that are not finite, or an output bias
        where ``fit_intercept=False``.

    See Also
    --------
    PathNetRegressor : Trains such a network.
    certify : Bounds the distance of networks of one hidden layer, with proofs where they are
        affordable.

    Notes
    -----
    With Lambda minus the gradient of the mean loss, at the network with its best intercept, the
    dual value of Lambda scaled back until ``|Lambda^T a(q)| <= alpha`` for every sub-network q of
    norm one bounds the optimum from below [1]_. The largest correlation comes from a search, in
    (inner_width + 1) (n_features + 1) dimensions, and a larger search mostly finds a larger one:
    the bound is an estimate.

    References
    ----------
    .. [1] T. Ergen, M. Pilanci, "Path Regularization: A Convexity and Sparsity Inducing
       Regularization for Parallel ReLU Networks", NeurIPS 2023, arXiv:2110.09548.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn_convexbn import PathNetRegressor, certify_path_net
    >>> X, y = load_diabetes(return_X_y=True)
    >>> model = PathNetRegressor(alpha=0.1, random_state=0).fit(X, y)
    >>> options = {"alpha": 0.05, "random_state": 0, "effort": "quick"}
    >>> far = certify_path_net(model, X, y, **options)
    >>> near = certify_path_net(model.set_params(alpha=0.05).fit(X, y), X, y, **options)
    >>> near.gap < far.gap
    True
    """
    of_problem: dict[str, Any] = {"alpha": alpha, "loss": loss, "fit_intercept": fit_intercept}
    of_search = {"effort": effort, "random_state": random_state, "device": device}
    others = {"inner_width": inner_width, "verbose": verbose}
    check_arguments("certify_path_net", of_problem | of_search | others, CONSTRAINTS)
    refuse_shards("certify_path_net")
    stated = _problem_of_paths(network, X, y, sample_weight, inner_width, **of_problem)
    return _certificate(
        stated,
        n_starts=size_of(effort)[0],
        random_state=check_random_state(random_state),
        device=resolve_device(device),
        verbose=bool(verbose),
    )


def _certificate(
    stated: _Stated,
    *,
    n_starts: int,
    random_state: np.random.RandomState,
    device: str,
    verbose: bool,
) -> PathNetworkCertificate:
    """Search for violators of the network's dual point, and bound by what was found."""
    from sklearn_convexbn.search._verification import independent_search

    problem, neurons = stated.problem, stated.neurons
    best, F = problem.with_best_intercept(neurons)
    Lambda = problem.dual_point(F)
    draw = path_drawing(problem.units.n_parameters)
    verification = independent_search(
        problem.units.on(device),
        lambda count: draw(count, random_state),
        Lambda,
        neurons.directions.T,
        n_starts=n_starts,
        random_state=random_state,
        progress=printing(n_starts, problem) if verbose else None,
    )
    found = verification.found
    met = np.column_stack([found.directions[:, found.values.argmax()], neurons.directions.T])
    values = problem.correlations(Lambda, met)
    largest, q = float(values.max()), met[:, values.argmax()]
    _, certificate = problem.certificate(
        best,
        largest_correlation=largest,
        n_verified=verification.n_starts,
        n_hits=verification.n_hits,
    )
    certificate = certificate.of_objective(problem.objective(neurons)).scaled(stated.data.unit)
    return PathNetworkCertificate(
        **vars(certificate),
        violation=problem.excess(largest),
        direction=_sub_network(problem, stated.whitening, stated.signs, q, Lambda),
    )


def _problem_of_paths(
    network: Any,
    X: Any,
    y: Any,
    sample_weight: Any,
    inner_width: int | None,
    *,
    alpha: float,
    loss: str | Loss | None,
    fit_intercept: bool | None,
) -> _Stated:
    """Read the network and state the problem on standardised columns."""
    layers = read_parallel(network, inner_width, "certify_path_net")
    if sparse.issparse(X):
        raise TypeError(
            "certify_path_net does not take sparse X: its columns are standardised. "
            "Use X.toarray()."
        )
    with_intercept = intercept_of_problem(layers, fit_intercept)
    data = data_for_network(layers, X, y, sample_weight, loss, with_intercept, "certify_path_net")
    problem, whitening = state_path_problem(
        data,
        alpha=float(alpha),
        inner_width=layers.inner_width,
        norm=layers.norm,
        fit_intercept=with_intercept,
    )
    neurons = neurons_of_paths(layers.network, whitening, data.target, problem.units)
    check_output_bias(neurons, problem)
    if not np.isfinite(as_numpy(problem.fit_without_intercept(neurons))).all():
        raise ValueError("The network's output on X is not finite.")
    return _Stated(data, problem, whitening, neurons, layers.network.signs)


def _sub_network(
    problem: Problem, whitening: Whitening, signs: np.ndarray, q: np.ndarray, Lambda: Array
) -> SubNetwork:
    """Return the unit q (K,) in the units of X, with the output that it is to be given."""
    T = problem.units.correlations(Lambda, q[:, None]).T
    output = T / max(float(np.linalg.norm(T)), 1e-300)
    unit = Neurons(q[None], output, np.zeros(problem.n_outputs))
    found = recover_paths(unit, whitening, signs, None)
    return SubNetwork(
        found.inner[:, :, 0],
        found.inner_offsets[:, 0],
        found.signs,
        found.linear[:, 0],
        float(found.linear_offsets[0]),
        output[0],
    )

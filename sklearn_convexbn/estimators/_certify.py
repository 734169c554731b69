"""The optimality gap of any two-layer ReLU network, whoever trained it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from sklearn.utils import check_random_state

from sklearn_convexbn.estimators._judged_problem import Stated, problem_of_network
from sklearn_convexbn.fit._training import PROBLEM_CONSTRAINTS
from sklearn_convexbn.losses import loss_constraint
from sklearn_convexbn.losses._base import Loss
from sklearn_convexbn.program._arrangements import random_directions
from sklearn_convexbn.program._problem import Certificate, Problem, relative_gap
from sklearn_convexbn.search._bound import Found, bounded_by_cones, proven, quick_evaluations
from sklearn_convexbn.support._compat import Interval, StrOptions, check_arguments
from sklearn_convexbn.support._device import plain_torch, resolve_device
from sklearn_convexbn.support._sharding import refuse_shards

if TYPE_CHECKING:
    from sklearn_convexbn.search._verification import Progress

#: A proven gap that is above the estimated one by at most so much takes its place.
AGREEMENT = 1e-3

#: Random starts for each effort, and evaluations that a proof over cones may take.
EFFORTS = {"quick": (2000, 10_000), "normal": (10_000, 100_000), "thorough": (50_000, 1_000_000)}

#: Directions that such a proof begins with, and how close to the largest value it is to come.
KNOWN_TO_PROOF, PROOF_CLOSENESS = 50, 1e-3

CONSTRAINTS: dict[str, list[Any]] = {
    **PROBLEM_CONSTRAINTS,
    "shrinkage": [*PROBLEM_CONSTRAINTS["shrinkage"], None],
    "fit_intercept": [*PROBLEM_CONSTRAINTS["fit_intercept"], None],
    "loss": [*loss_constraint("numbers", "labels"), None],
    "effort": [StrOptions(set(EFFORTS)), Interval(Integral, 1, None, closed="left")],
    "stationarity_tol": [Interval(Real, 0, None, closed="left")],
    "verbose": ["verbose"],
}


class HiddenUnit(NamedTuple):
    """A hidden unit ``relu(X @ weights + offset)`` and the output weights to give it.

    Attributes
    ----------
    weights : ndarray of shape (d,)
        In the units of X, such that the unit is of length one in the whitened coordinates. On
        images those of the values of a patch.
    offset : float
    output : ndarray of shape (C,)
        Unit vector; (G C,) for activations pooled to G cells, cell by cell.
    """

    weights: np.ndarray
    offset: float
    output: np.ndarray


@dataclass(frozen=True, eq=False)
class NetworkCertificate(Certificate):
    """How far a network is from the optimum of its training problem, at most.

    The certificate of a fit, about any network, and more of the network.

    Attributes
    ----------
    primal : float
        Mean loss plus ``alpha * sum_j |q_j| |v_j|`` of the network as it is, in squared units
        of y for regression.
    dual : float
        Lower bound on the objective of every network of any width, in the same unit; an
        estimate of one where `kind` says so.
    gap : float
        ``(primal - dual) / primal``, at least 0.
    infeasibility : float
        Relative excess over alpha of the correlation that `dual` rests on, at least 0.
    kind : {"exact", "estimated"}
        "exact" when `dual` is rigorous; "estimated" when it rests on a search, which may have
        missed the most violated direction.
    program : str
        The optimum that is bounded: that over "all arrangements".
    n_verified : int
        Random starts of the search.
    n_hits : int
        How many of them ended in its best maximum.
    cautious_gap : float
        The gap at three times the violation that was found; that of an exact certificate is `gap`.
    proved_gap : float
        The smallest gap that is proven, beside an estimate: mostly far above it, and 1 if nothing
        could be proven.
    violation : float
        By how much the correlation of `direction` with the negative gradient of the loss
        exceeds alpha, relative to alpha, at least 0. Where it is positive, adding the unit
        improves the network.
    direction : HiddenUnit
        The most violated hidden unit found: weights, offset and output direction.
    stationary : bool
        Whether ``stationarity_gap <= stationarity_tol``.
    stationarity_gap : float
        Relative gap to a rigorous lower bound on what is reached by networks whose neurons keep
        their activation patterns and output directions, or keep their hidden weights.
    """

    proved_gap: float
    violation: float
    direction: HiddenUnit
    stationary: bool
    stationarity_gap: float

    def __str__(self) -> str:
        point = "stationary" if self.stationary else "not stationary"
        proved = ""
        if self.kind == "estimated" and self.proved_gap < 1.0:
            proved = f"; proved to be within {100 * self.proved_gap:.2g} %"
        return (
            f"{super().__str__()}{proved}; largest violation found {100 * self.violation:.3g} %; "
            f"{point}: within {100 * self.stationarity_gap:.2g} % of the best network of its own "
            "arrangements"
        )


@plain_torch()
def certify(
    network: Any,
    X: Any,
    y: Any,
    *,
    alpha: float,
    loss: str | Loss | None = None,
    sample_weight: Any = None,
    n_components: int | float | None = None,
    shrinkage: float | str | None = None,
    fit_intercept: bool | None = None,
    effort: str | int = "thorough",
    stationarity_tol: float = 1e-3,
    random_state: int | np.random.RandomState | None = None,
    device: str | None = "cpu",
    verbose: int | bool = 0,
) -> NetworkCertificate:
    """Bound the distance of a two-layer ReLU network from the global optimum.

    The optimum is that of the batch-normalized network with weight decay on X and y, over all
    widths: the problem of :class:`ConvexBNRegressor` and :class:`ConvexBNClassifier`. The network
    enters as the function it computes on X, its scales balanced (which can only lower its
    weight decay), so it need not have been trained with this package, or with batch
    normalization. It is not modified.

    Parameters
    ----------
    network : estimator or torch.nn.Sequential
        A fitted :class:`ConvexBNRegressor` or :class:`ConvexBNClassifier` (``activation="relu"``);
        a fitted :class:`~sklearn.neural_network.MLPRegressor` or
        :class:`~sklearn.neural_network.MLPClassifier` of one hidden relu layer; or
        ``Sequential(Linear, BatchNorm1d, ReLU, Linear)`` or ``Sequential(Linear, ReLU, Linear)``
        of any dtype, on any device; or of images ``Sequential(Conv2d, BatchNorm2d, ReLU,
        AvgPool2d, Flatten, Linear)``, with or without ``BatchNorm2d``. Batch normalization is
        taken as in train mode with all of X as the batch, whatever mode the module is in; its
        eps counts, its running statistics do not. Outputs for classes are logits, in the sorted
        order of the labels: one output or two for two classes.
    X : {array-like, sparse matrix} of shape (n_samples, n_features)
        Training data, as the network takes it: for convolutional networks of this package images
        (n_samples, height, width[, channels]) or flattened, for those of torch
        (n_samples, channels, height, width).
    y : array-like of shape (n_samples,) or (n_samples, n_outputs)
        Training target: numbers for regression, labels (n_samples,) for classification.
    alpha : float
        Weight decay on BN scales, BN shifts and output weights, as in the estimators: for
        regression it is relative to a target of unit variance (root mean square without an
        intercept), so a weight decay of ``w`` beside half the mean squared error in the units of
        y is ``alpha = w / std(y)``. Must be positive.
    loss : {"squared_error", "huber", "poisson", "quantile", "log_loss"} or Loss, default=None
        As in the estimators: "squared_error" is half the squared error, "log_loss" the logistic
        loss, or softmax cross-entropy for two and more outputs. Outputs are raw: for "poisson"
        logs of means. None takes a scikit-learn estimator's own; for a torch module
        "log_loss" if y holds labels, that is one column of strings, booleans or integers, and
        "squared_error" for floats and several columns.
    sample_weight : array-like of shape (n_samples,), default=None
        Non-negative. A weight of 2 equals the row twice, also in batch normalization's statistics.
    n_components : int or float, default=None
        Bound the optimum over the leading directions of X only, as in the estimators. None takes
        as many as an estimator of this package has kept, or else all.
    shrinkage : float, "eps" or "auto", default=None
        As in the estimators. None takes what an estimator of this package has used, or else 0. Its
        torch module does not know it: pass the estimator's `shrinkage_`.
    fit_intercept : bool, default=None
        Whether the output intercept is part of the problem. None takes an estimator's own
        parameter; for a torch module, whether its last layer has a bias.
    effort : {"quick", "normal", "thorough"} or int, default="thorough"
        How hard the most violated direction is searched for: from 2000, 10,000 or 50,000 random
        starts, or that many. The network's own units are tried besides. For one output in at most
        8 dimensions (the directions kept and one) a proof by branch and bound follows, of up to
        10,000, 100,000 or 1,000,000 evaluations; the last takes several seconds.
    stationarity_tol : float, default=1e-3
        Largest `stationarity_gap` that counts as stationary.
    random_state : int, RandomState instance or None, default=None
        Seeds the search. Pass an int for identical results across calls.
    device : str or None, default="cpu"
        Where the search computes: None or "cpu", "cuda", "cuda:1", or "auto".
    verbose : int or bool, default=0
        Print how far the search has come, every 5000 starts, when positive.

    Returns
    -------
    certificate : NetworkCertificate
        Objective, lower bound, gap, the most violated hidden unit, and whether the network is
        a stationary point. Its fields are those of an estimator's `certificate_`, and more.

    Raises
    ------
    TypeError
        If `network` is none of the kinds above.
    ValueError
        For another architecture or activation, an estimator that is not fitted, invalid
        parameters or data, numbers of features, outputs or labels that do not fit, outputs that
        are not finite, an output bias where ``fit_intercept=False``, hidden units that depend
        on directions of X which `n_components` cuts, or rows that an estimator of ``clip=True``
        clips.

    See Also
    --------
    ConvexBNRegressor : Trains such a network in convex form.
    ConvexBNClassifier : The same for classification.
    certify_path_net : Bounds the distance of networks of two hidden layers.

    Notes
    -----
    With Lambda minus the gradient of the mean loss, at the network with its best intercept,
    the lower bound is the dual value of Lambda scaled back until ``|Lambda^T (Z q)_+| <= alpha``
    for every unit q [1]_. It is "exact" where the maximum over all arrangements can be computed
    in seconds (one or two features or components and up to about a thousand rows, more of them
    for fewer rows), and where the rows are linearly independent after centring; else the
    largest correlation comes from a search.

    The bound is of first order: a network whose gradients are off by a share e is bounded to
    within about e of the optimum, though it may be within e squared. A large gap therefore says
    that the network is not *proven* good.

    `stationarity_gap` scales the same Lambda to the constraints of the network's own neurons
    only, which is rigorous for any number of outputs. Stationary points are optimal for these
    [2]_, [3]_. A small `stationarity_gap` beside a large `gap` therefore is a network that
    training cannot improve although better ones exist: new activation patterns are needed, as in
    `direction`. A neuron's pattern is taken with its output direction, because a stationary point
    need not be optimal over other output directions of the same pattern.

    References
    ----------
    .. [1] T. Ergen, A. Sahiner, B. Ozturkler, J. Pauly, M. Mardani, M. Pilanci, "Demystifying
       Batch Normalization in ReLU Networks: Equivalent Convex Optimization Models and
       Implicit Regularization", ICLR 2022, arXiv:2103.01499.
    .. [2] T. Ergen, M. Pilanci, "The Convex Landscape of Neural Networks: Characterizing Global
       Optima and Stationary Points via Lasso Models", 2023, arXiv:2312.12657.
    .. [3] Y. Wang, J. Lacotte, M. Pilanci, "The Hidden Convex Optimization Landscape of Two-Layer
       ReLU Neural Networks: an Exact Characterization of the Optimal Solutions", ICLR 2022,
       arXiv:2006.05900.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.neural_network import MLPRegressor
    >>> from sklearn_convexbn import ConvexBNRegressor, certify
    >>> X, y = load_diabetes(return_X_y=True)
    >>> mlp = MLPRegressor(hidden_layer_sizes=(20,), tol=10.0, random_state=0).fit(X, y)
    >>> far = certify(mlp, X, y, alpha=0.1, random_state=0)
    >>> best = ConvexBNRegressor(alpha=0.1, shrinkage=0.0, tol=0.01, random_state=0).fit(X, y)
    >>> near = certify(best, X, y, alpha=0.1, random_state=0)
    >>> far.primal > near.primal > near.dual
    True
    >>> near.gap <= 0.01
    True
    """
    of_problem: dict[str, Any] = {
        "alpha": alpha,
        "loss": loss,
        "n_components": n_components,
        "shrinkage": shrinkage,
        "fit_intercept": fit_intercept,
    }
    of_search = {
        "effort": effort,
        "stationarity_tol": stationarity_tol,
        "random_state": random_state,
        "device": device,
        "verbose": verbose,
    }
    check_arguments("certify", of_problem | of_search, CONSTRAINTS)
    refuse_shards("certify")
    stated = problem_of_network(network, X, y, sample_weight, caller="certify", **of_problem)
    n_starts, n_evaluations = size_of(effort)
    judged = _searched(
        stated,
        n_starts=n_starts,
        random_state=check_random_state(random_state),
        device=resolve_device(device),
        verbose=bool(verbose),
    )
    return _certificate(judged, stationarity_tol, n_evaluations)


def printing(n_starts: int, problem: Problem) -> Progress:
    """Return what prints how far a search has come."""

    def tell(done: int, largest: float) -> None:
        excess = 100 * problem.excess(largest)
        print(f"[certify] {done} of {n_starts} starts: violation of {excess:.3g} %")

    return tell


def size_of(effort: str | int) -> tuple[int, int]:
    """Return the random starts and the evaluations of an effort."""
    if isinstance(effort, str):
        return EFFORTS[effort]
    return int(effort), EFFORTS["quick"][1]


class _Judged(NamedTuple):
    """A network, its dual point (n, C) and the largest correlations that were found there.

    `found` is by the search and by what the network's own units say; `own` is the largest
    correlation of its own arrangements.
    """

    stated: Stated
    Lambda: np.ndarray
    found: Found
    own: float
    n_starts: int
    n_hits: int


def _searched(
    stated: Stated,
    *,
    n_starts: int,
    random_state: np.random.RandomState,
    device: str,
    verbose: bool,
) -> _Judged:
    """Search for violators of the network's dual point."""
    from sklearn_convexbn.search._verification import independent_search

    problem, neurons = stated.problem, stated.neurons

    Lambda = problem.dual_point(problem.with_best_intercept(neurons)[1])
    own, direction = problem.own_correlation(neurons, Lambda)
    of_own = Found(problem.correlations(Lambda, direction[:, None]), direction[:, None])
    verification = independent_search(
        problem.units.on(device),
        partial(random_directions, stated.whitening, random_state=random_state),
        Lambda,
        neurons.directions.T,
        n_starts=n_starts,
        random_state=random_state,
        progress=printing(n_starts, problem) if verbose else None,
    )
    found = verification.found.joined(of_own)
    return _Judged(stated, Lambda, found, own, n_starts, verification.n_hits)


def _with_proof(judged: _Judged, n_evaluations: int) -> Found:
    """Return what was found with the least bound that is affordable to prove."""
    problem, found = judged.stated.problem, judged.found
    found = found.joined(proven(problem, judged.Lambda))
    if found.is_tight:
        return found
    known = found.directions[:, np.argsort(-found.values, kind="stable")[:KNOWN_TO_PROOF]]
    largest = max(judged.own, float(found.values.max()), problem.alpha)
    # At first what a fit has taken, down to what is attained: to prove no less than it did.
    quick = quick_evaluations(problem.units.n_rows)
    for closeness, count in ((1e-9, quick), (PROOF_CLOSENESS, n_evaluations)):
        cones = bounded_by_cones(
            problem,
            judged.Lambda,
            known=known,
            wanted=largest * (1.0 + closeness),
            closeness=closeness,
            n_evaluations=count,
        )
        found = found.joined(cones)
        if found.bound <= largest * (1.0 + PROOF_CLOSENESS):
            break
    return found


def _certificate(
    judged: _Judged, stationarity_tol: float, n_evaluations: int
) -> NetworkCertificate:
    """Scale the dual point to what was found, and to what can be proven."""
    (data, problem, whitening, neurons), Lambda = judged.stated, judged.Lambda
    found = _with_proof(judged, n_evaluations)
    largest = max(judged.own, float(found.values.max()))
    q = found.directions[:, found.values.argmax()]
    primal = problem.objective(neurons)
    dual = problem.dual_value(Lambda, largest)
    cautious_dual = problem.cautious_dual_value(Lambda, largest)
    bound = max(largest, found.bound)  # infinite if nothing is proven: a dual value of zero
    proved_dual = problem.dual_value(Lambda, bound)
    proved_gap = relative_gap(primal, proved_dual)
    exact = found.proven and proved_gap <= relative_gap(primal, dual) + AGREEMENT
    if exact:
        dual = cautious_dual = proved_dual
    stationarity_gap = relative_gap(primal, problem.dual_value(Lambda, judged.own))
    weights, offset = whitening.hidden_layer(q[None])
    output = problem.pooling.on_rows(Lambda).T @ np.maximum(problem.Z @ q, 0.0)
    return NetworkCertificate(
        primal=primal * data.unit,
        dual=dual * data.unit,
        gap=relative_gap(primal, dual),
        infeasibility=problem.excess(bound if exact else largest),
        kind="exact" if exact else "estimated",
        program=problem.program,
        n_verified=judged.n_starts,
        n_hits=judged.n_hits,
        cautious_gap=relative_gap(primal, cautious_dual),
        proved_gap=proved_gap,
        violation=problem.excess(largest),
        direction=HiddenUnit(weights[:, 0], float(offset[0]), _unit(output)),
        stationary=stationarity_gap <= stationarity_tol,
        stationarity_gap=stationarity_gap,
    )


def _unit(a: np.ndarray) -> np.ndarray:
    """Scale a vector, or the columns of a matrix, to unit length; zero stays zero."""
    return a / np.maximum(np.linalg.norm(a, axis=0), 1e-300)

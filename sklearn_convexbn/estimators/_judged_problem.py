"""A network, whoever trained it, and the training problem it is judged by."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from sklearn.base import is_classifier

from sklearn_convexbn.data._encoding import (
    TrainingData,
    classification_data,
    kind_of_target,
    loss_for,
    regression_data,
)
from sklearn_convexbn.data._validation import natural_array, validated_data
from sklearn_convexbn.data._whitening import Whitening
from sklearn_convexbn.fit._foreign import Layers, Trained, read_network
from sklearn_convexbn.fit._network import Network, neurons_of_network
from sklearn_convexbn.fit._training import state_problem
from sklearn_convexbn.losses import LogLoss, names_for, resolved_loss
from sklearn_convexbn.losses._base import LOSSES, Loss
from sklearn_convexbn.program._problem import Neurons, Problem
from sklearn_convexbn.support._sharding import ALL_HERE

#: Largest share of a hidden unit's values that the directions kept may fail to express.
EXPRESSION_TOLERANCE = 1e-8

#: Whitened coordinates of a network that clips may be outside their range by this share of it.
CLIPPED_TOLERANCE = 1e-9

#: So many roundings of the terms of a unit's sum may be lost besides.
ROUNDINGS_OF_TERMS = 16


class Stated(NamedTuple):
    """A training problem and its data, and the network as neurons in its coordinates."""

    data: TrainingData
    problem: Problem
    whitening: Whitening
    neurons: Neurons


def problem_of_network(
    network: Any,
    X: Any,
    y: Any,
    sample_weight: Any,
    *,
    caller: str,
    alpha: float,
    loss: str | Loss | None,
    n_components: int | float | None,
    shrinkage: float | str | None,
    fit_intercept: bool | None = None,
) -> Stated:
    """Read a network and state the problem; what is None is the network's own, as for `certify`.

    Errors name the `caller`.

    Raises
    ------
    TypeError
        If `network` is of no kind that is known.
    ValueError
        If it does not fit to the data or is none of the problem's.
    """
    layers = read_network(network, X, caller)
    with_intercept = intercept_of_problem(layers, fit_intercept)
    data = data_for_network(layers, X, y, sample_weight, loss, with_intercept, caller)
    _check_not_clipped(layers, data, caller)
    problem, whitening = state_problem(
        data,
        alpha=float(alpha),
        fit_intercept=with_intercept,
        n_components=layers.setting("n_components_", n_components, None),
        shrinkage=layers.setting("shrinkage_", shrinkage, 0.0),
    )
    return Stated(data, problem, whitening, _neurons(layers, data, problem, whitening))


def intercept_of_problem(layers: Trained, fit_intercept: bool | None) -> bool:
    """Return whether the output intercept is part of the problem; None takes the network's own."""
    return bool(layers.setting("fit_intercept", fit_intercept, layers.has_output_bias))


def data_for_network(
    layers: Trained,
    X: Any,
    y: Any,
    sample_weight: Any,
    loss: str | Loss | None,
    fit_intercept: bool,
    caller: str,
) -> TrainingData:
    """Validate X and y, encode them as the estimators do and check that the network fits."""
    loss = layers.setting("loss", loss, _default_loss(layers, y))
    kind = kind_of_target(loss, natural_array(y, "y"))
    if layers.estimator is not None:
        kind = "labels" if is_classifier(layers.estimator) else "numbers"
    labels = kind == "labels"
    if isinstance(loss, str) and loss not in names_for(kind):
        raise ValueError(f"{caller} cannot judge a {layers.name} by loss={loss!r}.")
    chosen = resolved_loss(loss, kind)
    X = layers.as_rows(X)
    X, y, weights = validated_data(X, y, sample_weight, labels=labels, estimator=layers.estimator)
    n_features, n_outputs = layers.n_features, layers.n_outputs
    if X.shape[1] != n_features:
        raise ValueError(f"X has {X.shape[1]} features, but the network expects {n_features}.")
    rows = X, y, weights
    if not labels:
        data = regression_data(*rows, fit_intercept=fit_intercept, loss=chosen, shards=ALL_HERE)
    else:
        class_weight = layers.setting("class_weight", None, None)
        data = classification_data(*rows, loss=chosen, class_weight=class_weight, shards=ALL_HERE)
        if isinstance(chosen, LogLoss) and len(data.classes) == n_outputs == 2:
            data = replace(data, Y=np.hstack([1.0 - data.Y, data.Y]), loss=LOSSES["softmax"])
    _check_outputs(layers, data, loss)
    return replace(data, patches=layers.patches)


def _check_not_clipped(layers: Layers, data: TrainingData, caller: str) -> None:
    """Refuse rows that the network clips, as it is no network of the problem there."""
    if layers.clipped is None:
        return
    inputs, rows = layers.clipped.coordinates, data.rows.on_cpu()
    low, high = inputs.limits
    slack = CLIPPED_TOLERANCE * (high - low)
    Z = rows.dot(inputs.coefs) + inputs.intercepts
    n_outside = ((low - slack > Z) | (high + slack < Z)).any(axis=1).sum()
    if n_outside:
        raise ValueError(
            f"{caller} judges a network of clip=True on rows that are inside the range of its "
            f"training rows, where it clips nothing. {n_outside} of {len(rows)} distinct rows are "
            "outside."
        )


def _default_loss(layers: Trained, y: Any) -> str:
    """Return the loss of an estimator's kind, or the one that y calls for."""
    if layers.estimator is not None:
        return "log_loss" if is_classifier(layers.estimator) else "squared_error"
    return loss_for(natural_array(y, "y"))


def _check_outputs(layers: Trained, data: TrainingData, loss: str | Loss) -> None:
    """Refuse a network whose outputs are not those of the targets."""
    trained = layers.setting("classes_", None, data.classes)
    if not np.array_equal(trained, data.classes):
        raise ValueError(
            f"y has the classes {data.classes.tolist()}, but the network was trained on "
            f"{np.asarray(trained).tolist()}."
        )
    n_outputs, needed = layers.n_outputs, data.Y.shape[1]
    if n_outputs != needed:
        classes = f"{len(data.classes)} classes" if len(data.classes) else f"{needed} columns"
        raise ValueError(
            f"The network has {n_outputs} outputs, but loss={loss!r} for the {classes} of y needs "
            f"{needed}. (For a regression target of integers pass loss='squared_error'.)"
        )


def _neurons(layers: Layers, data: TrainingData, problem: Problem, whitening: Whitening) -> Neurons:
    """Return the network in the whitened coordinates, where it computes the same function."""
    images = data.rows.on_cpu()
    rows, weights = images.to_array(), data.weights
    if data.patches is not None:
        rows, weights = data.patches.rows(images).to_array(), data.patches.weights(weights)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        network = layers.folded(rows, weights)
        output = network.forward(images)
    if not np.isfinite(output).all():
        raise ValueError("The network's output on X is not finite.")
    _check_expressible(network, rows, whitening)
    neurons = neurons_of_network(network, whitening, target=data.target)
    check_output_bias(neurons, problem)
    return neurons


def check_output_bias(neurons: Neurons, problem: Problem) -> None:
    """Refuse a network with an intercept where the problem has none."""
    if not problem.fit_intercept and neurons.intercept.any():
        raise ValueError(
            "The network has an output bias, which is not part of the problem with "
            "fit_intercept=False."
        )


def _check_expressible(network: Network, X: np.ndarray, whitening: Whitening) -> None:
    """Refuse hidden units that depend on directions of X outside the whitening."""
    W = network.coefs[0]
    values = np.abs(X @ W + network.intercepts[0]).max(axis=0)
    centred = X - whitening.mean
    lost = np.abs(centred @ (W - whitening.projected(W))).max(axis=0)
    # On nearly equal columns weights are large and cancel: rounding is relative to the terms.
    rounding = np.finfo(float).eps * (np.abs(centred) @ np.abs(W)).max(axis=0)
    beyond = lost > EXPRESSION_TOLERANCE * values + ROUNDINGS_OF_TERMS * rounding
    if beyond.any():
        raise ValueError(
            f"{beyond.sum()} of {len(beyond)} hidden units depend on directions of X that are not "
            f"among the {whitening.n_components} kept, so the network is none of the problem's. "
            "Keep more with n_components (None for all), or train the network on X projected "
            "to these directions."
        )

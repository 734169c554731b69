"""From validated X and y to what a problem is stated on: rows, encoded targets and their loss."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any

import numpy as np
from sklearn.utils import compute_class_weight
from sklearn.utils.multiclass import type_of_target

from sklearn_convexbn.data._canonical import (
    TargetScaling,
    balanced_class_weights,
    canonical_data,
    one_hot,
    scale_target,
    summable_weights,
)
from sklearn_convexbn.data._patches import PatchGrid
from sklearn_convexbn.data._rows import Rows
from sklearn_convexbn.losses import LogLoss, SquaredError
from sklearn_convexbn.losses._base import Loss
from sklearn_convexbn.support._sharding import Shards


@dataclass(frozen=True)
class TrainingData:
    """Canonical rows with encoded targets.

    Attributes
    ----------
    rows : Rows
        n distinct rows of X in canonical order.
    Y : ndarray of shape (n, C)
        Encoded (and scaled) targets.
    weights : ndarray of shape (n,)
        Positive.
    loss : Loss
        The loss that Y is encoded for.
    shards : Shards
        Where the other rows are, if these are not all.
    target : TargetScaling or None
        How to return to a regression target's own units.
    classes : ndarray of shape (n_classes,)
        The labels of a classification target, sorted; empty for regression.
    patches : PatchGrid or None
        How rows, which are images then, are cut into patches.
    """

    rows: Rows
    Y: np.ndarray
    weights: np.ndarray
    loss: Loss
    shards: Shards
    target: TargetScaling | None = None
    classes: np.ndarray = field(default_factory=lambda: np.zeros(0))
    patches: PatchGrid | None = None

    @property
    def scale(self) -> float:
        """Return the unit of the target; a mean loss scales with :attr:`unit`."""
        return 1.0 if self.target is None else self.target.scale

    @property
    def unit(self) -> float:
        """Return the unit of a mean loss."""
        return self.scale**self.loss.degree

    def cut(self, grid: PatchGrid | None) -> TrainingData:
        """Return the data with rows that are images cut into patches; None leaves them."""
        if grid is None:
            return self
        return replace(self, patches=grid.fitted(self.rows.on_cpu(), self.weights))


def loss_for(y: Any) -> str:
    """Return "log_loss" for one column of strings, booleans or integers, else "squared_error".

    Raises
    ------
    ValueError
        Without a y.
    """
    if y is None:
        raise ValueError("A target is needed, but y is None.")
    labels = np.asarray(y).dtype.kind != "f" and type_of_target(y) in ("binary", "multiclass")
    return "log_loss" if labels else "squared_error"


def kind_of_target(loss: str | Loss, y: Any) -> str:
    """Return whether a loss takes y for "labels" or for "numbers".

    Where it takes both, numbers.
    """
    if isinstance(loss, str):
        return "labels" if loss == "log_loss" else "numbers"
    return "numbers" if "numbers" in loss.accepts else "labels"


def regression_data(
    X: Any,
    y: np.ndarray,
    sample_weight: np.ndarray,
    *,
    fit_intercept: bool,
    loss: Loss | None = None,
    shards: Shards,
) -> TrainingData:
    """Encode a regression target: centred (with an intercept) and scaled to unit variance.

    For a loss that does not rescale its targets they stay as they are.

    Parameters
    ----------
    X : ndarray or sparse matrix of shape (n, d)
    y : ndarray of shape (n,) or (n, C)
    sample_weight : ndarray of shape (n,)
        Non-negative.
    fit_intercept : bool
    loss : Loss, default=None
        None is the squared error.
    shards : Shards

    Returns
    -------
    TrainingData

    Raises
    ------
    ValueError
        For targets that the loss is not for.
    """
    loss = SquaredError() if loss is None else loss
    weights = summable_weights(sample_weight, shards)
    data = canonical_data(X, np.asarray(y, dtype=np.float64), weights)
    Y, target = data.y.reshape(len(data.rows), -1), None
    _check_range(Y, loss, fit_intercept=fit_intercept, shards=shards)
    if loss.rescales_target:
        Y, target = scale_target(Y, data.weights, fit_intercept=fit_intercept, shards=shards)
    loss, shards = loss.of_outputs(Y.shape[1]), shards.of_rows(data.keys)
    return TrainingData(data.rows, Y, data.weights, loss, shards, target)


def _check_range(Y: np.ndarray, loss: Loss, *, fit_intercept: bool, shards: Shards) -> None:
    """Refuse targets (n, C) outside the range of a loss, or all at one end of it."""
    low, high = loss.target_range
    if not np.isfinite([low, high]).any():
        return
    largest = [shards.maximum(float(end)) for end in Y.max(axis=0)]
    smallest = [-shards.maximum(-float(end)) for end in Y.min(axis=0)]
    if min(smallest) < low or max(largest) > high:
        raise ValueError(
            f"The {loss.name} loss needs targets in [{low:g}, {high:g}]. Got y from "
            f"{min(smallest):g} to {max(largest):g}."
        )
    ends = [end for end, top in zip(smallest, largest, strict=True) if end == top in (low, high)]
    if fit_intercept and ends:
        raise ValueError(
            f"With the {loss.name} loss no constant is the best for targets that are all "
            f"{ends[0]:g}: some must differ in every column of y."
        )


def classification_data(
    X: Any,
    y: np.ndarray,
    sample_weight: np.ndarray,
    *,
    loss: Loss,
    class_weight: dict[Any, float] | str | None = None,
    shards: Shards,
) -> TrainingData:
    """Encode class labels: one output for two classes, one-hot targets for more.

    Parameters
    ----------
    X : ndarray or sparse matrix of shape (n, d)
    y : ndarray of shape (n,)
        Labels.
    sample_weight : ndarray of shape (n,)
        Non-negative.
    loss : Loss
    class_weight : dict, "balanced" or None
    shards : Shards

    Returns
    -------
    TrainingData

    Raises
    ------
    ValueError
        For fewer than two classes of positive weight, or invalid class weights.
    """
    weights = summable_weights(sample_weight, shards)
    if isinstance(class_weight, dict):
        weights = weights * _weights_of_labels(y, class_weight, shards)
    classes = _labels(y[weights > 0], shards)
    if len(classes) < 2:
        raise ValueError(
            "Classification needs samples of at least 2 classes with positive weight, but the "
            f"data contains only one class: {classes.tolist()}."
        )
    codes = np.searchsorted(classes, y).clip(max=len(classes) - 1)  # those of weight 0 drop out
    data = canonical_data(X, codes, weights)
    weights = data.weights
    if class_weight == "balanced":
        weights = weights * balanced_class_weights(data.y, weights, len(classes), shards)[data.y]
    Y, of_labels = _encode(data.y, len(classes), loss)
    shards = shards.of_rows(data.keys)
    return TrainingData(data.rows, Y, weights, of_labels, shards, classes=classes)


def _labels(y: np.ndarray, shards: Shards) -> np.ndarray:
    """Return the labels that occur in y (n,), sorted, on any process."""
    return np.unique(shards.joined(np.unique(y)))


def _weights_of_labels(y: np.ndarray, class_weight: dict[Any, float], shards: Shards) -> np.ndarray:
    """Return the class weight of each row's label (n,)."""
    classes = _labels(y, shards)
    if not all(isinstance(weight, Real) for weight in class_weight.values()):
        raise ValueError(f"class_weight must be a dict of numbers. Got {class_weight!r}.")
    per_class = compute_class_weight(class_weight, classes=classes, y=classes)
    if (per_class < 0).any() or not np.isfinite(per_class).all():
        raise ValueError(f"class_weight must be finite and non-negative. Got {class_weight!r}.")
    return per_class[np.searchsorted(classes, y)]


def _encode(codes: np.ndarray, n_classes: int, loss: Loss) -> tuple[np.ndarray, Loss]:
    """Return the targets (n, C) of class codes and the loss they are for."""
    if n_classes > 2:
        return one_hot(codes, n_classes), loss.of_outputs(n_classes)
    y = codes[:, None].astype(np.float64)
    return (y if isinstance(loss, LogLoss) else 2.0 * y - 1.0), loss.of_outputs(1)

"""What estimators do by the kind of their target: encode it, and predict it."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from sklearn.utils.metaestimators import available_if

from sklearn_convexbn.data._encoding import TrainingData, classification_data, regression_data
from sklearn_convexbn.data._validation import validated_data
from sklearn_convexbn.estimators._base import BaseNetwork
from sklearn_convexbn.losses import LogLoss, loss_constraint, resolved_loss
from sklearn_convexbn.losses._base import Loss, softmax
from sklearn_convexbn.support._arrays import Array, array_namespace, as_numpy, like
from sklearn_convexbn.support._compat import StrOptions
from sklearn_convexbn.support._sharding import Shards

#: Outputs of a classifier that differ by this, relative to the larger one if that is above 1, are
#: equal: a softmax cannot tell outputs apart that differ by one or two roundings of 1.
TIE = 8 * float(np.finfo(float).eps)


class NumbersMixin(BaseNetwork):
    """Targets that are numbers, of one output or several, and their prediction."""

    loss: str | Loss

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {"loss": loss_constraint("numbers")}

    def _validated(self, X: Any, y: Any, sample_weight: Any) -> tuple[Any, np.ndarray, np.ndarray]:
        """Return the data as arrays and note their shape."""
        X = self._flattened(X, reset=True)
        validated = validated_data(X, y, sample_weight, labels=False, estimator=self, reset=True)
        self._single_output = validated[1].ndim == 1
        return validated

    def _encode(
        self, X: Any, y: np.ndarray, sample_weight: np.ndarray, shards: Shards
    ) -> TrainingData:
        return regression_data(
            X,
            y,
            sample_weight,
            fit_intercept=self.fit_intercept,
            loss=resolved_loss(self.loss, "numbers"),
            shards=shards,
        )

    def predict(self, X: Any) -> Any:
        """Predict the target.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)

        Returns
        -------
        y : ndarray of shape (n_samples,) or (n_samples, n_outputs)
            The network's output, for ``loss="poisson"`` its exponential.
        """
        F = self._raw_predict(X)
        F = self.loss_.prediction(F)
        return F[:, 0] if self._single_output else F

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


def _has_probabilities(estimator: Any) -> bool:
    if estimator.loss == "log_loss" or isinstance(estimator.loss, LogLoss):
        return True
    raise AttributeError(
        f"probabilities are available for loss='log_loss', not for loss={estimator.loss!r}"
    )


def _with_ties(F: Array) -> Array:
    """Return outputs (n, C) of which those within rounding of a row's largest are equal to it.

    The largest probability then belongs to the classes of the largest output and to no others, so
    that all methods agree on the class: the first of equal ones. A single output is compared with
    zero, the output of the other class.
    """
    xp = array_namespace(F)
    top = xp.amax(F, axis=1, keepdims=True) if F.shape[1] > 1 else xp.zeros_like(F)
    return xp.where(abs(F - top) <= TIE * abs(top).clip(min=1.0), top, F)


def _per_class(F: Array) -> Array:
    """Return one output a class: for two classes, zero and the single output."""
    xp = array_namespace(F)
    return F if F.shape[1] > 1 else xp.concatenate([xp.zeros_like(F), F], axis=1)


class LabelsMixin(BaseNetwork):
    """Targets that are labels of classes, and the prediction of these and of probabilities."""

    loss: str | Loss
    class_weight: dict[Any, float] | str | None

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "loss": loss_constraint("labels"),
        "class_weight": [dict, StrOptions({"balanced"}), None],
    }

    def _validated(self, X: Any, y: Any, sample_weight: Any) -> tuple[Any, np.ndarray, np.ndarray]:
        """Return the data as arrays and note their shape."""
        X = self._flattened(X, reset=True)
        return validated_data(X, y, sample_weight, labels=True, estimator=self, reset=True)

    def _encode(
        self, X: Any, y: np.ndarray, sample_weight: np.ndarray, shards: Shards
    ) -> TrainingData:
        return classification_data(
            X,
            y,
            sample_weight,
            loss=resolved_loss(self.loss, "labels"),
            class_weight=self.class_weight,
            shards=shards,
        )

    def _kind_of_target(self, y: np.ndarray) -> str:
        return f"dtype {y.dtype.kind!r}"

    def decision_function(self, X: Any) -> Any:
        """Return the network's output.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)

        Returns
        -------
        scores : ndarray of shape (n_samples,) or (n_samples, n_classes)
            For two classes one score, positive for ``classes_[1]``. Scores that differ by
            rounding errors only are equal.
        """
        F = _with_ties(self._raw_predict(X))
        return F[:, 0] if F.shape[1] == 1 else F

    def predict(self, X: Any) -> Any:
        """Predict class labels, the first one of those of equal scores.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)

        Returns
        -------
        y : ndarray of shape (n_samples,)
        """
        scores = self.decision_function(X)
        codes = 1 * (scores > 0) if scores.ndim == 1 else scores.argmax(axis=1)
        labels = self.classes_[as_numpy(codes)]
        return like(labels, scores) if labels.dtype.kind in "biuf" else labels

    @available_if(_has_probabilities)
    def predict_proba(self, X: Any) -> Any:
        """Return class probabilities, for ``loss="log_loss"``.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)

        Returns
        -------
        probabilities : ndarray of shape (n_samples, n_classes)
            Columns in the order of ``classes_``.
        """
        return softmax(_per_class(_with_ties(self._raw_predict(X))))

    @available_if(_has_probabilities)
    def predict_log_proba(self, X: Any) -> Any:
        """Return logarithms of class probabilities, for ``loss="log_loss"``.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)

        Returns
        -------
        log_probabilities : ndarray of shape (n_samples, n_classes)
        """
        F = _per_class(_with_ties(self._raw_predict(X)))
        xp = array_namespace(F)
        F = F - xp.amax(F, axis=1, keepdims=True)
        return F - xp.log(xp.exp(F).sum(axis=1))[:, None]

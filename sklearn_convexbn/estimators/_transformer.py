"""The hidden layer of a fitted network as a scikit-learn transformer."""

from __future__ import annotations

from typing import Any, Self

from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    MetaEstimatorMixin,
    TransformerMixin,
    clone,
)
from sklearn.utils import get_tags
from sklearn.utils.validation import check_is_fitted

from sklearn_convexbn.data._validation import validated_rows
from sklearn_convexbn.estimators._base import BaseConvexBN, check_own, unchanged_on_failure
from sklearn_convexbn.support._sharding import current_shards


class ConvexBNTransformer(
    ClassNamePrefixFeaturesOutMixin, MetaEstimatorMixin, TransformerMixin, BaseEstimator
):
    """Hidden activations of a network trained in convex form, as features.

    Trains `estimator` on X and y and maps X to the outputs of its hidden layer, so that layers
    can be stacked in a pipeline. Each layer is optimal, as its certificate says, for its own
    two-layer training problem; the stack as a whole is not. The number of columns is that of
    the network's hidden units: the fit decides it, and from :func:`alpha_max` on it is zero.

    Parameters
    ----------
    estimator : estimator of this package
        A :class:`ConvexBNClassifier`, :class:`ConvexBNRegressor`, or a cross-validated form of
        these, of images where it has `patches`. It is cloned, not modified.

    Attributes
    ----------
    estimator_ : estimator of this package
        The fitted clone of `estimator`.
    n_features_in_ : int
        Number of columns of X.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Only when X has feature names that are all strings.

    See Also
    --------
    replace_head : Replaces the last layers of a torch network.
    sklearn.feature_selection.SelectFromModel : Keeps columns of X by a fitted model.

    Notes
    -----
    A network without hidden units gives an array of shape (n, 0), which the next step of a
    pipeline refuses with a ValueError ("Found array with 0 feature(s)"). A smaller `alpha` gives
    hidden units.

    Under :func:`row_shards` a fit is that of `estimator`, over the rows of all processes, and
    transform maps the rows it is given.

    Examples
    --------
    >>> from sklearn.datasets import load_wine
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn_convexbn import ConvexBNClassifier, ConvexBNTransformer
    >>> X, y = load_wine(return_X_y=True)
    >>> layer = ConvexBNTransformer(ConvexBNClassifier(alpha=0.1, random_state=0))
    >>> model = make_pipeline(layer, ConvexBNClassifier(alpha=0.1, random_state=0)).fit(X, y)
    >>> model[0].transform(X).shape == (178, model[0].estimator_.n_neurons_)
    True
    """

    def __init__(self, estimator: BaseConvexBN) -> None:
        self.estimator = estimator

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train a clone of the estimator.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            Target, as `estimator` takes it.
        sample_weight : array-like of shape (n_samples,), default=None
            Non-negative. A weight of 2 equals the row twice, 0 equals no row.

        Returns
        -------
        self

        Raises
        ------
        TypeError
            If `estimator` is no estimator of this package.
        ValueError
            For invalid parameters or data, as the fit of `estimator` raises. The transformer
            then stays as it was.
        """
        with unchanged_on_failure(self):
            with current_shards().raised_together():
                check_own(self.estimator, type(self).__name__)
                fitted = clone(self.estimator)
            self.estimator_ = fitted.fit(X, y, sample_weight=sample_weight)
            self.n_features_in_ = fitted.n_features_in_
            self.__dict__.pop("feature_names_in_", None)
            if hasattr(fitted, "feature_names_in_"):
                self.feature_names_in_ = fitted.feature_names_in_
        return self

    def transform(self, X: Any) -> Any:
        """Return the outputs of the hidden units.

        These are ``relu(X @ coefs_[0] + intercepts_[0])`` with the attributes of `estimator_`; for
        ``activation="gated_relu"`` the relu is replaced by the gates' 0/1 values, and with
        ``clip=True`` the whitened coordinates of rows are clipped first.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)

        Returns
        -------
        H : ndarray of shape (n_samples, n_neurons), or (n_samples, n_neurons * n_cells)
            In float64; a tensor where X is one under array API dispatch. The units of a network
            with `patches` are pooled; the cells of a unit are next to each other.
        """
        check_is_fitted(self)
        fitted = self.estimator_
        X = validated_rows(self, fitted._flattened(X, reset=False))
        return fitted._network().hidden_activations(X)

    @property
    def _n_features_out(self) -> int:
        """Number of columns that transform returns, which scikit-learn names."""
        return len(self.estimator_.coefs_[1])

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.target_tags.required = True
        if isinstance(self.estimator, BaseConvexBN):
            inner = get_tags(self.estimator)
            tags.target_tags.multi_output = inner.target_tags.multi_output
        return tags

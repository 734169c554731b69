"""How much a network depends on each column, as bars."""

from __future__ import annotations

from typing import Any, Self

import numpy as np

from sklearn_convexbn.displays._drawing import (
    check_axes,
    fitted_model,
    import_pyplot,
)

#: Columns that are drawn by default.
MOST_BARS = 20


class FeatureWeightsDisplay:
    """Path mass of each column of X in a path network, the largest on top.

    A bar bounds how far the output can move when the column moves by its standard deviation.
    It is recommended to use :meth:`from_estimator`. All parameters are stored as attributes.

    Parameters
    ----------
    feature_weights : array-like of shape (n_features,)
        Non-negative.
    feature_names : array-like of shape (n_features,), default=None
        None takes the numbers of the columns.

    Attributes
    ----------
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure
    bars_ : matplotlib BarContainer
        The largest first.
    order_ : ndarray of int
        The columns that are drawn, the largest first; of equal ones the first.

    See Also
    --------
    PathNetRegressor : Has feature weights, as PathNetClassifier.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn_convexbn import FeatureWeightsDisplay, PathNetRegressor
    >>> X, y = load_diabetes(return_X_y=True, as_frame=True)
    >>> model = PathNetRegressor(alpha=0.1, random_state=0).fit(X, y)
    >>> display = FeatureWeightsDisplay.from_estimator(model, max_features=2)
    >>> sorted(label.get_text() for label in display.ax_.get_yticklabels())
    ['bmi', 's5']
    """

    _suited = "PathNet estimator"

    def __init__(self, *, feature_weights: Any, feature_names: Any = None) -> None:
        weights = self.feature_weights = np.asarray(feature_weights, dtype=float)
        if weights.ndim != 1 or not len(weights) or not (weights >= 0).all():
            raise ValueError(
                "feature_weights must be a non-empty list of numbers that are not negative, got "
                f"{feature_weights!r}."
            )
        names = range(len(weights)) if feature_names is None else feature_names
        self.feature_names = np.array([str(name) for name in names], dtype=object)
        if len(self.feature_names) != len(weights):
            raise ValueError(
                f"feature_names must have a name for each of {len(weights)} columns, got "
                f"{len(self.feature_names)}."
            )

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        *,
        max_features: int = MOST_BARS,
        ax: Any = None,
        bar_kw: dict[str, Any] | None = None,
    ) -> Self:
        """Draw the feature weights of a fitted estimator.

        Parameters
        ----------
        estimator : estimator or Pipeline
            A fitted PathNet estimator, or a fitted pipeline that ends in one.
        max_features : int, default=20
            Columns that are drawn at most.
        ax : matplotlib Axes, default=None
            Axes to draw on. None makes a figure.
        bar_kw : dict, default=None
            Keywords of matplotlib's ``barh``.

        Returns
        -------
        display : FeatureWeightsDisplay

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        TypeError
            If it has no feature weights.
        ValueError
            For more than one axes, or less than one column.
        ImportError
            If matplotlib is not installed.
        """
        model = fitted_model(estimator, cls, needs=("feature_weights_",))
        names = getattr(model, "feature_names_in_", None)
        display = cls(feature_weights=model.feature_weights_, feature_names=names)
        return display.plot(ax, max_features=max_features, bar_kw=bar_kw)

    def plot(
        self,
        ax: Any = None,
        *,
        max_features: int = MOST_BARS,
        bar_kw: dict[str, Any] | None = None,
    ) -> Self:
        """Draw the bars.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on. None makes a figure.
        max_features : int, default=20
            Columns that are drawn at most.
        bar_kw : dict, default=None
            Keywords of matplotlib's ``barh``.

        Returns
        -------
        display : FeatureWeightsDisplay

        Raises
        ------
        ValueError
            For more than one axes, or less than one column.
        ImportError
            If matplotlib is not installed.
        """
        if max_features < 1:
            raise ValueError(f"max_features must be at least 1, got {max_features!r}.")
        pyplot = import_pyplot(f"{type(self).__name__}.plot")
        if ax is None:
            _, ax = pyplot.subplots(layout="constrained")
        (self.ax_,) = check_axes(ax, (1,))
        self.figure_ = self.ax_.figure
        self.order_ = np.argsort(-self.feature_weights, kind="stable")[:max_features]
        places = np.arange(len(self.order_))
        style = {"color": "C0"} | (bar_kw or {})
        self.bars_ = self.ax_.barh(places, self.feature_weights[self.order_], **style)
        self.ax_.set_yticks(places, labels=list(self.feature_names[self.order_]))
        self.ax_.invert_yaxis()
        self.ax_.set_xlabel("path mass: largest change of the output per standard deviation")
        used = int((self.feature_weights > 0).sum())
        self.ax_.set_title(f"{used} of {len(self.feature_weights)} columns are used")
        return self

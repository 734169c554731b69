"""Score, neurons and objective along the regularization path."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any, Self

import numpy as np
from sklearn.base import is_regressor

from sklearn_convexbn.displays._drawing import (
    MOST_MARKERS,
    check_axes,
    fitted_model,
    import_pyplot,
    lacks_attribute,
    merged_style,
    spans_decades,
    sparse_log_ticks,
)


class RegularizationPathDisplay:
    """Score, neurons and objective along alpha, one line for each setting tried.

    Means over the folds; the score has a band of one standard error to both sides and the chosen
    model is marked. It is recommended to use :meth:`from_estimator`. All parameters are stored
    as attributes.

    Parameters
    ----------
    alphas : array-like of shape (n_alphas,)
        Positive.
    scores : array-like of shape (n_grid, n_alphas, n_folds)
        Test scores, or errors.
    n_neurons : array-like of shape (n_grid, n_alphas, n_folds)
        Negative, as scores and objectives are NaN, where a path has ended before; nothing is drawn
        there.
    objective : array-like of shape (n_grid, n_alphas, n_folds)
        Training objective.
    n_components_grid : sequence of int, float or None, default=(None,)
        Setting of `n_components` of each line.
    best_index : tuple of two ints, default=None
        Index of the chosen model among the lines and `alphas`. None marks nothing.
    score_name : str, default="score"
        Name of the scores, for the axis.
    shrinkage_grid : sequence of float or str, default=None
        Setting of `shrinkage` of each line, which names it where there are several.
    inner_width_grid : sequence of int, default=None
        Of path networks, setting of `inner_width` of each line, in place of `n_components_grid`.

    Attributes
    ----------
    axes_ : ndarray of matplotlib Axes of shape (3,)
        Axes with score, neurons and objective.
    figure_ : matplotlib Figure
    lines_ : list of three lists of matplotlib Line2D
        For each of the axes, one line for each setting.
    bands_ : list of matplotlib FillBetweenPolyCollection
        Standard errors of the scores; empty for a single fold.
    chosen_ : list of matplotlib Line2D
        Markers of the chosen model on the three axes; empty without `best_index`.

    See Also
    --------
    ConvergenceDisplay : How a single fit has converged.
    SpectrumDisplay : The singular values that `n_components` cuts.

    Examples
    --------
    >>> from sklearn_convexbn import RegularizationPathDisplay
    >>> display = RegularizationPathDisplay(
    ...     alphas=[0.1, 0.01],
    ...     scores=[[[0.6, 0.7], [0.8, 0.9]]],
    ...     n_neurons=[[[2, 3], [7, 9]]],
    ...     objective=[[[0.5, 0.4], [0.2, 0.1]]],
    ...     best_index=(0, 1),
    ...     score_name="accuracy",
    ... ).plot()
    >>> display.lines_[0][0].get_label()
    'all directions'
    """

    _suited = "estimator whose name ends in CV"

    def __init__(
        self,
        *,
        alphas: Any,
        scores: Any,
        n_neurons: Any,
        objective: Any,
        n_components_grid: Sequence[int | float | None] = (None,),
        best_index: tuple[int, int] | None = None,
        score_name: str = "score",
        shrinkage_grid: Sequence[float | str] | None = None,
        inner_width_grid: Sequence[int] | None = None,
    ) -> None:
        self.alphas = np.asarray(alphas, dtype=float)
        self.inner_width_grid = None if inner_width_grid is None else list(inner_width_grid)
        self.n_components_grid = list(n_components_grid)
        self.shrinkage_grid = None if shrinkage_grid is None else list(shrinkage_grid)
        if self.shrinkage_grid is not None and len(self.shrinkage_grid) != len(
            self.n_components_grid
        ):
            raise ValueError(
                f"shrinkage_grid must have an entry for each of the {len(self.n_components_grid)} "
                f"entries of n_components_grid, got {len(self.shrinkage_grid)}."
            )
        if self.alphas.ndim != 1 or not (self.alphas > 0).all() or not len(self.alphas):
            raise ValueError(
                f"alphas must be a non-empty list of positive numbers, got {alphas!r}."
            )
        shape = (len(self._settings()), len(self.alphas))
        self.scores = _path("scores", scores, shape)
        neurons = _path("n_neurons", n_neurons, shape)
        self.n_neurons = np.where(neurons < 0, np.nan, neurons)
        self.objective = _path("objective", objective, shape)
        if best_index is not None and not _is_index(best_index, shape):
            raise ValueError(
                f"best_index must be a pair of indices into the grid of {shape[0]} settings and "
                f"the {shape[1]} alphas, got {best_index!r}."
            )
        self.best_index = best_index
        self.score_name = score_name

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        *,
        score_name: str | None = None,
        ax: Any = None,
        line_kw: dict[str, Any] | None = None,
    ) -> Self:
        """Draw the path of a fitted cross-validated estimator.

        Parameters
        ----------
        estimator : estimator or Pipeline
            A fitted cross-validated estimator of this package, such as ConvexBNRegressorCV or
            PathNetClassifierCV, or a fitted pipeline that ends in one.
        score_name : str, default=None
            Name of the scores. None takes "mean squared error" for a regressor, and what
            `scoring` says for a classifier.
        ax : three matplotlib Axes, default=None
            Axes to draw on. None makes a figure.
        line_kw : dict, default=None
            Keywords of matplotlib's ``plot`` for all lines.

        Returns
        -------
        display : RegularizationPathDisplay

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        TypeError
            If it has no path.
        ValueError
            For a wrong number of axes.
        ImportError
            If matplotlib is not installed.
        """
        model = fitted_model(
            estimator, cls, needs=("alphas_", "n_neurons_path_", "objective_path_")
        )
        errors = getattr(model, "mse_path_", None)
        if errors is None and not hasattr(model, "scores_"):
            raise lacks_attribute(model, cls, "mse_path_ or scores_")
        display = cls(
            alphas=model.alphas_,
            scores=model.scores_ if errors is None else errors,
            n_neurons=model.n_neurons_path_,
            objective=model.objective_path_,
            n_components_grid=getattr(model, "n_components_grid_", (None,)),
            best_index=model.best_index_,
            score_name=_score_name(model) if score_name is None else score_name,
            shrinkage_grid=getattr(model, "shrinkage_grid_", None),
            inner_width_grid=getattr(model, "inner_width_grid_", None),
        )
        return display.plot(ax, line_kw=line_kw)

    def plot(self, ax: Any = None, *, line_kw: dict[str, Any] | None = None) -> Self:
        """Draw the three panels.

        Parameters
        ----------
        ax : three matplotlib Axes, default=None
            Axes to draw on. None makes a figure.
        line_kw : dict, default=None
            Keywords of matplotlib's ``plot`` for all lines.

        Returns
        -------
        display : RegularizationPathDisplay

        Raises
        ------
        ValueError
            For a wrong number of axes.
        ImportError
            If matplotlib is not installed.
        """
        pyplot = import_pyplot(f"{type(self).__name__}.plot")
        if ax is None:
            _, ax = pyplot.subplots(1, 3, figsize=(12.8, 4.2), layout="constrained")
        self.axes_ = check_axes(ax, (3,))
        self.figure_ = self.axes_[0].figure
        panels = (
            (self._score_label(), self.scores),
            ("hidden units, mean over folds", self.n_neurons),
            ("training objective, mean over folds", self.objective),
        )
        self.lines_ = []
        self.chosen_: list[Any] = []
        for axes, (label, path) in zip(self.axes_, panels, strict=True):
            means = path.mean(axis=2)
            self.lines_.append(self._plot_lines(axes, means, line_kw))
            self._mark_chosen(axes, means)
            axes.set(xscale="log", xlabel="alpha (weight decay)", ylabel=label)
            if self.alphas.max() < 100.0 * self.alphas.min():
                sparse_log_ticks(axes.xaxis)
        self._plot_bands(self.axes_[0])
        for axes, path in ((self.axes_[0], self.scores), (self.axes_[2], self.objective)):
            if spans_decades(path.mean(axis=2)):
                axes.set_yscale("log")
        if self.best_index is not None:
            i, j = self.best_index
            chosen = f"alpha = {self.alphas[j]:.2g}, {self._settings()[i]}"
            self.axes_[0].set_title(f"chosen: {chosen}")
        # Hidden units become fewer with alpha, which leaves this corner free.
        self.axes_[1].legend(loc="upper right")
        return self

    def _score_label(self) -> str:
        """Name the scores, their mean and their band."""
        n_folds = self.scores.shape[2]
        if n_folds < 2:
            return f"{self.score_name}, one fold"
        return f"{self.score_name}, mean of {n_folds} folds\n(band: one standard error)"

    def _plot_lines(
        self, axes: Any, means: np.ndarray, line_kw: dict[str, Any] | None
    ) -> list[Any]:
        """Draw one line for each setting; return them."""
        marker = "." if len(self.alphas) <= MOST_MARKERS else None
        return [
            axes.plot(
                self.alphas,
                row,
                **merged_style({"color": color, "marker": marker, "label": label}, line_kw),
            )[0]
            for label, row, color in zip(self._settings(), means, self._colors(), strict=True)
        ]

    def _plot_bands(self, axes: Any) -> None:
        """Draw one standard error of the mean to both sides of the scores."""
        self.bands_ = []
        n_folds = self.scores.shape[2]
        if n_folds < 2:
            return
        means = self.scores.mean(axis=2)
        errors = self.scores.std(axis=2, ddof=1) / np.sqrt(n_folds)
        for line, mean, error in zip(self.lines_[0], means, errors, strict=True):
            band = axes.fill_between(
                self.alphas,
                mean - error,
                mean + error,
                color=line.get_color(),
                alpha=0.15,
                linewidth=0,
            )
            self.bands_.append(band)

    def _mark_chosen(self, axes: Any, means: np.ndarray) -> None:
        """Mark the chosen model on one of the axes."""
        if self.best_index is None:
            return
        i, j = self.best_index
        axes.axvline(self.alphas[j], color="0.5", linestyle=":", linewidth=1, zorder=1)
        self.chosen_ += axes.plot(
            [self.alphas[j]],
            [means[i, j]],
            linestyle="",
            marker="*",
            markersize=14,
            color="C3",
            zorder=4,
            label="chosen",
        )

    def _settings(self) -> list[str]:
        """Return the settings of the lines in words."""
        if self.inner_width_grid is not None:
            return [f"{h} inner units" for h in self.inner_width_grid]
        names = [_setting(k) for k in self.n_components_grid]
        if self.shrinkage_grid is None or len(set(self.shrinkage_grid)) == 1:
            return names
        return [
            f"{name}, shrinkage {s}" for name, s in zip(names, self.shrinkage_grid, strict=True)
        ]

    def _colors(self) -> list[Any]:
        """Return one colour for each setting; a sequence of shades where they are many."""
        from matplotlib import colormaps

        count = len(self._settings())
        return [colormaps["viridis"](t) for t in np.linspace(0.0, 0.9, count)]


def _path(name: str, values: Any, shape: tuple[int, int]) -> np.ndarray:
    """Return a path as a float array of shape (n_grid, n_alphas, n_folds)."""
    array = np.asarray(values, dtype=float)
    if array.ndim != 3 or array.shape[:2] != shape or array.shape[2] == 0:
        raise ValueError(
            f"{name} must be of shape (n_grid, n_alphas, n_folds) = ({shape[0]}, {shape[1]}, "
            f"n_folds), got {array.shape}."
        )
    return array


def _is_index(index: Any, shape: tuple[int, int]) -> bool:
    """Return whether `index` is a pair of indices into `shape`."""
    return len(index) == 2 and all(0 <= i < count for i, count in zip(index, shape, strict=True))


def _setting(n_components: int | float | None) -> str:
    """Return a setting of `n_components` in words."""
    if n_components is None:
        return "all directions"
    if isinstance(n_components, Integral):
        return f"{n_components} direction{'s' if n_components > 1 else ''}"
    return f"{100 * n_components:g} % of variance"


def _score_name(model: Any) -> str:
    """Name the scores of a fitted cross-validated estimator."""
    if is_regressor(model):
        return "mean squared error"
    scoring = getattr(model, "scoring", None)
    if scoring is None:
        return "accuracy"
    return scoring.replace("_", " ") if isinstance(scoring, str) else "score"

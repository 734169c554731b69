"""Singular values of the data, and what of them a model keeps."""

from __future__ import annotations

from typing import Any, Self

import numpy as np

from sklearn_convexbn.displays._drawing import (
    check_axes,
    fitted_model,
    import_pyplot,
    integer_ticks,
    merged_style,
)


class SpectrumDisplay:
    """Singular values of the data, with what a fit made of them.

    Gradient descent learns directions of large singular value first, those on the left; batch
    normalization gives all the same say. The picture shows the directions that `n_components`
    kept and, with shrinkage, the standard deviation each of them has after whitening, which is 1
    without. It is recommended to use :meth:`from_estimator`. All parameters are stored as
    attributes.

    Parameters
    ----------
    singular_values : array-like of shape (rank,)
        Positive, decreasing.
    n_components : int, default=None
        Number of directions kept. None keeps all.
    shrinkage : float, default=0.0
        The shrinkage used, in [0, 1].
    damping : array-like of shape (n_components,), default=None
        Standard deviation of the kept directions after whitening with shrinkage, as an
        estimator's `damping_`. Below 1 a direction is damped relative to batch normalization,
        above 1 it is amplified. None is that of a covariance shrunk towards the mean variance,
        ``sigma / sqrt((1 - shrinkage) * sigma**2 + shrinkage * mean(sigma**2))``.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the singular values.
    damping_ax_ : matplotlib Axes or None
        Secondary axes with the damping; None without shrinkage.
    figure_ : matplotlib Figure
    kept_line_ : matplotlib Line2D
    cut_line_ : matplotlib Line2D or None
        Singular values that are cut; None where all are kept.
    cut_ : matplotlib Line2D or None
        Vertical line at the cut.
    damping_line_ : matplotlib Line2D or None

    See Also
    --------
    RegularizationPathDisplay : Scores of several `n_components` along alpha.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn_convexbn import ConvexBNRegressor, SpectrumDisplay
    >>> X, y = load_diabetes(return_X_y=True)
    >>> model = ConvexBNRegressor(alpha=0.1, n_components=5, random_state=0).fit(X, y)
    >>> display = SpectrumDisplay.from_estimator(model)
    >>> display.kept_line_.get_label()
    'kept: 5 of 10'
    """

    _suited = "ConvexBN estimator"

    def __init__(
        self,
        *,
        singular_values: Any,
        n_components: int | None = None,
        shrinkage: float = 0.0,
        damping: Any = None,
    ) -> None:
        sigma = self.singular_values = np.asarray(singular_values, dtype=float)
        if sigma.ndim != 1 or not len(sigma) or not (sigma > 0).all():
            raise ValueError(
                "singular_values must be a non-empty list of positive numbers (it is empty where "
                f"X is constant), got {singular_values!r}."
            )
        self.n_components = len(sigma) if n_components is None else int(n_components)
        if not 1 <= self.n_components <= len(sigma):
            raise ValueError(
                f"n_components must be in [1, {len(sigma)}], the number of singular values, got "
                f"{n_components!r}."
            )
        if not 0.0 <= shrinkage <= 1.0:
            raise ValueError(f"shrinkage must be in [0, 1], got {shrinkage!r}.")
        self.shrinkage = float(shrinkage)
        if damping is None:
            damping = _damping(sigma, self.shrinkage)[: self.n_components]
        self.damping = np.asarray(damping, dtype=float)
        if self.damping.shape != (self.n_components,):
            raise ValueError(
                f"damping must be {self.n_components} numbers, one a direction kept, got an array "
                f"of shape {self.damping.shape}."
            )

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        *,
        ax: Any = None,
        line_kw: dict[str, Any] | None = None,
        damping_kw: dict[str, Any] | None = None,
    ) -> Self:
        """Draw the spectrum of the data a fitted estimator was trained on.

        Parameters
        ----------
        estimator : estimator or Pipeline
            A fitted ConvexBN estimator, or a fitted pipeline that ends in one.
        ax : matplotlib Axes, default=None
            Axes to draw on. None makes a figure.
        line_kw : dict, default=None
            Keywords of matplotlib's ``plot`` for the singular values kept.
        damping_kw : dict, default=None
            The same for the damping.

        Returns
        -------
        display : SpectrumDisplay

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        TypeError
            If it has no singular values.
        ValueError
            For more than one axes, or if X was constant and has no singular values.
        ImportError
            If matplotlib is not installed.
        """
        needs = ("singular_values_", "n_components_", "shrinkage_", "damping_")
        model = fitted_model(estimator, cls, needs=needs)
        display = cls(
            singular_values=model.singular_values_,
            n_components=model.n_components_,
            shrinkage=model.shrinkage_,
            damping=model.damping_,
        )
        return display.plot(ax, line_kw=line_kw, damping_kw=damping_kw)

    def plot(
        self,
        ax: Any = None,
        *,
        line_kw: dict[str, Any] | None = None,
        damping_kw: dict[str, Any] | None = None,
    ) -> Self:
        """Draw singular values, cut and damping.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on. None makes a figure.
        line_kw : dict, default=None
            Keywords of matplotlib's ``plot`` for the singular values kept.
        damping_kw : dict, default=None
            The same for the damping.

        Returns
        -------
        display : SpectrumDisplay

        Raises
        ------
        ValueError
            For more than one axes.
        ImportError
            If matplotlib is not installed.
        """
        pyplot = import_pyplot(f"{type(self).__name__}.plot")
        if ax is None:
            _, ax = pyplot.subplots(layout="constrained")
        (self.ax_,) = check_axes(ax, (1,))
        self.figure_ = self.ax_.figure
        self._plot_spectrum(line_kw)
        self._plot_damping(damping_kw)
        handles = [self.kept_line_, self.cut_line_, self.damping_line_]
        self.ax_.legend(handles=[line for line in handles if line is not None])
        return self

    def _plot_spectrum(self, line_kw: dict[str, Any] | None) -> None:
        """Draw the singular values, those cut in grey."""
        k, rank = self.n_components, len(self.singular_values)
        index = np.arange(1, rank + 1)
        style = {"color": "C0", "marker": "o", "markersize": 4, "label": f"kept: {k} of {rank}"}
        (self.kept_line_,) = self.ax_.plot(
            index[:k], self.singular_values[:k], **merged_style(style, line_kw)
        )
        self.cut_line_ = self.cut_ = None
        if k < rank:
            (self.cut_line_,) = self.ax_.plot(
                index[k:],
                self.singular_values[k:],
                color="0.6",
                marker="o",
                markersize=4,
                markerfacecolor="none",
                label=f"cut: {rank - k}",
            )
            self.cut_ = self.ax_.axvline(k + 0.5, color="0.4", linestyle="--", linewidth=1)
        self.ax_.set(
            yscale="log",
            xlabel="singular direction (gradient descent learns from left to right)",
            ylabel="singular value of the centred X",
        )
        integer_ticks(self.ax_.xaxis, index)

    def _plot_damping(self, damping_kw: dict[str, Any] | None) -> None:
        """Draw the damping of the kept directions on a secondary axis."""
        self.damping_ax_ = self.damping_line_ = None
        if self.shrinkage == 0.0:
            return
        self.damping_ax_ = self.ax_.twinx()
        style = {
            "color": "C1",
            "marker": "s",
            "markersize": 4,
            "linestyle": "--",
            "label": f"scale with shrinkage = {self.shrinkage:.2g}",
        }
        (self.damping_line_,) = self.damping_ax_.plot(
            np.arange(1, self.n_components + 1), self.damping, **merged_style(style, damping_kw)
        )
        color = self.damping_line_.get_color()
        self.damping_ax_.axhline(1.0, color=color, linestyle=":", linewidth=1)
        self.damping_ax_.set_ylim(0.0, 1.08 * max(1.0, self.damping.max()))
        self.damping_ax_.set_ylabel("scale after whitening (1: batch normalization)", color=color)
        self.damping_ax_.tick_params(axis="y", colors=color)
        # The legend belongs to the first axes and has to be above the curve of the second.
        self.ax_.set_zorder(self.damping_ax_.get_zorder() + 1)
        self.ax_.patch.set_visible(False)


_ADJECTIVE = {"exact": "certified", "estimated": "estimated"}


def _damping(sigma: np.ndarray, shrinkage: float) -> np.ndarray:
    """Return the standard deviations (rank,) of directions after whitening with shrinkage."""
    relative = sigma / sigma.max()
    level = np.mean(relative**2)
    return relative / np.sqrt((1.0 - shrinkage) * relative**2 + shrinkage * level)

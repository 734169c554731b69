"""The course of a fit: objective and lower bound closing in on each other."""

from __future__ import annotations

from typing import Any, Self

import numpy as np

from sklearn_convexbn.displays._drawing import (
    MOST_MARKERS,
    check_axes,
    fitted_model,
    import_pyplot,
    integer_ticks,
    merged_style,
    spans_decades,
)

#: What a bound rests on, and what it is called.
_ADJECTIVE = {"exact": "certified", "verified": "estimated", "stopping": "estimated"}


class ConvergenceDisplay:
    """Objective and lower bound of a fit, closing in on each other.

    The upper panel has the objective of the best network so far after each round and the lower
    bound that was known with it, the lower panel the relative gap between the two. Bounds of an
    independent search, and exact ones among estimates, have marks of their own. It is
    recommended to use :meth:`from_estimator`. All parameters are stored as attributes.

    Parameters
    ----------
    objective : array-like of shape (n_rounds,)
        Objective of the best network after each round.
    dual_gap : array-like of shape (n_rounds,)
        Its relative duality gap, ``(objective - lower bound) / objective``.
    time : array-like of shape (n_rounds,)
        Seconds since the start of the fit.
    kind : {"exact", "verified", "stopping"} or array-like of them of shape (n_rounds,)
        What each round's lower bound rests on, as in ``history_["kind"]``: a proof, an independent
        search, or the search that decides when to stop. One for all rounds, or one for each.
    program : str, default="all arrangements"
        The optimum that is bounded, in words.
    tol : float, default=None
        The relative gap at which the fit was to stop; drawn as a line.

    Attributes
    ----------
    lower_bound : ndarray of shape (n_rounds,)
        ``objective * (1 - dual_gap)``: each round's own bound. It may fall again where a later
        search has shown an estimate to be too good.
    ax_ : matplotlib Axes
        Axes with objective and lower bound.
    gap_ax_ : matplotlib Axes or None
        Axes with the relative gap.
    axes_ : ndarray of matplotlib Axes of shape (1,) or (2,)
    figure_ : matplotlib Figure
    objective_line_ : matplotlib Line2D
    bound_line_ : matplotlib Line2D
    verified_ : matplotlib Line2D or None
        Marks of bounds that an independent search gave.
    proven_ : matplotlib Line2D or None
        Marks of bounds that are rigorous, where others are not.
    gap_fill_ : matplotlib FillBetweenPolyCollection
        Band between objective and lower bound.
    gap_line_ : matplotlib Line2D or None
    tol_line_ : matplotlib Line2D or None

    See Also
    --------
    ConvexBNRegressor : Its `history_` and `certificate_` are drawn.
    ConvexBNClassifier : The same for classification.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn_convexbn import ConvergenceDisplay, ConvexBNRegressor
    >>> X, y = load_diabetes(return_X_y=True)
    >>> model = ConvexBNRegressor(alpha=0.1, random_state=0).fit(X, y)
    >>> display = ConvergenceDisplay.from_estimator(model)
    >>> display.bound_line_.get_label()
    'estimated lower bound'
    """

    _suited = "ConvexBN estimator"

    def __init__(
        self,
        *,
        objective: Any,
        dual_gap: Any,
        time: Any,
        kind: Any,
        program: str = "all arrangements",
        tol: float | None = None,
    ) -> None:
        self.objective, self.dual_gap, self.time = _equally_long(
            objective=objective, dual_gap=dual_gap, time=time
        )
        self.kind = _kinds(kind, len(self.objective))
        self.program = program
        self.tol = tol
        self.lower_bound = self.objective * (1.0 - self.dual_gap)

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        *,
        x: str = "rounds",
        ax: Any = None,
        xscale: str = "linear",
        yscale: str | None = None,
        objective_kw: dict[str, Any] | None = None,
        bound_kw: dict[str, Any] | None = None,
    ) -> Self:
        """Draw the convergence of a fitted estimator.

        Parameters
        ----------
        estimator : estimator or Pipeline
            A fitted ConvexBN estimator, or a fitted pipeline that ends in one.
        x : {"rounds", "time"}, default="rounds"
            What the horizontal axis counts.
        ax : matplotlib Axes, or two of them, default=None
            Axes to draw on: one for objective and lower bound alone, a second for the gap. None
            makes a figure with both.
        xscale : {"linear", "log"}, default="linear"
            Scale of the horizontal axis.
        yscale : {"linear", "log"}, default=None
            Scale of objective and lower bound. None takes "log" where the objective falls by
            more than a factor of 20. The gap is always on a logarithmic axis.
        objective_kw : dict, default=None
            Keywords of matplotlib's ``plot`` for the objective.
        bound_kw : dict, default=None
            The same for the lower bound.

        Returns
        -------
        display : ConvergenceDisplay

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        TypeError
            If it keeps no history.
        ValueError
            For an unknown `x` or scale, or a wrong number of axes.
        ImportError
            If matplotlib is not installed.
        """
        model = fitted_model(estimator, cls, needs=("history_", "certificate_"))
        history = model.history_
        display = cls(
            objective=history["objective"],
            dual_gap=history["dual_gap"],
            time=history["time"],
            kind=history["kind"],
            program=model.certificate_.program,
            tol=getattr(model, "tol", None),
        )
        return display.plot(
            ax,
            x=x,
            xscale=xscale,
            yscale=yscale,
            objective_kw=objective_kw,
            bound_kw=bound_kw,
        )

    def plot(
        self,
        ax: Any = None,
        *,
        x: str = "rounds",
        xscale: str = "linear",
        yscale: str | None = None,
        objective_kw: dict[str, Any] | None = None,
        bound_kw: dict[str, Any] | None = None,
    ) -> Self:
        """Draw objective, lower bound and gap.

        Parameters
        ----------
        ax : matplotlib Axes, or two of them, default=None
            Axes to draw on: one for objective and lower bound alone, a second for the gap. None
            makes a figure with both.
        x : {"rounds", "time"}, default="rounds"
            What the horizontal axis counts. Against time, values hold until the next round ends.
        xscale : {"linear", "log"}, default="linear"
            Scale of the horizontal axis.
        yscale : {"linear", "log"}, default=None
            Scale of objective and lower bound. None takes "log" where the objective falls by
            more than a factor of 20. The gap is always on a logarithmic axis.
        objective_kw : dict, default=None
            Keywords of matplotlib's ``plot`` for the objective.
        bound_kw : dict, default=None
            The same for the lower bound.

        Returns
        -------
        display : ConvergenceDisplay

        Raises
        ------
        ValueError
            For an unknown `x` or scale, or a wrong number of axes.
        ImportError
            If matplotlib is not installed.
        """
        pyplot = import_pyplot(f"{type(self).__name__}.plot")
        _one_of("x", x, ("rounds", "time"))
        _one_of("xscale", xscale, ("linear", "log"))
        if yscale is None:
            yscale = "log" if spans_decades(self.objective) else "linear"
        _one_of("yscale", yscale, ("linear", "log"))
        shared = ax is None
        if shared:
            _, ax = pyplot.subplots(
                2, 1, sharex=True, figsize=(6.4, 5.6), height_ratios=(2, 1), layout="constrained"
            )
        self.axes_ = check_axes(ax, (1, 2))
        self.ax_, self.figure_ = self.axes_[0], self.axes_[0].figure
        self.gap_ax_ = self.axes_[1] if len(self.axes_) == 2 else None
        values = np.arange(1, len(self.objective) + 1) if x == "rounds" else self.time
        style = _curve_style(values, x)
        self._plot_values(values, style, objective_kw, bound_kw)
        self._plot_gap(values, style)
        self.ax_.set_yscale(yscale)
        _make_headroom(self.ax_, yscale)
        for axes in self.axes_:
            axes.set_xscale(xscale)
            if x == "rounds" and xscale == "linear":
                integer_ticks(axes.xaxis, values)
            if axes is self.axes_[-1] or not shared:
                axes.set_xlabel("round" if x == "rounds" else "time (seconds)")
        return self

    def _plot_values(
        self,
        values: np.ndarray,
        style: dict[str, Any],
        objective_kw: dict[str, Any] | None,
        bound_kw: dict[str, Any] | None,
    ) -> None:
        """Draw objective and lower bound against `values`, and the band between them."""
        (self.objective_line_,) = self.ax_.plot(
            values,
            self.objective,
            **merged_style(
                {**style, "color": "C0", "label": "objective, best so far"}, objective_kw
            ),
        )
        self._plot_bound(values, style, bound_kw)
        self.gap_fill_ = self.ax_.fill_between(
            values,
            self.lower_bound,
            self.objective,
            step="post" if style["drawstyle"] == "steps-post" else None,
            color="0.5",
            alpha=0.15,
            linewidth=0,
        )
        self.ax_.set_ylabel("training objective")
        rounds = f"{len(values)} round{'s' if len(values) > 1 else ''}"
        gap = f"{100 * self.dual_gap[-1]:.2g} %, {_ADJECTIVE[self.kind[-1]]}"
        self.ax_.set_title(f"gap after {rounds}: {gap}")
        self.ax_.legend(loc="upper right")

    def _plot_bound(
        self, values: np.ndarray, style: dict[str, Any], bound_kw: dict[str, Any] | None
    ) -> None:
        """Draw the lower bounds, and mark those of an independent search and the proven ones."""
        exact = self.kind == "exact"
        bound_style = {
            **style,
            "color": "C1",
            "marker": style["marker"] and "^",
            "linestyle": "-" if exact.all() else "--",
            "label": f"{_ADJECTIVE[self.kind[0]]} lower bound{_about(self.program)}",
        }
        if len(values) == 1:
            bound_style |= {"markersize": 10, "markerfacecolor": "none"}
        (self.bound_line_,) = self.ax_.plot(
            values, self.lower_bound, **merged_style(bound_style, bound_kw)
        )
        verified, some_exact = self.kind == "verified", exact & (not exact.all())
        self.verified_ = self._mark(values, verified, "s", "by an independent search")
        where = ", last round" if exact[-1] and exact.sum() == 1 else ""
        self.proven_ = self._mark(values, some_exact, "D", f"certified lower bound{where}")

    def _mark(self, values: np.ndarray, which: np.ndarray, marker: str, label: str) -> Any:
        """Mark some of the lower bounds, if there are any."""
        if not which.any():
            return None
        (line,) = self.ax_.plot(
            values[which],
            self.lower_bound[which],
            linestyle="",
            marker=marker,
            markersize=7,
            color=self.bound_line_.get_color(),
            label=label,
        )
        return line

    def _plot_gap(self, values: np.ndarray, style: dict[str, Any]) -> None:
        """Draw the relative gap and the tolerance on the second axes, if there are any."""
        self.gap_line_ = self.tol_line_ = None
        if self.gap_ax_ is None:
            return
        (self.gap_line_,) = self.gap_ax_.plot(values, self.dual_gap, **style, color="0.3")
        if self.tol is not None:
            self.tol_line_ = self.gap_ax_.axhline(
                self.tol, color="0.5", linestyle=":", label=f"tol = {self.tol:g}"
            )
            self.gap_ax_.legend(loc="lower left")
        positive = self.dual_gap[self.dual_gap > 0]
        if len(positive) == len(values):
            self.gap_ax_.set_yscale("log")
        elif len(positive):
            self.gap_ax_.set_yscale("symlog", linthresh=positive.min())
        self.gap_ax_.set_ylabel("relative gap")


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> str:
    """Return a value that is allowed.

    Raises
    ------
    ValueError
        For any other.
    """
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}.")
    return value


def _kinds(kind: Any, n_rounds: int) -> np.ndarray:
    """Return what the bound of each round rests on."""
    kinds = np.asarray(kind, dtype=object)
    if kinds.shape not in ((), (n_rounds,)):
        raise ValueError(f"kind must be one str or of shape ({n_rounds},), got {kinds.shape}.")
    kinds = np.broadcast_to(kinds, n_rounds)
    return np.array([_one_of("kind", each, tuple(_ADJECTIVE)) for each in kinds])


def _equally_long(**columns: Any) -> list[np.ndarray]:
    """Return the columns as float arrays, not empty and of one length."""
    arrays = [np.asarray(column, dtype=float) for column in columns.values()]
    shapes = {array.shape for array in arrays}
    if len(shapes) > 1 or arrays[0].ndim != 1 or arrays[0].size == 0:
        found = ", ".join(f"{k}: {a.shape}" for k, a in zip(columns, arrays, strict=True))
        raise ValueError(f"{', '.join(columns)} must be of one shape (n_rounds,), got {found}.")
    return arrays


def _curve_style(values: np.ndarray, x: str) -> dict[str, Any]:
    """Return markers for short curves, and steps against time: a value holds until the next."""
    return {
        "marker": "o" if len(values) <= MOST_MARKERS else "",
        "markersize": 4,
        "drawstyle": "steps-post" if x == "time" else "default",
    }


def _make_headroom(axes: Any, yscale: str) -> None:
    """Leave room for a legend above the curves; never zoom in on rounding errors."""
    low, high = axes.dataLim.intervaly
    if yscale == "log":
        low, high = np.log10([axes.dataLim.minposy, high])
        least = 0.02
    else:
        least = 0.05 * abs(high) or 1.0
    missing = max(least - (high - low), 0.0)
    low, high = low - missing / 2, high + missing / 2
    low, high = low - 0.05 * (high - low), high + 0.35 * (high - low)
    axes.set_ylim((10.0**low, 10.0**high) if yscale == "log" else (low, high))


def _about(program: str) -> str:
    """Say what a bound is about, unless it is the optimum over all networks."""
    return "" if program == "all arrangements" else f" for {program}"

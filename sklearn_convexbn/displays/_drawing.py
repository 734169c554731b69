"""What the displays share: the model they draw, axes and styles."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

#: A quantity that spans more than this factor is drawn on a logarithmic axis by default.
LOG_FACTOR = 20.0

#: Curves of more points than this are drawn without a marker at each.
MOST_MARKERS = 30


def fitted_model(estimator: Any, display: Any, *, needs: tuple[str, ...]) -> Any:
    """Return the estimator, of a pipeline the last step, if it is fitted and has what is needed.

    Raises
    ------
    NotFittedError
        If it is not fitted.
    TypeError
        If an attribute is missing, with the estimators that have it.
    """
    model = estimator[-1] if isinstance(estimator, Pipeline) else estimator
    check_is_fitted(model)
    for name in needs:
        if not hasattr(model, name):
            raise lacks_attribute(model, display, name)
    return model


def lacks_attribute(model: Any, display: Any, attribute: str) -> TypeError:
    """Return the error for an estimator that has not what a display draws."""
    hint = " Pass its best_estimator_." if hasattr(model, "best_estimator_") else ""
    return TypeError(
        f"{display.__name__} needs a fitted {display._suited}, or a pipeline that ends in one: "
        f"{type(model).__name__} has no {attribute}.{hint}"
    )


def import_pyplot(caller: str) -> Any:
    """Import matplotlib.pyplot, or say how to install it."""
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError(
            f"{caller} needs matplotlib. Install it with `pip install matplotlib`."
        ) from error
    return pyplot


def check_axes(ax: Any, counts: tuple[int, ...]) -> np.ndarray:
    """Return axes given alone or in a sequence as an array, if their number is one of `counts`."""
    from matplotlib.axes import Axes

    axes = np.asarray(ax, dtype=object).ravel()
    if not all(isinstance(a, Axes) for a in axes):
        raise TypeError(f"ax must be matplotlib Axes, or a sequence of them, got {ax!r}.")
    if len(axes) not in counts:
        expected = " or ".join(str(count) for count in counts)
        raise ValueError(f"ax must have {expected} Axes, got {len(axes)}.")
    return axes


def merged_style(defaults: dict[str, Any], own: dict[str, Any] | None) -> dict[str, Any]:
    """Return line keywords, the user's ahead of the defaults whatever alias they use."""
    from matplotlib.cbook import normalize_kwargs
    from matplotlib.lines import Line2D

    return {**defaults, **normalize_kwargs(own or {}, Line2D)}


def spans_decades(values: np.ndarray) -> bool:
    """Return whether positive values, or NaN, span orders of magnitude: a log axis is better."""
    return bool(np.nanmin(values) > 0 and np.nanmax(values) > LOG_FACTOR * np.nanmin(values))


def integer_ticks(axis: Any, values: np.ndarray) -> None:
    """Put ticks at integers only, from the first value on."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    first, last = values[0], values[-1]
    room = max(0.6, 0.03 * (last - first))
    axis.axes.set_xlim(first - 0.6, last + room)


def sparse_log_ticks(axis: Any) -> None:
    """Label 1, 2 and 5 in each decade only: labels of a short logarithmic axis would collide."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())

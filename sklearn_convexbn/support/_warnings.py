"""Warnings that point at the user's line."""

from __future__ import annotations

import sys
import warnings

#: Packages whose frames stand between a user's call and a warning of its fit.
PASSED_OVER = {"sklearn_convexbn", "sklearn", "contextlib", "functools", "joblib"}


def warn_caller(message: str, category: type[Warning]) -> None:
    """Warn at the line that called into this package or scikit-learn, whatever is between.

    How many frames these are depends on decorators, context managers and meta-estimators. Where no
    other frame is left, as in a worker process, the warning points at the outermost one.
    """
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and _package(frame.f_globals) in PASSED_OVER:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def _package(names: dict[str, object]) -> str:
    """Return the top-level package of a frame, given its globals."""
    return str(names.get("__name__", "")).partition(".")[0]

"""The one place for what scikit-learn offers without a public form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.utils._param_validation import (
    Interval,
    RealNotInt,
    StrOptions,
    validate_parameter_constraints,
)
from sklearn.utils.validation import _check_sample_weight

try:
    from sklearn.callback import CallbackSupportMixin, with_callbacks
except ImportError:  # scikit-learn < 1.9 has no callbacks

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Stands for scikit-learn's class of this name; supports nothing."""

    def with_callbacks(method: Callable[..., Any]) -> Callable[..., Any]:
        """Return the method as it is."""
        return method


__all__ = [
    "CallbackSupportMixin",
    "Interval",
    "RealNotInt",
    "StrOptions",
    "check_arguments",
    "check_parameters",
    "check_sample_weight",
    "with_callbacks",
]


def check_parameters(estimator: Any, constraints: dict[str, list[Any]]) -> None:
    """Validate an estimator's parameters; messages name the parameter and its range.

    Raises
    ------
    ValueError
        scikit-learn's InvalidParameterError (also a TypeError).
    """
    check_arguments(type(estimator).__name__, estimator.get_params(deep=False), constraints)


def check_arguments(
    caller: str, arguments: dict[str, Any], constraints: dict[str, list[Any]]
) -> None:
    """Validate the arguments of a function or class named `caller` by their constraints.

    Raises
    ------
    ValueError
        scikit-learn's InvalidParameterError (also a TypeError).
    """
    validate_parameter_constraints(constraints, arguments, caller_name=caller)


def check_sample_weight(sample_weight: Any, X: np.ndarray) -> np.ndarray:
    """Return non-negative float64 weights (n,), at least one of them positive.

    Raises
    ------
    ValueError
        For weights of a wrong shape, negative, not finite or all zero.
    """
    weights = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
    if not weights.any():
        raise ValueError(
            "sample_weight is zero for every sample: at least one weight must be non-zero."
        )
    return weights

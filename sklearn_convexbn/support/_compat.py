"""The one place for what scikit-learn offers without a public form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from sklearn.metrics import make_scorer
from sklearn.utils import Bunch
from sklearn.utils._param_validation import (
    Interval,
    RealNotInt,
    StrOptions,
    validate_parameter_constraints,
)
from sklearn.utils.metadata_routing import (
    _raise_for_params,
    _routing_enabled,
    process_routing,
)
from sklearn.utils.validation import _check_method_params, _check_sample_weight

from sklearn_convexbn.support._arrays import as_numpy

Method = TypeVar("Method", bound=Callable[..., Any])

try:
    from sklearn.callback import CallbackSupportMixin
    from sklearn.callback import with_callbacks as _with_callbacks
except ImportError:  # scikit-learn < 1.9 has no callbacks

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Stands for scikit-learn's class of this name; supports nothing."""

    def _with_callbacks(method: Callable[..., Any]) -> Callable[..., Any]:
        """Return the method as it is."""
        return method


__all__ = [
    "DOCUMENTATION_PAGES",
    "CallbackSupportMixin",
    "Interval",
    "RealNotInt",
    "StrOptions",
    "check_arguments",
    "check_parameters",
    "check_sample_weight",
    "documented_name",
    "parameters_of_rows",
    "routed_parameters",
    "weighted_scorer",
    "with_callbacks",
]

#: Pages that scikit-learn's HTML display of an estimator links to, as its `_doc_link_template`.
#: Empty means no links: the documentation has no public address yet. Its own build sets one.
DOCUMENTATION_PAGES = ""


def with_callbacks(method: Method) -> Method:
    """Return a fit that scikit-learn's callbacks follow, where it has them; its type stays."""
    decorated: Method = _with_callbacks(method)
    return decorated


def documented_name(estimator: Any) -> dict[str, str]:
    """Return the module and name a class is documented by, as `_doc_link_url_param_generator`.

    Users import from the top of the package, wherever below a class is defined.
    """
    return {"estimator_module": "sklearn_convexbn", "estimator_name": type(estimator).__name__}


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

    A solver among them is validated too, by the constraints that its class declares.

    Raises
    ------
    ValueError
        scikit-learn's InvalidParameterError (also a TypeError).
    """
    validate_parameter_constraints(constraints, arguments, caller_name=caller)
    solver = arguments.get("solver")
    if solver is not None and not isinstance(solver, (str, type)):
        check_parameters(solver, solver._parameter_constraints)


def check_sample_weight(sample_weight: Any, X: Any) -> np.ndarray:
    """Return non-negative float64 weights (n,), at least one of them positive.

    Raises
    ------
    ValueError
        For weights of a wrong shape, negative, not finite or all zero.
    """
    weights = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
    weights = as_numpy(weights)
    if not weights.any():
        raise ValueError(
            "sample_weight is zero for every sample: at least one weight must be non-zero."
        )
    return weights


def weighted_scorer(metric: Callable[..., float]) -> Callable[..., float]:
    """Return a scorer of predictions by a metric, which takes sample weights where there are any.

    It is one that the user does not see, so that with metadata routing nobody else could request
    the weights for it.
    """
    scorer = make_scorer(metric)
    return scorer.set_score_request(sample_weight=True) if _routing_enabled() else scorer


def routed_parameters(estimator: Any, params: dict[str, Any], sample_weight: Any) -> Any:
    """Return what the `params` of a cross-validated fit mean for its splitter and scorer.

    Without metadata routing only `sample_weight` is there, and goes to the scorer.

    Raises
    ------
    ValueError
        For `params` without metadata routing, or ones that nothing has requested.
    """
    _raise_for_params(params, estimator, "fit")
    weights = {} if sample_weight is None else {"sample_weight": sample_weight}
    if _routing_enabled():
        return process_routing(estimator, "fit", **weights, **params)
    return Bunch(splitter=Bunch(split={}), scorer=Bunch(score=weights))


def parameters_of_rows(X: np.ndarray, params: dict[str, Any], rows: np.ndarray) -> dict[str, Any]:
    """Return `params` with those that have an entry for each row of X cut to some rows."""
    return _check_method_params(X, params, indices=rows)

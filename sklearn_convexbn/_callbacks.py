"""scikit-learn's callbacks (:mod:`sklearn.callback`, from version 1.9) around the rounds of a fit.

Callbacks see one task for a fit and, below it, one for each round of the solver; at the end of
a round they may stop the fit, and get an estimator that predicts as if it had stopped there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sklearn_convexbn.solvers import Result


class FitHooks:
    """Hooks of one fit; without scikit-learn's callbacks they do nothing.

    A fit that makes one must be decorated with ``with_callbacks``, which tears callbacks down.

    Parameters
    ----------
    estimator : estimator
        Being fitted.
    X, y, sample_weight : array-like
        As the user passed them.
    max_rounds : int
    """

    def __init__(self, estimator: Any, X: Any, y: Any, sample_weight: Any, max_rounds: int) -> None:
        metadata = None if sample_weight is None else {"sample_weight": sample_weight}
        self._arguments = {"estimator": estimator, "X": X, "y": y, "metadata": metadata}
        self._fit: Any = None
        self._round: Any = None
        #: Returns an estimator's fitted attributes for a result of the solver.
        self.attributes: Callable[[Result], dict[str, Any]] = lambda result: {}
        if hasattr(estimator, "_init_callback_context"):
            self._fit = estimator._init_callback_context(max_subtasks=int(max_rounds))
            self._fit.call_on_fit_task_begin(**self._arguments)

    def begin_round(self) -> None:
        """Tell the callbacks that a round begins."""
        if self._fit is not None:
            self._round = self._fit.subcontext(task_name="round")
            self._round.call_on_fit_task_begin(**self._arguments)

    def end_round(self, result: Result) -> bool:
        """Tell the callbacks that a round has ended; return whether one asks to stop."""
        return self._ended(self._round, result)

    def end(self, result: Result) -> None:
        """Tell the callbacks that the fit has ended."""
        self._ended(self._fit, result)

    def _ended(self, context: Any, result: Result) -> bool:
        if context is None:
            return False
        return context.call_on_fit_task_end(
            **self._arguments, reconstruction_attributes=lambda: self.attributes(result)
        )

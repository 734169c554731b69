"""scikit-learn's callbacks (:mod:`sklearn.callback`, from version 1.9) around the rounds of a fit.

Callbacks see one task for a fit and, below it, one for each round of the solver; at the end of
a round they may stop the fit, and get an estimator that predicts as if it had stopped there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sklearn_convexbn.solvers import Result


class FitHooks:
    """Hooks of one fit, or of a part of it; without scikit-learn's callbacks they do nothing.

    A fit that makes them must be decorated with ``with_callbacks``, which tears callbacks down.

    Attributes
    ----------
    attributes : callable
        ``attributes(result)`` returns an estimator's fitted attributes for a result of the solver.
    stopped : bool
        Whether a callback has asked to stop at the end of the last round.
    """

    attributes: Callable[[Result], dict[str, Any]]
    stopped: bool = False

    def __init__(self, context: Any, arguments: dict[str, Any]) -> None:
        self._context = context
        self._arguments = arguments
        self._round: FitHooks | None = None
        if context is not None:
            context.call_on_fit_task_begin(**arguments)

    @classmethod
    def of_fit(
        cls, estimator: Any, X: Any, y: Any, sample_weight: Any, *, max_subtasks: int | None
    ) -> FitHooks:
        """Begin the fit of an estimator to data as the user passed them."""
        metadata = None if sample_weight is None else {"sample_weight": sample_weight}
        arguments = {"estimator": estimator, "X": X, "y": y, "metadata": metadata}
        begin = getattr(estimator, "_init_callback_context", None)
        return cls(begin and begin(max_subtasks=max_subtasks), arguments)

    def subtask(self, name: str, *, max_subtasks: int | None = 0) -> FitHooks:
        """Begin a part of the task."""
        context = self._context and self._context.subcontext(name, max_subtasks=max_subtasks)
        return FitHooks(context, self._arguments)

    def end(self, attributes: Callable[[], dict[str, Any]] | None = None) -> bool:
        """End the task; return whether a callback asks to stop.

        `attributes` returns the estimator's fitted attributes, if it can predict.
        """
        if self._context is None:
            return False
        return self._context.call_on_fit_task_end(
            **self._arguments, reconstruction_attributes=attributes
        )

    def begin_round(self) -> None:
        """Begin a round of the solver."""
        self._round = self.subtask("round")

    def end_round(self, result: Result) -> bool:
        """End the round; return whether a callback asks to stop."""
        assert self._round is not None
        self.stopped = self._round.end(lambda: self.attributes(result))
        return self.stopped

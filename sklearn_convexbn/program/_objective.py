r"""What a fit costs: the mean loss, its gradient, the best intercept, dual points and their values.

Of a network only the fit F (n, C) and the mass ``sum_j |v_j|`` enter

.. math:: L(F) + \alpha \sum_j |v_j|, \qquad L(F) = \sum_i p_i \ell(F_i, y_i).

:class:`~sklearn_convexbn.program._problem.Problem` and the programs of the solvers are this and a
hidden layer each: they say which fits there are, and which dual points are feasible.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic

import numpy as np

from sklearn_convexbn.losses._base import Loss, newton_change, newton_step, optimal_intercept
from sklearn_convexbn.support._arrays import Same, array_namespace, as_numpy, like
from sklearn_convexbn.support._sharding import Shards

#: Steps of the intercept up to this are linearised: the error is below the square of it.
LARGEST_CORRECTION = 1e-8


@dataclass(frozen=True, eq=False, kw_only=True)
class Objective(Generic[Same]):
    """The objective as a function of the fit; immutable.

    Attributes
    ----------
    Y : ndarray or torch.Tensor of shape (n, C)
    p : ndarray or torch.Tensor of shape (n,)
        Row weights, positive, summing to one over all rows, here and elsewhere.
    loss : Loss
    alpha : float
        Positive.
    fit_intercept : bool
        Whether b is free; else it is zero.
    shards : Shards
        Where the other rows are, if these are not all. Values are those of all rows.
    """

    Y: Same
    p: Same
    loss: Loss
    alpha: float
    fit_intercept: bool
    shards: Shards

    def converted(self, array: Callable[[Any], Any] = lambda a: a) -> dict[str, Any]:
        """Return the attributes above as keywords of another one, with arrays passed through."""
        return {
            "Y": array(self.Y),
            "p": array(self.p),
            "loss": self.loss,
            "alpha": self.alpha,
            "fit_intercept": self.fit_intercept,
            "shards": self.shards,
        }

    def mean_loss(self, F: Same) -> float:
        """Return the mean loss of the fit F (n, C)."""
        return float(self.shards.total(self.loss.value(F, self.Y, self.p)))

    def gradient(self, F: Same) -> Same:
        """Return the gradient (n, C) of the mean loss at the fit F (n, C)."""
        return self.loss.gradient(F, self.Y, self.p)

    def curvatures(self, F: Same) -> tuple[Same, Same]:
        """Return the Hessians of rows at the fit F (n, C), as the loss does."""
        return self.loss.curvatures(F, self.Y, self.p)

    def best_intercept(self, F: Same) -> Same:
        """Return the b (C,) that is best for the fit F (n, C) without it; zero if it is not free.

        Found from zero on: where F has a good b already, what is missing of it costs a step or two.
        """
        if not self.fit_intercept:
            return array_namespace(F).zeros_like(F[0])
        return optimal_intercept(self.loss, F, self.Y, self.p, self.shards)

    def constant(self) -> np.ndarray:
        """Return the intercept (C,) of the best network without hidden units."""
        return as_numpy(self.best_intercept(array_namespace(self.Y).zeros_like(self.Y)))

    def constant_fit(self) -> Same:
        """Return the fit (n, C) of the best network without hidden units."""
        return array_namespace(self.Y).zeros_like(self.Y) + like(self.constant(), self.Y)

    def dual_point(self, F: Same) -> Same:
        """Return Lambda (n, C), minus the gradient of the mean loss at the fit F (n, C).

        Where F has the optimal b, it sums to zero over the rows, more exactly than any b in float64
        gives: as after one more Newton step, the first order of which is added to the gradient.
        """
        Lambda = -self.gradient(F)
        if not self.fit_intercept:
            return Lambda
        residual, length = self.shards.totals(Lambda.sum(axis=0), abs(Lambda).sum())
        if float(abs(residual).max()) <= 4.0 * np.finfo(float).eps * float(length):
            return Lambda
        step = newton_step(self.loss, F, self.Y, self.p, -residual, self.shards)
        if float(abs(step).max()) > LARGEST_CORRECTION:
            return Lambda
        return Lambda - newton_change(self.loss, F, self.Y, self.p, step)

    def dual_value(self, Lambda: Same, largest_correlation: float) -> float:
        """Return the dual value of Lambda (n, C) scaled back until it is feasible.

        Zero is feasible too, and its value a bound: that of a loss of perfect fit, 0.
        """
        scale = 1.0
        if not largest_correlation <= self.alpha:
            scale = self.alpha / largest_correlation
        value, trivial = self.shards.totals(
            *(float(self.loss.conjugate(-c * Lambda, self.Y, self.p)) for c in (scale, 0.0))
        )
        return -float(np.minimum(value, trivial))

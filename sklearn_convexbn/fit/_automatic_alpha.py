"""alpha="auto": small, and raised where further neurons would only fit noise.

A fit begins with an alpha that falls slowly with the number of rows. After each round the error on
new rows is estimated: by a hold-out while only a part of many rows is fitted, else from the
training loss and the number of neurons, which are counted as degrees of freedom
(:meth:`~sklearn_convexbn.losses.Loss.estimated_error`). On noisy data that estimate has a minimum
early in the fit; once it has clearly risen above it, the fit leaves the program of this alpha for
that of a larger one, and goes on from the network at the minimum
(:mod:`sklearn_convexbn.fit._progressive`). scikit-learn's LassoLarsIC chooses alpha by such
criteria among those of a path.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from sklearn_convexbn.program._problem import Neurons, Problem
from sklearn_convexbn.solvers import Result

#: The first alpha is this over the fourth root of the total weight of the rows, or of one row, if
#: they weigh less.
SCALE = 0.009

#: Degrees of freedom of a neuron. Its direction has more parameters, but they are shrunken, and it
#: was chosen among many. Networks of one output on 1000 rows have their least test error near the
#: minimum of the estimate with 3 (27 sets).
FREEDOM = 3.0

#: An estimate from the training loss has clearly risen when it is above the least one so far by the
#: first share of it, the error on other rows by the second.
RISE, HOLDOUT_RISE = 0.25, 0.05

#: So is the latter after so many rounds without a new least one.
PATIENCE = 3

#: Networks whose loss on other rows is above so many times their training loss fit noise.
MOST_OVERFIT = 5.0

#: Then alpha is raised by this factor, at most so many times.
FACTOR, MOST_RAISES = 2.0, 4


def first_alpha(total: float) -> float:
    """Return the alpha that a fit to rows of some total weight begins with."""
    return SCALE / max(1.0, total) ** 0.25


class Rise(ABC):
    """Whether the error of a run's networks on new rows has clearly risen above its minimum.

    Called after each round, for :func:`sklearn_convexbn.solvers.run` to leave the run then.

    Parameters
    ----------
    problem : Problem
        Of the run.

    Attributes
    ----------
    risen : bool
        What was said of the last round.
    least : float
        The least error.
    best : Neurons or None
        The network that has it.
    """

    #: Share of the least error that the error has clearly risen by, and rounds without a new least
    #: one that are as clear.
    share: float
    patience: float = np.inf

    def __init__(self, problem: Problem) -> None:
        self.problem, self.risen = problem, False
        self.best: Neurons | None = None
        self.least, self._waited = np.inf, 0

    @abstractmethod
    def error(self, result: Result) -> float:
        """Return an estimate of the mean loss on new rows."""

    def __call__(self, result: Result) -> bool:
        """Look at the network after a round; return whether the error has clearly risen."""
        error = self.error(result)
        self._waited += 1
        if error < self.least:
            self.least, self._waited, self.best = error, 0, result.neurons
        clearly = error > (1.0 + self.share) * self.least or self._waited >= self.patience
        self.risen = self.problem.shards.maximum(float(clearly)) > 0
        return self.risen


class RiseOfEstimate(Rise):
    """By the training loss and the number of neurons.

    Parameters
    ----------
    problem : Problem
    total : float
        Total weight of the rows.
    """

    share = RISE

    def __init__(self, problem: Problem, total: float) -> None:
        super().__init__(problem)
        self.n_rows = effective_rows(problem, total)

    def error(self, result: Result) -> float:
        return estimated_error(self.problem, result, FREEDOM / self.n_rows)


def effective_rows(problem: Problem, total: float) -> float:
    """Return the number of rows that a total weight stands for.

    Rows count by their weights, as if they were repeated, but weights that sum to less than their
    effective number ``(sum w)^2 / sum w^2`` (Kish) as that number.
    """
    return max(total, 1.0 / float(problem.shards.total((problem.p**2).sum())))


def estimated_error(problem: Problem, result: Result, freedom: float) -> float:
    """Return an estimate of the mean loss on new rows, from the training loss.

    Parameters
    ----------
    problem : Problem
    result : Result
    freedom : float
        Degrees of freedom of a neuron, a row.
    """
    freedom *= len(result.neurons)
    return problem.loss.estimated_error(max(training_loss(problem, result), 0.0), freedom)


def training_loss(problem: Problem, result: Result) -> float:
    """Return the mean loss of a run's network on its own rows."""
    return result.certificate.primal - problem.alpha * result.neurons.mass


class HoldoutRise(Rise):
    """By the loss on other rows.

    Parameters
    ----------
    problem : Problem
    others : Problem
        The same on rows that the run does not have.
    """

    share, patience = HOLDOUT_RISE, PATIENCE

    def __init__(self, problem: Problem, others: Problem) -> None:
        super().__init__(problem)
        self.others = others

    def __call__(self, result: Result) -> bool:
        # A network without neurons is that of every alpha.
        return len(result.neurons) > 0 and super().__call__(result)

    def error(self, result: Result) -> float:
        return self.others.loss_of(result.neurons)

    def overfits(self, result: Result) -> bool:
        """Return whether the loss on the other rows is far above a network's training loss."""
        return MOST_OVERFIT * training_loss(self.problem, result) < self.least < np.inf

    def is_clearly_below(self, before: float) -> bool:
        """Return whether the least error is clearly below that of a smaller alpha."""
        return self.least < (1.0 - HOLDOUT_RISE) * before

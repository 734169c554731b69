"""The course of a fit: on growing parts of many rows, and with alpha="auto" at larger alphas.

Rounds on a part of the rows cost that part of the time, and find neurons that are good on all of
them (progressive sampling: F. Provost, D. Jensen, T. Oates, "Efficient Progressive Sampling", KDD
1999). The rows behind a part say, by a hold-out, when its rounds begin to fit noise. The last
rounds are on all rows, and only these count for the result and its certificate.
"""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from sklearn_convexbn.fit._automatic_alpha import (
    FACTOR,
    MOST_RAISES,
    HoldoutRise,
    Rise,
    RiseOfEstimate,
)
from sklearn_convexbn.fit._training import Prepared, Trained, TrainingSettings, solve
from sklearn_convexbn.program._problem import Neurons, Problem
from sklearn_convexbn.solvers import Monitor

#: The last part is half of the rows, if these are so many, which is enough for a hold-out to tell.
SMALLEST_HALF = 500

#: Each part before it is this share smaller, down to so many rows.
GROWTH, SMALLEST_PART = 4, 1000

#: Networks of parts are judged by up to so many of the rows behind it.
HOLDOUT_ROWS = 5000

#: Parts are fitted to this relative gap, without a verification.
PART_TOLERANCE = 0.2

#: So many larger alphas are tried that are no better on other rows.
LOOK_AHEAD = 2

#: alpha is lowered by so many of its steps from one part to the next, as noise averages out with
#: the root of the rows; not from the last part to all rows, where no rows are left to judge it.
LOWERED = 1


def train(
    prepared: Prepared,
    settings: TrainingSettings,
    total: float,
    *,
    start: Neurons | None = None,
    monitor: Monitor | None = None,
) -> Trained:
    """Solve a prepared problem, and recover the network.

    Where the solver adds neurons round by round, many rows are grown into, unless there is a
    network to start from; and with ``alpha="auto"`` alpha is raised where targets are noisy.
    `max_iter` is the number of all rounds; at most half of what is left is spent on a part. The
    result is that of the last alpha on all rows. Other solvers, and patches, do nothing of it.

    Parameters
    ----------
    prepared : Prepared
        With the first alpha.
    settings : TrainingSettings
    total : float
        Total weight of the rows.
    start : Neurons, default=None
    monitor : Monitor, default=None

    Raises
    ------
    MemoryError
        If it does not fit into the memory of a torch device.
    """
    problem = prepared.problem
    if not prepared.solver.adds_neurons or prepared.patches is not None:
        return solve(prepared, settings, start=start, monitor=monitor)
    course = _Course(prepared, settings, start, monitor)
    sizes = part_sizes(len(problem.Y)) if start is None and problem.shards.size == 1 else []
    for size in sizes:
        course.on_part(size, last=size == sizes[-1])
    adapts = settings.alpha == "auto" and not sizes
    return course.on_all(total if adapts else None)


def part_sizes(n_rows: int) -> list[int]:
    """Return the numbers of rows of the parts before all rows, growing."""
    size = n_rows // 2
    sizes = [size] if size >= SMALLEST_HALF else []
    while (size := size // GROWTH) >= SMALLEST_PART:
        sizes.append(size)
    return sizes[::-1]


class _Course:
    """Where a fit is: its network, how often alpha has been raised, and the rounds that are left.

    Parameters
    ----------
    prepared : Prepared
    settings : TrainingSettings
    start : Neurons or None
    monitor : Monitor or None
    """

    def __init__(
        self,
        prepared: Prepared,
        settings: TrainingSettings,
        start: Neurons | None,
        monitor: Monitor | None,
    ) -> None:
        self.prepared, self.settings, self.monitor = prepared, settings, monitor
        self.neurons, self.n_raises, self.rounds_left = start, 0, settings.max_iter
        self._begin = time.perf_counter()

    def on_part(self, size: int, *, last: bool) -> None:
        """Go on with the first rows, which are in the order of hashes, until the gap is small.

        Or until networks get worse on the rows behind them. With alpha="auto" larger ones are tried
        then, and where the first network fits noise already, as long as they are clearly better;
        the one that was best on these rows is kept, with its network. After the `last` part it
        stays.
        """
        whole, given, rounds = self.prepared.problem, self.settings, self.rounds_left // 2
        # The network of a first round has no neurons.
        if rounds < 2 or (self.monitor is not None and self.monitor.stopped):
            return
        if given.verbose:
            print(f"On {size} of {len(whole.Y)} rows:")
        others = whole.part(slice(size, size + HOLDOUT_ROWS))
        left, self.rounds_left = self.rounds_left - rounds, rounds
        self.settings = replace(given, tol=max(given.tol, PART_TOLERANCE), provisional=True)
        best, patience = (np.inf, self.neurons, self.n_raises), LOOK_AHEAD
        while True:
            rise = HoldoutRise(self._problem(whole.part(slice(size))), others)
            trained = self._run(rise.problem, rise)
            if np.isinf(best[0]):  # none has been judged
                promising = rise.overfits(trained.result)
            else:
                promising = rise.is_clearly_below(best[0])
            promising |= rise.risen
            if rise.least < best[0]:
                best, patience = (rise.least, rise.best, self.n_raises), LOOK_AHEAD
            else:
                patience -= 1
            if not (promising and patience and self.rounds_left and self._raise()):
                break
        _, self.neurons, self.n_raises = best
        self.settings, self.rounds_left = given, self.rounds_left + left
        if not last:
            self.n_raises = max(self.n_raises - LOWERED, 0)

    def on_all(self, total: float | None = None) -> Trained:
        """Go on with all rows until the gap is small.

        If their `total` weight is given, larger alphas are taken where networks fit noise.
        """
        while True:
            problem = self._problem(self.prepared.problem)
            rise = None
            if total is not None and self.n_raises < MOST_RAISES:
                rise = RiseOfEstimate(problem, total)
            trained = self._run(problem, rise)
            if rise is None or not (rise.risen and self._raise()):
                return trained

    def _problem(self, problem: Problem) -> Problem:
        """Return a problem with the alpha that the fit has come to."""
        return replace(problem, alpha=self.prepared.problem.alpha * FACTOR**self.n_raises)

    def _run(self, problem: Problem, rise: Rise | None) -> Trained:
        """Solve a problem from the network so far; go on with the best one if the error rises."""
        trained = solve(
            replace(self.prepared, problem=problem),
            replace(self.settings, max_iter=self.rounds_left),
            start=self.neurons,
            monitor=self.monitor,
            leave=rise,
            begin=self._begin,
        )
        self.neurons = trained.result.neurons if rise is None or not rise.risen else rise.best
        self.rounds_left -= trained.result.n_iter
        return trained

    def _raise(self) -> bool:
        """Raise alpha="auto"; return whether that was possible."""
        if self.settings.alpha != "auto" or self.n_raises == MOST_RAISES:
            return False
        self.n_raises += 1
        if self.settings.verbose:
            alpha = self.prepared.problem.alpha * FACTOR**self.n_raises
            print(f"Networks fit noise: alpha={alpha:.3g}.")
        return True

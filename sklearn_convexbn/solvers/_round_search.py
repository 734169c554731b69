"""The searches of a pursuit: what each round looks for, when it may stop, and the verification."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from sklearn_convexbn.program._problem import Neurons, Problem, relative_gap
from sklearn_convexbn.search._bound import (
    LOOSE_OPERATIONS,
    QUICK_OPERATIONS,
    Found,
    proven,
    tolerable_correlation,
)
from sklearn_convexbn.solvers._base import RunSettings
from sklearn_convexbn.support._arrays import Array

if TYPE_CHECKING:
    from sklearn_convexbn.program.units._base import Draw, Units
    from sklearn_convexbn.search._search import Effort

#: Ascent steps of a rough search.
ROUGH_STEPS = 10

#: From this tolerance on searches do without DC steps, which raise maxima by a tenth of a percent,
#: and proofs are given up earlier.
UNPOLISHED_TOLERANCE = 0.05

#: A verification costs at most this part of what the searches and slides of the rounds
#: have cost: a third of all then.
VERIFICATION_SHARE = 0.5

#: Its starts that ascend first, to see whether it is over soon.
FIRST_PART = 250


class Outcome(NamedTuple):
    """What the searches of a round have found.

    Attributes
    ----------
    found : Found
        By all of them.
    gap : float
        The relative gap that is left.
    n_verified, n_hits : int
        Random starts of the verification, and how many ended in its best maximum; 0 without one.
    """

    found: Found
    gap: float
    n_verified: int = 0
    n_hits: int = 0


class _Round(NamedTuple):
    """A network's objective and its dual point."""

    problem: Problem
    neurons: Neurons
    primal: float
    Lambda: Array

    def gap(self, largest: float) -> float:
        """Return the relative gap where no correlation is larger."""
        return relative_gap(self.primal, self.problem.dual_value(self.Lambda, largest))


class RoundSearch:
    """Searches of one run: rough ones, fine ones, proofs, and a verification at the end.

    Rounds search roughly until the gap passes the tolerance, then finely. If that passes too and
    nothing can be proven, an independent search decides: one for each time that a run would stop,
    each with twice the starts of the one before, so that going on cannot fish for a lucky one;
    with "auto" as far as a third of the work so far allows.

    Parameters
    ----------
    problem : Problem
    units : Units
        On the device of the searches.
    settings : RunSettings
    n_starts : int
        Random starts of a round.
    n_steps : int
        Ascent steps of a fine search.
    n_slide_steps : int
        Steps of the slides between rounds, by which their cost is estimated.
    n_verify : int or "auto"
        Random starts of the first verification; 0 for none.
    """

    def __init__(
        self,
        problem: Problem,
        units: Units,
        settings: RunSettings,
        *,
        n_starts: int,
        n_steps: int,
        n_slide_steps: int,
        n_verify: int | str,
    ) -> None:
        from sklearn_convexbn.search._search import Effort, Search

        self.problem, self.units, self.settings = problem, units, settings
        self.n_verify = 0 if settings.provisional else n_verify
        self._slide_steps = n_slide_steps
        # Drawn now, so that the course of a fit does not depend on its verifications.
        seed = settings.random_state.randint(np.iinfo(np.int32).max)
        self._own_state = np.random.RandomState(seed)
        self._search = Search(units, self._draw(settings.random_state), settings.random_state)
        self._rough = Effort(n_starts, n_starts, ROUGH_STEPS, 0, steered=True)
        self._fine = self._rough._replace(
            n_relatives=(n_starts + 1) // 2,
            n_steps=n_steps,
            n_generations=1,
            polished=settings.tol < UNPOLISHED_TOLERANCE,
        )
        self._needs_fine = False
        self._last_verified = 0
        # Starts so far, and ascent and slide steps of single units, which cost about the same.
        self._n_ascents, self._work = 0, 0.0

    def __call__(self, neurons: Neurons, Lambda: Array) -> Outcome:
        """Search for violators of a dual point, as hard as it takes to know whether to stop."""
        self._work += len(neurons) * self._slide_steps
        now = _Round(self.problem, neurons, self.problem.objective(neurons), Lambda)
        found = self._searched(now, self._rough)
        if not (self._needs_fine or self._passes(now, found.largest)):
            return Outcome(found, now.gap(found.largest))
        found = found.joined(self._searched(now, self._fine))
        if not self._passes(now, found.largest):
            self._needs_fine = True
            return Outcome(found, now.gap(found.largest))
        if self.settings.provisional:
            return Outcome(found, now.gap(found.largest))
        enough = tolerable_correlation(self.problem, neurons, Lambda, self.settings.tol)
        bounded = found.joined(
            proven(
                self.problem,
                Lambda,
                wanted=enough,
                known=found.directions,
                n_operations=QUICK_OPERATIONS if self._fine.polished else LOOSE_OPERATIONS,
            )
        )
        if bounded.proven and (bounded.is_tight or self._passes(now, bounded.largest)):
            return Outcome(bounded, now.gap(bounded.largest))
        found = replace(bounded, bound=np.inf)  # what was met on the way to no proof
        if self.n_verify:
            return self._verified(now, found)
        return Outcome(found, now.gap(found.largest))

    def _searched(self, now: _Round, effort: Effort) -> Found:
        """Return what a search from fresh starts, earlier maxima and some neurons finds."""
        known = now.neurons.directions.T
        if known.shape[1] > effort.n_starts:
            order = self._search.random_state.permutation(known.shape[1])
            known = known[:, order[: effort.n_starts]]
        found = Found(*self._search(now.Lambda, known, effort))
        self._n_ascents += len(found.values)
        self._work += len(found.values) * effort.n_steps
        return found

    def _verified(self, now: _Round, found: Found) -> Outcome:
        """Search afresh, and join whatever that finds; the next time from twice the starts.

        What has found more than the tolerance allows has decided, and ends.
        """
        from sklearn_convexbn.search._verification import independent_search

        if self.n_verify == "auto":
            n_starts = self._affordable_starts()
        else:
            n_starts = max(int(self.n_verify), 2 * self._last_verified)
        self._last_verified = n_starts
        verification = independent_search(
            self.units,
            self._draw(self._own_state),
            now.Lambda,
            now.neurons.directions.T,
            n_starts=n_starts,
            random_state=self._own_state,
            first_part=FIRST_PART,
            polished=self._fine.polished,
            progress=lambda _, largest: not self._passes(now, max(largest, found.largest)),
        )
        self._search.maxima = verification.maxima  # where rounds look first, should it go on
        found = found.joined(verification.found)
        return Outcome(found, now.gap(found.largest), verification.n_starts, verification.n_hits)

    def _affordable_starts(self) -> int:
        """Return as many starts as the rounds had, twice those of the verification before.

        But not more than cost a third of all.
        """
        from sklearn_convexbn.search._verification import STEPS, ascents_a_start

        affordable = VERIFICATION_SHARE * self._work / (STEPS * ascents_a_start())
        wanted = max(self._n_ascents, 2 * self._last_verified)
        return max(int(min(wanted, affordable)), self._rough.n_starts)

    def _draw(self, random_state: np.random.RandomState) -> Draw:
        return lambda count: self.settings.random_directions(count, random_state)

    def _passes(self, now: _Round, largest: float) -> bool:
        return now.gap(largest) <= self.settings.tol

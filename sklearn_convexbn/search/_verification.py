"""An independent search, whose outcome counts whatever it is.

The search that lets a fit stop has been drawn anew until one passed, and all maxima that it knew
have been pushed down to alpha: it is the luckiest of many. Only a search that is drawn after the
decision to stop, with random numbers of its own, says something about what a larger one would find.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sklearn_convexbn.program.units._base import Draw, Units
from sklearn_convexbn.search._bound import Found
from sklearn_convexbn.search._search import SAME, Effort, Search
from sklearn_convexbn.support._arrays import Array

#: Ascent steps, and relatives of maxima: one for so many starts, but at most so many.
STEPS, STARTS_A_RELATIVE, MOST_RELATIVES = 20, 4, 500

#: How often relatives are looked for, and how many starts ascend until progress is told, at most.
GENERATIONS, LARGEST_PART = 2, 5000

#: Told of the starts so far and the largest value found; what is true ends the search.
Progress = Callable[[int, float], bool | None]


@dataclass(frozen=True)
class Verification:
    """What an independent search has found.

    Attributes
    ----------
    found : Found
    n_starts : int
        Its random starts.
    n_hits : int
        How many of them ended in the best maximum. It may have been met from a known unit or near
        another maximum only, so that none did.
    maxima : ndarray of shape (k, any)
        The best that it met, pairwise apart.
    """

    found: Found
    n_starts: int
    n_hits: int
    maxima: np.ndarray


def ascents_a_start() -> float:
    """Return how many ascents there are for a random start, at most, with relatives of maxima."""
    return 1.0 + 2.0 * GENERATIONS / STARTS_A_RELATIVE  # both maxima of a circle


def independent_search(
    units: Units,
    draw: Draw,
    Lambda: Array,
    known: np.ndarray,
    *,
    n_starts: int,
    random_state: np.random.RandomState,
    first_part: int = LARGEST_PART,
    polished: bool = True,
    progress: Progress | None = None,
) -> Verification:
    """Search for large correlations from fresh starts, without what other searches remember.

    Parameters
    ----------
    units : Units
        On the device of the search.
    draw : callable
        ``draw(count)`` draws units (k, count), by `random_state`.
    Lambda : ndarray or torch.Tensor of shape (n, C)
    known : ndarray of shape (k, m)
        Units that are starts besides the random ones.
    n_starts : int
    random_state : numpy.random.RandomState
    first_part : int, default=5000
        So many starts ascend first; each later part has as many as all before it, or 5000.
    polished : bool, default=True
        Whether DC steps raise the best maxima.
    progress : callable, default=None
        ``progress(n_starts, largest)`` is told how far the search has come, and may end it: where
        what has been found decides already, more starts decide nothing.
    """
    search = Search(units, draw, random_state)
    n_relatives = min(MOST_RELATIVES, n_starts // STARTS_A_RELATIVE)
    n_generations = GENERATIONS if n_relatives else 0
    parts: list[Found] = []
    ends: list[Found] = []
    first = 0
    while first < n_starts:
        count = min(max(first, first_part), LARGEST_PART, n_starts - first)
        is_last = first + count == n_starts
        generations = n_generations if is_last else 0
        effort = Effort(count, n_relatives, STEPS, generations, polished=polished)
        values, directions = search(Lambda, known if first == 0 else known[:, :0], effort)
        parts.append(Found(values, directions))
        ends.append(Found(values[:count], directions[:, :count]))
        first += count
        if progress is not None and progress(first, max(part.largest for part in parts)):
            break
    found = Found(
        np.concatenate([part.values for part in parts]),
        np.hstack([part.directions for part in parts]),
    )
    n_hits = sum(_hits(units, end, found) for end in ends)
    assert search.maxima is not None
    return Verification(found, first, n_hits, search.maxima)


def _hits(units: Units, ends: Found, found: Found) -> int:
    """Return how many of the units that ascents ended in are the best one found."""
    best = found.directions[:, [found.values.argmax()]]
    near = ends.directions[:, ends.values > SAME * found.largest]
    return int((units.signatures(best).T @ units.signatures(near) > SAME).sum())

"""The largest correlation ``max |Lambda^T (Z q)_+|`` of a dual point over all unit directions q.

Exact or bounded where that can be afforded, else what a search finds: an estimate from below.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from sklearn_convexbn._arrangements import random_directions
from sklearn_convexbn._problem import Problem
from sklearn_convexbn._whitening import Whitening
from sklearn_convexbn.solvers._closed_form import correlation_bound

#: Ascent steps, circles (at most) and generations of the search: those of the pursuit's last.
SEARCH_STEPS, SEARCH_CIRCLES, SEARCH_GENERATIONS = 20, 500, 2


def proven_bound(problem: Problem, Lambda: np.ndarray) -> tuple[float, np.ndarray]:
    """Return an upper bound on all correlations, infinite where none is known.

    Besides, unit directions (k, at most 2 C) that attain it for one output.
    """
    from sklearn_convexbn._exact_search import is_affordable, largest_correlation

    n, k = problem.Z.shape
    if n == k and np.allclose(problem.spectrum, 1.0, rtol=0.0, atol=1e-9):
        attained = problem.Z.T @ np.maximum(np.hstack([Lambda, -Lambda]), 0.0)
        lengths = np.maximum(np.linalg.norm(attained, axis=0), 1e-300)
        return correlation_bound(problem, Lambda), attained / lengths
    if not is_affordable(n, k, problem.n_outputs):
        return np.inf, np.zeros((k, 0))
    bound, q = largest_correlation(problem.Z, Lambda)
    return bound, q[:, None]


def searched_directions(
    problem: Problem,
    whitening: Whitening,
    Lambda: np.ndarray,
    units: np.ndarray,
    *,
    n_starts: int,
    random_state: np.random.RandomState,
    device: str,
) -> np.ndarray:
    """Return the unit directions (k, S) that a search for large correlations ends in.

    Parameters
    ----------
    problem : Problem
    whitening : Whitening
    Lambda : ndarray of shape (n, C)
    units : ndarray of shape (k, m)
        Starts besides the random ones.
    n_starts : int
    random_state : numpy.random.RandomState
    device : str
    """
    import torch

    from sklearn_convexbn._hidden_layer import HiddenLayer
    from sklearn_convexbn._search import Search

    draw = partial(random_directions, whitening, random_state=random_state)
    layer = HiddenLayer(torch.as_tensor(problem.Z, device=device))
    search = Search(layer, draw, random_state)
    return search(
        Lambda,
        units,
        n_starts=n_starts,
        n_circles=min(SEARCH_CIRCLES, n_starts),
        n_steps=SEARCH_STEPS,
        n_generations=SEARCH_GENERATIONS,
    )[1]

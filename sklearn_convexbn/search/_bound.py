"""The largest correlation ``max |Lambda^T a(q)|`` over all units, exact if affordable.

The one place that decides how a bound on the optimum over all arrangements comes about: fits,
:func:`~sklearn_convexbn.certify` and the top of a path ask here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from sklearn_convexbn.program._problem import Neurons, Problem, relative_gap
from sklearn_convexbn.program.units._whitened import WhitenedUnits
from sklearn_convexbn.support._arrays import Array, as_numpy

#: Dimensions in which, and rows on which, branch and bound over cones may prove something.
PROOF_DIMENSIONS, PROOF_ROWS = 8, 20_000

#: Operations of an enumeration of arrangements that is worth it, about two seconds, in a fit, and
#: in one of a loose tolerance, which is over in a tenth of that time.
AFFORDABLE_OPERATIONS, QUICK_OPERATIONS, LOOSE_OPERATIONS = 1e9, 1e8, 2e7

#: Evaluations that a proof may take in a fit, and their products with rows.
QUICK_EVALUATIONS, QUICK_PRODUCTS = 30_000, 3.0e7

#: A fit gives a proof up whose bound is so many times what is wanted after so many evaluations: of
#: those that ended within its budget none was, most others are 5 to 40 times as large.
HOPELESS, HOPELESS_EVALUATIONS = 4.0, 1000


@dataclass(frozen=True)
class Found:
    """Values (S,) of units (k, S) of norm one, and what is known of all units.

    Attributes
    ----------
    values : ndarray of shape (S,)
    directions : ndarray of shape (k, S)
    bound : float
        A proven upper bound on all values, infinite if none is known.
    """

    values: np.ndarray
    directions: np.ndarray
    bound: float = np.inf

    @property
    def proven(self) -> bool:
        """Whether there is a proven bound."""
        return bool(np.isfinite(self.bound))

    @property
    def is_tight(self) -> bool:
        """Whether a proven bound is attained, so that a search can add nothing."""
        return self.proven and self.bound <= self.values.max(initial=0.0) * (1.0 + 1e-9)

    @property
    def largest(self) -> float:
        """What a certificate rests on: the proven bound, else the largest value."""
        attained = float(self.values.max(initial=0.0))
        return max(self.bound, attained) if self.proven else attained

    def joined(self, other: Found) -> Found:
        """Return this and what another search of the same dual point has found."""
        return Found(
            np.concatenate([self.values, other.values]),
            np.hstack([self.directions, other.directions]),
            min(self.bound, other.bound),
        )


def correlation_bound(problem: Problem, Lambda: np.ndarray) -> float:
    """Bound ``max |Lambda^T (Z q)_+|`` over unit q when Z is square, for any Lambda (n, C).

    ``(Z q)_+`` can then be any non-negative vector. The bound is attained for one output, and for
    classes that are separated (see :mod:`~sklearn_convexbn.solvers._closed_form`).
    """
    M = Lambda / np.sqrt(problem.p)[:, None] * problem.pooling.longest[0]
    return float(np.sqrt(max(np.linalg.eigvalsh(np.maximum(M @ M.T, 0.0))[-1], 0.0)))


def rows_are_independent(problem: Problem) -> bool:
    """Return whether Z is square with ``Z^T diag(p) Z = I``, so that activations are free."""
    n, k = problem.Z.shape
    square = n == k and problem.shards.size == 1
    return square and bool(np.allclose(problem.spectrum, 1.0, rtol=0.0, atol=1e-9))


def tolerable_correlation(problem: Problem, neurons: Neurons, Lambda: Array, tol: float) -> float:
    """Return about the largest bound on all correlations that proves a relative gap of `tol`."""
    primal, low, high = problem.objective(neurons), 1.0, 4.0
    for _ in range(20):
        middle = 0.5 * (low + high)
        gap = relative_gap(primal, problem.dual_value(Lambda, middle * problem.alpha))
        low, high = (middle, high) if gap <= tol else (low, middle)
    return low * problem.alpha


def quick_evaluations(n_rows: int) -> int:
    """Return the evaluations that a proof may take in a fit."""
    return min(QUICK_EVALUATIONS, int(QUICK_PRODUCTS / n_rows))


def bounded_by_cones(
    problem: Problem,
    Lambda: Array,
    *,
    known: np.ndarray,
    wanted: float = 0.0,
    closeness: float = 1e-3,
    n_evaluations: int,
) -> Found:
    """Return the bound that branch and bound over cones has after so many evaluations.

    It may be far above what is attained; see :func:`~sklearn_convexbn.search._proof.prove`.

    Parameters
    ----------
    problem : Problem
    Lambda : ndarray or torch.Tensor of shape (n, C)
    known : ndarray of shape (k, m)
        The best directions of a search.
    wanted : float, default=0.0
        The proof ends when the bound is at most this,
    closeness : float, default=1e-3
        or when it is at most ``1 + closeness`` times the largest value met.
    n_evaluations : int
        A million takes 3 to 8 s.

    Returns
    -------
    found : Found
        Without a bound (infinite) where there are several outputs or cells, units of another
        kind, more than 8 dimensions or 20,000 rows.
    """
    from sklearn_convexbn.search._proof import prove

    units = problem.units
    few = units.n_parameters <= PROOF_DIMENSIONS and units.n_rows <= PROOF_ROWS
    if not (few and problem.n_weights == 1 and isinstance(units, WhitenedUnits)):
        return Found(np.zeros(0), np.zeros((units.n_parameters, 0)))
    proof = prove(
        *units.gathered(Lambda),
        wanted=wanted,
        closeness=closeness,
        known=known,
        n_evaluations=n_evaluations,
    )
    return Found(problem.correlations(Lambda, proof.directions), proof.directions, proof.bound)


def proven(
    problem: Problem,
    Lambda: Array,
    *,
    wanted: float | None = None,
    known: np.ndarray | None = None,
    n_evaluations: int | None = None,
    n_operations: float = QUICK_OPERATIONS,
) -> Found:
    """Return an upper bound on all correlations that takes seconds at most, if there is one.

    Parameters
    ----------
    problem : Problem
    Lambda : ndarray or torch.Tensor of shape (n, C)
    wanted : float, default=None
        A bound of this size is good enough, for a fit, which enumerates the arrangements of fewer
        rows. Where they are more, branch and bound over cones is tried; a larger bound of that
        kind is left out (:func:`bounded_by_cones` returns it).
    known : ndarray of shape (k, m), default=None
        The best directions of a search, for branch and bound over cones.
    n_evaluations : int, default=None
        What that may take; None for the small budget of a fit, of which hopeless ones take a part.
    n_operations : float, default=1e8
        What an enumeration may take where a bound of `wanted` is good enough.

    Returns
    -------
    found : Found
        The least bound of all ways to prove one that are affordable, infinite if none is, with
        directions that attain it, or for several outputs and too many rows come near.
    """
    from sklearn_convexbn.search._exact import exact_search_operations, largest_correlation

    units = problem.units
    found = Found(np.zeros(0), np.zeros((units.n_parameters, 0)))
    if isinstance(units, WhitenedUnits) and rows_are_independent(problem):
        L, Z = as_numpy(Lambda), as_numpy(problem.Z)
        _, activations, _ = problem.pooling.longest
        attained = Z.T @ np.kron(np.maximum(np.hstack([L, -L]), 0.0), activations[:, None])
        q = attained / np.maximum(np.linalg.norm(attained, axis=0), 1e-300)
        found = Found(problem.correlations(Lambda, q), q, correlation_bound(problem, L))
    size = units.n_rows, units.n_parameters, problem.n_weights
    if found.is_tight or not isinstance(units, WhitenedUnits):
        return found
    affordable = AFFORDABLE_OPERATIONS if wanted is None else n_operations
    if exact_search_operations(*size) > affordable:
        if wanted is None:
            return found
        known = found.directions if known is None else known
        return found.joined(_proven_by_cones(problem, Lambda, wanted, known, n_evaluations))
    value, q = largest_correlation(*units.gathered(Lambda))
    return found.joined(Found(np.array([value]), q[:, None], value))


def _proven_by_cones(
    problem: Problem, Lambda: Array, wanted: float, known: np.ndarray, n_evaluations: int | None
) -> Found:
    """Return what branch and bound over cones finds, with its bound where that is good enough."""
    budgets: tuple[int, ...] = HOPELESS_EVALUATIONS, quick_evaluations(problem.units.n_rows)
    if n_evaluations is not None:
        budgets = (n_evaluations,)
    for count in budgets:
        cones = bounded_by_cones(
            problem, Lambda, known=known, wanted=wanted, closeness=0.0, n_evaluations=count
        )
        # Rounding of what ended the proof aside.
        if cones.bound <= wanted * (1.0 + 1e-9):
            return cones
        if cones.bound > HOPELESS * wanted:
            break
    return replace(cones, bound=np.inf)

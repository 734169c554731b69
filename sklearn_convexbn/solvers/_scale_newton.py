"""Newton's method on the scales of groups: what its forms share, the rounds and the step.

A group lasso is a smooth problem in one scale eta_g >= 0 a group, with a ridge regression inside
(:mod:`_group_newton` has the formulas). The forms differ in how they solve that regression.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from sklearn_convexbn.program._objective import Objective
from sklearn_convexbn.support._arrays import Array, array_namespace
from sklearn_convexbn.support._linear_algebra import cholesky_solve, safe_cholesky

#: Sweeps of block coordinate descent where Newton's method has stopped; twice as many every time.
FIRST_SWEEPS, MAX_SWEEPS = 8, 1024

#: Objectives that differ by less than this part are equal up to rounding.
EQUAL = 1e-14

#: Scales that are smaller in proportion to the largest count as zero.
SMALLEST_SCALE = 1e-13


class Point(Protocol):
    """Where a round ends; `phi` is what rounds lower."""

    @property
    def phi(self) -> float: ...


P = TypeVar("P", bound=Point)


class Method(ABC, Generic[P]):
    """One form of the method: how it judges a point, its step, and a slow step that is safe.

    Parameters
    ----------
    objective : Objective
    tol : float
        Relative duality gap to reach.
    n_slow, n_creeping : int
        Rounds in a row that leave most of the gap and lower nothing, and that leave most of it,
        before block coordinate descent takes a turn.
    """

    def __init__(self, objective: Objective, tol: float, *, n_slow: int, n_creeping: int) -> None:
        self.tol, self.n_slow, self.n_creeping = tol, n_slow, n_creeping
        # Targets that are fitted exactly have the optimum zero, up to rounding.
        self._floor = max(1e-12 * objective.mean_loss(0.0 * objective.Y), 1e-300)
        self._bound = 0.0  # losses are positive

    def gap(self, primal: float, dual: float) -> float:
        """Return the relative gap of an objective to the best bound so far."""
        self._bound = max(self._bound, dual)
        return max(primal - self._bound, 0.0) / max(primal, self._floor)

    @abstractmethod
    def values(self, point: P) -> tuple[float, float]:
        """Return the objective at a point, and the dual value there."""

    @abstractmethod
    def step(self, point: P, gap: float) -> P | None:
        """Take a step, or return None where none leads further."""

    @abstractmethod
    def safe_step(self, point: P, sweeps: int) -> P | None:
        """Lower the objective by block coordinate descent; None where it cannot."""

    def rounds(self, point: P) -> Iterator[tuple[P, float, bool]]:
        """Yield points, their gaps and whether rounding hides what there is to gain.

        The last one meets `tol`, or it repeats the one before it and is stalled.
        """
        last_gap, slow, creeping, sweeps = math.inf, 0, 0, FIRST_SWEEPS
        while True:
            primal, dual = self.values(point)
            gap = self.gap(primal, dual)
            # Before the next round is computed: the caller may need no better one.
            yield point, gap, False
            if gap <= self.tol:
                return
            creeping, last_gap = creeping + 1 if gap > 0.9 * last_gap else 0, gap
            new = self.step(point, gap)
            lower = new is not None and new.phi < point.phi * (1.0 - 1e-3 * self.tol)
            slow = 0 if lower or not creeping else slow + 1
            if new is None or slow > self.n_slow:
                new = self.safe_step(point, sweeps)
                if new is None or (sweeps == MAX_SWEEPS and new.phi >= primal * (1.0 - EQUAL)):
                    yield point, gap, True
                    return
            elif creeping >= self.n_creeping:
                new = self.safe_step(new, sweeps) or new
            else:
                point = new
                continue
            point, slow, creeping, sweeps = new, 0, 0, min(2 * sweeps, MAX_SWEEPS)


# ------------------------------------------------------------------------- one step on the scales


class Attempt(NamedTuple):
    """A step: aims at |w_g| = level, its slopes, its halvings, and the damping of its Hessian."""

    level: float
    secular: bool
    halvings: int
    damping: float = 0.0


def attempts_at(alpha: float, largest: float) -> list[Attempt]:
    """Return the steps to try in turn, where the largest |w_g| is `largest`.

    Far from the solution a step aims at the solution for a larger alpha, `level`, so that
    max |w_g| falls by at most the factor 0.3: asking for more overshoots eta by orders of
    magnitude and makes the ridge systems singular to working precision.
    """
    level = max(alpha, 0.3 * largest)
    attempts = [Attempt(level, True, 3), Attempt(level, False, 6)]
    return attempts + [Attempt(alpha, False, 12)] * (level > alpha)


def scale_step(
    attempts: list[Attempt],
    norms: Array,
    alpha: float,
    target: float,
    working_set: Callable[[float], tuple[Any, Any]],
    hessian: Callable[[Any], Any],
    solve: Callable[[Any, Any], P],
) -> P | None:
    """Take a Newton step on eta with backtracking on phi; None when no attempt leads to `target`.

    Parameters
    ----------
    attempts : list of Attempt
    norms : array of shape (P,)
        |w_g| of all groups.
    alpha, target : float
    working_set : callable
        Returns, for a level, the groups that may have a scale and the scales they have.
    hessian : callable
        Returns the Hessian of phi in the scales of some groups, which may be written to.
    solve : callable
        Returns the point of given scales of some groups.
    """
    for level, secular, halvings, damping in attempts:
        groups, eta = working_set(level)
        if len(groups) == 0:
            continue
        H = hessian(groups)
        # Duplicate or dependent groups make H singular; the gradient is consistent there, so a
        # relative 1e-9 only selects a minimiser.
        diagonal = H.reshape(-1)[:: len(H) + 1]  # a view
        diagonal[:] = diagonal.clip(0.0) * (1 + 1e-9) + (1e-14 + damping) * diagonal.max()
        slope = eta_slopes(norms[groups], level, alpha, secular)
        full = nonnegative_quadratic(H, slope - H @ eta, (eta > 0) | (slope < 0))
        for halving in range(halvings):
            new = solve(groups, eta + (full - eta) * 0.5**halving)
            if new.phi <= target:
                return new
    return None


def eta_slopes(norms: Array, level: float, alpha: float, secular: bool) -> Array:
    """Return dphi/deta for the condition |w_g| = level on the support, or its secular version.

    |w_g| behaves like 1 / (c + eta_g). Newton's method on 1/|w_g| = 1/level is exact for that
    model where Newton on |w_g|^2 = level^2 only gains a factor 1.5 a step; it has the same
    matrix and only another right-hand side.
    """
    if secular:
        return norms * norms * (1.0 - norms / level) / alpha
    return 0.5 * (level**2 - norms * norms) / alpha


def nonnegative_quadratic(H: Array, q: Array, free: Array) -> Array:
    """Minimise ``x^T H x / 2 + q^T x`` over x >= 0 by block principal pivoting (H > 0).

    All infeasible coordinates change sides at once; when that stops making progress only the
    last one does, which terminates. The cap is a safeguard: the caller checks for descent.
    """
    fewest, patience = len(q) + 1, 5
    tolerance = 1e-12 * float(abs(q).max())
    x = 0.0 * q
    for _ in range(200):
        x = 0.0 * q
        index = numbers(free)
        if len(index):
            chol = safe_cholesky(H[index[:, None], index])
            x[index] = -cholesky_solve(q[index][:, None], chol)[:, 0]
        bad = (free & (x < 0)) | (~free & (H @ x + q < -tolerance))
        count = int(bad.sum())
        if count == 0:
            break
        if count < fewest:
            fewest, patience = count, 5
        elif patience > 0:
            patience -= 1
        else:
            bad[numbers(bad)[:-1]] = False
        free = free ^ bad
    return x.clip(0.0)


def numbers(mask: Array) -> Any:
    """Return the positions of the true entries."""
    return array_namespace(mask).where(mask)[0]

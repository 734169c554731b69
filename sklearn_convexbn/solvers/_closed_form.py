r"""Closed forms for centred data of rank n - 1: more features than samples.

Then Z is square with ``Z^T diag(p) Z = I``, so ``(Z q)_+`` can be any non-negative vector a, at
cost ``|q| = |diag(p)^{1/2} a|``, and the training problem decouples (Ergen et al., ICLR 2022,
for squared loss and one-hot targets; the other forms by the same argument). With
``M = diag(p)^{-1/2} Lambda`` the dual constraint reads ``max |M^T a| <= alpha`` over unit a >= 0.
It is bounded by the largest eigenvalue of ``max(M M^T, 0)``, and the bound is attained in every
case solved here, so that the certificate is exact.

Where units are pooled over K patches of a sample, by weights W (K x G), and all n K patches are
independent in this way, activations are any non-negative a (n, K). Those of sample i enter the
fit as ``<W^T a_i, V_c>`` with ``|W^T a_i| <= s |a_i|``, s the largest singular value of W, and all
a_i may be multiples of the one non-negative vector that attains it. The program is therefore that
of unpooled units, n rows and ``alpha / (s sqrt(K))``: a lower bound, by the same eigenvalue, and
attained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
from scipy import optimize

from sklearn_convexbn.losses._base import optimal_intercept
from sklearn_convexbn.program._problem import Neurons, Problem
from sklearn_convexbn.search._bound import correlation_bound
from sklearn_convexbn.solvers._base import Iterate, RunSettings, Solver
from sklearn_convexbn.support._sharding import ALL_HERE

#: A form is used only when its certificate closes to this relative gap.
PROOF_TOLERANCE = 1e-8


class ClosedForm(Solver):
    """Optimal network in closed form, where one is proven.

    Handles ReLU without shrinkage when the (distinct) rows, of images all their patches, are
    linearly independent after centring, that is n <= d + 1 in general position with all components
    kept: squared loss with one output, and classification with any loss. Where an intercept is
    fitted a convex problem in the intercept alone (C unknowns) remains and is solved numerically.
    """

    name = "closed_form"
    needs_arrangements = False
    pools = True
    needs_independent_rows = True

    def unsupported(self, problem: Problem) -> str:
        if problem.activation != "relu":
            return f"activation={problem.activation!r}"
        n, k = problem.Z.shape
        if n != k:
            rows = "distinct rows" if problem.pooling.is_identity else "patches"
            return (
                f"{n} {rows} of rank {k - 1} (closed forms need rank n - 1: at least as "
                f"many independent features as {rows} less one, all of them kept)"
            )
        if not np.allclose(problem.spectrum, 1.0, rtol=0.0, atol=1e-9):
            return "shrinkage > 0"
        if _is_scalar_regression(problem):
            return ""
        if not _targets_are_classes(problem):
            return f"{problem.n_outputs} outputs that are not one-hot targets"
        if _candidate(problem).gap(problem) > PROOF_TOLERANCE:
            return (
                "these class proportions at this alpha (one neuron a class is not proven optimal "
                "there)"
            )
        return ""

    def iterates(self, problem: Problem, settings: RunSettings) -> Iterator[Iterate]:
        found = _candidate(problem)
        yield Iterate(found.neurons, largest_correlation=found.bound, proven=True, stalled=True)


@dataclass(frozen=True)
class _Candidate:
    """A network that may be optimal, and a bound on the correlations of its dual point."""

    neurons: Neurons
    bound: float

    def gap(self, problem: Problem) -> float:
        """Return the proven relative gap."""
        return problem.certificate(self.neurons, largest_correlation=self.bound, proven=True)[1].gap


#: Candidates of problems that are in use: whether one is proven is asked before it is returned.
_CANDIDATES: WeakKeyDictionary[Problem, _Candidate] = WeakKeyDictionary()


def _candidate(problem: Problem) -> _Candidate:
    """Return the candidate of a problem, which is computed once."""
    if problem not in _CANDIDATES:
        neurons, F = problem.with_best_intercept(_solution(problem))
        bound = correlation_bound(problem, problem.dual_point(F))
        _CANDIDATES[problem] = _Candidate(neurons, bound)
    return _CANDIDATES[problem]


def _is_scalar_regression(problem: Problem) -> bool:
    return problem.loss.identity_hessian and problem.n_outputs == 1


def _targets_are_classes(problem: Problem) -> bool:
    Y = np.hstack([1.0 - problem.Y, problem.Y]) if problem.n_outputs == 1 else problem.Y
    if "labels" not in problem.loss.accepts:
        return False
    return bool(((Y == 0) | (Y == 1)).all() and (Y.sum(axis=1) == 1).all())


def _solution(problem: Problem) -> Neurons:
    if _is_scalar_regression(problem):
        return _scalar_solution(problem)
    return _class_solution(problem)


def _neurons(problem: Problem, A: np.ndarray, G: np.ndarray, b: np.ndarray) -> Neurons:
    """Return neurons with activations A (n, m), non-negative, and output weights G (m, C).

    Where units are pooled, these are the activations times weights that are cheapest for
    their product.
    """
    length, activations, cells = problem.pooling.longest
    inverse = problem.Z.T * np.kron(problem.p, np.ones_like(activations) / len(activations))
    q = inverse @ np.kron(A, activations[:, None])
    return Neurons.from_products(q.T, np.kron(cells / length, G), b, None)


def _alpha(problem: Problem) -> float:
    """Return the alpha of unpooled units in whose program that of pooled ones is."""
    return problem.alpha / problem.pooling.longest[0]


def _scalar_solution(problem: Problem) -> Neurons:
    """Squared loss, one output: two neurons, on the rows above b and on those below.

    For fixed b the fit is ``(1 - alpha/|r+|)_+ r+ - (1 - alpha/|r-|)_+ r-`` with r = y - b and
    norms weighted by p; b is the root of a monotone derivative.
    """
    p, alpha = problem.p, _alpha(problem)
    # What a row's loss is the squared distance from.
    y = -problem.loss.gradient(0.0 * problem.Y, problem.Y, p)[:, 0] / p

    def residual_slope(b: float) -> float:
        above, below = np.maximum(y - b, 0.0), np.maximum(b - y, 0.0)
        return float(p @ below * _clip(alpha, below, p) - p @ above * _clip(alpha, above, p))

    b = 0.0
    if problem.fit_intercept and y.min() < y.max():
        b = optimize.brentq(residual_slope, y.min(), y.max(), xtol=1e-15, rtol=1e-14)
    elif problem.fit_intercept:
        b = float(y[0])
    parts = np.column_stack([np.maximum(y - b, 0.0), np.maximum(b - y, 0.0)])
    shrink = np.array([1.0 - _clip(alpha, part, p) for part in parts.T])
    return _neurons(problem, parts, np.diag([1.0, -1.0]) @ shrink[:, None], np.array([b]))


def _clip(alpha: float, part: np.ndarray, p: np.ndarray) -> float:
    """Return ``min(1, alpha / |part|_p)``."""
    norm = float(np.sqrt(p @ part**2))
    return 1.0 if norm <= alpha else alpha / norm


def _class_solution(problem: Problem) -> Neurons:
    """Classification: one neuron a class, active on the rows of that class (neural collapse)."""
    one_output = problem.n_outputs == 1
    members = np.hstack([1.0 - problem.Y, problem.Y]) if one_output else problem.Y
    present = members.any(axis=0)
    members = members[:, present]
    targets = np.array([[0.0], [1.0]]) if one_output else np.eye(problem.n_outputs)
    targets = targets[present]
    shares = problem.p @ members
    classes = _ClassProblem(problem, targets, shares)
    b = classes.best_intercept() if problem.fit_intercept else np.zeros(problem.n_outputs)
    return _neurons(problem, members, classes.outputs(b), b)


class _ClassProblem:
    """One row a class: ``min_b sum_c min_t P_c loss(b + t, y_c) + alpha sqrt(P_c) |t|``."""

    def __init__(self, problem: Problem, targets: np.ndarray, shares: np.ndarray) -> None:
        self.loss = problem.loss
        self.thresholds = _alpha(problem) / np.sqrt(shares)
        self.targets = targets
        self.shares = shares

    def outputs(self, b: np.ndarray) -> np.ndarray:
        """Return the optimal t_c (K, C) of every class for a given b (C,)."""
        rows = zip(self.targets, self.thresholds, strict=True)
        return np.array([self._output(b, target, tau) for target, tau in rows])

    def _output(self, b: np.ndarray, target: np.ndarray, tau: float) -> np.ndarray:
        """Minimise ``loss(b + t, target) + tau |t|`` over t.

        For squared loss this is a shrunken residual. For softmax Newton steps start on
        the steepest descent ray from zero, where the objective is below its value at zero,
        and go down from there, so the kink is never met again.
        """
        one = np.ones(1)
        slope = self.loss.gradient(b[None], target[None], one)[0]
        if np.linalg.norm(slope) <= tau:
            return np.zeros_like(b)
        if self.loss.identity_hessian:
            return -slope * (1.0 - tau / np.linalg.norm(slope))
        if len(b) == 1:  # the slope ends at tau, on its own side
            side = np.sign(slope)

            def excess(f: float) -> float:
                fit = np.array([[f]])
                return float(self.loss.gradient(fit, target[None], one)[0, 0] - tau * side[0])

            return np.array([_increasing_root(excess, float(b[0]))]) - b

        def value(t: np.ndarray) -> float:
            F = (b + t)[None]
            return float(self.loss.value(F, target[None], one)) + tau * float(np.linalg.norm(t))

        def gradient(t: np.ndarray) -> np.ndarray:
            return self.loss.gradient((b + t)[None], target[None], one)[0] + tau * _unit(t)

        def hessian(t: np.ndarray) -> np.ndarray:
            curvature = self.loss.hessian((b + t)[None], target[None], one)[0]
            return curvature + _norm_hessian(t, tau)

        t = -slope
        while value(t) >= value(np.zeros_like(t)):
            t = 0.5 * t
        return _newton_descent(value, gradient, hessian, t)

    def best_intercept(self) -> np.ndarray:
        """Return the b (C,) that minimises the envelope over t, smooth and convex in b.

        The envelope of one class is the infimal convolution of its loss and ``tau |.|``; its
        gradient is that of the loss at b + t, its Hessian the parallel sum
        ``H - H (H + N)^-1 H`` of both Hessians.
        """

        def value(b: np.ndarray) -> float:
            t = self.outputs(b)
            mass = self.shares * self.thresholds @ np.linalg.norm(t, axis=1)
            return float(self.loss.value(b + t, self.targets, self.shares)) + float(mass)

        def gradient(b: np.ndarray) -> np.ndarray:
            return self.loss.gradient(b + self.outputs(b), self.targets, self.shares).sum(axis=0)

        def hessian(b: np.ndarray) -> np.ndarray:
            t = self.outputs(b)
            total = np.zeros((len(b), len(b)))
            curvatures = self.loss.hessian(b + t, self.targets, self.shares)
            for H, t_c, tau in zip(curvatures, t, self.shares * self.thresholds, strict=True):
                total += H
                if t_c.any():
                    total -= H @ np.linalg.pinv(H + _norm_hessian(t_c, tau)) @ H
            return total

        start = optimal_intercept(
            self.loss, 0.0 * self.targets, self.targets, self.shares, ALL_HERE
        )
        if len(start) == 1:  # the envelope may be linear over a range: no curvature to use
            return np.array([_increasing_root(lambda b: gradient(np.array([b]))[0], start[0])])
        return _newton_descent(value, gradient, hessian, start)


def _increasing_root(function: Callable[[float], float], start: float) -> float:
    """Return a root of a non-decreasing function of one variable."""
    reach = 1.0
    while function(start - reach) > 0.0 or function(start + reach) < 0.0:
        reach *= 2.0
    return float(optimize.brentq(function, start - reach, start + reach, xtol=1e-15, rtol=1e-14))


def _norm_hessian(t: np.ndarray, tau: float) -> np.ndarray:
    """Return the Hessian of ``tau |t|`` at t != 0."""
    u = _unit(t)
    return tau / float(np.linalg.norm(t)) * (np.eye(len(t)) - np.outer(u, u))


def _unit(t: np.ndarray) -> np.ndarray:
    return t / max(float(np.linalg.norm(t)), 1e-300)


def _newton_descent(
    value: Callable[[np.ndarray], float],
    gradient: Callable[[np.ndarray], np.ndarray],
    hessian: Callable[[np.ndarray], np.ndarray],
    t: np.ndarray,
    max_iter: int = 100,
) -> np.ndarray:
    """Minimise a small smooth convex function by Newton steps with backtracking.

    Close to the minimum, where differences of values drown in rounding, full steps are taken
    as long as they halve the gradient.
    """
    slope = gradient(t)
    for _ in range(max_iter):
        step = -np.linalg.lstsq(hessian(t), slope, rcond=1e-14)[0]
        decrement, here, size = -float(slope @ step), value(t), 1.0
        local = decrement <= 1e-10 * (1.0 + abs(here))
        if not local:
            while size > 1e-12 and value(t + size * step) > here - 1e-4 * size * decrement:
                size *= 0.5
        trial = gradient(t + size * step)
        if local and np.linalg.norm(trial) > 0.5 * np.linalg.norm(slope):
            break
        t, slope = t + size * step, trial
    return t

r"""The slide: neurons and output weights move together downhill.

On the smooth parametrization ``alpha/2 (|q_j|^2 + |v_j|^2)`` of the regularizer, which is an upper
bound on ``alpha |q_j| |v_j|`` everywhere and equals it at balanced scales, the objective is smooth
but for the kinks of ReLU. Steps are those of L-BFGS in its compact form (Byrd, Nocedal & Schnabel,
Mathematical Programming 1994): two products with all stored differences a step, whatever their
number, where the two-loop form has four for each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from scipy import linalg

from sklearn_convexbn.program._problem import Neurons, Problem
from sklearn_convexbn.program.units._base import Units

if TYPE_CHECKING:
    from torch import Tensor

#: Value and gradient at a point; the gradient is written to the second argument.
Objective = Callable[[np.ndarray, np.ndarray], float]

#: Differences of points and gradients that L-BFGS remembers.
MEMORY = 20

#: Evaluations of one line search.
MAX_TRIALS = 20

#: A step is accepted that lowers the value by this part of what the slope promises, and it is
#: not too short if the slope is by then this part of the first one, or has changed its sign.
DECREASE, CURVATURE = 1e-4, 0.9

#: Steps of less than this relative decrease end the slide.
LEAST_DECREASE = 1e-12


class Training(Protocol):
    """What a slide reads of a training problem: tensors, and the precision of products."""

    problem: Problem
    units: Units
    precision: Any
    Y: Tensor
    p: Tensor


class Memory:
    """The differences of points and gradients of the last steps, as L-BFGS uses them.

    Parameters
    ----------
    size : int
        Length of a point.
    n_pairs : int, default=20
        Pairs of steps and changes that are remembered.
    """

    def __init__(self, size: int, n_pairs: int = MEMORY) -> None:
        self.n_pairs = n_pairs
        # Rows 2i and 2i + 1 are a step s_i and the change y_i of the gradient; full, the oldest
        # pair is overwritten. `order` has the places, oldest first.
        self._pairs = np.empty((2 * n_pairs, size))
        self._order: list[int] = []
        self._products = np.zeros((2 * n_pairs, 2 * n_pairs))  # columns: with the changes y_i
        self._along = np.zeros(2 * n_pairs)  # with the last gradient

    def forget(self) -> None:
        """Start anew."""
        self._order.clear()

    def add(self, s: np.ndarray, y: np.ndarray, g: np.ndarray) -> None:
        """Take in a step, the change of the gradient over it if it curves upwards, and the new g.

        Products with y are differences of those with the gradients before and after it.
        """
        sy, yy = float(s @ y), float(y @ y)
        curves = sy > 1e-10 * float(np.sqrt((s @ s) * yy))
        if curves:
            place = len(self._order) if len(self._order) < self.n_pairs else self._order.pop(0)
            self._order.append(place)
            self._pairs[2 * place], self._pairs[2 * place + 1] = s, y
        used = 2 * len(self._order)
        before = self._along[:used].copy()
        np.matmul(self._pairs[:used], g, out=self._along[:used])
        if curves:
            last = 2 * place + 1
            self._products[:used, last] = self._along[:used] - before
            self._products[last, 1:used:2] = self._products[1:used:2, last]
            self._products[last - 1, last], self._products[last, last] = sy, yy

    def direction(self, g: np.ndarray) -> np.ndarray:
        """Return minus the approximate inverse Hessian times the last gradient, g."""
        if not self._order:
            return -g / max(1.0, float(np.linalg.norm(g)))
        used, s = 2 * len(self._order), 2 * np.array(self._order)
        y, along = s + 1, self._along
        SY, YY = self._products[np.ix_(s, y)], self._products[np.ix_(y, y)]
        gamma = SY[-1, -1] / YY[-1, -1]
        # H g = gamma g + S a + gamma Y b, with R the upper triangle of S^T Y.
        R = np.triu(SY)
        u = linalg.solve_triangular(R, along[s], check_finite=False)
        middle = np.diag(SY) * u + gamma * (YY @ u - along[y])
        coefficients = np.empty(used)
        coefficients[s] = linalg.solve_triangular(R, middle, trans="T", check_finite=False)
        coefficients[y] = -gamma * u
        d = coefficients @ self._pairs[:used]
        d += gamma * g
        return np.negative(d, out=d)


def minimise(objective: Objective, x: np.ndarray, *, n_steps: int) -> np.ndarray:
    """Lower an objective by at most `n_steps` steps of L-BFGS; return the last point.

    Parameters
    ----------
    objective : callable
        ``objective(x, gradient)`` returns the value and writes the gradient.
    x : ndarray of shape (size,)
        Where to start; it is not changed.
    n_steps : int

    Returns
    -------
    x : ndarray of shape (size,)
        Of a smaller value than at the start, or the start.
    """
    memory, x = Memory(len(x)), x.copy()
    g, trial, g_trial = np.empty_like(x), np.empty_like(x), np.empty_like(x)
    value = objective(x, g)
    for _ in range(n_steps):
        d = memory.direction(g)
        if not d @ g < 0.0:
            memory.forget()
            d = memory.direction(g)
        new = _search_line(objective, x, value, float(d @ g), d, trial, g_trial)
        if new is None:
            break
        memory.add(trial - x, g_trial - g, g_trial)
        done = value - new <= LEAST_DECREASE * abs(value)
        x, trial, g, g_trial, value = trial, x, g_trial, g, new
        if done:
            break
    return x


def _search_line(
    objective: Objective,
    x: np.ndarray,
    value: float,
    slope: float,
    d: np.ndarray,
    trial: np.ndarray,
    gradient: np.ndarray,
) -> float | None:
    """Go along d from x to a point that is lower and not too near; None where there is none.

    The point and its gradient are left in `trial` and `gradient`. Bisection and doubling between
    the two weak Wolfe conditions, which end for functions with kinks too (Lewis & Overton,
    Mathematical Programming 2013).
    """
    t, low, high = 1.0, 0.0, np.inf
    for _ in range(MAX_TRIALS if slope < 0.0 else 0):
        np.multiply(d, t, out=trial)
        trial += x
        new = objective(trial, gradient)
        if not new <= value + DECREASE * t * slope:
            # The parabola through both values and the first slope, kept away from the ends.
            high, bend = t, 2.0 * (new - value - t * slope)
            best = -slope * t * t / bend if np.isfinite(bend) and low == 0.0 else 0.5 * (low + high)
            t = min(max(best, low + 0.1 * (high - low)), low + 0.5 * (high - low))
        elif high == np.inf and d @ gradient < CURVATURE * slope:
            low, t = t, 2.0 * t
        else:
            return new
    return None


def slide(training: Training, neurons: Neurons, *, n_steps: int) -> Neurons:
    """Lower the objective by L-BFGS on all (q_j, v_j) and b; never raises it.

    Parameters
    ----------
    training : Training
        The problem on its device, and the precision of products.
    neurons : Neurons
        Without zero ones.
    n_steps : int

    Returns
    -------
    neurons : Neurons
        Those that the steps end in, judged in float64, or the given ones.
    """
    if len(neurons) == 0 or n_steps == 0:
        return neurons
    problem = training.problem
    root = np.sqrt(np.linalg.norm(neurons.weights, axis=1))[:, None]
    state = _State(training, len(neurons))
    parts = neurons.directions * root, neurons.weights / root, neurons.intercept
    with flushed_denormals():
        x = minimise(state.value, state.packed(*parts), n_steps=n_steps)
    moved = of_norm_one(training.units, *state.unpack(x))
    return moved if problem.objective(moved) <= problem.objective(neurons) else neurons


class _State:
    """The objective as a function of one vector of all (q_j, v_j) and b, float64.

    Products have the precision of `training`; what they need is allocated once.
    """

    def __init__(self, training: Training, m: int) -> None:
        import torch

        self.training, self.m = training, m
        self.k, self.C = training.units.n_parameters, training.problem.n_weights
        options = {"dtype": training.precision, "device": training.units.device}
        self.Q = torch.empty(self.k, m, **options)
        self.V = torch.empty(m, self.C, **options)
        self.b = torch.empty(training.problem.n_outputs, **options)

    def packed(self, q: np.ndarray, v: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Return the vector of q_j (m, k), v_j (m, C) and b."""
        return np.concatenate([q.ravel(), v.ravel(), b])

    def unpack(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return views of a vector, the inverse of `packed`."""
        m, k, C = self.m, self.k, self.C
        return x[: m * k].reshape(m, k), x[m * k : m * (k + C)].reshape(m, C), x[m * (k + C) :]

    def value(self, x: np.ndarray, gradient: np.ndarray) -> float:
        """Return the objective, and write its gradient."""
        import torch

        training, problem = self.training, self.training.problem
        q, v, b = self.unpack(x)
        for tensor, part in ((self.Q, q.T), (self.V, v), (self.b, b)):
            tensor.copy_(torch.from_numpy(part))
        value, *slopes = training.units.loss(
            problem.loss, training.Y, training.p, self.Q, self.V, self.b
        )
        dq, dv, db = self.unpack(gradient)
        for part, slope in zip((dq.T, dv, db), slopes, strict=True):
            torch.from_numpy(part).copy_(slope)
        penalty, along = training.units.penalty(q.T)
        dq += problem.alpha * along.T
        dv += problem.alpha * v
        db *= float(problem.fit_intercept)
        return value + problem.alpha * (penalty + 0.5 * float(np.vdot(v, v)))


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """Let this thread take numbers below the normal range as zero: arithmetic with them is slow.

    The exponentials of rows that are fitted well end there in float32.
    """
    import torch

    before = _flushes_denormals()
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def _flushes_denormals() -> bool:
    """Say whether denormal numbers count as zero in this thread now."""
    smallest = np.array([np.finfo(np.float32).tiny])
    return not bool((smallest.astype(np.float32) * np.float32(0.5)).any())


def of_norm_one(units: Units, q: np.ndarray, v: np.ndarray, b: np.ndarray) -> Neurons:
    """Return neurons of units q_j (m, k) and output weights v_j of any size, without zero ones."""
    norms = units.norms(q.T)
    keep = (norms > 0) & (np.linalg.norm(v, axis=1) > 0)
    q, v, norms = q[keep], v[keep], norms[keep, None]
    return Neurons(q / norms, v * norms, b)

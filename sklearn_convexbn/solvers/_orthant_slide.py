"""The slide of units with an l1 norm: parameters stop where they reach zero.

Orthant-wise L-BFGS: where no parameter changes sign the objective is smooth, and a quasi-Newton
step is cut back to the orthant that the steepest descent leads into (Andrew and Gao, "Scalable
Training of L1-Regularized Log-Linear Models", ICML 2007). No step raises the objective, and zeros
are exact. Different from there, a parameter's price is not constant: half the squared l1 norm of a
unit rises with the size of a parameter by the norm.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from sklearn_convexbn.program._problem import Neurons

#: Pairs of steps remembered; halvings of a step; share of the predicted decrease it has to have.
MEMORY, MAX_HALVINGS, ARMIJO = 20, 12, 1e-4

#: More relative decreases in a row than this that are below the least end the descent.
PATIENCE, LEAST_DECREASE = 3, 1e-7

#: A first step is at most this share of the length of the start.
FIRST_STEP = 0.1

#: Curvatures along a step below this many squared lengths of the change of gradient are rounding.
LEAST_CURVATURE = 1e-11


def orthant_slide(training: Any, neurons: Neurons, *, n_steps: int) -> Neurons:
    """Lower the objective by moving all units, output weights and b together; never raises it.

    As :func:`~sklearn_convexbn.solvers._pursuit.slide`, for units with ``has_l1_norm``. Parts of
    units that make no difference on the training rows are dropped at the end.

    Parameters
    ----------
    training : _TorchProblem
    neurons : Neurons
    n_steps : int
    """
    problem, units, m = training.problem, training.units, len(neurons)
    if m == 0:
        return neurons
    k, C = units.n_parameters, problem.n_weights
    root = np.sqrt(np.linalg.norm(neurons.weights, axis=1))[:, None]
    start = [neurons.directions * root, neurons.weights / root, neurons.intercept]

    def unpack(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return x[: m * k].reshape(m, k), x[m * k : m * (k + C)].reshape(m, C), x[m * (k + C) :]

    def evaluate(x: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        q, v, _ = unpack(x)
        Q, V, b = (training.tensor(part).to(units.precision) for part in unpack(x))
        value, dQ, dV, db = units.loss(problem.loss, training.Y, training.p, Q.T.contiguous(), V, b)
        parts = [dQ.T, dV, db * float(problem.fit_intercept)]
        smooth = np.concatenate([part.double().cpu().numpy().ravel() for part in parts])
        smooth[m * k : m * (k + C)] += problem.alpha * v.ravel()
        norms, price = units.norms(q.T), np.zeros_like(smooth)
        price[: m * k] = problem.alpha * np.repeat(norms, k)
        return value + 0.5 * problem.alpha * float(norms @ norms + (v * v).sum()), smooth, price

    x = orthant_descent(evaluate, np.concatenate([part.ravel() for part in start]), n_steps)
    q, v, b = unpack(x)
    q = units.simplified(q.T).T
    norms = units.norms(q.T)
    kept = (norms > 0) & (np.linalg.norm(v, axis=1) > 0)
    moved = Neurons(q[kept] / norms[kept, None], v[kept] * norms[kept, None], b)
    return moved if problem.objective(moved) <= problem.objective(neurons) else neurons


@dataclass(frozen=True)
class _Point:
    """Parameters with the objective, the gradient of its smooth part, and the prices of sizes."""

    x: np.ndarray
    value: float
    smooth: np.ndarray
    price: np.ndarray

    @property
    def slope(self) -> np.ndarray:
        """Minus the direction of steepest descent: the subgradient of least size."""
        at_zero = np.sign(self.smooth) * np.maximum(np.abs(self.smooth) - self.price, 0.0)
        return np.where(self.x == 0.0, at_zero, self.smooth + self.price * np.sign(self.x))


class _Pair(NamedTuple):
    """A step, how the gradient changed along it, and their product."""

    step: np.ndarray
    change: np.ndarray
    curvature: float


def orthant_descent(
    evaluate: Callable[[np.ndarray], tuple[float, np.ndarray, np.ndarray]],
    start: np.ndarray,
    n_steps: int,
) -> np.ndarray:
    """Lower a function from a start by at most so many steps.

    Parameters
    ----------
    evaluate : callable
        ``evaluate(x)`` returns the objective, the gradient (any,) of its smooth part, and the
        prices (any,) by which it rises with the size of each parameter, zero where none is paid.
    start : ndarray of shape (any,)
    n_steps : int

    Returns
    -------
    x : ndarray of shape (any,)
    """
    point, slow = _Point(start, *evaluate(start)), 0
    memory: deque[_Pair] = deque(maxlen=MEMORY)
    for _ in range(n_steps):
        slope = point.slope
        side = np.sign(np.where(point.x == 0.0, -slope, point.x))
        new = _line_search(evaluate, point, slope, side, memory)
        if new is None:
            if not memory:
                break
            memory.clear()
            continue
        step = new.x - point.x
        change = new.smooth - point.smooth + (new.price - point.price) * side
        curvature = float(step @ change)
        if curvature > LEAST_CURVATURE * float(change @ change):
            memory.append(_Pair(step, change, curvature))
        slow = slow + 1 if point.value - new.value < LEAST_DECREASE * abs(point.value) else 0
        point = new
        if slow > PATIENCE:
            break
    return point.x


def _line_search(
    evaluate: Callable[[np.ndarray], tuple[float, np.ndarray, np.ndarray]],
    point: _Point,
    slope: np.ndarray,
    side: np.ndarray,
    memory: deque[_Pair],
) -> _Point | None:
    """Step along the quasi-Newton direction within the orthant `side`; None if nothing is lower."""
    direction = _quasi_newton(slope, memory)
    direction[direction * slope >= 0.0] = 0.0
    size, length = float(np.linalg.norm(direction)), 1.0
    if not size > 0.0:
        return None
    if not memory:
        length = min(1.0, FIRST_STEP * float(np.linalg.norm(point.x)) / size)
    for _ in range(MAX_HALVINGS):
        x = point.x + length * direction
        x[(x * side < 0.0) & (point.price > 0.0)] = 0.0
        new = _Point(x, *evaluate(x))
        if new.value <= point.value + ARMIJO * float(slope @ (x - point.x)):
            return new
        length *= 0.5
    return None


def _quasi_newton(slope: np.ndarray, memory: deque[_Pair]) -> np.ndarray:
    """Return minus L-BFGS's inverse Hessian times a gradient."""
    direction, shares = -slope, []
    for step, change, curvature in reversed(memory):
        shares.append(float(step @ direction) / curvature)
        direction -= shares[-1] * change
    if memory:
        _, change, curvature = memory[-1]
        direction *= curvature / float(change @ change)
    for (step, change, curvature), share in zip(memory, reversed(shares), strict=True):
        direction += (share - float(change @ direction) / curvature) * step
    return direction

"""Pursuit: the full ReLU problem, over all arrangements rather than a list of them.

A fully corrective conditional gradient over neurons. One round searches for directions that
violate the dual constraint, inserts the best, refits the output weights (convex), and then
slides: moves neurons and output weights together on the smooth parametrization
``alpha/2 (|q_j|^2 + |v_j|^2)`` of the regularizer, whose minima have the same objective.
The bound on the optimum rests on the search and is an estimate.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import optimize, special
from torch import Tensor

from sklearn_convexbn._problem import Neurons, Problem
from sklearn_convexbn._search import ascend, correlations, distinct_violators
from sklearn_convexbn.solvers._base import Iterate, RunSettings, Solver
from sklearn_convexbn.solvers._group_newton import group_lasso_refit

#: Relative accuracy of a refit; below the gaps that rounds of a pursuit are about.
REFIT_TOLERANCE = 1e-6

#: Multiplications a refit of several outputs may cost, within 300 to 4000 steps.
REFIT_OPERATIONS = 5e8


class Pursuit(Solver):
    """Search, insert, refit and slide neurons until no direction violates the dual.

    Parameters
    ----------
    n_starts : int, default=100
        Random starts of each round's search.
    n_search_steps : int, default=20
        Ascent steps of each round's search.
    n_insert : int, default=40
        Largest number of neurons inserted in a round.
    n_slide_steps : int, default=50
        Quasi-Newton steps on all neurons in a round.
    certify_factor : int, default=30
        The stopping test is repeated with a fresh search of this many times the starts. The
        basins of narrow maxima are small: many starts find more of them than long ascents.
    """

    name = "pursuit"
    needs_arrangements = False

    def __init__(
        self,
        n_starts: int = 100,
        n_search_steps: int = 20,
        n_insert: int = 40,
        n_slide_steps: int = 50,
        certify_factor: int = 30,
    ) -> None:
        self.n_starts = n_starts
        self.n_search_steps = n_search_steps
        self.n_insert = n_insert
        self.n_slide_steps = n_slide_steps
        self.certify_factor = certify_factor

    def unsupported(self, problem: Problem) -> str:
        if problem.activation != "relu":
            return f"activation={problem.activation!r}"
        return ""

    def iterates(self, problem: Problem, settings: RunSettings) -> Iterator[Iterate]:
        search = _Search(problem, settings)
        training = _TorchProblem(problem, settings.device)
        neurons = settings.start or Neurons.empty(problem.Z.shape[1], problem.constant())
        neurons = replace(neurons, gates=None)
        while True:
            neurons, F = problem.with_best_intercept(neurons)
            Lambda = problem.dual_point(F)
            values, directions = search(Lambda, neurons, self.n_starts, self.n_search_steps)
            largest = float(values.max())
            certificate = problem.certificate(neurons, largest_correlation=largest)[1]
            if certificate.gap <= settings.tol:
                more = search(
                    Lambda,
                    neurons,
                    self.certify_factor * self.n_starts,
                    self.n_search_steps,
                )
                values = np.concatenate([values, more[0]])
                directions = np.hstack([directions, more[1]])
                largest = float(values.max())
            yield Iterate(neurons, largest_correlation=largest)
            new = distinct_violators(
                values, directions, problem.alpha, most=self.n_insert, cosine=0.98
            )
            neurons = _inserted(neurons, directions[:, new].T)
            neurons = refit(training, neurons)
            neurons = slide(training, neurons, n_steps=self.n_slide_steps)
            neurons = merge_equal_units(problem, neurons)
            neurons = refit(training, neurons)


@dataclass(frozen=True)
class _Search:
    """Search of one problem: ascent in float32, values in float64."""

    problem: Problem
    settings: RunSettings

    def __call__(
        self, Lambda: np.ndarray, neurons: Neurons, n_starts: int, n_steps: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return values (S,) and unit directions (k, S) found from random starts and neurons."""
        device = self.settings.device
        Z = torch.as_tensor(self.problem.Z, device=device)
        L = torch.as_tensor(Lambda, device=device)
        # Scaling keeps float32 away from underflow; the ascent does not depend on it.
        L32 = (L / max(float(L.abs().max()), 1e-300)).float()
        random = through_rows(self.settings.random_directions(n_starts), self.problem.Z)
        near = neurons.directions.T
        jitter = random[:, : near.shape[1]]
        near = near[:, : jitter.shape[1]] + 0.1 * jitter / np.sqrt(len(jitter))
        starts = np.hstack([random, neurons.directions.T, near])
        start_tensor = torch.as_tensor(starts, device=device).float()
        _, Q = ascend(Z.float(), L32, start_tensor, n_steps=n_steps)
        Q = torch.nn.functional.normalize(Q.double(), dim=0)
        return correlations(Z, L, Q).cpu().numpy(), Q.cpu().numpy()


def through_rows(directions: np.ndarray, Z: np.ndarray) -> np.ndarray:
    """Move every other hyperplane (k, S) in parallel until it passes through a random row of Z.

    A random offset is small beside the length of a random direction, so hyperplanes that cut
    off few rows would hardly be drawn. The row is picked by the offset's own quantile.
    """
    moved = directions.copy()
    rows = (special.ndtr(moved[-1, ::2]) * len(Z)).astype(np.intp)
    moved[-1, ::2] = -np.einsum("ks,sk->s", moved[:-1, ::2], Z[rows, :-1])
    return moved


class _TorchProblem:
    """The problem's arrays on a torch device, in float64."""

    def __init__(self, problem: Problem, device: str) -> None:
        self.Z = torch.as_tensor(problem.Z, device=device)
        self.Y = torch.as_tensor(problem.Y, device=device)
        self.p = torch.as_tensor(problem.p, device=device)
        self.problem = problem

    def tensor(self, a: np.ndarray) -> Tensor:
        return torch.as_tensor(np.ascontiguousarray(a), device=self.Z.device)


def _inserted(neurons: Neurons, directions: np.ndarray) -> Neurons:
    """Append neurons with zero output weights."""
    zeros = np.zeros((len(directions), neurons.weights.shape[1]))
    return replace(
        neurons,
        directions=np.vstack([neurons.directions, directions]),
        weights=np.vstack([neurons.weights, zeros]),
    )


def refit(training: _TorchProblem, neurons: Neurons) -> Neurons:
    """Refit the output weights and the intercept to fixed directions; drop zero neurons.

    Minimises ``L(A V + 1 b^T) + alpha sum_j |v_j|`` with fixed activations A: by Newton's method
    for one output, by FISTA for several.
    """
    if len(neurons) == 0:
        return neurons
    problem = training.problem
    A = (training.Z @ training.tensor(neurons.directions.T)).clamp_min(0)
    V = training.tensor(neurons.weights)
    if problem.n_outputs == 1:
        weights, intercept = group_lasso_refit(
            A,
            training.Y,
            training.p,
            problem.loss,
            problem.alpha,
            problem.fit_intercept,
            V[:, 0],
            tol=REFIT_TOLERANCE,
        )
        V, b = weights[:, None], np.array([intercept])
    else:
        V, b = _refit_by_fista(training, A, V, training.tensor(neurons.intercept))
    output = V.cpu().numpy()
    keep = np.linalg.norm(output, axis=1) > 0
    return Neurons(neurons.directions[keep], output[keep], b)


def _refit_by_fista(
    training: _TorchProblem, A: Tensor, V: Tensor, b: Tensor
) -> tuple[Tensor, np.ndarray]:
    """Refit several outputs by FISTA with restarts; small problems are worth more steps.

    Activations are centred by the weights when b is fitted: the intercept then decouples from V
    up to curvature, and has a step of its own.
    """
    problem, Y, p = training.problem, training.Y, training.p
    centre = p @ A if problem.fit_intercept else torch.zeros_like(A[0])
    A = A - centre
    gram = A.T @ (p[:, None] * A)
    curvature = problem.loss.curvature
    step = 1.0 / (curvature * float(torch.linalg.eigvalsh(gram)[-1].clamp_min(1e-12)))
    step_b = float(problem.fit_intercept) / curvature
    b = b + centre @ V
    W, c, t, value = V, b, 1.0, float("inf")
    n_steps = int(np.clip(REFIT_OPERATIONS / (4 * A.numel() * V.shape[1]), 300, 4000))
    for i in range(n_steps):
        G = problem.loss.gradient(A @ W + c, Y, p)
        V_new = _shrink_rows(W - step * (A.T @ G), step * problem.alpha)
        b_new = c - step_b * G.sum(dim=0)
        if float(((W - V_new) * (V_new - V)).sum() + ((c - b_new) * (b_new - b)).sum()) > 0:
            t = 1.0
        t_new = 0.5 * (1.0 + (1.0 + 4.0 * t * t) ** 0.5)
        momentum = (t - 1.0) / t_new
        W, c = V_new + momentum * (V_new - V), b_new + momentum * (b_new - b)
        V, b, t = V_new, b_new, t_new
        if i % 50 == 49:
            mass = float(torch.linalg.vector_norm(V, dim=1).sum())
            new = float(problem.loss.value(A @ V + b, Y, p)) + problem.alpha * mass
            if value - new <= REFIT_TOLERANCE * 1e-2 * abs(new):
                break
            value = new
    return V, (b - centre @ V).cpu().numpy()


def _shrink_rows(V: Tensor, threshold: float) -> Tensor:
    norms = torch.linalg.vector_norm(V, dim=1, keepdim=True).clamp_min(1e-300)
    return V * (1.0 - threshold / norms).clamp_min(0)


def slide(training: _TorchProblem, neurons: Neurons, *, n_steps: int) -> Neurons:
    """Lower the objective by L-BFGS on all (q_j, v_j) and b; never raises it.

    At balanced scales |q_j| = |v_j| the smooth regularizer ``alpha/2 (|q|^2 + |v|^2)`` equals
    ``alpha |q| |v|``, and it is an upper bound on it everywhere.
    """
    problem, m = training.problem, len(neurons)
    if m == 0:
        return neurons
    k, C = problem.Z.shape[1], problem.n_outputs
    root = np.sqrt(np.linalg.norm(neurons.weights, axis=1))[:, None]
    start = np.concatenate(
        [(neurons.directions * root).ravel(), (neurons.weights / root).ravel(), neurons.intercept]
    )

    def unpack(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        q, v = x[: m * k].reshape(m, k), x[m * k : m * (k + C)].reshape(m, C)
        return q, v, x[m * (k + C) :]

    def value_and_gradient(x: np.ndarray) -> tuple[float, np.ndarray]:
        q, v, b = (training.tensor(part) for part in unpack(x))
        H = training.Z @ q.T
        A = H.clamp_min(0)
        F = A @ v + b
        G = problem.loss.gradient(F, training.Y, training.p)
        value = float(problem.loss.value(F, training.Y, training.p))
        slopes = (G @ v.T).mul_(H > 0)
        parts = [slopes.T @ training.Z, A.T @ G, G.sum(dim=0) * float(problem.fit_intercept)]
        gradient = np.concatenate([part.cpu().numpy().ravel() for part in parts])
        weights = x[: m * (k + C)]
        gradient[: m * (k + C)] += problem.alpha * weights
        return value + 0.5 * problem.alpha * float(weights @ weights), gradient

    found = optimize.minimize(
        value_and_gradient,
        start,
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": n_steps, "maxcor": 20, "ftol": 1e-12, "gtol": 1e-12},
    )
    moved = Neurons.from_products(*unpack(found.x), None)
    return moved if problem.objective(moved) <= problem.objective(neurons) else neurons


def merge_equal_units(problem: Problem, neurons: Neurons) -> Neurons:
    """Merge neurons that are active on the same rows and share their output direction.

    Their products |v_j| q_j add up to one neuron of the same function on the training rows
    and, by the triangle inequality, no larger mass.
    """
    if len(neurons) == 0:
        return neurons
    mass = np.linalg.norm(neurons.weights, axis=1, keepdims=True)
    outputs = neurons.weights / mass
    patterns = np.packbits(problem.Z @ neurons.directions.T > 0, axis=0).T
    keys = np.hstack([patterns.astype(float), np.round(outputs, 9) + 0.0])
    _, first, group = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    q = np.zeros((len(first), neurons.directions.shape[1]))
    np.add.at(q, group.ravel(), mass * neurons.directions)
    return Neurons.from_products(q, outputs[first], neurons.intercept, None)

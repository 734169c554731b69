"""Pursuit: the full ReLU problem, over all arrangements rather than a list of them.

A fully corrective conditional gradient over neurons (mathematics: section 7). One round
searches for directions that violate the dual constraint, inserts the best, refits the
output weights (convex), and then slides: moves neurons and output weights together on the
smooth parametrization ``alpha/2 (|q_j|^2 + |v_j|^2)`` of the regularizer, whose minima have
the same objective. The bound on the optimum rests on the search and is an estimate.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import optimize

from sklearn_convexbn._problem import Neurons, Problem
from sklearn_convexbn._search import ascend, correlations, distinct_violators
from sklearn_convexbn.solvers._base import Iterate, RunSettings, Solver


class Pursuit(Solver):
    """Search, insert, refit and slide neurons until no direction violates the dual.

    Parameters
    ----------
    n_starts : int, default=100
        Random starts of each round's search.
    n_search_steps : int, default=30
        Ascent steps of each round's search.
    n_insert : int, default=40
        Largest number of neurons inserted in a round.
    n_slide_steps : int, default=50
        Quasi-Newton steps on all neurons in a round.
    certify_factor : int, default=10
        The stopping test is repeated with a fresh search of this many times the starts.
    """

    name = "pursuit"
    needs_arrangements = False

    def __init__(
        self,
        n_starts: int = 100,
        n_search_steps: int = 30,
        n_insert: int = 40,
        n_slide_steps: int = 50,
        certify_factor: int = 10,
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
        search = _Search(problem, settings, self.n_search_steps)
        training = _TorchProblem(problem, settings.device)
        neurons = settings.start or Neurons.empty(problem.Z.shape[1], problem.constant())
        neurons = replace(neurons, gates=None)
        while True:
            neurons, F = problem.with_best_intercept(neurons)
            Lambda = problem.dual_point(F)
            values, directions = search(Lambda, neurons, self.n_starts)
            largest = float(values.max())
            certificate = problem.certificate(neurons, largest_correlation=largest)[1]
            if certificate.gap <= settings.tol:
                more = search(Lambda, neurons, self.certify_factor * self.n_starts)
                values = np.concatenate([values, more[0]])
                directions = np.hstack([directions, more[1]])
                largest = float(values.max())
            yield Iterate(neurons, largest_correlation=largest)
            new = distinct_violators(
                values, directions, problem.alpha, most=self.n_insert, cosine=0.98
            )
            neurons = _inserted(neurons, directions[:, new].T)
            neurons = refit(training, neurons, n_steps=200)
            neurons = slide(training, neurons, n_steps=self.n_slide_steps)
            neurons = merge_equal_units(problem, neurons)
            neurons = refit(training, neurons, n_steps=400)


@dataclass(frozen=True)
class _Search:
    """Search of one problem: ascent in float32, values in float64."""

    problem: Problem
    settings: RunSettings
    n_steps: int

    def __call__(
        self, Lambda: np.ndarray, neurons: Neurons, n_starts: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return values (S,) and unit directions (k, S) found from random starts and neurons."""
        import torch

        device = self.settings.device
        Z = torch.as_tensor(self.problem.Z, device=device)
        L = torch.as_tensor(Lambda, device=device)
        # Scaling keeps float32 away from underflow; the ascent does not depend on it.
        L32 = (L / max(float(L.abs().max()), 1e-300)).float()
        random = self.settings.random_directions(n_starts)
        near = neurons.directions.T
        jitter = random[:, : near.shape[1]]
        near = near[:, : jitter.shape[1]] + 0.1 * jitter / np.sqrt(len(jitter))
        starts = np.hstack([random, neurons.directions.T, near])
        start_tensor = torch.as_tensor(starts, device=device).float()
        _, Q = ascend(Z.float(), L32, start_tensor, n_steps=self.n_steps)
        Q = torch.nn.functional.normalize(Q.double(), dim=0)
        return correlations(Z, L, Q).cpu().numpy(), Q.cpu().numpy()


class _TorchProblem:
    """The problem's arrays on a torch device, in float64."""

    def __init__(self, problem: Problem, device: str) -> None:
        import torch

        self.Z = torch.as_tensor(problem.Z, device=device)
        self.Y = torch.as_tensor(problem.Y, device=device)
        self.p = torch.as_tensor(problem.p, device=device)
        self.problem = problem

    def tensor(self, a: np.ndarray) -> Any:
        import torch

        return torch.as_tensor(np.ascontiguousarray(a), device=self.Z.device)


def _inserted(neurons: Neurons, directions: np.ndarray) -> Neurons:
    """Append neurons with zero output weights."""
    zeros = np.zeros((len(directions), neurons.weights.shape[1]))
    return replace(
        neurons,
        directions=np.vstack([neurons.directions, directions]),
        weights=np.vstack([neurons.weights, zeros]),
    )


def refit(training: _TorchProblem, neurons: Neurons, *, n_steps: int) -> Neurons:
    """Refit the output weights and the intercept by FISTA with restarts; drop zero neurons.

    Minimises ``L(A V + 1 b^T) + alpha sum_j |v_j|`` with fixed activations A, in the
    activations centred by the weights when b is fitted, so that b need not be stepped.
    """
    import torch

    problem = training.problem
    if len(neurons) == 0:
        return neurons
    A = (training.Z @ training.tensor(neurons.directions.T)).clamp_min(0)
    centre = training.p @ A if problem.fit_intercept else torch.zeros_like(A[0])
    Ac = A - centre
    gram = Ac.T @ (training.p[:, None] * Ac)
    lipschitz = problem.loss.curvature * float(torch.linalg.eigvalsh(gram)[-1].clamp_min(1e-12))
    V = training.tensor(neurons.weights)
    b = training.tensor(neurons.intercept) + centre @ V
    step_b = 1.0 / problem.loss.curvature
    W, c, t = V, b, 1.0
    value = float("inf")
    for i in range(n_steps):
        G = problem.loss.gradient(Ac @ W + c, training.Y, training.p)
        V_new = _shrink_rows(W - (Ac.T @ G) / lipschitz, problem.alpha / lipschitz)
        b_new = c - step_b * G.sum(dim=0) if problem.fit_intercept else c
        if float(((W - V_new) * (V_new - V)).sum() + ((c - b_new) * (b_new - b)).sum()) > 0:
            t = 1.0
        t_new = 0.5 * (1.0 + (1.0 + 4.0 * t * t) ** 0.5)
        momentum = (t - 1.0) / t_new
        W, c = V_new + momentum * (V_new - V), b_new + momentum * (b_new - b)
        V, b, t = V_new, b_new, t_new
        if i % 50 == 49:
            F = Ac @ V + b
            new = float(problem.loss.value(F, training.Y, training.p)) + problem.alpha * float(
                torch.linalg.vector_norm(V, dim=1).sum()
            )
            if value - new <= 1e-9 * abs(new):
                break
            value = new
    weights = V.cpu().numpy()
    keep = np.linalg.norm(weights, axis=1) > 0
    return Neurons(neurons.directions[keep], weights[keep], (b - centre @ V).cpu().numpy())


def _shrink_rows(V: Any, threshold: float) -> Any:
    import torch

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

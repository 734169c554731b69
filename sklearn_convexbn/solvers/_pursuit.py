"""Pursuit: the full ReLU problem, over all arrangements rather than a list of them.

A fully corrective conditional gradient over neurons. One round searches for directions that
violate the dual constraint, inserts the best, refits the output weights (convex), and then
slides: moves neurons and output weights together on the smooth parametrization
``alpha/2 (|q_j|^2 + |v_j|^2)`` of the regularizer, whose minima have the same objective.
The bound on the optimum rests on the search and is an estimate, unless the problem is small
enough for an exact one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from numbers import Integral
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from scipy import optimize

from sklearn_convexbn.program._problem import Neurons, Problem
from sklearn_convexbn.search._bound import THOROUGH_GENERATIONS, Found, proven
from sklearn_convexbn.solvers._base import Iterate, RunSettings, Solver
from sklearn_convexbn.solvers._orthant_slide import orthant_slide
from sklearn_convexbn.support._arrays import Array
from sklearn_convexbn.support._compat import Interval

if TYPE_CHECKING:
    from torch import Tensor

    from sklearn_convexbn.program.units._base import Units
    from sklearn_convexbn.search._search import Effort, Search

#: Relative duality gaps of the refits of one output and of several.
REFIT_TOLERANCE, MULTI_OUTPUT_TOLERANCE = 1e-7, 1e-4

#: Refits of several outputs are as accurate as this part of the gap so far.
REFIT_SHARE = 0.02

#: Rounds with a gap of more than this many tolerances search in so few steps, without circles.
ROUGH_GAPS, ROUGH_STEPS = 10.0, 10

#: The search that certifies: the operations its fresh starts may cost, and the least multiple of a
#: round's starts it has whatever they cost.
CERTIFYING_OPERATIONS, LEAST_CERTIFY_FACTOR = 2e10, 5


class Pursuit(Solver):
    """Search, insert, refit and slide neurons until no direction violates the dual.

    Parameters
    ----------
    n_starts : int, default=100
        Random starts of each round's search.
    n_search_steps : int, default=20
        Ascent steps of each round's search.
    n_insert : int, default=60
        Largest number of neurons inserted in a round.
    n_slide_steps : int, default=50
        Quasi-Newton steps on all neurons in a round.
    certify_factor : int, default=100
        The stopping test is repeated with a fresh search of up to this many times the starts,
        fewer where the rows and dimensions are many, but at least 5 times; or exactly, where
        they are few.
    """

    name = "pursuit"
    needs_arrangements = False
    pools = True
    reads_blocks = True

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "n_starts": [Interval(Integral, 1, None, closed="left")],
        "n_search_steps": [Interval(Integral, 1, None, closed="left")],
        "n_insert": [Interval(Integral, 1, None, closed="left")],
        "n_slide_steps": [Interval(Integral, 0, None, closed="left")],
        "certify_factor": [Interval(Integral, 1, None, closed="left")],
    }

    def __init__(
        self,
        n_starts: int = 100,
        n_search_steps: int = 20,
        n_insert: int = 60,
        n_slide_steps: int = 50,
        certify_factor: int = 100,
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
        from sklearn_convexbn.search._search import Search, distinct_violators

        training = _TorchProblem(problem, settings.device)
        search = Search(training.units, settings.random_directions, settings.random_state)
        neurons = settings.start or _nothing(problem)
        neurons = problem.shards.agreed(neurons)
        neurons = self._refined(problem, training, replace(neurons, gates=None), settings.tol)
        while True:
            # Processes decide alike, as they see the same sums; this makes sure once a round.
            neurons = problem.shards.agreed(neurons)
            neurons, F = problem.with_best_intercept(neurons)
            Lambda = problem.dual_point(F)
            found = self._search(problem, neurons, Lambda, search, settings)
            yield Iterate(neurons, largest_correlation=found.largest, proven=found.proven)
            signatures = training.units.signatures(found.directions)
            new = distinct_violators(
                found.values, signatures, problem.alpha, most=self.n_insert, cosine=0.98
            )
            neurons = _inserted(neurons, found.directions[:, new].T)
            gap = max(_gap(problem, neurons, found), settings.tol)
            neurons = self._refined(problem, training, neurons, gap)

    def _refined(
        self, problem: Problem, training: _TorchProblem, neurons: Neurons, gap: float
    ) -> Neurons:
        """Refit the output weights, slide the neurons, merge and refit; the gap is so far `gap`."""
        neurons = refit(training, neurons, tol=REFIT_SHARE * gap)
        move = orthant_slide if training.units.has_l1_norm else slide
        neurons = move(training, neurons, n_steps=self.n_slide_steps)
        neurons = merge_equal_units(problem, neurons)
        return refit(training, neurons, tol=REFIT_SHARE * gap)

    def _search(
        self,
        problem: Problem,
        neurons: Neurons,
        Lambda: Array,
        search: Search,
        settings: RunSettings,
    ) -> Found:
        """Search for violators, the harder the fewer there seem to be, at last for a proof."""
        known = neurons.directions.T
        some = known
        if len(neurons) > self.n_starts:
            some = known[:, search.random_state.permutation(len(neurons))[: self.n_starts]]
        rough, fine, certifying = self._efforts(problem)
        found = Found(*search(Lambda, some, rough))
        if _gap(problem, neurons, found) > ROUGH_GAPS * settings.tol:
            return found
        found = found.joined(Found(*search(Lambda, some, fine)))
        if _gap(problem, neurons, found) > settings.tol or settings.provisional:
            return found
        bounded = found.joined(proven(problem, Lambda))
        if bounded.proven and (bounded.is_tight or _gap(problem, neurons, bounded) <= settings.tol):
            return bounded
        return found.joined(Found(*search(Lambda, known, certifying)))

    def _efforts(self, problem: Problem) -> tuple[Effort, Effort, Effort]:
        """Return what a rough, a fine and a certifying search do."""
        from sklearn_convexbn.search._search import Effort

        rough = Effort(self.n_starts, self.n_starts, ROUGH_STEPS, 0, steered=True)
        fine = rough._replace(n_steps=self.n_search_steps, n_generations=1)
        units = problem.units
        certifying = Effort(
            self.certifying_starts(units.n_rows, units.n_parameters),
            LEAST_CERTIFY_FACTOR * self.n_starts,
            self.n_search_steps,
            THOROUGH_GENERATIONS,
        )
        return rough, fine, certifying

    def certifying_starts(self, n: int, k: int) -> int:
        """Return how many fresh starts the search has that certifies, for Z of shape (n, k)."""
        affordable = CERTIFYING_OPERATIONS / (4 * n * k * self.n_search_steps * self.n_starts)
        factor = max(min(self.certify_factor, affordable), LEAST_CERTIFY_FACTOR)
        return int(factor * self.n_starts)


def _gap(problem: Problem, neurons: Neurons, found: Found) -> float:
    """Return the relative gap that a search leaves."""
    return problem.certificate(neurons, largest_correlation=found.largest)[1].gap


class _TorchProblem:
    """The problem's tensors; arrays go to a torch device, rows as they are stored."""

    def __init__(self, problem: Problem, device: str) -> None:
        import torch

        self.units = problem.units.on(device)
        self.Y = torch.as_tensor(problem.Y, device=self.units.device)
        self.p = torch.as_tensor(problem.p, device=self.units.device)
        self.problem = problem

    def tensor(self, a: np.ndarray) -> Tensor:
        import torch

        return torch.as_tensor(np.ascontiguousarray(a), device=self.p.device)


def _nothing(problem: Problem) -> Neurons:
    """Return the network without hidden units, with the best intercept."""
    return Neurons.empty(problem.units.n_parameters, problem.constant(), problem.units.n_cells)


def _inserted(neurons: Neurons, directions: np.ndarray) -> Neurons:
    """Append neurons with zero output weights."""
    zeros = np.zeros((len(directions), neurons.weights.shape[1]))
    return replace(
        neurons,
        directions=np.vstack([neurons.directions, directions]),
        weights=np.vstack([neurons.weights, zeros]),
    )


def refit(
    training: _TorchProblem, neurons: Neurons, *, tol: float = MULTI_OUTPUT_TOLERANCE
) -> Neurons:
    """Refit the output weights and the intercept to fixed directions; drop zero neurons.

    Minimises ``L(A V + 1 b^T) + alpha sum_j |v_j|`` with fixed activations A. For several outputs
    `tol` is the relative duality gap to reach, if it is above `MULTI_OUTPUT_TOLERANCE`.
    """
    from sklearn_convexbn.solvers._lasso import lasso_refit
    from sklearn_convexbn.solvers._multi_output_refit import multi_output_refit

    if len(neurons) == 0:
        return neurons
    problem = training.problem
    A = training.units.activations(training.tensor(neurons.directions.T))
    V, b = training.tensor(neurons.weights), training.tensor(neurons.intercept)
    arguments = (A, training.Y, training.p, problem.loss, problem.alpha, problem.fit_intercept)
    if problem.n_weights == 1:
        V, b = lasso_refit(*arguments, V, tol=REFIT_TOLERANCE)
    else:
        stacked = V.reshape(-1, problem.n_outputs)  # the cells of a unit below each other
        V, b = multi_output_refit(*arguments, stacked, b, tol=max(tol, MULTI_OUTPUT_TOLERANCE))
    output = V.cpu().numpy().reshape(len(neurons), -1)
    keep = np.linalg.norm(output, axis=1) > 0
    return Neurons(neurons.directions[keep], output[keep], b.cpu().numpy())


def slide(training: _TorchProblem, neurons: Neurons, *, n_steps: int) -> Neurons:
    """Lower the objective by L-BFGS on all (q_j, v_j) and b; never raises it.

    At balanced scales |q_j| = |v_j| the smooth regularizer ``alpha/2 (|q|^2 + |v|^2)`` equals
    ``alpha |q| |v|``, and it is an upper bound on it everywhere.
    """
    problem, m = training.problem, len(neurons)
    if m == 0:
        return neurons
    units, C = training.units, problem.n_weights
    k = units.n_parameters
    root = np.sqrt(np.linalg.norm(neurons.weights, axis=1))[:, None]
    start = np.concatenate(
        [(neurons.directions * root).ravel(), (neurons.weights / root).ravel(), neurons.intercept]
    )

    def unpack(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        q, v = x[: m * k].reshape(m, k), x[m * k : m * (k + C)].reshape(m, C)
        return q, v, x[m * (k + C) :]

    def value_and_gradient(x: np.ndarray) -> tuple[float, np.ndarray]:
        q, v, _ = unpack(x)
        Q, V, b = (training.tensor(part).to(units.precision) for part in unpack(x))
        value, dQ, dV, db = units.loss(problem.loss, training.Y, training.p, Q.T.contiguous(), V, b)
        parts = [dQ.T, dV, db * float(problem.fit_intercept)]
        gradient = np.concatenate([part.double().cpu().numpy().ravel() for part in parts])
        penalty, slopes = units.penalty(q.T)
        gradient[: m * k] += problem.alpha * slopes.T.ravel()
        gradient[m * k : m * (k + C)] += problem.alpha * v.ravel()
        return value + problem.alpha * (penalty + 0.5 * float((v * v).sum())), gradient

    found = optimize.minimize(
        value_and_gradient,
        start,
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": n_steps, "maxcor": 20, "ftol": 1e-12, "gtol": 1e-12},
    )
    moved = _of_norm_one(units, *unpack(found.x))
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
    rounded = np.ascontiguousarray(np.round(outputs, 9) + 0.0)
    keys = np.hstack([problem.units.patterns(neurons.directions.T), rounded.view(np.uint8)])
    _, first, group = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    q = np.zeros((len(first), neurons.directions.shape[1]))
    np.add.at(q, group.ravel(), mass * neurons.directions)
    return _of_norm_one(problem.units, q, outputs[first], neurons.intercept)


def _of_norm_one(units: Units, q: np.ndarray, v: np.ndarray, b: np.ndarray) -> Neurons:
    """Return neurons of units q_j (m, k) and output weights v_j of any size, without zero ones."""
    norms = units.norms(q.T)
    keep = (norms > 0) & (np.linalg.norm(v, axis=1) > 0)
    q, v, norms = q[keep], v[keep], norms[keep, None]
    return Neurons(q / norms, v * norms, b)

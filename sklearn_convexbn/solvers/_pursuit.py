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

from sklearn_convexbn.program._problem import Neurons, Problem
from sklearn_convexbn.solvers._base import COMPACT_TOLERANCE, Iterate, RunSettings, Solver
from sklearn_convexbn.solvers._orthant_slide import orthant_slide
from sklearn_convexbn.solvers._round_search import RoundSearch
from sklearn_convexbn.solvers._slide import of_norm_one, slide
from sklearn_convexbn.support._compat import Interval, StrOptions

if TYPE_CHECKING:
    from torch import Tensor

#: Relative duality gaps of the refits of one output and of several.
REFIT_TOLERANCE, MULTI_OUTPUT_TOLERANCE = 1e-7, 1e-4

#: Refits of several outputs are as accurate as these parts of the gap so far: the first one of a
#: round, whose weights the slide goes on to change, and the last one.
FIRST_REFIT_SHARE, LAST_REFIT_SHARE = 0.2, 0.05


class Pursuit(Solver):
    """Search, insert, refit and slide neurons until no direction violates the dual.

    Parameters
    ----------
    n_starts : int, default=100
        Random starts of each round's search.
    n_search_steps : int, default=20
        Ascent steps of each round's search, once a rough one of 10 steps lets the fit stop.
    n_insert : int, default=60
        Largest number of neurons inserted in a round.
    n_slide_steps : int, default=30
        Quasi-Newton steps on all neurons in a round.
    n_verify : int or "auto", default="auto"
        Random starts of the verification: a search with random numbers of its own that is made
        once the fit would stop, where nothing can be proven, and reported whatever it finds. If
        that is more than ``tol`` allows, it ends, the fit goes on from there, and the next
        verification has twice the starts this one was to have. "auto" takes about as many as the
        rounds had together, but at most as many as cost a third of the fit so far, each time; 0
        verifies nothing.
    """

    name = "pursuit"
    needs_arrangements = False
    pools = True
    adds_neurons = True
    reads_blocks = True

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "n_starts": [Interval(Integral, 1, None, closed="left")],
        "n_search_steps": [Interval(Integral, 1, None, closed="left")],
        "n_insert": [Interval(Integral, 1, None, closed="left")],
        "n_slide_steps": [Interval(Integral, 0, None, closed="left")],
        "n_verify": [Interval(Integral, 0, None, closed="left"), StrOptions({"auto"})],
    }

    def __init__(
        self,
        n_starts: int = 100,
        n_search_steps: int = 20,
        n_insert: int = 60,
        n_slide_steps: int = 30,
        n_verify: int | str = "auto",
    ) -> None:
        self.n_starts = n_starts
        self.n_search_steps = n_search_steps
        self.n_insert = n_insert
        self.n_slide_steps = n_slide_steps
        self.n_verify = n_verify

    def unsupported(self, problem: Problem) -> str:
        if problem.activation != "relu":
            return f"activation={problem.activation!r}"
        return ""

    def iterates(self, problem: Problem, settings: RunSettings) -> Iterator[Iterate]:
        from sklearn_convexbn.search._search import distinct_violators

        training = _TorchProblem(problem, settings.device, settings.tol)
        search = RoundSearch(
            problem,
            training.units,
            settings,
            n_starts=self.n_starts,
            n_steps=self.n_search_steps,
            n_slide_steps=self.n_slide_steps,
            n_verify=self.n_verify,
        )
        neurons = settings.start or problem.nothing[0]
        neurons = problem.shards.agreed(neurons)
        neurons = self._refined(problem, training, replace(neurons, gates=None), settings.tol)
        while True:
            # Processes decide alike, as they see the same sums; this makes sure once a round.
            neurons = problem.shards.agreed(neurons)
            neurons, F = problem.with_best_intercept(neurons)
            Lambda = problem.dual_point(F)
            found, gap, n_verified, n_hits = search(neurons, Lambda)
            yield Iterate(
                neurons,
                largest_correlation=found.largest,
                proven=found.proven,
                n_verified=n_verified,
                n_hits=n_hits,
            )
            signatures = training.units.signatures(found.directions)
            new = distinct_violators(
                found.values, signatures, problem.alpha, most=self.n_insert, cosine=0.98
            )
            neurons = _inserted(neurons, found.directions[:, new].T)
            neurons = self._refined(problem, training, neurons, max(gap, settings.tol))

    def _refined(
        self, problem: Problem, training: _TorchProblem, neurons: Neurons, gap: float
    ) -> Neurons:
        """Refit the output weights, slide the neurons, merge and refit; the gap is so far `gap`."""
        neurons = refit(training, neurons, tol=FIRST_REFIT_SHARE * gap)
        move = orthant_slide if training.units.has_l1_norm else slide
        neurons = move(training, neurons, n_steps=self.n_slide_steps)
        neurons = merge_equal_units(problem, neurons)
        return refit(training, neurons, tol=LAST_REFIT_SHARE * gap)


class _TorchProblem:
    """The problem's tensors; arrays go to a torch device, rows as they are stored.

    The slide's products are in float32 where a relative gap of `tol` allows it, whatever the rows
    are stored in.
    """

    def __init__(self, problem: Problem, device: str, tol: float = 0.0) -> None:
        import torch

        self.units = problem.units.on(device)
        compact = tol >= COMPACT_TOLERANCE
        self.precision = torch.float32 if compact else self.units.precision
        self.Y = torch.as_tensor(problem.Y, device=self.units.device)
        self.p = torch.as_tensor(problem.p, device=self.units.device)
        self.problem = problem

    def tensor(self, a: np.ndarray) -> Tensor:
        import torch

        return torch.as_tensor(np.ascontiguousarray(a), device=self.p.device)


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
    return of_norm_one(problem.units, q, outputs[first], neurons.intercept)

"""Zeros among the parameters of hidden units, for kinds of units whose norm rewards them."""

from __future__ import annotations

from dataclasses import replace

from sklearn_convexbn.program._problem import Neurons, Problem


def thinned(problem: Problem, neurons: Neurons) -> Neurons:
    """Return a network with more zeros in its units, as many as do not raise the objective.

    Each set of units that the kind offers is taken in turn, as long as the objective with the best
    intercept does not rise; units that become shorter pass their length on to the output weights.
    """
    if len(neurons) == 0:
        return neurons
    best, value = neurons, problem.objective(neurons)
    for Q in problem.units.thinner(neurons.directions.T):
        norms = problem.units.norms(Q)
        kept = norms > 0
        candidate = replace(
            neurons,
            directions=(Q[:, kept] / norms[kept]).T,
            weights=neurons.weights[kept] * norms[kept, None],
        )
        candidate, _ = problem.with_best_intercept(candidate)
        new = problem.objective(candidate)
        if not new <= value:
            break
        best, value = candidate, new
    return best

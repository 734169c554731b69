"""The dual of small gated programs: certified gaps, sparse networks, and when it is solved."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sklearn_convexbn.data._pooling import Pooling
from sklearn_convexbn.losses import Poisson
from sklearn_convexbn.solvers import _fista, _gated_dual
from sklearn_convexbn.solvers._gated_dual import affordable, solve_dual
from sklearn_convexbn.solvers._gated_program import GatedProgram
from tests.helpers import make_problem, solve, targets
from tests.small_programs import random_problem

#: Six patches of a sample, pooled to two overlapping cells.
SIX_PATCHES = Pooling(np.array([[1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1]]).T / 4.0)


def problem_of(loss, C, *, n=30, d=3, alpha=2e-3, **kwargs):
    rng = np.random.default_rng(C)
    X, Y = rng.normal(size=(n, d)), targets(rng, n, loss, C)
    return make_problem(X, Y, loss, alpha, "gated_relu", gates=12, **kwargs)


def pooled_problem(loss, C):
    rng = np.random.default_rng(C)
    problem = problem_of(loss, C, n=120)
    Y = targets(rng, 20, loss, C)
    return replace(problem, Y=Y, p=np.full(20, 0.05), pooling=SIX_PATCHES)


def program_of(problem, dtype=torch.float64):
    return GatedProgram(problem, "cpu", dtype)


def certified(problem, tol):
    """Return the network of the dual and its certificate with the dual's own point."""
    program = program_of(problem)
    point, Lambda = solve_dual(program, tol)
    return problem.certificate(program.neurons(point), Lambda=Lambda.numpy())


CASES = {
    "squared, one output": lambda: problem_of("squared", 1),
    "squared, more outputs than columns": lambda: problem_of("squared", 6),
    "logistic": lambda: problem_of("logistic", 1),
    "softmax": lambda: problem_of("softmax", 3),
    "softmax, no intercept": lambda: problem_of("softmax", 3, fit_intercept=False),
    "squared, no intercept": lambda: problem_of("squared", 2, fit_intercept=False),
    "squared, pooled": lambda: pooled_problem("squared", 2),
    "softmax, pooled": lambda: pooled_problem("softmax", 3),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("tol", [1e-3, 1e-7])
def test_the_gap_is_proven(case, tol):
    certificate = certified(CASES[case](), tol)[1]
    assert certificate.kind == "exact"
    assert 0.0 <= certificate.gap <= tol


@pytest.mark.parametrize("case", CASES)
def test_the_value_is_that_of_proximal_and_newton_steps(case, monkeypatch):
    monkeypatch.setattr(_gated_dual, "MAX_STEP_COST", 0.0)
    problem = CASES[case]()
    other = solve(problem, "fista", tol=1e-6, max_iter=300)
    neurons, certificate = certified(problem, 1e-7)
    assert certificate.primal == pytest.approx(other.certificate.primal, rel=2e-6)
    assert len(neurons) <= len(other.neurons) + 2  # as sparse, but for units that weigh nothing


def test_factor_steps_that_creep_give_way_to_the_dual(monkeypatch):
    """Rank-two blocks on 7 rows: 200 rounds before."""
    problem = random_problem(12, "gated, fista")
    result = solve(problem, "fista", tol=1e-6, max_iter=1000)
    assert 0.0 <= result.certificate.gap <= 1e-6
    assert result.n_iter <= 2 * _fista.ROUNDS_TO_DUAL + 2
    monkeypatch.setattr(_gated_dual, "MAX_STEP_COST", 0.0)
    with pytest.warns(match="relative duality gap"):
        assert solve(problem, "fista", tol=1e-6, max_iter=20).certificate.gap > 1e-6


def test_large_programs_other_precisions_and_other_losses_are_left_to_other_steps():
    problem = problem_of("softmax", 3)
    assert affordable(program_of(problem), 12)
    assert not affordable(program_of(problem, torch.float32), 12)
    assert not affordable(program_of(problem), 10**6)
    assert not affordable(program_of(replace(problem, loss=Poisson())), 12)

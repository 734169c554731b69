"""No solver stalls: random small programs, degenerate on purpose, are all solved to 1e-6.

The environment variable CONVEXBN_PROGRAMS sets the number of programs of each kind.
"""

import os
import warnings

import cvxpy as cp
import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning

from tests.helpers import solve
from tests.small_programs import KINDS, SOLVERS, random_problem, random_refit, solved_gap

TOL = 1e-6

#: Programs of each kind in the suite.
COUNTS = {
    "gated, newton": 60,
    "gated, fista": 25,
    "relu list": 40,
    "lasso": 50,
    "several outputs": 30,
}
COUNT = int(os.environ.get("CONVEXBN_PROGRAMS", "0"))
BLOCK = 20

#: Programs on which solvers stopped above 1e-6, or took hundreds of rounds, before they had a safe
#: method to go on with.
STALLED = {
    "gated, newton": [15, 51, 125, 177],
    "relu list": [25, 161, 177, 182, 215, 406, 612, 675],
    "lasso": [32, 156, 192],
    "several outputs": [80, 127],
}


def blocks():
    for kind in KINDS:
        seeds = range(COUNT or COUNTS[kind])
        for first in seeds[::BLOCK]:
            yield pytest.param(kind, seeds[first : first + BLOCK], id=f"{kind}, from {first}")
        if kind in STALLED:
            yield pytest.param(kind, STALLED[kind], id=f"{kind}, chosen")


@pytest.mark.parametrize(("kind", "seeds"), list(blocks()))
def test_every_small_program_is_solved(kind, seeds):
    gaps = {seed: solved_gap(seed, kind, TOL)[1] for seed in seeds}
    assert {seed: gap for seed, gap in gaps.items() if not 0.0 <= gap <= TOL} == {}


def test_newton_steps_that_creep_take_turns_with_block_descent():
    """The gap stayed at 0.009 for more than a hundred rounds."""
    problem = random_problem(194, "gated, newton")
    result = solve(problem, SOLVERS["gated, newton"], tol=TOL, max_iter=40)
    assert 0.0 <= result.certificate.gap <= TOL


def tame(kind, draw, count):
    """Return the first programs of a kind whose weights are within three orders of magnitude."""
    programs = (draw(seed, kind) for seed in range(100))
    return [program for program in programs if program.p.min() > 1e-3 * program.p.max()][:count]


@pytest.mark.parametrize("kind", SOLVERS)
def test_optimum_of_cvxpy(kind):
    compared = 0
    for problem in tame(kind, random_problem, 6):
        value = solve(problem, SOLVERS[kind], tol=TOL, max_iter=1000).certificate.primal
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            # Clarabel ends where it can: the optimum lies between its bound and its value.
            reference = solve(problem, "cvxpy", tol=1e-4).certificate
        assert reference.dual * (1 - 1e-9) <= value <= reference.primal * (1 + TOL)
        compared += reference.gap <= 1e-4
    assert compared >= 4


@pytest.mark.parametrize("kind", ["lasso", "several outputs"])
def test_optimum_of_a_refit_in_cvxpy(kind):
    for refit in tame(kind, random_refit, 5):
        V, b = cp.Variable(refit.start.shape), cp.Variable((1, refit.Y.shape[1]))
        F, size = refit.A @ V + np.ones((len(refit.Y), 1)) @ b, refit.cells
        if refit.loss == "squared":
            rows = cp.sum(cp.square(F - refit.Y), axis=1) / 2
        elif refit.loss == "logistic":
            rows = (cp.logistic(F) - cp.multiply(refit.Y, F))[:, 0]
        else:
            rows = cp.log_sum_exp(F, axis=1) - cp.sum(cp.multiply(refit.Y, F), axis=1)
        units = range(0, V.shape[0], size)
        mass = sum(cp.norm(cp.vec(V[j : j + size], order="C")) for j in units)
        n = len(refit.Y)  # Clarabel's tolerances are partly absolute
        program = cp.Problem(
            cp.Minimize(n * (refit.p @ rows + refit.alpha * mass)),
            [] if refit.fit_intercept else [b == 0],
        )
        tight = dict.fromkeys(("tol_gap_abs", "tol_gap_rel", "tol_feas"), 1e-9)
        program.solve(solver="CLARABEL", **tight)
        assert refit.value(*refit.solved(TOL)) == pytest.approx(program.value / n, rel=2e-6)

"""The dual of small gated programs: certified gaps, sparse networks, and when it is solved."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sklearn_convexbn.data._pooling import Pooling
from sklearn_convexbn.losses import Loss, Poisson
from sklearn_convexbn.losses._base import LOSSES
from sklearn_convexbn.losses._dual_rows import DualRows
from sklearn_convexbn.program.units._whitened import WhitenedUnits
from sklearn_convexbn.solvers import _fista
from sklearn_convexbn.solvers._gated_dual import affordable, solve_dual
from sklearn_convexbn.solvers._gated_program import GatedProgram
from sklearn_convexbn.support._sharding import ALL_HERE
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
    units = WhitenedUnits(problem.Z, ALL_HERE, SIX_PATCHES)
    return replace(problem, units=units, Y=Y, p=np.full(20, 0.05))


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


class WithoutDual(_fista.FISTA):
    max_dual_cost = 0.0


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("tol", [1e-3, 1e-7])
def test_the_gap_is_proven(case, tol):
    certificate = certified(CASES[case](), tol)[1]
    assert certificate.kind == "exact"
    assert 0.0 <= certificate.gap <= tol


@pytest.mark.parametrize("case", CASES)
def test_the_value_is_that_of_proximal_and_newton_steps(case):
    problem = CASES[case]()
    other = solve(problem, WithoutDual(), tol=1e-6, max_iter=300)
    neurons, certificate = certified(problem, 1e-7)
    assert certificate.primal == pytest.approx(other.certificate.primal, rel=2e-6)
    assert len(neurons) <= len(other.neurons) + 2  # as sparse, but for units that weigh nothing


def test_factor_steps_that_creep_give_way_to_the_dual():
    """Rank-two blocks on 7 rows: 200 rounds before."""
    problem = random_problem(12, "gated, fista")
    result = solve(problem, "fista", tol=1e-6, max_iter=1000)
    assert 0.0 <= result.certificate.gap <= 1e-6
    assert result.n_iter <= 2 * _fista.ROUNDS_TO_DUAL + 2
    with pytest.warns(match="relative duality gap"):
        assert solve(problem, WithoutDual(), tol=1e-6, max_iter=20).certificate.gap > 1e-6


class Margin(Loss):
    """``log(1 + exp(-y f))`` for y = -1 and 1: a loss of the test's own, with its dual rows."""

    name = "margin"
    curvature = 0.25
    accepts = frozenset({"labels"})

    @staticmethod
    def codes(Y):
        return 0.5 * (Y + 1.0)

    def value(self, F, Y, p):
        return LOSSES["logistic"].value(F, self.codes(Y), p)

    def gradient(self, F, Y, p):
        return LOSSES["logistic"].gradient(F, self.codes(Y), p)

    def hessian(self, F, Y, p):
        return LOSSES["logistic"].hessian(F, self.codes(Y), p)

    def conjugate(self, U, Y, p):
        return LOSSES["logistic"].conjugate(U, self.codes(Y), p)

    def dual_rows(self, Y, p):
        return MarginRows(Y, p)


class MarginRows(DualRows):
    def __init__(self, Y, p):
        self.maps, self.p = Y[:, :, None], p[:, None]

    def inside(self, x):
        return bool(((x > 0.0) & (x < 1.0)).all())

    def value(self, x):
        return float((self.p * (x * x.log() + (1.0 - x) * (1.0 - x).log())).sum())

    def slopes(self, x):
        return self.p * (x.log() - (1.0 - x).log()), (self.p / (x * (1.0 - x)))[:, :, None]


class Distance(Loss):
    """The squared distance from twice the target, for any number of outputs, and no more."""

    name = "distance"
    curvature = 1.0
    identity_hessian = True

    def value(self, F, Y, p):
        return LOSSES["squared"].value(F, 2.0 * Y, p)

    def gradient(self, F, Y, p):
        return LOSSES["squared"].gradient(F, 2.0 * Y, p)

    def hessian(self, F, Y, p):
        return LOSSES["squared"].hessian(F, 2.0 * Y, p)

    def conjugate(self, U, Y, p):
        return LOSSES["squared"].conjugate(U, 2.0 * Y, p)


@pytest.mark.parametrize(
    ("own", "known", "C"), [(Margin(), "logistic", 1), (Distance(), "squared", 3)]
)
def test_a_loss_of_ones_own_says_its_structure(own, known, C):
    problem = problem_of(known, C)
    targets = 2.0 * problem.Y - 1.0 if known == "logistic" else 0.5 * problem.Y
    other = replace(problem, loss=own, Y=targets)
    assert affordable(program_of(other), 12)
    expected, certificate = (certified(a, 1e-7)[1] for a in (problem, other))
    assert certificate.primal == pytest.approx(expected.primal, rel=1e-9)
    assert 0.0 <= certificate.gap <= 1e-7


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
@pytest.mark.parametrize(("loss", "C"), [("squared", 2), ("logistic", 1), ("softmax", 3)])
def test_dual_rows_are_the_conjugate_and_its_derivatives(loss, C, kind):
    rng = np.random.default_rng(0)
    Y, p = targets(rng, 9, loss, C), rng.dirichlet(np.ones(9))
    rows = LOSSES[loss].dual_rows(kind(Y), kind(p))
    q = np.asarray(rows.maps).shape[2]
    x = rng.dirichlet(np.ones(q + 1), size=9)[:, :q]

    def value(x):
        Lambda = p[:, None] * (np.asarray(rows.maps) @ x[:, :, None])[:, :, 0]
        return LOSSES[loss].conjugate(-Lambda, Y, p)

    start = np.full_like(x, 1.0 / (q + 1))
    change = rows.value(kind(x)) - rows.value(kind(start))
    assert change == pytest.approx(value(x) - value(start), rel=1e-12, abs=1e-14)
    gradient, hessians = (np.asarray(a) for a in rows.slopes(kind(x)))
    for i, j in np.ndindex(9, q):
        step = np.zeros_like(x)
        step[i, j] = 1e-6
        slope = (value(x + step) - value(x - step)) / 2e-6
        assert slope == pytest.approx(gradient[i, j], rel=1e-5, abs=1e-8)
        up, down = (np.asarray(rows.slopes(kind(x + s * step))[0])[i] for s in (1, -1))
        np.testing.assert_allclose((up - down) / 2e-6, hessians[i, j], rtol=1e-4, atol=1e-8)
    assert rows.inside(kind(x))
    assert rows.inside(kind(x + 1.0)) == (loss == "squared")


def test_large_programs_other_precisions_and_other_losses_are_left_to_other_steps():
    problem = problem_of("softmax", 3)
    assert affordable(program_of(problem), 12)
    assert not affordable(program_of(problem, torch.float32), 12)
    assert not affordable(program_of(problem), 10**6)
    assert not affordable(program_of(replace(problem, loss=Poisson())), 12)

"""The ReLU program on a list of arrangements, one output: the interior-point solver.

Reference values come from a CVXPY program written here; bounds are checked with NNLS.
"""

import functools
import itertools
import warnings
from dataclasses import replace

import cvxpy as cp
import numpy as np
import pytest
import torch
from scipy import optimize
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.exceptions import ConvergenceWarning

from sklearn_convexbn import ConvexBNRegressor, solvers
from sklearn_convexbn.losses._base import LOSSES
from sklearn_convexbn.program._problem import Problem
from sklearn_convexbn.program.units._whitened import WhitenedUnits
from sklearn_convexbn.solvers import _arrangement_program, _interior_rounds, _interior_step
from sklearn_convexbn.solvers._cones import project_on_cones
from sklearn_convexbn.solvers._interior_point import InteriorPoint
from sklearn_convexbn.solvers._interior_rounds import Plan, interior_point
from sklearn_convexbn.support._sharding import ALL_HERE
from tests.helpers import hidden, make_problem, solve


def at_share(problem, share):
    """Set alpha to a share of the largest gate norm at the constant model."""
    constant = np.zeros_like(problem.Y) + problem.constant()
    return replace(
        problem, alpha=share * float(problem.gate_norms(problem.dual_point(constant)).max())
    )


def alpha_max(problem):
    """Return the smallest alpha with an empty network, by NNLS."""
    Lambda = problem.dual_point(np.zeros_like(problem.Y) + problem.constant())
    return largest_correlation(problem, Lambda)


def largest_correlation(problem, Lambda):
    """Return the largest ``<+-Z^T D_i Lambda, q>`` over unit q in cone i, by NNLS."""
    largest = 0.0
    for pattern in problem.patterns.T:
        M = (np.where(pattern, 1.0, -1.0)[:, None] * problem.Z).T
        c = problem.Z.T @ (pattern * Lambda[:, 0])
        for sign in (1.0, -1.0):
            size = np.linalg.norm(c)
            if size > largest:
                largest = max(largest, size * optimize.nnls(M, -sign * c / size)[1])
    return largest


def reference_value(problem):
    """Return the optimal value of the program, stated in CVXPY block by block."""
    y, masses, constraints = problem.Y[:, 0], [], []
    intercept = cp.Variable() if problem.fit_intercept else 0.0
    fit = intercept + np.zeros(len(y))
    for pattern in problem.patterns.T:
        half_spaces = (2.0 * pattern - 1.0)[:, None] * problem.Z
        for sign in (1.0, -1.0):
            s = cp.Variable(problem.Z.shape[1])
            fit = fit + sign * (pattern[:, None] * problem.Z) @ s
            masses.append(cp.norm(s))
            constraints.append(half_spaces @ s >= 0)
    if problem.loss.name == "squared":
        rows = cp.square(fit - y) / 2
    else:
        rows = cp.logistic(fit) - cp.multiply(y, fit)
    # Sums over rows, not means: Clarabel loses digits where the objective is small.
    total = len(y) * (problem.p @ rows + problem.alpha * sum(masses))
    program = cp.Problem(cp.Minimize(total), constraints)
    with warnings.catch_warnings():
        # Clarabel says so where its last digits are missing; the comparison will tell.
        warnings.filterwarnings("ignore", message="Solution may be inaccurate")
        # With its defaults, 1e-8 and 0.99, it stops 1e-4 above the optimum on some processors.
        safe = {"static_regularization_constant": 1e-10, "max_step_fraction": 0.9}
        return program.solve(solver="CLARABEL", **safe) / len(y)


@functools.cache
def diabetes(gates=40, share=0.01, **options):
    X, y = load_diabetes(return_X_y=True)
    y = (y - y.mean()) / y.std()
    return at_share(make_problem(X[:120], y[:120], "squared", 1.0, gates=gates, **options), share)


@functools.cache
def breast_cancer(gates=20, share=0.01):
    X, y = load_breast_cancer(return_X_y=True)
    X = (X - X.mean(axis=0)) / X.std(axis=0)
    problem = make_problem(X[:150], y[:150], "logistic", 1.0, gates=gates, n_components=5)
    return at_share(problem, share)


def small_problem(loss, *, n=40, d=3, gates=15, alpha=0.01, seed=0, **options):
    rng = np.random.default_rng(seed)
    X, y = rng.normal(size=(n, d)), rng.normal(size=n)
    y = y if loss == "squared" else (np.arange(n) % 2).astype(float)
    return make_problem(X, y, loss, alpha, gates=gates, **options)


def iterates(problem, tol=1e-7, start=None):
    """Run the solver to its own end."""
    settings = solvers.RunSettings(
        tol=tol, device="cpu", random_directions=None, random_state=None, start=start
    )
    return list(interior_point(problem, settings))


class Planned(InteriorPoint):
    def __init__(self, plan=None):
        self.plan = plan

    def iterates(self, problem, settings):
        return interior_point(problem, settings, self.plan)


def assert_solved(problem, gap=1e-6, plan=None, **options):
    """Solve through the driver; check the network and its bound; return the result."""
    result = solve(problem, Planned(plan), tol=gap, **options)
    certificate = result.certificate
    assert certificate.kind == "exact"
    assert -1e-9 <= certificate.gap <= gap
    assert problem.cone_violation(result.neurons) <= 1e-9
    assert certificate.primal == pytest.approx(problem.objective(result.neurons), rel=1e-12)
    return result


CASES = [
    pytest.param(case, share, id=f"{case.__wrapped__.__name__}-{share}")
    for case in (diabetes, breast_cancer)
    for share in (0.1, 0.01, 0.001)
]


@pytest.mark.parametrize(("case", "share"), CASES)
def test_agrees_with_cvxpy(case, share):
    problem = case(share=share)
    result = assert_solved(problem, gap=1e-7)
    reference = reference_value(problem)
    # The bound is rigorous; what the reference lies above the optimum is its own error.
    assert result.certificate.dual <= reference * (1 + 1e-6)
    assert result.certificate.primal == pytest.approx(reference, rel=1e-6)


@pytest.mark.parametrize(("case", "share"), CASES)
def test_bounds_hold_by_nnls(case, share):
    problem = case(share=share)
    for iterate in iterates(problem, tol=1e-6):
        assert iterate.proven
        assert abs(iterate.Lambda.sum()) <= 1e-13 * np.abs(iterate.Lambda).sum()
        exact = largest_correlation(problem, iterate.Lambda)
        assert exact <= iterate.largest_correlation * (1 + 1e-9)
        certificate = problem.certificate(
            iterate.neurons,
            Lambda=iterate.Lambda,
            largest_correlation=iterate.largest_correlation,
            proven=True,
        )[1]
        assert certificate.dual <= certificate.primal * (1 + 1e-9)
        assert problem.cone_violation(iterate.neurons) <= 1e-9
    assert iterate.stalled
    # Near the end the multipliers' bound is the exact one.
    assert iterate.largest_correlation == pytest.approx(exact, rel=1e-4)


def test_active_neurons_meet_the_dual_constraint():
    problem = diabetes(share=0.05)
    last = iterates(problem, tol=1e-9)[-1]
    activations = hidden(problem, last.neurons.directions)
    slopes = np.sign(last.neurons.weights[:, 0]) * (activations.T @ last.Lambda)[:, 0]
    np.testing.assert_allclose(slopes, problem.alpha, rtol=1e-3)


@pytest.mark.parametrize("loss", ["squared", "logistic"])
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_all_arrangements(loss, fit_intercept):
    rng = np.random.default_rng(3)
    X, y = rng.normal(size=(14, 2)), rng.normal(size=14)
    y = y if loss == "squared" else (y > 0).astype(float)
    problem = make_problem(X, y, loss, 0.02, gates="all", fit_intercept=fit_intercept)
    every = assert_solved(problem, gap=1e-7)
    assert every.certificate.program == "all arrangements"
    assert every.certificate.primal == pytest.approx(reference_value(problem), rel=1e-6)
    for seed in range(3):
        sample = make_problem(X, y, loss, 0.02, gates=25, seed=seed, fit_intercept=fit_intercept)
        assert every.certificate.dual <= assert_solved(sample).certificate.primal


def test_two_kept_features_of_real_rows():
    X, y = load_diabetes(return_X_y=True)
    y = (y[:20] - y[:20].mean()) / y[:20].std()
    problem = make_problem(X[:20], y, "squared", 0.02, gates="all", n_components=2)
    result = assert_solved(problem, gap=1e-7)
    assert result.certificate.primal == pytest.approx(reference_value(problem), rel=1e-6)


@pytest.mark.parametrize("case", [diabetes, breast_cancer])
def test_more_arrangements_are_never_worse(case):
    largest = case(gates=80, share=0.02)
    values = [
        assert_solved(replace(largest, gates=largest.gates[:, :P])).certificate.primal
        for P in (10, 20, 40, 80)
    ]
    assert all(more <= fewer * (1 + 1e-6) for fewer, more in itertools.pairwise(values))


def test_a_smaller_alpha_lowers_the_objective():
    values = [
        assert_solved(diabetes(share=share)).certificate.primal for share in (0.2, 0.05, 0.01)
    ]
    assert values[0] > values[1] > values[2]


@pytest.mark.parametrize("case", [diabetes, breast_cancer])
def test_alpha_max_is_sharp(case):
    problem = case(gates=20)
    top = alpha_max(problem)
    empty = assert_solved(replace(problem, alpha=1.000001 * top), gap=1e-9)
    assert len(empty.neurons) == 0
    assert empty.n_iter == 1
    assert len(iterates(replace(problem, alpha=0.99 * top))[-1].neurons) > 0


@pytest.mark.parametrize("loss", ["squared", "logistic"])
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"n": 10, "d": 25},
        {"n": 40, "shrinkage": 0.3},
        {"gates": 1},
        {"gates": 2000, "n": 12},
        {"alpha": 1e-4},
        {"d": 1},
    ],
    ids=str,
)
def test_shapes(loss, fit_intercept, options):
    assert_solved(small_problem(loss, fit_intercept=fit_intercept, **options))


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_few_rows(n, fit_intercept):
    assert_solved(small_problem("squared", n=n, d=2, gates=8, fit_intercept=fit_intercept))
    if n > 1:
        assert_solved(small_problem("logistic", n=n, d=2, gates=8, alpha=0.05, fit_intercept=False))


def test_constant_target():
    X = np.random.default_rng(0).normal(size=(20, 2))
    result = assert_solved(make_problem(X, np.full(20, 2.0), "squared", 0.01, gates=8))
    assert len(result.neurons) == 0
    without = make_problem(X, np.full(20, 2.0), "squared", 0.01, gates=8, fit_intercept=False)
    assert without.alpha * assert_solved(without).neurons.mass > 0


@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_uneven_weights(loss):
    weights = np.random.default_rng(1).uniform(size=40) ** 4 + 1e-6
    problem = small_problem(loss, gates=10, weights=weights)
    result = assert_solved(problem)
    assert result.certificate.primal == pytest.approx(reference_value(problem), rel=1e-6)


def test_weight_two_is_the_row_twice():
    rng = np.random.default_rng(5)
    X, y, gates = rng.normal(size=(15, 2)), rng.normal(size=15), rng.normal(size=(3, 10))
    counts = rng.integers(1, 4, size=15)

    def value(X, y, weights):
        problem = Problem(
            units=WhitenedUnits(np.hstack([X, np.ones((len(X), 1))]), ALL_HERE),
            Y=y[:, None],
            p=weights / weights.sum(),
            loss=LOSSES["squared"],
            alpha=0.01,
            fit_intercept=True,
            activation="relu",
            gates=gates,
            all_arrangements=False,
            spectrum=np.ones(3),
            shards=ALL_HERE,
        )
        return assert_solved(problem, gap=1e-7).certificate.primal

    weighted = value(X, y, counts.astype(float))
    repeated = value(np.repeat(X, counts, axis=0), np.repeat(y, counts), np.ones(counts.sum()))
    assert weighted == pytest.approx(repeated, rel=1e-6)


def test_equal_arrangements_are_merged():
    problem = diabetes(gates=5, share=0.05)
    twice = replace(problem, gates=np.repeat(problem.gates, 4, axis=1))
    once, merged = assert_solved(problem), assert_solved(twice)
    assert merged.certificate.primal == pytest.approx(once.certificate.primal, rel=1e-6)
    assert len(merged.neurons) == len(once.neurons)


def test_units_that_are_never_active_leave_the_network_empty():
    problem = diabetes(gates=5, share=0.05)
    column = np.zeros((problem.Z.shape[1], 1))
    column[-1] = -1.0
    assert len(assert_solved(replace(problem, gates=column)).neurons) == 0


def test_working_sets_reach_the_same_optimum():
    problem = diabetes(gates=60, share=0.02)
    whole = assert_solved(problem)
    parts = assert_solved(problem, plan=Plan(max_step_cost=0.0, first_columns=100))
    assert parts.n_iter > whole.n_iter
    assert parts.certificate.primal == pytest.approx(whole.certificate.primal, rel=2e-6)


def test_a_sparse_program_starts_from_few_arrangements(monkeypatch):
    problem = diabetes(gates=100, share=0.2)
    sizes = []
    monkeypatch.setattr(
        _interior_rounds,
        "newton_step",
        lambda part, *rest: sizes.append(len(part)) or _interior_step.newton_step(part, *rest),
    )
    few = assert_solved(problem)
    assert max(sizes) < 60
    all_at_once = assert_solved(problem, plan=Plan(sparse_share=np.inf))
    assert max(sizes) == 100
    assert few.certificate.primal == pytest.approx(all_at_once.certificate.primal, rel=2e-6)


@pytest.mark.parametrize("smallest", [1.0, -1e-12])
def test_factor_solves_and_shifts_what_is_not_definite(smallest):
    rng = np.random.default_rng(0)
    Q = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    A = torch.as_tensor(Q @ np.diag([smallest, 1.0, 2.0, 3.0, 4.0, 5.0]) @ Q.T)
    x = torch.as_tensor(rng.normal(size=(6, 1)))
    built = []

    def build():
        built.append(A.tril() + 7.0 * torch.ones(6, 6).triu(1))  # only the lower triangle counts
        return built[-1]

    factor = _arrangement_program.Factor(build)
    assert (len(built) == 1) == (smallest > 0)
    if smallest > 0:
        torch.testing.assert_close(factor.solve(A @ x), x)
    else:
        torch.testing.assert_close(A @ factor.solve(A @ x), A @ x, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("row", "column", "value"), [(3, 3, -1.0), (2, 1, np.nan)])
def test_factor_gives_up_on_what_no_shift_mends(row, column, value):
    def build():
        A = torch.eye(4, dtype=torch.float64)
        A[row, column] = value
        return A

    with pytest.raises(ArithmeticError):
        _arrangement_program.Factor(build)


@pytest.mark.parametrize("case", [diabetes, breast_cancer])
@pytest.mark.parametrize("by_rows", [True, False])
def test_both_forms_of_the_newton_equations(case, by_rows):
    problem = case(gates=30, share=0.01)
    either = assert_solved(problem, gap=1e-7)
    forced = assert_solved(problem, gap=1e-7, plan=Plan(by_rows=by_rows))
    assert forced.certificate.primal == pytest.approx(either.certificate.primal, rel=3e-7)


def test_starts_from_a_network():
    problem = breast_cancer(share=0.02)
    cold = assert_solved(problem)
    for gates in (cold.neurons.gates, None):
        warm = assert_solved(problem, start=replace(cold.neurons, gates=gates))
        assert warm.certificate.primal == pytest.approx(cold.certificate.primal, rel=2e-6)
    second = iterates(problem, start=replace(cold.neurons, gates=None))[1]
    assert problem.objective(second.neurons) == pytest.approx(cold.certificate.primal, rel=1e-6)


def test_a_loose_tolerance_stops_early_and_is_sparse():
    problem = diabetes(gates=50, share=0.05)
    loose, tight = solve(problem, "interior_point", tol=1e-2), assert_solved(problem)
    assert loose.certificate.gap <= 1e-2
    assert loose.certificate.dual <= tight.certificate.primal <= loose.certificate.primal
    assert len(loose.neurons) <= 2 * len(tight.neurons)


def test_same_problem_same_network():
    problem = diabetes(share=0.05)
    one, two = assert_solved(problem).neurons, assert_solved(problem).neurons
    np.testing.assert_array_equal(one.directions, two.directions)
    np.testing.assert_array_equal(one.weights, two.weights)


@pytest.mark.parametrize(("n", "k"), [(30, 4), (5, 9), (100, 12)])
def test_projection_meets_its_optimality_conditions(n, k):
    rng = np.random.default_rng(n)
    Z, C = rng.normal(size=(n, k)), rng.normal(size=(50, k))
    T = np.where(Z @ rng.normal(size=(k, 50)) >= 0, 1.0, -1.0).T
    Q = project_on_cones(*(torch.as_tensor(a) for a in (Z, T, C))).numpy()
    assert (T * (Q @ Z.T)).min() >= -1e-11
    # The residual Q - C is in the dual cone (NNLS finds its multipliers), orthogonal to Q.
    np.testing.assert_allclose(((Q - C) * Q).sum(axis=1), 0.0, atol=1e-11)
    for t, c, q in zip(T, C, Q, strict=True):
        assert optimize.nnls((t[:, None] * Z).T, q - c)[1] <= 1e-9


@pytest.mark.parametrize("tol", [1e-11, 1e-13])
def test_an_accuracy_beyond_rounding_ends_with_a_network_or_a_warning(tol):
    """Newton steps at such accuracies have overflowed on this program."""
    X, y = load_diabetes(return_X_y=True)
    model = ConvexBNRegressor(0.003, solver="interior_point", n_gates=15, tol=tol, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(X, y)
    assert model.dual_gap_ <= 1e-9

"""FISTA and Newton steps on fixed gates, judged by certificates and by programs in CVXPY."""

import warnings
from dataclasses import replace

import cvxpy as cp
import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import optimize
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris, load_wine, make_blobs
from sklearn.exceptions import ConvergenceWarning

from sklearn_convexbn import ConvexBNRegressor, solvers
from sklearn_convexbn.losses._base import LOSSES
from sklearn_convexbn.program._objective import Objective
from sklearn_convexbn.solvers import (
    _factor_newton,
    _fista,
    _gated_program,
    _group_newton,
    _group_ridge,
    _scale_newton,
)
from sklearn_convexbn.solvers._fista import FISTA
from sklearn_convexbn.solvers._gated_newton import GroupNewton
from sklearn_convexbn.support import _linear_algebra
from sklearn_convexbn.support._linear_algebra import row_norms
from sklearn_convexbn.support._sharding import ALL_HERE
from tests.helpers import make_problem, solve, targets

LOSS_OF = {"diabetes": "squared", "breast_cancer": "logistic", "iris": "softmax", "wine": "softmax"}
LOADERS = {
    "diabetes": load_diabetes,
    "breast_cancer": load_breast_cancer,
    "iris": load_iris,
    "wine": load_wine,
}
ONE_OUTPUT = ("diabetes", "breast_cancer")

#: Data and the solvers for them.
NAMES_AND_SOLVERS = [(name, "fista") for name in LOADERS]
NAMES_AND_SOLVERS += [(name, "group_newton") for name in ONE_OUTPUT]
SHARES = (0.1, 0.01, 0.001)


def largest_alpha(problem):
    """Return the smallest alpha with an empty network."""
    constant = np.zeros_like(problem.Y) + problem.constant()
    return float(problem.gate_norms(problem.dual_point(constant)).max())


def at_share(problem, share):
    return replace(problem, alpha=share * largest_alpha(problem))


def gated(X, Y, loss, share, **options):
    return at_share(make_problem(X, Y, loss, 1.0, "gated_relu", **options), share)


def real_problem(name, share, gates=200, rows=slice(None)):
    X, y = LOADERS[name](return_X_y=True)
    X, y = X[rows], y[rows]
    Y = np.eye(3)[y] if LOSS_OF[name] == "softmax" else y.astype(float)
    if LOSS_OF[name] == "squared":
        Y = (y - y.mean()) / y.std()
    return gated(X, Y, LOSS_OF[name], share, gates=gates)


def random_problem(seed, n=25, d=3, C=1, loss="squared", gates=12, share=0.05, **options):
    rng = np.random.default_rng(seed)
    return gated(
        rng.normal(size=(n, d)), targets(rng, n, loss, C), loss, share, gates=gates, **options
    )


def reference_value(problem):
    """Return the optimal value of the gated program, stated block by block in CVXPY."""
    C = problem.n_outputs
    b = cp.Variable((1, C)) if problem.fit_intercept else np.zeros((1, C))
    fit = np.ones((len(problem.Y), 1)) @ b
    mass = 0.0
    for pattern in problem.patterns.T:
        S = cp.Variable((problem.Z.shape[1], C))
        fit = fit + (pattern[:, None] * problem.Z) @ S
        mass = mass + (cp.normNuc(S) if C > 1 else cp.norm(S))
    p, Y = problem.p, problem.Y
    if problem.loss.name == "squared":
        mean = cp.sum_squares(cp.multiply(np.sqrt(p)[:, None], fit - Y)) / 2
    elif problem.loss.name == "logistic":
        mean = p @ (cp.logistic(fit) - cp.multiply(Y, fit))
    else:
        mean = p @ (cp.log_sum_exp(fit, axis=1) - cp.sum(cp.multiply(Y, fit), axis=1))
    program = cp.Problem(cp.Minimize(cp.sum(mean) + problem.alpha * mass))
    tight = {"tol_gap_abs": 1e-9, "tol_gap_rel": 1e-9, "tol_feas": 1e-9}
    with warnings.catch_warnings():
        # Clarabel may end just short of these tolerances; the comparison allows for more.
        warnings.filterwarnings("ignore", message="Solution may be inaccurate")
        return float(program.solve(solver="CLARABEL", **tight))


def assert_certified(problem, result, tol):
    """Judge the network by a certificate computed from it alone."""
    neurons, certificate = problem.certificate(result.neurons)
    assert certificate.kind == "exact"
    assert certificate.gap <= tol
    assert certificate.primal == pytest.approx(problem.objective(neurons), rel=1e-12)
    np.testing.assert_allclose(np.linalg.norm(neurons.directions, axis=1), 1.0, atol=1e-12)


# ------------------------------------------------------------------------------ whole programs


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize(("name", "solver"), NAMES_AND_SOLVERS)
def test_gap_of_1e_6_on_real_data_with_200_gates(name, solver, share):
    problem = real_problem(name, share)
    assert_certified(problem, solve(problem, solver, tol=1e-6), 1e-6)


@pytest.mark.parametrize("name", ONE_OUTPUT)
def test_fista_and_newton_find_the_same_optimum(name):
    problem = real_problem(name, 0.01)
    newton = solve(problem, "group_newton", tol=1e-9)
    fista = solve(problem, "fista", tol=1e-9)
    assert_certified(problem, fista, 1e-9)
    assert_certified(problem, newton, 1e-9)
    assert fista.certificate.primal == pytest.approx(newton.certificate.primal, rel=2e-9)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize(
    ("name", "gates", "step"),
    [("diabetes", 20, 4), ("breast_cancer", 10, 6), ("iris", 20, 3), ("wine", 10, 4)],
)
def test_value_of_cvxpy_on_real_data(name, gates, step, share):
    problem = real_problem(name, share, gates=gates, rows=slice(None, None, step))
    result = solve(problem, "group_newton" if name in ONE_OUTPUT else "fista", tol=1e-8)
    assert result.certificate.primal == pytest.approx(reference_value(problem), rel=1e-6)


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize(
    ("loss", "C", "solver"),
    [
        ("squared", 1, "group_newton"),
        ("squared", 1, "fista"),
        ("squared", 2, "fista"),
        ("logistic", 1, "group_newton"),
        ("logistic", 1, "fista"),
        ("softmax", 2, "fista"),
        ("softmax", 4, "fista"),
    ],
)
def test_value_of_cvxpy_on_random_data(loss, C, solver, fit_intercept):
    weights = np.random.default_rng(1).uniform(0.1, 3.0, size=25)
    problem = random_problem(
        C, C=C, loss=loss, fit_intercept=fit_intercept, weights=weights, shrinkage=0.3
    )
    result = solve(problem, solver, tol=1e-8)
    assert_certified(problem, result, 1e-8)
    assert result.certificate.primal == pytest.approx(reference_value(problem), rel=1e-7)
    if not fit_intercept:
        assert not result.neurons.intercept.any()


warm_starts = pytest.mark.parametrize(
    ("name", "solver"), [("diabetes", "group_newton"), ("diabetes", "fista"), ("iris", "fista")]
)


@warm_starts
def test_warm_start_on_the_same_problem_is_done_at_once(name, solver):
    problem = real_problem(name, 0.01)
    cold = solve(problem, solver, tol=1e-6)
    warm = solve(problem, solver, tol=1e-6, start=cold.neurons)
    assert cold.n_iter > 2
    assert warm.n_iter <= 2


@warm_starts
def test_warm_start_from_a_larger_alpha_saves_rounds(name, solver):
    problem = real_problem(name, 0.01)
    start = solve(replace(problem, alpha=1.1 * problem.alpha), solver, tol=1e-6).neurons
    warm = solve(problem, solver, tol=1e-6, start=start)
    assert_certified(problem, warm, 1e-6)
    assert warm.n_iter < solve(problem, solver, tol=1e-6).n_iter


def test_a_bad_start_does_no_harm():
    problem = random_problem(0, C=3, loss="softmax")
    good = solve(problem, "fista", tol=1e-8)
    bad = replace(good.neurons, weights=-50.0 * good.neurons.weights)
    result = solve(problem, "fista", tol=1e-8, start=bad)
    assert result.certificate.primal == pytest.approx(good.certificate.primal, rel=1e-7)
    # A network without gates, such as one of the pursuit, is no start.
    result = solve(problem, "fista", tol=1e-8, start=replace(good.neurons, gates=None))
    assert_certified(problem, result, 1e-8)


@pytest.mark.parametrize("share", [0.1, 0.01])
@pytest.mark.parametrize("name", LOADERS)
def test_float32_reaches_1e_3_and_counts_no_noise(name, share):
    problem = real_problem(name, share)
    rough = solve(problem, FISTA(dtype="float32"), tol=1e-3)
    assert_certified(problem, rough, 1e-3)
    assert len(rough.neurons) <= 1.5 * len(solve(problem, "fista", tol=1e-6).neurons) + 5


def test_float32_says_when_it_can_do_no_better():
    problem = real_problem("iris", 0.1, gates=30)
    with pytest.warns(ConvergenceWarning, match="come to a halt"):
        result = solve(problem, FISTA(dtype="float32"), tol=1e-12)
    assert result.n_iter < 40
    assert result.certificate.gap < 1e-3


def test_plain_fista_converges_without_newton_steps():
    problem = random_problem(3, C=3, loss="softmax", share=0.1)
    plain = solve(problem, FISTA(n_newton_steps=0), tol=1e-7, max_iter=500)
    assert_certified(problem, plain, 1e-7)


# ---------------------------------------------------------------------------------- edge cases


@pytest.mark.parametrize(
    ("loss", "C", "solver"),
    [
        ("squared", 1, "group_newton"),
        ("squared", 1, "fista"),
        ("logistic", 1, "group_newton"),
        ("logistic", 1, "fista"),
        ("softmax", 3, "fista"),
    ],
)
class TestEdgeCases:
    def certified(self, problem, solver, tol=1e-6):
        result = solve(problem, solver, tol=tol)
        assert_certified(problem, result, tol)
        return result

    def test_repeated_gates(self, loss, C, solver):
        problem = random_problem(0, C=C, loss=loss)
        repeated = replace(problem, gates=np.hstack([problem.gates] * 3))
        once, thrice = self.certified(problem, solver), self.certified(repeated, solver)
        assert thrice.certificate.primal == pytest.approx(once.certificate.primal, rel=1e-6)

    def test_all_rows_active_is_a_linear_model(self, loss, C, solver):
        problem = random_problem(0, C=C, loss=loss)
        ones = np.zeros((problem.Z.shape[1], 2))
        ones[-1] = 1.0
        result = self.certified(at_share(replace(problem, gates=ones), 0.05), solver)
        assert len(result.neurons) > 0

    @pytest.mark.parametrize("n", [1, 2, 3])
    def test_few_rows(self, loss, C, solver, n):
        rng = np.random.default_rng(n)
        Y = targets(rng, 9, loss, C)[:n]
        for fit_intercept in (True, False):
            problem = make_problem(
                rng.normal(size=(n, 4)),
                Y,
                loss,
                0.01,
                "gated_relu",
                gates=8,
                fit_intercept=fit_intercept,
            )
            solve_or_attain_nothing(problem, solver)

    def test_more_features_than_rows(self, loss, C, solver):
        self.certified(random_problem(2, n=8, d=30, C=C, loss=loss, share=0.01), solver)

    def test_very_uneven_weights(self, loss, C, solver):
        weights = np.logspace(-8, 2, 25)[np.random.default_rng(0).permutation(25)]
        self.certified(random_problem(4, C=C, loss=loss, weights=weights), solver)

    @pytest.mark.parametrize("shrinkage", [0.1, 1.0])
    def test_shrinkage(self, loss, C, solver, shrinkage):
        problem = random_problem(5, C=C, loss=loss, shrinkage=shrinkage)
        assert not np.allclose(problem.spectrum, 1.0)
        self.certified(problem, solver)

    @pytest.mark.parametrize("factor", [1.0 + 1e-9, 1e3])
    def test_large_alpha_gives_the_empty_network_in_one_round(self, loss, C, solver, factor):
        result = self.certified(random_problem(6, C=C, loss=loss, share=factor), solver)
        assert result.n_iter == 1
        assert len(result.neurons) == 0

    def test_just_below_the_largest_alpha(self, loss, C, solver):
        result = self.certified(random_problem(6, C=C, loss=loss, share=0.99), solver, tol=1e-8)
        assert len(result.neurons) > 0

    def test_tiny_alpha(self, loss, C, solver):
        self.certified(random_problem(7, C=C, loss=loss, share=1e-4), solver, tol=1e-4)

    def test_duplicated_rows_of_data_and_columns(self, loss, C, solver):
        rng = np.random.default_rng(8)
        X, Y = rng.normal(size=(12, 2)), targets(rng, 12, loss, C)
        problem = gated(np.tile(X, (2, 2)), np.tile(Y, (2, 1)), loss, 0.05, gates=10)
        self.certified(problem, solver)


def solve_or_attain_nothing(problem, solver):
    """One class has no minimum in b: then the value must come down to zero."""
    try:
        result = solve(problem, solver, tol=1e-6)
    except ConvergenceWarning:
        with pytest.warns(ConvergenceWarning):
            result = solve(problem, solver, tol=1e-6, max_iter=20)
        assert 0.0 <= result.certificate.primal < 1e-8
    assert np.isfinite(result.certificate.primal)
    assert np.isfinite(result.neurons.intercept).all()
    assert np.isfinite(result.neurons.weights).all()


@pytest.mark.parametrize("solver", ["group_newton", "fista"])
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("level", [0.0, 2.0])
def test_constant_target(level, fit_intercept, solver):
    X = np.random.default_rng(0).normal(size=(20, 3))
    problem = make_problem(
        X, np.full(20, level), "squared", 0.01, "gated_relu", gates=10, fit_intercept=fit_intercept
    )
    result = solve(problem, solver, tol=1e-6)
    if fit_intercept or level == 0.0:
        assert len(result.neurons) == 0
        assert result.n_iter == 1
    else:
        assert_certified(problem, result, 1e-6)


def test_what_is_refused():
    with pytest.raises(ValueError, match="'dtype' parameter"):
        solve(random_problem(0), FISTA(dtype="float16"))
    several = random_problem(0, C=2)
    assert FISTA().unsupported(several) == ""
    assert solvers.unsupported(GroupNewton(), several) == "several outputs"
    relu = replace(random_problem(0), activation="relu")
    for solver in (FISTA(), GroupNewton()):
        assert solver.unsupported(relu) == "activation='relu'"


# -------------------------------------------------------------------------- parts of the method

SHAPES = st.tuples(st.integers(0, 4), st.integers(1, 5), st.integers(1, 5))


@given(SHAPES, st.integers(0, 2**32 - 1), st.floats(1e-3, 10.0))
def test_proximal_map_satisfies_its_optimality_condition(shape, seed, threshold):
    X = torch.as_tensor(np.random.default_rng(seed).normal(size=shape))
    P = _fista.shrink_singular_values(X, threshold)
    # X - P is threshold times a subgradient of the sum of nuclear norms at P.
    for residual, block in zip((X - P).numpy(), P.numpy(), strict=True):
        assert np.linalg.norm(residual, 2) <= threshold * (1 + 1e-9)
        mass = np.linalg.svd(block, compute_uv=False).sum()
        assert (residual * block).sum() == pytest.approx(threshold * mass, rel=1e-8, abs=1e-12)


@given(SHAPES, st.integers(0, 2**32 - 1))
@example((1, 2, 2), 0)
def test_spectral_norms_and_balanced_factors(shape, seed):
    S = torch.as_tensor(np.random.default_rng(seed).normal(size=shape))
    expected = [np.linalg.norm(block, 2) for block in S.numpy()]
    np.testing.assert_allclose(_linear_algebra.spectral_norms(S), expected, rtol=1e-9)
    which, U, V = _gated_program.balanced_factors(S)
    rebuilt = torch.zeros_like(S).index_add_(0, which, U.unsqueeze(2) * V.unsqueeze(1))
    torch.testing.assert_close(rebuilt, S)
    torch.testing.assert_close(U.norm(dim=1), V.norm(dim=1))
    penalty = 0.5 * float(U.square().sum() + V.square().sum())
    assert penalty == pytest.approx(
        float(_gated_program.singular_values(S).sum()), rel=1e-9, abs=1e-12
    )


def test_factors_of_low_rank_blocks_have_no_noise():
    rng = np.random.default_rng(0)
    S = torch.as_tensor(rng.normal(size=(3, 6, 2)) @ rng.normal(size=(3, 2, 4)))
    assert len(_gated_program.balanced_factors(S)[0]) == 6
    assert len(_gated_program.balanced_factors(S.float())[0]) == 6


def torch_program(problem):
    return _gated_program.GatedProgram(problem, "cpu", torch.float64)


@pytest.mark.parametrize("fit_intercept", [True, False])
def test_adjoint_norm_and_fit_agree(fit_intercept):
    problem = random_problem(1, C=3, loss="softmax", fit_intercept=fit_intercept)
    program, rng = torch_program(problem), np.random.default_rng(0)
    S = torch.as_tensor(rng.normal(size=(problem.gates.shape[1], problem.Z.shape[1], 3)))
    G = torch.as_tensor(rng.normal(size=problem.Y.shape))
    one = float((program.fit(S) * G).sum())
    assert one == pytest.approx(float((S * program.adjoint(G)).sum()), rel=1e-12)
    columns = np.hstack([d[:, None] * problem.Z for d in problem.patterns.T])
    if fit_intercept:
        columns = columns - problem.p @ columns
    largest = np.linalg.norm(np.sqrt(problem.p)[:, None] * columns, 2) ** 2
    assert 0.9 * largest <= program.squared_norm() <= largest * (1 + 1e-12)


@pytest.mark.parametrize("fit_intercept", [True, False])
def test_point_and_network_are_the_same_function(fit_intercept):
    problem = random_problem(1, C=3, loss="softmax", fit_intercept=fit_intercept)
    program = torch_program(problem)
    neurons = solve(problem, "fista", tol=1e-3).neurons
    point = program.start(problem, neurons)
    back = program.neurons(point)
    assert problem.objective(back) == pytest.approx(problem.objective(neurons), rel=1e-6)
    F = program.restricted(point.gates).fit(point.S) + point.b
    np.testing.assert_allclose(F, problem.fit_without_intercept(back) + back.intercept, atol=1e-10)


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize(("loss", "C"), [("squared", 2), ("logistic", 1), ("softmax", 3)])
def test_derivatives_in_the_factors(loss, C, fit_intercept):
    problem = random_problem(1, C=C, loss=loss, fit_intercept=fit_intercept, share=0.3)
    program = torch_program(problem)
    start = solve(problem, "fista", tol=0.1).neurons
    factors = _factor_newton.Factors(program, program.start(problem, start))
    rng = np.random.default_rng(0)
    theta, d = (torch.as_tensor(rng.normal(size=len(factors.theta))) for _ in range(2))
    if not fit_intercept:
        d[len(d) - C :] = 0.0
    gradient, hessian, scale = factors.expand(theta)
    h = 1e-5
    slope = (factors.value(theta + h * d) - factors.value(theta - h * d)) / (2 * h)
    assert slope == pytest.approx(float(gradient @ d), rel=1e-6)
    change = (factors.expand(theta + h * d)[0] - factors.expand(theta - h * d)[0]) / (2 * h)
    torch.testing.assert_close(change, hessian(d), rtol=1e-5, atol=1e-6)
    assert bool((scale > 0).all())


def test_steps_never_raise_the_objective():
    problem = real_problem("iris", 0.01, gates=40)
    program = torch_program(problem)
    point = program.start(problem, None)
    values = []
    for _ in range(4):
        norms, value, _ = program.look_at_all_gates(point)
        values.append(value)
        point = program.working_set(point, norms)
        point = _fista.proximal_steps(program, point, 0.1, n_steps=50)
        values.append(program.look_at_all_gates(point)[1])
        point = _factor_newton.newton_steps(program, point, 0.1, n_steps=5)
    assert np.all(np.diff(values) <= 1e-12)


def test_truncated_cg_solves_and_stops_at_the_border():
    rng = np.random.default_rng(0)
    A = rng.normal(size=(6, 6))
    H, g = torch.as_tensor(A @ A.T + np.eye(6)), torch.as_tensor(rng.normal(size=6))
    d, predicted = _factor_newton.truncated_cg(lambda x: H @ x, g, 1e6, 1e-12, n_steps=20)
    torch.testing.assert_close(d, -torch.linalg.solve(H, g))
    assert predicted == pytest.approx(-0.5 * float(g @ d))
    short, less = _factor_newton.truncated_cg(
        lambda x: H @ x, g, 0.1 * float(d.norm()), 1e-12, n_steps=20
    )
    assert float(short.norm()) == pytest.approx(0.1 * float(d.norm()))
    assert 0 < less < predicted
    # A direction of negative curvature is followed to the border.
    down, most = _factor_newton.truncated_cg(lambda x: -H @ x, g, 2.0, 1e-12, n_steps=20)
    assert float(down.norm()) == pytest.approx(2.0)
    assert most > 2.0 * float(g.norm())


# -------------------------------------------------------------------- Newton on group scales


KINDS = pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor], ids=["numpy", "torch"])


def group_program(problem, kind):
    arrays = (kind(a) for a in (problem.Z, problem.patterns.astype(float)))
    return _group_ridge.Program(*arrays, **problem.converted(kind))


@KINDS
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_derivatives_in_the_group_scales(loss, fit_intercept, kind):
    program = group_program(random_problem(1, loss=loss, fit_intercept=fit_intercept), kind)
    active = kind(np.arange(5))
    eta = kind(np.random.default_rng(0).uniform(0.5, 2.0, size=5))

    def ridge(eta):
        state = _group_ridge.solve_ridge(program, active, eta, 0.0 * program.Y, -np.inf)
        for _ in range(5):  # to the minimum in (S, b)
            state = _group_ridge.solve_ridge(program, active, eta, state.F, -np.inf)
        w = program.correlations(-program.gradient(state.F), program.M)[:5]
        return (
            state,
            w,
            _scale_newton.eta_slopes(row_norms(w), program.alpha, program.alpha, False),
        )

    state, w, slopes = ridge(eta)
    H = _group_newton._eta_hessian(program, state.factor, program.M[:, :5], w)
    h = 1e-5
    for g in range(5):
        step = kind(h * np.eye(5)[g])
        (up, _, above), (down, _, below) = ridge(eta + step), ridge(eta - step)
        assert (up.phi - down.phi) / (2 * h) == pytest.approx(float(slopes[g]), rel=1e-5, abs=1e-9)
        change = np.asarray(above - below) / (2 * h)
        np.testing.assert_allclose(change, H[:, g], rtol=1e-4, atol=1e-8)


@KINDS
@pytest.mark.parametrize("single", [True, False])
@pytest.mark.parametrize("n", [6, 60])
def test_both_factorisations_are_the_same_operator(n, single, kind):
    program = group_program(random_problem(2, n=n), kind)
    program.single = single
    active = kind(np.array([1, 3, 4]))
    M, eta = program.M[:, active], kind(np.array([0.5, 1.0, 2.0]))
    weights = program.weights(program.Y)
    Z, scaled = np.asarray(program.Z), np.asarray(eta**0.5 * M)
    columns = np.hstack([column[:, None] * Z for column in scaled.T])
    inverse = np.diag(1 / np.asarray(weights)[:, 0]) + columns @ columns.T / program.alpha
    x = np.random.default_rng(0).normal(size=(n, 2))
    expected, X = np.linalg.solve(inverse, x), kind(x)
    kinds, rtol, atol = [], *((1e-3, 1e-5) if single else (1e-8, 1e-10))
    for by_rows in (False, True):
        factor = _group_ridge.factorise(program, active, M, eta, weights, by_rows)
        kinds.append(type(factor).__name__)
        assert str(factor.chol.dtype).endswith("32" if single else "64")
        np.testing.assert_allclose(factor.apply(X), expected, rtol=rtol, atol=atol)
        np.testing.assert_allclose(factor.quadratic(X), x.T @ expected, rtol=rtol, atol=atol)
    assert kinds == ["_ColumnFactor", "_RowFactor"]


@KINDS
@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_coarse_factors_solve_the_ridge_problem_accurately(loss, kind):
    problem = random_problem(2, loss=loss)
    states = []
    for single in (True, False):
        program = group_program(problem, kind)
        program.single = single
        groups, eta = kind(np.array([1, 3, 4])), kind(np.array([0.5, 1.0, 2.0]))
        state = _group_ridge.solve_ridge(program, groups, eta, 0.0 * program.Y, -np.inf)
        for _ in range(5):
            state = _group_ridge.solve_ridge(program, groups, eta, state.F, -np.inf)
        states.append(state)
    np.testing.assert_allclose(states[0].S, states[1].S, rtol=1e-8, atol=1e-10)
    assert states[0].phi == pytest.approx(states[1].phi, rel=1e-12)


@KINDS
def test_patterns_in_float32_give_the_largest_correlation_in_float64(kind):
    program = group_program(random_problem(2, n=60), kind)
    column, active = program.Y - 0.3, kind(np.array([0, 2]))
    w, norms = program.all_correlations(column, active)
    program.M = kind(np.asarray(program.M, dtype=np.float32))
    coarse, coarse_norms = program.all_correlations(column, active)
    assert float(coarse_norms.max()) == pytest.approx(float(norms.max()), rel=1e-14)
    np.testing.assert_allclose(coarse[active], w[active], rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(coarse, w, rtol=1e-5, atol=1e-5)


@KINDS
def test_cholesky_of_a_singular_matrix(kind):
    A = kind(np.ones((4, 4)))
    L = np.tril(_linear_algebra.safe_cholesky(A))
    np.testing.assert_allclose(L @ L.T, A, atol=1e-8)


def test_steps_that_fail_in_float32_are_taken_in_float64(monkeypatch):
    problem, dtypes = real_problem("diabetes", 1e-4, rows=slice(150)), []
    factorise = _group_ridge.factorise

    def spy(*arguments):
        factor = factorise(*arguments)
        dtypes.append(factor.root.dtype.itemsize)
        return factor

    monkeypatch.setattr(_group_ridge, "factorise", spy)
    monkeypatch.setattr(_group_newton, "factorise", spy)
    for name in ("MAX_STIFFNESS_ROWS_SINGLE", "MAX_STIFFNESS_COLUMNS_SINGLE"):
        monkeypatch.setattr(_group_ridge, name, np.inf)
    coarse = solve(problem, "group_newton", tol=1e-8)
    assert 4 in dtypes
    assert dtypes[-1] == 8
    monkeypatch.setattr(_group_ridge, "single", lambda root: root)
    fine = solve(problem, "group_newton", tol=1e-8)
    assert coarse.certificate.primal == pytest.approx(fine.certificate.primal, rel=1e-7)


def test_no_round_is_computed_that_is_not_asked_for(monkeypatch):
    calls = []
    round_of = _group_newton._newton_round
    monkeypatch.setattr(_group_newton, "_newton_round", lambda *a: calls.append(1) or round_of(*a))
    result = solve(real_problem("diabetes", 0.1), "group_newton", tol=1e-3)
    assert len(calls) == result.n_iter - 1


@given(st.integers(0, 2**32 - 1), st.integers(1, 12))
def test_nonnegative_quadratic_is_nnls(seed, m):
    rng = np.random.default_rng(seed)
    A, y = rng.normal(size=(m + 3, m)), rng.normal(size=m + 3)
    expected, free = optimize.nnls(A, y)[0], rng.random(m) < 0.5
    for kind in (np.asarray, torch.as_tensor):
        arrays = (kind(a) for a in (A.T @ A, -A.T @ y, free))
        np.testing.assert_allclose(
            _scale_newton.nonnegative_quadratic(*arrays), expected, atol=1e-8
        )


def test_where_newton_steps_fail_reweighting_goes_on():
    """Found by scikit-learn's checks: the Hessian in eta is nearly singular on the way."""
    X, y = make_blobs(random_state=0, n_samples=21)
    m = ConvexBNRegressor(3e-3, activation="gated_relu", random_state=0).fit(X, y)
    assert m.dual_gap_ <= m.tol


@KINDS
@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_newton_from_the_solution_is_done_at_once(loss, kind):
    rng = np.random.default_rng(3)
    A = np.maximum(rng.normal(size=(60, 25)), 0.0)
    y = A @ (rng.normal(size=25) * (rng.random(25) < 0.3)) + 0.5 * rng.normal(size=60)
    y = y if loss == "squared" else (y > np.median(y)).astype(float)
    alpha = 0.03
    ones, A, Y, p = (kind(a) for a in (np.ones((60, 1)), A, y[:, None], np.full(60, 1 / 60.0)))

    def rounds(start=None):
        data = Objective(
            Y=Y, p=p, loss=LOSSES[loss], alpha=alpha, fit_intercept=True, shards=ALL_HERE
        ).converted()
        return list(_group_newton.group_newton(ones, A, start=start, tol=1e-9, **data))

    cold = rounds()
    warm = rounds((cold[-1].active, cold[-1].S, cold[-1].b))
    assert len(cold) > 3
    assert len(warm) <= 2

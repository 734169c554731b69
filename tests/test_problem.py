from dataclasses import replace

import cvxpy as cp
import numpy as np
import pytest

from sklearn_convexbn.program._arrangements import project_onto_cone
from sklearn_convexbn.program._problem import Certificate, Neurons, relative_gap
from sklearn_convexbn.support._linear_algebra import spectral_norms
from tests.helpers import make_problem, random_neurons, solve, targets

LOSSES_AND_OUTPUTS = [("squared", 1), ("squared", 3), ("logistic", 1), ("softmax", 3)]
per_loss = pytest.mark.parametrize(("loss", "C"), LOSSES_AND_OUTPUTS)
per_intercept = pytest.mark.parametrize("fit_intercept", [True, False])


def _problem(loss, C, *, n=14, d=2, alpha=0.05, seed=0, **options):
    rng = np.random.default_rng(seed)
    X, Y = rng.normal(size=(n, d)), targets(rng, n, loss, C)
    return make_problem(X, Y, loss, alpha, weights=rng.uniform(0.3, 2.0, size=n), **options)


def _in_listed_cones(problem, m, rng, scale=1.0):
    """Draw a network whose neurons lie in cones of the problem's list."""
    neurons = random_neurons(problem, m, rng, scale)
    q = [
        project_onto_cone(problem.Z, problem.patterns[:, g], direction)
        for g, direction in zip(neurons.gates, neurons.directions, strict=True)
    ]
    q = np.array(q).reshape(neurons.directions.shape)
    return Neurons.from_products(q, neurons.weights, neurons.intercept, neurons.gates)


def _mean_loss(problem, fit):
    """State the mean loss of a CVXPY expression in the words of the textbook."""
    total = 0
    for f, y, w in zip(fit, problem.Y, problem.p, strict=True):
        if problem.loss.name == "squared":
            total += w * cp.sum_squares(f - y) / 2
        elif problem.loss.name == "logistic":
            total += w * cp.logistic((1 - 2 * y) @ f)
        else:
            total += w * (cp.log_sum_exp(f) - y @ f)
    return total


def _gated_optimum(problem):
    """Optimal value of the gated program, stated independently of the package."""
    k, P = problem.gates.shape
    S = [cp.Variable((k, problem.n_outputs)) for _ in range(P)]
    b = cp.Variable(problem.n_outputs)
    hidden = [(problem.Z @ problem.gates[:, [i]] >= 0) * problem.Z for i in range(P)]
    rows = [
        sum(H[i] @ s for H, s in zip(hidden, S, strict=True)) + b for i in range(len(problem.Z))
    ]
    mass = sum(cp.normNuc(s) if problem.n_outputs > 1 else cp.norm(s, "fro") for s in S)
    constraints = [] if problem.fit_intercept else [b == 0]
    program = cp.Problem(cp.Minimize(_mean_loss(problem, rows) + problem.alpha * mass), constraints)
    return program.solve(solver="CLARABEL")


@per_loss
@per_intercept
@pytest.mark.parametrize("scale", [0.0, 0.3, 3.0])
def test_dual_of_any_gated_network_bounds_the_optimum(loss, C, fit_intercept, scale):
    problem = _problem(loss, C, activation="gated_relu", gates=4, fit_intercept=fit_intercept)
    optimum = _gated_optimum(problem)
    rng = np.random.default_rng(1)
    for _ in range(4):
        neurons = random_neurons(problem, 5, rng, scale)
        after, certificate = problem.certificate(neurons)
        assert certificate.dual <= optimum + 1e-6
        assert certificate.primal >= optimum - 1e-6
        assert certificate.primal == pytest.approx(problem.objective(after), rel=1e-12)
        assert certificate.primal <= problem.objective(neurons) + 1e-12
        assert certificate.kind == "exact"


@per_loss
@per_intercept
def test_gap_closes_at_the_gated_optimum(loss, C, fit_intercept):
    problem = _problem(loss, C, activation="gated_relu", gates=4, fit_intercept=fit_intercept)
    result = solve(problem, "cvxpy", tol=1e-5)
    assert result.certificate.primal == pytest.approx(_gated_optimum(problem), rel=1e-5)
    assert result.certificate.gap <= 1e-5
    assert result.certificate.kind == "exact"


@pytest.mark.parametrize("loss", ["squared", "logistic"])
@per_intercept
@pytest.mark.parametrize("gates", [6, "all"])
def test_dual_of_any_listed_relu_network_bounds_the_others(loss, fit_intercept, gates):
    problem = _problem(loss, 1, n=7, gates=gates, fit_intercept=fit_intercept)
    rng = np.random.default_rng(2)
    scales = 6 * [0.0, 0.1, 0.5, 2.0]
    networks = [_in_listed_cones(problem, 4, rng, scale) for scale in scales]
    best = solve(problem, "cvxpy", tol=1e-4)
    networks.append(best.neurons)
    assert problem.cone_violation(best.neurons) <= 1e-9
    certificates = [problem.certificate(neurons)[1] for neurons in networks]
    largest_dual = max(c.dual for c in certificates)
    assert largest_dual <= min(problem.objective(neurons) for neurons in networks) + 1e-9
    assert {c.kind for c in certificates} == {"exact"}
    assert best.certificate.gap <= 1e-4
    if gates == "all":  # then no network at all is better
        free = _free(problem)
        others = [random_neurons(free, 3, rng, 0.5) for _ in range(200)]
        assert best.certificate.dual <= min(free.objective(neurons) for neurons in others)


def _free(problem):
    """The same problem without its list of arrangements."""
    return replace(problem, gates=None, all_arrangements=False)


@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_all_arrangements_are_never_worse_than_some(loss):
    some = _problem(loss, 1, n=7, gates=6)
    every = _problem(loss, 1, n=7, gates="all")
    values = [solve(problem, "cvxpy", tol=1e-4).certificate for problem in (every, some)]
    assert values[0].primal <= values[1].primal * (1 + 1e-6)
    # The free program has the value of the enumerated one.
    free = solve(_free(every), "pursuit", tol=1e-5, max_iter=60).certificate
    assert free.primal == pytest.approx(values[0].primal, rel=1e-4)


@per_loss
@per_intercept
@pytest.mark.parametrize("activation", ["relu", "gated_relu"])
def test_objective_is_the_written_formula(loss, C, fit_intercept, activation):
    problem = _problem(loss, C, activation=activation, gates=5, fit_intercept=fit_intercept)
    neurons = random_neurons(problem, 6, np.random.default_rng(3))
    expected = 0.0
    for z, y, w in zip(problem.Z, problem.Y, problem.p, strict=True):
        f = neurons.intercept.copy()
        for q, v, g in zip(neurons.directions, neurons.weights, neurons.gates, strict=True):
            on = z @ problem.gates[:, g] >= 0 if activation == "gated_relu" else z @ q >= 0
            f += on * (z @ q) * v
        if loss == "squared":
            expected += w * 0.5 * ((f - y) ** 2).sum()
        elif loss == "logistic":
            expected += w * (np.log(1 + np.exp(f[0])) - y[0] * f[0])
        else:
            expected += w * -np.log(np.exp(f) @ y / np.exp(f).sum())
    expected += problem.alpha * sum(np.sqrt(v @ v) for v in neurons.weights)
    assert problem.objective(neurons) == pytest.approx(expected, rel=1e-12)


@per_loss
@pytest.mark.parametrize("scale", [0.0, 1.0, 10.0])
def test_best_intercept_makes_the_dual_point_feasible(loss, C, scale):
    problem = _problem(loss, C)
    neurons = random_neurons(problem, 6, np.random.default_rng(4), scale)
    better, F = problem.with_best_intercept(neurons)
    Lambda = problem.dual_point(F)
    assert np.abs(Lambda.sum(axis=0)).max() <= 1e-13 * max(1.0, np.abs(Lambda).sum())
    assert problem.objective(better) <= problem.objective(neurons)
    np.testing.assert_allclose(F, problem.fit_without_intercept(better) + better.intercept)
    np.testing.assert_array_equal(better.weights, neurons.weights)


def test_no_intercept_stays_zero():
    problem = _problem("squared", 2, fit_intercept=False)
    neurons = random_neurons(problem, 3, np.random.default_rng(0))
    assert problem.with_best_intercept(neurons)[0] is neurons
    np.testing.assert_array_equal(problem.constant(), 0.0)


@per_loss
def test_constant_is_the_best_network_without_units(loss, C):
    problem = _problem(loss, C)
    constant = Neurons.empty(problem.Z.shape[1], problem.constant())
    value = problem.objective(constant)
    for seed in range(20):
        b = problem.constant() + 0.1 * np.random.default_rng(seed).normal(size=C)
        assert problem.objective(Neurons.empty(problem.Z.shape[1], b)) >= value


@per_loss
def test_gate_norms_are_spectral_norms(loss, C):
    problem = _problem(loss, C, activation="gated_relu", gates=5)
    Lambda = np.random.default_rng(5).normal(size=problem.Y.shape)
    expected = [
        np.linalg.norm(problem.Z.T @ np.diag(problem.Z @ gate >= 0) @ Lambda, ord=2)
        for gate in problem.gates.T
    ]
    np.testing.assert_allclose(problem.gate_norms(Lambda), expected, rtol=1e-9)


def test_cone_norms_bound_the_correlation_of_every_direction():
    problem = _problem("squared", 1, n=6, gates="all", alpha=1e-9)
    rng = np.random.default_rng(6)
    Lambda = rng.normal(size=(6, 1))
    q = rng.normal(size=(3, 200_000))
    q /= np.linalg.norm(q, axis=0)
    correlations = (Lambda.T @ np.maximum(problem.Z @ q, 0.0))[0]
    norms = problem.cone_norms(Lambda)
    for row, sign in enumerate((1.0, -1.0)):
        largest = (sign * correlations).max()
        assert largest <= norms[row].max() + 1e-9
        assert largest >= norms[row].max() * 0.99


def test_cone_norms_below_alpha_need_no_projection():
    problem = _problem("squared", 1, n=6, gates="all", alpha=1e9)
    Lambda = np.random.default_rng(6).normal(size=(6, 1))
    norms = problem.cone_norms(Lambda)
    np.testing.assert_allclose(norms[0], problem.gate_norms(Lambda))


def test_certificate_scales_an_infeasible_dual_point_back():
    problem = _problem("squared", 1, activation="gated_relu", gates=5)
    neurons = random_neurons(problem, 3, np.random.default_rng(0))
    exact = problem.certificate(neurons)[1]
    assert exact.infeasibility > 0
    worst = problem.alpha * (1 + exact.infeasibility)
    given = problem.certificate(neurons, largest_correlation=worst)[1]
    assert given.dual == pytest.approx(exact.dual)
    assert given.kind == "estimated"
    assert problem.certificate(neurons, largest_correlation=worst, proven=True)[1].kind == "exact"
    # A feasible point is not scaled: smaller correlations all give the same bound.
    low, lower = (
        problem.certificate(neurons, largest_correlation=c * problem.alpha)[1] for c in (1.0, 0.1)
    )
    assert low.dual == lower.dual
    assert low.infeasibility == lower.infeasibility == 0.0


def test_certificate_of_a_given_dual_point():
    problem = _problem("softmax", 3, activation="gated_relu", gates=5)
    rng = np.random.default_rng(0)
    one, other = (random_neurons(problem, 3, rng) for _ in range(2))
    _, F = problem.with_best_intercept(other)
    own = [problem.certificate(neurons)[1] for neurons in (one, other)]
    mixed = problem.certificate(one, Lambda=problem.dual_point(F))[1]
    assert mixed.primal == own[0].primal
    assert mixed.dual == own[1].dual
    assert mixed.infeasibility == own[1].infeasibility
    assert own[0].dual != own[1].dual


@per_loss
@per_intercept
@pytest.mark.parametrize("seed", range(4))
def test_objective_is_above_the_bound_of_its_own_network_whatever_the_weights(
    loss, C, fit_intercept, seed
):
    # Weights over twelve orders of magnitude; classification may then cost next to nothing.
    rng = np.random.default_rng(seed)
    n = 12
    Y = targets(rng, n, loss, C)
    if loss == "squared" and C == 1:
        Y = np.where(Y > 0, 1.0, -1.0)  # as two classes
    weights = np.where(Y[:, 0] > 0.5, 1.0, 1e-9) * 10.0 ** rng.uniform(-3, 0, n)
    options = {"weights": weights, "fit_intercept": fit_intercept}
    gated = {"activation": "gated_relu", "gates": 6, "seed": seed}
    problem = make_problem(rng.normal(size=(n, 2)), Y, loss, 0.05, **options, **gated)
    neurons = Neurons.empty(problem.Z.shape[1], problem.constant())
    Lambda = problem.dual_point(problem.with_best_intercept(neurons)[1])
    # At so large an alpha the constant is optimal and its dual value the objective.
    large = replace(problem, alpha=2.0 * float(problem.gate_norms(Lambda).max()))
    best, certificate = large.certificate(neurons)
    assert certificate.infeasibility == 0.0
    assert certificate.dual == pytest.approx(certificate.primal, rel=1e-9, abs=0.0)
    assert certificate.primal == pytest.approx(large.objective(best), rel=1e-12, abs=0.0)
    small = problem.certificate(neurons)[1]
    assert 0.0 <= small.dual <= small.primal * (1 + 1e-9)
    assert 0.0 <= small.gap <= 1.0


@pytest.mark.parametrize(("loss", "C"), [("squared", 1), ("logistic", 1), ("softmax", 3)])
def test_given_dual_points_are_made_feasible(loss, C):
    problem = _problem(loss, C, activation="gated_relu", gates=5)
    best = solve(problem, "fista", tol=1e-7)
    _, F = problem.with_best_intercept(best.neurons)
    exact = problem.dual_point(F)
    noise = np.random.default_rng(0).normal(size=exact.shape) * problem.p[:, None]
    if loss == "softmax":
        noise -= noise.mean(axis=1, keepdims=True)
    for size in (1e-9, 1e-6, 1e-3):
        given = exact + size * noise + 10 * size * problem.p[:, None] * (loss != "softmax")
        certificate = problem.certificate(best.neurons, Lambda=given)[1]
        assert certificate.dual <= best.certificate.primal * (1 + 1e-12)
        assert certificate.dual >= best.certificate.dual - 100 * size
        # A correlation that was known of the point given bounds that of the feasible one too.
        known = problem.gate_norms(given).max()
        again = problem.certificate(
            best.neurons, Lambda=given, largest_correlation=known, proven=True
        )[1]
        assert again.dual <= certificate.dual * (1 + 1e-12)
        assert again.dual >= certificate.dual - 100 * size


@pytest.mark.parametrize("loss", ["logistic", "softmax"])
def test_dual_points_just_outside_the_domain_are_moved_inside(loss):
    problem = _problem(loss, 1 if loss == "logistic" else 3, activation="gated_relu", gates=5)
    neurons = random_neurons(problem, 3, np.random.default_rng(0))
    _, F = problem.with_best_intercept(neurons)
    own = problem.dual_point(F)
    outside = own * 1.0
    row = int(np.abs(own[:, 0]).argmin())
    outside[row] = -1e-7 * own[row]
    rest = np.arange(len(own)) != row
    outside[rest] *= 1 - outside.sum(axis=0) / outside[rest].sum(axis=0)
    if loss == "softmax":  # what a class gains on some rows, the others have to lose there
        outside -= outside.mean(axis=1, keepdims=True)
        outside[row] = -1e-7 * own[row]
        outside[rest] -= problem.p[rest, None] * outside.sum(axis=0) / problem.p[rest].sum()
    assert problem.loss.outside(-outside, problem.Y, problem.p) > 0.0
    moved, by = problem._feasible(outside, own)
    assert problem.loss.outside(-moved, problem.Y, problem.p) == 0.0
    np.testing.assert_allclose(moved.sum(axis=0), 0.0, atol=1e-15)
    change = np.abs(problem.gate_norms(moved) - problem.gate_norms(outside)).max()
    assert 0.0 < change <= by <= 1e-4


def test_a_search_that_misses_the_networks_own_units_gives_no_bound_above_the_objective():
    problem = _problem("squared", 1)
    best = solve(problem, "pursuit").neurons
    neurons = replace(best, weights=0.9 * best.weights)  # more of each unit would be better
    _, F = problem.with_best_intercept(neurons)
    certificate = problem.certificate(neurons, largest_correlation=problem.alpha)[1]
    assert problem.correlations(problem.dual_point(F), neurons.directions.T).max() > problem.alpha
    assert 0.0 <= certificate.dual <= certificate.primal
    assert certificate.infeasibility > 0.0


def test_full_relu_problem_needs_a_search():
    problem = _problem("squared", 1)
    neurons = Neurons.empty(problem.Z.shape[1], problem.constant())
    with pytest.raises(ValueError, match="needs a search"):
        problem.certificate(neurons)
    with pytest.raises(ValueError, match="no list of arrangements"):
        _ = problem.patterns


@pytest.mark.parametrize(
    ("primal", "dual", "gap"),
    [
        (2.0, 1.0, 0.5),
        (1.0, 1.0, 0.0),
        (1.0, 1.0 + 1e-10, 0.0),
        (0.0, 0.0, 0.0),
        (0.0, -1.0, 0.0),
        (1.0, -1.0, 2.0),
        (1e-300, 0.0, 1.0),
    ],
)
def test_relative_gap(primal, dual, gap):
    assert relative_gap(primal, dual) == gap


def test_a_bound_above_the_objective_is_not_hidden():
    assert relative_gap(1.0, 1.0 + 1e-6) == pytest.approx(-1e-6)


def test_neurons_from_products():
    rng = np.random.default_rng(0)
    q, g = rng.normal(size=(5, 3)) * 7, rng.normal(size=(5, 2))
    q[1], g[3] = 0.0, 0.0
    neurons = Neurons.from_products(q, g, np.zeros(2), np.arange(5))
    np.testing.assert_array_equal(neurons.gates, [0, 2, 4])
    np.testing.assert_allclose(np.linalg.norm(neurons.directions, axis=1), 1.0)
    for j, i in enumerate(neurons.gates):
        product = np.outer(neurons.directions[j], neurons.weights[j])
        np.testing.assert_allclose(product, np.outer(q[i], g[i]))
    expected = sum(np.linalg.norm(a) * np.linalg.norm(b) for a, b in zip(q, g, strict=True))
    assert neurons.mass == pytest.approx(expected)
    assert len(neurons) == 3


def test_empty_network():
    neurons = Neurons.empty(4, np.array([1.0, 2.0]))
    assert len(neurons) == 0
    assert neurons.mass == 0.0
    assert neurons.directions.shape == (0, 4)
    assert neurons.weights.shape == (0, 2)


def _certificate(kind, n_verified=0):
    return Certificate(
        primal=2.0,
        dual=1.5,
        gap=0.25,
        infeasibility=0.1,
        kind=kind,
        program="all arrangements",
        n_verified=n_verified,
        n_hits=7 if n_verified else 0,
        cautious_gap=0.25 if kind == "exact" else 0.5,
    )


def test_scaled_certificate_keeps_what_has_no_unit():
    scaled = _certificate("exact").scaled(4.0)
    assert (scaled.primal, scaled.dual) == (8.0, 6.0)
    assert (scaled.gap, scaled.infeasibility, scaled.kind) == (0.25, 0.1, "exact")
    assert relative_gap(scaled.primal, scaled.dual) == scaled.gap


def test_certificate_of_another_objective_keeps_both_bounds():
    other = _certificate("estimated").of_objective(1.6)
    assert (other.primal, other.dual) == (1.6, 1.5)
    assert other.gap == pytest.approx(0.1 / 1.6)
    assert other.cautious_gap == pytest.approx(0.6 / 1.6)  # the cautious bound is 1.0


@pytest.mark.parametrize(
    ("kind", "n_verified", "text"),
    [
        (
            "exact",
            0,
            "objective 2, certified to be within 25 % of the optimum over all arrangements",
        ),
        (
            "estimated",
            0,
            "objective 2, estimated, by the searches of the fit alone, to be within 25 % of the "
            "optimum over all arrangements (50 % at three times the violation they found)",
        ),
        (
            "estimated",
            300,
            "objective 2, estimated, by an independent search of 300 starts, to be within 25 % of "
            "the optimum over all arrangements (50 % at three times the violation it found; 7 "
            "of the starts ended in its best maximum)",
        ),
    ],
)
def test_certificate_in_words_says_how_it_is_known(kind, n_verified, text):
    certificate = _certificate(kind, n_verified)
    assert str(certificate) == text
    assert certificate.step == {0: "stopping", 300: "verified"}[n_verified] or kind == "exact"


@pytest.mark.parametrize("C", [1, 2])
def test_the_cautious_gap_is_that_of_three_times_the_excess(C):
    problem = _problem("squared", C, n=30)
    neurons = random_neurons(problem, 5, np.random.default_rng(0), scale=0.1)
    correlation = 1.05 * problem.alpha
    certificate = problem.certificate(neurons, largest_correlation=correlation)[1]
    at_caution = problem.certificate(neurons, largest_correlation=1.15 * problem.alpha)[1]
    assert certificate.infeasibility == pytest.approx(0.05)
    assert certificate.cautious_gap == pytest.approx(at_caution.gap, rel=1e-9)
    assert certificate.cautious_gap > certificate.gap
    exact = problem.certificate(neurons, largest_correlation=correlation, proven=True)[1]
    assert exact.cautious_gap == exact.gap == certificate.gap


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "all arrangements"),
        ({"gates": "all"}, "all arrangements"),
        ({"gates": 5}, "sampled arrangements"),
        ({"gates": 5, "activation": "gated_relu"}, "fixed gates"),
        ({"gates": "all", "activation": "gated_relu"}, "fixed gates"),
    ],
)
def test_program_in_words(options, words):
    problem = _problem("squared", 1, n=6, **options)
    assert problem.program.endswith(words)
    if problem.gates is not None and words != "all arrangements":
        assert problem.program.startswith(str(problem.gates.shape[1]))


@pytest.mark.parametrize("shape", [(2, 5, 3), (4, 3, 5), (3, 4, 1), (0, 3, 2)])
def test_spectral_norms(shape):
    blocks = np.random.default_rng(0).normal(size=shape)
    expected = [np.linalg.norm(M, ord=2) for M in blocks]
    np.testing.assert_allclose(spectral_norms(blocks), expected)

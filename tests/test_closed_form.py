import gc

import cvxpy as cp
import numpy as np
import pytest

from sklearn_convexbn import ConvexBNClassifier, ConvexBNRegressor, convexbn_path
from sklearn_convexbn.solvers import ClosedForm, _closed_form
from tests.helpers import make_problem, shared_data, solve, targets

per_intercept = pytest.mark.parametrize("fit_intercept", [True, False])
per_weights = pytest.mark.parametrize("weighted", [True, False])


def _wide(loss, C, alpha, *, n=12, d=30, weighted=False, seed=0, Y=None, **options):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d))
    Y = targets(rng, n, loss, C) if Y is None else Y
    weights = rng.uniform(0.3, 3.0, size=n) if weighted else None
    return make_problem(X, Y, loss, alpha, weights=weights, **options)


def _optimum(problem):
    """Optimal value for one output: (Z q)_+ can be any non-negative a, at cost |a|_p."""
    n, y, root = len(problem.Z), problem.Y[:, 0], np.sqrt(problem.p)
    # Scaled so that the cost is a plain norm.
    above, below, b = cp.Variable(n, nonneg=True), cp.Variable(n, nonneg=True), cp.Variable()
    f = cp.multiply(1 / root, above - below) + b
    if problem.loss.name == "squared":
        mean = 0.5 * cp.sum_squares(cp.multiply(root, f - y))
    else:
        mean = problem.p @ cp.logistic(cp.multiply(1 - 2 * y, f))
    mass = cp.norm(above) + cp.norm(below)
    constraints = [] if problem.fit_intercept else [b == 0]
    # In units of alpha, so that the solver's absolute tolerances mean the same everywhere.
    program = cp.Problem(cp.Minimize(mean / problem.alpha + mass), constraints)
    accuracy = dict.fromkeys(("tol_gap_abs", "tol_gap_rel", "tol_feas"), 1e-9)
    return problem.alpha * program.solve(solver="CLARABEL", **accuracy)


@pytest.mark.parametrize("loss", ["squared", "logistic"])
@pytest.mark.parametrize("alpha", [1e-3, 0.05, 0.2, 0.4, 0.8])
@per_intercept
@per_weights
@pytest.mark.parametrize("seed", range(2))
def test_value_is_that_of_an_independent_program(loss, alpha, fit_intercept, weighted, seed):
    problem = _wide(loss, 1, alpha, weighted=weighted, fit_intercept=fit_intercept, seed=seed)
    certificate = solve(problem, "closed_form", tol=1e-8).certificate
    assert certificate.primal == pytest.approx(_optimum(problem), rel=1e-7)
    assert certificate.gap <= 1e-8
    assert certificate.kind == "exact"
    assert certificate.program == "all arrangements"


def test_unbalanced_classes_and_a_skewed_target():
    rng = np.random.default_rng(0)
    for loss, Y in (
        ("logistic", np.eye(12)[:, :1]),
        ("squared", np.exp(3 * rng.normal(size=(12, 1)))),
    ):
        for alpha in (1e-3, 0.1):
            problem = _wide(loss, 1, alpha, Y=Y)
            certificate = solve(problem, "closed_form", tol=1e-8).certificate
            assert certificate.primal == pytest.approx(_optimum(problem), rel=1e-7)


@pytest.mark.parametrize("loss", ["squared", "softmax"])
@pytest.mark.parametrize("alpha", [1e-4, 0.01, 0.1, 0.5])
@per_intercept
@pytest.mark.parametrize("C", [2, 3, 4])
def test_balanced_classes_are_certified(loss, alpha, fit_intercept, C):
    Y = np.eye(C)[np.arange(12) % C]
    problem = _wide(loss, C, alpha, Y=Y, fit_intercept=fit_intercept)
    result = solve(problem, "closed_form", tol=1e-8)
    assert result.certificate.gap <= 1e-8
    assert result.certificate.kind == "exact"
    assert len(result.neurons) <= C


@pytest.mark.parametrize("loss", ["squared", "softmax"])
@per_intercept
@pytest.mark.parametrize("seed", range(6))
def test_unequal_classes_are_either_certified_or_refused(loss, fit_intercept, seed):
    rng = np.random.default_rng(seed)
    Y = np.eye(3)[np.concatenate([[0, 1, 2], rng.choice(3, size=9, p=[0.7, 0.2, 0.1])])]
    alpha = 10.0 ** rng.uniform(-3, -0.5)
    problem = _wide(loss, 3, alpha, Y=Y, weighted=True, fit_intercept=fit_intercept, seed=seed)
    if reason := ClosedForm().unsupported(problem):
        assert "class proportions" in reason
    else:
        assert solve(problem, "closed_form", tol=1e-8).certificate.gap <= 1e-8
    # Nothing the search finds may be better than the certified candidate's bound.
    found = solve(problem, "pursuit", tol=1e-3, max_iter=30).certificate
    if not reason:
        exact = solve(problem, "closed_form", tol=1e-8).certificate
        assert exact.dual * (1 - 1e-9) <= found.primal <= exact.primal * (1 + 2e-3)


def _fit(problem):
    neurons = solve(problem, "closed_form", tol=1e-8).neurons
    return problem.fit_without_intercept(neurons), neurons


@pytest.mark.parametrize("alpha", [0.01, 0.3, 0.6, 2.0])
def test_formula_for_one_output(alpha):
    problem = _wide("squared", 1, alpha, fit_intercept=False)
    y, n = problem.Y[:, 0], 12
    parts = np.maximum(y, 0), np.maximum(-y, 0)
    shrunk = [max(0, 1 - np.sqrt(n) * alpha / np.linalg.norm(a)) * a for a in parts]
    fit, neurons = _fit(problem)
    np.testing.assert_allclose(fit[:, 0], shrunk[0] - shrunk[1], atol=1e-9)
    assert len(neurons) == sum(a.any() for a in shrunk)


def _unequal_classes():
    return np.eye(3)[np.array([0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2])]


@pytest.mark.parametrize("alpha", [0.01, 0.2, 0.4, 0.7])
def test_formula_for_one_hot_targets(alpha):
    Y = _unequal_classes()
    sizes = Y.sum(axis=0)
    fit, neurons = _fit(_wide("squared", 3, alpha, Y=Y, fit_intercept=False))
    levels = np.maximum(0, 1 - np.sqrt(12) * alpha / np.sqrt(sizes))
    np.testing.assert_allclose(fit, Y * levels, atol=1e-9)
    assert len(neurons) == np.count_nonzero(levels)


@pytest.mark.parametrize("alpha", [0.01, 0.1, 0.2, 0.4, 0.6])
def test_formula_for_softmax(alpha):
    Y, n, C = _unequal_classes(), 12, 3
    miss = alpha * np.sqrt(n * (1 - 1 / C) / Y.sum(axis=0))
    active = miss < (C - 1) / C
    p = np.where(active, 1 - miss, 1 / C)
    t = np.log((C - 1) * p / (1 - p))
    expected = (Y @ t)[:, None] * (Y - 1 / C)
    fit, neurons = _fit(_wide("softmax", C, alpha, Y=Y, fit_intercept=False))
    np.testing.assert_allclose(fit, expected, atol=1e-8)
    assert len(neurons) == active.sum()


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize(("loss", "C"), [("squared", 1), ("logistic", 1), ("squared", 3)])
def test_large_alpha_gives_the_empty_network(loss, C, weighted):
    Y = np.eye(3)[np.arange(12) % 3] if C == 3 else None
    problem = _wide(loss, C, 1e3, Y=Y, weighted=weighted)
    result = solve(problem, "closed_form", tol=1e-8)
    assert len(result.neurons) == 0
    np.testing.assert_allclose(result.neurons.intercept, problem.constant(), atol=1e-9)


@pytest.mark.parametrize("constant", [0.0, 2.0])
def test_constant_target(constant):
    problem = _wide("squared", 1, 0.1, Y=np.full((12, 1), constant))
    result = solve(problem, "closed_form", tol=1e-8)
    assert len(result.neurons) == 0
    np.testing.assert_allclose(result.neurons.intercept, constant)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"n": 20, "d": 18}, "20 distinct rows of rank 18"),
        ({"n_components": 5}, "rank 5"),
        ({"shrinkage": 0.1}, "shrinkage"),
        ({"activation": "gated_relu", "gates": 5}, "gated_relu"),
        ({"C": 2}, "2 outputs that are not one-hot"),
    ],
)
def test_refuses_what_has_no_closed_form(options, reason):
    options = {"C": 1, **options}
    assert reason in ClosedForm().unsupported(_wide("squared", alpha=0.1, **options))


def test_rank_of_exactly_n_minus_one_is_enough():
    assert ClosedForm().unsupported(_wide("squared", 1, 0.1, n=13, d=12)) == ""
    assert solve(_wide("squared", 1, 0.1, n=13, d=12), "closed_form").certificate.gap <= 1e-8


def test_yields_one_network_and_stops():
    result = solve(_wide("squared", 1, 0.1), "closed_form", tol=1e-8)
    assert result.n_iter == 1
    assert result.converged


@per_intercept
@pytest.mark.parametrize("alpha", [1e-4, 1e-2, 0.3])
def test_regressor_takes_the_closed_form_on_wide_data(fit_intercept, alpha):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(20, 50)), 100.0 + 7.0 * rng.normal(size=20)
    model = ConvexBNRegressor(alpha, fit_intercept=fit_intercept).fit(X, y)
    assert isinstance(model.solver_, ClosedForm)
    assert model.certificate_.kind == "exact"
    assert model.dual_gap_ <= 1e-8
    residual = y - model.predict(X)
    mass = sum(np.linalg.norm(model.batch_norm_[key]) ** 2 for key in ("scale", "shift"))
    mass += np.linalg.norm(model.coefs_[1]) ** 2
    value = 0.5 * np.mean(residual**2) + 0.5 * model.weight_decay_ * mass
    assert model.objective_ == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize(
    ("alpha", "solver"), [(0.5, "closed_form"), (0.2, "pursuit"), (0.05, "pursuit")]
)
def test_a_closed_form_is_solved_once_whether_it_is_proven_or_not(alpha, solver, monkeypatch):
    solve_classes, solved = _closed_form._class_solution, []
    gc.collect()
    held = len(_closed_form._CANDIDATES)
    monkeypatch.setattr(
        _closed_form, "_class_solution", lambda problem: solved.append(1) or solve_classes(problem)
    )
    X, y = np.random.default_rng(0).normal(size=(14, 30)), np.repeat([0, 1, 2], [8, 4, 2])
    model = ConvexBNClassifier(alpha, random_state=0).fit(X, y)
    assert model.solver_.name == solver
    assert model.dual_gap_ <= model.tol
    assert len(solved) == 1
    _, networks, _ = convexbn_path(X, y, alphas=[0.5, alpha / 2], random_state=0)
    assert len(solved) == 1 + len(networks)
    gc.collect()
    assert len(_closed_form._CANDIDATES) == held


def test_repeated_rows_of_wide_data_keep_the_closed_form():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(10, 50)), rng.normal(size=10)
    once = ConvexBNRegressor(0.1).fit(X, y, sample_weight=np.arange(1, 11))
    repeats = np.arange(1, 11)
    many = ConvexBNRegressor(0.1).fit(np.repeat(X, repeats, axis=0), np.repeat(y, repeats))
    assert isinstance(many.solver_, ClosedForm)
    np.testing.assert_array_equal(once.predict(X), many.predict(X))


@pytest.mark.parametrize("name", ["glioma", "colon"])
@pytest.mark.parametrize("alpha", [1e-3, 1e-2])
@pytest.mark.parametrize("loss", ["log_loss", "squared_error"])
def test_gene_expression_is_solved_exactly(name, alpha, loss):
    data = shared_data(f"highdim/{name}")
    X, y = data["X"].astype(float), data["y"]
    model = ConvexBNClassifier(alpha, loss=loss).fit(X, y)
    assert isinstance(model.solver_, ClosedForm)
    assert model.certificate_.kind == "exact"
    assert model.dual_gap_ <= 1e-6
    assert model.score(X, y) == 1.0
    assert model.n_neurons_ <= len(model.classes_)

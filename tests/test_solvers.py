"""The registry, the driver, and one bank of problems for all solvers."""

from numbers import Integral
from typing import ClassVar

import cvxpy
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning

from sklearn_convexbn import ConvexBNRegressor, ConvexBNRegressorCV, convexbn_path, solvers
from sklearn_convexbn.fit import _training
from sklearn_convexbn.program._problem import Certificate, Neurons, relative_gap
from sklearn_convexbn.search._bound import QUICK_OPERATIONS, rows_are_independent
from sklearn_convexbn.search._exact import exact_search_operations
from sklearn_convexbn.solvers import (
    CVXPY,
    FISTA,
    GroupNewton,
    Iterate,
    Pursuit,
    RunSettings,
    Solver,
    run,
)
from sklearn_convexbn.solvers._base import _better
from sklearn_convexbn.support._compat import Interval
from sklearn_convexbn.support._sharding import ALL_HERE
from tests.helpers import make_problem, solve, targets

BANK = {
    "gated, squared": ("squared", 1, {"activation": "gated_relu", "gates": 12}),
    "gated, logistic": ("logistic", 1, {"activation": "gated_relu", "gates": 12}),
    "gated, softmax": ("softmax", 3, {"activation": "gated_relu", "gates": 8}),
    "gated, two outputs": ("squared", 2, {"activation": "gated_relu", "gates": 8}),
    "gated, no intercept": (
        "squared",
        1,
        {"activation": "gated_relu", "gates": 12, "fit_intercept": False},
    ),
    "gated, shrunk": ("squared", 1, {"activation": "gated_relu", "gates": 12, "shrinkage": 0.4}),
    "relu list, squared": ("squared", 1, {"gates": 10}),
    "relu list, logistic": ("logistic", 1, {"gates": 10}),
    "relu, all listed": ("squared", 1, {"gates": "all", "n_components": 1}),
    "relu, squared": ("squared", 1, {}),
    "relu, softmax": ("softmax", 3, {}),
    "relu, wide": ("squared", 1, {"wide": True}),
    "relu, wide classes": ("softmax", 3, {"wide": True}),
}


def bank_problem(name):
    loss, C, kw = BANK[name]
    kw = dict(kw)
    rng = np.random.default_rng(5)
    X = rng.standard_normal((12, 20)) if kw.pop("wide", False) else rng.standard_normal((40, 3))
    return make_problem(X, targets(rng, len(X), loss, C), loss, 0.02, **kw)


@pytest.mark.parametrize("name", BANK)
def test_all_capable_solvers_agree(name):
    problem = bank_problem(name)
    able = [
        s
        for s in solvers.capable_solvers(problem)
        if (problem.gates is not None) == solvers.make_solver(s).needs_arrangements
    ]
    assert able
    tol = 1e-4
    results = [solve(problem, solvers.make_solver(s), tol=tol) for s in able]
    for solver, result in zip(able, results, strict=True):
        certificate = result.certificate
        assert result.converged
        assert 0 <= certificate.gap <= tol
        operations = exact_search_operations(*problem.Z.shape, problem.n_outputs)
        proven = operations <= QUICK_OPERATIONS or rows_are_independent(problem)
        if solver != "pursuit" or proven:
            assert certificate.kind == "exact"
        elif problem.n_outputs > 1:  # of one output, branch and bound may end in time
            assert certificate.kind == "estimated"
        assert problem.objective(result.neurons) == pytest.approx(certificate.primal, rel=1e-9)
        if problem.activation == "relu" and problem.gates is not None:
            assert problem.cone_violation(result.neurons) <= 1e-6
    values = [r.certificate.primal for r in results]
    assert max(values) <= min(values) * (1 + 2 * tol)


@pytest.mark.parametrize("name", BANK)
def test_refusals_are_sentences_that_name_a_capable_solver(name):
    problem = bank_problem(name)
    for solver in map(solvers.make_solver, solvers.REGISTRY):
        if solvers.unsupported(solver, problem):
            with pytest.raises(ValueError, match=f"'{solver.name}' does not handle .*Use solver='"):
                solvers.check_supported(solver, problem)
        else:
            solvers.check_supported(solver, problem)


@pytest.mark.parametrize("name", solvers.REGISTRY)
def test_solvers_are_cloneable_estimators_with_their_registered_name(name):
    solver = solvers.make_solver(name)
    assert solver.name == name
    assert clone(solver).get_params() == solver.get_params()


@pytest.mark.parametrize(
    ("solver", "given", "names"),
    [
        ("auto", {}, ["pursuit"]),
        ("auto", {"n_rows": 6}, ["closed_form", "pursuit"]),
        ("auto", {"n_rows": 7}, ["pursuit"]),
        ("auto", {"n_rows": 6, "pooled": True}, ["closed_form", "pursuit"]),
        ("auto", {"n_rows": 6, "spread": True}, ["pursuit"]),
        ("auto", {"activation": "gated_relu"}, ["group_newton"]),
        ("auto", {"activation": "gated_relu", "n_outputs": 2}, ["fista"]),
        ("auto", {"activation": "gated_relu", "pooled": True}, ["fista"]),
        ("closed_form", {}, ["closed_form"]),
        (GroupNewton(), {"n_outputs": 2}, ["group_newton"]),
    ],
)
def test_solvers_are_chosen_by_what_they_declare(solver, given, names):
    plain = {"activation": "relu", "n_rows": 40, "n_columns": 5, "n_outputs": 1}
    outline = solvers.Outline(**{**plain, "pooled": False, "spread": False, **given})
    assert [found.name for found in solvers.candidates(solver, outline)] == names


class Reader(Solver):
    """Has the pursuit solve the problem, and keeps the kind of the rows."""

    name = "reader"
    needs_arrangements = False
    rows: ClassVar[list] = []

    def unsupported(self, problem):
        return ""

    def iterates(self, problem, settings):
        self.rows.append(problem.Z.dtype)
        return Pursuit().iterates(problem, settings)


class BlockReader(Reader):
    reads_blocks = True


class ListReader(BlockReader):
    needs_arrangements = True


@pytest.mark.parametrize(
    ("solver", "n", "dtype"),
    [
        (Reader(), 50, "float64"),
        (BlockReader(), 50, "float32"),
        (BlockReader(), 10, "float64"),  # few rows for their columns
        (ListReader(), 50, "float64"),
        ("interior_point", 50, "float64"),
    ],
)
def test_a_solver_has_rows_as_it_says_that_it_reads_them(solver, n, dtype, monkeypatch):
    monkeypatch.setattr(_training, "COMPACT_NUMBERS", 1)
    Reader.rows.clear()
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(n, 5)), rng.normal(size=n)
    model = ConvexBNRegressor(0.3, solver=solver, n_gates=5, random_state=0).fit(X, y)
    settings = _training.TrainingSettings.of(model.get_params(deep=False))
    stated = _training.prepare(model._training_data(X, y, np.ones(n), ALL_HERE), settings)
    assert str(stated.problem.Z.dtype).removeprefix("torch.") == dtype
    assert {str(kind) for kind in Reader.rows} <= {dtype}


def test_unknown_solver_name_is_refused():
    with pytest.raises(ValueError, match=r"'solver' parameter must be .* Got 'sgd' instead"):
        solvers.make_solver("sgd")


@pytest.mark.parametrize(
    ("solver", "message"),
    [
        (Pursuit(n_starts=-1), r"'n_starts' parameter of Pursuit must be an int in .*\. Got -1"),
        (Pursuit(n_search_steps=0), r"'n_search_steps' parameter of Pursuit .*\[1, inf\).* Got 0"),
        (Pursuit(n_insert=2.5), r"'n_insert' parameter of Pursuit .* Got 2\.5"),
        (Pursuit(n_slide_steps="a"), r"'n_slide_steps' parameter of Pursuit .* Got 'a'"),
        (
            Pursuit(n_verify=-1),
            r"'n_verify' parameter of Pursuit .*'auto'.* Got -1",
        ),
        (FISTA(dtype="float16"), r"'dtype' parameter of FISTA must be a str among .* 'float16'"),
        (FISTA(n_steps=0), r"'n_steps' parameter of FISTA .* Got 0"),
        (FISTA(n_newton_steps=-1), r"'n_newton_steps' parameter of FISTA .* Got -1"),
        (CVXPY(backend=None), r"'backend' parameter of CVXPY .* Got None"),
        (CVXPY(options="fast"), r"'options' parameter of CVXPY .* Got 'fast'"),
    ],
)
def test_parameters_of_a_solver_are_checked_before_any_work(solver, message):
    X, y = np.zeros((4, 2)), np.arange(3.0)  # their lengths are not looked at
    activation = "relu" if isinstance(solver, Pursuit) else "gated_relu"
    model = ConvexBNRegressor(solver=solver, activation=activation)
    for fit in (
        lambda: model.fit(X, y),
        lambda: convexbn_path(X, y, solver=solver, activation=activation),
        lambda: ConvexBNRegressorCV(solver=solver, activation=activation).fit(X, y),
        lambda: solve(bank_problem("gated, squared"), solver),
    ):
        with pytest.raises(ValueError, match=message):
            fit()


def test_constraints_that_another_solver_declares_are_checked():
    class Other(solvers.FISTA):
        _parameter_constraints: ClassVar = {"n_steps": [Interval(Integral, 7, None, closed="left")]}

    model = ConvexBNRegressor(solver=Other(n_steps=6), activation="gated_relu")
    with pytest.raises(ValueError, match=r"'n_steps' parameter of Other .*\[7, inf\).* Got 6"):
        model.fit(np.eye(4), np.arange(4.0))


@pytest.mark.parametrize("n_gates", [1, 2, 3])
def test_few_gates_are_drawn_until_one_is_active_somewhere(n_gates):
    X, y = np.array([[0.0], [1.0], [3.0]]), np.array([0.0, 1.0, -1.0])
    for seed in range(40):
        model = ConvexBNRegressor(
            activation="gated_relu", n_gates=n_gates, alpha=0.01, random_state=seed
        )
        assert np.isfinite(model.fit(X, y).predict(X)).all()


class Scripted(Solver):
    """Yields multiples of one network."""

    name = "scripted"

    def __init__(self, factors=(), stalled_at=None):
        self.factors = factors
        self.stalled_at = stalled_at

    def unsupported(self, problem):
        return ""

    def iterates(self, problem, settings):
        best = solve(problem, "group_newton", tol=1e-9).neurons
        for i, factor in enumerate(self.factors):
            weights = factor * best.weights
            neurons = Neurons(best.directions, weights, best.intercept, best.gates)
            yield Iterate(neurons, stalled=i == self.stalled_at)


SETTINGS = RunSettings(tol=1e-6, device="cpu", random_directions=None, random_state=None)


def test_driver_stops_at_the_first_round_within_tol():
    result = run(
        Scripted((0.5, 0.9, 1.0, 2.0)), bank_problem("gated, squared"), SETTINGS, max_iter=9
    )
    assert result.converged
    assert result.n_iter == 3
    assert {len(column) for column in result.history.values()} == {3}
    assert result.history["dual_gap"][-1] == result.certificate.gap <= 1e-6


def test_driver_keeps_the_best_network_and_the_best_proven_bound():
    problem = bank_problem("gated, squared")
    with pytest.warns(ConvergenceWarning, match="Increase max_iter") as caught:
        result = run(Scripted((0.9, 0.5, 0.3)), problem, SETTINGS, max_iter=3)
    assert len(caught) == 1
    assert not result.converged
    assert problem.objective(result.neurons) == pytest.approx(result.certificate.primal)
    assert result.certificate.primal == result.history["objective"].min()
    assert (np.diff(result.history["dual_gap"]) <= 0).all()


def test_driver_says_that_a_stalled_solver_can_do_no_more():
    with pytest.warns(ConvergenceWarning, match="come to a halt"):
        result = run(
            Scripted((0.5, 0.6, 1.0), stalled_at=1),
            bank_problem("gated, squared"),
            SETTINGS,
            max_iter=9,
        )
    assert result.n_iter == 2


def test_solver_without_iterates_is_an_error():
    with pytest.raises(RuntimeError, match="'scripted' returned no network"):
        run(Scripted(), bank_problem("gated, squared"), SETTINGS, max_iter=1)


def test_an_estimated_bound_does_not_enter_an_exact_certificate():
    def certificate(primal, dual, kind, n_verified=0):
        gap = relative_gap(primal, dual)
        return Certificate(primal, dual, gap, 0.0, kind, "all arrangements", n_verified, 0, gap)

    old, new = certificate(1.0, 0.95, "estimated"), certificate(0.97, 0.93, "exact")
    assert _better((None, old), None, new)[1] == new
    worse = certificate(1.1, 0.93, "exact")
    kept = _better((None, old), None, worse)[1]
    assert (kept.primal, kept.dual, kept.kind) == (1.0, 0.93, "exact")
    assert kept.gap == kept.cautious_gap == pytest.approx(0.07)


def test_a_later_verification_counts_for_the_best_network_and_a_later_stopping_test_does_not():
    def certificate(primal, dual, n_verified):
        gap, cautious = relative_gap(primal, dual), relative_gap(primal, dual - 0.02)
        words = "estimated", "all arrangements"
        return Certificate(primal, dual, gap, 0.0, *words, n_verified, 0, cautious)

    old, worse = certificate(1.0, 0.9, 100), certificate(1.1, 0.95, 0)
    assert _better(("old", old), "new", worse) == ("old", old)
    neurons, kept = _better(("old", old), "new", certificate(1.1, 0.95, 200))
    assert neurons == "old"
    assert (kept.primal, kept.dual, kept.n_verified) == (1.0, 0.95, 200)
    assert kept.gap == pytest.approx(0.05)
    assert kept.cautious_gap == pytest.approx(0.07)


class NotFinite(Solver):
    """Yields good networks, then one that is not finite."""

    name = "not_finite"

    def __init__(self, value=np.nan, good=0):
        self.value = value
        self.good = good

    def unsupported(self, problem):
        return ""

    def iterates(self, problem, settings):
        best = solve(problem, "group_newton", tol=0.1).neurons
        for i in range(self.good + 1):
            factor = 1.0 if i < self.good else self.value
            yield Iterate(
                Neurons(best.directions, factor * best.weights, best.intercept, best.gates)
            )


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_network_that_is_not_finite_is_an_error_that_says_what(value):
    problem = bank_problem("gated, squared")
    with pytest.raises(ValueError, match=r"'not_finite' .* not finite: the output weights\. "):
        run(NotFinite(value), problem, SETTINGS, max_iter=5)


def test_a_later_network_that_is_not_finite_ends_the_run_with_the_best_before():
    problem = bank_problem("gated, squared")
    with pytest.warns(ConvergenceWarning, match="numbers that are not finite") as caught:
        result = run(NotFinite(good=1), problem, SETTINGS, max_iter=5)
    assert len(caught) == 1
    assert result.n_iter == 2
    assert np.isfinite(result.certificate.primal)
    assert np.isfinite(result.neurons.weights).all()
    assert np.isfinite(result.history["objective"]).all()


def test_a_bound_that_is_not_finite_is_an_error():
    class WithoutBound(Scripted):
        def iterates(self, problem, settings):
            for iterate in super().iterates(problem, settings):
                yield Iterate(iterate.neurons, largest_correlation=np.nan)

    with pytest.raises(ValueError, match="not finite: the lower bound"):
        run(WithoutBound((0.5,)), bank_problem("gated, squared"), SETTINGS, max_iter=1)


@pytest.mark.parametrize("alpha", [10.0, 1e-3])
def test_no_network_is_worse_than_none_at_all(alpha):
    class Wrong(Scripted):
        def iterates(self, problem, settings):
            for iterate in super().iterates(problem, settings):
                neurons = iterate.neurons
                if len(neurons) == 0:  # units at rounding level, as numerical solvers leave them
                    weights, gates = np.full((1, 1), 1e-9), np.zeros(1, dtype=int)
                    neurons = Neurons(
                        np.eye(problem.Z.shape[1])[:1], weights, neurons.intercept, gates
                    )
                yield Iterate(neurons, stalled=True)

    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(20, 2)), rng.normal(size=(20, 1)) * (alpha > 1)
    problem = make_problem(X, y, "squared", alpha, "gated_relu", gates=6)
    result = run(Wrong((1.0,)), problem, SETTINGS, max_iter=1)
    assert len(result.neurons) == 0
    assert result.certificate.gap == 0.0
    assert result.certificate.primal == problem.objective(result.neurons)


def test_cvxpy_goes_on_with_larger_tolerances_where_its_backend_fails(monkeypatch, diabetes):
    run, options = cvxpy.Problem.solve, []

    def failing(self, **given):
        options.append(given["tol_gap_rel"])
        if len(options) < 3:
            raise cvxpy.SolverError("numerical error")
        return run(self, **given)

    monkeypatch.setattr(cvxpy.Problem, "solve", failing)
    X, y = diabetes
    model = ConvexBNRegressor(activation="gated_relu", n_gates=3, solver="cvxpy", tol=1e-7)
    model.fit(X[:40, :3], y[:40])
    assert options == [1e-11, 1e-10, 1e-9]
    assert model.dual_gap_ <= 1e-7


def test_cvxpy_says_why_its_backend_found_nothing(diabetes):
    X, y = diabetes
    solver = CVXPY(backend="SCIPY")  # linear programs only
    model = ConvexBNRegressor(activation="gated_relu", n_gates=3, solver=solver)
    with pytest.raises(RuntimeError, match=r"found no solution: .*SCIPY.* another backend"):
        model.fit(X[:40, :3], y[:40])
    assert not hasattr(model, "coefs_")

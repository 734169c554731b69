"""The estimators: contract, metamorphic relations, bad input."""

import contextlib
import functools
import inspect
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
from scipy import sparse
from sklearn.base import clone
from sklearn.compose import TransformedTargetRegressor
from sklearn.datasets import load_diabetes, load_iris, load_linnerud
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_convexbn import (
    ConvexBNClassifier,
    ConvexBNRegressor,
    ConvexBNRegressorCV,
    convexbn_path,
)
from sklearn_convexbn.program._problem import Neurons
from sklearn_convexbn.solvers import FISTA, ClosedForm, Iterate, Pursuit, Solver
from tests.helpers import whiten


@pytest.fixture(scope="module")
def diabetes():
    X, y = load_diabetes(return_X_y=True)
    return X[:120], y[:120]


def regressor(**kw):
    return ConvexBNRegressor(**{"alpha": 0.1, "random_state": 0, **kw})


def classifier(**kw):
    return ConvexBNClassifier(**{"alpha": 0.03, "random_state": 0, **kw})


# --- what a fit publishes -------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["relu", "gated_relu"])
def test_fitted_attributes_agree_with_each_other(diabetes, activation):
    X, y = diabetes
    m = regressor(activation=activation).fit(X, y)
    d, units = m.coefs_[0].shape
    assert (d, units) == (10, m.n_neurons_)
    assert m.coefs_[1].shape == (units, 1)
    assert [b.shape for b in m.intercepts_] == [(units,), (1,)]
    assert {k: v.shape for k, v in m.batch_norm_.items()} == dict.fromkeys(
        ("mean", "var", "scale", "shift"), (units,)
    )
    assert m.objective_ == m.certificate_.primal
    assert m.dual_gap_ == m.certificate_.gap <= m.tol
    assert m.certificate_.gap == pytest.approx(1 - m.certificate_.dual / m.certificate_.primal)
    assert {len(v) for v in m.history_.values()} == {m.n_iter_}
    assert m.history_["objective"][-1] == pytest.approx(m.objective_)
    assert (np.diff(m.history_["objective"]) <= 0).all()
    assert (np.diff(m.history_["time"]) >= 0).all()
    assert m.history_["n_neurons"][-1] == m.n_neurons_
    assert m.n_components_ == len(m.singular_values_) == 10
    assert m.explained_variance_ratio_.sum() == pytest.approx(1)
    assert m.weight_decay_ == pytest.approx(0.1 * y.std())
    kinds = {"relu": "estimated", "gated_relu": "exact"}
    assert m.certificate_.kind == kinds[activation]
    assert hasattr(m, "gates_") == (activation == "gated_relu")


def test_prediction_is_the_formula_of_the_docstring(diabetes):
    X, y = diabetes
    m = regressor().fit(X, y)
    hidden = np.maximum(X @ m.coefs_[0] + m.intercepts_[0], 0)
    expected = (hidden @ m.coefs_[1] + m.intercepts_[1])[:, 0]
    np.testing.assert_allclose(m.predict(X), expected, rtol=1e-12)
    g = regressor(activation="gated_relu").fit(X, y)
    on = X @ g.gates_[:-1] + g.gates_[-1] >= 0
    hidden = on * (X @ g.coefs_[0] + g.intercepts_[0])
    expected = (hidden @ g.coefs_[1] + g.intercepts_[1])[:, 0]
    np.testing.assert_allclose(g.predict(X), expected, rtol=1e-12)


@pytest.mark.parametrize("activation", ["relu", "gated_relu"])
def test_objective_is_mean_loss_plus_weight_decay_of_the_network(diabetes, activation):
    X, y = diabetes
    m = regressor(activation=activation, shrinkage=0.0).fit(X, y)
    scale, shift = m.batch_norm_["scale"], m.batch_norm_["shift"]
    decay = (scale**2).sum() + (shift**2).sum() + (m.coefs_[1] ** 2).sum()
    loss = 0.5 * np.mean((m.predict(X) - y) ** 2)
    assert m.objective_ == pytest.approx(loss + 0.5 * m.weight_decay_ * decay, rel=1e-9)


@pytest.mark.parametrize("n_components", [None, 4])
def test_shrinkage_is_part_of_what_batch_normalization_divides_by(diabetes, n_components):
    X, y = diabetes
    m = regressor(shrinkage=0.2, n_components=n_components).fit(X, y)
    W = m.coefs_[0]
    scales = 0.8 * (X @ W).var(axis=0) + 0.2 * (X.var(axis=0) @ W**2)
    decay = scales.sum() + (m.batch_norm_["shift"] ** 2).sum() + (m.coefs_[1] ** 2).sum()
    loss = 0.5 * np.mean((m.predict(X) - y) ** 2)
    assert m.objective_ == pytest.approx(loss + 0.5 * m.weight_decay_ * decay, rel=1e-9)


def test_weight_decay_is_alpha_in_the_units_of_y(diabetes):
    X, y = diabetes
    given = regressor(alpha=0.25).fit(X, y)
    assert given.alpha_ == 0.25
    assert given.weight_decay_ == pytest.approx(0.25 * y.std())


def test_default_shrinkage_leaves_closed_forms_alone(diabetes):
    X, y = diabetes
    wide = ConvexBNRegressor(random_state=0).fit(X[:11], y[:11])
    assert wide.shrinkage_ == 0.0
    assert type(wide.solver_).name == "closed_form"
    assert regressor().fit(X[:12], y[:12]).shrinkage_ == 0.01


def test_units_of_columns_do_not_change_a_default_fit(diabetes):
    """Rows come in another order, so that rounds part, but the program is the same."""
    X, y = diabetes
    units = 2.0 ** np.array([-40, 30, 0, 5, -7, 20, -20, 12, 1, 33])
    model = regressor(tol=1e-3).fit(X, y)
    scaled = regressor(tol=1e-3).fit(X * units, y)
    assert scaled.objective_ == pytest.approx(model.objective_, rel=1e-3)
    Z, Z_scaled = (whiten(rows, np.ones(len(X)), shrinkage="eps")[0] for rows in (X, X * units))
    np.testing.assert_array_equal(Z_scaled, Z)


def test_classifier_objective_and_probabilities(iris):
    X, y = iris
    m = classifier(shrinkage=0.0).fit(X, y)
    proba = m.predict_proba(X)
    np.testing.assert_allclose(proba.sum(axis=1), 1)
    np.testing.assert_allclose(np.log(proba), m.predict_log_proba(X))
    assert (m.classes_[proba.argmax(axis=1)] == m.predict(X)).all()
    decay = sum((m.batch_norm_[k] ** 2).sum() for k in ("scale", "shift"))
    decay += (m.coefs_[1] ** 2).sum()
    loss = -m.predict_log_proba(X)[np.arange(len(y)), y].mean()
    assert m.objective_ == pytest.approx(loss + 0.5 * 0.03 * decay, rel=1e-9)


def test_two_classes_have_one_output_whose_sign_decides(breast_cancer):
    X, y = breast_cancer
    labels = np.array(["malignant", "benign"])[y]
    m = classifier().fit(X, labels)
    scores = m.decision_function(X)
    assert scores.shape == y.shape
    assert m.classes_.tolist() == ["benign", "malignant"]
    assert (m.predict(X) == np.where(scores > 0, "malignant", "benign")).all()
    np.testing.assert_allclose(m.predict_proba(X)[:, 1], 1 / (1 + np.exp(-scores)))
    assert m.score(X, labels) > 0.97


def test_squared_error_has_no_probabilities(iris):
    m = classifier(loss="squared_error").fit(*iris)
    assert m.score(*iris) > 0.9
    assert not hasattr(m, "predict_proba")
    with pytest.raises(AttributeError) as raised:
        m.predict_log_proba(iris[0])
    assert "loss='log_loss'" in str(raised.value.__cause__)


def test_several_outputs():
    X, Y = load_linnerud(return_X_y=True)
    m = regressor(alpha=0.05).fit(X, Y)
    assert m.predict(X).shape == Y.shape
    assert m.coefs_[1].shape == (m.n_neurons_, 3)
    one = regressor(alpha=0.05).fit(X, Y[:, :1])
    assert one.predict(X).shape == (20, 1)


# --- metamorphic relations -----------------------------------------------------------------


@pytest.mark.parametrize("activation", ["relu", "gated_relu"])
def test_weights_repeats_and_row_order_give_the_same_network(diabetes, activation):
    X, y = diabetes
    weights = np.random.default_rng(0).integers(0, 4, len(X))
    weighted = regressor(activation=activation).fit(X, y, sample_weight=weights)
    rows = np.random.default_rng(1).permutation(np.repeat(np.arange(len(X)), weights))
    repeated = regressor(activation=activation).fit(X[rows], y[rows])
    np.testing.assert_allclose(weighted.predict(X), repeated.predict(X), rtol=1e-9)
    np.testing.assert_allclose(weighted.singular_values_, repeated.singular_values_)
    assert weighted.objective_ == pytest.approx(repeated.objective_, rel=1e-12)


def test_constant_factor_in_sample_weights_changes_nothing(diabetes):
    X, y = diabetes
    weights = np.random.default_rng(0).uniform(0.5, 2, len(X))
    a, b = (regressor().fit(X, y, sample_weight=s * weights) for s in (1, 8))
    np.testing.assert_allclose(a.predict(X), b.predict(X), rtol=1e-9)


def test_class_weights_are_sample_weights(iris):
    X, y = iris
    by_class = classifier(class_weight={0: 1.0, 1: 3.0, 2: 0.5}).fit(X, y)
    by_row = classifier().fit(X, y, sample_weight=np.array([1.0, 3.0, 0.5])[y])
    np.testing.assert_allclose(by_class.predict_proba(X), by_row.predict_proba(X), atol=1e-9)
    X, y = X[30:], y[30:]
    balanced = classifier(class_weight="balanced").fit(X, y)
    per_class = len(y) / (3 * np.bincount(y))
    by_row = classifier().fit(X, y, sample_weight=per_class[y])
    np.testing.assert_allclose(balanced.predict_proba(X), by_row.predict_proba(X), atol=1e-9)


@pytest.mark.parametrize("activation", ["relu", "gated_relu"])
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_scale_of_the_target_scales_predictions(diabetes, activation, fit_intercept):
    X, y = diabetes
    kw = {"activation": activation, "fit_intercept": fit_intercept}
    m, big = regressor(**kw).fit(X, y), regressor(**kw).fit(X, 1024 * y)
    np.testing.assert_allclose(big.predict(X), 1024 * m.predict(X), rtol=1e-9)
    assert big.objective_ == pytest.approx(1024**2 * m.objective_)
    assert big.weight_decay_ == pytest.approx(1024 * m.weight_decay_)


def test_shift_of_the_target_shifts_predictions(diabetes):
    X, y = diabetes
    a, b = regressor(tol=1e-4).fit(X, y), regressor(tol=1e-4).fit(X, y + 1000.0)
    assert a.objective_ == pytest.approx(b.objective_, rel=2e-4)
    # Outputs of two networks within 1e-4 of the optimum differ like the root of that.
    np.testing.assert_allclose(b.predict(X) - 1000, a.predict(X), atol=0.05 * y.std())


def test_invertible_linear_map_of_the_features_leaves_the_optimum_alone(diabetes):
    X, y = diabetes
    A = np.random.default_rng(0).standard_normal((10, 10))
    a, b = (regressor(tol=1e-4, shrinkage=0.0).fit(rows, y) for rows in (X, X @ A + 5))
    assert a.objective_ == pytest.approx(b.objective_, rel=2e-4)
    # Outputs of two networks within 1e-4 of the optimum differ like the root of that.
    np.testing.assert_allclose(a.predict(X), b.predict(X @ A + 5), atol=0.05 * y.std())


def test_objective_grows_with_alpha_and_large_alpha_gives_the_mean(diabetes):
    X, y = diabetes
    fits = [regressor(alpha=a, tol=1e-3).fit(X, y) for a in (0.01, 0.03, 0.1, 0.3, 10.0)]
    lower = [m.certificate_.dual / m.weight_decay_ * m.alpha for m in fits]
    values = [m.objective_ / m.weight_decay_ * m.alpha for m in fits]
    assert all(low <= high for low, high in zip(lower, values[1:], strict=False))
    assert fits[-1].n_neurons_ == 0
    np.testing.assert_allclose(fits[-1].predict(X), y.mean())
    assert fits[-1].dual_gap_ == pytest.approx(0, abs=1e-12)


def test_full_relu_is_at_most_the_optimum_over_sampled_arrangements(diabetes):
    X, y = diabetes
    full = regressor(tol=1e-3).fit(X, y)
    few = regressor(solver="interior_point", n_gates=10, tol=1e-3).fit(X, y)
    more = regressor(solver="interior_point", n_gates=40, tol=1e-3).fit(X, y)
    assert few.certificate_.program == "10 sampled arrangements"
    assert full.objective_ <= more.objective_ * (1 + 1e-3) <= few.objective_ * (1 + 2e-3)


def test_random_state_makes_fits_identical(iris):
    for kw in ({}, {"activation": "gated_relu"}):
        a, b = classifier(**kw).fit(*iris), classifier(**kw).fit(*iris)
        assert (a.decision_function(iris[0]) == b.decision_function(iris[0])).all()


def test_n_components_and_spectrum(iris):
    X, y = iris
    m = classifier(n_components=2).fit(X, y)
    assert m.n_components_ == 2
    assert m.singular_values_.shape == (4,)
    moved = X + np.linalg.svd(X - X.mean(0))[2][3]
    np.testing.assert_allclose(m.decision_function(moved), m.decision_function(X), atol=1e-9)
    assert classifier(n_components=0.9).fit(X, y).n_components_ == 1
    assert classifier(n_components=50).fit(X, y).n_components_ == 4


def test_warm_start_on_the_same_data_ends_at_once(diabetes):
    X, y = diabetes
    m = regressor(tol=0.01, warm_start=True).fit(X, y)
    assert m.n_iter_ > 2
    m.fit(X, y)
    assert m.n_iter_ <= 2


# --- composition ---------------------------------------------------------------------------


def test_pipeline_grid_search_and_solver_parameters(diabetes):
    X, y = diabetes
    pipe = make_pipeline(StandardScaler(), regressor(solver=Pursuit()))
    grid = {
        "convexbnregressor__n_components": [2, None],
        "convexbnregressor__solver__n_starts": [20, 50],
    }
    search = GridSearchCV(pipe, grid, cv=2).fit(X, y)
    assert search.best_estimator_[-1].solver_.n_starts in (20, 50)
    assert TransformedTargetRegressor(regressor(), func=np.log, inverse_func=np.exp).fit(X, y)
    assert cross_val_score(classifier(), *load_iris(return_X_y=True), cv=3).mean() > 0.9


def test_fit_does_not_change_parameters_or_the_solver_object(diabetes):
    solver = FISTA()
    m = regressor(activation="gated_relu", solver=solver).fit(*diabetes)
    assert m.solver is solver
    assert m.solver_ is not solver
    assert clone(m).get_params()["solver"].get_params() == solver.get_params()


def test_data_frames_and_pickles(iris):
    X, y = iris
    frame = pd.DataFrame(X, columns=list("abcd"))
    m = classifier().fit(frame, pd.Series(y))
    assert m.feature_names_in_.tolist() == list("abcd")
    again = pickle.loads(pickle.dumps(m))
    np.testing.assert_array_equal(again.predict_proba(frame), m.predict_proba(frame))
    polars = pl.DataFrame(dict(zip("abcd", X.T, strict=True)))
    np.testing.assert_array_equal(m.predict(polars), m.predict(frame))
    assert classifier().fit(polars, y).feature_names_in_.tolist() == list("abcd")


def test_numbers_are_numpy(diabetes):
    m = regressor().fit(*diabetes)
    arrays = [*m.coefs_, *m.intercepts_, *m.batch_norm_.values(), *m.history_.values()]
    assert {type(a) for a in arrays} == {np.ndarray}
    assert type(m.objective_) is float


def test_verbose_prints_one_line_a_round(diabetes, capsys):
    m = regressor(verbose=1).fit(*diabetes)
    assert len(capsys.readouterr().out.splitlines()) == m.n_iter_


# --- bad input -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("alpha", 0.0),
        ("alpha", -1),
        ("n_components", 0),
        ("n_components", 1.0),
        ("shrinkage", 1.5),
        ("shrinkage", "ledoit"),
        ("activation", "tanh"),
        ("solver", "adam"),
        ("solver", FISTA),
        ("n_gates", 0),
        ("n_gates", "every"),
        ("fit_intercept", "yes"),
        ("tol", 0.0),
        ("max_iter", 0),
        ("device", 0),
        ("warm_start", 2),
        ("random_state", -1),
        ("verbose", -1),
        ("loss", "hinge"),
        ("class_weight", "even"),
    ],
)
def test_invalid_parameter_is_named_with_its_value_and_range(iris, name, value):
    m = classifier(**{name: value})
    with pytest.raises(ValueError, match=f"'{name}' parameter.*must be.*Got {value!r} instead"):
        m.fit(*iris)
    assert not hasattr(m, "coefs_")


@pytest.mark.parametrize("device", ["tpu", "cuda:x", "gpu"])
def test_unknown_device(iris, device):
    with pytest.raises(ValueError, match=f"'device' parameter must be .*Got '{device}'"):
        classifier(device=device).fit(*iris)


def test_missing_cuda_device_is_said_before_work(iris):
    with pytest.raises(ValueError, match=r"cuda:97.*torch sees \d+ CUDA devices.*device='cpu'"):
        classifier(device="cuda:97").fit(*iris)


def test_auto_device_fits_anywhere(iris):
    assert classifier(device="auto").fit(*iris).score(*iris) > 0.9


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda X, y: (np.where(X > 7, np.nan, X), y), "NaN"),
        (lambda X, y: (np.where(X > 7, np.inf, X), y), "infinity"),
        (lambda X, y: (X[:0], y[:0]), "0 sample"),
        (lambda X, y: (X[:, :0], y), "0 feature"),
        (lambda X, y: (X + 1j, y), "Complex data"),
        (lambda X, y: (X, y[:-1]), "inconsistent numbers of samples"),
        (lambda X, y: (X[0], y), "2D array"),
        (lambda X, y: (X, y * 0), "only one class"),
        (lambda X, y: (X, y + 0.5), "Unknown label type"),
    ],
)
def test_bad_data(iris, edit, message):
    with pytest.raises(ValueError, match=message):
        classifier().fit(*edit(*iris))


@pytest.mark.parametrize("kind", [sparse.csr_array, sparse.csc_array, sparse.coo_array])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int16])
def test_sparse_data_and_other_types_give_the_network_of_dense_float64(iris, kind, dtype):
    X = (10 * iris[0]).astype(dtype)
    X[X < 20] = 0
    dense = classifier().fit(X.astype(np.float64), iris[1])
    for given in (kind(X), X):
        model = classifier().fit(given, iris[1])
        np.testing.assert_array_equal(model.coefs_[0], dense.coefs_[0])
        np.testing.assert_allclose(
            model.decision_function(given), dense.decision_function(X), rtol=0, atol=1e-10
        )


@pytest.mark.parametrize(
    ("weights", "message"),
    [(-1.0, "[Nn]egative"), (0.0, "zero"), (np.nan, "NaN"), (np.inf, "infinity")],
)
def test_bad_sample_weights(iris, weights, message):
    with pytest.raises(ValueError, match=message):
        classifier().fit(*iris, sample_weight=np.full(150, weights))


def test_class_weights_that_are_no_weights(iris):
    with pytest.raises(ValueError, match="class_weight"):
        classifier(class_weight={0: -1.0}).fit(*iris)


@pytest.mark.parametrize(
    ("solver", "kw", "names"),
    [
        ("closed_form", {}, "'pursuit' or 'interior_point' or 'cvxpy'"),
        ("closed_form", {"activation": "gated_relu"}, "'group_newton' or 'fista' or 'cvxpy'"),
        ("pursuit", {"activation": "gated_relu"}, "'group_newton' or 'fista' or 'cvxpy'"),
        ("fista", {}, "'pursuit' or 'interior_point' or 'cvxpy'"),
        ("group_newton", {}, "'pursuit' or 'interior_point' or 'cvxpy'"),
        ("interior_point", {"activation": "gated_relu"}, "'group_newton' or 'fista' or 'cvxpy'"),
    ],
)
def test_refusal_names_a_solver_that_can(diabetes, solver, kw, names):
    with pytest.raises(ValueError, match=f"solver='{solver}' does not handle .*{names}"):
        regressor(solver=solver, **kw).fit(*diabetes)


@pytest.mark.parametrize("solver", ["interior_point", "cvxpy"])
def test_relu_lists_with_several_outputs_are_refused(iris, solver):
    with pytest.raises(ValueError, match=r"several outputs.*'pursuit'"):
        classifier(solver=solver).fit(*iris)


def test_enumeration_refuses_with_the_count(diabetes):
    with pytest.raises(ValueError, match=r"up to \d+ arrangements .* n_components .* n_gates=256"):
        regressor(activation="gated_relu", n_gates="all").fit(*diabetes)


def test_gated_program_too_large_for_memory_is_refused_before_work(diabetes):
    with pytest.raises(ValueError, match=r"n_gates=10+ with .* GiB .*Lower n_gates"):
        regressor(activation="gated_relu", n_gates=10**12).fit(*diabetes)


def test_not_fitted():
    with pytest.raises(NotFittedError):
        regressor().predict(np.zeros((2, 3)))
    with pytest.raises(NotFittedError):
        regressor().to_torch()


def test_reaching_max_iter_warns_once_and_leaves_a_usable_network(diabetes):
    X, y = diabetes
    m = regressor(alpha=0.01, tol=1e-6, max_iter=2)
    with pytest.warns(ConvergenceWarning, match=r"gap of .* above tol=1e-06.*max_iter") as caught:
        m.fit(X, y)
    assert len(caught) == 1
    assert m.n_iter_ == 2
    assert m.dual_gap_ > 1e-6
    assert m.score(X, y) > 0.5


def test_convergence_warnings_point_at_the_line_that_calls_fit(diabetes):
    X, y = diabetes
    m = regressor(alpha=0.01, tol=1e-6, max_iter=1)
    chosen = ConvexBNRegressorCV(alphas=[0.1, 0.01], tol=1e-9, max_iter=1, cv=2, random_state=0)

    def decorated(function):
        @functools.wraps(function)
        def wrapper(*arguments):
            return function(*arguments)

        return wrapper

    calls = {
        "directly": m.fit,
        "in a pipeline": make_pipeline(StandardScaler(), m).fit,
        "in a search": GridSearchCV(m, {"alpha": [0.01]}, cv=2).fit,
        "along a path": chosen.fit,
        "decorated": contextlib.contextmanager(lambda: iter([None]))()(m.fit),
    }
    for name, fit in calls.items():
        line = inspect.currentframe().f_lineno + 2
        with pytest.warns(ConvergenceWarning) as caught:
            fit(X, y)
        places = {(Path(warning.filename), warning.lineno) for warning in caught}
        assert places == {(Path(__file__), line)}, name
    with pytest.warns(ConvergenceWarning) as caught:
        convexbn_path(X, y, alphas=[0.01], tol=1e-6, max_iter=1, random_state=0)
    assert {Path(warning.filename) for warning in caught} == {Path(__file__)}
    with pytest.warns(ConvergenceWarning) as caught:
        decorated(m.fit)(X, y)
    wrapper = inspect.unwrap(decorated).__code__
    (warning,) = caught
    assert wrapper.co_firstlineno < warning.lineno <= wrapper.co_firstlineno + 3


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_fit_that_ends_without_finite_numbers_is_an_error_and_changes_nothing(diabetes, value):
    class Overflowing(Failing):
        def iterates(self, problem, settings):
            k = problem.Z.shape[1]
            yield Iterate(Neurons(np.eye(k)[:1], np.full((1, 1), value), np.zeros(1)), None, 1.0)

    X, y = diabetes
    m = regressor().fit(X, y)
    before = dict(vars(m))
    m.set_params(solver=Overflowing())
    with pytest.raises(ValueError, match="not finite: the output weights"):
        m.fit(X[:50], y[:50])
    m.set_params(solver="auto")
    assert vars(m) == before


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("difference", [1e-17, -1e-17, 2e-16, -2e-16, 1e-15, 3e-15, -3e-15])
def test_classes_whose_outputs_differ_by_rounding_are_equal_to_all_methods(n_classes, difference):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(30, 2)), rng.permutation(30) % n_classes
    m = classifier().fit(X, y)
    # The same outputs for every row: the last two classes ahead, or level with zero for two.
    m.coefs_[1][:] = 0.0
    lead = [difference] if n_classes == 2 else [-3.0, 0.25, 0.25 + difference]
    m.intercepts_[1][:] = lead
    scores, probabilities = m.decision_function(X), m.predict_proba(X)
    codes = (scores > 0).astype(int) if n_classes == 2 else scores.argmax(axis=1)
    level = abs(difference) < 1.7e-15
    winner = n_classes - 1 if difference > 0 and not level else n_classes - 2
    np.testing.assert_array_equal(m.predict(X), winner)
    np.testing.assert_array_equal(codes, winner)
    np.testing.assert_array_equal(probabilities.argmax(axis=1), winner)
    np.testing.assert_array_equal(m.predict_log_proba(X).argmax(axis=1), winner)
    assert (probabilities[0, -1] == probabilities[0, -2]) == level


class Failing(Solver):
    """Yields once, then fails as the test says."""

    name = "failing"

    def __init__(self, error=None):
        self.error = error

    def unsupported(self, problem):
        return ""

    def iterates(self, problem, settings):
        raise self.error
        yield


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("device lost")])
def test_failed_or_interrupted_fit_leaves_the_estimator_as_it_was(iris, error):
    X, y = iris
    m = classifier().fit(X, y)
    before = dict(vars(m))
    m.set_params(solver=Failing(error))
    with pytest.raises(type(error)):
        m.fit(pd.DataFrame(X[:, :2], columns=["a", "b"]), y == 1)
    m.set_params(solver="auto")
    assert vars(m) == before
    fresh = classifier(solver=Failing(error))
    with pytest.raises(type(error)):
        fresh.fit(X, y)
    assert not hasattr(fresh, "n_features_in_")


@pytest.mark.parametrize("activation", ["relu", "gated_relu"])
@pytest.mark.parametrize(
    "edit",
    [
        lambda X: np.c_[X, np.ones(len(X))],
        lambda X: np.c_[X, X],
        lambda X: np.c_[X, X[:, :1] + X[:, 1:2]],
        lambda X: X[:, :1],
        lambda X: X[:3],
        lambda X: X[:1],
        np.ones_like,
        lambda X: X * 1e150,
        lambda X: X * 1e-150,
        lambda X: X + 1e8,
        lambda X: np.repeat(X[:5], 4, axis=0),
        lambda X: X[:6, :].repeat(5, axis=1) ** np.arange(1, 21),
    ],
    ids=[
        "constant column",
        "duplicated columns",
        "rank deficient",
        "one feature",
        "n < d",
        "one row",
        "constant X",
        "1e150",
        "1e-150",
        "large offset",
        "repeated rows",
        "wide",
    ],
)
def test_degenerate_features_fit_and_predict_finite_numbers(iris, edit, activation):
    X = edit(iris[0][::3])
    y = np.linspace(-1, 1, len(X)) if len(X) > 1 else np.array([2.0])
    for target in (y, np.full(len(X), 3.0), y * 1e150, y * 1e-150):
        m = regressor(activation=activation, n_gates=16).fit(X, target)
        assert np.isfinite(m.predict(X)).all()
        assert np.isfinite([m.objective_, m.dual_gap_]).all()
        assert np.isfinite(m.coefs_[0]).all()
    if len(X) > 1:
        m = classifier(activation=activation, n_gates=16).fit(X, y > 0)
        assert np.isfinite(m.predict_proba(X)).all()


def test_constant_target_is_predicted(diabetes):
    m = regressor().fit(diabetes[0], np.full(120, 7.0))
    np.testing.assert_allclose(m.predict(diabetes[0]), 7.0)
    assert m.n_neurons_ == 0
    assert m.dual_gap_ == 0


def test_wide_data_use_a_closed_form(iris):
    X = np.random.default_rng(0).standard_normal((20, 40))
    y = np.random.default_rng(1).standard_normal(20)
    m = regressor(alpha=0.01).fit(X, y)
    assert isinstance(m.solver_, ClosedForm)
    assert m.certificate_.kind == "exact"
    assert m.certificate_.program == "all arrangements"
    assert m.n_neurons_ == 2


@pytest.mark.parametrize(
    "settings", [{}, {"activation": "gated_relu"}, {"solver": "interior_point"}]
)
def test_warm_start_needs_at_most_two_rounds_on_the_same_data(diabetes, settings):
    X, y = diabetes
    m = ConvexBNRegressor(0.02, warm_start=True, n_gates=40, random_state=0, **settings)
    objective = m.fit(X, y).objective_
    assert m.fit(X, y).n_iter_ <= 2
    assert m.objective_ <= objective * (1 + 1e-12)


def test_warm_start_goes_on_from_the_last_alpha(diabetes):
    X, y = diabetes
    m = regressor(alpha=0.012, tol=0.01, warm_start=True).fit(X, y)
    warm = m.set_params(alpha=0.01).fit(X, y)
    cold = regressor(alpha=0.01, tol=0.01).fit(X, y)
    assert warm.n_iter_ < cold.n_iter_
    assert warm.objective_ == pytest.approx(cold.objective_, rel=0.011)


@pytest.mark.parametrize("change", ["features", "n_components", "outputs"])
def test_warm_start_begins_afresh_on_another_shape(diabetes, change):
    X, y = diabetes
    m = regressor(alpha=0.05, warm_start=True).fit(X, y)
    fresh = regressor(alpha=0.05)
    if change == "features":
        X = X[:, :4]
    elif change == "outputs":
        y = np.column_stack([y, X[:, 0]])
    else:
        m.set_params(n_components=3)
        fresh.set_params(n_components=3)
    assert np.array_equal(m.fit(X, y).predict(X), fresh.fit(X, y).predict(X))

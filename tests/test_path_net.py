"""Path networks as estimators."""

import pickle

import numpy as np
import pytest
from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import make_classification, make_friedman1
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from sklearn_convexbn import (
    FeatureWeightsDisplay,
    PathNetClassifier,
    PathNetClassifierCV,
    PathNetRegressor,
    PathNetRegressorCV,
    RegularizationPathDisplay,
)
from sklearn_convexbn.fit import _path_training
from sklearn_convexbn.fit._path_training import alphas_down_to

ESTIMATORS = [
    PathNetRegressor(alpha=0.1),
    PathNetRegressor(alpha=0.1, inner_width=0, fit_intercept=False),
    PathNetRegressor(alpha=0.3, norm="l2"),
    PathNetClassifier(alpha=0.1),
    PathNetClassifier(alpha=0.1, loss="squared_error", class_weight="balanced"),
    PathNetRegressorCV([0.3, 0.1], cv=2),
    PathNetClassifierCV([0.3, 0.1], inner_width=[0, 2], cv=2),
]


@parametrize_with_checks(ESTIMATORS)
def test_sklearn_estimator_checks(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def friedman():
    return make_friedman1(150, n_features=8, noise=0.1, random_state=0)


@pytest.fixture(scope="module")
def fitted(friedman):
    return PathNetRegressor(alpha=0.01, random_state=0).fit(*friedman)


def output(model, X):
    """The network by the definition, from its sub-networks."""
    paths = model.paths_
    g = X @ paths["linear"] + paths["linear_offsets"]
    for W, c, sign in zip(paths["inner"], paths["inner_offsets"], paths["signs"], strict=True):
        g = g + sign * np.maximum(X @ W + c, 0)
    return np.maximum(g, 0) @ paths["output"] + model.intercepts_[-1]


def test_layers_and_sub_networks_are_the_same_network(friedman, fitted):
    X, _ = friedman
    H = X
    for W, b in zip(fitted.coefs_[:-1], fitted.intercepts_[:-1], strict=True):
        H = np.maximum(H @ W + b, 0)
    expected = (H @ fitted.coefs_[-1] + fitted.intercepts_[-1])[:, 0]
    np.testing.assert_allclose(fitted.predict(X), expected, rtol=1e-12)
    np.testing.assert_allclose(fitted.predict(X), output(fitted, X)[:, 0], rtol=1e-9)


def test_objective_is_the_mean_loss_and_the_price_of_all_paths(friedman, fitted):
    """In the units of y: the loss is in its square, the mass in y itself, alpha has none."""
    X, y = friedman
    paths, deviation = fitted.paths_, X.std(axis=0)[:, None]

    def sizes(W, offsets):
        at_mean = X.mean(axis=0) @ W + offsets
        return np.abs(W * deviation).sum(axis=0) + np.abs(at_mean)

    norms = sizes(paths["linear"], paths["linear_offsets"])
    for W, c in zip(paths["inner"], paths["inner_offsets"], strict=True):
        norms = norms + sizes(W, c)
    mass = norms @ np.abs(paths["output"][:, 0])
    loss = 0.5 * np.mean((fitted.predict(X) - y) ** 2)
    assert fitted.objective_ == pytest.approx(loss + 0.01 * y.std() * mass, rel=1e-9)
    assert fitted.certificate_.kind == "estimated"
    assert fitted.certificate_.dual <= fitted.objective_
    assert fitted.dual_gap_ <= fitted.tol


def test_feature_weights_bound_how_far_the_output_moves(friedman, fitted):
    X, _ = friedman
    assert fitted.feature_weights_.shape == (8,)
    for j, weight in enumerate(fitted.feature_weights_):
        moved = X.copy()
        moved[:, j] += X[:, j].std()
        change = np.abs(fitted.predict(moved) - fitted.predict(X)).max()
        assert change <= weight * (1 + 1e-9)


def test_columns_that_do_not_matter_are_not_used():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((200, 12))
    X[:, 4] = 3.0  # constant
    y = np.abs(X[:, 1]) + X[:, 7]
    model = PathNetRegressor(alpha=0.1, random_state=0).fit(X, y)
    assert set(np.argsort(-model.feature_weights_)[:2]) == {1, 7}
    assert model.feature_weights_[4] == 0.0
    assert (model.feature_weights_ == 0.0).sum() >= 8


def test_seeds_row_order_and_column_scale_agree_within_tol(friedman):
    X, y = friedman
    parameters = {"alpha": 0.03, "tol": 0.05}
    objectives = [
        PathNetRegressor(**parameters, random_state=seed).fit(X, y).objective_ for seed in range(10)
    ]
    order = np.random.default_rng(0).permutation(len(X))
    model = PathNetRegressor(**parameters, random_state=0)
    objectives.append(clone(model).fit(X * np.logspace(-6, 6, 8) + 5.0, y).objective_)
    assert max(objectives) <= min(objectives) * 1.05
    permuted = clone(model).fit(X[order], y[order])
    np.testing.assert_allclose(permuted.predict(X), clone(model).fit(X, y).predict(X), rtol=1e-9)


def test_a_weight_of_two_is_the_row_twice(friedman):
    X, y = friedman
    weights = np.ones(len(X))
    weights[:40] = 2.0
    model = PathNetRegressor(alpha=0.05, random_state=0)
    weighted = clone(model).fit(X, y, sample_weight=weights).predict(X)
    twice = clone(model).fit(np.r_[X, X[:40]], np.r_[y, y[:40]]).predict(X)
    np.testing.assert_array_equal(weighted, twice)


def test_inner_units_do_not_raise_the_objective(friedman):
    X, y = friedman
    deep, shallow = (
        PathNetRegressor(alpha=0.01, tol=0.02, max_iter=100, inner_width=h, random_state=0)
        for h in (4, 0)
    )
    assert deep.fit(X, y).objective_ <= shallow.fit(X, y).objective_ * 1.02


def test_several_outputs_and_classes():
    X, y = make_friedman1(80, n_features=6, random_state=0)
    Y = np.c_[y, -2.0 * y, np.sin(X[:, 0])]
    model = PathNetRegressor(alpha=0.05, random_state=0).fit(X, Y)
    assert model.predict(X).shape == (80, 3)
    assert model.score(X, Y) > 0.6
    X, y = make_classification(120, n_classes=3, n_informative=5, random_state=0)
    model = PathNetClassifier(alpha=0.02, random_state=0).fit(X, np.array(["a", "b", "c"])[y])
    assert model.score(X, np.array(["a", "b", "c"])[y]) > 0.8
    np.testing.assert_allclose(model.predict_proba(X).sum(axis=1), 1.0)


def test_torch_and_pickle_give_the_same_predictions(friedman, fitted):
    torch = pytest.importorskip("torch")
    X, y = friedman
    module = fitted.to_torch()
    assert [type(layer).__name__ for layer in module] == ["Linear", "ReLU"] * 2 + ["Linear"]
    with torch.no_grad():
        np.testing.assert_allclose(module(torch.as_tensor(X))[:, 0], fitted.predict(X), rtol=1e-9)
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again.predict(X), fitted.predict(X))
    empty = PathNetRegressor(alpha=100.0, random_state=0).fit(X, y)
    assert empty.n_neurons_ == 0
    np.testing.assert_allclose(empty.predict(X), y.mean())
    with torch.no_grad():
        np.testing.assert_allclose(empty.to_torch()(torch.as_tensor(X))[:, 0], y.mean())


def test_warm_start_begins_with_the_network_so_far(friedman):
    X, y = friedman
    model = PathNetRegressor(alpha=0.01, random_state=0, warm_start=True).fit(X, y)
    before = model.objective_
    model.fit(X, y)
    assert model.objective_ <= before * (1 + 1e-9)
    model.set_params(inner_width=2).fit(X, y)
    assert model.paths_["inner"].shape[0] == 2


def test_automatic_alpha_goes_down_to_its_last_where_targets_are_clean(friedman):
    X, _ = friedman
    y = np.maximum(X[:, 0] - 0.5, 0) + np.maximum(X[:, 1] - X[:, 2], 0)
    model = PathNetRegressor(random_state=0).fit(X, y)
    assert model.alpha_ == pytest.approx(0.015 / np.sqrt(150))
    assert model.dual_gap_ <= 0.2
    labels = PathNetClassifier(random_state=0).fit(X, y > np.median(y))
    assert labels.alpha_ <= 0.0123


@pytest.mark.parametrize("classes", [False, True])
def test_automatic_alpha_stays_large_on_noise(classes, friedman):
    """Wherever it ends, it is on the path, and the estimate has risen after it."""
    X, _ = friedman
    y = np.random.RandomState(0).standard_normal(len(X))
    model = PathNetClassifier if classes else PathNetRegressor
    model = model(random_state=0).fit(X, y > 0 if classes else y)
    alphas = alphas_down_to(0.015 / np.sqrt(150))
    assert np.isclose(model.alpha_, alphas).any()
    assert model.alpha_ > alphas[-1]
    settings = model.get_params() | {"alpha": float(model.alpha_)}
    again = type(model)(**settings).fit(X, y > 0 if classes else y)
    assert again.objective_ == pytest.approx(model.objective_, rel=0.2)


def test_many_rows_choose_alpha_by_some_of_them(monkeypatch):
    """The hold-out sees no row of the way down; the last fit has all rows."""
    rng = np.random.RandomState(0)
    X = rng.standard_normal((800, 3))
    y = np.abs(X[:, 0]) + 2.0 * rng.standard_normal(800)
    sizes, losses = [], []

    def run(solver, problem, settings, **others):
        sizes.append(len(problem.Y))
        return original(solver, problem, settings, **others)

    def holdout(others):
        assert len(others.Y) == 160
        error = judge(others)

        def found(trained):
            losses.append(error(trained))
            return losses[-1]

        return found

    original, judge = _path_training.solvers.run, _path_training._holdout
    monkeypatch.setattr(_path_training.solvers, "run", run)
    monkeypatch.setattr(_path_training, "_holdout", holdout)
    model = PathNetRegressor(random_state=0).fit(X, y)
    alphas = alphas_down_to(0.015 / np.sqrt(800))
    assert sizes == [640] * len(losses) + [800]
    assert (np.diff(losses[:-1]) < 0).all()
    assert losses[-1] > losses[-2]
    assert model.alpha_ == pytest.approx(alphas[len(losses) - 2])


def test_automatic_alpha_with_a_warm_start_goes_on_from_there(friedman):
    X, y = friedman
    model = PathNetRegressor(warm_start=True, random_state=0).fit(X, y)
    alpha, objective = model.alpha_, model.objective_
    model.fit(X, y)
    assert model.alpha_ <= alpha
    if model.alpha_ == alpha:
        assert model.objective_ <= objective * (1.0 + 1e-6)


@pytest.mark.parametrize("alpha", [1.0, 0.01, 1e-3, 1e-4])
def test_path_of_alphas(alpha):
    alphas = alphas_down_to(alpha)
    assert alphas[-1] == alpha
    assert (np.diff(alphas) < 0).all()
    assert alphas[0] == pytest.approx(max(0.01, 10 * alpha))


def test_constant_columns_and_targets():
    X = np.ones((20, 3))
    np.testing.assert_allclose(PathNetRegressor(0.1).fit(X, np.arange(20.0)).predict(X), 9.5)
    X = np.random.default_rng(0).standard_normal((20, 3))
    np.testing.assert_allclose(PathNetRegressor(0.1).fit(X, np.full(20, 7.0)).predict(X), 7.0)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"alpha": 0.0}, "'alpha' parameter"),
        ({"alpha": "small"}, "'alpha' parameter"),
        ({"inner_width": -1}, "'inner_width' parameter"),
        ({"norm": "l3"}, "'norm' parameter"),
        ({"solver": "fista"}, "solver='fista' does not handle path networks"),
        ({"device": "tpu"}, "'device' parameter"),
    ],
)
def test_bad_parameters_leave_the_estimator_as_it_was(friedman, fitted, parameters, message):
    X, y = friedman
    model = pickle.loads(pickle.dumps(fitted)).set_params(**parameters)
    before = dict(vars(model))
    with pytest.raises(ValueError, match=message):
        model.fit(X[:, :5], y)
    assert vars(model).keys() == before.keys()
    assert model.n_features_in_ == 8


def test_bad_data(friedman):
    X, y = friedman
    with pytest.raises(TypeError, match="does not take sparse X"):
        PathNetRegressor().fit(sparse.csr_array(X), y)
    with pytest.raises(ValueError, match="NaN"):
        PathNetRegressor().fit(np.where(X > 0.5, np.nan, X), y)
    with pytest.raises(ValueError, match="2 classes"):
        PathNetClassifier().fit(X, np.zeros(len(X), dtype=int))
    with pytest.raises(NotFittedError):
        PathNetRegressor().predict(X)


def test_feature_weights_display(friedman, fitted):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    X, y = friedman
    display = FeatureWeightsDisplay.from_estimator(fitted, max_features=3, bar_kw={"color": "C1"})
    widths = [bar.get_width() for bar in display.bars_]
    np.testing.assert_array_equal(widths, np.sort(fitted.feature_weights_)[::-1][:3])
    labels = [label.get_text() for label in display.ax_.get_yticklabels()]
    assert labels == [str(j) for j in np.argsort(-fitted.feature_weights_)[:3]]
    pipeline = make_pipeline(StandardScaler(), PathNetRegressor(0.1)).fit(X, y)
    assert len(FeatureWeightsDisplay.from_estimator(pipeline).bars_) == 8
    with pytest.raises(TypeError, match="PathNet estimator"):
        FeatureWeightsDisplay.from_estimator(StandardScaler().fit(X))
    with pytest.raises(ValueError, match="feature_weights"):
        FeatureWeightsDisplay(feature_weights=[-1.0])
    with pytest.raises(ValueError, match="feature_names"):
        FeatureWeightsDisplay(feature_weights=[1.0], feature_names=["a", "b"])
    with pytest.raises(ValueError, match="max_features"):
        display.plot(max_features=0)
    pyplot.close("all")


def test_cross_validation_follows_the_path_and_chooses_the_best(friedman):
    X, y = friedman
    model = PathNetRegressorCV(3, eps=0.1, cv=3, random_state=0).fit(X, y)
    np.testing.assert_allclose(model.alphas_, 0.01 * np.geomspace(1, 0.1, 3))
    assert model.mse_path_.shape == (1, 3, 3)
    assert model.best_index_ == (0, model.mse_path_[0].mean(axis=1).argmin())
    assert model.alpha_ == model.alphas_[model.best_index_[1]]
    assert model.inner_width_ == 4
    plain = PathNetRegressor(model.alpha_, random_state=0).fit(X, y)
    assert model.objective_ == pytest.approx(plain.objective_, rel=model.tol)
    again = PathNetRegressorCV(3, eps=0.1, cv=3, random_state=0).fit(X, y)
    np.testing.assert_array_equal(again.predict(X), model.predict(X))


def test_cross_validation_chooses_the_number_of_inner_units_too(friedman):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    X, y = friedman
    settings = {"alphas": 2, "eps": 0.1, "cv": 3, "random_state": 0}
    model = PathNetRegressorCV(inner_width=np.array([0, 4]), **settings).fit(X, y)
    alone = [PathNetRegressorCV(inner_width=h, **settings).fit(X, y) for h in (0, 4)]
    assert model.inner_width_grid_ == [0, 4]
    assert type(model.inner_width_) is int
    for name in ("mse_path_", "n_neurons_path_", "objective_path_"):
        expected = [getattr(each, name)[0] for each in alone]
        np.testing.assert_array_equal(getattr(model, name), expected)
    means = model.mse_path_.mean(axis=2)
    assert model.best_index_ == np.unravel_index(means.argmin(), means.shape)
    assert model.inner_width_ == [0, 4][model.best_index_[0]]
    assert len(model.paths_["inner"]) == model.inner_width_
    np.testing.assert_array_equal(model.predict(X), alone[model.best_index_[0]].predict(X))
    display = RegularizationPathDisplay.from_estimator(model)
    np.testing.assert_allclose(display.lines_[0][1].get_ydata(), means[1])
    labels = [text.get_text() for text in display.axes_[1].get_legend().get_texts()]
    assert labels == ["0 inner units", "4 inner units", "chosen"]
    pyplot.close("all")
    for bad in ([], [0, -1], ["four"]):
        with pytest.raises(ValueError, match="inner_width"):
            PathNetRegressorCV(inner_width=bad).fit(X, y)


def test_cross_validated_paths_end_early_once_scores_have_turned(friedman):
    X, y = friedman
    y = np.random.default_rng(0).permutation(y)  # nothing to learn
    settings = {"alphas": 4, "eps": 0.01, "cv": 3, "random_state": 0}
    whole = PathNetRegressorCV(**settings).fit(X, y)
    short = PathNetRegressorCV(patience=1, **settings).fit(X, y)
    left_out = np.isnan(short.mse_path_)
    turned = np.diff(whole.mse_path_, axis=1) >= 0.0
    expected = np.cumsum(turned, axis=1)[:, :-1] > 0  # all behind the first that is no better
    assert expected.any()
    np.testing.assert_array_equal(left_out[:, 2:], expected)
    assert not left_out[:, :2].any()
    assert (short.n_neurons_path_[left_out] == -1).all()
    np.testing.assert_array_equal(short.mse_path_[~left_out], whole.mse_path_[~left_out])


def test_cross_validated_classifier_scores_by_what_is_asked_for():
    X, y = make_classification(100, random_state=0)
    model = PathNetClassifierCV([0.3, 0.05], cv=3, scoring="neg_log_loss", random_state=0)
    model.fit(X, y)
    assert (model.scores_ < 0).all()
    assert model.alpha_ == 0.05
    with pytest.raises(ValueError, match="strictly descending"):
        PathNetClassifierCV([0.1, 0.3]).fit(X, y)
    with pytest.raises(ValueError, match="lack classes"):
        PathNetClassifierCV([0.3], cv=[(np.flatnonzero(y == 0), np.arange(100))]).fit(X, y)

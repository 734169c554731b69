"""The cross-validated estimators against scikit-learn's own search, and what they refuse."""

import numpy as np
import pytest
import sklearn
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV, GroupKFold, KFold, StratifiedKFold

from sklearn_convexbn import (
    ConvexBNClassifier,
    ConvexBNClassifierCV,
    ConvexBNRegressor,
    ConvexBNRegressorCV,
    alpha_max,
    certify,
)
from sklearn_convexbn.data._decomposition import Decomposition


@pytest.fixture(scope="module")
def diabetes():
    X, y = load_diabetes(return_X_y=True)
    return X[:200], y[:200]


@pytest.fixture(scope="module")
def cancer():
    X, y = load_breast_cancer(return_X_y=True)
    return X[:200, :10], y[:200]


def test_regressor_scores_are_those_of_a_grid_search(diabetes):
    alphas, components = [0.2, 0.1, 0.05], [2, 0.9, None]
    folds = KFold(3, shuffle=True, random_state=0)
    model = ConvexBNRegressorCV(alphas, n_components=components, cv=folds, random_state=0)
    model.set_params(tol=1e-4, fold_tol=0.0).fit(*diabetes)
    search = GridSearchCV(
        ConvexBNRegressor(tol=1e-4, random_state=0),
        {"alpha": alphas, "n_components": components},
        scoring="neg_mean_squared_error",
        cv=folds,
    ).fit(*diabetes)
    table = -np.array([search.cv_results_[f"split{i}_test_score"] for i in range(3)])
    table = table.reshape(3, len(alphas), len(components)).transpose(2, 1, 0)
    assert model.mse_path_.shape == (3, 3, 3)
    # Networks within 1e-4 of the optimum differ by up to 1e-2 in their outputs' scale.
    assert model.mse_path_ == pytest.approx(table, rel=0.03)
    assert model.alpha_ == search.best_params_["alpha"]
    chosen = components[model.best_index_[0]]
    assert chosen == search.best_params_["n_components"]
    # The final fit is the plain estimator's.
    plain = ConvexBNRegressor(model.alpha_, n_components=chosen, tol=1e-4, random_state=0)
    assert np.array_equal(plain.fit(*diabetes).predict(diabetes[0]), model.predict(diabetes[0]))
    assert model.certificate_ == plain.certificate_
    assert model.n_components_ == plain.n_components_


def test_classifier_scores_are_those_of_a_grid_search(cancer):
    alphas = [0.1, 0.03]
    model = ConvexBNClassifierCV(alphas, cv=3, scoring="neg_log_loss", random_state=0)
    model.set_params(tol=1e-4, fold_tol=0.0)
    model.fit(*cancer)
    search = GridSearchCV(
        ConvexBNClassifier(tol=1e-4, random_state=0),
        {"alpha": alphas},
        scoring="neg_log_loss",
        cv=3,
    ).fit(*cancer)
    table = np.array([search.cv_results_[f"split{i}_test_score"] for i in range(3)]).T
    assert model.scores_[0] == pytest.approx(table, rel=0.01)
    assert model.alpha_ == search.best_params_["alpha"]
    assert model.predict_proba(cancer[0]).shape == (200, 2)


def test_shrinkage_is_chosen_beside_n_components_as_by_a_grid_search(diabetes):
    grid = {"alpha": [0.2, 0.05], "n_components": [4, None], "shrinkage": [0.0, 0.5, "eps"]}
    folds = KFold(2, shuffle=True, random_state=0)
    model = ConvexBNRegressorCV(grid["alpha"], cv=folds, tol=1e-4, fold_tol=0.0, random_state=0)
    model.set_params(n_components=grid["n_components"], shrinkage=grid["shrinkage"])
    model.fit(*diabetes)
    plain = ConvexBNRegressor(tol=1e-4, random_state=0)
    search = GridSearchCV(plain, grid, scoring="neg_mean_squared_error", cv=folds).fit(*diabetes)
    table = -np.array([search.cv_results_[f"split{i}_test_score"] for i in range(2)])
    table = table.reshape(2, 2, 2, 3).transpose(2, 3, 1, 0).reshape(6, 2, 2)
    assert model.mse_path_ == pytest.approx(table, rel=0.03)
    assert model.n_components_grid_ == [4, 4, 4, None, None, None]
    assert model.shrinkage_grid_ == [0.0, 0.5, "eps"] * 2
    i, j = model.best_index_
    chosen = {"n_components": model.n_components_grid_[i], "shrinkage": model.shrinkage_grid_[i]}
    assert model.shrinkage_ == {0.0: 0.0, 0.5: 0.5, "eps": 0.01}[chosen["shrinkage"]]
    plain.set_params(alpha=model.alphas_[j], **chosen).fit(*diabetes)
    assert np.array_equal(plain.predict(diabetes[0]), model.predict(diabetes[0]))


def test_one_decomposition_serves_all_settings_of_a_fold(diabetes, monkeypatch):
    counted = []
    inner = Decomposition.of.__func__

    def counting(cls, X, weights, settings, **kwargs):
        counted.append(len(settings))
        return inner(cls, X, weights, settings, **kwargs)

    monkeypatch.setattr(Decomposition, "of", classmethod(counting))
    settings = {"n_components": [2, 0.9, None], "shrinkage": [0.0, 0.1, "auto"]}
    ConvexBNRegressorCV([0.2], cv=2, random_state=0, **settings).fit(*diabetes)
    assert counted == [9, 9, 1]  # two folds, the final fit


def test_paths_end_early_once_scores_have_turned(diabetes):
    whole = ConvexBNRegressorCV(8, eps=3e-3, shrinkage=[0.01, 0.5], cv=2, random_state=0)
    whole.fit(*diabetes)
    short = clone(whole).set_params(patience=2).fit(*diabetes)
    left_out = np.isnan(short.mse_path_)
    assert left_out.any()
    assert np.array_equal(left_out, np.isnan(short.objective_path_))
    assert np.array_equal(left_out, short.n_neurons_path_ == -1)
    assert np.array_equal(short.mse_path_[~left_out], whole.mse_path_[~left_out])
    for i, k in np.ndindex(2, 2):
        errors = whole.mse_path_[i, :, k]
        turned = [
            j + 1
            for j in range(2, 8)
            if errors[j] >= errors[j - 1] >= errors[j - 2] and errors[j - 1] > errors[:j].min()
        ]
        assert left_out[i, :, k].sum() == (8 - turned[0] if turned else 0)
    assert short.best_index_ == whole.best_index_


def test_fits_in_folds_are_as_loose_as_fold_tol(diabetes):
    tight = ConvexBNRegressorCV([0.02], cv=2, tol=1e-3, fold_tol=0.0, random_state=0).fit(*diabetes)
    loose = clone(tight).set_params(fold_tol=0.1).fit(*diabetes)
    assert (loose.objective_path_ > tight.objective_path_).all()
    assert (loose.objective_path_ < 1.2 * tight.objective_path_).all()
    assert loose.dual_gap_ <= 1e-3


def test_grid_of_alphas_starts_at_alpha_max_of_all_n_components(diabetes):
    model = ConvexBNRegressorCV(4, eps=0.2, n_components=[1, 4], cv=2, random_state=0)
    model.fit(*diabetes)
    assert model.alphas_[0] == pytest.approx(
        max(alpha_max(*diabetes, n_components=k, random_state=0) for k in (1, 4)), rel=1e-9
    )
    assert model.alphas_[-1] == pytest.approx(0.2 * model.alphas_[0])
    assert model.n_components_grid_ == [1, 4]
    assert (np.diff(model.n_neurons_path_.sum(axis=(0, 2))) >= 0).all()
    assert (np.diff(model.objective_path_, axis=1) <= 0).all()
    assert (model.objective_path_[:, -1] < model.objective_path_[:, 0]).all()


def test_best_is_the_first_of_equal_means_and_one_standard_error_the_largest_alpha(diabetes):
    best = ConvexBNRegressorCV(12, eps=0.03, n_components=[3, None], cv=4, random_state=0)
    best.fit(*diabetes)
    means = best.mse_path_.mean(axis=2)  # of equal folds
    assert best.best_index_ == np.unravel_index(means.argmin(), means.shape)
    simple = clone(best).set_params(selection="one_standard_error").fit(*diabetes)
    row, column = best.best_index_
    error = best.mse_path_[row, column].std(ddof=1) / 2.0
    within = np.flatnonzero(means[row] <= means[row, column] + error)
    assert simple.best_index_ == (row, within[0])
    assert simple.alpha_ > best.alpha_


def test_folds_count_by_their_test_rows(cancer):
    scores = {20: {0.3: 0.0, 0.2: 1.0}, 180: {0.3: 0.5, 0.2: 0.3}}
    rows = np.arange(200)
    folds = [(rows[20:], rows[:20]), (rows[:20], rows[20:])]
    model = ConvexBNClassifierCV([0.3, 0.2], cv=folds, random_state=0)
    model.set_params(scoring=lambda fitted, X, y: scores[len(y)][fitted.alpha_]).fit(*cancer)
    np.testing.assert_array_equal(model.scores_[0], [[0.0, 0.5], [1.0, 0.3]])
    assert model.alpha_ == 0.3  # 0.45 and 0.37 in the mean; of folds alike 0.25 and 0.65


@pytest.mark.parametrize("backend", ["loky", "threading"])
def test_parallel_and_sequential_agree(diabetes, backend):
    import joblib

    model = ConvexBNRegressorCV(3, eps=0.2, n_components=[2, 5], cv=2, random_state=0)
    sequential = clone(model).fit(*diabetes)
    with joblib.parallel_backend(backend):
        parallel = clone(model).set_params(n_jobs=2).fit(*diabetes)
    assert parallel.mse_path_ == pytest.approx(sequential.mse_path_, rel=1e-9)
    assert parallel.best_index_ == sequential.best_index_


@pytest.mark.filterwarnings("default")  # dask's own
def test_parallel_by_dask(diabetes):
    distributed = pytest.importorskip("distributed", reason="needs dask.distributed")
    import joblib

    model = ConvexBNRegressorCV([0.2, 0.1], n_components=[2, 5], cv=2, random_state=0)
    sequential = clone(model).fit(*diabetes)
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster),
        joblib.parallel_backend("dask"),
    ):
        parallel = clone(model).set_params(n_jobs=2).fit(*diabetes)
    assert parallel.mse_path_ == pytest.approx(sequential.mse_path_, rel=1e-9)


def test_random_state_instance_gives_every_fold_the_same_seed(diabetes):
    a, b = (
        ConvexBNRegressorCV([0.1], cv=2, random_state=np.random.RandomState(3)).fit(*diabetes)
        for _ in range(2)
    )
    assert np.array_equal(a.mse_path_, b.mse_path_)


def test_weights_count_in_fits_and_scores(diabetes):
    X, y = diabetes
    weights = np.arange(len(y)) % 3
    splits = [(np.arange(100), np.arange(100, 200)), (np.arange(100, 200), np.arange(100))]
    weighted = ConvexBNRegressorCV(3, eps=0.3, cv=splits, random_state=0)
    weighted.fit(X, y, sample_weight=weights)
    rows = np.repeat(np.arange(200), weights)
    splits = [[np.flatnonzero(np.isin(rows, part)) for part in split] for split in splits]
    repeated = ConvexBNRegressorCV(3, eps=0.3, cv=splits, random_state=0).fit(X[rows], y[rows])
    assert weighted.mse_path_ == pytest.approx(repeated.mse_path_, rel=1e-7)
    assert weighted.predict(X) == pytest.approx(repeated.predict(X), rel=1e-7)


def test_groups_and_weights_are_routed(cancer):
    X, y = cancer
    groups, weights = np.arange(len(y)) % 5, np.ones(len(y))
    with sklearn.config_context(enable_metadata_routing=True):
        model = ConvexBNClassifierCV([0.1], cv=GroupKFold(5), random_state=0)
        model.set_fit_request(sample_weight=True)
        model.fit(X, y, groups=groups)
        assert model.scores_.shape == (1, 1, 5)
        with pytest.raises(TypeError, match="unexpected"):
            model.fit(X, y, nonsense=groups)
        scored = ConvexBNClassifierCV([0.1], cv=2, scoring=request_weights(), random_state=0)
        scored.set_fit_request(sample_weight=True).fit(X, y, sample_weight=weights)
    with pytest.raises(ValueError, match="enable_metadata_routing"):
        model.fit(X, y, groups=groups)


def request_weights():
    from sklearn.metrics import get_scorer

    return get_scorer("accuracy").set_score_request(sample_weight=True)


def test_certify_takes_a_cross_validated_estimator(diabetes):
    model = ConvexBNRegressorCV([0.1], n_components=[2, 3], cv=2, random_state=0).fit(*diabetes)
    model.set_params(tol=0.01, shrinkage=[0.2, 0.1]).fit(*diabetes)
    found = certify(model, *diabetes, alpha=model.alpha_, random_state=0)
    assert found.gap <= 0.01
    assert found.primal == pytest.approx(model.objective_, rel=1e-6)


def test_fits_that_stop_above_tol_in_the_folds_warn_once(diabetes):
    model = ConvexBNRegressorCV([0.1, 0.001], cv=2, max_iter=1, random_state=0)
    with pytest.warns(ConvergenceWarning) as caught:
        model.fit(*diabetes)
    messages = [str(w.message) for w in caught]
    assert sum("fits of the cross-validation" in m for m in messages) == 1
    assert len(messages) <= 2  # the final fit has its own


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alphas": []}, "non-empty"),
        ({"alphas": [0.1, 0.2]}, "descending"),
        ({"alphas": [0.1, -0.2]}, "positive"),
        ({"alphas": 0}, "alphas"),
        ({"n_components": []}, "empty list"),
        ({"n_components": [3, 0]}, "n_components"),
        ({"n_components": [3, "all"]}, "n_components"),
        ({"shrinkage": []}, "shrinkage is an empty list"),
        ({"shrinkage": [0.1, 2.0]}, "shrinkage"),
        ({"shrinkage": "much"}, "shrinkage"),
        ({"fold_tol": -1.0}, "fold_tol"),
        ({"patience": 0}, "patience"),
        ({"eps": 2.0}, "eps"),
        ({"selection": "simplest"}, "selection"),
        ({"cv": 1}, "n_splits"),
        ({"cv": []}, "no folds"),
        ({"cv": [(np.arange(3), np.arange(0))]}, "no training or no test rows"),
        ({"solver": "closed_form"}, "closed_form"),
    ],
)
def test_bad_settings_are_refused(diabetes, settings, message):
    model = ConvexBNRegressorCV([0.1], cv=2).set_params(**settings)
    with pytest.raises(ValueError, match=message):
        model.fit(*diabetes)
    assert not hasattr(model, "coefs_")


def test_folds_without_a_class_are_refused_before_work(iris):
    X, y = iris
    model = ConvexBNClassifierCV([0.1], cv=KFold(3))
    with pytest.raises(ValueError, match=r"fold 0 of cv lack classes \(0\)"):
        model.fit(X, y)
    assert not hasattr(model, "classes_")
    model.set_params(cv=StratifiedKFold(2)).fit(X, y)
    assert model.scores_.min() > 0.8


def test_failed_fit_leaves_the_estimator_as_it_was(diabetes):
    model = ConvexBNRegressorCV([0.1], cv=2, random_state=0).fit(*diabetes)
    before = dict(vars(model))
    with pytest.raises(ValueError, match="NaN"):
        model.fit(np.full((10, 3), np.nan), np.zeros(10))
    assert vars(model) == before


def test_candidates_whose_score_is_nan_are_not_chosen(cancer):
    def only_small_networks(model, X, y):
        return float("nan") if model.n_neurons_ > 3 else -model.n_neurons_

    model = ConvexBNClassifierCV([0.2, 0.01], cv=2, scoring=only_small_networks, random_state=0)
    model.fit(*cancer)
    assert np.isnan(model.scores_[0, 1]).any()
    assert model.alpha_ == 0.2
    with pytest.raises(ValueError, match="score is NaN"):
        model.set_params(scoring=lambda model, X, y: float("nan")).fit(*cancer)

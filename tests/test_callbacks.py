"""scikit-learn's callbacks on the estimators; skipped where scikit-learn has none."""

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_convexbn import (
    ConvexBNClassifier,
    ConvexBNClassifierCV,
    ConvexBNRegressor,
    ConvexBNRegressorCV,
    PathNetRegressor,
    PathNetRegressorCV,
)
from sklearn_convexbn.fit._path_training import alphas_down_to

callback = pytest.importorskip("sklearn.callback", reason="needs scikit-learn >= 1.9")


class Recorder:
    """Notes every hook; stops at the end of a given round."""

    def __init__(self, stop_after=None):
        self.events = []
        self.objectives = []
        self.stop_after = stop_after

    def setup(self, estimator, context):
        self.events.append("setup")

    def teardown(self, estimator, context):
        self.events.append("teardown")

    def on_fit_task_begin(self, estimator, context, *, metadata):
        self.events.append(("begin", context.task_name))
        self.metadata = metadata

    def on_fit_task_end(self, estimator, context, *, X, y, fitted_estimator):
        self.events.append(("end", context.task_name))
        if context.task_name == "round":
            assert not hasattr(estimator, "coefs_")
            assert np.shape(fitted_estimator.predict(X)) == np.shape(y)
            self.objectives.append(fitted_estimator.objective_)
            return len(self.objectives) == self.stop_after
        return False


def test_hooks_are_called_around_the_fit_and_each_round(diabetes):
    recorder = Recorder()
    weights = np.ones(len(diabetes[1]))
    model = ConvexBNRegressor(0.03, random_state=0).set_callbacks(recorder)
    model.fit(*diabetes, sample_weight=weights)
    rounds = [("begin", "round"), ("end", "round")] * model.n_iter_
    assert recorder.events == ["setup", ("begin", "fit"), *rounds, ("end", "fit"), "teardown"]
    assert recorder.objectives == model.history_["objective"].tolist()
    assert recorder.metadata["sample_weight"] is weights
    plain = ConvexBNRegressor(0.03, random_state=0).fit(*diabetes)
    assert np.array_equal(plain.predict(diabetes[0]), model.predict(diabetes[0]))


def test_a_hook_stops_the_fit_with_a_usable_network_and_the_one_warning(diabetes):
    recorder = Recorder(stop_after=2)
    model = ConvexBNRegressor(0.01, tol=1e-6, random_state=0).set_callbacks(recorder)
    with pytest.warns(ConvergenceWarning, match="A callback asked to stop") as caught:
        model.fit(*diabetes)
    assert len(caught) == 1
    assert model.n_iter_ == 2
    assert model.score(*diabetes) > 0.3


def test_a_hook_that_fails_leaves_the_estimator_as_it_was_and_is_torn_down(diabetes):
    class Failing(Recorder):
        def on_fit_task_end(self, estimator, context):
            raise RuntimeError("no more")

    failing = Failing()
    model = ConvexBNRegressor(0.1, random_state=0).fit(*diabetes)
    before = model.predict(diabetes[0])
    with pytest.raises(RuntimeError, match="no more"):
        model.set_callbacks(failing).fit(diabetes[0][:, :3], diabetes[1])
    assert failing.events[-1] == "teardown"
    assert np.array_equal(model.predict(diabetes[0]), before)


def test_invalid_parameters_call_no_hook(diabetes):
    recorder = Recorder()
    with pytest.raises(ValueError, match="alpha"):
        ConvexBNRegressor(-1.0).set_callbacks(recorder).fit(*diabetes)
    assert recorder.events == []


def test_scoring_monitor_inside_a_pipeline_and_a_grid_search(breast_cancer):
    X, y = breast_cancer
    monitor = callback.ScoringMonitor(scoring="accuracy")
    watched = ConvexBNClassifier(random_state=0).set_callbacks(monitor)
    pipeline = make_pipeline(StandardScaler(), watched)
    search = GridSearchCV(pipeline, {"convexbnclassifier__alpha": [0.1, 0.03]}, cv=2).fit(X, y)
    rows = monitor.get_logs().data
    assert {row["estimator_name"] for row in rows} == {"ConvexBNClassifier"}
    score = pytest.approx(search.score(X, y))
    assert any(row["accuracy"] == score for row in rows)  # of the refit's last round
    rounds = [row for row in rows if row["task_name"] == "round"]
    assert len(rounds) > search.best_estimator_[-1].n_iter_


def test_cross_validated_estimators_report_the_search_and_the_refit(diabetes):
    recorder = Recorder()
    model = ConvexBNRegressorCV([0.1, 0.05], cv=2, random_state=0).set_callbacks(recorder)
    model.fit(*diabetes)
    assert recorder.events[:5] == [
        "setup",
        ("begin", "fit"),
        ("begin", "cross-validation"),
        ("end", "cross-validation"),
        ("begin", "refit"),
    ]
    rounds = [("begin", "round"), ("end", "round")] * model.n_iter_
    assert recorder.events[5:] == [*rounds, ("end", "refit"), ("end", "fit"), "teardown"]


def names_of(events, kind="begin"):
    return [name for what, name in events[1:-1] if what == kind]


def test_path_networks_report_each_alpha_of_the_path_and_its_rounds(diabetes):
    recorder = Recorder()
    model = PathNetRegressor(0.05, random_state=0).set_callbacks(recorder).fit(*diabetes)
    names = names_of(recorder.events)
    assert names[:3] == ["fit", "alpha", "round"]
    assert names.count("alpha") == len(alphas_down_to(0.05))
    assert names[::-1].index("alpha") == model.n_iter_  # its rounds come last
    assert recorder.objectives[-model.n_iter_ :] == model.history_["objective"].tolist()
    assert sorted(names) == sorted(names_of(recorder.events, "end"))


def test_a_hook_stops_a_path_on_its_way_with_the_network_of_that_alpha(diabetes):
    recorder = Recorder(stop_after=1)
    model = PathNetRegressor(0.05, random_state=0).set_callbacks(recorder)
    with pytest.warns(ConvergenceWarning, match="asked to stop at alpha=0.5, before the last"):
        model.fit(*diabetes)
    assert model.alpha_ == 0.5
    assert model.objective_ == recorder.objectives[0]
    recorder = Recorder()
    model = PathNetRegressorCV([0.3, 0.1], cv=2, random_state=0).set_callbacks(recorder)
    model.fit(*diabetes)
    names = names_of(recorder.events)
    assert names[:3] == ["fit", "cross-validation", "refit"]
    assert names.count("alpha") == model.best_index_[1] + 1


def test_a_hook_stops_the_way_down_to_an_automatic_alpha(diabetes):
    recorder = Recorder(stop_after=1)
    model = PathNetRegressor(random_state=0).set_callbacks(recorder)
    with pytest.warns(ConvergenceWarning, match=r"asked to stop at alpha=0\.01, before the last"):
        model.fit(*diabetes)
    assert model.alpha_ == pytest.approx(0.01)
    assert model.objective_ == recorder.objectives[0]
    recorder = Recorder()
    model = PathNetRegressor(random_state=0).set_callbacks(recorder).fit(*diabetes)
    names = names_of(recorder.events)
    assert names[:3] == ["fit", "alpha", "round"]
    assert recorder.objectives[-model.n_iter_ :] == model.history_["objective"].tolist()


def test_progress_bar_runs_on_every_estimator(diabetes, capsys):
    rich = pytest.importorskip("rich", reason="scikit-learn's ProgressBar needs rich")
    assert rich is not None
    X, y = diabetes
    models = [
        ConvexBNRegressor(0.1, random_state=0),
        ConvexBNRegressorCV([0.2, 0.1], cv=2, random_state=0),
        PathNetRegressor(0.1, random_state=0),
    ]
    for model in models:
        model.set_callbacks(callback.ProgressBar()).fit(X, y)
    for model in (ConvexBNClassifier(0.1), ConvexBNClassifierCV([0.2, 0.1], cv=2)):
        model.set_callbacks(callback.ProgressBar()).fit(X, y > 140)
    out = capsys.readouterr().out
    for name in ("Regressor", "RegressorCV", "Classifier", "ClassifierCV"):
        assert f"ConvexBN{name} - fit" in out
    assert "PathNetRegressor - fit" in out

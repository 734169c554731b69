"""The displays: what they draw against fitted attributes, labels and errors; no pictures."""

import subprocess
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pytest
from numpydoc.validate import validate
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.datasets import load_diabetes
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_convexbn import (
    ConvexBNClassifier,
    ConvexBNClassifierCV,
    ConvexBNRegressor,
    ConvexBNRegressorCV,
)
from sklearn_convexbn.displays import (
    ConvergenceDisplay,
    RegularizationPathDisplay,
    SpectrumDisplay,
)
from tests.helpers import whiten

DISPLAYS = [ConvergenceDisplay, RegularizationPathDisplay, SpectrumDisplay]


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def diabetes():
    X, y = load_diabetes(return_X_y=True)
    return X[:120], y[:120]


def regressor(**kw):
    return ConvexBNRegressor(**{"alpha": 0.1, "random_state": 0, **kw})


@pytest.fixture(scope="module")
def models(diabetes):
    X, y = diabetes
    wide = np.random.default_rng(0).normal(size=(20, 40))
    return {
        "pursuit": regressor(alpha=0.03).fit(X, y),
        "gated": regressor(activation="gated_relu", n_gates=20, tol=1e-4).fit(X, y),
        "list": regressor(solver="interior_point", n_gates=10).fit(X, y),
        "two directions": regressor(n_components=2).fit(X, y),
        "closed form": regressor().fit(wide, y[:20]),
        "shrunk": regressor(n_components=4, shrinkage=0.5).fit(X, y),
    }


def labels(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


# --- convergence ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pursuit", "gated", "list", "two directions", "closed form"])
@pytest.mark.parametrize("x", ["rounds", "time"])
def test_convergence_draws_the_history(models, name, x):
    m = models[name]
    display = ConvergenceDisplay.from_estimator(m, x=x)
    objective, gap = m.history_["objective"], m.history_["dual_gap"]
    where = np.arange(1, m.n_iter_ + 1) if x == "rounds" else m.history_["time"]
    for line, values in (
        (display.objective_line_, objective),
        (display.bound_line_, objective * (1 - gap)),
        (display.gap_line_, gap),
    ):
        np.testing.assert_allclose(line.get_xdata(), where)
        np.testing.assert_allclose(line.get_ydata(), values, rtol=1e-12)
    assert display.bound_line_.get_ydata()[-1] == pytest.approx(m.certificate_.dual)
    assert set(display.tol_line_.get_ydata()) == {m.tol}
    assert list(display.axes_) == [display.ax_, display.gap_ax_] == display.figure_.axes
    assert display.gap_ax_.get_xlabel() == ("round" if x == "rounds" else "time (seconds)")
    assert display.gap_ax_.get_yscale() == "log"
    display.figure_.canvas.draw()


def test_bound_is_each_rounds_own_and_not_the_best_seen():
    # The second round's estimate was too good: the third search has shown it.
    display = ConvergenceDisplay(
        objective=[1.0, 0.9, 0.85], dual_gap=[0.5, 0.1, 0.2], time=[1, 2, 3], kind="stopping"
    ).plot()
    np.testing.assert_allclose(display.bound_line_.get_ydata(), [0.5, 0.81, 0.68])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("pursuit", ["estimated lower bound", "by an independent search"]),
        ("gated", ["certified lower bound for 20 fixed gates"]),
        ("list", ["certified lower bound for 10 sampled arrangements"]),
        ("closed form", ["certified lower bound"]),
        # The pursuit proves the last round's bound alone.
        ("two directions", ["estimated lower bound", "certified lower bound, last round"]),
    ],
)
def test_bound_is_called_certified_where_it_is(models, name, expected):
    m = models[name]
    display = ConvergenceDisplay.from_estimator(m)
    assert labels(display.ax_) == ["objective, best so far", *expected]
    assert m.certificate_.kind == ("estimated" if name == "pursuit" else "exact")
    assert ("certified" in display.ax_.get_title()) == (name != "pursuit")
    if name == "two directions":
        assert m.n_iter_ > 1
        np.testing.assert_allclose(display.proven_.get_xydata(), [[m.n_iter_, m.certificate_.dual]])
    else:
        assert display.proven_ is None
    if name == "pursuit":
        marks = display.verified_.get_xydata()
        np.testing.assert_allclose(marks[-1], [m.n_iter_, m.certificate_.dual])
        assert len(marks) == (m.history_["kind"] == "verified").sum()
    else:
        assert display.verified_ is None


def test_every_verified_bound_is_marked_and_those_of_the_stopping_test_are_not():
    kind = ["stopping", "verified", "stopping", "verified"]
    display = ConvergenceDisplay(
        objective=[1.0, 0.9, 0.85, 0.8], dual_gap=[0.5, 0.1, 0.2, 0.1], time=range(4), kind=kind
    ).plot()
    np.testing.assert_allclose(display.verified_.get_xydata(), [[2, 0.81], [4, 0.72]])
    assert display.proven_ is None
    assert labels(display.ax_)[1:] == ["estimated lower bound", "by an independent search"]
    assert "certified" not in display.ax_.get_title()


def test_nothing_is_interpolated_against_time(models):
    display = ConvergenceDisplay.from_estimator(models["pursuit"], x="time")
    lines = (display.objective_line_, display.bound_line_, display.gap_line_)
    assert {line.get_drawstyle() for line in lines} == {"steps-post"}


def test_a_single_round_is_visible(models):
    display = ConvergenceDisplay.from_estimator(models["closed form"])
    for line in (display.objective_line_, display.bound_line_, display.gap_line_):
        assert line.get_marker() not in ("", "None", None)
        ((x, y),) = line.get_xydata()
        axes = line.axes
        assert axes.get_xlim()[0] < x < axes.get_xlim()[1]
        assert axes.get_ylim()[0] < y < axes.get_ylim()[1]
    # The two values agree to rounding, which is not what the axis should resolve.
    low, high = display.ax_.get_ylim()
    assert high - low > 0.01 * high
    assert [t for t in display.ax_.get_xticks() if 0 < t < 2] == [1]


def test_curves_stay_below_the_legend(models):
    display = ConvergenceDisplay.from_estimator(models["two directions"], x="time")
    display.figure_.canvas.draw()
    legend = display.ax_.get_legend().get_window_extent()
    top = display.ax_.transData.transform((0, display.objective.max()))[1]
    assert top < legend.y0


@pytest.mark.parametrize(
    ("gaps", "scale"), [([0.5, 0.1], "log"), ([0.5, 0.0], "symlog"), ([0.0, 0.0], "linear")]
)
def test_a_gap_of_zero_is_drawn(gaps, scale):
    display = ConvergenceDisplay(objective=[1, 1], dual_gap=gaps, time=[1, 2], kind="exact").plot()
    assert display.gap_ax_.get_yscale() == scale
    assert display.tol_line_ is None
    display.figure_.canvas.draw()


def test_scales():
    data = {"dual_gap": [1.5, 0.5, 0.01], "time": [0.1, 0.2, 5.0], "kind": "exact"}
    near = ConvergenceDisplay(objective=[1.0, 0.5, 0.4], **data)
    far = ConvergenceDisplay(objective=[1.0, 0.1, 0.01], **data)
    assert near.plot().ax_.get_yscale() == "linear"
    assert far.plot().ax_.get_yscale() == "log"
    assert far.plot(yscale="linear").ax_.get_yscale() == "linear"
    # A lower bound below zero does not keep a logarithmic axis from showing the rest.
    low, high = near.plot(yscale="log").ax_.get_ylim()
    assert 0 < low < 0.25
    assert high > 1
    display = near.plot(x="time", xscale="log")
    assert [axes.get_xscale() for axes in display.axes_] == ["log", "log"]
    display.figure_.canvas.draw()


def test_zero_objective_is_drawn():
    display = ConvergenceDisplay(objective=[0.0], dual_gap=[0.0], time=[0.1], kind="exact").plot()
    display.figure_.canvas.draw()
    assert display.ax_.get_ylim()[0] < 0 < display.ax_.get_ylim()[1]


def test_one_given_axes_has_no_gap_and_two_have(models):
    figure, ax = plt.subplots()
    display = ConvergenceDisplay.from_estimator(models["pursuit"], ax=ax)
    assert display.ax_ is ax
    assert display.figure_ is figure
    assert display.gap_ax_ is display.gap_line_ is display.tol_line_ is None
    assert ax.get_xlabel() == "round"
    _, axes = plt.subplots(1, 2)
    display.plot(axes)
    assert list(display.axes_) == list(axes)
    assert [a.get_xlabel() for a in axes] == ["round", "round"]


def test_many_rounds_have_no_markers():
    n = 200
    display = ConvergenceDisplay(
        objective=np.ones(n), dual_gap=np.geomspace(1, 1e-3, n), time=np.arange(n), kind="exact"
    ).plot()
    assert display.objective_line_.get_marker() in ("", "None")


def test_style_keywords_win_over_defaults_by_any_alias(models):
    display = ConvergenceDisplay.from_estimator(
        models["pursuit"], objective_kw={"c": "red", "lw": 3}, bound_kw={"label": "bound"}
    )
    assert display.objective_line_.get_color() == "red"
    assert display.objective_line_.get_linewidth() == 3
    assert labels(display.ax_)[1] == "bound"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"dual_gap": [0.1, 0.2]}, "one shape"),
        ({"objective": [], "dual_gap": [], "time": []}, "one shape"),
        ({"kind": "proven"}, "kind must be one of 'exact', 'verified', 'stopping'"),
        ({"kind": ["proven"]}, "kind must be one of"),
        ({"kind": ["exact", "exact"]}, "one str or of shape"),
    ],
)
def test_convergence_refuses_bad_arrays(change, match):
    good = {"objective": [1.0], "dual_gap": [0.1], "time": [0.1], "kind": "exact"}
    with pytest.raises(ValueError, match=match):
        ConvergenceDisplay(**{**good, **change})


@pytest.mark.parametrize("bad", [{"x": "epochs"}, {"xscale": "logit"}, {"yscale": "symlog"}])
def test_convergence_refuses_unknown_choices(models, bad):
    (name,) = bad
    with pytest.raises(ValueError, match=f"{name} must be one of"):
        ConvergenceDisplay.from_estimator(models["pursuit"], **bad)
    assert plt.get_fignums() == []


# --- regularization path --------------------------------------------------------------------


class PathRegressor(RegressorMixin, BaseEstimator):
    """A cross-validated estimator as far as the display looks at it."""

    scores = "mse_path_"

    def fit(self, X=None, y=None):
        rng = np.random.default_rng(0)
        shape = (3, 5, 4)
        self.alphas_ = np.geomspace(1, 1e-3, 5)
        self.alpha_ = self.alphas_[3]
        self.n_components_grid_ = [1, 0.95, None]
        self.best_index_ = (1, 3)
        setattr(self, self.scores, rng.uniform(1, 2, size=shape))
        self.n_neurons_path_ = rng.integers(0, 50, size=shape)
        self.objective_path_ = rng.uniform(0.01, 2, size=shape)
        return self


class PathClassifier(ClassifierMixin, PathRegressor):
    scores = "scores_"

    def __init__(self, scoring=None):
        self.scoring = scoring


def test_path_draws_means_over_folds():
    m = PathRegressor().fit()
    display = RegularizationPathDisplay.from_estimator(m)
    paths = (m.mse_path_, m.n_neurons_path_, m.objective_path_)
    for axes, lines, path in zip(display.axes_, display.lines_, paths, strict=True):
        assert axes.get_xscale() == "log"
        assert "alpha" in axes.get_xlabel()
        assert len(lines) == 3
        for line, values in zip(lines, path, strict=True):
            assert line.axes is axes
            np.testing.assert_allclose(line.get_xdata(), m.alphas_)
            np.testing.assert_allclose(line.get_ydata(), values.mean(axis=1))
    assert display.axes_[0].get_ylabel().startswith("mean squared error, mean of 4 folds")
    assert "units" in display.axes_[1].get_ylabel()
    assert "objective" in display.axes_[2].get_ylabel()
    assert labels(display.axes_[1]) == [
        "1 direction",
        "95 % of variance",
        "all directions",
        "chosen",
    ]
    display.figure_.canvas.draw()


def test_path_marks_the_chosen_model():
    m = PathRegressor().fit()
    display = RegularizationPathDisplay.from_estimator(m)
    paths = (m.mse_path_, m.n_neurons_path_, m.objective_path_)
    for axes, marker, path in zip(display.axes_, display.chosen_, paths, strict=True):
        assert marker.axes is axes
        np.testing.assert_allclose(marker.get_xydata(), [[m.alpha_, path[1, 3].mean()]])
    assert display.axes_[0].get_title() == "chosen: alpha = 0.0056, 95 % of variance"


def test_path_draws_nothing_where_a_fold_has_ended_before():
    m = PathRegressor().fit()
    m.objective_path_[:, :, :] *= np.geomspace(1e3, 1, 5)[:, None]
    m.mse_path_[0, 3:, 1] = m.objective_path_[0, 3:, 1] = np.nan
    m.n_neurons_path_[0, 3:, 1] = -1
    display = RegularizationPathDisplay.from_estimator(m)
    for lines in display.lines_:
        drawn = [np.isfinite(line.get_ydata()).sum() for line in lines]
        assert drawn == [3, 5, 5]
    assert [axes.get_yscale() for axes in display.axes_] == ["linear", "linear", "log"]
    display.figure_.canvas.draw()


def test_path_band_is_one_standard_error():
    scores = np.array([[[1.0, 2.0, 3.0], [2.0, 2.0, 5.0]]])
    display = RegularizationPathDisplay(
        alphas=[0.1, 0.01], scores=scores, n_neurons=scores, objective=scores
    ).plot()
    (band,) = display.bands_
    at = {x: [] for x in (0.1, 0.01)}
    for x, y in band.get_paths()[0].vertices:
        at[x].append(y)
    error = 1 / np.sqrt(3)
    assert (min(at[0.1]), max(at[0.1])) == pytest.approx((2 - error, 2 + error))
    assert (min(at[0.01]), max(at[0.01])) == pytest.approx((2, 4))
    assert display.chosen_ == []
    assert "standard error" in display.axes_[0].get_ylabel()


def test_path_of_one_fold_has_no_band():
    path = np.ones((1, 2, 1))
    display = RegularizationPathDisplay(
        alphas=[0.1, 0.01], scores=path, n_neurons=path, objective=path
    ).plot()
    assert display.bands_ == []
    assert display.axes_[0].get_ylabel() == "score, one fold"
    assert labels(display.axes_[1]) == ["all directions"]


@pytest.mark.parametrize(
    ("scoring", "given", "expected"),
    [
        ("balanced_accuracy", None, "balanced accuracy"),
        (None, None, "accuracy"),
        (max, None, "score"),
        (None, "my score", "my score"),
    ],
)
def test_path_names_a_classifiers_scores(scoring, given, expected):
    m = PathClassifier(scoring).fit()
    display = RegularizationPathDisplay.from_estimator(m, score_name=given)
    assert display.axes_[0].get_ylabel().startswith(f"{expected}, mean of 4 folds")
    for line, scores in zip(display.lines_[0], m.scores_, strict=True):
        np.testing.assert_allclose(line.get_ydata(), scores.mean(axis=1))


def test_path_of_wide_range_is_on_a_log_axis():
    wide = np.array([[[1000.0], [1.0]]])
    display = RegularizationPathDisplay(
        alphas=[0.1, 0.01], scores=wide, n_neurons=wide, objective=wide / wide
    ).plot()
    assert [axes.get_yscale() for axes in display.axes_] == ["log", "linear", "linear"]


def test_path_lines_are_told_apart():
    path = np.ones((12, 2, 2))
    display = RegularizationPathDisplay(
        alphas=[0.1, 0.01],
        scores=path,
        n_neurons=path,
        objective=path,
        n_components_grid=range(1, 13),
    ).plot(line_kw={"ls": ":"})
    assert len({line.get_color() for line in display.lines_[0]}) == 12
    assert {line.get_linestyle() for lines in display.lines_ for line in lines} == {":"}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"alphas": []}, "alphas"),
        ({"alphas": [0.1, 0.0]}, "alphas must be .* positive"),
        ({"scores": np.ones((1, 2))}, r"scores must be of shape .* got \(1, 2\)"),
        ({"n_neurons": np.ones((2, 2, 3))}, "n_neurons must be of shape"),
        ({"objective": np.ones((1, 2, 0))}, "objective must be of shape"),
        ({"n_components_grid": [1, 2]}, "scores must be of shape"),
        ({"best_index": (0, 2)}, "best_index"),
        ({"best_index": (0,)}, "best_index"),
    ],
)
def test_path_refuses_bad_arrays(change, match):
    path = np.ones((1, 2, 3))
    good = {"alphas": [0.1, 0.01], "scores": path, "n_neurons": path, "objective": path}
    with pytest.raises(ValueError, match=match):
        RegularizationPathDisplay(**{**good, **change})


def test_path_of_the_cross_validated_estimators(diabetes, breast_cancer):
    settings = {"alphas": 3, "eps": 0.1, "n_components": [2, None], "cv": 3, "random_state": 0}
    m = ConvexBNRegressorCV(**settings).fit(*diabetes)
    display = RegularizationPathDisplay.from_estimator(m)
    ((x, y),) = display.chosen_[0].get_xydata()
    assert x == pytest.approx(m.alpha_)
    assert y == pytest.approx(m.mse_path_[m.best_index_].mean())
    assert labels(display.axes_[1])[:2] == ["2 directions", "all directions"]
    X, y = breast_cancer
    m = ConvexBNClassifierCV(**settings).fit(X[:100], y[:100])
    display = RegularizationPathDisplay.from_estimator(m)
    np.testing.assert_allclose(display.lines_[0][1].get_ydata(), m.scores_[1].mean(axis=1))
    assert ConvergenceDisplay.from_estimator(m).objective[-1] == pytest.approx(m.objective_)
    assert SpectrumDisplay.from_estimator(m).n_components == m.n_components_


# --- spectrum -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pursuit", "two directions", "shrunk"])
def test_spectrum_draws_what_was_kept_and_cut(models, name):
    m = models[name]
    k, sigma = m.n_components_, m.singular_values_
    display = SpectrumDisplay.from_estimator(m)
    np.testing.assert_allclose(display.kept_line_.get_xdata(), np.arange(1, k + 1))
    np.testing.assert_allclose(display.kept_line_.get_ydata(), sigma[:k])
    assert display.ax_.get_yscale() == "log"
    assert labels(display.ax_)[0] == f"kept: {k} of {len(sigma)}"
    if k < len(sigma):
        np.testing.assert_allclose(display.cut_line_.get_xdata(), np.arange(k + 1, 11))
        np.testing.assert_allclose(display.cut_line_.get_ydata(), sigma[k:])
        assert set(display.cut_.get_xdata()) == {k + 0.5}
    else:
        assert display.cut_line_ is display.cut_ is None
    assert (display.damping_ax_ is None) == (m.shrinkage_ == 0)
    display.figure_.canvas.draw()


@pytest.mark.parametrize("shrinkage", [0.0, 0.02, 0.5, 1.0, "auto"])
@pytest.mark.parametrize("size", [1.0, 1e150])
def test_damping_is_that_of_the_whitened_rows(diabetes, shrinkage, size):
    X = diabetes[0] * size
    Z, whitening = whiten(X, np.ones(len(X)), n_components=6, shrinkage=shrinkage, by_column=False)
    display = SpectrumDisplay(
        singular_values=whitening.singular_values,
        n_components=whitening.n_components,
        shrinkage=whitening.shrinkage,
    )
    np.testing.assert_allclose(display.damping, Z[:, :-1].std(axis=0), rtol=1e-9)
    np.testing.assert_allclose(display.damping**2, whitening.spectrum[:-1], rtol=1e-9)
    np.testing.assert_allclose(whitening.damping, display.damping, rtol=1e-9)


def test_damping_is_drawn_on_its_own_axis(models):
    m = models["shrunk"]
    display = SpectrumDisplay.from_estimator(m, damping_kw={"c": "k"})
    np.testing.assert_array_equal(display.damping, m.damping_)
    assert display.damping_line_.axes is display.damping_ax_ is not display.ax_
    np.testing.assert_allclose(display.damping_line_.get_ydata(), display.damping)
    np.testing.assert_allclose(display.damping_line_.get_xdata(), np.arange(1, 5))
    assert display.damping_line_.get_color() == "k"
    assert display.damping_ax_.get_ylim()[0] == 0
    assert display.damping_ax_.get_ylim()[1] > display.damping.max()
    assert labels(display.ax_)[-1] == "scale with shrinkage = 0.5"


def test_one_direction_has_one_tick():
    display = SpectrumDisplay(singular_values=[3.0]).plot()
    low, high = display.ax_.get_xlim()
    assert [t for t in display.ax_.get_xticks() if low <= t <= high] == [1]


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        ({"singular_values": []}, "X is constant"),
        ({"singular_values": [1.0, 0.0]}, "positive"),
        ({"singular_values": [2.0, 1.0], "n_components": 3}, r"n_components must be in \[1, 2\]"),
        ({"singular_values": [2.0, 1.0], "n_components": 0}, r"n_components must be in \[1, 2\]"),
        ({"singular_values": [2.0, 1.0], "shrinkage": 1.5}, r"shrinkage must be in \[0, 1\]"),
    ],
)
def test_spectrum_refuses_bad_arrays(bad, match):
    with pytest.raises(ValueError, match=match):
        SpectrumDisplay(**bad)


def test_constant_data_have_no_spectrum():
    m = regressor().fit(np.ones((10, 2)), np.arange(10.0))
    with pytest.raises(ValueError, match="X is constant"):
        SpectrumDisplay.from_estimator(m)


# --- common to all --------------------------------------------------------------------------


def fitted_for(display, models):
    return PathRegressor().fit() if display is RegularizationPathDisplay else models["shrunk"]


@pytest.mark.parametrize("display", DISPLAYS)
def test_last_step_of_a_pipeline_is_drawn(display, models):
    pipeline = make_pipeline(StandardScaler(), fitted_for(display, models))
    drawn = display.from_estimator(pipeline)
    alone = display.from_estimator(pipeline[-1])
    for a, b in zip(drawn.figure_.axes, alone.figure_.axes, strict=True):
        for line, other in zip(a.get_lines(), b.get_lines(), strict=True):
            np.testing.assert_array_equal(line.get_xydata(), other.get_xydata())


@pytest.mark.parametrize("display", [ConvergenceDisplay, SpectrumDisplay])
def test_classifier_in_a_fitted_pipeline(display, breast_cancer):
    X, y = breast_cancer
    network = ConvexBNClassifier(alpha=0.1, tol=0.1, n_components=5, random_state=0)
    pipeline = make_pipeline(StandardScaler(), network).fit(X, y)
    drawn = display.from_estimator(pipeline)
    if display is ConvergenceDisplay:
        assert drawn.objective[-1] == pytest.approx(pipeline[-1].objective_)
    else:
        assert drawn.n_components == 5


@pytest.mark.parametrize("display", DISPLAYS)
def test_estimators_not_fitted(display):
    for estimator in (regressor(), PathRegressor(), make_pipeline(StandardScaler(), regressor())):
        with pytest.raises(NotFittedError):
            display.from_estimator(estimator)


@pytest.mark.parametrize("display", DISPLAYS)
def test_estimators_of_another_kind(display, diabetes, models):
    other = Ridge().fit(*diabetes)
    with pytest.raises(TypeError, match=rf"{display.__name__} needs .* Ridge has no \w+_"):
        display.from_estimator(other)
    with pytest.raises(TypeError, match="not an estimator instance"):
        display.from_estimator("network")
    search = GridSearchCV(Ridge(), {"alpha": [1.0]}).fit(*diabetes)
    with pytest.raises(TypeError, match="best_estimator_"):
        display.from_estimator(search)


def test_a_plain_estimator_has_no_path(models):
    with pytest.raises(TypeError, match=r"ends in CV.* has no alphas_"):
        RegularizationPathDisplay.from_estimator(models["pursuit"])
    m = PathRegressor().fit()
    del m.mse_path_
    with pytest.raises(TypeError, match="no mse_path_ or scores_"):
        RegularizationPathDisplay.from_estimator(m)


@pytest.mark.parametrize(
    ("display", "counts"),
    [
        (ConvergenceDisplay, "1 or 2"),
        (RegularizationPathDisplay, "3"),
        (SpectrumDisplay, "1"),
    ],
)
def test_wrong_number_of_axes(display, counts, models):
    m = fitted_for(display, models)
    _, axes = plt.subplots(2, 2)
    with pytest.raises(ValueError, match=f"ax must have {counts} Axes, got 4"):
        display.from_estimator(m, ax=axes)
    with pytest.raises(TypeError, match="ax must be matplotlib Axes"):
        display.from_estimator(m, ax="left")


@pytest.mark.parametrize("display", DISPLAYS)
def test_missing_matplotlib_is_named_with_the_remedy(display, models, monkeypatch):
    m = fitted_for(display, models)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=rf"{display.__name__}.plot needs .*pip install matplot"):
        display.from_estimator(m)


def test_import_does_not_load_matplotlib():
    code = "import sys, sklearn_convexbn.displays; print('matplotlib' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


@pytest.mark.parametrize("display", DISPLAYS)
def test_docstrings_are_numpydoc(display):
    not_asked_for = {"SA01", "EX01", "ES01", "GL08", "RT03", "PR07", "RT02"}
    for name in ("", ".from_estimator", ".plot"):
        errors = validate(f"{display.__module__}.{display.__name__}{name}")["errors"]
        assert [e for e in errors if e[0] not in not_asked_for] == []

"""Keeping and showing a model: pickle, joblib, skops, ONNX, feature names, text and HTML."""

import io
import os
import pickle
import re
import subprocess
import sys
import warnings
from copy import copy
from functools import cache
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import polars as pl
import pytest
import sklearn
import torch
from scipy.special import softmax
from sklearn.base import BaseEstimator, clone, is_classifier
from sklearn.datasets import load_iris
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import estimator_html_repr
from sklearn.utils.fixes import parse_version

from sklearn_convexbn import (
    ConvexBNClassifier,
    ConvexBNClassifierCV,
    ConvexBNRegressor,
    ConvexBNRegressorCV,
    Patches,
    PathNetClassifier,
    PathNetClassifierCV,
    PathNetRegressor,
    PathNetRegressorCV,
)
from sklearn_convexbn.solvers import REGISTRY, Pursuit

ROOT = Path(__file__).resolve().parents[1]
SKLEARN = parse_version(sklearn.__version__).release


@cache
def iris():
    """50 rows, more than any network here has units, of three classes."""
    X, y = load_iris(return_X_y=True)
    return X[::3], y[::3]


def wide():
    """Fewer rows than features, where a closed form holds."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((12, 20)), rng.standard_normal(12)


def target(task):
    X, y = iris()
    targets = {
        "one output": X[:, 3],
        "two outputs": X[:, 2:],
        "two classes": np.array(["no", "yes"])[(y == 2).astype(int)],
        "three classes": np.array(["setosa", "versicolor", "virginica"], dtype=object)[y],
    }
    return targets[task]


#: What is kept: one model for every estimator, activation, solver, loss and kind of target.
CASES = {
    "pursuit": ("one output", {}),
    "pursuit, two outputs": ("two outputs", {"shrinkage": 0.5}),
    "pursuit, two classes": ("two classes", {"n_components": 2}),
    "pursuit, three classes": ("three classes", {"class_weight": "balanced"}),
    "pursuit, squared error": ("three classes", {"loss": "squared_error"}),
    "instance": ("one output", {"solver": Pursuit(n_starts=50)}),
    "RandomState": ("two classes", {"random_state": np.random.RandomState(3)}),
    "empty": ("one output", {"alpha": 1e3}),
    "list": ("one output", {"solver": "interior_point", "n_gates": 8}),
    "cvxpy": ("two classes", {"solver": "cvxpy", "n_gates": 8}),
    "gated": ("one output", {"activation": "gated_relu", "n_gates": 8}),
    "gated, three classes": ("three classes", {"activation": "gated_relu", "n_gates": 8}),
    "gated cvxpy": ("two outputs", {"activation": "gated_relu", "solver": "cvxpy", "n_gates": 8}),
    "clip": ("two outputs", {"clip": True}),
    "gated, clip": ("one output", {"activation": "gated_relu", "n_gates": 8, "clip": True}),
    "closed form": ("wide", {}),
    "closed form, classes": ("wide classes", {}),
    "patches": ("two classes", {"patches": Patches((2, 2), size=1, pooling=1, normalize=False)}),
    "cv": ("one output", {"alphas": 3, "cv": KFold(2), "activation": "gated_relu", "n_gates": 8}),
    "cv, classes": (
        "three classes",
        {
            "alphas": [0.3, 0.1],
            "n_components": [2, None],
            "cv": 2,
            "activation": "gated_relu",
            "tol": 0.1,
        },
    ),
    "paths": ("one output", {"inner_width": 2}),
    "paths, two outputs": ("two outputs", {"inner_width": 2, "alpha": 0.3}),
    "paths, three classes": ("three classes", {"inner_width": 2, "norm": "l2"}),
    "paths, cv": ("one output", {"inner_width": 2, "alphas": [0.3, 0.1], "cv": 2}),
    "paths, cv, classes": ("two classes", {"inner_width": 0, "alphas": [0.3, 0.1], "cv": 2}),
}
per_case = pytest.mark.parametrize("case", CASES)


def data(case):
    """Return X and y of a case."""
    task = CASES[case][0]
    if task.startswith("wide"):
        X, y = wide()
        return X, y > 0 if task.endswith("classes") else y
    return iris()[0][:, : None if "classes" in task else 3], target(task)


@cache
def fitted(case):
    task, parameters = CASES[case]
    regressor, classifier, regressor_cv, classifier_cv = (
        (PathNetRegressor, PathNetClassifier, PathNetRegressorCV, PathNetClassifierCV)
        if "inner_width" in parameters
        else (ConvexBNRegressor, ConvexBNClassifier, ConvexBNRegressorCV, ConvexBNClassifierCV)
    )
    if "cv" in parameters:
        estimator = classifier_cv if "classes" in task else regressor_cv
        return estimator(**{"random_state": 0, **parameters}).fit(*data(case))
    estimator = classifier if "classes" in task else regressor
    return estimator(**{"alpha": 0.1, "random_state": 0, **parameters}).fit(*data(case))


def outputs(model, X):
    """Everything a model says about rows, by method."""
    methods = ("predict", "decision_function", "predict_proba", "predict_log_proba")
    return {name: getattr(model, name)(X) for name in methods if hasattr(model, name)}


def assert_same(a, b):
    """Compare two states, down to every bit of their arrays."""
    assert type(a) is type(b)
    if isinstance(a, np.ndarray):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert_same(one, other)
    elif isinstance(a, (BaseEstimator, KFold)):
        assert_same(vars(a), vars(b))
    elif isinstance(a, np.random.RandomState):
        assert_same(a.get_state(legacy=False), b.get_state(legacy=False))
    else:
        assert a == b


def assert_kept(model, again, X):
    """The loaded model is the same in every attribute, says the same and can be cloned."""
    assert_same(model, again)
    assert_same(model.get_params(), again.get_params())
    assert_same(outputs(model, X), outputs(again, X))
    fresh = clone(again)
    assert_same(clone(model), fresh)
    assert not hasattr(fresh, "coefs_")


def pickled(model):
    return pickle.loads(pickle.dumps(model))


def through_joblib(model):
    file = io.BytesIO()
    joblib.dump(model, file, compress=3)
    file.seek(0)
    return joblib.load(file)


def through_skops(model):
    skops = pytest.importorskip("skops.io", reason="skops is not installed")
    file = skops.dumps(model)
    return skops.loads(file, trusted=skops.get_untrusted_types(data=file))


WAYS = [pickled, through_joblib, through_skops]


# --- pickle, joblib and skops ---------------------------------------------------------------


def test_cases_cover_what_there_is():
    models = [fitted(case) for case in CASES]
    assert {m.solver_.name for m in models} == set(REGISTRY)
    assert {getattr(m, "activation", "relu") for m in models} == {"relu", "gated_relu"}
    assert {m.certificate_.kind for m in models} == {"exact", "estimated"}
    assert min(m.n_neurons_ for m in models) == 0


@per_case
@pytest.mark.parametrize("way", WAYS)
def test_round_trip(case, way):
    model = fitted(case)
    assert_kept(model, way(model), data(case)[0])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", ["pursuit", "gated, three classes", "paths"])
def test_loaded_model_can_be_fitted_again(case, way):
    model, (X, y) = fitted(case), data(case)
    again = way(model).fit(X, y)
    assert_same(outputs(again, X), outputs(model, X))
    warm = way(model).set_params(warm_start=True).fit(X, y)
    assert warm.dual_gap_ <= warm.tol


@pytest.mark.parametrize("way", WAYS)
def test_unfitted_model_is_kept(way):
    model = ConvexBNClassifier(solver=Pursuit(n_insert=7), class_weight={0: 1.0, 1: 2.0})
    assert_same(model, way(model))


@pytest.mark.parametrize("way", WAYS)
def test_model_inside_a_pipeline_is_kept(way):
    X, y = data("gated, three classes")
    model = make_pipeline(StandardScaler(), clone(fitted("gated, three classes")))
    search = GridSearchCV(model, {"convexbnclassifier__alpha": [0.1, 0.3]}, cv=2).fit(X, y)
    best = search.best_estimator_
    again = way(best)
    assert_kept(best[-1], again[-1], best[:-1].transform(X))
    assert_same(outputs(best, X), outputs(again, X))


def test_arrays_may_stay_on_disk(tmp_path):
    for case in ("pursuit", "gated, three classes"):
        model, path = fitted(case), tmp_path / "model.joblib"
        joblib.dump(model, path)
        again = joblib.load(path, mmap_mode="r")
        assert isinstance(again.coefs_[0], np.memmap)
        X = data(case)[0]
        assert_same(outputs(model, X), outputs(again, X))


def arrays_in(value):
    """Yield every array of a state."""
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from arrays_in(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from arrays_in(part)
    elif hasattr(value, "__dict__"):
        yield from arrays_in(vars(value))


@pytest.mark.parametrize("case", [c for c in CASES if not CASES[c][0].startswith("wide")])
def test_training_rows_are_not_kept(case):
    (n, d), model = data(case)[0].shape, fitted(case)
    assert max(n, d, model.n_neurons_) == n
    assert max(max(a.shape, default=0) for a in arrays_in(model)) < n


NOT_INSTALLED = """
import sys

class Absent:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in {modules!r}:
            raise ModuleNotFoundError("No module named " + repr(name), name=name)

sys.meta_path.insert(0, Absent)
"""


def run_without(modules, code, **environment):
    """Run code in a new interpreter in which some modules seem not to be installed."""
    subprocess.run(
        [sys.executable, "-W", "error", "-c", NOT_INSTALLED.format(modules=modules) + code],
        check=True,
        cwd=ROOT,
        env={**os.environ, **environment},
    )


PREDICT_ALL = """
import pathlib, pickle
import numpy as np

for model, X, expected in pickle.loads(pathlib.Path({path!r}).read_bytes()):
    np.testing.assert_array_equal(model.predict(X), expected)
    assert model.certificate_.primal == model.objective_ == model.history_["objective"][-1]
"""


def predict_all(models, path):
    """Pickle models beside rows and their predictions; return code that compares them."""
    path.write_bytes(pickle.dumps([(m, X, m.predict(X).tolist()) for m, X in models]))
    return PREDICT_ALL.format(path=str(path))


def test_loaded_models_predict_without_torch_or_a_device(tmp_path):
    models = [(pickled(fitted(case)), data(case)[0]) for case in CASES]
    models += [(pickled(model).set_params(device="cuda"), X) for model, X in models]
    run_without(["torch", "cvxpy"], predict_all(models, tmp_path / "models.pkl"))


@pytest.mark.parametrize("way", WAYS)
def test_model_of_a_missing_device_loads_and_says_so_when_fitted(way):
    X, y = data("gated")
    model = pickled(fitted("gated")).set_params(device="cuda:97")
    again = way(model)
    assert_kept(model, again, X)
    with pytest.raises(ValueError, match=r"cuda:97.*device='cpu'"):
        again.fit(X, y)
    assert_same(model, again)


# --- what skops has to be told to trust -----------------------------------------------------


@per_case
def test_skops_finds_only_types_of_this_package(case):
    skops = pytest.importorskip("skops.io", reason="skops is not installed")
    file = skops.dumps(fitted(case))
    untrusted = skops.get_untrusted_types(data=file)
    estimator = type(fitted(case))
    assert f"{estimator.__module__}.{estimator.__name__}" in untrusted
    foreign = [name for name in untrusted if not name.startswith("sklearn_convexbn.")]
    # An object that the user passed has its own type.
    assert foreign == (["sklearn.model_selection._split.KFold"] if case == "cv" else [])
    # The estimator, its certificate, `loss_`, `solver_` and one of `solver`, `cv` and `patches`.
    assert len(untrusted) <= 5


def test_skops_refuses_without_trust(tmp_path):
    skops = pytest.importorskip("skops.io", reason="skops is not installed")
    path = tmp_path / "model.skops"
    skops.dump(fitted("pursuit"), path)
    untrusted = skops.get_untrusted_types(file=path)
    with pytest.raises(TypeError, match="Untrusted types"):
        skops.load(path)
    assert_same(fitted("pursuit"), skops.load(path, trusted=untrusted))


def test_callbacks_are_taken_off_before_skops():
    skops = pytest.importorskip("skops.io", reason="skops is not installed")
    callback = pytest.importorskip("sklearn.callback", reason="callbacks: scikit-learn 1.9")
    X, y = data("gated, three classes")
    model = clone(fitted("gated, three classes"))
    model.set_callbacks(callback.ScoringMonitor(scoring="accuracy")).fit(X, y)
    assert_same(outputs(model, X), outputs(pickled(model), X))
    assert_same(outputs(model, X), outputs(through_skops(model), X))
    file = skops.dumps(model.set_callbacks())
    names = skops.get_untrusted_types(data=file)
    assert [name for name in names if not name.startswith("sklearn_convexbn.")] == []


# --- ONNX -----------------------------------------------------------------------------------


def onnx_session(module, X, path):
    """Export a torch module, check the file and return a function that runs it."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason=f"{name} is not installed")
    if parse_version(torch.__version__) < parse_version("2.9"):
        pytest.skip("the torch.export-based exporter is the default from torch 2.9 on")
    import onnx
    import onnxruntime

    with warnings.catch_warnings():
        # torch 2.13 warns of a use of its own that it has deprecated.
        warnings.filterwarnings("ignore", "`isinstance.treespec, LeafSpec.` is", FutureWarning)
        torch.onnx.export(
            module,
            (torch.as_tensor(X[:2]),),
            path,
            dynamo=True,
            dynamic_shapes=({0: "n"},),
            input_names=["X"],
            output_names=["F"],
            external_data=False,
        )
    onnx.checker.check_model(path, full_check=True)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda rows: session.run(None, {"X": rows})[0]


def assert_close(a, b, rtol):
    assert a.shape == b.shape
    np.testing.assert_allclose(a, b, rtol=0, atol=rtol * np.abs(b).max())


@pytest.mark.parametrize(
    "case",
    [
        *("pursuit, two outputs", "pursuit, three classes", "empty", "clip"),
        *("paths", "paths, three classes"),
    ],
)
def test_onnx_in_double_precision(case, tmp_path):
    model, X = fitted(case), data(case)[0]
    module = model.to_torch() if "paths" in case else model.to_torch(fold=True)
    run = onnx_session(module, X, tmp_path / "model.onnx")
    assert os.listdir(tmp_path) == ["model.onnx"]
    raw = model.decision_function if is_classifier(model) else model.predict
    for n in (1, 2, len(X)):
        F, expected = run(X[:n]), raw(X[:n])
        assert F.dtype == np.float64
        assert_close(F.reshape(expected.shape), expected, 1e-12)
    if is_classifier(model):
        assert_close(softmax(F, axis=1), model.predict_proba(X), 1e-12)
        np.testing.assert_array_equal(model.classes_[F.argmax(axis=1)], model.predict(X))


def test_onnx_in_single_precision(tmp_path):
    model, X = fitted("pursuit"), data("pursuit")[0].astype(np.float32)
    run = onnx_session(model.to_torch(fold=True).float(), X, tmp_path / "model.onnx")
    F = run(X)
    assert F.dtype == np.float32
    assert_close(F[:, 0], model.predict(X), 1e-5)


def test_onnx_of_probabilities(tmp_path):
    model, X = fitted("pursuit, two classes"), data("pursuit, two classes")[0]
    network = torch.nn.Sequential(*model.to_torch(fold=True), torch.nn.Sigmoid()).eval()
    run = onnx_session(network, X, tmp_path / "model.onnx")
    probabilities = run(X)
    assert_close(probabilities, model.predict_proba(X)[:, 1:], 1e-12)
    predicted = model.classes_[(probabilities[:, 0] > 0.5).astype(int)]
    np.testing.assert_array_equal(predicted, model.predict(X))


# --- the guide ------------------------------------------------------------------------------


def guide_blocks():
    text = (ROOT / "docs" / "persistence.md").read_text()
    return re.findall(r"```python\n(.*?)```", text, flags=re.S)


def test_guide_runs_as_written(tmp_path, monkeypatch):
    for name in ("skops", "onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason=f"{name} is not installed")
    monkeypatch.chdir(tmp_path)
    exports = parse_version(torch.__version__) >= parse_version("2.9")
    names = {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`isinstance.treespec, LeafSpec.` is", FutureWarning)
        for block in guide_blocks():
            if exports or "torch.onnx" not in block:
                exec(block, names)
    written = {"model.joblib", "model.skops", "model_int8.onnx"} | (
        {"model.onnx"} if exports else set()
    )
    assert {path.name for path in tmp_path.iterdir()} == written


# --- names of features ----------------------------------------------------------------------

FRAMES = [pd.DataFrame, pl.DataFrame]


def frame_of(library, X, names="abcd"):
    return library(dict(zip(names[: X.shape[1]], X.T, strict=True)))


@pytest.mark.parametrize("library", FRAMES)
@pytest.mark.parametrize("way", [lambda model: model, *WAYS])
@pytest.mark.parametrize("case", ["gated", "gated, three classes"])
def test_names_are_learned_kept_and_checked(library, way, case):
    X, y = data(case)
    model = way(clone(fitted(case)).fit(frame_of(library, X), y))
    assert model.feature_names_in_.tolist() == list("abcd"[: X.shape[1]])
    assert len(model.predict(frame_of(library, X))) == len(X)
    for names in ("abxd", "bacd"):
        with pytest.raises(ValueError, match="feature names should match"):
            model.predict(frame_of(library, X, names))
    with pytest.raises(ValueError, match="feature names should match"):
        model.predict(frame_of(library, X[:, :2], "ab"))
    with pytest.warns(UserWarning, match="X does not have valid feature names"):
        model.predict(X)


def test_arrays_leave_no_names():
    model = clone(fitted("gated")).fit(frame_of(pd.DataFrame, data("gated")[0]), data("gated")[1])
    model.fit(*data("gated"))
    assert not hasattr(model, "feature_names_in_")
    with pytest.warns(UserWarning, match="fitted without feature names"):
        model.predict(frame_of(pd.DataFrame, data("gated")[0]))


@pytest.mark.parametrize("case", ["gated", "gated, three classes"])
@pytest.mark.parametrize("container", ["pandas", "polars"])
def test_set_output_concerns_the_steps_before(case, container):
    X, y = data(case)
    model = clone(fitted(case))
    # Nothing to configure: these are no transformers, and predictions are arrays.
    for name in ("set_output", "transform", "get_feature_names_out"):
        assert not hasattr(model, name)
    pipeline = make_pipeline(StandardScaler(), model).set_output(transform=container)
    pipeline.fit(frame_of(pd.DataFrame, X), y)
    assert model.feature_names_in_.tolist() == list("abcd"[: X.shape[1]])
    assert isinstance(pipeline.predict(frame_of(pd.DataFrame, X)), np.ndarray)


# --- parameters, text and HTML --------------------------------------------------------------


@pytest.mark.parametrize("estimator", [ConvexBNRegressor, ConvexBNClassifier])
def test_text_is_the_constructor_call(estimator):
    assert repr(estimator()) == f"{estimator.__name__}()"
    model = estimator(0.1, n_components=3, solver=Pursuit(n_starts=50), device="cuda")
    expected = (
        f"{estimator.__name__}(alpha=0.1, device='cuda', n_components=3, "
        "solver=Pursuit(n_starts=50))"
    )
    assert re.sub(r"\s+", " ", repr(model)) == expected
    assert_same(eval(repr(model)), model)
    assert model.get_params()["solver__n_starts"] == 50
    assert "solver__n_starts" not in model.get_params(deep=False)


@pytest.mark.parametrize("case", ["pursuit", "pursuit, squared error", "cv, classes"])
def test_html_shows_parameters_and_fitted_attributes(case):
    model = fitted(case)
    html = estimator_html_repr(model)
    assert model._repr_mimebundle_().keys() == {"text/plain", "text/html"}
    assert type(model).__name__ in html
    for name in model.get_params(deep=False):
        assert re.search(rf'class="param">\s*(<a[^>]*>)?\s*{name}\b', html), name
    # An estimator of this package has no page in scikit-learn's documentation.
    assert 'href="https://scikit-learn.org' not in html


def fitted_attributes(model):
    return [name for name in dir(model) if name.endswith("_") and not name.startswith("_")]


@pytest.mark.skipif(SKLEARN < (1, 9), reason="fitted attributes: scikit-learn 1.9")
@per_case
def test_html_lists_the_fitted_attributes(case):
    model = fitted(case)
    html = estimator_html_repr(model)
    for name in fitted_attributes(model):
        assert re.search(rf">\s*{name}\b", html), name
    assert "coefs_" not in estimator_html_repr(clone(model))


@pytest.mark.skipif(SKLEARN < (1, 9), reason="texts of attributes: scikit-learn 1.9")
@pytest.mark.parametrize("case", ["pursuit", "gated, three classes", "cv", "cv, classes", "paths"])
def test_html_can_explain_every_parameter_and_attribute(case):
    # Texts are shown where there is a page to link to, as in the gallery.
    model = copy(fitted(case))
    model._doc_link_template = "../generated/{estimator_module}.{estimator_name}.html"
    html = estimator_html_repr(model)
    link = f"../generated/sklearn_convexbn.{type(model).__name__}.html"
    assert f'href="{link}">' in html
    names = {*model.get_params(deep=False), *fitted_attributes(model)}
    if "cv" in names:  # its page refers to that of the plain estimator for the others
        plain = "gated, three classes" if is_classifier(model) else "gated"
        names -= set(fitted_attributes(fitted(plain)))
    for name in names:
        assert f'href="{link}#:~:text={name},-' in html, name
        text = re.search(rf"position-anchor: --doc-link-{name};\">\s*{name}: (.*?)</span>", html)
        assert text, name
        assert text[1].split("<br><br>")[0], f"{name} has no type"

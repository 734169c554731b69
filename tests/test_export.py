"""Files of 8-bit integers: what onnxruntime makes of them."""

import importlib.util

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_digits, load_iris
from sklearn.neural_network import MLPClassifier

from sklearn_convexbn import ConvexBNClassifier, ConvexBNRegressor, Patches, export_int8
from sklearn_convexbn.fit._quantized import rescaled, rounded_weights

onnx = pytest.importorskip("onnx", reason="onnx, of the extra onnx, is not installed")
onnxruntime = pytest.importorskip(
    "onnxruntime", reason="onnxruntime, of the extra onnx, is not installed"
)


def outputs(path, X):
    onnx.checker.check_model(onnx.load(path))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (F,) = session.run(None, {"X": np.asarray(X, dtype=np.float32)})
    return F


def network(model, X):
    W, V = model.coefs_
    return np.maximum(X @ W + model.intercepts_[0], 0) @ V + model.intercepts_[1]


@pytest.mark.parametrize("load", [load_breast_cancer, load_iris])
def test_classes_are_those_of_the_estimator(load, tmp_path):
    X, y = load(return_X_y=True)
    model = ConvexBNClassifier(0.03, shrinkage=0.1, tol=0.1, random_state=0).fit(X, y)
    export_int8(model, X, tmp_path / "model.onnx")
    F, expected = outputs(tmp_path / "model.onnx", X), network(model, X)
    assert np.abs(F - expected).mean() <= 0.03 * np.abs(expected).mean()
    codes = 1 * (F[:, 0] > 0) if F.shape[1] == 1 else F.argmax(axis=1)
    assert abs((codes == y).mean() - model.score(X, y)) <= 0.005


def test_values_of_a_regressor_are_near_and_units_of_columns_do_not_matter(tmp_path, diabetes):
    X, y = diabetes
    X = X * np.logspace(-5, 5, 10) + np.arange(10)
    model = ConvexBNRegressor(0.1, random_state=0).fit(X, y)
    export_int8(model, X[:200], str(tmp_path / "model.onnx"))
    F = outputs(tmp_path / "model.onnx", X[:200])[:, 0]
    assert np.sqrt(np.mean((F - model.predict(X[:200])) ** 2)) <= 0.05 * y.std()


def test_both_layers_run_in_integers_and_take_a_quarter(tmp_path, digits):
    X, y = digits
    model = MLPClassifier((200,), max_iter=5, tol=100.0, n_iter_no_change=10, random_state=0)
    with pytest.warns(match="Maximum iterations"):
        model.fit(X, y)
    path = tmp_path / "model.onnx"
    export_int8(model, X, path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert kinds == ["Sub", "Mul", "QuantizeLinear", "QGemm", "QGemm"]
    weights = sum(A.size for A in model.coefs_ + model.intercepts_)
    assert path.stat().st_size <= 4 * weights * 0.25 + 20 * 210 + 2500
    F = outputs(path, X)
    assert (F.argmax(axis=1) == model.predict(X)).mean() >= 0.99
    with pytest.raises(TypeError, match="network must be"):
        export_int8(model.coefs_, X, path)


def test_rescaled_network_is_the_same_function_with_units_of_range_one():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(50, 4)) * [1, 10, 0.1, 0] + [5, 0, 0, 3]
    W, w0 = rng.normal(size=(4, 6)), rng.normal(size=6)
    W[:, 2] = 0.0
    V, v0 = rng.normal(size=(6, 2)), rng.normal(size=2)
    r = rescaled([W, V], [w0, v0], X)
    hidden = np.maximum(((X - r.offset) * r.factor) @ r.W + r.w0, 0)
    np.testing.assert_allclose(hidden @ r.V + r.v0, np.maximum(X @ W + w0, 0) @ V + v0, rtol=1e-9)
    assert hidden.max() == pytest.approx(1.0)
    assert r.W.shape[1] <= 5


def test_rounding_with_feedback_is_better_than_to_the_nearest():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 3)) @ rng.normal(size=(3, 20)) + 0.05 * rng.normal(size=(300, 20))
    A = rng.normal(size=(20, 5))
    codes, scale = rounded_weights(A, np.zeros(5), x.T @ x / 300)
    nearest = np.rint(A / scale) * scale
    assert np.abs(codes).max() <= 127
    assert np.linalg.norm(x @ (codes * scale - A)) <= 0.6 * np.linalg.norm(x @ (nearest - A))


def test_large_offsets_stay_integers(tmp_path):
    X = np.linspace(0, 1, 50)[:, None]
    _, scale = rounded_weights(np.full((1, 1), 1e-9), np.array([5.0]), np.eye(1))
    assert abs(5.0 * 255 / scale[0]) <= 2**31
    model = ConvexBNRegressor(0.01, random_state=0).fit(X, np.abs(X[:, 0] - 0.5))
    export_int8(model, X, tmp_path / "a.onnx")
    np.testing.assert_allclose(outputs(tmp_path / "a.onnx", X)[:, 0], model.predict(X), atol=0.02)


def test_empty_network_is_its_intercept(tmp_path, iris):
    X, y = iris
    model = ConvexBNClassifier(100.0, random_state=0).fit(X, y)
    export_int8(model, X, tmp_path / "a.onnx")
    np.testing.assert_allclose(outputs(tmp_path / "a.onnx", X), network(model, X), atol=1e-6)


def test_what_cannot_be_exported_is_refused(tmp_path, monkeypatch):
    X, y = load_digits(n_class=2, return_X_y=True)
    X, y = X[:60], y[:60]
    gated = ConvexBNClassifier(0.3, activation="gated_relu", n_gates=5, random_state=0).fit(X, y)
    with pytest.raises(ValueError, match="export_int8 needs activation='relu'"):
        export_int8(gated, X, tmp_path / "a.onnx")
    images = ConvexBNClassifier(
        0.3, patches=Patches((8, 8), size=4, stride=4), tol=0.5, random_state=0
    )
    with pytest.raises(ValueError, match="dense network"):
        export_int8(images.fit(X, y), X, tmp_path / "a.onnx")
    plain = ConvexBNClassifier(0.3, tol=0.5, random_state=0).fit(X, y)
    with pytest.raises(ValueError, match="X has 3 features"):
        export_int8(plain, X[:, :3], tmp_path / "a.onnx")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="needs onnx"):
        export_int8(plain, X, tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())

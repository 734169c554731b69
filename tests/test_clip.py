"""Networks that clip the whitened coordinates of new rows to their range in training."""

from copy import copy

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.base import clone, is_classifier

from sklearn_convexbn import (
    ConvexBNClassifier,
    ConvexBNClassifierCV,
    ConvexBNRegressor,
    ConvexBNRegressorCV,
    ConvexBNTransformer,
    Patches,
    certified_radius,
    certify,
    conditioning,
    export_int8,
    lipschitz_bound,
    replace_head,
)
from tests.helpers import output_with_array_api, whiten
from tests.test_persistence import onnx_session

N, D = 120, 5


def rows(n=N, d=D, seed=0):
    """Return rows whose columns have other units, offsets and correlations."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) * np.logspace(-1, 1, d) + np.arange(d)


def targets(X, kind):
    u = (X - X.mean(axis=0)) / X.std(axis=0)
    f = np.abs(u[:, 0]) - u[:, 1] + 0.3 * u[:, 2] ** 2
    return {
        "one output": f,
        "two outputs": np.c_[f, u[:, 1] ** 2],
        "counts": np.round(np.exp(0.5 * f)),
        "two classes": np.where(f > 0, "yes", "no"),
        "three classes": np.digitize(f, [-0.5, 0.7]),
    }[kind]


CASES = {
    "one output": ("one output", {}),
    "two outputs": ("two outputs", {"shrinkage": 0.0}),
    "counts": ("counts", {"loss": "poisson"}),
    "two classes": ("two classes", {"n_components": 3}),
    "three classes": ("three classes", {"shrinkage": 0.3}),
    "gates": ("one output", {"activation": "gated_relu", "n_gates": 20}),
    "empty": ("one output", {"alpha": 1e3}),
}


def model(case, **parameters):
    kind, own = CASES[case]
    cls = ConvexBNClassifier if "classes" in kind else ConvexBNRegressor
    return cls(**{"alpha": 0.03, "random_state": 0, **own, **parameters})


def output(fitted, X):
    """Return the network's output (n, C), by public methods."""
    if is_classifier(fitted):
        F = fitted.decision_function(X)
    elif fitted.loss == "poisson":
        F = np.log(fitted.predict(X))
    else:
        F = fitted.predict(X)
    return F.reshape(len(F), -1)


def by_hand(fitted, X, X_train, weights=None):
    """Return the output on rows whose coordinates are whitened and clipped without the package.

    The coordinates are those of `coefs_`, which depends on rows only through them.
    """
    A, a = fitted.whitening_["coefs"], fitted.whitening_["intercepts"]
    kept = X_train if weights is None else X_train[weights > 0]
    low, high = (kept @ A + a).min(axis=0), (kept @ A + a).max(axis=0)
    Z = np.clip(X @ A + a, low, high)
    # A row that has these coordinates: the nearest to the mean.
    row = (Z - a) @ np.linalg.pinv(A)
    (W, V), (w0, v0) = fitted.coefs_, fitted.intercepts_
    hidden = row @ W + w0
    if fitted.activation == "relu":
        return np.maximum(hidden, 0.0) @ V + v0
    return hidden * (row @ fitted.gates_[:-1] + fitted.gates_[-1] >= 0) @ V + v0


def far_rows(X, scale=1e3, n=50, seed=1):
    directions = np.random.default_rng(seed).normal(size=(n, X.shape[1]))
    return X.mean(axis=0) + scale * X.std(axis=0) * directions


def close(found, expected, rtol):
    np.testing.assert_allclose(found, expected, rtol=0, atol=rtol * np.abs(expected).max())


@pytest.mark.parametrize("case", CASES)
def test_predictions_are_the_same_on_training_rows_and_bounded_far_away(case):
    X = rows()
    y = targets(X, CASES[case][0])
    fitted, plain = model(case, clip=True).fit(X, y), model(case).fit(X, y)
    close(output(fitted, X), output(plain, X), 1e-9)
    for a, b in zip(fitted.coefs_, plain.coefs_, strict=True):
        np.testing.assert_array_equal(a, b)
    assert fitted.whitened_range_.shape == (2, fitted.n_components_)
    far = far_rows(X)
    F = output(fitted, far)
    close(F, by_hand(fitted, far, X), 1e-9)
    close(output(fitted, 1e6 * far), by_hand(fitted, 1e6 * far, X), 1e-9)
    if fitted.n_neurons_:
        W, V = fitted.whitening_["hidden_coefs"], fitted.coefs_[1]
        shift, size = fitted.batch_norm_["shift"], np.abs(fitted.whitened_range_).max(axis=0)
        bound = np.abs(fitted.intercepts_[1]) + (np.abs(W.T) @ size + np.abs(shift)) @ np.abs(V)
        assert (np.abs(F) <= bound).all()
        if fitted.loss != "poisson":
            assert (np.abs(output(plain, far)).max(axis=0) > bound).all()


def test_range_is_that_of_the_whitened_training_rows():
    X = rows()
    fitted = model("one output", clip=True, shrinkage=0.2).fit(X, targets(X, "one output"))
    Z, _ = whiten(X, np.ones(N), shrinkage=0.2)
    np.testing.assert_allclose(fitted.whitened_range_[0], Z[:, :-1].min(axis=0), atol=1e-10)
    np.testing.assert_allclose(fitted.whitened_range_[1], Z[:, :-1].max(axis=0), atol=1e-10)


def test_output_is_that_of_a_singular_value_decomposition_clipped():
    X = rows()
    fitted = model("two outputs", clip=True).fit(X, targets(X, "two outputs"))
    far, mean = far_rows(X), X.mean(axis=0)
    _, S, Vt = np.linalg.svd(X - mean, full_matrices=False)
    low, high = (Z := (X - mean) @ Vt.T / S * np.sqrt(N)).min(axis=0), Z.max(axis=0)
    clipped = np.clip((far - mean) @ Vt.T / S * np.sqrt(N), low, high)
    row = mean + clipped * S / np.sqrt(N) @ Vt
    hidden = np.maximum(row @ fitted.coefs_[0] + fitted.intercepts_[0], 0.0)
    close(fitted.predict(far), hidden @ fitted.coefs_[1] + fitted.intercepts_[1], 1e-9)


def test_rows_of_no_weight_do_not_count():
    X, weights = rows(), np.ones(N)
    y = targets(X, "one output")
    weights[:5] = 0.0
    X[:5] = far_rows(X, n=5)
    fitted = model("one output", clip=True).fit(X, y, weights)
    without = model("one output", clip=True).fit(X[5:], y[5:])
    np.testing.assert_array_equal(fitted.whitened_range_, without.whitened_range_)
    close(output(fitted, X), by_hand(fitted, X, X, weights), 1e-9)


@pytest.mark.parametrize("kind", ["one output", "three classes"])
def test_more_columns_than_rows(kind):
    X = rows(30, 60)
    fitted, plain = (model(kind, clip=clip).fit(X, targets(X, kind)) for clip in (True, False))
    assert fitted.whitened_range_.shape == (2, fitted.n_components_) == (2, 29)
    close(output(fitted, X), output(plain, X), 1e-9)
    far = far_rows(X)
    close(output(fitted, far), by_hand(fitted, far, X), 1e-9)


@pytest.mark.parametrize("d", [D, 1200])
def test_sparse_and_single_precision_rows(d):
    rng = np.random.default_rng(0)
    X = np.where(rng.random((60, d)) < 0.3, rng.normal(size=(60, d)), 0.0).astype(np.float32)
    y = X[:, 0] + np.abs(X[:, 1])
    dense = model("one output", clip=True).fit(X.astype(np.float64), y)
    far = (100 * rng.normal(size=(20, d))).astype(np.float32)
    for given in (X, sparse.csr_array(X), sparse.csc_matrix(X.astype(np.float64))):
        fitted = model("one output", clip=True).fit(given, y)
        assert fitted.whitened_range_ == pytest.approx(dense.whitened_range_, rel=1e-6, abs=1e-6)
        close(fitted.predict(far), dense.predict(far), 1e-4)
        close(fitted.predict(sparse.csr_array(far)), fitted.predict(far), 1e-9)


def test_columns_that_do_not_vary_leave_nothing_to_clip():
    fitted = model("one output", clip=True).fit(np.ones((10, 2)), np.arange(10.0))
    assert fitted.whitened_range_.shape == (2, 0)
    np.testing.assert_allclose(fitted.predict([[1.0, 1.0], [5.0, -3.0]]), 4.5)
    far = torch.tensor([[5.0, -3.0]], dtype=torch.float64)
    assert fitted.to_torch()(far).item() == pytest.approx(4.5)
    assert lipschitz_bound(fitted) == 0.0


def test_blocks_of_rows_are_clipped_alike():
    X = rows(2000)
    y = targets(X, "one output")
    fitted = model("one output", clip=True, tol=0.5).fit(X, y)
    many = np.tile(far_rows(X), (600, 1))
    predicted = fitted.predict(many).reshape(600, -1)
    close(predicted, np.tile(fitted.predict(many[:50]), (600, 1)), 1e-12)


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("case", ["one output", "two outputs", "two classes", "three classes"])
def test_torch_module_clips(case, fold):
    X = rows()
    fitted = model(case, clip=True).fit(X, targets(X, CASES[case][0]))
    network = fitted.to_torch(fold=fold)
    kinds = ["Linear", "Hardtanh", "Linear", "BatchNorm1d", "ReLU", "Linear"]
    if fold:
        kinds.remove("BatchNorm1d")
    assert [type(layer).__name__ for layer in network] == kinds
    for given in (X, far_rows(X)):
        with torch.no_grad():
            close(network(torch.as_tensor(given)).numpy(), output(fitted, given), 1e-9)
    if not fold:
        with torch.no_grad():
            F = network.train()(torch.as_tensor(X)).numpy()
        close(F, output(fitted, X), 1e-9)


@pytest.mark.parametrize("precision", [np.float64, np.float32])
def test_onnx_file_clips(precision, tmp_path):
    X = rows()
    fitted = model("three classes", clip=True).fit(X, targets(X, "three classes"))
    network = fitted.to_torch(fold=True)
    network = network if precision is np.float64 else network.float()
    run = onnx_session(network, X.astype(precision), tmp_path / "model.onnx")
    for given in (X, far_rows(X)):
        close(run(given.astype(precision)), output(fitted, given), 1e-5)


@pytest.mark.parametrize("kind", ["one output", "three classes"])
def test_cross_validation_clips_in_folds_and_in_the_end(kind):
    X = rows()
    X[::7] *= 30.0  # rows that are far from the others of their folds
    y = targets(X, kind)
    cls = ConvexBNClassifierCV if "classes" in kind else ConvexBNRegressorCV
    search = cls([0.1, 0.03], cv=3, shrinkage=[0.0, 0.1], random_state=0)
    fitted, plain = clone(search).set_params(clip=True).fit(X, y), clone(search).fit(X, y)
    name = "scores_" if "classes" in kind else "mse_path_"
    assert (getattr(fitted, name) != getattr(plain, name)).any()
    train, test = np.flatnonzero(np.arange(N) % 3), np.arange(0, N, 3)
    # A convex program, so that a path and a fit end with the same network.
    same = {"clip": True, "activation": "gated_relu", "n_gates": 20, "tol": 1e-6}
    one = cls([0.1], cv=[(train, test)], fold_tol=0.0, random_state=0, **same).fit(X, y)
    alone = model(kind, **{**CASES[kind][1], **same, "alpha": 0.1, "shrinkage": "eps"})
    alone.fit(X[train], y[train])
    if name == "mse_path_":
        expected = np.mean((alone.predict(X[test]) - y[test]) ** 2)
    else:
        expected = alone.score(X[test], y[test])
    assert getattr(one, name).item() == pytest.approx(expected, rel=1e-3)
    far = far_rows(X)
    close(output(fitted, far), by_hand(fitted, far, X), 1e-9)


def test_refits_replace_what_was_learned():
    X = rows()
    y = targets(X, "one output")
    estimator = model("one output", clip=True)
    assert clone(estimator).get_params()["clip"] is True
    estimator.fit(X, y)
    estimator.set_params(clip=False).fit(X, y)
    assert not hasattr(estimator, "whitened_range_")
    assert not hasattr(estimator, "whitening_")
    far = far_rows(X)
    close(estimator.predict(far), model("one output").fit(X, y).predict(far), 1e-12)
    again = model("one output", clip=True, warm_start=True).fit(X, y).fit(X, y)
    close(output(again, far), by_hand(again, far, X), 1e-9)


def test_patches_and_other_values_are_refused():
    X = rows(20, 16)
    y = targets(X, "one output")
    for cls in (ConvexBNRegressor, ConvexBNRegressorCV):
        estimator = cls(clip=True, patches=Patches((4, 4), size=2))
        before = dict(vars(estimator))
        with pytest.raises(ValueError, match="clip=True needs patches=None"):
            estimator.fit(X, y)
        assert vars(estimator) == before
        with pytest.raises(ValueError, match="The 'clip' parameter"):
            cls(clip="yes").fit(X, y)


def test_int8_is_refused(tmp_path):
    pytest.importorskip("onnx", reason="onnx is not installed")
    X = rows()
    fitted = model("one output", clip=True).fit(X, targets(X, "one output"))
    with pytest.raises(ValueError, match="export_int8 needs a network of clip=False"):
        export_int8(fitted, X, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_certify_judges_on_rows_that_are_not_clipped():
    X = rows()
    y = targets(X, "one output")
    fitted, plain = model("one output", clip=True).fit(X, y), model("one output").fit(X, y)
    judged, expected = (
        certify(each, X, y, alpha=0.03, effort=500, random_state=0) for each in (fitted, plain)
    )
    assert judged.primal == pytest.approx(expected.primal, rel=1e-12)
    assert judged.gap == pytest.approx(expected.gap, rel=1e-6)
    assert judged.primal == pytest.approx(fitted.objective_, rel=1e-6)
    moved = np.vstack([X, far_rows(X, n=3)])
    values = np.append(y, np.zeros(3))
    with pytest.raises(ValueError, match=r"inside the range .* 3 of 123 distinct rows are outside"):
        certify(fitted, moved, values, alpha=0.03)
    with pytest.raises(ValueError, match="conditioning judges a network of clip=True"):
        conditioning(fitted, moved, values)


@pytest.mark.parametrize("shrinkage", [0.0, 0.5])
def test_lipschitz_bounds_hold(shrinkage):
    X = rows()
    y = targets(X, "two outputs")
    fitted = model("two outputs", clip=True, shrinkage=shrinkage).fit(X, y)
    plain = copy(fitted)
    del plain.whitened_range_
    bound = lipschitz_bound(fitted)
    rng = np.random.default_rng(0)
    x = np.vstack([X, far_rows(X, 3.0)])
    step = 10.0 ** rng.uniform(-3, 1, (len(x), 1)) * rng.normal(size=x.shape) * X.std(axis=0)
    z = x + step
    change = np.linalg.norm(fitted.predict(x) - fitted.predict(z), axis=1)
    assert (change <= bound * np.linalg.norm(step, axis=1)).all()
    # Along the gradients, by the Jacobian of the torch module, which is that of the network.
    network = fitted.to_torch(fold=True)
    jacobians = torch.func.vmap(torch.func.jacrev(network))(torch.as_tensor(x)).detach().numpy()
    norms = np.linalg.norm(jacobians, 2, axis=(1, 2))
    assert (norms <= lipschitz_bound(fitted, x) * (1 + 1e-6)).all()
    assert norms.max() > 0.05 * bound
    if shrinkage == 0.0:  # the directions are orthonormal
        assert bound == pytest.approx(lipschitz_bound(plain), rel=0.1)
    for radius in (0.1, 1.0):
        near = x[:40] + radius * 0.999 * unit(rng.normal(size=(40, D)))
        change = np.linalg.norm(fitted.predict(near) - fitted.predict(x[:40]), axis=1)
        assert (change <= lipschitz_bound(fitted, x[:40], radius=radius) * radius).all()


def unit(A):
    return A / np.linalg.norm(A, axis=1, keepdims=True)


@pytest.mark.parametrize("kind", ["two classes", "three classes"])
def test_class_is_the_same_within_the_radius(kind):
    X = rows(d=2) if kind == "two classes" else rows()
    y = np.where(X[:, 0] > X[:, 1] * 0.1, "a", "b") if X.shape[1] == 2 else targets(X, kind)
    fitted = ConvexBNClassifier(0.03, clip=True, random_state=0).fit(X, y)
    x = np.vstack([X[:60], far_rows(X, 2.0)])
    radius = certified_radius(fitted, x)
    assert (radius > 0).mean() > 0.9
    rng = np.random.default_rng(0)
    reach = np.minimum(radius, 1e6)[:, None]
    for _ in range(200):
        moved = x + 0.999 * reach * unit(rng.normal(size=x.shape))
        np.testing.assert_array_equal(fitted.predict(moved), fitted.predict(x))
    # The radius is of use: a step of several times its length does change classes.
    changed = np.zeros(len(x), dtype=bool)
    for _ in range(200):
        moved = x + 10 * reach * unit(rng.normal(size=x.shape))
        changed |= fitted.predict(moved) != fitted.predict(x)
    assert changed.mean() > 0.3


def test_hidden_activations_and_heads_are_of_clipped_rows():
    X = rows()
    y = targets(X, "one output")
    layer = ConvexBNTransformer(model("one output", clip=True)).fit(X, y)
    fitted, far = layer.estimator_, far_rows(X)
    H = layer.transform(far)
    close(H @ fitted.coefs_[1] + fitted.intercepts_[1], output(fitted, far), 1e-12)
    network, head = replace_head(
        torch.nn.Identity(), X, y, estimator=model("one output", clip=True)
    )
    with torch.no_grad():
        close(network(torch.as_tensor(far)).numpy(), output(head, far), 1e-9)


CODE = """
import numpy as np, torch
from sklearn import config_context
from tests.test_clip import far_rows, model, rows, targets
X = rows()
y, far = targets(X, "one output"), far_rows(X)
with config_context(array_api_dispatch=True):
    fitted = model("one output", clip=True).fit(torch.as_tensor(X), torch.as_tensor(y))
    found = fitted.predict(torch.as_tensor(far))
assert isinstance(found, torch.Tensor)
expected = fitted.predict(far)
np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9)
unclipped = fitted.set_params(clip=False).fit(X, y).predict(far)
assert np.abs(unclipped - expected).max() > 0.1 * np.abs(expected).max()
print("done")
"""


def test_tensors_are_clipped_alike():
    pytest.importorskip("array_api_compat")
    assert output_with_array_api(CODE).split() == ["done"]

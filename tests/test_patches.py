"""Convolutional networks: patches, pooling, the estimators and their certificates."""

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV

from sklearn_convexbn import (
    ConvergenceDisplay,
    ConvexBNClassifier,
    ConvexBNClassifierCV,
    ConvexBNRegressor,
    ConvexBNRegressorCV,
    ConvexBNTransformer,
    Patches,
    RegularizationPathDisplay,
    SpectrumDisplay,
    alpha_max,
    certify,
    convexbn_path,
    solvers,
)
from sklearn_convexbn.data._patches import PatchGrid, PatchRows, images_as_rows, patch_grid
from sklearn_convexbn.data._pooling import IDENTITY, Pooling, grid_pooling, pooling_window
from sklearn_convexbn.data._rows import Rows
from sklearn_convexbn.losses._base import LOSSES
from sklearn_convexbn.program._arrangements import distinct_gates, random_directions
from sklearn_convexbn.program._problem import Problem
from sklearn_convexbn.program.units._activations import ComputedActivations
from sklearn_convexbn.program.units._whitened import WhitenedUnits
from sklearn_convexbn.search._search import Effort, Search
from sklearn_convexbn.solvers import Pursuit
from sklearn_convexbn.solvers._multi_output_refit import multi_output_refit
from sklearn_convexbn.support._sharding import ALL_HERE
from tests.helpers import random_neurons, solve, targets, whiten

PATCHES = PatchGrid(
    (5, 6, 2), patch_shape=(3, 2), stride=(2, 2), pool_shape=(1, 2), pool_stride=(1, 1)
)


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return X[:150], y[:150]


def images(n=7, seed=0):
    return np.random.default_rng(seed).normal(size=(n, 5 * 6 * 2))


def cut_by_hand(X, patches):
    height, width = patches.patch_shape
    cut = []
    for image in X.reshape(-1, *patches.image_shape):
        for top in range(0, image.shape[0] - height + 1, patches.stride[0]):
            for left in range(0, image.shape[1] - width + 1, patches.stride[1]):
                cut.append(image[top : top + height, left : left + width].ravel())
    return np.array(cut)


def cell_pooling(grid, cells):
    """Return the pooling of a grid of patches to `cells` x `cells`."""
    shape, stride = zip(*(pooling_window(n, cells) for n in grid), strict=True)
    return grid_pooling(grid, shape, stride)


def conv_problem(loss="softmax", C=3, n=40, cells=2, alpha=0.02, seed=0, **changes):
    """State a convolutional problem; returns it with its whitening."""
    rng = np.random.default_rng(seed)
    patches = patch_grid(Patches(size=3, pooling=cells), (5, 5, 1))
    X = rng.normal(size=(n, 25))
    Z, whitening = whiten(PatchRows(Rows(X), patches), np.ones(9 * n), n_components=4)
    problem = Problem(
        units=WhitenedUnits(Z, ALL_HERE, patches.pooling),
        Y=targets(rng, n, loss, C),
        p=np.full(n, 1 / n),
        loss=LOSSES[loss],
        alpha=alpha,
        fit_intercept=changes.get("fit_intercept", True),
        activation="relu",
        gates=None,
        all_arrangements=False,
        spectrum=whitening.spectrum,
        shards=ALL_HERE,
    )
    return problem, whitening


# ------------------------------------------------------------------------ patches and pooling


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_patches_are_cut_row_by_row_with_channels_last(kind):
    X = images()
    np.testing.assert_array_equal(np.asarray(PATCHES.cut(kind(X))), cut_by_hand(X, PATCHES))
    assert PATCHES.grid == (2, 3)


@pytest.mark.parametrize(("start", "stop"), [(0, 42), (3, 4), (5, 31), (12, 12)])
def test_rows_of_patches_are_read_anywhere(start, stop):
    X = images()
    rows = PatchRows(Rows(X), PATCHES)
    assert rows.shape == (42, 12)
    np.testing.assert_array_equal(rows[slice(start, stop)], cut_by_hand(X, PATCHES)[start:stop])


def test_whitened_patches_have_unit_covariance_over_all_patches_of_weighted_images():
    X, weights = images(50), np.random.default_rng(1).uniform(0.5, 2.0, size=50)
    p = np.repeat(weights / 6, 6)
    Z, _ = whiten(PatchRows(Rows(X), PATCHES), p)
    np.testing.assert_allclose(Z.T @ (p[:, None] * Z) / p.sum(), np.eye(13), atol=1e-10)


def test_normalized_patches_have_mean_zero_and_do_not_depend_on_contrast():
    patches = patch_grid(Patches(size=3, normalize=True), (5, 5, 1))
    X = images(4)[:, :25]
    cut = patches.cut(X)
    np.testing.assert_allclose(cut.mean(axis=1), 0.0, atol=1e-12)
    np.testing.assert_allclose(patches.cut(3.0 * X + 7.0), cut, atol=1e-12)
    assert np.isfinite(patches.cut(np.ones((1, 25)))).all()


@pytest.mark.parametrize(("grid", "cells"), [((4, 6), 2), ((5, 7), 3), ((3, 3), 1), ((2, 2), 2)])
def test_pooling_is_that_of_an_average_pooling_layer(grid, cells):
    pooling = cell_pooling(grid, cells)
    H = np.random.default_rng(0).normal(size=(3 * grid[0] * grid[1], 5))
    maps = torch.as_tensor(H).reshape(3, *grid, 5).permute(0, 3, 1, 2)
    strides = [n // cells for n in grid]
    kernel = [n - (cells - 1) * s for n, s in zip(grid, strides, strict=True)]
    expected = torch.nn.functional.avg_pool2d(maps, kernel, strides).flatten(2).transpose(1, 2)
    np.testing.assert_allclose(pooling.pool(H), expected.numpy(), atol=1e-12)
    np.testing.assert_allclose(pooling.weights.sum(axis=0), 1.0)


@pytest.mark.parametrize("pooling", [IDENTITY, cell_pooling((3, 4), 2), cell_pooling((2, 2), 1)])
def test_spread_is_the_adjoint_of_pool(pooling):
    rng = np.random.default_rng(0)
    H = rng.normal(size=(5 * pooling.n_patches, 3))
    S = rng.normal(size=(5, pooling.n_cells, 3))
    assert np.vdot(pooling.pool(H), S) == pytest.approx(np.vdot(H, pooling.spread(S)))
    product = pooling.multiply_spread(H.copy(), S)
    np.testing.assert_allclose(product, H * pooling.spread(S), atol=1e-12)


# ----------------------------------------------------- the layer against a row for each patch


def layers(cells, C, n=11, seed=0):
    """Return a pooled layer, the dense layer on its patches, a dual point on both, directions."""
    rng, pooling = np.random.default_rng(seed), cell_pooling((3, 3), cells)
    Z, Q = torch.as_tensor(rng.normal(size=(n * 9, 4))), torch.as_tensor(rng.normal(size=(4, 6)))
    Lambda = torch.as_tensor(rng.normal(size=(n, C)))
    spread = pooling.of_rows(Lambda, torch.arange(n * 9))
    return WhitenedUnits(Z, ALL_HERE, pooling), WhitenedUnits(Z, ALL_HERE), Lambda, spread, Q


@pytest.mark.parametrize(("cells", "C"), [(1, 1), (1, 3), (2, 1), (2, 3)])
def test_correlations_and_ascent_are_those_of_a_dense_layer_on_patches(cells, C):
    layer, dense, Lambda, spread, Q = layers(cells, C, n=1000)  # several blocks
    expected = dense.correlations(spread, Q)
    torch.testing.assert_close(layer.correlations(Lambda, Q), expected)
    for found, wanted in zip(layer.ascent(Lambda, Q), dense.ascent(spread, Q), strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(("loss", "C"), [("squared", 1), ("squared", 2), ("softmax", 3)])
@pytest.mark.parametrize("cells", [1, 2])
def test_loss_and_gradients_are_those_of_automatic_differentiation(loss, C, cells):
    rng, pooling = np.random.default_rng(0), cell_pooling((3, 3), cells)
    Z, Q = torch.as_tensor(rng.normal(size=(11 * 9, 4))), torch.as_tensor(rng.normal(size=(4, 6)))
    V, b = (torch.as_tensor(rng.normal(size=s)) for s in ((6, cells**2 * C), (C,)))
    Y, p = torch.as_tensor(targets(rng, 11, loss, C)), torch.full((11,), 1 / 11).double()
    value, *found = WhitenedUnits(Z, ALL_HERE, pooling).loss(LOSSES[loss], Y, p, Q, V, b)
    for a in (Q, V, b):
        a.requires_grad_()
    pooled = torch.as_tensor(pooling.weights).T @ (Z @ Q).clamp_min(0).reshape(11, 9, 6)
    F = torch.einsum("ngm,mgc->nc", pooled, V.reshape(6, cells**2, C)) + b
    if loss == "squared":
        expected = 0.5 * (p @ ((F - Y) ** 2).sum(dim=1))
    else:
        expected = -p @ (Y * F.log_softmax(dim=1)).sum(dim=1)
    expected.backward()
    assert value == pytest.approx(float(expected.detach()))
    for gradient, a in zip(found, (Q, V, b), strict=True):
        torch.testing.assert_close(gradient, a.grad)


def test_activations_of_pooled_units_stored_or_computed_have_a_column_for_each_cell():
    layer, _, _, _, Q = layers(2, 3)
    stored = layer.activations(Q)
    computed = ComputedActivations(layer._features, Q, 11, ALL_HERE, 4)
    assert stored.shape == computed.shape == (11, 24)
    V = torch.as_tensor(np.random.default_rng(1).normal(size=(6, 4 * 3)))
    torch.testing.assert_close(stored.fit(V.reshape(24, 3)), layer.fit(Q, V))
    units, G = torch.tensor([4, 1]), torch.as_tensor(np.random.default_rng(2).normal(size=(11, 3)))
    for activations in (stored, computed):
        centred = activations.centred(torch.arange(24.0).double()).columns(units)
        expected = (stored.A - torch.arange(24.0))[:, [16, 17, 18, 19, 4, 5, 6, 7]]
        torch.testing.assert_close(centred.correlations(G), expected.T @ G)


@pytest.mark.parametrize(("loss", "C"), [("squared", 1), ("squared", 2), ("softmax", 3)])
def test_refit_of_pooled_units_reaches_the_optimum_of_the_group_lasso(loss, C):
    problem, _ = conv_problem(loss, C)
    Q = torch.as_tensor(np.random.default_rng(3).normal(size=(5, 12)))
    Q = torch.nn.functional.normalize(Q, dim=0)
    A = WhitenedUnits(torch.as_tensor(problem.Z), ALL_HERE, problem.pooling).activations(Q)
    Y, p = torch.as_tensor(problem.Y), torch.as_tensor(problem.p)
    start, b = torch.zeros(12 * 4, C).double(), torch.zeros(C).double()
    V, b = multi_output_refit(A, Y, p, problem.loss, 0.02, True, start, b, tol=1e-8)
    G = problem.loss.gradient(A.fit(V) + b, Y, p)
    slopes = A.correlations(G).reshape(12, -1)
    norms = V.reshape(12, -1).norm(dim=1)
    assert 0 < int((norms > 0).sum()) < 12
    torch.testing.assert_close(G.sum(dim=0), torch.zeros(C).double(), atol=1e-8, rtol=0)
    assert float(slopes.norm(dim=1).max()) <= 0.02 * (1 + 1e-5)
    on = norms > 0
    unit = V.reshape(12, -1)[on] / norms[on, None]
    torch.testing.assert_close(-slopes[on] / 0.02, unit, atol=1e-4, rtol=0)


# --------------------------------------------------------------------------------- certificates


@pytest.mark.parametrize(("loss", "C", "cells"), [("squared", 1, 1), ("softmax", 3, 2)])
def test_certificates_hold_under_an_independent_larger_search(loss, C, cells):
    problem, whitening = conv_problem(loss, C, n=60, cells=cells)
    result = solve(problem, "pursuit", tol=1e-3)
    assert result.converged
    neurons, F = problem.with_best_intercept(result.neurons)
    rng = np.random.RandomState(99)
    layer = WhitenedUnits(torch.as_tensor(problem.Z), ALL_HERE, problem.pooling)
    search = Search(layer, lambda count: random_directions(whitening, count, rng), rng)
    values, directions = search(
        problem.dual_point(F),
        neurons.directions.T,
        Effort(n_starts=4000, n_relatives=1000, n_steps=20, n_generations=2),
    )
    np.testing.assert_allclose(
        problem.correlations(problem.dual_point(F), directions), values, rtol=1e-10
    )
    assert problem.certificate(neurons, largest_correlation=values.max())[1].gap <= 1.1e-3


def test_few_dimensions_are_certified_exactly():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(12, 9)), np.arange(12.0) % 3
    patches = Patches((3, 3), size=2, pooling=1)
    model = ConvexBNRegressor(0.01, n_components=1, patches=patches, random_state=0).fit(X, y)
    assert model.certificate_.kind == "exact"
    assert model.dual_gap_ <= 0.01


def test_search_on_a_random_subset_of_patches_ends_in_values_on_all():
    problem, whitening = conv_problem(n=60)
    neurons, F = problem.with_best_intercept(solve(problem, "pursuit", tol=1e-2).neurons)
    Lambda, rng = problem.dual_point(F), np.random.RandomState(0)
    layer = WhitenedUnits(torch.as_tensor(problem.Z), ALL_HERE, problem.pooling)
    search = Search(
        layer, lambda count: random_directions(whitening, count, rng), rng, steering_rows=100
    )
    effort = Effort(n_starts=500, n_relatives=100, n_steps=20, n_generations=2)
    values, directions = search(Lambda, neurons.directions.T, effort)
    np.testing.assert_allclose(problem.correlations(Lambda, directions), values, rtol=1e-10)
    assert values.max() >= 0.9 * problem.alpha  # near the optimum units of the network reach alpha


def test_objective_is_that_of_the_network_written_out():
    problem, _ = conv_problem()
    neurons = random_neurons(problem, 5, np.random.default_rng(1))
    rng = np.random.default_rng(2)
    neurons = type(neurons)(neurons.directions, rng.normal(size=(5, 12)), neurons.intercept)
    H = np.maximum(problem.Z @ neurons.directions.T, 0).reshape(40, 9, 5)
    pooled = np.einsum("nkm,kg->nmg", H, problem.pooling.weights)
    F = np.einsum("nmg,mgc->nc", pooled, neurons.weights.reshape(5, 4, 3)) + neurons.intercept
    value = log_loss(problem.Y.argmax(axis=1), np.exp(F) / np.exp(F).sum(axis=1)[:, None])
    assert problem.objective(neurons) == pytest.approx(value + 0.02 * neurons.mass)


# ----------------------------------------------------------------------------------- estimators


def classifier(
    image_shape=(8, 8), size=4, stride=2, pooling=2, normalize=False, alpha=0.05, **parameters
):
    """Return a classifier of patches, by default of digits, with the seed zero."""
    patches = Patches(image_shape, size=size, stride=stride, pooling=pooling, normalize=normalize)
    return ConvexBNClassifier(alpha, patches=patches, random_state=0, **parameters)


@pytest.mark.parametrize(
    "patches",
    [Patches((8, 8), size=8, pooling=3), Patches((8, 8), size=None), Patches(size=None)],
    ids=str,
)
@pytest.mark.parametrize("estimator", [ConvexBNClassifier, ConvexBNRegressor])
def test_one_patch_that_covers_the_image_is_the_dense_network(estimator, patches, digits):
    X, y = digits[0][:150], digits[1][:150]
    one = estimator(alpha=0.05, patches=patches, random_state=0).fit(X, y)
    other = estimator(alpha=0.05, random_state=0).fit(X, y)
    assert one.objective_ == pytest.approx(other.objective_, rel=1e-9)
    np.testing.assert_allclose(one.coefs_[0], other.coefs_[0], atol=1e-9)
    predict = "decision_function" if estimator is ConvexBNClassifier else "predict"
    np.testing.assert_allclose(getattr(one, predict)(X), getattr(other, predict)(X), atol=1e-9)


@pytest.mark.parametrize("pooling", [1, 2])
def test_torch_module_predicts_the_same_folded_or_not_and_in_train_mode(pooling, digits):
    X, y = digits
    patches = Patches((8, 8), size=(3, 4), stride=2, pooling=pooling)
    model = ConvexBNClassifier(alpha=0.03, patches=patches, random_state=0).fit(X, y)
    expected, tensors = model.decision_function(X), torch.as_tensor(X.reshape(-1, 1, 8, 8))
    modules = [model.to_torch(), model.to_torch(fold=True), model.to_torch().train()]
    assert [type(m).__name__ for m in modules[0]] == [
        *("Conv2d", "BatchNorm2d", "ReLU", "AvgPool2d", "Flatten", "Linear")
    ]
    assert [type(m).__name__ for m in modules[1]] == [
        *("Conv2d", "ReLU", "AvgPool2d", "Flatten", "Linear")
    ]
    for module in modules:
        np.testing.assert_allclose(module(tensors).detach().numpy(), expected, atol=1e-9)


def test_objective_of_the_estimator_is_the_weight_decay_objective(digits):
    X, y = digits
    model = classifier(alpha=0.03, shrinkage=0.0).fit(X, y)
    norm, v = model.batch_norm_, model.coefs_[1]
    decay = (norm["scale"] ** 2).sum() + (norm["shift"] ** 2).sum() + (v**2).sum()
    value = log_loss(y, model.predict_proba(X)) + 0.5 * model.alpha * decay
    assert model.objective_ == pytest.approx(value, rel=1e-9)
    assert model.coefs_[1].shape == (4 * model.n_neurons_, 10)


def test_colour_images_in_four_dimensions_or_flattened(digits):
    rng = np.random.default_rng(0)
    X = digits[0][:120].reshape(-1, 8, 8, 1) * [1.0, 0.5, -1.0] + rng.normal(size=(120, 8, 8, 3))
    y = digits[1][:120] % 2
    model = classifier(image_shape=None)
    whole, flat = clone(model).fit(X, y), clone(model).set_params(patches__image_shape=(8, 8, 3))
    flat.fit(X.reshape(120, -1), y)
    np.testing.assert_array_equal(whole.decision_function(X), flat.decision_function(X))
    np.testing.assert_array_equal(
        whole.decision_function(X.reshape(120, -1)), flat.decision_function(X)
    )
    module = whole.to_torch()
    found = module(torch.as_tensor(X).permute(0, 3, 1, 2)).detach().numpy()[:, 0]
    np.testing.assert_allclose(found, whole.decision_function(X), atol=1e-9)


def test_weights_are_repetitions_and_order_does_not_matter(digits):
    X, y = digits[0][:80], digits[1][:80].astype(float)
    patches = Patches((8, 8), size=5, pooling=1)
    model = ConvexBNRegressor(alpha=0.05, patches=patches, random_state=0)
    weights = np.arange(80) % 3
    weighted = clone(model).fit(X, y, sample_weight=weights)
    repeated = np.repeat(np.arange(80), weights)[::-1]
    again = clone(model).fit(X[repeated], y[repeated])
    np.testing.assert_allclose(again.predict(X), weighted.predict(X), atol=1e-7)


def test_normalized_patches_predict_and_refuse_torch(digits):
    X, y = digits
    model = classifier(normalize=True, alpha=0.03).fit(X, y)
    assert model.score(X, y) > 0.8
    assert model.patches_["contrast"] > 0
    with pytest.raises(ValueError, match="normalize=False"):
        model.to_torch()


def test_warm_start_goes_on_from_the_network(digits):
    X, y = digits
    model = classifier(alpha=0.03, warm_start=True).fit(X, y)
    rounds = model.n_iter_
    assert rounds > 1
    assert model.fit(X, y).n_iter_ == 1
    model.set_params(patches__stride=1, max_iter=1)
    with pytest.warns(ConvergenceWarning):
        model.fit(X, y)  # other patches: from the start
    assert model.n_neurons_ == 0


def test_fit_changes_between_patches_and_rows(digits):
    X, y = digits[0][:100], digits[1][:100] % 2
    model = classifier(stride=4, alpha=0.1)
    assert model.fit(X, y).patches_["pool_shape"] == (1, 1)
    model.set_params(patches=None).fit(X, y)
    assert not hasattr(model, "patches_")
    assert model.coefs_[0].shape[0] == 64
    assert type(model.to_torch()[0]).__name__ == "Linear"


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"image_shape": (8, 9)}, "has 72 values, but the rows of X have 64"),
        ({"image_shape": (8,)}, "'image_shape' parameter of Patches must be"),
        ({"image_shape": (8.0, 8.0)}, "'image_shape' parameter of Patches must be"),
        ({"image_shape": (8, -8)}, "'image_shape' parameter of Patches must be"),
        ({"image_shape": 64}, "'image_shape' parameter of Patches must be"),
        ({"image_shape": None}, "'size' parameter of Patches, 4, is larger than .* 1 x 64"),
        ({"size": 9}, "'size' parameter of Patches, 9, is larger than the images, which are 8 x 8"),
        ({"size": (3, 9)}, "larger than the images"),
        ({"size": 0}, "'size' parameter of Patches must be"),
        ({"size": 2.5}, "'size' parameter of Patches must be"),
        ({"size": (3, 0)}, "'size' parameter of Patches must be a positive int, a pair"),
        ({"size": (3, 3, 3)}, "'size' parameter of Patches must be a positive int, a pair"),
        ({"stride": 0}, r"'stride' parameter of Patches must be an int in the range \[1, inf\)"),
        ({"pooling": 0}, r"'pooling' parameter of Patches must be an int in the range \[1, inf\)"),
        ({"size": 7, "pooling": 3, "stride": 1}, "3, is more than the 2 x 2 patches"),
        ({"normalize": "yes"}, "'normalize' parameter of Patches must be"),
        (
            {"solver": "interior_point"},
            "does not handle (9 patches of an image|several outputs)",
        ),
        ({"solver": "cvxpy"}, "does not handle ReLU networks with several outputs"),
        ({"solver": "closed_form"}, r"does not handle \d+ patches of rank \d+"),
        (
            {"solver": "group_newton", "activation": "gated_relu"},
            "does not handle (several outputs|9 patches of an image).* Use solver='fista'",
        ),
    ],
)
def test_bad_parameters_are_refused_before_work(parameters, message, digits):
    model = classifier(**parameters)
    with pytest.raises(ValueError, match=message):
        model.fit(*digits)
    assert not hasattr(model, "coefs_")


@pytest.mark.parametrize("solver", ["interior_point", "cvxpy"])
def test_lists_of_arrangements_of_patches_are_refused(solver, digits):
    X, y = digits[0], digits[1] % 2
    message = "does not handle 9 patches of an image.* Use solver='pursuit'."
    with pytest.raises(ValueError, match=message):
        classifier(solver=solver).fit(X, y)


def test_what_is_no_patches_is_refused(digits):
    with pytest.raises(ValueError, match="The 'patches' parameter of ConvexBNClassifier must be"):
        ConvexBNClassifier(patches=(8, 8)).fit(*digits)


def test_images_of_another_shape_are_refused(digits):
    X, y = digits[0][:60], digits[1][:60] % 2
    model = classifier(stride=4, alpha=0.1)
    with pytest.raises(ValueError, match=r"X has images of shape \(4, 16\)"):
        model.fit(X.reshape(-1, 4, 16), y)
    model.fit(X.reshape(-1, 8, 8), y)
    with pytest.raises(ValueError, match=r"X has images of shape \(4, 4, 4\)"):
        model.predict(X.reshape(-1, 4, 4, 4))
    with pytest.raises(ValueError, match="dim 5"):
        model.fit(X.reshape(-1, 2, 4, 4, 2), y)
    with pytest.raises(ValueError, match=r"0 sample\(s\)"):
        model.predict(X[:0].reshape(0, 8, 8))
    with pytest.raises(ValueError, match="63 features"):
        model.predict(X[:, 1:])
    with pytest.raises(ValueError, match="NaN"):
        model.predict(np.full((2, 64), np.nan))


def test_failed_fit_leaves_the_model_as_it_was(digits):
    X, y = digits[0][:100], digits[1][:100] % 2
    model = classifier(stride=4, alpha=0.1)
    before = model.fit(X, y).decision_function(X)
    model.set_params(patches__size=9)
    with pytest.raises(ValueError, match="larger"):
        model.fit(X, y)
    np.testing.assert_array_equal(model.decision_function(X), before)


def test_transformer_gives_pooled_activations(digits):
    X, y = digits
    layer = ConvexBNTransformer(classifier()).fit(X.reshape(-1, 8, 8), y)
    H, fitted = layer.transform(X), layer.estimator_
    assert H.shape == (150, 4 * fitted.n_neurons_) == (150, len(layer.get_feature_names_out()))
    assert (H >= 0).all()
    output = H @ fitted.coefs_[1] + fitted.intercepts_[1]
    np.testing.assert_allclose(output, fitted.decision_function(X), atol=1e-9)
    np.testing.assert_array_equal(layer.transform(X.reshape(-1, 8, 8)), H)


# ------------------------------------------------- what the dense network has, on patches as well


def test_parameters_of_patches_are_searched_over(digits):
    X, y = digits[0][:100], digits[1][:100] % 2
    grid = {"patches__stride": [2, 4], "patches__size": [3, 4]}
    search = GridSearchCV(classifier(alpha=0.1, tol=0.1), grid, cv=2).fit(X.reshape(-1, 8, 8), y)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    best = search.best_estimator_
    assert best.patches_["stride"] == (search.best_params_["patches__stride"],) * 2
    assert "patches=Patches(image_shape=(8, 8), size=" in repr(best)
    assert clone(best).patches is not best.patches


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((5, 12), (1, 12, 1)), ((5, 3, 4), (3, 4, 1)), ((5, 2, 3, 2), (2, 3, 2))],
)
def test_images_have_the_shape_of_x_where_none_is_given(shape, expected):
    X = np.arange(60.0).reshape(shape)
    for given in (X, X.tolist()):
        rows, grid = images_as_rows(Patches(size=1), given)
        np.testing.assert_array_equal(rows, X.reshape(5, 12))
        assert grid.image_shape == expected


def test_signals_are_images_of_height_one():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(80, 20))
    y = np.maximum(X[:, :-2] - X[:, 2:], 0.0).mean(axis=1)
    patches = Patches(size=(1, 3), pooling=1)
    model = ConvexBNRegressor(0.01, patches=patches, random_state=0).fit(X[:60], y[:60])
    assert model.patches_["image_shape"] == (1, 20, 1)
    assert model.score(X[60:], y[60:]) > 0.9
    assert model.coefs_[1].shape == (model.n_neurons_, 1)
    model.set_params(patches__pooling=2, alpha=0.1).fit(X, y)
    assert model.coefs_[1].shape == (2 * model.n_neurons_, 1)


def test_cross_validation_is_that_of_a_grid_search(digits):
    X, y = digits[0][:100].reshape(-1, 8, 8), digits[1][:100] % 2
    alphas, patches = [0.2, 0.1], Patches((8, 8), size=4, stride=4, normalize=True)
    # Fits in folds are not verified: searches are large, so that both end near the optimum.
    large = Pursuit(n_starts=400)
    shared = {"patches": patches, "tol": 1e-4, "random_state": 0, "solver": large}
    model = ConvexBNClassifierCV(alphas, cv=3, scoring="neg_log_loss", fold_tol=0.0, **shared)
    model.fit(X, y)
    search = GridSearchCV(
        ConvexBNClassifier(**shared), {"alpha": alphas}, cv=3, scoring="neg_log_loss"
    ).fit(X.reshape(100, -1), y)
    scores = search.cv_results_["mean_test_score"]
    np.testing.assert_allclose(model.scores_.mean(axis=2)[0], scores, rtol=2e-3)
    assert model.alpha_ == search.best_params_["alpha"]
    assert model.objective_ == pytest.approx(search.best_estimator_.objective_, rel=1e-4)
    assert model.patches_ == search.best_estimator_.patches_
    regressor = ConvexBNRegressorCV(alphas, cv=2, patches=patches, random_state=0).fit(X, y)
    assert regressor.predict(X[:5]).shape == (5,)


def test_alpha_max_and_path_of_images(digits):
    X, y = digits[0][:100].reshape(-1, 8, 8), digits[1][:100] % 2
    patches = Patches(size=4, stride=4)
    unshrunk = {"patches": patches, "shrinkage": 0.0, "random_state": 0}
    largest = alpha_max(X, y, **unshrunk)
    model = ConvexBNClassifier(1.01 * largest, tol=1e-2, **unshrunk).fit(X, y)
    assert model.n_neurons_ == 0
    assert model.set_params(alpha=0.7 * largest).fit(X, y).n_neurons_ >= 1
    alphas, networks, gaps = convexbn_path(
        X, y, alphas=[0.5 * largest, 0.2 * largest], tol=1e-3, **unshrunk
    )
    model.set_params(alpha=alphas[1], tol=1e-3).fit(X, y)
    assert gaps.max() <= 1e-3
    F = networks[1].forward(X)
    np.testing.assert_array_equal(F, networks[1].forward(X.reshape(100, -1)))
    norm, v = networks[1].batch_norm, networks[1].coefs[1]
    decay = (norm["scale"] ** 2).sum() + (norm["shift"] ** 2).sum() + (v**2).sum()
    value = np.logaddexp(0.0, F[:, 0] * (1 - 2 * y)).mean() + 0.5 * alphas[1] * decay
    assert value == pytest.approx(model.objective_, rel=1e-3)


@pytest.mark.parametrize("activation", ["relu", "gated_relu"])
def test_displays_draw_networks_of_images(activation, digits):
    X, y = digits[0][:60], digits[1][:60] % 2
    model = ConvexBNClassifierCV(
        [0.2, 0.1],
        activation=activation,
        n_gates=8,
        patches=Patches((8, 8), size=4, stride=4),
        cv=2,
        random_state=0,
    ).fit(X, y)
    shown = [
        SpectrumDisplay.from_estimator(model),
        ConvergenceDisplay.from_estimator(model),
        RegularizationPathDisplay.from_estimator(model),
    ]
    assert shown[0].kept_line_.get_xdata().size == model.n_components_
    plt.close("all")


# ---------------------------------------------------------------------------------- gated programs


@pytest.mark.parametrize("loss", ["squared", "softmax"])
@pytest.mark.parametrize("cells", [1, 2])
def test_gated_programs_on_patches_are_those_of_a_modelling_language(loss, cells):
    C = 1 if loss == "squared" else 3
    problem, _ = conv_problem(loss, C, n=12, cells=cells, alpha=0.05)
    gates = distinct_gates(problem.Z, np.random.default_rng(1).normal(size=(5, 4)))
    problem = replace(problem, activation="gated_relu", gates=gates)
    reference = solve(problem, "cvxpy", tol=1e-5)
    found = solve(problem, "fista", tol=1e-6)
    assert found.certificate.kind == "exact"
    assert found.certificate.primal == pytest.approx(reference.certificate.primal, rel=2e-6)
    assert len(found.neurons) > 0


def test_objective_of_a_gated_program_is_that_of_its_predictions(digits):
    X, y = digits[0], digits[1].astype(float)
    model = ConvexBNRegressor(
        0.05,
        activation="gated_relu",
        n_gates=16,
        patches=Patches((8, 8), size=4, stride=2),
        shrinkage=0.0,
        tol=1e-4,
        random_state=0,
    ).fit(X, y)
    norm, v = model.batch_norm_, model.coefs_[1]
    decay = (norm["scale"] ** 2).sum() + (norm["shift"] ** 2).sum() + (v**2).sum()
    value = 0.5 * np.mean((model.predict(X) - y) ** 2) + 0.5 * model.weight_decay_ * decay
    assert model.objective_ == pytest.approx(value, rel=1e-9)
    assert model.certificate_.kind == "exact"
    assert model.gates_.shape == (17, model.n_neurons_)
    again = model.set_params(warm_start=True).fit(X, y)
    assert again.n_iter_ == 1


# ------------------------------------------------------------------------------------ closed forms


@pytest.mark.parametrize("target", ["numbers", "two classes", "three classes"])
@pytest.mark.parametrize(("size", "stride", "pooling"), [(3, 3, 1), (3, 3, 2), (4, 1, 2)])
def test_closed_forms_of_independent_patches_are_optimal(target, size, stride, pooling):
    """Patches of noise in 36 or 64 values, 28 or 63 of them; overlapping cells in the last."""
    X = np.random.default_rng(0).normal(size=(7, 6, 6, 8))
    y = {
        "numbers": X[:, 0, 0, 0],
        "two classes": np.arange(7) % 2,
        "three classes": np.arange(7) % 3,
    }
    y = y[target]
    estimator = ConvexBNRegressor if target == "numbers" else ConvexBNClassifier
    patches = Patches(size=size, stride=stride, pooling=pooling)
    model = estimator(0.02, patches=patches, tol=1e-5, random_state=0).fit(X, y)
    assert isinstance(model.solver_, solvers.ClosedForm)
    assert model.certificate_.kind == "exact"
    assert model.dual_gap_ <= 1e-8
    assert model.n_neurons_ > 0
    searched = clone(model).set_params(solver="pursuit", tol=1e-3).fit(X, y)
    assert model.objective_ <= searched.objective_ * (1.0 + 1e-9)
    assert model.objective_ >= searched.objective_ * (1.0 - 1e-3)
    judged = certify(searched, X, y, alpha=0.02, effort=100, random_state=0)
    assert judged.kind == "exact"
    assert judged.dual <= model.objective_ * (1.0 + 1e-9)
    largest = alpha_max(X, y, patches=patches, random_state=0)
    assert clone(model).set_params(alpha=1.001 * largest).fit(X, y).n_neurons_ == 0
    if target == "numbers":
        assert clone(model).set_params(alpha=0.99 * largest).fit(X, y).n_neurons_ > 0


def test_longest_pooled_activations_are_attained_and_not_exceeded():
    weights = np.random.default_rng(0).uniform(size=(6, 3)) * (np.arange(18).reshape(6, 3) % 2)
    for pooling in (IDENTITY, cell_pooling((4, 4), 2), cell_pooling((3, 4), 2), Pooling(weights)):
        length, activations, cells = pooling.longest
        assert (activations >= 0).all()
        assert np.mean(activations**2) == pytest.approx(1.0)
        np.testing.assert_allclose(pooling.weights.T @ activations, length * cells, atol=1e-12)
        others = np.random.default_rng(1).uniform(size=(1000, pooling.n_patches))
        lengths = np.linalg.norm(others @ pooling.weights, axis=1)
        assert (lengths <= length * np.sqrt(np.mean(others**2, axis=1)) * (1 + 1e-12)).all()


# ----------------------------------------------------------------------------------------- certify


def small_network(**parameters):
    """Return two-class images of 6 x 8 pixels and their labels, and a fit to them."""
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(40, 6, 8, 2)), np.arange(40) % 2
    X[y == 1, :3] += 0.5
    patches = Patches(size=(3, 4), stride=3, pooling=1, **parameters)
    model = ConvexBNClassifier(0.05, n_components=6, patches=patches, tol=1e-3, random_state=0)
    return X, y, model.fit(X, y)


@pytest.mark.parametrize("normalize", [False, True])
def test_certify_agrees_with_the_certificate_of_the_fit(normalize):
    X, y, model = small_network(normalize=normalize)
    for images in (X, X.reshape(40, -1)):
        found = certify(model, images, y, alpha=0.05, effort=500, random_state=0)
        assert found.primal == pytest.approx(model.objective_, rel=1e-9)
        assert found.gap <= 5e-3
        assert found.stationary
        assert found.direction.weights.shape == (24,)


def test_certify_reads_torch_modules_of_images():
    X, y, model = small_network()
    model.set_params(n_components=None, patches__pooling=2).fit(X, y)
    expected = certify(model, X, y, alpha=0.05, effort=300, random_state=0)
    images = X.transpose(0, 3, 1, 2)
    for module in (model.to_torch(), model.to_torch(fold=True), model.to_torch().float()):
        for given in (images, torch.as_tensor(images)):
            found = certify(
                module, given, y, alpha=0.05, shrinkage="eps", effort=300, random_state=0
            )
            rel = 1e-9 if module[0].weight.dtype == torch.float64 else 1e-4
            assert found.primal == pytest.approx(expected.primal, rel=rel)
            assert found.dual == pytest.approx(expected.dual, rel=1e-2)


def test_certify_takes_any_average_pooling_and_the_weight_decay_of_torch():
    """Unequal strides, patches and cells; patches that no cell covers; statistics of the batch."""
    nn, (X, y, _) = torch.nn, small_network()
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv2d(2, 5, (2, 3), stride=(1, 2)), nn.BatchNorm2d(5), nn.ReLU()),
        *(nn.AvgPool2d((2, 1), stride=(2, 2)), nn.Flatten(), nn.Linear(5 * 2 * 2, 1)),
    ).double()
    with torch.no_grad():
        for parameter in network[1].parameters():
            parameter.copy_(torch.rand(5) + 0.5)
    images = torch.as_tensor(X.transpose(0, 3, 1, 2))
    found = certify(network, images, y, alpha=0.05, effort=300, random_state=0)
    logits = network.train()(images)[:, 0]
    loss = nn.functional.binary_cross_entropy_with_logits(logits, torch.as_tensor(y).double())
    units = (network[1].weight ** 2 + network[1].bias ** 2).sqrt()
    # eps of batch normalization makes a unit a little shorter than that.
    mass = (units * network[-1].weight.reshape(5, 4).norm(dim=1)).sum()
    assert found.primal == pytest.approx(float((loss + 0.05 * mass).detach()), rel=1e-4)
    assert found.gap > 0.1
    assert found.violation > 0.0


@pytest.mark.parametrize(
    ("conv", "pool", "message"),
    [
        ({"padding": 1}, {}, "padding=0, dilation=1 and groups=1"),
        ({"dilation": 2}, {}, "padding=0, dilation=1 and groups=1"),
        ({"groups": 2}, {}, "padding=0, dilation=1 and groups=1"),
        ({}, {"padding": 1}, "padding=0 and ceil_mode=False"),
        ({}, {"ceil_mode": True}, "padding=0 and ceil_mode=False"),
        ({}, {"divisor_override": 2}, "divisor_override"),
        ({"kernel_size": 9}, {}, "Images of 6 x 8 are too small"),
        ({"kernel_size": 6}, {}, "Images of 6 x 8 are too small"),
        ({"in_channels": 4}, {}, r"4 channels, height, width\). Got shape \(40, 2, 6, 8\)"),
        ({"kernel_size": 2}, {}, "5 channels|4 channels in 6 cells of pooling, 16 inputs"),
    ],
)
def test_certify_refuses_what_is_no_network_on_patches(conv, pool, message):
    nn, (X, y, _) = torch.nn, small_network()
    network = nn.Sequential(
        nn.Conv2d(**{"in_channels": 2, "out_channels": 4, "kernel_size": 3, **conv}),
        nn.ReLU(),
        nn.AvgPool2d(**{"kernel_size": 2, **pool}),
        *(nn.Flatten(), nn.Linear(16, 1)),
    )
    with pytest.raises(ValueError, match=message):
        certify(network, X.transpose(0, 3, 1, 2), y, alpha=0.1)


@pytest.mark.parametrize("pooling", [1, 2])
def test_certify_agrees_with_the_fit_for_our_network_and_for_its_torch_form(pooling, digits):
    X, y = digits[0][:100], digits[1][:100] % 3
    patches = Patches((8, 8), size=4, stride=2, pooling=pooling)
    model = ConvexBNClassifier(0.05, patches=patches, tol=1e-2, random_state=0).fit(X, y)
    arguments = {"alpha": 0.05, "effort": 5000, "random_state": 0}
    own = certify(model, X, y, **arguments)
    assert own.primal == pytest.approx(model.objective_, rel=1e-9)
    assert own.gap <= 0.02  # the search is another one than that of the fit
    maps = X.reshape(-1, 1, 8, 8)
    for fold in (False, True):
        other = certify(model.to_torch(fold=fold), maps, y, shrinkage="eps", **arguments)
        assert other.primal == pytest.approx(model.objective_, rel=1e-9)
        assert other.dual == pytest.approx(own.dual, rel=1e-6)
    assert own.direction.weights.shape == (16,)
    assert own.direction.output.shape == (3 * pooling**2,)


def test_certify_finds_what_a_convolutional_network_lacks(digits):
    X, y = digits[0][:100], digits[1][:100] % 2
    patches = Patches((8, 8), size=4, stride=2)
    model = ConvexBNClassifier(0.05, patches=patches, random_state=0).fit(X, y)
    network = model.to_torch()
    with torch.no_grad():
        network[-1].weight *= 0.5
    far = certify(network, X.reshape(-1, 1, 8, 8), y, alpha=0.05, random_state=0)
    assert far.primal > model.objective_ * 1.01
    assert far.dual <= model.objective_
    assert far.gap >= (far.primal - model.objective_) / far.primal

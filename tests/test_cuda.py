"""Everything that computes on a CUDA device, beside the same on the processor."""

import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_iris
from sklearn.exceptions import ConvergenceWarning

from sklearn_convexbn import (
    ConvexBNClassifier,
    ConvexBNClassifierCV,
    ConvexBNRegressor,
    ConvexBNRegressorCV,
    Patches,
    PathNetClassifier,
    PathNetRegressor,
    PathNetRegressorCV,
    certify,
)
from sklearn_convexbn.search._dc_step import DCStep

DEVICE = "cuda"
ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def two_outputs():
    X, y = load_diabetes(return_X_y=True)
    return X[:200], np.c_[y, X[:, 2] ** 2][:200]


def counts():
    X, y = load_diabetes(return_X_y=True)
    return X, np.round(y / 50)


def wide():
    rng = np.random.default_rng(0)
    return rng.standard_normal((12, 20)), rng.standard_normal(12)


def images():
    X, y = load_digits(return_X_y=True)
    return X[:300], y[:300] % 3


def many_rows():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((30_000, 10))
    return X, np.maximum(X @ rng.standard_normal((10, 3)), 0.0).sum(axis=1)


DIABETES, IRIS, CANCER = (
    lambda load=load: load(return_X_y=True)
    for load in (load_diabetes, load_iris, load_breast_cancer)
)
GATED = {"activation": "gated_relu", "n_gates": 50, "alpha": 0.05}
PATCHES = Patches((8, 8), size=4, stride=2, pooling=3)

#: Data and an estimator: one of every kind that has computations of its own.
CASES = {
    "regressor": (DIABETES, ConvexBNRegressor()),
    "tight": (DIABETES, ConvexBNRegressor(0.05, tol=1e-3)),
    "components, shrinkage": (CANCER, ConvexBNClassifier(n_components=8, shrinkage=0.2)),
    "two outputs": (two_outputs, ConvexBNRegressor(0.05)),
    "two classes": (CANCER, ConvexBNClassifier()),
    "three classes": (IRIS, ConvexBNClassifier()),
    "classes, squared error": (IRIS, ConvexBNClassifier(loss="squared_error")),
    "poisson": (counts, ConvexBNRegressor(0.05, loss="poisson")),
    "patches": (images, ConvexBNClassifier(0.02, patches=PATCHES)),
    "many rows": (many_rows, ConvexBNRegressor(0.01)),
    "closed form": (wide, ConvexBNRegressor(0.1)),
    "list": (DIABETES, ConvexBNRegressor(0.1, solver="interior_point", n_gates=20)),
    "gated": (DIABETES, ConvexBNRegressor(**GATED)),
    "gated, fista": (DIABETES, ConvexBNRegressor(**GATED, solver="fista")),
    "gated, three classes": (IRIS, ConvexBNClassifier(**GATED)),
    "paths": (DIABETES, PathNetRegressor()),
    "paths, shallow": (DIABETES, PathNetRegressor(inner_width=0)),
    "paths, three classes": (IRIS, PathNetClassifier()),
}


def fits(case):
    """Return X, y and the estimators fitted on the processor and on the device."""
    load, estimator = CASES[case]
    X, y = load()
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        models = [
            clone(estimator).set_params(device=device, random_state=0).fit(X, y)
            for device in ("cpu", DEVICE)
        ]
    return X, y, models


@pytest.mark.parametrize("case", CASES)
def test_fits_differ_by_their_gaps_at_most(case):
    X, y, (here, there) = fits(case)
    gap = max(here.dual_gap_, there.dual_gap_, here.get_params()["tol"])
    assert there.objective_ == pytest.approx(here.objective_, rel=gap)
    assert abs(there.score(X, y) - here.score(X, y)) < 0.05


@pytest.mark.parametrize("case", ["regressor", "tight", "three classes", "patches", "paths"])
def test_fits_on_the_device_repeat(case):
    load, estimator = CASES[case]
    X, y = load()
    a, b = (
        clone(estimator).set_params(device=DEVICE, random_state=0).fit(X, y).predict(X)
        for _ in range(2)
    )
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("case", ["regressor", "list", "gated", "gated, three classes", "paths"])
def test_models_of_the_device_predict_without_it(tmp_path, case):
    X, _, (_, model) = fits(case)
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps((model, X, model.predict(X))))
    code = (
        "import pathlib, pickle, sys, numpy\n"
        f"model, X, kept = pickle.loads(pathlib.Path({str(path)!r}).read_bytes())\n"
        "numpy.testing.assert_array_equal(model.predict(X), kept)\n"
        "assert 'torch' not in sys.modules\n"
    )
    absent = dict(os.environ, CUDA_VISIBLE_DEVICES="")
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=absent)


def test_searches_over_parameters():
    X, y = load_diabetes(return_X_y=True)
    alphas = {"alphas": [0.3, 0.1], "cv": 2, "random_state": 0}
    for model in (ConvexBNRegressorCV(**alphas), PathNetRegressorCV(**alphas)):
        here, there = (clone(model).set_params(device=d).fit(X, y) for d in ("cpu", DEVICE))
        for key in ("alpha_", "objective_"):
            assert getattr(there, key) == pytest.approx(getattr(here, key), rel=0.2)
    model = ConvexBNClassifierCV(**alphas, device=DEVICE).fit(*load_iris(return_X_y=True))
    assert model.score(*load_iris(return_X_y=True)) > 0.9


def test_certify():
    X, y = load_diabetes(return_X_y=True)
    model = ConvexBNRegressor(0.05, random_state=0).fit(X, y)
    here, there = (
        certify(model, X, y, alpha=0.05, effort="quick", random_state=0, device=d)
        for d in ("cpu", DEVICE)
    )
    assert there.primal == pytest.approx(here.primal, rel=1e-9)
    assert there.gap == pytest.approx(here.gap, abs=0.02)


def test_warm_start():
    X, y = load_diabetes(return_X_y=True)
    model = ConvexBNRegressor(0.05, warm_start=True, device=DEVICE, random_state=0).fit(X, y)
    before = model.objective_
    assert model.fit(X, y).objective_ <= before * (1 + 1e-6)


def of_norm_one(rng, k, n):
    Q = rng.standard_normal((k, n))
    return Q / np.linalg.norm(Q, axis=0)


def test_steps_on_differences():
    rng = np.random.default_rng(0)
    Z, L, Q = rng.standard_normal((60, 5)), rng.standard_normal((60, 2)), of_norm_one(rng, 5, 40)
    here, there = (
        DCStep(*(torch.as_tensor(a, device=d) for a in (Z, L)))
        .polished(torch.as_tensor(Q, device=d))[0]
        .cpu()
        for d in ("cpu", DEVICE)
    )
    np.testing.assert_allclose(there.numpy(), here.numpy(), rtol=1e-6)

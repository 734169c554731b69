"""scikit-learn's own estimator checks, with no expected failure."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import sklearn
from sklearn.utils.estimator_checks import check_param_validation, parametrize_with_checks
from sklearn.utils.fixes import parse_version

from sklearn_convexbn import (
    ConvexBNClassifier,
    ConvexBNClassifierCV,
    ConvexBNRegressor,
    ConvexBNRegressorCV,
    ConvexBNTransformer,
    Patches,
    PathNetClassifier,
    PathNetClassifierCV,
    PathNetRegressor,
    PathNetRegressorCV,
)

# ClosedForm has no configuration here: it refuses data with more rows than features, which most
# checks use. CVXPY does not handle ReLU with several outputs, so it meets the
# classifiers' three classes with gates.
# The defaults are checked as they are; where another parameter is what is checked, an alpha of 0.1
# makes the fits of the pursuit, of which a configuration has some hundreds, short, and parameters
# that do not meet in the code share a configuration.
SHARED = [
    {},
    {"activation": "gated_relu"},
    {"n_components": 2, "shrinkage": "auto", "alpha": 0.1},
    {"solver": "pursuit", "fit_intercept": False, "alpha": 0.1, "clip": True},
    {"activation": "gated_relu", "solver": "fista", "n_gates": 32, "clip": True},
    {"activation": "gated_relu", "solver": "cvxpy", "n_gates": 8},
    {"patches": Patches(size=None), "alpha": 0.1},  # a row is an image of one patch
]
CLASSIFIER = [
    {"loss": "squared_error", "class_weight": "balanced", "alpha": 0.1},
    {"loss": "squared_error", "activation": "gated_relu", "fit_intercept": False},
]
# Short paths in few folds: the default's 30 alphas would take minutes in all checks.
CROSS_VALIDATED = [
    {"alphas": 2, "eps": 0.3, "cv": 2, "selection": "one_standard_error", "clip": True},
    {"alphas": [0.1], "n_components": [1, None], "cv": 2, "patches": Patches(size=None)},
]
# The checks seed the outer estimator only, and compare transformed data to 1e-7.
TRANSFORMED = [
    ConvexBNRegressor(alpha=0.3, random_state=0),
    ConvexBNClassifier(alpha=0.3, random_state=0),
    ConvexBNClassifier(alpha=0.3, activation="gated_relu", n_gates=16, random_state=0),
]
ESTIMATORS = [
    *(ConvexBNRegressor(**kw) for kw in SHARED),
    *(ConvexBNClassifier(**kw) for kw in SHARED + CLASSIFIER),
    *(ConvexBNRegressorCV(**kw) for kw in CROSS_VALIDATED),
    *(ConvexBNClassifierCV(**kw) for kw in CROSS_VALIDATED),
    *(ConvexBNTransformer(estimator) for estimator in TRANSFORMED),
]


@parametrize_with_checks(ESTIMATORS)
def test_sklearn_estimator_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize(
    "cls",
    [
        ConvexBNClassifier,
        ConvexBNClassifierCV,
        ConvexBNRegressor,
        ConvexBNRegressorCV,
        PathNetClassifier,
        PathNetClassifierCV,
        PathNetRegressor,
        PathNetRegressorCV,
    ],
)
def test_every_parameter_is_checked(cls):
    check_param_validation(cls.__name__, cls())


@pytest.mark.parametrize("name", ["ConvexBNRegressor", "ConvexBNClassifier"])
def test_checks_with_scipy_array_api(name):
    """SCIPY_ARRAY_API must be set before scipy is imported, hence the process of its own."""
    pytest.importorskip("array_api_compat")
    code = (
        "import warnings, sklearn_convexbn\n"
        "from sklearn.exceptions import SkipTestWarning\n"
        "from sklearn.utils.estimator_checks import check_estimator\n"
        "warnings.simplefilter('error')\n"
        "warnings.simplefilter('ignore', SkipTestWarning)\n"
        f"results = check_estimator(sklearn_convexbn.{name}(alpha=0.1))\n"
        "skipped = [r['check_name'] for r in results if r['status'] != 'passed']\n"
        "print(len(results), skipped)\n"
    )
    env = dict(os.environ, SCIPY_ARRAY_API="1")
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False
    )
    assert out.returncode == 0, out.stderr
    count, skipped = out.stdout.split(" ", 1)
    assert int(count) > 40
    assert skipped.strip() == "[]"


@pytest.mark.skipif(
    parse_version(sklearn.__version__) < parse_version("1.9"),
    reason="scikit-learn before 1.9 has array API checks only for estimators that support it",
)
def test_array_api_checks_of_every_configuration():
    """The checks that the run without SCIPY_ARRAY_API skips, for all configurations above."""
    pytest.importorskip("array_api_compat")
    code = (
        "import warnings\n"
        "from sklearn.utils.estimator_checks import estimator_checks_generator\n"
        "from tests.test_sklearn_checks import ESTIMATORS\n"
        "warnings.simplefilter('error')\n"
        "ran = 0\n"
        "for estimator in ESTIMATORS:\n"
        "    for estimator, check in estimator_checks_generator(estimator):\n"
        "        if 'array_api' in check.func.__name__:\n"
        "            check(estimator)\n"
        "            ran += 1\n"
        "print(ran, len(ESTIMATORS))\n"
    )
    env = dict(os.environ, SCIPY_ARRAY_API="1")
    out = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=env,
        check=False,
        cwd=Path(__file__).resolve().parents[1],
    )
    assert out.returncode == 0, out.stderr
    ran, count = map(int, out.stdout.split())
    assert ran >= count == len(ESTIMATORS)

"""Tensors as X and y under scikit-learn's array API dispatch: the same networks, tensors back."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_diabetes

from sklearn_convexbn.data._rows import Rows
from sklearn_convexbn.program.units._whitened import WhitenedUnits
from sklearn_convexbn.support._sharding import ALL_HERE
from tests.helpers import make_problem, output_with_array_api, random_neurons, solve, whiten

CODE = """
import warnings
warnings.simplefilter("error")
import numpy as np, torch
from sklearn import config_context
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine
from sklearn_convexbn import ConvexBNClassifier, ConvexBNClassifierCV, ConvexBNRegressor

def check(model, X, y, methods, **fit):
    expected = model.fit(X, y, **fit)
    values = {method: getattr(expected, method)(X) for method in methods}
    score = model.score(X, y)
    tensors = {name: torch.as_tensor(value) for name, value in fit.items()}
    with config_context(array_api_dispatch=True):
        T, t = torch.as_tensor(X), torch.as_tensor(y)
        own = type(model)(**model.get_params()).fit(T, t, **tensors)
        assert isinstance(own.coefs_[0], np.ndarray)
        for method, value in values.items():
            found = getattr(own, method)(T)
            assert isinstance(found, torch.Tensor), method
            atol = 0.02 * np.abs(value).max()
            np.testing.assert_allclose(found.numpy(), value, rtol=0, atol=atol)
        assert abs(float(own.score(T, t)) - score) < 0.01
        assert abs(own.objective_ - expected.objective_) <= 2e-3 * expected.objective_
        own.predict(T.float())

X, y = load_diabetes(return_X_y=True)
weights = np.random.default_rng(0).uniform(0.5, 2.0, size=len(y))
model = ConvexBNRegressor(alpha=0.03, tol=1e-3, random_state=0)
check(model, X, y, ["predict"], sample_weight=weights)
check(model.set_params(activation="gated_relu"), X, y, ["predict"])
scores = ["predict_proba", "predict_log_proba", "decision_function", "predict"]
model = ConvexBNClassifier(alpha=0.03, tol=1e-3, random_state=0)
check(model, *load_wine(return_X_y=True), scores)
check(model, *load_breast_cancer(return_X_y=True), scores)
check(ConvexBNClassifierCV(alphas=[0.1, 0.03], cv=2, tol=1e-3, random_state=0),
      *load_wine(return_X_y=True), ["predict"])
print("done")
"""


def test_estimators_take_tensors_and_return_them():
    """SCIPY_ARRAY_API must be set before scipy is imported, hence the process of its own."""
    assert output_with_array_api(CODE).split() == ["done"]


@pytest.mark.parametrize("n_components", [None, 3])
def test_whitening_of_a_tensor_is_that_of_the_array(n_components):
    X = load_diabetes().data
    weights = np.random.default_rng(0).uniform(0.5, 2.0, size=len(X))
    Z, whitening = whiten(X, weights, n_components=n_components)
    index = np.arange(len(X))
    for given in (torch.as_tensor(X), Rows(X, index, "cpu")):
        T, own = whiten(given, weights, n_components=n_components)
        assert isinstance(T, torch.Tensor)
        np.testing.assert_allclose(T.numpy(), Z, atol=1e-10)
        np.testing.assert_allclose(own.scales, whitening.scales, rtol=1e-10)


@pytest.mark.parametrize("loss", ["squared", "softmax"])
def test_a_problem_in_tensors_is_the_same_problem(loss, wine):
    X, y = wine
    Y = np.eye(3)[y] if loss == "softmax" else X[:, :1] / X[:, 0].std()
    problem = make_problem(X[:, 1:6], Y, loss, 0.02)
    Z, Y, p = map(torch.as_tensor, (problem.Z, problem.Y, problem.p))
    other = replace(problem, units=WhitenedUnits(Z, ALL_HERE), Y=Y, p=p)
    neurons = random_neurons(problem, 7, np.random.default_rng(0))
    assert other.objective(neurons) == pytest.approx(problem.objective(neurons), rel=1e-12)
    one, two = (each.certificate(neurons, largest_correlation=0.1)[1] for each in (problem, other))
    assert one.dual == pytest.approx(two.dual, rel=1e-9)
    np.testing.assert_array_equal(
        *(each.units.patterns(neurons.directions.T) for each in (problem, other))
    )
    one, two = (solve(each, "pursuit", tol=1e-3).certificate for each in (problem, other))
    assert two.gap <= 1e-3
    assert one.primal == pytest.approx(two.primal, rel=2e-3)

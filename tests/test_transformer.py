"""Hidden activations as features: the network's own, in pipelines, with names, as X is kept."""

import pickle

import numpy as np
import pytest
from scipy import sparse
from sklearn import config_context
from sklearn.base import clone
from sklearn.datasets import load_wine
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_convexbn import (
    ConvexBNClassifier,
    ConvexBNRegressor,
    ConvexBNRegressorCV,
    ConvexBNTransformer,
)
from tests.helpers import output_with_array_api

ESTIMATORS = [
    ConvexBNClassifier(alpha=0.1, random_state=0),
    ConvexBNClassifier(alpha=0.1, activation="gated_relu", n_gates=16, random_state=0),
    ConvexBNRegressor(alpha=0.1, random_state=0),
    ConvexBNRegressorCV(alphas=[0.3, 0.1], cv=2, random_state=0),
]


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=str)
def test_output_layer_on_hidden_activations_is_the_network(wine, estimator):
    X, y = wine
    layer = ConvexBNTransformer(estimator)
    H = layer.fit_transform(X, y)
    fitted = layer.estimator_
    assert not hasattr(estimator, "coefs_")
    assert H.shape == (len(X), fitted.n_neurons_)
    output = H @ fitted.coefs_[1] + fitted.intercepts_[1]
    np.testing.assert_allclose(output, fitted._raw_predict(X), rtol=1e-10, atol=1e-10)
    if not hasattr(fitted, "gates_"):
        expected = np.maximum(X @ fitted.coefs_[0] + fitted.intercepts_[0], 0)
        np.testing.assert_allclose(H, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("estimator", ESTIMATORS[:2], ids=str)
def test_blocks_and_sparse_rows_change_nothing(wine, estimator):
    X, y = wine
    layer = ConvexBNTransformer(estimator).fit(X, y)
    expected = np.tile(layer.transform(X), (100, 1))
    X = np.tile(X, (100, 1))  # several blocks
    for given in (X, sparse.csr_array(X), sparse.csc_matrix(X)):
        H = layer.transform(given)
        assert type(H) is np.ndarray
        np.testing.assert_allclose(H, expected, rtol=1e-10, atol=1e-10)


def test_layers_stack_in_a_pipeline_and_are_tuned_by_name(wine):
    X, y = wine
    network = ConvexBNClassifier(alpha=0.3, tol=0.01, random_state=0)
    deep = make_pipeline(StandardScaler(), ConvexBNTransformer(network), clone(network))
    assert deep.fit(X, y).score(X, y) > 0.9
    assert deep[-1].n_features_in_ == deep[1].estimator_.n_neurons_
    grid = {"convexbntransformer__estimator__alpha": [0.3, 0.2]}
    search = GridSearchCV(deep, grid, cv=2).fit(X, y)
    assert search.best_estimator_[1].estimator_.alpha in (0.3, 0.2)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(deep)).predict(X), deep.predict(X))


def test_names_and_set_output(wine):
    pd = pytest.importorskip("pandas")
    X, y = wine
    frame = pd.DataFrame(X, columns=load_wine().feature_names)
    layer = ConvexBNTransformer(ESTIMATORS[0]).set_output(transform="pandas").fit(frame, y)
    table = layer.transform(frame)
    expected = [f"convexbntransformer{j}" for j in range(layer.estimator_.n_neurons_)]
    assert list(table.columns) == list(layer.get_feature_names_out()) == expected
    assert list(layer.feature_names_in_) == list(frame.columns)
    with pytest.raises(ValueError, match="feature names should match"):
        layer.transform(frame[frame.columns[::-1]])
    layer.set_output(transform="default").fit(X, y)
    assert not hasattr(layer, "feature_names_in_")


def test_sample_weights_reach_the_network(wine):
    X, y = wine
    weights = np.where(y == 2, 0.0, 1.0)
    model = ConvexBNClassifier(alpha=0.1, random_state=0)
    own = ConvexBNTransformer(model).fit(X, y, sample_weight=weights)
    np.testing.assert_array_equal(own.estimator_.classes_, [0, 1])
    with config_context(enable_metadata_routing=True):
        layer = ConvexBNTransformer(model).set_fit_request(sample_weight=True)
        head = ConvexBNClassifier(alpha=0.1).set_fit_request(sample_weight=True)
        deep = make_pipeline(layer, head).fit(X, y, sample_weight=weights)
    np.testing.assert_array_equal(deep[0].transform(X), own.transform(X))


def test_empty_network_has_no_columns_and_the_next_step_says_so(diabetes):
    X, y = diabetes
    layer = ConvexBNTransformer(ConvexBNRegressor(alpha=10.0, random_state=0))
    assert layer.fit_transform(X, y).shape == (len(X), 0)
    assert layer.transform(sparse.csr_array(X)).shape == (len(X), 0)
    assert layer.get_feature_names_out().shape == (0,)
    for last in (Ridge(), ConvexBNRegressor()):
        with pytest.raises(ValueError, match=r"Found array with 0 feature\(s\)"):
            make_pipeline(layer, last).fit(X, y)


@pytest.mark.parametrize("estimator", [None, Ridge(), ConvexBNClassifier, "classifier"], ids=str)
def test_other_estimators_are_refused(wine, estimator):
    with pytest.raises(TypeError, match="must be a ConvexBNClassifier, a ConvexBNRegressor or"):
        ConvexBNTransformer(estimator).fit(*wine)


def test_failed_fit_leaves_the_transformer_as_it_was(wine):
    X, y = wine
    layer = ConvexBNTransformer(ESTIMATORS[0]).fit(X, y)
    before = layer.transform(X)
    with pytest.raises(ValueError, match="only one class"):
        layer.fit(X[:, :2], np.zeros(len(X), int))
    np.testing.assert_array_equal(layer.transform(X), before)
    assert layer.n_features_in_ == X.shape[1]


ARRAY_API = """
import warnings
warnings.simplefilter("error")
import numpy as np, torch
from sklearn import config_context
from sklearn.datasets import load_wine
from sklearn_convexbn import ConvexBNClassifier, ConvexBNTransformer

X, y = load_wine(return_X_y=True)
for kind in ("relu", "gated_relu"):
    model = ConvexBNClassifier(alpha=0.3, activation=kind, n_gates=16, random_state=0)
    layer = ConvexBNTransformer(model).fit(X, y)
    with config_context(array_api_dispatch=True):
        H = layer.transform(torch.as_tensor(X))
        own = ConvexBNTransformer(model).fit(torch.as_tensor(X), torch.as_tensor(y))
        assert isinstance(own.transform(torch.as_tensor(X)), torch.Tensor)
    assert isinstance(H, torch.Tensor) and H.dtype == torch.float64
    np.testing.assert_allclose(H.numpy(), layer.transform(X), rtol=1e-10, atol=1e-10)
print("done")
"""


def test_tensors_are_returned_for_tensors():
    """SCIPY_ARRAY_API must be set before scipy is imported, hence the process of its own."""
    assert output_with_array_api(ARRAY_API).split() == ["done"]

"""A user's script of public names, which ``mypy --strict`` accepts; it is read and not run."""

from typing import assert_type

import numpy as np

import sklearn_convexbn
from sklearn_convexbn import (
    ConvergenceDisplay,
    ConvexBNClassifier,
    ConvexBNClassifierCV,
    ConvexBNRegressor,
    ConvexBNRegressorCV,
    ConvexBNTransformer,
    FeatureWeightsDisplay,
    Patches,
    PathNetClassifier,
    PathNetClassifierCV,
    PathNetRegressor,
    PathNetRegressorCV,
    RegularizationPathDisplay,
    SpectrumDisplay,
    alpha_max,
    certified_radius,
    certify,
    certify_path_net,
    conditioning,
    convexbn_path,
    export_int8,
    lipschitz_bound,
    replace_head,
    row_shards,
    show_versions,
)
from sklearn_convexbn.losses import Huber, LogLoss, Loss, Poisson, Quantile, SquaredError
from sklearn_convexbn.solvers import CVXPY, FISTA, ClosedForm, Pursuit, make_solver

rng = np.random.default_rng(0)
X: np.ndarray = rng.normal(size=(20, 3))
y: np.ndarray = X[:, 0]

regressor = ConvexBNRegressor(0.1, loss=Huber(delta=1.0), solver=Pursuit(), random_state=0)
assert_type(regressor.fit(X, y, sample_weight=np.ones(20)), ConvexBNRegressor)
prediction: np.ndarray = regressor.predict(X)
gap: float = regressor.dual_gap_
classifier = ConvexBNClassifier(alpha=0.1, shrinkage="auto", class_weight="balanced")
assert_type(classifier.fit(X, y > 0), ConvexBNClassifier)
probabilities: np.ndarray = classifier.predict_proba(X)
scores: np.ndarray = classifier.decision_function(X)
images = ConvexBNClassifier(patches=Patches((8, 8), size=3), n_components=0.9)
assert_type(ConvexBNRegressorCV().fit(X, y), ConvexBNRegressorCV)
assert_type(ConvexBNClassifierCV().fit(X, y > 0), ConvexBNClassifierCV)
features: np.ndarray = ConvexBNTransformer(regressor).fit(X, y).transform(X)
path_net = PathNetRegressor(0.01, inner_width=2)
assert_type(path_net.fit(X, y), PathNetRegressor)
assert_type(PathNetClassifier().fit(X, y > 0), PathNetClassifier)
assert_type(PathNetRegressorCV().fit(X, y), PathNetRegressorCV)
assert_type(PathNetClassifierCV().fit(X, y > 0), PathNetClassifierCV)
weights: np.ndarray = path_net.predict(X)
FeatureWeightsDisplay.from_estimator(path_net).plot()

largest: float = alpha_max(X, y)
path = convexbn_path(X, y)
certificate = certify(regressor, X, y, alpha=0.1)
assert_type(certificate.gap, float)
assert_type(certificate.direction.weights, np.ndarray)
of_paths = certify_path_net(path_net, X, y, alpha=0.1)
assert_type(of_paths.direction.inner, np.ndarray)
spectra = conditioning(regressor, X, y, random_state=0)
condition: float = spectra.whitened.final.condition_number(0.9)
eigenvalues: np.ndarray = spectra.plain.gram.eigenvalues
radius: np.ndarray = certified_radius(classifier, X)
bound = lipschitz_bound(classifier)
assert_type(bound, float)
local = lipschitz_bound(classifier, X, radius=0.1)
assert_type(local, np.ndarray)
network, head = replace_head(regressor.to_torch(), X, y, estimator=classifier)
with row_shards():
    regressor.fit(X, y)

losses: list[Loss] = [SquaredError(), Huber(), Quantile(), Poisson(), LogLoss()]
solvers = [CVXPY(), FISTA(), ClosedForm(), make_solver("pursuit")]
for display in (ConvergenceDisplay, RegularizationPathDisplay, SpectrumDisplay):
    display.from_estimator(regressor).plot()
export_int8(classifier, X, "model.onnx")
show_versions()
version: str = sklearn_convexbn.__version__

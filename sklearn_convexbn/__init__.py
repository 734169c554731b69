"""Batch-normalized two-layer ReLU networks, trained through their convex form.

The weight-decay-regularized training problem of these networks has an exact convex form
(Ergen et al., "Demystifying Batch Normalization in ReLU Networks", ICLR 2022). The
estimators here solve it and say how far from the optimum they ended; :func:`certify` says it
of networks trained elsewhere.
"""

from sklearn_convexbn.data._patches import Patches
from sklearn_convexbn.displays import (
    ConvergenceDisplay,
    FeatureWeightsDisplay,
    RegularizationPathDisplay,
    SpectrumDisplay,
)
from sklearn_convexbn.estimators._certify import certify
from sklearn_convexbn.estimators._certify_paths import certify_path_net
from sklearn_convexbn.estimators._conditioning import conditioning
from sklearn_convexbn.estimators._estimators import ConvexBNClassifier, ConvexBNRegressor
from sklearn_convexbn.estimators._export import export_int8
from sklearn_convexbn.estimators._heads import replace_head
from sklearn_convexbn.estimators._model_selection import ConvexBNClassifierCV, ConvexBNRegressorCV
from sklearn_convexbn.estimators._path import alpha_max, convexbn_path
from sklearn_convexbn.estimators._path_net import PathNetClassifier, PathNetRegressor
from sklearn_convexbn.estimators._path_net_cv import PathNetClassifierCV, PathNetRegressorCV
from sklearn_convexbn.estimators._robustness import certified_radius, lipschitz_bound
from sklearn_convexbn.estimators._transformer import ConvexBNTransformer
from sklearn_convexbn.support._sharding import row_shards
from sklearn_convexbn.support._versions import show_versions

__version__ = "0.2.0"

__all__ = [
    "ConvergenceDisplay",
    "ConvexBNClassifier",
    "ConvexBNClassifierCV",
    "ConvexBNRegressor",
    "ConvexBNRegressorCV",
    "ConvexBNTransformer",
    "FeatureWeightsDisplay",
    "Patches",
    "PathNetClassifier",
    "PathNetClassifierCV",
    "PathNetRegressor",
    "PathNetRegressorCV",
    "RegularizationPathDisplay",
    "SpectrumDisplay",
    "__version__",
    "alpha_max",
    "certified_radius",
    "certify",
    "certify_path_net",
    "conditioning",
    "convexbn_path",
    "export_int8",
    "lipschitz_bound",
    "replace_head",
    "row_shards",
    "show_versions",
]

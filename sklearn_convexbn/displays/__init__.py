"""Pictures of fitted estimators, after scikit-learn's displays; `plot` imports matplotlib."""

from sklearn_convexbn.displays._convergence import ConvergenceDisplay
from sklearn_convexbn.displays._feature_weights import FeatureWeightsDisplay
from sklearn_convexbn.displays._regularization_path import RegularizationPathDisplay
from sklearn_convexbn.displays._spectrum import SpectrumDisplay

__all__ = [
    "ConvergenceDisplay",
    "FeatureWeightsDisplay",
    "RegularizationPathDisplay",
    "SpectrumDisplay",
]

"""Pictures of fitted estimators, after scikit-learn's displays; `plot` imports matplotlib."""

from sklearn_convexbn._displays._convergence import ConvergenceDisplay
from sklearn_convexbn._displays._regularization_path import RegularizationPathDisplay
from sklearn_convexbn._displays._spectrum import SpectrumDisplay

__all__ = ["ConvergenceDisplay", "RegularizationPathDisplay", "SpectrumDisplay"]

"""
Five columns of a hundred
=========================

A network with a price on its paths uses the columns that pay for it. Here 5 of 100 columns make
the target, and the others are noise: :class:`~sklearn_convexbn.PathNetRegressor` beside
a lasso, boosting and an MLP of two hidden layers.
"""

# %%
# The data
# --------
#
# Friedman's function of five columns, with a product, a square and two lines, and 95 columns of
# noise.

import matplotlib.pyplot as plt
from sklearn.compose import TransformedTargetRegressor
from sklearn.datasets import make_friedman1
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import LassoCV
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_convexbn import FeatureWeightsDisplay, PathNetRegressor

X, y = make_friedman1(1400, n_features=100, noise=0.5, random_state=0)
X_train, X_test, y_train, y_test = train_test_split(X, y, train_size=400, random_state=0)

# %%
# Test scores
# -----------

mlp = TransformedTargetRegressor(
    MLPRegressor(hidden_layer_sizes=(100, 100), alpha=1.0, max_iter=1000, random_state=0),
    transformer=StandardScaler(),
)
path_network = PathNetRegressor(alpha=0.01, random_state=0)
models = {
    "path network": path_network,
    "lasso": make_pipeline(StandardScaler(), LassoCV()),
    "boosting": HistGradientBoostingRegressor(random_state=0),
    "MLP": make_pipeline(StandardScaler(), mlp),
}
for name, model in models.items():
    print(f"{name:13} R^2 = {model.fit(X_train, y_train).score(X_test, y_test):.3f}")

# %%
# What the network uses
# ---------------------
#
# Inner weights are exactly zero where they do not pay. The best scores are at a small alpha, where
# most columns have some small weight; a larger one leaves the columns that matter.

for alpha in (0.01, 0.03, 0.05):
    network = PathNetRegressor(alpha=alpha, random_state=0).fit(X_train, y_train)
    used = (network.feature_weights_ > 0).sum()
    print(f"alpha {alpha}: columns used: {used:3}, R^2 = {network.score(X_test, y_test):.3f}")

# %%
# A bar bounds how far the prediction can move when its column moves by a standard deviation.

FeatureWeightsDisplay.from_estimator(path_network, max_features=12)
plt.show()

"""
A fit in one dimension, neuron by neuron
========================================

With one feature a two-layer ReLU network is a piecewise linear function: every hidden unit is a
hinge, zero on one side of its kink and a straight line on the other. The example fits such a
network to noisy data, takes it apart into its hinges, and shows how the weight decay ``alpha``
decides how many of them there are. Nobody chooses the number of hidden units.
"""

# %%
# Fit
# ---
#
# With a single feature the bound on the optimum is computed over all activation patterns, not
# searched for, so the certificate is exact: no network of any width has an objective lower than
# the fitted one by more than the gap.

import matplotlib.pyplot as plt
import numpy as np

from sklearn_convexbn import ConvexBNRegressor

rng = np.random.default_rng(0)
x = np.sort(rng.uniform(-3, 3, 80))
y = np.sin(2 * x) + 0.4 * np.abs(x) + rng.normal(0, 0.15, len(x))

model = ConvexBNRegressor(alpha=0.003, tol=1e-4, random_state=0).fit(x[:, None], y)
print(f"hidden units: {model.n_neurons_}")
print(f"certificate ({model.certificate_.kind}): {model.certificate_}")

# %%
# Take it apart
# -------------
#
# ``coefs_`` and ``intercepts_`` hold the network with batch normalization folded in, laid out as
# in :class:`~sklearn.neural_network.MLPRegressor`. Hidden unit j contributes
# ``relu(x * w[j] + b[j]) * v[j]``, which has its kink at ``-b[j] / w[j]``.

w, b, v = model.coefs_[0][0], model.intercepts_[0], model.coefs_[1][:, 0]
grid = np.linspace(-3.2, 3.2, 600)
contributions = np.maximum(grid[:, None] * w + b, 0) * v
kinks = -b / w
total = contributions.sum(axis=1) + model.intercepts_[1]

difference = np.abs(total - model.predict(grid[:, None])).max()
print(f"largest difference between the sum of the parts and predict: {difference:.1e}")
to_data = np.abs(kinks[:, None] - x).min(axis=1)
print(f"kinks within 0.001 of a data point: {np.sum(to_data < 1e-3)} of {len(kinks)}")
print(f"{'kink at':>9}{'slope':>9}{'active':>8}{'nearest data point':>20}")
for j in np.argsort(kinks):
    side = "right" if w[j] > 0 else "left"
    print(f"{kinks[j]:9.3f}{w[j] * v[j]:9.3f}{side:>8}{to_data[j]:20.1e}")

# %%
# Above, the network; dotted lines mark the kinks. Below, its parts: each hinge in a color of its
# own, drawn where it is not zero, and the output intercept. At every x the lines below add up to
# the network above.

figure, (top, bottom) = plt.subplots(2, 1, figsize=(8, 7.5), sharex=True, layout="constrained")
top.plot(x, y, "o", ms=4, color="0.65", label="data")
top.plot(grid, total, color="black", lw=2, label="network")
for j in np.argsort(kinks):
    color = f"C{j}"
    top.axvline(kinks[j], color=color, ls=":", lw=1.5)
    bottom.axvline(kinks[j], color=color, ls=":", lw=1.5)
    on = contributions[:, j] != 0
    bottom.plot(grid[on], contributions[on, j], color=color, lw=2)
bottom.axhline(0, color="0.8", lw=1, zorder=0)
bottom.axhline(model.intercepts_[1][0], color="black", ls="--", label="intercept")
top.set(ylabel="y", title=f"{model.n_neurons_} hidden units, alpha = {model.alpha:g}")
bottom.set(xlabel="x", ylabel="contribution to y", title="The hidden units, one by one")
top.legend(loc="upper center")
bottom.legend(loc="best")
plt.show()

# %%
# More weight decay, fewer hidden units
# -------------------------------------
#
# The same data with other values of ``alpha``. Above a certain value the best network has no hidden
# unit at all and predicts the mean.

alphas = [0.3, 0.1, 0.01, 0.001]
figure, axes = plt.subplots(1, len(alphas), figsize=(12, 3.4), sharey=True, layout="constrained")
print(f"{'alpha':>7}{'units':>7}{'gap':>10}  kind")
for axis, alpha in zip(axes, alphas, strict=True):
    fit = ConvexBNRegressor(alpha=alpha, tol=1e-4, random_state=0).fit(x[:, None], y)
    print(f"{alpha:7g}{fit.n_neurons_:7d}{fit.dual_gap_:10.1e}  {fit.certificate_.kind}")
    axis.plot(x, y, "o", ms=3, color="0.65")
    axis.plot(grid, fit.predict(grid[:, None]), color="black", lw=2)
    units = "hidden unit" if fit.n_neurons_ == 1 else "hidden units"
    axis.set(xlabel="x", title=f"alpha = {alpha:g}: {fit.n_neurons_} {units}")
axes[0].set_ylabel("y")
plt.show()

"""
Quantile bands and counts
=========================

What a network predicts depends on its loss: the squared error leads to the mean, the pinball loss
to a quantile, the Poisson loss to the mean of counts, always positive. The training problem stays
convex and the certificate stays, because it asks for nothing but the conjugate of the loss. The
example draws both beside gradient boosting with the same losses.
"""

# %%
# A band that widens
# ------------------
#
# The noise grows with x and is skewed. Three networks estimate the 10 %, 50 % and 90 % quantiles.
# The pinball loss is smoothed over ``width`` standard deviations of y, here 0.02.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.ensemble import HistGradientBoostingRegressor

from sklearn_convexbn import ConvexBNRegressor
from sklearn_convexbn.losses import Quantile

rng = np.random.default_rng(0)
x = np.sort(rng.uniform(0, 4, 300))
noise = 0.15 + 0.25 * x
y = np.sin(2 * x) + noise * (rng.exponential(size=len(x)) - 1)
grid = np.linspace(0, 4, 400)[:, None]
levels = (0.1, 0.5, 0.9)

ours, boosted = {}, {}
for level in levels:
    loss = Quantile(level, width=0.02)
    model = ConvexBNRegressor(alpha=1e-3, loss=loss, tol=0.01, random_state=0).fit(x[:, None], y)
    below = np.mean(y <= model.predict(x[:, None]))
    print(f"quantile {level}: {100 * below:.0f} % of y below, {model.certificate_}")
    ours[level] = model.predict(grid)
    peer = HistGradientBoostingRegressor(loss="quantile", quantile=level, random_state=0)
    boosted[level] = peer.fit(x[:, None], y).predict(grid)

exact = {
    q: np.sin(2 * grid[:, 0]) + (0.15 + 0.25 * grid[:, 0]) * (-np.log(1 - q) - 1) for q in levels
}

# %%
# Counts
# ------
#
# ``loss="poisson"`` is for counts: the network's output is the logarithm of the mean, and
# ``predict`` returns the mean. With an intercept the predictions add up to the counts.

t = np.sort(rng.uniform(0, 24, 250))
rate = 1.0 + 9.0 * np.exp(-0.5 * ((t - 8.5) / 1.2) ** 2) + 6.0 * np.exp(-0.5 * ((t - 18) / 2) ** 2)
counts = rng.poisson(rate)
hours = np.linspace(0, 24, 400)[:, None]
poisson = ConvexBNRegressor(alpha=4e-3, loss="poisson", tol=0.01, random_state=0).fit(
    t[:, None], counts
)
squared = ConvexBNRegressor(alpha=4e-3, tol=0.01, random_state=0).fit(t[:, None], counts)
peer = HistGradientBoostingRegressor(loss="poisson", random_state=0).fit(t[:, None], counts)
total = poisson.predict(t[:, None]).sum()
print(f"counts {counts.sum()}, predicted {total:.1f}; {poisson.certificate_}")
print(
    f"smallest prediction: {poisson.predict(hours).min():.2f}, with the squared error "
    f"{squared.predict(hours).min():.2f}"
)

# %%
# Left, the bands from 10 % to 90 % with the medians; the thin dotted lines are the true quantiles.
# Right, the mean of counts by the hour.

figure, axes = plt.subplots(1, 3, figsize=(13, 4.3), layout="constrained")
for ax, bands, title in (
    (axes[0], ours, "ConvexBNRegressor"),
    (axes[1], boosted, "HistGradientBoostingRegressor"),
):
    ax.fill_between(grid[:, 0], bands[0.1], bands[0.9], color="C0", alpha=0.25, lw=0)
    ax.plot(grid, bands[0.5], color="C0", lw=2)
    for level in levels:
        ax.plot(grid, exact[level], color="k", lw=0.8, ls=":")
    ax.plot(x, y, ".", color="0.35", ms=3)
    ax.set(title=f"10 % to 90 %: {title}", xlabel="x", ylabel="y", ylim=(y.min() - 0.3, 4.5))
axes[2].plot(t, counts, ".", color="0.6", ms=4)
axes[2].plot(hours, peer.predict(hours), color="C1", lw=1, label="HistGradientBoosting, Poisson")
axes[2].plot(hours, poisson.predict(hours), color="C0", lw=2, label="ConvexBN, Poisson")
axes[2].plot(t, rate, color="k", lw=0.8, ls=":", label="true mean")
axes[2].set(title="Counts", xlabel="hour", ylabel="count", ylim=(-0.5, 19))
axes[2].legend(frameon=False)
plt.show()

"""
Choosing n_components under noise features
==========================================

Batch normalization whitens: it gives every direction of X the same say, however small its
variance. If the small directions are noise, the optimum of the training problem fits that
noise; gradient descent would come to it last. ``n_components=k`` keeps the k leading singular
directions and so puts that preference back, as a parameter.

Whether it helps depends on the data. The example has it both ways: a target that depends on the
directions of large variance, and one that depends on those of small variance.
"""

# %%
# Two problems with the same features
# -----------------------------------
#
# 15 features, mixed by a random rotation from 4 directions of large variance and 11 of small
# variance. The target is made of the absolute value of one direction and the positive part of
# another, plus noise. In the first problem both are large directions, in the second both are
# small ones.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, KFold

from sklearn_convexbn import ConvexBNRegressor

N_FEATURES, N_TRAIN, N_TEST = 15, 100, 2000


def make_data(directions: tuple[int, int]) -> tuple[np.ndarray, ...]:
    """Return X and y of training and test rows; y depends on the two given directions."""
    rng = np.random.default_rng(0)
    Z = rng.normal(size=(N_TRAIN + N_TEST, N_FEATURES))
    deviations = np.r_[3.0, 2.7, 2.3, 2.0, np.full(N_FEATURES - 4, 0.5)]
    rotation = np.linalg.qr(rng.normal(size=(N_FEATURES, N_FEATURES)))[0]
    X = (Z * deviations) @ rotation.T
    first, second = Z[:, directions[0]], Z[:, directions[1]]
    y = np.abs(first) + np.maximum(second, 0) + rng.normal(0, 0.3, len(X))
    return X[:N_TRAIN], y[:N_TRAIN], X[N_TRAIN:], y[N_TRAIN:]


problems = {
    "target in large directions": make_data((0, 1)),
    "target in small directions": make_data((N_FEATURES - 2, N_FEATURES - 1)),
}

# %%
# Choose k by cross-validation
# ----------------------------
#
# The choice uses the training rows only; the test rows then tell what each k would have
# given. ``alpha`` is the same throughout.

components = [1, 2, 4, 8, 15]
network = ConvexBNRegressor(alpha=0.03, shrinkage=0, tol=0.05, random_state=0)
folds = KFold(3, shuffle=True, random_state=0)
results = {}
for name, (X, y, X_test, y_test) in problems.items():
    search = GridSearchCV(network, {"n_components": components}, cv=folds).fit(X, y)
    fits = [clone(network).set_params(n_components=k).fit(X, y) for k in components]
    chosen = search.best_params_["n_components"]
    scores = {
        "training": [fit.score(X, y) for fit in fits],
        "cross-validation": search.cv_results_["mean_test_score"],
        "test": [fit.score(X_test, y_test) for fit in fits],
    }
    results[name] = chosen, scores, fits[-1].singular_values_
    print(f"{name}: R2 by the number of directions kept")
    print(f"{'k':>17}" + "".join(f"{k:7d}" for k in components))
    for label, row in scores.items():
        print(f"{label:>17}" + "".join(f"{score:7.2f}" for score in row))
    test = dict(zip(components, scores["test"], strict=True))
    print(f"cross-validation chooses k = {chosen}: test R2 {test[chosen]:.3f}")
    print(f"all {N_FEATURES} directions: test R2 {test[N_FEATURES]:.3f}\n")

# %%
# Draw
# ----
#
# The bars are the singular values of the training features, on the scale to the right: the same in
# both pictures, for they do not depend on the target. They show where a cut suggests itself, but
# not whether the target agrees with it; the cross-validated score does.

figure, axes = plt.subplots(1, 2, figsize=(11, 4.3), sharey=True, layout="constrained")
for axis, (name, (chosen, scores, spectrum)) in zip(axes, results.items(), strict=True):
    bars = axis.twinx()
    bars.bar(np.arange(1, len(spectrum) + 1), spectrum, color="0.9", width=0.8)
    bars.set_ylabel("singular value", color="0.6")
    bars.tick_params(axis="y", colors="0.6")
    axis.set_zorder(bars.get_zorder() + 1)
    axis.set_frame_on(False)
    for (label, row), style in zip(scores.items(), ("^:", "s--", "o-"), strict=True):
        axis.plot(components, row, style, ms=5, label=label)
    axis.axvline(chosen, color="0.3", lw=1)
    axis.annotate(
        f"chosen: {chosen}",
        (chosen, 0.02),
        xycoords=("data", "axes fraction"),
        xytext=(-4 if chosen > N_FEATURES / 2 else 4, 0),
        textcoords="offset points",
        ha="right" if chosen > N_FEATURES / 2 else "left",
    )
    axis.set(xlabel="n_components", title=name.capitalize(), xticks=components)
axes[0].set_ylabel("R2")
axes[0].legend(loc="best", title="R2 on")
plt.show()

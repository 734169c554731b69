"""
Grid search against ConvexBNRegressorCV
=======================================

:class:`~sklearn.model_selection.GridSearchCV` fits every point of its grid from nothing.
:class:`~sklearn_convexbn.ConvexBNRegressorCV` goes along the alphas from large to small, whitens
once for each fold and number of directions, and starts each fit from the network before. The
example gives both the same grid and the same folds, and compares scores, choices and times.
"""

# %%
# The same grid, the same folds
# -----------------------------
#
# The features of the diabetes data have equal variances already. Other data should be scaled first
# when ``n_components`` is tuned, since the scale of the columns decides which directions are large.

import time

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.model_selection import GridSearchCV, KFold, train_test_split

from sklearn_convexbn import ConvexBNRegressor, ConvexBNRegressorCV, RegularizationPathDisplay

X, y = load_diabetes(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.5, random_state=0)
folds = KFold(3, shuffle=True, random_state=0)
alphas = np.geomspace(0.4, 0.03, 6)
components = [1, 2, 10]
tol = 0.02
# The first fit in a process loads torch, which would count as its time.
ConvexBNRegressor(random_state=0).fit(X_train[:20, :2], y_train[:20])

begin = time.perf_counter()
grid = GridSearchCV(
    ConvexBNRegressor(tol=tol, random_state=0),
    {"n_components": components, "alpha": alphas},
    cv=folds,
    scoring="neg_mean_squared_error",
).fit(X_train, y_train)
grid_seconds = time.perf_counter() - begin

begin = time.perf_counter()
path = ConvexBNRegressorCV(alphas, n_components=components, cv=folds, tol=tol, random_state=0)
path.fit(X_train, y_train)
path_seconds = time.perf_counter() - begin

best = grid.best_params_
print(f"{len(alphas)} alphas x {len(components)} n_components x {folds.get_n_splits()} folds\n")
print(f"{'':21}{'seconds':>8}{'alpha':>9}{'n_components':>14}{'CV error':>10}{'test R2':>9}")
for name, seconds, alpha, k, error, r2 in (
    (
        "GridSearchCV",
        grid_seconds,
        best["alpha"],
        best["n_components"],
        -grid.best_score_,
        grid.best_estimator_.score(X_test, y_test),
    ),
    (
        "ConvexBNRegressorCV",
        path_seconds,
        path.alpha_,
        path.n_components_,
        path.mse_path_.mean(axis=2).min(),
        path.score(X_test, y_test),
    ),
):
    print(f"{name:21}{seconds:8.1f}{alpha:9.4f}{k:14d}{error:10.1f}{r2:9.4f}")
print(f"\nratio of the times: {grid_seconds / path_seconds:.1f}")

# %%
# How equal are the scores?
# -------------------------
#
# Both stop a fit at a gap of ``tol``, but they arrive there from different sides, and on the folds
# the second leaves out the long search with which a fit confirms its estimate of the gap. So the
# networks, and their scores, agree only so far.

results = grid.cv_results_
searched = np.empty((len(components), len(alphas)))
for setting, score in zip(results["params"], results["mean_test_score"], strict=True):
    i = components.index(setting["n_components"])
    searched[i, np.argmin(np.abs(alphas - setting["alpha"]))] = -score
along_path = path.mse_path_.mean(axis=2)
relative = np.abs(along_path / searched - 1)
print(f"difference of the cross-validated errors: median {np.median(relative):.2%}, ", end="")
print(f"largest {relative.max():.2%}")
errors = path.mse_path_[path.best_index_]
spread = errors.std(ddof=1) / np.sqrt(len(errors)) / errors.mean()
print(f"for comparison, the chosen model's standard error over the folds: {spread:.0%}")

# %%
# The path
# --------
#
# Test error, hidden units and training objective along alpha, one line for each number of
# directions kept, and the chosen model.

RegularizationPathDisplay.from_estimator(path)
plt.show()

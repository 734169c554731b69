"""
Decision boundaries beside MLPClassifier
========================================

Two-dimensional data sets, the class probabilities of a
:class:`~sklearn_convexbn.ConvexBNClassifier` and those of an
:class:`~sklearn.neural_network.MLPClassifier`, both with one hidden layer and their default weight
decay. One of them chooses its number of hidden units, the other is given 100. The titles hold
the accuracy on 1000 test points and the seconds of the fit on the machine that ran this.

Such pictures teach how the two extrapolate. They say little about other data: for a comparison of
accuracies on tables see the benchmarks.
"""

# %%
# Data and models
# ---------------
#
# The perceptron sees standardized columns. The convex form needs no scaling: batch normalization
# removes the scale of the columns.

import time

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import make_circles, make_gaussian_quantiles, make_moons
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_convexbn import ConvexBNClassifier

n_train, n_test = 150, 1000
n = n_train + n_test
data = {
    "moons": make_moons(n, noise=0.3, random_state=0),
    "circles": make_circles(n, noise=0.2, factor=0.5, random_state=0),
    "three rings": make_gaussian_quantiles(n_samples=n, n_classes=3, random_state=0),
}
models = {
    "ConvexBNClassifier": ConvexBNClassifier(random_state=0),
    "MLPClassifier": make_pipeline(StandardScaler(), MLPClassifier(max_iter=3000, random_state=0)),
}

# %%
# Fit and draw
# ------------
#
# Color tells the predicted class and its strength the probability. Lines are the boundaries
# between the predicted classes. Points are the training data.


def class_colors(probabilities: np.ndarray) -> np.ndarray:
    """Mix the colors of the classes: white where no class is likelier than chance."""
    palette = np.array([plt.get_cmap("tab10")(i)[:3] for i in range(probabilities.shape[1])])
    chance = 1 / probabilities.shape[1]
    strength = (probabilities.max(axis=1) - chance) / (1 - chance)
    color = palette[probabilities.argmax(axis=1)]
    return 1 - 0.6 * strength[:, None] * (1 - color)


# The first fit in a process loads torch, which would count as its time.
models["ConvexBNClassifier"].fit(*make_moons(20, random_state=0))
figure, axes = plt.subplots(
    len(models), len(data), figsize=(11, 7.5), sharex="col", sharey="col", layout="constrained"
)
print(f"{'data':14}{'model':20}{'test accuracy':>14}{'seconds':>9}{'hidden units':>14}")
for column, (name, (X, y)) in zip(axes.T, data.items(), strict=True):
    X_train, X_test, y_train, y_test = train_test_split(
        X, y, train_size=n_train, stratify=y, random_state=0
    )
    low, high = X_train.min(axis=0) - 0.7, X_train.max(axis=0) + 0.7
    x1, x2 = np.meshgrid(np.linspace(low[0], high[0], 200), np.linspace(low[1], high[1], 200))
    pixels = np.column_stack([x1.ravel(), x2.ravel()])
    for axis, (label, model) in zip(column, models.items(), strict=True):
        begin = time.perf_counter()
        model.fit(X_train, y_train)
        seconds = time.perf_counter() - begin
        accuracy = model.score(X_test, y_test)
        units = getattr(model, "n_neurons_", None) or model[-1].hidden_layer_sizes[0]
        print(f"{name:14}{label:20}{accuracy:14.3f}{seconds:9.2f}{units:14d}")

        probabilities = model.predict_proba(pixels)
        image = class_colors(probabilities).reshape(*x1.shape, 3)
        axis.imshow(image, origin="lower", extent=(low[0], high[0], low[1], high[1]), aspect="auto")
        for c in range(probabilities.shape[1]):
            others = np.delete(probabilities, c, axis=1).max(axis=1)
            margin = (probabilities[:, c] - others).reshape(x1.shape)
            axis.contour(x1, x2, margin, levels=[0], colors="0.25", linewidths=1)
            shown = X_train[y_train == c]
            axis.plot(*shown.T, "o", ms=4, mec="white", mew=0.5, color=f"C{c}")
        axis.set_title(
            f"{name}: {label}\n{units} hidden units, accuracy {accuracy:.3f}, {seconds:.2f} s",
            fontsize=10,
        )
        axis.set(xticks=[], yticks=[])
plt.show()

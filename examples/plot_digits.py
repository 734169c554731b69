"""
Digits: a network with a bound, and what keeping k directions does
==================================================================

Trains batch-normalized two-layer ReLU networks on scikit-learn's digits through their convex
form, tunes the weight decay and the number of singular directions kept by cross-validation
along paths, and compares with :class:`~sklearn.neural_network.MLPClassifier` tuned over as many
candidates on the same folds. Saves a picture of accuracy against ``n_components`` beside the
spectrum.

All pixels have one unit, so the leading directions of the images as they are say most, and
pixels are not standardised for the network here. They are for the MLP: its cross-validated
accuracy is higher with it.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, StratifiedKFold, train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_convexbn import ConvexBNClassifierCV

FOLDS = StratifiedKFold(3, shuffle=True, random_state=0)
COMPONENTS = [10, 20, 30, 40, 50, 60]
ALPHAS = [0.003, 0.001, 0.0003]
LEARNING_RATES = [3e-4, 1e-3, 3e-3, 1e-2, 2e-2, 5e-2]
PENALTIES = [1e-4, 1e-2, 1.0]


def timed_fit(model, X: np.ndarray, y: np.ndarray) -> float:
    """Fit; return the seconds it took."""
    begin = time.perf_counter()
    model.fit(X, y)
    return time.perf_counter() - begin


def draw(ours: ConvexBNClassifierCV, mlp: GridSearchCV, path: Path) -> None:
    """Draw cross-validated accuracy against n_components, beside the spectrum."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    means, errors = ours.scores_.mean(axis=2).T, ours.scores_.std(axis=2).T
    for i, (alpha, row, error) in enumerate(zip(ALPHAS, means, errors, strict=True)):
        left.plot(COMPONENTS, row, "o-", color=f"C{i}", label=f"alpha = {alpha:g}")
        left.fill_between(COMPONENTS, row - error, row + error, color=f"C{i}", alpha=0.12)
    left.axhline(mlp.best_score_, color="0.3", ls="--", label="MLPClassifier, tuned")
    left.set(
        xlabel="n_components: singular directions kept",
        ylabel="accuracy, mean of 3 folds (band: one std)",
        title="Fewer directions than all: the bias made explicit",
    )
    left.legend(loc="lower right")
    values = ours.singular_values_
    right.semilogy(np.arange(1, len(values) + 1), values, "o-", ms=3, color="0.2")
    right.axvspan(0.5, ours.n_components_ + 0.5, color="C0", alpha=0.12)
    right.annotate(
        f"kept by the best network:\n{ours.n_components_} of {len(values)}",
        (0.06, 0.08),
        xycoords="axes fraction",
        color="C0",
    )
    right.set(xlabel="singular direction", ylabel="singular value", title="Spectrum of the pixels")
    figure.savefig(path, dpi=150)
    plt.show()


def main() -> None:
    """Run the comparison and save the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--picture", type=Path, default=Path("digits.png"))
    picture = parser.parse_args().picture

    X, y = load_digits(return_X_y=True)
    X, X_test, y, y_test = train_test_split(X, y, test_size=0.25, stratify=y, random_state=0)
    print(f"digits: {len(X)} training and {len(X_test)} test images; 3 folds, 18 candidates each")

    ours = ConvexBNClassifierCV(
        ALPHAS, n_components=COMPONENTS, cv=FOLDS, n_jobs=-1, tol=0.05, random_state=0
    )
    seconds = timed_fit(ours, X, y)
    pipeline = Pipeline(
        [("scale", StandardScaler()), ("net", MLPClassifier(max_iter=1000, random_state=0))]
    )
    grid = {"net__alpha": PENALTIES, "net__learning_rate_init": LEARNING_RATES}
    mlp = GridSearchCV(pipeline, grid, cv=FOLDS, n_jobs=-1)
    mlp_seconds = timed_fit(mlp, X, y)
    (units,) = mlp.best_estimator_["net"].hidden_layer_sizes
    print(f"\n{'':22}{'cv accuracy':>12}{'test accuracy':>15}{'hidden units':>14}{'seconds':>9}")
    for name, model, best, size, spent in (
        ("ConvexBNClassifierCV", ours, ours.scores_.mean(axis=2).max(), ours.n_neurons_, seconds),
        ("MLPClassifier", mlp, mlp.best_score_, units, mlp_seconds),
    ):
        accuracy = model.score(X_test, y_test)
        print(f"{name:22}{best:12.4f}{accuracy:15.4f}{size:14d}{spent:9.1f}")
    print(f"\nbest parameters: alpha={ours.alpha_:g}, n_components={ours.n_components_}")
    print(f"best parameters of the MLP: {mlp.best_params_}")
    print(f"certificate: {ours.certificate_}")
    draw(ours, mlp, picture)
    print(f"picture: {picture.resolve().name}")


if __name__ == "__main__":
    main()

# sphinx_gallery_thumbnail_path = 'images/digits.png'

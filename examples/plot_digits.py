"""
Digits: a certified network, and what keeping k directions does
===============================================================

Trains batch-normalized two-layer ReLU networks on scikit-learn's digits through their convex
form, tunes the weight decay and the number of singular directions kept by cross-validation,
and compares with :class:`~sklearn.neural_network.MLPClassifier` tuned over as many candidates
on the same folds. Saves a picture of accuracy against ``n_components`` beside the spectrum.
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

from sklearn_convexbn import ConvexBNClassifier

FOLDS = StratifiedKFold(3, shuffle=True, random_state=0)
COMPONENTS = [10, 20, 30, 40, 50, 61]
ALPHAS = [0.0003, 0.001, 0.003]
LEARNING_RATES = [3e-4, 1e-3, 3e-3, 1e-2, 2e-2, 5e-2]
PENALTIES = [1e-4, 1e-2, 1.0]


def tuned(network, grid: dict, X: np.ndarray, y: np.ndarray) -> tuple[GridSearchCV, float]:
    """Tune a network in a pipeline; return the search and the seconds it took."""
    pipeline = Pipeline([("scale", StandardScaler()), ("net", network)])
    begin = time.perf_counter()
    search = GridSearchCV(pipeline, grid, cv=FOLDS, n_jobs=-1).fit(X, y)
    return search, time.perf_counter() - begin


def draw(ours: GridSearchCV, mlp: GridSearchCV, path: Path) -> None:
    """Draw cross-validated accuracy against n_components, beside the spectrum."""
    network = ours.best_estimator_.named_steps["net"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    scores = ours.cv_results_["mean_test_score"].reshape(len(ALPHAS), len(COMPONENTS))
    errors = ours.cv_results_["std_test_score"].reshape(len(ALPHAS), len(COMPONENTS))
    for i, (alpha, row, error) in enumerate(zip(ALPHAS, scores, errors, strict=True)):
        left.plot(COMPONENTS, row, "o-", color=f"C{i}", label=f"alpha = {alpha:g}")
        left.fill_between(COMPONENTS, row - error, row + error, color=f"C{i}", alpha=0.12)
    left.axhline(mlp.best_score_, color="0.3", ls="--", label="MLPClassifier, tuned")
    left.set(
        xlabel="n_components: singular directions kept",
        ylabel="accuracy, mean of 3 folds (band: one std)",
        title="Fewer directions than all: the bias made explicit",
    )
    left.legend(loc="lower right")
    values = network.singular_values_
    right.semilogy(np.arange(1, len(values) + 1), values, "o-", ms=3, color="0.2")
    right.axvspan(0.5, network.n_components_ + 0.5, color="C0", alpha=0.12)
    right.annotate(
        f"kept by the best network:\n{network.n_components_} of {len(values)}",
        (0.06, 0.08),
        xycoords="axes fraction",
        color="C0",
    )
    right.set(
        xlabel="singular direction", ylabel="singular value", title="Spectrum of the scaled pixels"
    )
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

    network = ConvexBNClassifier(tol=0.05, random_state=0)
    ours, seconds = tuned(network, {"net__alpha": ALPHAS, "net__n_components": COMPONENTS}, X, y)
    mlp, mlp_seconds = tuned(
        MLPClassifier(max_iter=1000, random_state=0),
        {"net__alpha": PENALTIES, "net__learning_rate_init": LEARNING_RATES},
        X,
        y,
    )
    best, best_mlp = ours.best_estimator_.named_steps["net"], mlp.best_estimator_.named_steps["net"]
    print(f"\n{'':22}{'cv accuracy':>12}{'test accuracy':>15}{'hidden units':>14}{'seconds':>9}")
    for name, search, units, spent in (
        ("ConvexBNClassifier", ours, best.n_neurons_, seconds),
        ("MLPClassifier", mlp, best_mlp.hidden_layer_sizes[0], mlp_seconds),
    ):
        accuracy = search.score(X_test, y_test)
        print(f"{name:22}{search.best_score_:12.4f}{accuracy:15.4f}{units:14d}{spent:9.1f}")
    print(f"\nbest parameters: alpha={best.alpha:g}, n_components={best.n_components}")
    print(f"best parameters of the MLP: {mlp.best_params_}")
    print(f"certificate: {best.certificate_}")
    draw(ours, mlp, picture)
    print(f"picture: {picture.resolve().name}")


if __name__ == "__main__":
    main()

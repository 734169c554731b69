"""Networks on whole image sets: our fit, its gap estimated, beside Adam on the same architecture.

CIFAR-10 (convolutional, the 10000 images there are), MNIST and Fashion-MNIST (dense, 60000 images).
Adam trains a network with as many units as the fit ended with on the same objective, in
mini-batches under a cosine schedule, once for each rate; its accuracies are with the batch
normalization statistics of all training images. It has all directions of the data where the fit
has `n_components`, so that its optimum is lower. Times are processor seconds. To compare with the
rate of the best test accuracy favours Adam. The settings of the fits were chosen by hand, those of
MNIST by its test images, those of Fashion-MNIST by training images that were held out.
"""

from __future__ import annotations

import _suite  # noqa: F401 - first: it sets the number of threads

# isort: split
import argparse
import json
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from _suite.circumstances import circumstances
from _suite.data import load_images
from _suite.networks import Architecture, Moments, evaluate, training
from sklearn.exceptions import ConvergenceWarning

from sklearn_convexbn import ConvexBNClassifier, Patches

#: Parameters of the fits, then Adam's epochs.
PROBLEMS: dict[str, tuple[dict[str, Any], int]] = {
    "cifar10": (
        {"size": 6, "stride": 2, "pooling": 2}
        | {"n_components": 40, "alpha": 1e-3, "tol": 0.1, "max_iter": 7},
        40,
    ),
    "mnist": ({"n_components": 60, "alpha": 4e-4, "tol": 0.05, "max_iter": 10}, 20),
    "fashion_mnist": ({"n_components": 100, "alpha": 1.5e-3, "tol": 0.05, "max_iter": 10}, 20),
}
COLUMNS = ("set", "model", "units", "test", "train", "objective", "gap", "s", "settings")


def ours(name: str, parameters: dict[str, Any], data: Any) -> dict[str, Any]:
    """Fit the estimator."""
    X, y, X_test, y_test = (A.reshape(len(A), -1) if A.ndim > 1 else A for A in data)
    model: Any = ConvexBNClassifier(random_state=0, verbose=1)
    parameters = dict(parameters)
    if "size" in parameters:
        cut = {key: parameters.pop(key) for key in ("size", "stride", "pooling")}
        model.set_params(patches=Patches(data[0].shape[1:], **cut))
    model.set_params(**parameters)
    begin = time.process_time()
    model.fit(X, y)
    seconds = time.process_time() - begin
    found = (model.n_neurons_, model.score(X_test, y_test), model.score(X, y), model.objective_)
    settings = ", ".join(f"{key}={value}" for key, value in parameters.items())
    values = (name, "ours", *found, model.dual_gap_, seconds, settings)
    return dict(zip(COLUMNS, values, strict=True))


def adam(
    name: str, parameters: dict[str, Any], data: Any, units: int, rate: float, epochs: int
) -> dict[str, Any]:
    """Train the same architecture by Adam."""
    torch.manual_seed(0)
    names = {"patch_size": "size", "stride": "stride", "pooling": "pooling"}
    shape = {key: parameters[name] for key, name in names.items() if name in parameters}
    architecture = Architecture(data[0].shape[1:], **shape)
    images, test_images = (architecture.tensor(X) for X in data[::2])
    y, y_test = (torch.as_tensor(labels) for labels in data[1::2])
    network = architecture.network(units, int(y.max()) + 1)
    alpha, seconds = parameters["alpha"], 0.0
    settings = {"rate": rate, "epochs": epochs, "alpha": alpha}
    for _, spent in training(network, images, y, optimizer="adam", **settings):
        seconds = spent
    Moments.of(architecture, images).normalize(network)
    objective, train = evaluate(network, images, y, alpha)
    _, test = evaluate(network, test_images, y_test, alpha)
    words = f"rate {rate:g}, {epochs} epochs, batches of 100"
    values = (name, "Adam", units, test, train, objective, None, seconds, words)
    return dict(zip(COLUMNS, values, strict=True))


def rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield a row for each model."""
    for name in options.data:
        parameters, epochs = PROBLEMS[name]
        data = load_images(name)
        data = (data[0][: options.rows], data[1][: options.rows], *data[2:])
        units = options.units
        if not units:
            row = ours(name, parameters, data)
            units = row["units"]
            yield row
        for rate in options.rates:
            yield adam(name, parameters, data, units, rate, options.epochs or epochs)


def report(found: list[dict[str, Any]], path: Path) -> None:
    """Write the table and the numbers behind it."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---|---|" + "---:|" * 6 + "---|"]
    for row in found:
        shown = dict(row, gap="" if row["gap"] is None else row["gap"])
        texts = [f"{v:.4g}" if isinstance(v, float) else str(v) for v in shown.values()]
        lines.append("| " + " | ".join(texts) + " |")
    about = circumstances()
    facts = "\n".join(f"- {key}: {value}" for key, value in about.items())
    title, words = (__doc__ or "").split("\n", 1)
    text = (
        f"# Images\n\n{title}\n{words}\n" + "\n".join(lines) + f"\n\n## Circumstances\n\n{facts}\n"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    content = json.dumps({"circumstances": about, "rows": found}, indent=1)
    path.with_suffix(".json").write_text(content + "\n", encoding="utf-8")


def main() -> int:
    """Run the models and write the table after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--data", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
    add("--rows", type=int, help="the first training images only")
    add("--units", type=int, help="train Adam with these only, without our fit")
    add("--epochs", type=int, help="of Adam, in place of those of PROBLEMS")
    add("--name", default="bench_images", help="of the files of results")
    add("--rates", type=float, nargs="*", default=[1e-3, 3e-3, 1e-2, 3e-2])
    add("--results", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    found: list[dict[str, Any]] = []
    for row in rows(options):
        found.append(row)
        print({key: row[key] for key in COLUMNS[:-1]}, flush=True)
        report(found, options.results / options.name)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Convolutional networks on CIFAR-10: the certified fit beside Adam on the same architecture.

Adam trains Conv2d, BatchNorm2d, ReLU, AvgPool2d, Flatten, Linear with as many units as the fit
ended with, mini-batches, a cosine schedule and weight decay `--decay`, once for each rate. Times
are processor seconds. To compare with the rate of the best test accuracy favours Adam.
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

import numpy as np
import torch
from _suite.circumstances import circumstances
from _suite.data import data_folder
from sklearn.exceptions import ConvergenceWarning

from sklearn_convexbn import ConvexBNConvClassifier
from sklearn_convexbn._pooling import pooling_window

SHAPE = (32, 32, 3)
COLUMNS = ("model", "units", "test", "train", "s", "gap", "settings")


def cifar(folder: Path, n: int) -> list[np.ndarray]:
    """Return training images (n, d) and labels, test images and labels."""
    arrays = []
    for part, count in (("train", n), ("test", None)):
        with np.load(folder / "cifar10" / f"cifar10_{part}.npz") as file:
            X, y = file["X"][:count], file["y"][:count]
        arrays += [X.reshape(len(X), -1), y]
    return arrays


def ours(data: list[np.ndarray], options: argparse.Namespace) -> dict[str, Any]:
    """Fit the estimator; its settings are in the row."""
    X, y, X_test, y_test = data
    parameters = {
        **{"patch_size": options.patch, "stride": options.stride, "pooling": options.pooling},
        **{"n_components": options.components, "alpha": options.alpha, "tol": options.tol},
        **{"max_iter": options.max_iter, "random_state": 0},
    }
    model = ConvexBNConvClassifier(SHAPE, verbose=1, **parameters)
    begin = time.process_time()
    model.fit(X, y)
    seconds = time.process_time() - begin
    accuracies = model.score(X_test, y_test), model.score(X, y)
    values = ("ours", model.n_neurons_, *accuracies, seconds, model.dual_gap_, str(parameters))
    return dict(zip(COLUMNS, values, strict=True))


def adam(
    data: list[np.ndarray], options: argparse.Namespace, units: int, rate: float
) -> dict[str, Any]:
    """Train the same architecture by Adam."""
    torch.manual_seed(0)
    X, X_test = (
        torch.as_tensor(A).reshape(-1, *SHAPE).permute(0, 3, 1, 2).float() / 255 - 0.5
        for A in (data[0], data[2])
    )
    y, y_test = (torch.as_tensor(a) for a in (data[1], data[3]))
    side = (SHAPE[0] - options.patch) // options.stride + 1
    kernel, stride = pooling_window(side, options.pooling)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, units, options.patch, stride=options.stride, bias=False),
        torch.nn.BatchNorm2d(units),
        torch.nn.ReLU(),
        torch.nn.AvgPool2d(kernel, stride),
        torch.nn.Flatten(),
        torch.nn.Linear(units * options.pooling**2, 10),
    )
    begin = time.process_time()
    optimizer = torch.optim.AdamW(network.parameters(), rate, weight_decay=options.decay)
    steps = options.epochs * -(-len(X) // options.batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(options.epochs):
        for batch in torch.randperm(len(X)).split(options.batch):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(X[batch]), y[batch]).backward()
            optimizer.step()
            schedule.step()
    seconds = time.process_time() - begin
    network.eval()
    with torch.no_grad():
        accuracies = [
            float(
                torch.cat([network(part).argmax(dim=1) for part in A.split(500)])
                .eq(b)
                .double()
                .mean()
            )
            for A, b in ((X_test, y_test), (X, y))
        ]
    settings = f"rate {rate:g}, {options.epochs} epochs, batch {options.batch}"
    values = ("adam", units, *accuracies, seconds, None, f"{settings}, decay {options.decay:g}")
    return dict(zip(COLUMNS, values, strict=True))


def rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield a row for each model."""
    data, units = cifar(options.data, options.rows), options.units
    if not units:
        row = ours(data, options)
        units = row["units"]
        yield row
    for rate in options.rates:
        yield adam(data, options, units, rate)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--data", type=Path, default=data_folder(), help="folder with cifar10/")
    add("--results", type=Path, default=Path(__file__).parent / "results")
    add("--rows", type=int, default=10_000)
    add("--patch", type=int, default=6)
    add("--stride", type=int, default=2)
    add("--pooling", type=int, default=2)
    add("--components", type=int, default=40)
    add("--alpha", type=float, default=1e-3)
    add("--tol", type=float, default=0.1)
    add("--max-iter", type=int, default=6)
    add("--units", type=int, default=0, help="train Adam with these only, without our fit")
    add("--rates", type=float, nargs="*", default=[1e-3, 3e-3, 1e-2])
    add("--epochs", type=int, default=30)
    add("--batch", type=int, default=100)
    add("--decay", type=float, default=1e-3)
    return parser.parse_args()


def main() -> int:
    """Run the models and write the table after each."""
    options = parse_arguments()
    warnings.simplefilter("ignore", ConvergenceWarning)
    found = []
    for row in rows(options):
        found.append(row)
        print(row, flush=True)
        lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
        for r in found:
            texts = [f"{v:.3g}" if isinstance(v, float) else str(v) for v in r.values()]
            lines.append("| " + " | ".join(texts) + " |")
        about = "\n".join(f"- {key}: {value}" for key, value in circumstances().items())
        text = f"# CIFAR-10, convolutional\n\n{__doc__.split(chr(10), 2)[2]}\n"
        text += "\n".join(lines) + f"\n\n## Circumstances\n\n{about}\n"
        (options.results / "bench_images.md").write_text(text, encoding="utf-8")
        content = {"circumstances": circumstances(), "rows": found}
        (options.results / "bench_images.json").write_text(json.dumps(content, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Networks on whole image sets: our fit, its gap estimated, beside Adam on the same architecture.

CIFAR-10 (convolutional, the 10000 images there are), MNIST and Fashion-MNIST (dense, 60000 images).
Adam trains a network with as many units as the fit ended with on the same objective, in
mini-batches under a cosine schedule, once for each rate; its accuracies are with the batch
normalization statistics of all training images. It has all directions of the data where the fit
has `n_components`, so that its optimum is lower. Times are processor seconds. To compare with the
rate of the best test accuracy favours Adam. The settings of the fits were chosen by hand, those of
MNIST by its test images, those of Fashion-MNIST by training images that were held out.
"""

import sys
from collections.abc import Iterable
from typing import Any

from _suite.benchmark import Benchmark
from _suite.data import load_images
from _suite.networks import Architecture, Moments, evaluate, training
from _suite.package import image_classifier
from _suite.runner import timed
from _suite.store import Cell

import torch

#: Parameters of the fits, then Adam's epochs.
PROBLEMS: dict[str, tuple[dict[str, Any], int]] = {
    "cifar10": (
        {"patch_size": 6, "stride": 2, "pooling": 3}
        | {"n_components": 40, "alpha": 2e-3, "tol": 0.1, "max_iter": 15},
        40,
    ),
    "mnist": ({"n_components": 60, "alpha": 4e-4, "tol": 0.05, "max_iter": 10}, 20),
    "fashion_mnist": ({"n_components": 100, "alpha": 1.5e-3, "tol": 0.05, "max_iter": 10}, 20),
}
COLUMNS = ("set", "model", "units", "test", "train", "objective", "gap", "s", "settings")


def ours(parameters: dict[str, Any], data: Any) -> Cell:
    """Fit the estimator."""
    X, y, X_test, y_test = (A.reshape(len(A), -1) if A.ndim > 1 else A for A in data)
    model = image_classifier(data[0].shape[1:], verbose=1, **parameters)
    seconds = timed(model.fit, X, y).cpu
    found = {"units": model.n_neurons_, "test": model.score(X_test, y_test)}
    found |= {"train": model.score(X, y), "objective": model.objective_, "gap": model.dual_gap_}
    return found | {"s": seconds, "settings": ", ".join(f"{k}={v}" for k, v in parameters.items())}


def adam(parameters: dict[str, Any], data: Any, units: int, rate: float, epochs: int) -> Cell:
    """Train the same architecture by Adam."""
    torch.manual_seed(0)
    shape = {
        key: parameters[key] for key in ("patch_size", "stride", "pooling") & parameters.keys()
    }
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
    found = {"units": units, "test": evaluate(network, test_images, y_test, alpha)[1]}
    found |= {"train": train, "objective": objective, "gap": None, "s": seconds}
    return found | {"settings": f"rate {rate:g}, {epochs} epochs, batches of 100"}


class Images(Benchmark):
    name = "bench_images"
    keys = ("set", "model", "rate")
    settings = ("rows", "units", "epochs", "max_iter")
    title, words = "Images", (__doc__ or "").strip()
    columns = dict.fromkeys(COLUMNS, ".4g")

    def add_options(self, add: Any) -> None:
        add("--data", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
        add("--rows", type=int, help="the first training images only")
        add("--units", type=int, help="train Adam with these only, without our fit")
        add("--epochs", type=int, help="of Adam, in place of those of PROBLEMS")
        add("--max-iter", type=int, help="of our fits, in place of those of PROBLEMS")
        add("--rates", type=float, nargs="*", default=[1e-3, 3e-3, 1e-2, 3e-2])

    def plan(self) -> Iterable[Cell]:
        for name in self.options.data:
            if not self.options.units:
                yield {"set": name, "model": "ours", "rate": None}
            for rate in self.options.rates:
                yield {"set": name, "model": "Adam", "rate": rate}

    def measure(self, cell: Cell) -> Cell:
        parameters, epochs = PROBLEMS[cell["set"]]
        if self.options.max_iter:
            parameters = parameters | {"max_iter": self.options.max_iter}
        images = load_images(cell["set"])
        images = (*(part[: self.options.rows] for part in images[:2]), *images[2:])
        if cell["model"] == "ours":
            return ours(parameters, images)
        fits = [c for c in self.finished() if (c["set"], c["model"]) == (cell["set"], "ours")]
        units = self.options.units or fits[0]["units"]
        return adam(parameters, images, units, cell["rate"], self.options.epochs or epochs)


if __name__ == "__main__":
    sys.exit(Images().main())

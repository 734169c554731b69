"""Fits on a CUDA device beside the same fits on all cores of the machine's processor.

Default parameters, but for the number of rounds where that is stated; images with the parameters of
`bench_images.py`. Fits of many rounds are on the device only. Wall seconds; `ratio` is the
processor's time over the device's. Sums in another order can lead a fit to other neurons. Scores
are of rows or images that were not trained on: R2, or accuracy.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))

import _suite  # noqa: F401 - first: it sets the number of threads

# isort: split
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from _suite.benchmark import Benchmark
from _suite.data import load_images, teacher
from _suite.package import image_classifier, own_model
from _suite.runner import timed
from _suite.store import Cell
from _suite.tables import geometric_mean, markdown

import torch

Fit = tuple[Any, Any, Any, Any]  # an estimator, X, y, and what it is scored on
CIFAR10 = {"patch_size": 6, "stride": 2, "pooling": 2, "n_components": 40, "alpha": 1e-3}
MNIST = {"n_components": 60, "alpha": 4e-4, "tol": 0.05}


def on_teacher(n: int, classes: bool = False, **parameters: Any) -> Fit:
    """Return a fit to n rows of 30 columns."""
    X, y = teacher(n + 10_000, classes)
    return own_model(classes, **parameters), X[:n], y[:n], (X[n:], y[n:])


def on_images(name: str, **parameters: Any) -> Fit:
    """Return a fit to images, one a row."""
    X, y, X_test, y_test = load_images(name)
    model = image_classifier(X.shape[1:], **parameters)
    return model, X.reshape(len(X), -1), y, (X_test.reshape(len(X_test), -1), y_test)


FITS = {
    "10^4 rows, 15 rounds": lambda: on_teacher(10_000, max_iter=15),
    "10^5 rows, 5 rounds": lambda: on_teacher(100_000, max_iter=5),
    "10^6 rows, 3 rounds": lambda: on_teacher(1_000_000, max_iter=3),
    "two classes, 10^5 rows, 5 rounds": lambda: on_teacher(100_000, classes=True, max_iter=5),
    "MNIST, 3 rounds": lambda: on_images("mnist", **MNIST, max_iter=3),
    "CIFAR-10, 2 rounds": lambda: on_images("cifar10", **CIFAR10, tol=0.1, max_iter=2),
}
#: Whole fits, that take the processor long.
WHOLE = {
    "10^4 rows": lambda: on_teacher(10_000),
    "MNIST, 10 rounds": lambda: on_images("mnist", **MNIST, max_iter=10),
    "CIFAR-10, 7 rounds": lambda: on_images("cifar10", **CIFAR10, tol=0.1, max_iter=7),
}


class Devices(Benchmark):
    name = "bench_gpu"
    keys = ("fit", "device")
    title, words = "Fits on a GPU", (__doc__ or "").strip()

    def add_options(self, add: Any) -> None:
        add("--fits", nargs="+", choices=[*FITS, *WHOLE], default=[*FITS, *WHOLE])
        add("--devices", nargs="+", default=["cpu", "cuda"])

    def plan(self) -> Iterator[Cell]:
        for name in self.options.fits:
            for device in self.options.devices:
                if device == "cuda" or name in FITS:
                    yield {"fit": name, "device": device}

    def prepare(self) -> None:
        for device in self.options.devices:  # loads and starts what a fit needs
            own_model(False, device=device).fit(*teacher(1000))

    def facts(self) -> dict[str, str]:
        if not torch.cuda.is_available():
            return {"gpu": "none"}
        return {"gpu": torch.cuda.get_device_name(), "cuda": str(torch.version.cuda)}

    def measure(self, cell: Cell) -> Cell:
        model, X, y, test = (FITS | WHOLE)[cell["fit"]]()
        model.set_params(device=cell["device"])
        seconds = timed(model.fit, X, y).wall
        found = {"rounds": model.n_iter_, "neurons": model.n_neurons_, "gap": model.dual_gap_}
        found |= {"objective": model.objective_, "score": model.score(*test)}
        return {"s": seconds} | found

    def report(self, cells: list[Cell]) -> Iterable[str]:
        rows = []
        for cell in cells:
            here = [c for c in cells if c["fit"] == cell["fit"] and c["device"] == "cpu"]
            row = {key: value for key, value in cell.items() if key != "run"}
            if cell["device"] != "cpu" and here:
                row["ratio"] = here[0]["s"] / cell["s"]
            rows.append(row)
        yield self.title
        yield self.words
        columns = ("fit", "device", "s", "ratio", "rounds", "neurons")
        columns += ("gap", "objective", "score")
        yield markdown(rows, dict.fromkeys(columns, ".3g"), "-")
        ratios = [row["ratio"] for row in rows if "ratio" in row]
        if ratios:
            mean = geometric_mean(ratios)
            yield f"Geometric mean of the ratios: {mean:.3g} over {len(ratios)} fits."


if __name__ == "__main__":
    sys.exit(Devices().main())

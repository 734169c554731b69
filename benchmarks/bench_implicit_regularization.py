"""The bias of gradient descent, beside the same bias as a parameter: a study on images.

Gradient descent on a network with batch normalization learns the directions of large variance
first. The global optimum of the training problem has no such preference; ``n_components`` and
``shrinkage`` bring one back. On subsets of image sets, dense and convolutional:

- SGD with momentum and Adam, several rates and seeds, mini-batches and a cosine schedule;
- the optimum of the same objective through its convex form, to an estimated relative gap `--tol`;
- the same with the k leading singular directions only, over k;
- the same with shrinkage.

All minimise the mean cross-entropy plus alpha / 2 times the squared weights and biases of batch
normalization and the squared output weights. A rate, a k and a shrinkage are chosen by validation
images that no fit saw; test images choose nothing. Along the way of a gradient method, and for
every optimum, the energy of the hidden weights along the singular directions is kept.
`--size full` has all images but those to choose by, and fewer values: MNIST and Fashion-MNIST
dense, CIFAR-10 convolutional.
"""

import sys
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

from _suite.benchmark import RESULTS, Benchmark
from _suite.data import load_images
from _suite.networks import Architecture, Moments, evaluate, training
from _suite.package import image_classifier
from _suite.runner import timed
from _suite.store import Cell
from _suite.tables import markdown

import numpy as np
import torch

SETS = ("mnist", "fashion_mnist", "cifar10")
#: By size of the study and model: images to train with; hidden units, epochs and seeds of gradient
#: methods; patch size, stride and pooling; what is tried of rates, of directions, of shrinkage; and
#: the sets, if not all.
SIZES: dict[str, dict[str, dict[str, Any]]] = {
    "small": {
        "dense": {"rows": 3000, "units": 256, "epochs": 100, "seeds": 3}
        | {"sgd": (1e-5, 1e-4, 1e-3, 0.01, 0.1, 1.0), "adam": (1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.1)}
        | {"truncated": (10, 20, 40, 80, 160, 320), "shrunk": (0.1, 0.5, 1.0)},
        "conv": {"rows": 2000, "units": 128, "epochs": 150, "seeds": 2}
        | {"patch": (6, 4), "pooling": 2}
        | {"sgd": (1e-3, 0.01, 0.1, 1.0), "adam": (1e-4, 1e-3, 0.01, 0.1)}
        | {"truncated": (5, 10, 20, 40, 80), "shrunk": (0.1, 0.5, 1.0)},
    },
    "full": {
        "dense": {"rows": 60000, "units": 256, "epochs": 20, "seeds": 3}
        | {"sgd": (1e-3, 0.01, 0.1), "adam": (1e-4, 1e-3, 0.01)}
        | {"truncated": (20, 40, 80, 160), "shrunk": (0.1, 1.0)}
        | {"sets": ("mnist", "fashion_mnist")},
        "conv": {"rows": 60000, "units": 256, "epochs": 40, "seeds": 3}
        | {"patch": (6, 4), "pooling": 2}
        | {"sgd": (0.03, 0.1), "adam": (3e-3, 0.01)}
        | {"truncated": (20, 40), "shrunk": (0.5, 1.0)}
        | {"sets": ("cifar10",)},
    },
}
GRADIENTS = ("sgd", "adam")
VALIDATION = 2000  # images to choose by; in the full study all others train
LOOKS = (0, 1, 3, 10, 30)  # epochs with a look at the network
NAMES = {"sgd": "SGD", "adam": "Adam", "optimum": "optimum"}
NAMES |= {"truncated": "optimum, k directions", "shrunk": "optimum, shrinkage"}
N_RANKS = 40  # numbers of leading directions whose energy is kept


class Problem:
    """A set of images and a model: the arrays of all fits."""

    def __init__(self, data: str, model: str, size: str) -> None:
        settings = SIZES[size][model]
        X, y, X_test, y_test = load_images(data)
        n = min(settings["rows"], max(len(X) - VALIDATION, len(X) // 2))
        patch, stride = settings.get("patch", (None, 1))
        patch, stride = (3, 2) if patch is not None and X.shape[1] < 28 else (patch, stride)
        self.architecture = Architecture(X.shape[1:], patch, stride, settings.get("pooling", 1))
        chosen = slice(n, n + VALIDATION)
        parts = {"train": (X[:n], y[:n]), "validation": (X[chosen], y[chosen])}
        parts["test"] = (X_test, y_test)
        self.rows, tensor = parts["train"], self.architecture.tensor
        self.parts = {part: (tensor(X), torch.as_tensor(y)) for part, (X, y) in parts.items()}
        self.moments = Moments.of(self.architecture, self.parts["train"][0])
        self.sizes = {part: len(images) for part, (images, _) in self.parts.items()}
        self.sizes["directions"] = len(self.moments.directions[0])

    def look(self, network: torch.nn.Sequential, alpha: float) -> Cell:
        """Return the objective, accuracies and shares of energy of a network."""
        self.moments.normalize(network)
        found = {part: evaluate(network, *rows, alpha) for part, rows in self.parts.items()}
        total = np.cumsum(self.moments.energy(network))
        ranks = np.unique(np.geomspace(1, len(total), N_RANKS).round().astype(int))
        energy = {str(rank): float(f"{total[rank - 1]:.3g}") for rank in ranks}
        accuracies = {part: accuracy for part, (_, accuracy) in found.items()}
        return {"objective": found["train"][0], **accuracies, "energy": energy}


load = cache(Problem)


def groups(cells: list[Cell], *keys: str) -> dict[tuple[Any, ...], list[Cell]]:
    """Return the fits of each combination of values of some keys."""
    found: dict[tuple[Any, ...], list[Cell]] = {}
    for cell in cells:
        found.setdefault(tuple(cell[key] for key in keys), []).append(cell)
    return found


def settings_of(cells: list[Cell], method: str) -> list[list[Cell]]:
    """Return the fits of a method, those of one value (its seeds) together."""
    return list(groups([c for c in cells if c["method"] == method], "value").values())


def chosen(cells: list[Cell], method: str) -> list[Cell]:
    """Return the fits of the value with the best mean accuracy on the validation images."""
    candidates = settings_of(cells, method)
    return max(candidates, key=lambda seeds: mean(seeds, "validation"), default=[])


def mean(cells: list[Cell], key: str) -> float:
    """Return a mean over seeds."""
    return float(np.mean([cell[key] for cell in cells]))


def table(cells: list[Cell], pick: Any) -> str:
    """Return a table with a row for each list of seeds that `pick` gives for a method."""
    rows = []
    for (model, data), group in groups(cells, "model", "data").items():
        for method, words in NAMES.items():
            for seeds in filter(None, pick(group, method)):
                gap, value = seeds[0].get("gap"), seeds[0]["value"]
                row = {"set": data, "model": model, "method": words}
                row["value"] = "" if value is None else f"{value:g}"
                for part in ("test", "validation", "train"):
                    row[f"{part} %"] = f"{100 * mean(seeds, part):.1f}"
                if len(seeds) > 1:
                    row["test %"] += f" ± {50 * np.ptp([cell['test'] for cell in seeds]):.1f}"
                row["objective"] = f"{mean(seeds, 'objective'):.4f}"
                row["estimated gap"] = "" if gap is None else f"{gap:.3f}"
                rows.append(row | {"units": seeds[0]["units"], "s": f"{mean(seeds, 's'):.1f}"})
    return markdown(rows, "")


class Study(Benchmark):
    """The fits, their tables and figures."""

    name = "bench_implicit_regularization"
    keys = ("data", "model", "method", "value", "seed")
    settings = ("size", "alpha", "tol", "max_iter", "epochs")

    def add_options(self, add: Any) -> None:
        add("--data", nargs="+", choices=(*SETS, "digits"), default=SETS)
        add("--models", nargs="+", choices=SIZES["small"], default=list(SIZES["small"]))
        add("--methods", nargs="+", choices=NAMES, default=list(NAMES), help="run these only")
        add("--size", choices=SIZES, default="small", help="of the study")
        add("--alpha", type=float, default=3e-3)
        add("--tol", type=float, default=0.1)
        add("--max-iter", type=int, default=15)
        add("--epochs", type=int, help="in place of those of SIZES")
        add("--seeds", type=int, help="in place of those of SIZES")
        figures = RESULTS.parents[1] / "docs" / "images"
        add("--figures", type=Path, default=figures, help="folder of the figures")

    def plan(self) -> Iterator[Cell]:
        models = {m: SIZES[self.options.size][m] for m in self.options.models}
        for data in self.options.data:
            for model, settings in models.items():
                if data not in settings.get("sets", [data]):
                    continue
                kept = [k for k in settings["truncated"] if k < self.directions(data, model)]
                values = {name: settings[name] for name in (*GRADIENTS, "shrunk")}
                values |= {"optimum": [None], "truncated": kept}
                for method in (m for m in NAMES if m in self.options.methods):
                    seeds = self.options.seeds or settings["seeds"]
                    seeds = range(seeds if method in GRADIENTS else 1)
                    for cell in product([data], [model], [method], values[method], seeds):
                        yield dict(zip(self.keys, cell, strict=True))

    def directions(self, data: str, model: str) -> int:
        """Return how many directions a set has."""
        cells = [c for c in self.store.cells if (c["data"], c["model"]) == (data, model)]
        sizes = next((cell["sizes"] for cell in cells if "sizes" in cell), None)
        return (sizes or load(data, model, self.options.size).sizes)["directions"]

    def measure(self, cell: Cell) -> Cell:
        problem = load(cell["data"], cell["model"], self.options.size)
        fit = self.by_gradients if cell["method"] in GRADIENTS else self.by_convex_form
        return {"sizes": problem.sizes, **fit(problem, cell)}

    def by_gradients(self, problem: Problem, cell: Cell) -> Cell:
        """Train a network."""
        torch.manual_seed(cell["seed"])
        images, y = problem.parts["train"]
        settings, alpha = SIZES[self.options.size][cell["model"]], self.options.alpha
        units, epochs = settings["units"], self.options.epochs or settings["epochs"]
        network = problem.architecture.network(units, int(y.max()) + 1)
        course, how = [], {"rate": cell["value"], "epochs": epochs, "alpha": alpha}
        for epoch, seconds in training(network, images, y, optimizer=cell["method"], **how):
            if epoch in LOOKS or epoch == epochs:
                course.append({"epoch": epoch, "s": seconds, **problem.look(network, alpha)})
        return {**course[-1], "units": units, "course": course}

    def by_convex_form(self, problem: Problem, cell: Cell) -> Cell:
        """Fit the estimator of this package and judge its network in torch, as the others."""
        name = {"truncated": "n_components", "shrunk": "shrinkage"}.get(cell["method"])
        parameters = {key: getattr(self.options, key) for key in ("alpha", "tol", "max_iter")}
        parameters |= {name: cell["value"]} if name else {}
        a, (X, y) = problem.architecture, problem.rows
        shape = {"patch_size": a.patch_size, "stride": a.stride, "pooling": a.pooling}
        model = image_classifier(a.image_shape, **shape, **parameters)
        # The values the networks see: batch normalization at eps would feel another scale.
        seconds = timed(model.fit, X.reshape(len(X), -1) / 255 - 0.5, y).cpu
        found = problem.look(model.to_torch(), self.options.alpha)
        own = {"gap": model.dual_gap_, "own_objective": model.objective_, "rounds": model.n_iter_}
        return {**found, **own, "s": seconds, "units": model.n_neurons_}

    def report(self, cells: list[Cell]) -> Iterable[str]:
        options = self.options
        yield "Implicit regularization"
        yield (__doc__ or "").split("\n\n", 1)[1].strip()
        yield (
            f"alpha {options.alpha:g}, batches of 100, momentum 0.9, tol {options.tol:g}, at most "
            f"{options.max_iter} rounds. A ± is half the range of the seeds. Seconds are of one "
            "processor."
        )
        lines = []
        for (model, data), group in groups(cells, "model", "data").items():
            sizes = group[0]["sizes"]
            epochs = next((cell["epoch"] for cell in group if "epoch" in cell), 0)
            lines.append(
                f"- {data}, {model}: {sizes['train']} images to train, {sizes['validation']} to "
                f"choose, {sizes['test']} to test, {sizes['directions']} singular directions; "
                f"{epochs} epochs"
            )
        yield "\n".join(lines)
        yield "## Chosen by the validation images"
        yield table(cells, lambda group, method: [chosen(group, method)])
        yield "## All values"
        yield table(cells, settings_of)

    def draw(self, cells: list[Cell]) -> None:
        labels, folder = ("k", "test accuracy, %"), self.options.figures
        end = "" if self.options.size == "small" else f"_{self.options.size}"
        panels(cells, labels, draw_accuracies, folder / f"implicit_accuracy{end}.png")
        if all("energy" in cell for cell in cells):  # earlier runs did not keep it in their cells
            labels = "singular directions, the largest first", "share of the energy"
            panels(cells, labels, draw_energies, folder / f"implicit_energy{end}.png")


def panels(cells: list[Cell], labels: tuple[str, str], draw: Any, path: Path) -> None:
    """Draw a figure with a row for each model and a column for each set, or all in one row."""
    import matplotlib.pyplot as plt

    found = groups(cells, "model", "data")
    models, sets = (list(dict.fromkeys(names)) for names in zip(*found, strict=True))
    complete = len(found) == len(models) * len(sets)
    rows, columns = (len(models), len(sets)) if complete else (1, len(found))
    figure, axes = plt.subplots(
        rows, columns, figsize=(max(3.6 * columns, 7), 3 * rows), squeeze=False
    )
    names: dict[str, Any] = {}
    for place, ((model, data), group) in enumerate(found.items()):
        row = models.index(model) if complete else 0
        column = sets.index(data) if complete else place
        axis = axes[row, column]
        axis.set_title(f"{data}, {model}, {group[0]['sizes']['train']} images")
        axis.set_xlabel(labels[0] if row == rows - 1 else "")
        axis.set_ylabel(labels[1] if column == 0 else "")
        axis.grid(alpha=0.3)
        draw(axis, group)
        handles, labels_here = axis.get_legend_handles_labels()
        names |= dict(zip(labels_here, handles, strict=True))
    figure.tight_layout(rect=(0, 0.18 / len(axes), 1, 1))
    figure.legend(names.values(), names.keys(), loc="lower center", ncols=5, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def draw_accuracies(axis: Any, group: list[Cell]) -> None:
    """Draw test accuracies over k, with the other methods as lines."""
    styles = {
        "sgd": ("C1", "-"),
        "adam": ("C2", "-"),
        "optimum": ("C3", ":"),
        "shrunk": ("C4", "--"),
    }
    curve = {seeds[0]["value"]: 100 * seeds[0]["test"] for seeds in settings_of(group, "truncated")}
    axis.semilogx(curve.keys(), curve.values(), "ko-", ms=4, label=NAMES["truncated"])
    axis.set_xticks(list(curve), list(curve), minor=False)
    axis.minorticks_off()
    for method, (color, line) in styles.items():
        tests = [100 * cell["test"] for cell in chosen(group, method)]
        if tests:
            axis.axhline(np.mean(tests), color=color, ls=line, label=NAMES[method])
            axis.axhspan(min(tests), max(tests), color=color, alpha=0.2, lw=0)


def draw_energies(axis: Any, group: list[Cell]) -> None:
    """Draw the cumulated energy over the singular directions, along SGD and of optima."""
    styles = {"optimum": ("C3", ":", ""), "truncated": ("C0", "--", ", best k")}
    styles |= {"shrunk": ("C4", "--", ", best shrinkage")}
    course = [look for cell in chosen(group, "sgd")[:1] for look in cell["course"]]
    lines = []
    for i, look in enumerate(course):
        when = "at the end" if look is course[-1] else f"{look['epoch']} epochs"
        shade = 0.85 - 0.85 * i / max(1, len(course) - 1)
        lines.append((look, {"color": str(shade), "label": f"SGD, {when}"}))
    for method, (color, line, words) in styles.items():
        style = {"lw": 2, "color": color, "ls": line, "label": f"optimum{words}"}
        lines += [(cell, style) for cell in chosen(group, method)]
    for cell, style in lines:
        axis.semilogx([int(k) for k in cell["energy"]], list(cell["energy"].values()), **style)


if __name__ == "__main__":
    sys.exit(Study().main())

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

Each fit is a file in ``--cells``, so a stopped run resumes. A run ends by writing
``bench_implicit_regularization.json``, its tables as ``.md`` and two figures::

    python benchmarks/bench_implicit_regularization.py [--data mnist] [--models dense]
    python benchmarks/bench_implicit_regularization.py --data digits --epochs 10 --seeds 1
    python benchmarks/bench_implicit_regularization.py --report
"""

from __future__ import annotations

import _suite  # noqa: F401 - first: it sets the number of threads

# isort: split
import argparse
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _suite.circumstances import circumstances
from _suite.data import load_images
from _suite.networks import Architecture, Moments, evaluate, training
from sklearn.exceptions import ConvergenceWarning

from sklearn_convexbn import ConvexBNClassifier, Patches

HERE = Path(__file__).resolve().parent
SETS = ("mnist", "fashion_mnist", "cifar10")
#: Images to train with; hidden units, epochs and seeds of gradient methods; patch size, stride.
MODELS: dict[str, dict[str, Any]] = {
    "dense": {"rows": 3000, "units": 256, "epochs": 100, "seeds": 3, "patch": None},
    "conv": {"rows": 2000, "units": 128, "epochs": 150, "seeds": 2, "patch": (6, 4), "pooling": 2},
}
RATES = {
    "dense": {
        "sgd": (1e-5, 1e-4, 1e-3, 0.01, 0.1, 1.0),
        "adam": (1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.1),
    },
    "conv": {"sgd": (1e-3, 0.01, 0.1, 1.0), "adam": (1e-4, 1e-3, 0.01, 0.1)},
}
COMPONENTS = {"dense": (10, 20, 40, 80, 160, 320), "conv": (5, 10, 20, 40, 80)}
SHRINKAGES = (0.1, 0.5, 1.0)
NAMES = {
    "sgd": "SGD",
    "adam": "Adam",
    "optimum": "optimum",
    "truncated": "optimum, k directions",
    "shrunk": "optimum, shrinkage",
}
Cell = dict[str, Any]


class Problem:
    """A set of images and a model: the arrays of all fits."""

    def __init__(self, data: str, model: str, options: argparse.Namespace) -> None:
        settings = MODELS[model]
        X, y, X_test, y_test = load_images(data)
        n = min(settings["rows"], len(X) // 2)
        validation = slice(n, n + min(options.validation, len(X) - n))
        self.data, self.model, self.units = data, model, settings["units"]
        patch, stride = settings["patch"] or (None, 1)
        if patch is not None and X.shape[1] < 28:
            patch, stride = 3, 2
        self.architecture = Architecture(X.shape[1:], patch, stride, settings.get("pooling", 1))
        parts = {"train": (X[:n], y[:n]), "validation": (X[validation], y[validation])}
        parts["test"] = (X_test, y_test)
        self.parts = {
            part: (self.architecture.tensor(X), torch.as_tensor(y))
            for part, (X, y) in parts.items()
        }
        self.rows = parts["train"]
        self.moments = Moments.of(self.architecture, self.parts["train"][0])

    @property
    def sizes(self) -> dict[str, int]:
        """Number of images of each part, and of singular directions."""
        counts = {part: len(images) for part, (images, _) in self.parts.items()}
        return counts | {"directions": len(self.moments.directions[0])}

    def look(self, network: torch.nn.Sequential, alpha: float) -> Cell:
        """Return the objective, accuracies and energies of a network."""
        self.moments.normalize(network)
        found = {
            part: evaluate(network, images, y, alpha) for part, (images, y) in self.parts.items()
        }
        accuracies = {part: accuracy for part, (_, accuracy) in found.items()}
        energy = [float(f"{share:.3g}") for share in self.moments.energy(network)]
        return {"objective": found["train"][0], **accuracies, "energy": energy}


def plan(model: str, options: argparse.Namespace) -> Iterator[Cell]:
    """Yield the fits of a model: method, its value, seed."""
    for method, rates in RATES[model].items():
        for rate in rates:
            for seed in range(options.seeds or MODELS[model]["seeds"]):
                yield {"method": method, "value": rate, "seed": seed}
    yield {"method": "optimum", "value": None, "seed": 0}
    for k in COMPONENTS[model]:
        yield {"method": "truncated", "value": k, "seed": 0}
    for shrinkage in SHRINKAGES:
        yield {"method": "shrunk", "value": shrinkage, "seed": 0}


def by_gradients(problem: Problem, cell: Cell, options: argparse.Namespace) -> Cell:
    """Train a network."""
    torch.manual_seed(cell["seed"])
    images, y = problem.parts["train"]
    network = problem.architecture.network(problem.units, int(y.max()) + 1)
    epochs = options.epochs or MODELS[problem.model]["epochs"]
    settings = {"rate": cell["value"], "epochs": epochs, "alpha": options.alpha}
    course = []
    for epoch, seconds in training(network, images, y, optimizer=cell["method"], **settings):
        if epoch in options.looks or epoch == epochs:
            course.append({"epoch": epoch, "s": seconds, **problem.look(network, options.alpha)})
    return {**course[-1], "units": problem.units, "course": course}


def by_convex_form(problem: Problem, cell: Cell, options: argparse.Namespace) -> Cell:
    """Fit the estimator of this package and judge its network in torch, as the others."""
    parameters = {"alpha": options.alpha, "tol": options.tol, "random_state": 0}
    parameters["max_iter"] = options.max_iter
    name = {"truncated": "n_components", "shrunk": "shrinkage"}.get(cell["method"])
    parameters |= {name: cell["value"]} if name else {}
    X, y = problem.rows
    model: Any = ConvexBNClassifier(**parameters)
    if problem.architecture.patch_size is not None:
        a = problem.architecture
        patches = Patches(a.image_shape, size=a.patch_size, stride=a.stride, pooling=a.pooling)
        model = ConvexBNClassifier(patches=patches, **parameters)
    # The values the networks see: batch normalization at eps would feel another scale.
    rows = X.reshape(len(X), -1) / 255 - 0.5
    begin = time.process_time()
    model.fit(rows, y)
    seconds = time.process_time() - begin
    found = problem.look(model.to_torch(), options.alpha)
    own = {"gap": model.dual_gap_, "own_objective": model.objective_, "rounds": model.n_iter_}
    return {**found, **own, "s": seconds, "units": model.n_neurons_}


def run(options: argparse.Namespace) -> None:
    """Run the fits that have no file yet."""
    options.cells.mkdir(parents=True, exist_ok=True)
    for data in options.data:
        for model in options.models:
            problem = None
            for cell in plan(model, options):
                path = cell_path(options.cells, data, model, cell)
                if path.is_file() or cell["method"] not in options.methods:
                    continue
                problem = problem or Problem(data, model, options)
                if cell["method"] == "truncated" and cell["value"] >= problem.sizes["directions"]:
                    continue
                fit = by_gradients if cell["method"] in RATES[model] else by_convex_form
                found = {"data": data, "model": model, **cell, "sizes": problem.sizes}
                found |= fit(problem, cell, options)
                path.write_text(json.dumps(found) + "\n", encoding="utf-8")
                said = {key: round(found[key], 4) for key in ("test", "objective", "s")}
                print(time.strftime("%H:%M:%S"), path.stem, said, flush=True)


def cell_path(folder: Path, data: str, model: str, cell: Cell) -> Path:
    """Return where a fit is kept."""
    return folder / f"{data}-{model}-{cell['method']}-{cell['value']}-{cell['seed']}.json"


# --------------------------------------------------------------------------------------
# Report
# --------------------------------------------------------------------------------------


def read_cells(options: argparse.Namespace) -> list[Cell]:
    """Return the fits there are, in the order of the plan."""
    paths = [
        cell_path(options.cells, data, model, cell)
        for data in options.data
        for model in options.models
        for cell in plan(model, options)
    ]
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.is_file()]


def groups(cells: list[Cell]) -> dict[tuple[str, str], list[Cell]]:
    """Return the fits of each (model, data)."""
    found: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        found.setdefault((cell["model"], cell["data"]), []).append(cell)
    return found


def settings_of(cells: list[Cell], method: str) -> list[list[Cell]]:
    """Return the fits of a method, those of one value (its seeds) together."""
    found: dict[Any, list[Cell]] = {}
    for cell in cells:
        if cell["method"] == method:
            found.setdefault(cell["value"], []).append(cell)
    return list(found.values())


def chosen(cells: list[Cell], method: str) -> list[Cell]:
    """Return the fits of the value with the best mean accuracy on the validation images."""
    candidates = settings_of(cells, method)
    return max(candidates, key=lambda seeds: mean(seeds, "validation"), default=[])


def mean(cells: list[Cell], key: str) -> float:
    """Return a mean over seeds."""
    return float(np.mean([cell[key] for cell in cells]))


def table(cells: list[Cell], methods: Any, pick: Any) -> str:
    """Return a table with a row for each list of seeds that `pick` gives for a method."""
    header = ("set", "model", "method", "value", "test %", "validation %", "train %")
    header = (*header, "objective", "estimated gap", "units", "s")
    lines = ["| " + " | ".join(header) + " |", "|---|---|---|---:|" + "---:|" * 7]
    for (model, data), group in groups(cells).items():
        for method in methods:
            for seeds in filter(None, pick(group, method)):
                gap = seeds[0].get("gap")
                spread = 50 * np.ptp([cell["test"] for cell in seeds])
                value = "" if seeds[0]["value"] is None else f"{seeds[0]['value']:g}"
                accuracies = [100 * mean(seeds, part) for part in ("test", "validation", "train")]
                texts = [f"{accuracy:.1f}" for accuracy in accuracies]
                texts[0] += f" ± {spread:.1f}" if len(seeds) > 1 else ""
                texts += [f"{mean(seeds, 'objective'):.4f}", "" if gap is None else f"{gap:.3f}"]
                texts += [str(seeds[0]["units"]), f"{mean(seeds, 's'):.1f}"]
                lines.append("| " + " | ".join([data, model, NAMES[method], value, *texts]) + " |")
    return "\n".join(lines)


class Panels:
    """A figure with a row for each model and a column for each set."""

    def __init__(self, cells: list[Cell], xlabel: str, ylabel: str) -> None:
        import matplotlib.pyplot as plt

        self.groups = groups(cells)
        self.models = list(dict.fromkeys(model for model, _ in self.groups))
        self.sets = list(dict.fromkeys(data for _, data in self.groups))
        rows, columns = len(self.models), len(self.sets)
        self.figure, self.axes = plt.subplots(
            rows, columns, figsize=(3.6 * columns, 3 * rows), squeeze=False
        )
        for axis in self.axes[-1]:
            axis.set_xlabel(xlabel)
        for row in self.axes:
            row[0].set_ylabel(ylabel)

    def __iter__(self) -> Iterator[tuple[Any, list[Cell]]]:
        """Yield an axis and its fits."""
        for (model, data), group in self.groups.items():
            axis = self.axes[self.models.index(model), self.sets.index(data)]
            axis.set_title(f"{data}, {model}, {group[0]['sizes']['train']} images")
            axis.grid(alpha=0.3)
            yield axis, group

    def save(self, path: Path) -> None:
        """Add the legend of the first panel below all, and save."""
        handles, labels = self.axes[0, 0].get_legend_handles_labels()
        self.figure.tight_layout(rect=(0, 0.24 / len(self.axes), 1, 1))
        self.figure.legend(handles, labels, loc="lower center", ncols=5, frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.figure.savefig(path, dpi=110)


def draw_accuracies(cells: list[Cell], path: Path) -> None:
    """Draw test accuracies over k, with the other methods as lines."""
    styles = {
        "sgd": ("C1", "-"),
        "adam": ("C2", "-"),
        "optimum": ("C3", ":"),
        "shrunk": ("C4", "--"),
    }
    panels = Panels(cells, "k", "test accuracy, %")
    for axis, group in panels:
        curve = [seeds[0] for seeds in settings_of(group, "truncated")]
        values = [cell["value"] for cell in curve]
        tests = [100 * cell["test"] for cell in curve]
        axis.semilogx(values, tests, "ko-", ms=4, label=NAMES["truncated"])
        axis.set_xticks(values, values, minor=False)
        axis.minorticks_off()
        for method, (color, line) in styles.items():
            tests = [100 * cell["test"] for cell in chosen(group, method)]
            if tests:
                axis.axhline(np.mean(tests), color=color, ls=line, label=NAMES[method])
                axis.axhspan(min(tests), max(tests), color=color, alpha=0.2, lw=0)
    panels.save(path)


def draw_energies(cells: list[Cell], path: Path) -> None:
    """Draw the cumulated energy over the singular directions, along SGD and of optima."""
    styles: dict[str, dict[str, Any]] = {
        "optimum": {"color": "C3", "ls": ":", "label": "optimum"},
        "truncated": {"color": "C0", "ls": "--", "label": "optimum, best k"},
        "shrunk": {"color": "C4", "ls": "--", "label": "optimum, best shrinkage"},
    }
    panels = Panels(cells, "singular directions, the largest first", "share of the energy")
    for axis, group in panels:
        lines = []
        for seeds in filter(None, [chosen(group, "sgd")]):
            course = seeds[0]["course"]
            for i, look in enumerate(course):
                when = "at the end" if look is course[-1] else f"{look['epoch']} epochs"
                shade = 0.85 - 0.85 * i / max(1, len(course) - 1)
                lines.append((look, {"color": str(shade), "label": f"SGD, {when}"}))
        for method, style in styles.items():
            lines += [(cell, {"lw": 2, **style}) for cell in chosen(group, method)]
        for cell, style in lines:
            total = np.cumsum(cell["energy"])
            axis.semilogx(np.arange(1, len(total) + 1), total, **style)
    panels.save(path)


def without_energies(cell: Cell) -> Cell:
    """Return a fit without its energies, which are many numbers: figures are made of them."""
    kept = {key: value for key, value in cell.items() if key not in ("energy", "course")}
    course = [
        {key: value for key, value in look.items() if key != "energy"}
        for look in cell.get("course", [])
    ]
    return {**kept, "course": course} if course else kept


def report(cells: list[Cell], options: argparse.Namespace) -> None:
    """Write the tables, the numbers behind them and the figures."""
    about = circumstances()
    sizes = [
        f"- {data}, {model}: {group[0]['sizes']['train']} images to train, "
        f"{group[0]['sizes']['validation']} to choose, {group[0]['sizes']['test']} to test, "
        f"{group[0]['sizes']['directions']} singular directions; {group[0]['course'][-1]['epoch']} "
        "epochs"
        for (model, data), group in groups(cells).items()
    ]
    parts = [
        "# Implicit regularization",
        (__doc__ or "").split("\n\n", 1)[1].split("\n\nEach fit is")[0],
        f"alpha {options.alpha:g}, batches of 100, momentum 0.9, tol {options.tol:g}, at most "
        f"{options.max_iter} rounds. A ± is half the range of the seeds. Seconds are of one "
        "processor.",
        "\n".join(sizes),
        "## Chosen by the validation images",
        table(cells, NAMES, lambda group, method: [chosen(group, method)]),
        "## All values",
        table(cells, NAMES, settings_of),
        "## Circumstances",
        "\n".join(f"- {key}: {value}" for key, value in about.items()),
    ]
    options.results.mkdir(parents=True, exist_ok=True)
    name = options.results / "bench_implicit_regularization"
    name.with_suffix(".md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    content = {"circumstances": about, "cells": [without_energies(c) for c in cells]}
    name.with_suffix(".json").write_text(json.dumps(content) + "\n", encoding="utf-8")
    draw_accuracies(cells, options.figures / "implicit_accuracy.png")
    draw_energies(cells, options.figures / "implicit_energy.png")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", nargs="+", choices=(*SETS, "digits"), default=SETS)
    add("--models", nargs="+", choices=MODELS, default=list(MODELS))
    add("--methods", nargs="+", choices=NAMES, default=list(NAMES), help="run these only")
    add("--alpha", type=float, default=3e-3)
    add("--tol", type=float, default=0.1)
    add("--max-iter", type=int, default=15)
    add("--epochs", type=int, help="in place of those of MODELS")
    add("--seeds", type=int, help="in place of those of MODELS")
    add("--looks", type=int, nargs="+", default=[0, 1, 3, 10, 30], help="epochs with a look")
    add("--validation", type=int, default=2000, help="images to choose by")
    add("--cells", type=Path, default=Path(tempfile.gettempdir()) / "implicit_regularization")
    add("--results", type=Path, default=HERE / "results")
    add("--figures", type=Path, default=HERE.parent / "docs" / "images")
    add("--report", action="store_true", help="run nothing")
    return parser.parse_args()


def main() -> int:
    """Run the study and write its report."""
    options = parse_arguments()
    warnings.simplefilter("ignore", ConvergenceWarning)
    if not options.report:
        run(options)
    report(read_cells(options), options)
    return 0


if __name__ == "__main__":
    sys.exit(main())

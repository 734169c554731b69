# ruff: noqa: E402 - the thread variables are set before NumPy is imported
"""Test errors of this package and of scikit-learn's models under equal tuning effort.

Each data set is split once, by a seed; fully repeated rows (inputs and target) are dropped first,
so that no test row is also a training row. Every model is the last step of
``make_pipeline(StandardScaler(), model)`` and gets 12 candidates in a 3-fold grid search, the same
folds for every model, in one thread. Peers for regression are trained on a standardised target, as
this package's regressor is by itself. Errors are the root mean squared error divided by the
training target's standard deviation, and the error rate.

Each (set, model) cell is a file in ``--cells``: a run can be stopped and resumed. Cells of other
settings or another grid count as missing. A run ends by writing ``bench_accuracy.json`` and
``bench_accuracy.md`` from all the cells there are::

    python benchmarks/bench_accuracy.py [--data FOLDER] [--models mlp svm] [--sets airfoil]
    python benchmarks/bench_accuracy.py --models ours --force
    python benchmarks/bench_accuracy.py --list
    python benchmarks/bench_accuracy.py --report
    python benchmarks/bench_accuracy.py --defaults alpha=0.1,0.01 shrinkage=0,auto

``--defaults`` tunes nothing: it fits this package's estimators with every combination of the
values named, all else at its default, and prints test errors, CPU seconds and neurons.
"""

from __future__ import annotations

import os

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
for _variable in THREADS:  # before NumPy is imported
    os.environ.setdefault(_variable, "1")

import argparse
import ast
import importlib.metadata
import json
import platform
import shlex
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import gmean, rankdata
from sklearn import datasets, ensemble, neural_network, svm
from sklearn.base import clone
from sklearn.compose import TransformedTargetRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import root_mean_squared_error, zero_one_loss
from sklearn.model_selection import (
    GridSearchCV,
    KFold,
    ParameterGrid,
    StratifiedKFold,
    train_test_split,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

FOLDERS = {"uci": "regression", "uci_classification": "classification"}
MEASURES = {"regression": "RMSE / standard deviation", "classification": "error rate"}
BUNDLED = {
    "diabetes": ("regression", datasets.load_diabetes),
    "breast_cancer": ("classification", datasets.load_breast_cancer),
    "wine_cultivars": ("classification", datasets.load_wine),
    "digits": ("classification", datasets.load_digits),
}
LEAKING_COLUMNS = {"bike": [15, 16]}  # they add up to exp(target), see the data's README
#: This package: besides alpha it tunes shrinkage or n_components. `ours_lower_alpha` stops at a gap
#: of 0.1 and leaves out the largest alpha of the others for one below the smallest.
OURS = ("ours", "ours_lower_alpha", "ours_components")
RANKED = ("svm", "forest", "hgb", "mlp")
PEERS = (*RANKED, "mlp_one_layer")
MODELS = (*PEERS, *OURS)  # in the order they are run
N_FOLDS = 3
MANY_ROWS = 1000  # test rows from which on a pair of errors says something by itself

Cell = dict[str, Any]
Cells = dict[tuple[str, str], Cell]


# --------------------------------------------------------------------------------------
# Data
# --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DataSet:
    """One data set, split."""

    name: str
    task: str
    X_train: NDArray[np.float64]
    y_train: NDArray[Any]
    X_test: NDArray[np.float64]
    y_test: NDArray[Any]

    @property
    def sizes(self) -> dict[str, int]:
        """Rows, features and classes (0 for regression)."""
        n_classes = len(np.unique(self.y_train)) if self.task == "classification" else 0
        n_train, d = self.X_train.shape
        return {"n_train": n_train, "d": d, "n_test": len(self.X_test), "n_classes": n_classes}

    def error(self, prediction: NDArray[Any]) -> float:
        """Return the test error of a prediction."""
        if self.task == "classification":
            return float(zero_one_loss(self.y_test, prediction))
        return float(root_mean_squared_error(self.y_test, prediction) / self.y_train.std())


def split(name: str, task: str, X: Any, y: Any, official: Any, settings: dict[str, int]) -> DataSet:
    """Drop repeated rows and draw training and test rows; keep to an official test set."""
    X = np.delete(np.asarray(X, dtype=np.float64), LEAKING_COLUMNS.get(name, []), axis=1)
    rows = np.sort(np.unique(np.column_stack([X, y]), axis=0, return_index=True)[1])

    def draw(pool: NDArray[np.intp], size: int) -> NDArray[np.intp]:
        if size >= len(pool):
            return pool
        strata = y[pool] if task == "classification" else None
        return train_test_split(
            pool, train_size=size, random_state=settings["seed"], stratify=strata
        )[0]

    pool = rows if official is None else rows[~official[rows]]
    train = draw(pool, min(settings["max_train"], int(0.75 * len(rows))))
    rest = np.setdiff1d(rows, train) if official is None else rows[official[rows]]
    test = draw(rest, settings["max_test"])
    return DataSet(name, task, X[train], y[train], X[test], y[test])


def load_sets(folder: Path, settings: dict[str, int], only: Sequence[str]) -> list[DataSet]:
    """Return the data sets, cheapest first; scikit-learn's own if the folder is absent."""
    sets = []
    paths = sorted(path for kind in FOLDERS for path in (folder / kind).glob("*.npz"))
    for path in (p for p in paths if not only or p.stem in only):
        with np.load(path) as data:
            mask = data["test_mask"] if "test_mask" in data.files else None
            official = mask if mask is not None and mask.ndim == 1 else None
            task = FOLDERS[path.parent.name]
            sets.append(split(path.stem, task, data["X"], data["y"], official, settings))
    if not paths:
        print(f"note: no data in {folder}; scikit-learn's bundled sets only")
        for name in (n for n in BUNDLED if not only or n in only):
            task, load = BUNDLED[name]
            sets.append(split(name, task, *load(return_X_y=True), None, settings))
    unknown = set(only) - {data.name for data in sets}
    if unknown:
        raise SystemExit(f"no such set: {', '.join(sorted(unknown))}")
    return sorted(sets, key=lambda s: len(s.X_train) * max(1, s.sizes["n_classes"] - 1))


# --------------------------------------------------------------------------------------
# Models: an estimator and 12 candidates each
# --------------------------------------------------------------------------------------


@cache
def our_estimators() -> dict[str, Any]:
    """Import this package, which peers run without, and fit once: no later time has imports."""
    from sklearn_convexbn import ConvexBNClassifier, ConvexBNRegressor

    estimators = {"regression": ConvexBNRegressor, "classification": ConvexBNClassifier}
    for estimator in estimators.values():
        estimator(random_state=0).fit(np.arange(8.0)[:, None], [0, 1, 0, 1, 1, 0, 1, 1])
    return estimators


def make_ours(task: str, **parameters: Any) -> Any:
    """Return this package's estimator."""
    return our_estimators()[task](random_state=0, **parameters)


def make_model(name: str, task: str) -> Any:
    """Return a model with the parameters that are not tuned."""
    if name in OURS:
        return make_ours(task)
    if name == "svm":
        # SVR's default epsilon of 0.1 is larger than errors reachable on noiseless targets.
        return svm.SVR(epsilon=0.01) if task == "regression" else svm.SVC()
    module, start, fixed = {
        "forest": (ensemble, "RandomForest", {"n_estimators": 200}),
        "hgb": (ensemble, "HistGradientBoosting", {"max_iter": 200, "early_stopping": False}),
        "mlp": (neural_network, "MLP", {"max_iter": 500, "early_stopping": False}),
    }[name.removesuffix("_one_layer")]
    end = "Regressor" if task == "regression" else "Classifier"
    return getattr(module, start + end)(random_state=0, **fixed)


def make_grid(name: str, n_features: int) -> dict[str, list[Any]]:
    """Return the 12 candidates of a model."""
    alphas = [float(f"{a:.3g}") for a in np.logspace(-1, -1 - 8 / 3, 5)]
    grids: dict[str, dict[str, list[Any]]] = {
        "ours": {"alpha": alphas[:4], "shrinkage": [0.0, 0.1, 0.9]},
        "ours_lower_alpha": {"alpha": alphas[1:], "shrinkage": [0.0, 0.1, 0.9], "tol": [0.1]},
        "ours_components": {"alpha": alphas[:4], "n_components": [None, 0.99, 0.9]},
        "svm": {
            "C": [1, 20, 400],
            "gamma": [float(f"{g / n_features:.3g}") for g in (0.1, 0.3, 1, 3)],
        },
        "forest": {"max_features": ["sqrt", 0.33, 0.67, 1.0], "min_samples_leaf": [1, 3, 10]},
        "hgb": {
            "learning_rate": [0.03, 0.1, 0.3],
            "max_leaf_nodes": [7, 31],
            "min_samples_leaf": [5, 20],
        },
        "mlp": {
            "hidden_layer_sizes": [(100,), (100, 100)],
            "alpha": [0.01, 0.3, 10.0],
            "learning_rate_init": [0.001, 0.01],
        },
        "mlp_one_layer": {
            "hidden_layer_sizes": [(100,)],
            "alpha": [0.001, 0.01, 0.1, 0.3, 1.0, 10.0],
            "learning_rate_init": [0.001, 0.01],
        },
    }
    return grids[name]


def make_candidates(name: str, task: str, n_features: int) -> tuple[Any, dict[str, list[Any]]]:
    """Return the pipeline that is tuned and the grid in its parameters' names."""
    model = make_model(name, task)
    prefix = ""
    if task == "regression" and name not in OURS:  # which standardises the target itself
        model = TransformedTargetRegressor(model, transformer=StandardScaler())
        prefix = "regressor__"
    pipeline = make_pipeline(StandardScaler(), model)
    prefix = f"{pipeline.steps[-1][0]}__{prefix}"
    return pipeline, {prefix + key: values for key, values in make_grid(name, n_features).items()}


# --------------------------------------------------------------------------------------
# Running
# --------------------------------------------------------------------------------------


def recorded(action: Any, *arguments: Any) -> tuple[Any, float, float, int]:
    """Call; return the answer, CPU seconds, wall seconds and the number of ConvergenceWarnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cpu, wall = time.process_time(), time.perf_counter()
        answer = action(*arguments)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    count = sum(issubclass(w.category, ConvergenceWarning) for w in caught)
    return answer, cpu, wall, count


def tune(data: DataSet, name: str, seed: int) -> Cell:
    """Search, refit the best candidate on all training rows and score it on the test rows."""
    regression = data.task == "regression"
    folds = KFold if regression else StratifiedKFold
    pipeline, grid = make_candidates(name, data.task, data.X_train.shape[1])
    search = GridSearchCV(
        pipeline,
        grid,
        cv=folds(N_FOLDS, shuffle=True, random_state=seed),
        scoring="neg_root_mean_squared_error" if regression else "accuracy",
        refit=False,
        error_score="raise",
        n_jobs=1,
    )
    _, search_cpu, search_wall, search_warnings = recorded(search.fit, data.X_train, data.y_train)
    best = clone(pipeline).set_params(**search.best_params_)
    _, refit_cpu, refit_wall, refit_warnings = recorded(best.fit, data.X_train, data.y_train)
    prediction, predict_cpu, _, _ = recorded(best.predict, data.X_test)
    cv = search.best_score_
    return {
        "error": data.error(prediction),
        "cv_error": float(-cv / data.y_train.std() if regression else 1 - cv),
        "best_params": {key.split("__")[-1]: v for key, v in search.best_params_.items()},
        "search_cpu": search_cpu + refit_cpu,
        "search_wall": search_wall + refit_wall,
        "refit_cpu": refit_cpu,
        "predict_cpu": predict_cpu,
        "n_neurons": getattr(best[-1], "n_neurons_", None),
        "convergence_warnings": search_warnings,
        "refit_convergence_warnings": refit_warnings,
    }


def plan(data: DataSet, name: str, settings: dict[str, int]) -> Cell:
    """Return what defines a cell."""
    grid = json.loads(json.dumps(make_grid(name, data.X_train.shape[1])))
    base = {"set": data.name, "task": data.task, "model": name, "settings": settings, "grid": grid}
    return base | data.sizes


def read_cell(folder: Path, planned: Cell) -> Cell | str:
    """Return the cell of a plan, or why there is none."""
    path = folder / f"{planned['set']}-{planned['model']}.json"
    if not path.is_file():
        return "not run"
    cell: Cell = json.loads(path.read_text(encoding="utf-8"))
    if any(cell.get(key) != value for key, value in planned.items()):
        return "run with other settings or another grid"
    return cell if "error" in cell else f"failed: {cell['failure']}"


def run_cells(sets: Sequence[DataSet], options: argparse.Namespace) -> None:
    """Run the cells that are missing, or all that are asked for with ``--force``."""
    options.cells.mkdir(parents=True, exist_ok=True)
    for data in sets:
        for name in (m for m in MODELS if m in options.models):
            cell = plan(data, name, options.settings)
            if not options.force and not isinstance(read_cell(options.cells, cell), str):
                continue
            try:
                cell |= tune(data, name, options.settings["seed"])
                said = f"error {cell['error']:.4f}, {cell['search_cpu']:.1f} s"
            except Exception as failure:  # the other cells go on; the report names this one
                said = cell["failure"] = f"{type(failure).__name__}: {failure}"[:300]
            cell |= {"versions": versions(name), "command": shlex.join(["python", *sys.argv])}
            path = options.cells / f"{data.name}-{name}.json"
            path.write_text(json.dumps(cell, indent=1) + "\n", encoding="utf-8")
            print(f"{time.strftime('%H:%M:%S')} {data.name} {name}: {said}", flush=True)


def versions(name: str) -> dict[str, str]:
    """Return the versions and threads that matter to a model."""
    found = {"python": platform.python_version(), "cpus": str(os.cpu_count())}
    packages = ("numpy", "scipy", "scikit-learn")
    found |= {package: importlib.metadata.version(package) for package in packages}
    if name in OURS and "sklearn_convexbn" in sys.modules:
        found["sklearn_convexbn"] = sys.modules["sklearn_convexbn"].__version__
    return found | {variable: os.environ[variable] for variable in THREADS}


# --------------------------------------------------------------------------------------
# Report
# --------------------------------------------------------------------------------------


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a markdown table with numbers in all columns but the first."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def errors_table(cells: Cells, models: Sequence[str], task: str) -> str:
    """Return the test errors of one task, the best of a set in bold."""
    rows = []
    for name in dict.fromkeys(key[0] for key, cell in cells.items() if cell["task"] == task):
        found = {m: cells[name, m] for m in models if (name, m) in cells}
        best = min(cell["error"] for cell in found.values())
        bold = {m: "**" if cell["error"] == best else "" for m, cell in found.items()}
        texts = {m: f"{bold[m]}{cell['error']:.4f}{bold[m]}" for m, cell in found.items()}
        first = next(iter(found.values()))
        sizes = [str(first[key]) for key in ("n_train", "d", "n_test", "n_classes")]
        neurons = str(found["ours"]["n_neurons"]) if "ours" in found else ""
        rows.append([name, *sizes, *(texts.get(m, "missing") for m in models), neurons])
    return table(["set", "n train", "d", "n test", "classes", *models, "neurons of ours"], rows)


def ranks_table(cells: Cells, models: Sequence[str], key: str = "error") -> str:
    """Return mean ranks over the sets that have a cell of each of the models.

    By test errors, or by those of the chosen candidates in the search, ``cv_error``.
    """
    ranks: dict[str, list[NDArray[np.float64]]] = {task: [] for task in [*MEASURES, "all"]}
    for name in dict.fromkeys(key[0] for key in cells):
        found = [cells[name, m] for m in models if (name, m) in cells]
        if len(found) == len(models):
            for task in (found[0]["task"], "all"):
                ranks[task].append(rankdata([cell[key] for cell in found]))
    rows = [
        [task, str(len(group)), *(f"{rank:.2f}" for rank in np.mean(group, axis=0))]
        for task, group in ranks.items()
        if group
    ]
    return table(["mean rank", "sets", *models], rows)


def duels_table(cells: Cells, own: str, peers: Sequence[str]) -> str:
    """Return wins of one of ours against every peer, ties counting half, and ratios of times."""
    rows = []
    many = f"over {MANY_ROWS} test rows"
    for peer, group in ((peer, group) for peer in peers for group in [*MEASURES, "all", many]):
        pairs = [
            (cell, cells[name, peer])
            for (name, model), cell in cells.items()
            if model == own and (name, peer) in cells
            if group in ("all", cell["task"]) or (group == many and cell["n_test"] > MANY_ROWS)
        ]
        if pairs:
            counts = [outcomes(pairs, key) for key in ("error", "cv_error")]
            times = [
                f"{np.median([mine[key] / other[key] for mine, other in pairs]):.2g}"
                for key in ("search_cpu", "refit_cpu", "predict_cpu")
            ]
            shares = [f"{(wins + ties / 2) / len(pairs):.0%}" for wins, ties, _ in counts]
            texts = [" / ".join(map(str, count)) for count in counts]
            rows.append([f"{peer}, {group}", texts[0], shares[0], texts[1], shares[1], *times])
    header = [f"{own} against", "wins / ties / losses", "share (ties half)"]
    header += ["the same by CV error", "share by CV error"]
    return table([*header, "search time", "refit time", "predict time"], rows)


def outcomes(pairs: Sequence[tuple[Cell, Cell]], key: str) -> tuple[int, int, int]:
    """Return in how many pairs the first error is the smaller one, the same, the larger one."""
    signs = [np.sign(mine[key] - other[key]) for mine, other in pairs]
    return signs.count(-1), signs.count(0), signs.count(1)


def effort_table(cells: Cells, models: Sequence[str]) -> str:
    """Return CPU seconds and convergence warnings of every model."""
    rows = []
    for model in models:
        own = [cell for key, cell in cells.items() if key[1] == model]
        keys = ("search_cpu", "refit_cpu", "convergence_warnings", "refit_convergence_warnings")
        search, refit, warned, refit_warned = np.array([[c[key] for c in own] for key in keys])
        n_fits = N_FOLDS * sum(len(ParameterGrid(cell["grid"])) for cell in own)
        times = [f"{search.sum():.0f}", f"{np.median(search):.2g}", f"{np.median(refit):.2g}"]
        counts = [f"{warned.sum():.0f} of {n_fits}", f"{refit_warned.sum():.0f} of {len(own)}"]
        rows.append([model, *times, *counts])
    header = ["model", "all searches, CPU s", "median search", "median refit"]
    return table([*header, "ConvergenceWarnings in searches", "in refits"], rows)


def report(cells: Cells, missing: Sequence[str], settings: dict[str, int]) -> str:
    """Return the results as markdown."""
    models = [m for m in (*OURS, *PEERS) if any(key[1] == m for key in cells)]
    ranked = [m for m in models if m in RANKED]
    parts = ["# Test errors under equal tuning effort"]
    for task, measure in MEASURES.items():
        if any(cell["task"] == task for cell in cells.values()):
            parts += [f"## {task.capitalize()}: {measure}", errors_table(cells, models, task)]
    parts += ["## Ranks over the sets that have all these models"]
    own = [m for m in models if m in OURS]
    parts += [ranks_table(cells, [model, *ranked]) for model in own]
    parts += ["By the errors of the chosen candidates in the search, means of its three folds:"]
    parts += [ranks_table(cells, [model, *ranked], "cv_error") for model in own]
    if own:
        parts += ["## Pairs", "Times are median ratios ours / peer of CPU seconds."]
        parts += [duels_table(cells, m, [peer for peer in models if peer != m]) for m in own]
    parts += ["## Effort", effort_table(cells, models)]
    parts += ["## Missing cells", "\n".join(f"- {line}" for line in missing) or "None."]
    facts = [settings, *(cell["versions"] for cell in cells.values())]
    lines = [", ".join(f"{key} {value}" for key, value in fact.items()) for fact in facts]
    lines += [f"`{cell['command']}`" for cell in cells.values()]
    parts += ["## Settings, versions and commands"]
    parts += ["\n".join(f"- {line}" for line in dict.fromkeys(lines))]
    return "\n\n".join(parts) + "\n"


def write_report(sets: Sequence[DataSet], options: argparse.Namespace) -> None:
    """Gather the cells of all models and write both files."""
    cells: Cells = {}
    absent: dict[str, list[str]] = {}
    for data, name in ((data, name) for data in sets for name in MODELS):
        cell = read_cell(options.cells, plan(data, name, options.settings))
        if isinstance(cell, str):
            absent.setdefault(f"{name}, {cell}", []).append(data.name)
        else:
            cells[data.name, name] = cell
    missing = [f"{what}: {', '.join(names)}" for what, names in absent.items()]
    if not cells:
        raise SystemExit(f"no cells in {options.cells}")
    options.results.mkdir(parents=True, exist_ok=True)
    text = report(cells, missing, options.settings)
    content = json.dumps({"missing": missing, "cells": list(cells.values())}, indent=1)
    (options.results / "bench_accuracy.md").write_text(text, encoding="utf-8")
    (options.results / "bench_accuracy.json").write_text(content + "\n", encoding="utf-8")
    print(text)


# --------------------------------------------------------------------------------------
# Default parameters
# --------------------------------------------------------------------------------------


def parse_values(texts: Sequence[str]) -> dict[str, list[Any]]:
    """Read ``alpha=0.1,0.01 shrinkage=0,auto``."""

    def value(text: str) -> Any:
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError):
            return text

    pairs = [text.split("=", 1) for text in texts]
    return {key: [value(item) for item in values.split(",")] for key, values in pairs}


def compare_defaults(sets: Sequence[DataSet], texts: Sequence[str]) -> None:
    """Fit ours with every combination of the values and print error, CPU seconds and neurons."""
    settings = list(ParameterGrid(parse_values(texts)))
    names = [", ".join(f"{k}={v}" for k, v in setting.items()) for setting in settings]
    values = np.empty((4, len(sets), len(settings)))
    for i, data in enumerate(sets):
        for j, setting in enumerate(settings):
            model = make_pipeline(StandardScaler(), make_ours(data.task, **setting))
            _, cpu, _, warned = recorded(model.fit, data.X_train, data.y_train)
            error = data.error(model.predict(data.X_test))
            values[:, i, j] = error, cpu, model[-1].n_neurons_, warned
            print(f"{data.name}, {names[j]}: {error:.4f}, {cpu:.2f} s", flush=True)
    for kind, form, numbers in zip(
        ("test error", "CPU seconds", "neurons"), (".4f", ".2f", ".0f"), values, strict=False
    ):
        rows = [
            [data.name, *(f"{v:{form}}" for v in row)]
            for data, row in zip(sets, numbers, strict=True)
        ]
        print(f"\n{kind}\n\n{table(['set', *names], rows)}")
    print("\n" + defaults_summary([data.task for data in sets], names, values))


def defaults_summary(tasks: Sequence[str], names: Sequence[str], values: Any) -> str:
    """Return a table of the settings, from values (error, seconds, neurons, warned) x set x one."""
    columns = {}
    for task in MEASURES:
        errors = values[0, [t == task for t in tasks]].clip(1e-9)
        if len(errors):
            ratios = errors / errors.min(axis=1, keepdims=True)
            columns[f"{task}: geometric mean of error / best"] = gmean(ratios)
            columns[f"{task}: mean rank"] = rankdata(errors, axis=1).mean(axis=0)
    columns |= {"CPU s": values[1].sum(axis=0), "ConvergenceWarnings": values[3].sum(axis=0)}
    rows = [
        [name, *(f"{column[j]:.4g}" for column in columns.values())] for j, name in enumerate(names)
    ]
    return table(["setting", *columns], rows)


# --------------------------------------------------------------------------------------
# Commands
# --------------------------------------------------------------------------------------


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    add("--data", type=Path, default=beside, help="folder with uci/ and uci_classification/")
    add("--models", nargs="+", choices=MODELS, default=MODELS)
    add("--sets", nargs="+", default=[])
    add("--max-train", type=int, default=2000)
    add("--max-test", type=int, default=5000)
    add("--seed", type=int, default=0, help="of splits and folds")
    add("--cells", type=Path, default=Path(tempfile.gettempdir()) / "bench_accuracy_cells")
    add("--results", type=Path, default=Path(__file__).parent / "results")
    add("--force", action="store_true", help="run cells again that are there")
    add("--list", action="store_true", help="list the sets and the cells that are there")
    add("--report", action="store_true", help="run nothing, write the report")
    add("--defaults", nargs="+", metavar="PARAMETER=VALUE,...", default=[])
    options = parser.parse_args(arguments)
    options.settings = {key: getattr(options, key) for key in ("max_train", "max_test", "seed")}
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark, list its cells or compare defaults."""
    options = parse_arguments(arguments)
    sets = load_sets(options.data, options.settings, options.sets)
    if options.defaults:
        compare_defaults(sets, options.defaults)
    elif options.list:
        for data in sets:
            plans = [plan(data, m, options.settings) for m in MODELS]
            cells = [read_cell(options.cells, planned) for planned in plans]
            there = [c["model"] for c in cells if not isinstance(c, str)]
            print(f"{data.name} ({data.task}) {data.sizes}; cells: {' '.join(there) or 'none'}")
    else:
        if not options.report:
            run_cells(sets, options)
        write_report(sets, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())

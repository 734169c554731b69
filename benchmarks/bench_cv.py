# ruff: noqa: E402 - the thread variables are set before NumPy is imported
"""The cross-validated estimators against GridSearchCV over the same grid and the same folds.

Both choose among alphas x n_components by the same scores, in one thread, in one run, refit on all
rows included::

    python benchmarks/bench_cv.py [--data diabetes breast_cancer] [--eps 1e-2]

Results are written to ``benchmarks/results/bench_cv.md`` and ``.json``.
"""

from __future__ import annotations

import os

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
for _variable in THREADS:  # before NumPy is imported
    os.environ.setdefault(_variable, "1")

import argparse
import importlib.metadata
import json
import platform
import shlex
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn import datasets
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV, KFold, StratifiedKFold

from sklearn_convexbn import (
    ConvexBNClassifier,
    ConvexBNClassifierCV,
    ConvexBNRegressor,
    ConvexBNRegressorCV,
)

DATA = {
    "diabetes": (datasets.load_diabetes, [2, 4, 6, 8, None]),
    "breast_cancer": (datasets.load_breast_cancer, [2, 5, 10, 20, None]),
}
COLUMNS = (
    "data", "rows", "eps", "fits", "GridSearchCV s", "CV estimator s", "ratio", "median difference",
    "largest difference", "score of each choice", "alpha of each", "n_components of each",
)  # fmt: skip


def timed(action: Any, *arguments: Any) -> tuple[Any, float]:
    """Call; return the answer and processor seconds."""
    start = time.process_time()
    answer = action(*arguments)
    return answer, time.process_time() - start


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run both on one data set."""
    load, components = DATA[name]
    X, y = load(return_X_y=True)
    components = components[-options.components :]
    classes = load is datasets.load_breast_cancer
    folds = (StratifiedKFold if classes else KFold)(options.folds, shuffle=True, random_state=0)
    own, plain = (
        (ConvexBNClassifierCV, ConvexBNClassifier)
        if classes
        else (ConvexBNRegressorCV, ConvexBNRegressor)
    )
    score = {"scoring": "neg_log_loss"} if classes else {}
    model = own(
        options.alphas,
        eps=options.eps,
        n_components=components,
        cv=folds,
        random_state=0,
        **score,
    )
    model, own_seconds = timed(model.fit, X, y)
    search = GridSearchCV(
        plain(random_state=0),
        {"alpha": list(model.alphas_), "n_components": components},
        cv=folds,
        scoring=score.get("scoring", "neg_mean_squared_error"),
    )
    search, seconds = timed(search.fit, X, y)
    shape = (len(model.alphas_), len(components))
    table = np.array([search.cv_results_[f"split{i}_test_score"] for i in range(options.folds)])
    table = table.reshape(options.folds, *shape).transpose(2, 1, 0)
    ours = model.scores_ if classes else -model.mse_path_
    difference = np.abs(ours / table - 1.0)
    weights = [len(test) for _, test in folds.split(X, y)]
    grid_row = components.index(search.best_params_["n_components"])
    grid_column = int(np.flatnonzero(model.alphas_ == search.best_params_["alpha"])[0])
    mean = np.average(table, axis=2, weights=weights)  # both choices by one table of scores
    return {
        "data": name,
        "rows": len(y),
        "eps": options.eps,
        "fits": table.size,
        "GridSearchCV s": seconds,
        "CV estimator s": own_seconds,
        "ratio": seconds / own_seconds,
        "median difference": float(np.median(difference)),
        "largest difference": float(difference.max()),
        "score of each choice": [
            float(mean[grid_row, grid_column]),
            float(mean[model.best_index_]),
        ],
        "alpha of each": [float(search.best_params_["alpha"]), model.alpha_],
        "n_components of each": [
            search.best_params_["n_components"],
            components[model.best_index_[0]],
        ],
    }


def text(value: Any) -> str:
    """Return a table cell."""
    if isinstance(value, list):
        return ", ".join(map(text, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def write_results(rows: Sequence[dict[str, Any]], folder: Path) -> str:
    """Write the table with its circumstances; return it."""
    facts = {"command": shlex.join(["python", *sys.argv]), "python": platform.python_version()}
    names = ("numpy", "scipy", "scikit-learn", "torch")
    facts |= {name: importlib.metadata.version(name) for name in names}
    facts |= {variable: os.environ[variable] for variable in THREADS}
    lines = ["# Cross-validated estimators against GridSearchCV", ""]
    lines += ["Processor seconds. Differences are relative, of a fold's scores. In pairs the first"]
    lines += ["is GridSearchCV's, scored by its own table.", ""]
    lines += ["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
    lines += ["| " + " | ".join(text(row[key]) for key in COLUMNS) + " |" for row in rows]
    lines += ["", *(f"- {key}: {value}" for key, value in facts.items())]
    folder.mkdir(parents=True, exist_ok=True)
    report = "\n".join(lines) + "\n"
    (folder / "bench_cv.md").write_text(report, encoding="utf-8")
    content = {"circumstances": facts, "rows": list(rows)}
    (folder / "bench_cv.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return report


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the table, writing it after every row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--data", nargs="+", choices=tuple(DATA), default=list(DATA))
    parser.add_argument("--eps", type=float, nargs="+", default=[1e-2])
    parser.add_argument("--alphas", type=int, default=30)
    parser.add_argument("--components", type=int, default=5, help="how many of five settings")
    parser.add_argument("--folds", type=int, default=5)
    default = Path(__file__).parent / "results"
    parser.add_argument("--results", type=Path, default=default)
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore", ConvergenceWarning)
    rows: list[dict[str, Any]] = []
    for eps in options.eps:
        for name in options.data:
            row = measure(name, argparse.Namespace(**(vars(options) | {"eps": eps})))
            rows.append(row)
            print(write_results(rows, options.results), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

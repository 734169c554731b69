"""Ionosphere, Pima and Banknote, the sets of SDPNN-IW (arXiv:2410.22311), with defaults.

SDPNN-IW trains two-layer ReLU networks of any width by a semidefinite relaxation. Its package does
not install beside this one and its tables are not kept here, so that its column is left out::

    python benchmarks/bench_published.py [--models convex_bn mlp]
"""

import _suite  # noqa: F401 - first: it sets the number of threads

# isort: split
import sys
from collections.abc import Iterable
from typing import Any

from _suite.benchmark import Benchmark
from _suite.runner import timed
from _suite.store import Cell
from _suite.tables import markdown

import numpy as np
import pandas as pd
from bench_accuracy import load, make_model, warm_up
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_convexbn import ConvexBNClassifier, PathNetClassifier

SETS = ("ionosphere", "pima", "banknote")
MODELS = {
    "convex_bn": lambda: make_pipeline(StandardScaler(), ConvexBNClassifier(random_state=0)),
    "path_net": lambda: PathNetClassifier(random_state=0),
    "mlp": lambda: make_model("default_mlp", classes=True),
    "hgb": lambda: make_model("hgb", classes=True),
}


class Published(Benchmark):
    """Test errors over folds."""

    name = "bench_published"
    keys = ("set", "model")
    settings = ("folds", "seed")
    prepare = staticmethod(warm_up)

    def add_options(self, add: Any) -> None:
        add("--models", nargs="+", choices=tuple(MODELS), default=tuple(MODELS))
        add("--folds", type=int, default=5)
        add("--seed", type=int, default=0, help="of folds")

    def plan(self) -> Iterable[Cell]:
        for name in SETS:
            for model in self.options.models:
                yield {"set": name, "model": model}

    def measure(self, cell: Cell) -> Cell:
        X, y, *_ = load(cell["set"])
        folds = StratifiedKFold(self.options.folds, shuffle=True, random_state=self.options.seed)
        errors, seconds, gaps = [], [], []
        for train, test in folds.split(X, y):
            model = MODELS[cell["model"]]()
            seconds.append(timed(model.fit, X[train], y[train]).cpu)
            errors.append(float((model.predict(X[test]) != y[test]).mean()))
            own = model[-1] if hasattr(model, "steps") else model
            gaps.append(getattr(own, "dual_gap_", np.nan))
        return {
            "n": len(X),
            "d": X.shape[1],
            "error": float(np.mean(errors)),
            "deviation": float(np.std(errors)),
            "cpu": float(np.mean(seconds)),
            "largest_gap": float(np.max(gaps)) if np.isfinite(gaps).all() else None,
        }

    def report(self, cells: list[Cell]) -> Iterable[str]:
        yield "Ionosphere, Pima and Banknote"
        yield (
            "The sets of SDPNN-IW (arXiv:2410.22311), whose published figures were not at hand: no "
            f"column of it. Error rates over {self.options.folds} folds with their standard "
            "deviation, mean processor seconds of a fit, nothing tuned."
        )
        frame = pd.DataFrame(cells)
        rows = []
        for name, group in frame.groupby("set", sort=False):
            row = {"set": name, "n x d": f"{group['n'].iloc[0]} x {group['d'].iloc[0]}"}
            for _, cell in group.iterrows():
                error = f"{cell['error']:.4f} ({cell['deviation']:.4f}), {cell['cpu']:.2f} s"
                row[cell["model"]] = error
            rows.append(row)
        yield markdown(rows)


if __name__ == "__main__":
    sys.exit(Published().main())

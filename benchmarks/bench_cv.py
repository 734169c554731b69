"""The cross-validated estimators against GridSearchCV over the same grid and the same folds.

Both choose among alphas x n_components by the same scores, in one thread, in one run, refit on all
rows included.
"""

import sys
from collections.abc import Iterable
from typing import Any

from _suite.benchmark import Benchmark
from _suite.package import own_model
from _suite.runner import timed
from _suite.store import Cell

import numpy as np
from sklearn import datasets
from sklearn.model_selection import GridSearchCV, KFold, StratifiedKFold

from sklearn_convexbn import ConvexBNClassifierCV, ConvexBNRegressorCV

DATA = {
    "diabetes": (datasets.load_diabetes, [2, 4, 6, 8, None]),
    "breast_cancer": (datasets.load_breast_cancer, [2, 5, 10, 20, None]),
}
COLUMNS = (
    "data", "rows", "eps", "fits", "GridSearchCV s", "CV estimator s", "ratio", "median difference",
    "largest difference", "score of each choice", "alpha of each", "n_components of each"
)  # fmt: skip


class CrossValidation(Benchmark):
    name = "bench_cv"
    keys = ("eps", "data")
    settings = ("alphas", "components", "folds")
    title = "Cross-validated estimators against GridSearchCV"
    words = (
        "Processor seconds. Differences are relative, of a fold's scores. In pairs the first\n"
        "is GridSearchCV's, scored by its own table."
    )
    columns = dict.fromkeys(COLUMNS, ".4g")

    def add_options(self, add: Any) -> None:
        add("--data", nargs="+", choices=tuple(DATA), default=list(DATA))
        add("--eps", type=float, nargs="+", default=[1e-2])
        add("--alphas", type=int, default=30)
        add("--components", type=int, default=5, help="how many of five settings")
        add("--folds", type=int, default=5)

    def plan(self) -> Iterable[Cell]:
        return [
            {"eps": eps, "data": name} for eps in self.options.eps for name in self.options.data
        ]

    def measure(self, cell: Cell) -> Cell:
        options, (load, components) = self.options, DATA[cell["data"]]
        X, y = load(return_X_y=True)
        components = components[-options.components :]
        classes = load is datasets.load_breast_cancer
        kind = StratifiedKFold if classes else KFold
        folds = kind(options.folds, shuffle=True, random_state=0)
        scoring = "neg_log_loss" if classes else "neg_mean_squared_error"
        own = ConvexBNClassifierCV if classes else ConvexBNRegressorCV
        settings = {"eps": cell["eps"], "n_components": components, "cv": folds, "random_state": 0}
        model = own(options.alphas, **settings, **({"scoring": scoring} if classes else {}))
        own_time = timed(model.fit, X, y).cpu
        grid = {"alpha": list(model.alphas_), "n_components": components}
        search = GridSearchCV(own_model(classes), grid, cv=folds, scoring=scoring)
        time = timed(search.fit, X, y).cpu
        results = [search.cv_results_[f"split{i}_test_score"] for i in range(options.folds)]
        shape = (options.folds, len(model.alphas_), len(components))
        table = np.array(results).reshape(shape).transpose(2, 1, 0)
        ours = model.scores_ if classes else -model.mse_path_
        difference = np.abs(ours / table - 1.0)
        weights = [len(test) for _, test in folds.split(X, y)]
        mean = np.average(table, axis=2, weights=weights)  # both choices by one table of scores
        best = search.best_params_
        place = (
            components.index(best["n_components"]),
            int(np.flatnonzero(model.alphas_ == best["alpha"])[0]),
        )
        return {
            "rows": len(y),
            "fits": table.size,
            "GridSearchCV s": time,
            "CV estimator s": own_time,
            "ratio": time / own_time,
            "median difference": float(np.median(difference)),
            "largest difference": float(difference.max()),
            "score of each choice": [float(mean[place]), float(mean[model.best_index_])],
            "alpha of each": [float(best["alpha"]), model.alpha_],
            "n_components of each": [best["n_components"], components[model.best_index_[0]]],
        }


if __name__ == "__main__":
    sys.exit(CrossValidation().main())

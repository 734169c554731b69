"""Test errors of path networks beside other models, each with three candidates.

Candidates are compared on a fifth of the training rows, and the best is fitted to all of them::

    python benchmarks/bench_path_net.py [--sets pol bike] [--models path_net mlp]
"""

import _suite  # noqa: F401 - first: it sets the number of threads

# isort: split
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from _suite.benchmark import Benchmark
from _suite.runner import timed
from _suite.store import Cell
from _suite.tables import geometric_mean, markdown
from bench_accuracy import make_model, split, warm_up
from sklearn.model_selection import train_test_split as split_rows
from sklearn.pipeline import make_pipeline

from sklearn_convexbn import PathNetClassifier, PathNetRegressor

SETS = ("pol", "bike", "airfoil", "kin40k", "segment", "concrete", "housing", "madelon")
ALPHAS = [3e-3, 1e-3, 3e-4]
CANDIDATES: dict[str, list[dict[str, Any]]] = {
    "path_net": [{"alpha": a} for a in ALPHAS],
    "path_net_shallow": [{"alpha": a, "inner_width": 0} for a in ALPHAS],
    "ours": [{"alpha": a} for a in (3e-2, 1e-2, 3e-3)],
    "hgb": [{"learning_rate": rate} for rate in (0.03, 0.1, 0.3)],
    "mlp": [{"hidden_layer_sizes": (100, 100), "alpha": a} for a in (1e-2, 0.3, 3.0)],
    "mlp_one_layer": [{"hidden_layer_sizes": (100,), "alpha": a} for a in (1e-2, 0.3, 3.0)],
}


def model_of(name: str, classes: bool, parameters: dict[str, Any]) -> Any:
    """Return a model with parameters of a candidate."""
    if name.startswith("path_net"):
        kind = PathNetClassifier if classes else PathNetRegressor
        return make_pipeline(kind(random_state=0, **parameters))
    pipeline = make_model(name, classes)
    prefix = f"{pipeline.steps[-1][0]}__"
    prefix += "" if classes or name == "ours" else "regressor__"
    return pipeline.set_params(**{prefix + key: value for key, value in parameters.items()})


class PathNets(Benchmark):
    """Test errors at equal numbers of candidates."""

    name = "bench_path_net"
    keys = ("set", "model")
    settings = ("max_train", "max_test", "seed")
    prepare = staticmethod(warm_up)

    def add_options(self, add: Any) -> None:
        add("--models", nargs="+", choices=tuple(CANDIDATES), default=tuple(CANDIDATES))
        add("--sets", nargs="+", default=list(SETS))
        add("--max-train", type=int, default=1000)
        add("--max-test", type=int, default=5000)
        add("--seed", type=int, default=0, help="of splits")

    def plan(self) -> Iterable[Cell]:
        for name in self.options.sets:
            for model in self.options.models:
                yield {"set": name, "model": model}

    def measure(self, cell: Cell) -> Cell:
        o = self.options
        data = split(cell["set"], o.max_train, o.max_test, o.seed)
        strata = data.y if data.classes else None
        fit, held = split_rows(
            np.arange(len(data.X)), test_size=0.2, random_state=o.seed, stratify=strata
        )
        found, search = [], 0.0
        for parameters in CANDIDATES[cell["model"]]:
            model = model_of(cell["model"], data.classes, parameters)
            search += timed(model.fit, data.X[fit], data.y[fit]).cpu
            predicted, y = model.predict(data.X[held]), data.y[held]
            misses = predicted != y if data.classes else (predicted - y) ** 2
            found.append(float(misses.mean()))
        best = model_of(cell["model"], data.classes, CANDIDATES[cell["model"]][np.argmin(found)])
        fitted = timed(best.fit, data.X, data.y)
        own = best[-1]
        columns = getattr(own, "feature_weights_", np.zeros(0))
        return {
            "error": data.error(best.predict(data.X_test)),
            "parameters": CANDIDATES[cell["model"]][int(np.argmin(found))],
            "search_cpu": search,
            "fit_cpu": fitted.cpu,
            "gap": getattr(own, "dual_gap_", None),
            "n_neurons": getattr(own, "n_neurons_", None),
            "columns": int((columns > 0).sum()) if len(columns) else None,
            "warned": fitted.warned,
            **data.sizes,
        }

    def report(self, cells: list[Cell]) -> Iterable[str]:
        yield "Path networks beside other models"
        yield (
            f"At most {self.options.max_train} training rows, one split. Each model has three "
            "candidates. Errors are root mean squared errors in standard deviations of the target, "
            "or error rates; times are processor seconds of the fit to all training rows."
        )
        if not cells:
            return
        frame = pd.DataFrame(cells)
        error, cpu = (
            frame.pivot_table(values=v, index="set", columns="model", sort=False)
            for v in ("error", "fit_cpu")
        )
        for title, table, digits in (("Test errors", error, 4), ("Seconds", cpu, 2)):
            rows = [
                {"set": name, **{m: f"{v:.{digits}f}" for m, v in row.items()}}
                for name, row in table.iterrows()
            ]
            yield f"## {title}\n\n{markdown(rows)}"
        complete = error.dropna()
        if len(complete):
            shares, ranks = complete.div(complete.min(axis=1), axis=0), complete.rank(axis=1)
            rows = [
                {
                    "model": model,
                    "mean rank": f"{ranks[model].mean():.2f}",
                    "error / best": f"{geometric_mean(shares[model]):.3f}",
                    "seconds / mlp": f"{geometric_mean(cpu[model] / cpu.get('mlp')):.2f}"
                    if "mlp" in cpu
                    else "",
                }
                for model in complete
            ]
            yield f"## Over {len(complete)} sets\n\n{markdown(rows)}"
        own = frame[frame["model"].str.startswith("path_net")]
        names = ["set", "model", "d", "columns", "n_neurons", "gap", "warned", "parameters"]
        yield f"## Networks\n\n{markdown(own[names].astype(str).to_dict('records'))}"


if __name__ == "__main__":
    sys.exit(PathNets().main())

"""Test errors of path networks beside other models, each with three candidates.

Candidates are compared on a fifth of the training rows, and the best is fitted to all of them.
"""

import sys
from collections.abc import Iterable
from typing import Any

from _suite.store import Cell
from _suite.tables import geometric_mean, markdown

import pandas as pd
from bench_accuracy import Grid, Tuned, errors_table, make_model, ranks_table, tune
from sklearn.model_selection import ShuffleSplit, StratifiedShuffleSplit
from sklearn.pipeline import make_pipeline

from sklearn_convexbn import PathNetClassifier, PathNetRegressor

DECAYS = [1e-2, 0.3, 3.0]
CANDIDATES: dict[str, Grid] = {
    "path_net": {"alpha": [3e-3, 1e-3, 3e-4]},
    "path_net_shallow": {"alpha": [3e-3, 1e-3, 3e-4], "inner_width": [0]},
    "ours": {"alpha": [3e-2, 1e-2, 3e-3]},
    "hgb": {"learning_rate": [0.03, 0.1, 0.3]},
    "mlp": {"hidden_layer_sizes": [(100, 100)], "alpha": DECAYS},
    "mlp_one_layer": {"hidden_layer_sizes": [(100,)], "alpha": DECAYS},
}
NETWORKS = {"set": "", "model": "", "n_neurons": ".0f", "gap": ".2g", "best_params": ""}


class PathNets(Tuned):
    """Test errors at equal numbers of candidates."""

    name = "bench_path_net"
    models = tuple(CANDIDATES)
    sets = (
        *("pol", "bike", "airfoil", "kin40k", "concrete", "housing", "energy", "yacht", "autompg"),
        *("segment", "vehicle", "phoneme", "pima", "ionosphere", "sonar", "wheat_seeds"),
        "madelon",
    )
    max_train = 1000

    def plan(self) -> Iterable[Cell]:
        for name in self.options.sets:
            for model in self.options.models:
                yield {"set": name, "model": model}

    def measure(self, cell: Cell) -> Cell:
        data, name = self.split(cell["set"]), cell["model"]
        kind = StratifiedShuffleSplit if data.classes else ShuffleSplit
        held = kind(1, test_size=0.2, random_state=self.options.seed)
        own = PathNetClassifier if data.classes else PathNetRegressor
        pipeline: Any = make_pipeline(own(random_state=0))
        if not name.startswith("path_net"):
            pipeline = make_model(name, data.classes)
        return tune(data, pipeline, CANDIDATES[name], held) | data.sizes

    def report(self, cells: list[Cell]) -> Iterable[str]:
        frame = pd.DataFrame(cells)
        models = [model for model in CANDIDATES if (frame["model"] == model).any()]
        wide = {
            key: frame.pivot(index="set", columns="model", values=key)
            for key in ("error", "refit_cpu")
        }
        shares = wide["error"].div(wide["error"].min(axis=1), axis=0).dropna()
        times = wide["refit_cpu"].reindex(columns=list(CANDIDATES))
        times = times.div(times["mlp"], axis=0)
        yield "Path networks beside other models"
        yield (
            f"At most {self.options.max_train} training rows, one split. Each model has three "
            "candidates. Errors are root mean squared errors in standard deviations of the target, "
            "or error rates; times are processor seconds of the fit to all training rows."
        )
        yield f"## Test errors\n\n{errors_table(frame, models)}"
        yield ranks_table(frame, models, "error")
        yield markdown(
            {"model": m, "error / best": geometric_mean(shares[m])}
            | {"seconds": frame["refit_cpu"][frame["model"] == m].median()}
            | {"seconds / mlp": geometric_mean(times[m].dropna())}
            for m in models
        )
        own = [cell for cell in cells if cell["model"].startswith("path_net")]
        texts = [cell | {"best_params": str(cell["best_params"])} for cell in own]
        yield f"## Networks\n\n{markdown(texts, NETWORKS)}"


if __name__ == "__main__":
    sys.exit(PathNets().main())

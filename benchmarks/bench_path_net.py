"""Default path networks beside other models with their defaults.

Path networks get the inputs as they are, the others standardised ones::

    python benchmarks/bench_path_net.py [--sets pol bike] [--rows 1000] [--splits 1]

``bench_accuracy.py`` has them tuned.
"""

import sys
from collections.abc import Iterable
from typing import Any

from _suite.runner import timed
from _suite.store import Cell
from _suite.tables import geometric_mean, markdown

import pandas as pd
from bench_accuracy import (
    FOLDERS,
    MEASURES,
    OURS,
    PATH_NET,
    Defaults,
    available,
    make_model,
    outcomes,
    set_names,
    split,
)

TWO_LAYERS = (100, 100)
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "path_net": (PATH_NET, {}),
    "path_net_shallow": (PATH_NET, {"inner_width": 0}),
    "ours": (OURS[0], {}),
    "hgb": ("default_hgb", {}),
    "mlp": ("default_mlp", {"hidden_layer_sizes": TWO_LAYERS}),
    "mlp_one_layer": ("default_mlp", {}),
}


class PathNets(Defaults):
    """Test errors and times of default fits."""

    name = "bench_path_net"

    def add_options(self, add: Any) -> None:
        add("--sets", nargs="+", default=[], help="these sets only")
        add("--rows", nargs="+", type=int, default=[250, 1000, 4000], help="most rows to train")
        add("--splits", type=int, default=1)
        add("--max-test", type=int, default=5000)

    def plan(self) -> Iterable[Cell]:
        seen = set()
        for limit in self.options.rows:
            for name in set_names(list(FOLDERS)[:2], self.options.sets):
                rows = min(limit, available(name))  # the same for all limits above
                for number in range(self.options.splits if (name, rows) not in seen else 0):
                    for model in MODELS:
                        yield {"set": name, "rows": rows, "split": number, "model": model}
                seen.add((name, rows))

    def measure(self, cell: Cell) -> Cell:
        data = split(cell["set"], cell["rows"], self.options.max_test, cell["split"])
        kind, parameters = MODELS[cell["model"]]
        model = make_model(kind, data.classes, **parameters)
        fitted = timed(model.fit, data.X, data.y)
        found = {"error": data.error(model.predict(data.X_test)), "cpu": fitted.cpu}
        found |= {"constant": data.error_of_constant(), "warned": fitted.warned}
        own = {key: getattr(model[-1], f"{key}_", None) for key in ("n_neurons", "alpha")}
        return {**found, **own, **data.sizes, "available": available(cell["set"])}

    def report(self, cells: list[Cell]) -> Iterable[str]:
        yield "Default path networks beside other models with their defaults"
        yield (
            "Nothing is tuned. `mlp` is scikit-learn's of two hidden layers of 100 units, "
            "`path_net_shallow` one of ours without inner units, `ours` the estimator of one "
            "hidden layer. Errors are root mean squared errors in standard deviations of the "
            "target, or error rates; times are processor seconds."
        )
        frame = pd.DataFrame(cells)
        for limit in self.options.rows if len(frame) else ():
            fits = frame[frame["rows"] == frame["available"].clip(upper=limit)]
            means = fits.groupby(["set", "model"], sort=False).mean(numeric_only=True)
            yield f"## At most {limit} training rows\n\n{self.summary(fits, means)}"
            yield markdown(self.rows_of_sets(means))

    def summary(self, fits: pd.DataFrame, means: pd.DataFrame) -> str:
        """Return a row for each model: times, ranks, and outcomes against the MLP and boosting."""
        tasks = fits.drop_duplicates("set").set_index("set")["task"]
        error, cpu = (
            means[key].unstack().reindex(columns=list(MODELS)) for key in ("error", "cpu")
        )
        error = error.dropna()
        ranks, rows = error.rank(axis=1), []
        for model in MODELS:
            row: Cell = {"model": model, "sets": len(error)}
            row["time / mlp"] = geometric_mean((cpu[model] / cpu["mlp"]).dropna())
            for peer in ("mlp", "hgb"):
                row[f"wins / ties / losses against {peer}"] = outcomes(error[model], error[peer])
            for task in MEASURES:
                of_task = error.index[tasks.reindex(error.index) == task]
                row[f"{task}: mean rank"] = float(ranks.loc[of_task, model].mean())
            row["mean rank"] = float(ranks[model].mean())
            rows.append(row)
        return markdown(rows)

    def rows_of_sets(self, means: pd.DataFrame) -> Iterable[Cell]:
        """Yield errors and the times of path networks and of the MLP for each set."""
        for name, group in means.groupby("set", sort=False):
            fits = group.droplevel("set")
            first = fits.iloc[0]
            row: Cell = {"set": name, "n train": int(first["n_train"]), "d": int(first["d"])}
            row["classes"] = int(first["n_classes"])
            for model in MODELS:
                row[model] = f"{fits['error'][model]:.4f}" if model in fits.index else "missing"
            for model in ("path_net", "mlp"):
                row[f"{model} s"] = float(fits["cpu"].get(model, float("nan")))
            row["alpha"] = float(fits["alpha"].get("path_net", float("nan")))
            yield row | {"sub-networks": float(fits["n_neurons"].get("path_net", float("nan")))}


if __name__ == "__main__":
    sys.exit(PathNets().main())

"""Test errors of this package and of scikit-learn's models, tuned with equal effort or by default.

Fully repeated rows (inputs and target) are dropped before a set is split by a seed, so that no test
row is also a training row. Every model follows a StandardScaler; peers for regression get a
standardised target, as this package's regressor makes it by itself.
"""

import ast
import re
import sys
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple

from _suite import data
from _suite.benchmark import Benchmark
from _suite.package import own_model, own_path_net, own_path_search, own_search, warm_up
from _suite.runner import timed
from _suite.store import Cell, plain
from _suite.tables import geometric_mean, markdown

import numpy as np
import pandas as pd
from sklearn import ensemble, neural_network, svm
from sklearn.base import clone
from sklearn.compose import TransformedTargetRegressor
from sklearn.model_selection import GridSearchCV, KFold, ParameterGrid, StratifiedKFold
from sklearn.model_selection import train_test_split as split_rows
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

FOLDERS = {"uci": "regression", "uci_classification": "classification", "highdim": "classification"}
MEASURES = {"regression": "RMSE / standard deviation", "classification": "error rate"}
BUNDLED = ("diabetes", "breast_cancer", "wine", "digits")
LEAKING_COLUMNS = {"bike": [15, 16]}  # they add up to exp(target), see the data's README
#: This package: besides alpha its cross-validated estimators choose shrinkage or n_components.
OURS = ("ours", "ours_components")
#: Its networks of two hidden layers, which choose alpha and the number of inner units.
PATH_NET = "path_net"
OWN = (*OURS, PATH_NET)
RANKED = ("svm", "forest", "hgb", "mlp")
PEERS = (*RANKED, "mlp_one_layer")
MODELS = (*PEERS, *OWN)  # in the order they are run
N_FOLDS = 3
PATIENCE = 2  # alphas after which a path of path networks in a fold ends, where scores get worse
Grid = dict[str, list[Any]]
WORST = 1.5  # errors of default fits are not to be above this times the best constant's


class Split(NamedTuple):
    """Training and test rows of one data set."""

    X: np.ndarray
    y: np.ndarray
    X_test: np.ndarray
    y_test: np.ndarray
    classes: bool

    @property
    def sizes(self) -> Cell:
        """Task, rows, features and classes (0 for regression)."""
        sizes = {"n_train": len(self.X), "d": self.X.shape[1], "n_test": len(self.X_test)}
        n_classes = len(np.unique(self.y)) if self.classes else 0
        return {"task": list(MEASURES)[self.classes], **sizes, "n_classes": n_classes}

    def error(self, prediction: np.ndarray) -> float:
        """Return the test error of a prediction."""
        return data.test_error(self.y_test, prediction, self.y.std(), self.classes)

    def error_of_constant(self) -> float:
        """Return the test error of the mean, or of the class that most rows have."""
        values, counts = np.unique(self.y, return_counts=True)
        best = values[counts.argmax()] if self.classes else self.y.mean()
        return self.error(np.full(len(self.y_test), best))


@cache
def load(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, bool]:
    """Return inputs, target, official test rows (n,) if any, and whether the target are classes.

    Without repeated rows, and without columns that tell the target.
    """
    paths = {kind: data.data_folder() / kind / f"{name}.npz" for kind in FOLDERS}
    kind = next((kind for kind, path in paths.items() if path.is_file()), None)
    if kind is None:
        (X, y), mask, classes = data.load(name), None, name != "diabetes"
    else:
        file, classes = data.read_all(paths[kind]), kind != "uci"
        X, y, mask = np.asarray(file["X"], dtype=np.float64), file["y"], file.get("test_mask")
    X = np.delete(X, LEAKING_COLUMNS.get(name, []), axis=1)
    rows = np.sort(np.unique(np.column_stack([X, y]), axis=0, return_index=True)[1])
    mask = mask[rows] if mask is not None and mask.ndim == 1 else None
    return X[rows], y[rows], mask, classes


def available(name: str) -> int:
    """Return the most rows of a set to train with."""
    return int(0.75 * len(load(name)[0]))


def split(name: str, max_train: int, max_test: int, seed: int) -> Split:
    """Draw training and test rows, from the official ones where there are such."""
    X, y, official, classes = load(name)
    rows = np.arange(len(X))

    def draw(pool: np.ndarray, size: int) -> np.ndarray:
        if size >= len(pool):
            return pool
        strata = y[pool] if classes else None
        return split_rows(pool, train_size=size, random_state=seed, stratify=strata)[0]

    train = draw(rows if official is None else rows[~official], min(max_train, available(name)))
    test = draw(np.setdiff1d(rows, train) if official is None else rows[official], max_test)
    return Split(X[train], y[train], X[test], y[test], classes)


def set_names(kinds: Iterable[str], only: Sequence[str]) -> list[str]:
    """Return the names of the data sets there are."""
    paths = [path for kind in kinds for path in sorted((data.data_folder() / kind).glob("*.npz"))]
    if not paths:
        print(f"note: no data in {data.data_folder()}; scikit-learn's bundled sets only")
    names = [path.stem for path in paths] or list(BUNDLED)
    if unknown := set(only) - set(names):
        raise SystemExit(f"no such set: {', '.join(sorted(unknown))}")
    return [name for name in names if not only or name in only]


def make_model(name: str, classes: bool, **parameters: Any) -> Any:
    """Return a pipeline of a model with the parameters that are not tuned."""
    if name in OURS:
        return make_pipeline(StandardScaler(), own_model(classes, **parameters))
    if name == PATH_NET:
        return make_pipeline(own_path_net(classes, **parameters))
    if name == "svm":
        # SVR's default epsilon of 0.1 is larger than errors reachable on noiseless targets.
        model = svm.SVC() if classes else svm.SVR(epsilon=0.01)
    else:
        module, start, fixed = {
            "forest": (ensemble, "RandomForest", {"n_estimators": 200}),
            "hgb": (ensemble, "HistGradientBoosting", {"max_iter": 200, "early_stopping": False}),
            "mlp": (neural_network, "MLP", {"max_iter": 500, "early_stopping": False}),
            "default_mlp": (neural_network, "MLP", parameters),
            "default_hgb": (ensemble, "HistGradientBoosting", {}),
        }[name.removesuffix("_one_layer")]
        end = "Classifier" if classes else "Regressor"
        model = getattr(module, start + end)(random_state=0, **fixed)
    if not classes:
        model = TransformedTargetRegressor(model, transformer=StandardScaler())
    return make_pipeline(StandardScaler(), model)


def make_grid(name: str, n_features: int) -> Grid:
    """Return the candidates of a model: 12, or 18 along paths of networks of one hidden layer."""
    alphas = [float(f"{a:.3g}") for a in np.logspace(-1, -3.5, 6)]
    gammas = [float(f"{g / n_features:.3g}") for g in (0.1, 0.3, 1, 3)]
    leaves = {"max_leaf_nodes": [7, 31], "min_samples_leaf": [5, 20]}
    rates, sizes = [0.001, 0.01], [(100,), (100, 100)]
    one_layer = [0.001, 0.01, 0.1, 0.3, 1.0, 10.0]
    grids: dict[str, Grid] = {
        "ours": {"alphas": alphas, "shrinkage": [0.01, 0.1, 0.5]},
        "ours_components": {"alphas": alphas, "n_components": [None, 0.99, 0.9]},
        PATH_NET: {"alphas": [0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001], "inner_width": [0, 4]},
        "svm": {"C": [1, 20, 400], "gamma": gammas},
        "forest": {"max_features": ["sqrt", 0.33, 0.67, 1.0], "min_samples_leaf": [1, 3, 10]},
        "hgb": {"learning_rate": [0.03, 0.1, 0.3], **leaves},
        "mlp": {"hidden_layer_sizes": sizes, "alpha": [0.01, 0.3, 10.0]},
        "mlp_one_layer": {"hidden_layer_sizes": sizes[:1], "alpha": one_layer},
    }
    return grids[name] | ({"learning_rate_init": rates} if name.startswith("mlp") else {})


def tune(data: Split, pipeline: Any, grid: Grid, folds: Any) -> Cell:
    """Search, refit the best candidate on all training rows and score it on the test rows."""
    prefix = f"{pipeline.steps[-1][0]}__"
    prefix += "regressor__" if isinstance(pipeline[-1], TransformedTargetRegressor) else ""
    scoring = "accuracy" if data.classes else "neg_root_mean_squared_error"
    settings = {"cv": folds, "scoring": scoring, "refit": False, "error_score": "raise"}
    grid = {prefix + key: values for key, values in grid.items()}
    search = GridSearchCV(pipeline, grid, **settings)
    searched = timed(search.fit, data.X, data.y)
    best = clone(pipeline).set_params(**search.best_params_)
    refitted = timed(best.fit, data.X, data.y)
    chosen = {key.split("__")[-1]: value for key, value in search.best_params_.items()}
    score = search.best_score_
    return {
        "cv_error": float(1 - score if data.classes else -score / data.y.std()),
        "best_params": chosen,
        "search_cpu": searched.cpu + refitted.cpu,
        "refit_cpu": refitted.cpu,
        "convergence_warnings": searched.warned,
        "refit_convergence_warnings": refitted.warned,
        **judged(data, best),
    }


def tune_along_paths(name: str, data: Split, grid: Grid, folds: Any) -> Cell:
    """Let our estimator search along its paths, and score it; its best candidate is timed apart.

    The rows are scaled once, by all training rows.
    """
    if name == PATH_NET:
        model = own_path_search(data.classes, **grid, cv=folds, patience=PATIENCE)
    else:
        model = own_search(data.classes, **grid, cv=folds)
    pipeline = make_pipeline(StandardScaler(), model)
    searched = timed(pipeline.fit, data.X, data.y)
    chosen = {"alpha": model.alpha_} | {
        key: getattr(model, f"{key}_") for key in grid if key != "alphas"
    }
    alone = make_model(name, data.classes, **chosen)
    refitted = timed(alone.fit, data.X, data.y)
    scores = (model.scores_ if data.classes else model.mse_path_)[model.best_index_]
    cv_error = 1.0 - scores.mean() if data.classes else np.sqrt(scores).mean() / data.y.std()
    return {
        "cv_error": float(cv_error),
        "best_params": plain(chosen),
        "search_cpu": searched.cpu,
        "refit_cpu": refitted.cpu,
        "convergence_warnings": searched.warned,
        "refit_convergence_warnings": refitted.warned,
        **judged(data, pipeline),
    }


def judged(data: Split, model: Any) -> Cell:
    """Return the test error of a fitted pipeline, its time, and what is known of its network."""
    predicted = timed(model.predict, data.X_test)
    return {
        "error": data.error(predicted.answer),
        "predict_cpu": predicted.cpu,
        "n_neurons": getattr(model[-1], "n_neurons_", None),
        "gap": getattr(model[-1], "dual_gap_", None),
    }


def errors_table(frame: pd.DataFrame, models: Sequence[str]) -> str:
    """Return test errors, the best of a set in bold."""
    rows = []
    for name, group in frame.groupby("set", sort=False):
        first, errors = group.iloc[0], group.set_index("model")["error"]
        row = {"set": name, "n train": first["n_train"], "d": first["d"], "n test": first["n_test"]}
        row["classes"] = first["n_classes"]
        for model in models:
            mark = "**" if errors.get(model) == errors.min() else ""
            row[model] = f"{mark}{errors[model]:.4f}{mark}" if model in errors else "missing"
        neurons = group.set_index("model")["n_neurons"].get(OURS[0])
        rows.append(row | {"neurons of ours": neurons})
    return markdown(rows, ".0f")


def ranks_table(frame: pd.DataFrame, models: Sequence[str], key: str) -> str:
    """Return mean ranks over the sets that have a cell of each of the models.

    By test errors, or by those of the chosen candidates in the search, ``cv_error``.
    """
    wide = frame.pivot(index=["task", "set"], columns="model", values=key)
    ranks = wide.reindex(columns=models).dropna().rank(axis=1).droplevel("set")
    tasks = [task for task in MEASURES if task in ranks.index]
    rows = [(name, ranks.loc[[name]]) for name in tasks] + [("all", ranks)]
    return markdown(
        {"mean rank": name, "sets": str(len(group)), **group.mean().map("{:.2f}".format)}
        for name, group in rows
    )


def outcomes(mine: pd.Series, other: pd.Series) -> str:
    """Return wins, ties and losses."""
    signs = np.sign(mine - other)
    return " / ".join(str(int((signs == sign).sum())) for sign in (-1, 0, 1))


def duels_table(frame: pd.DataFrame, own: str, peers: Sequence[str]) -> str:
    """Return wins of one of ours against every peer, and ratios of times."""
    of_model, rows = {name: group.set_index("set") for name, group in frame.groupby("model")}, []
    for peer, group in ((peer, group) for peer in peers for group in (*MEASURES, "all")):
        pairs = of_model[own].join(of_model[peer].add_suffix(" peer"), how="inner")
        pairs = pairs[(pairs["task"] == group) | (group == "all")]
        if len(pairs):
            row = {f"{own} against": f"{peer}, {group}"}
            row["wins / ties / losses"] = outcomes(pairs["error"], pairs["error peer"])
            row["by CV error"] = outcomes(pairs["cv_error"], pairs["cv_error peer"])
            for what in ("search", "refit", "predict"):
                ratios = pairs[f"{what}_cpu"] / pairs[f"{what}_cpu peer"]
                row[f"{what} time"] = f"{ratios.median():.2g}"
            rows.append(row)
    return markdown(rows)


class Tuned(Benchmark):
    """Test errors under equal tuning effort."""

    name = "bench_accuracy"
    keys = ("set", "model")
    settings = ("max_train", "max_test", "seed")
    models: Sequence[str] = MODELS
    sets: Sequence[str] = ()
    max_train = 2000
    prepare = staticmethod(warm_up)

    def add_options(self, add: Any) -> None:
        add("--models", nargs="+", choices=self.models, default=self.models)
        add("--sets", nargs="+", default=self.sets, help="these sets only")
        add("--folders", nargs="+", choices=FOLDERS, default=list(FOLDERS)[:2])
        add("--max-train", type=int, default=self.max_train)
        add("--max-test", type=int, default=5000)
        add("--seed", type=int, default=0, help="of splits and folds")

    def split(self, name: str) -> Split:
        """Return a set, split."""
        return split(name, self.options.max_train, self.options.max_test, self.options.seed)

    def plan(self) -> Iterable[Cell]:
        cells = []
        for name in set_names(self.options.folders, self.options.sets):
            sizes = self.split(name).sizes
            for model in self.options.models:
                grid = plain(make_grid(model, sizes["d"]))
                cells.append({"set": name, "model": model, "grid": grid, **sizes})
        return sorted(cells, key=self.cost)

    def cost(self, cell: Cell) -> Any:
        """Return what cells are sorted by."""
        cost = cell["n_train"] * max(1, cell["n_classes"] - 1)
        return cost, cell["task"] == "classification", cell["set"], MODELS.index(cell["model"])

    def measure(self, cell: Cell) -> Cell:
        data, seed = self.split(cell["set"]), self.options.seed
        kind = StratifiedKFold if data.classes else KFold
        folds = kind(N_FOLDS, shuffle=True, random_state=seed)
        if cell["model"] in OWN:
            return tune_along_paths(cell["model"], data, cell["grid"], folds)
        return tune(data, make_model(cell["model"], data.classes), cell["grid"], folds)

    def report(self, cells: list[Cell]) -> Iterable[str]:
        frame, o = pd.DataFrame(cells), self.options
        models = [m for m in (*OWN, *PEERS) if (frame["model"] == m).any()]
        own, ranked = ([m for m in models if m in group] for group in (OWN, RANKED))
        yield "Test errors under equal tuning effort"
        yield f"At most {o.max_train} training and {o.max_test} test rows a set, seed {o.seed}."
        for task, measure in MEASURES.items():
            table = errors_table(frame[frame["task"] == task], models)
            yield f"## {task.capitalize()}: {measure}\n\n{table}"
        yield "## Ranks over the sets that have all these models"
        yield from (ranks_table(frame, [m, *ranked], "error") for m in own)
        yield "By the errors of the chosen candidates in the search, means of its three folds:"
        yield from (ranks_table(frame, [m, *ranked], "cv_error") for m in own)
        yield "## Pairs\n\nTimes are median ratios ours / peer of CPU seconds."
        yield from (duels_table(frame, m, [peer for peer in models if peer != m]) for m in own)
        warned = frame.groupby("model")["refit_convergence_warnings"].agg(["sum", "count"])
        texts = [f"{m}: {int(warned['sum'][m])} of {warned['count'][m]}" for m in models]
        yield f"Refits that did not converge: {', '.join(texts)}."


def combinations(texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Read ``alpha=0.1,0.01 shrinkage=0,auto``; return the parameters of each combination."""

    def value(text: str) -> Any:
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError):
            return text

    pairs = [text.split("=", 1) for text in texts]
    grid = ParameterGrid({key: [value(v) for v in values.split(",")] for key, values in pairs})
    return {", ".join(f"{k}={v}" for k, v in each.items()) or OURS[0]: each for each in grid}


def of_rows(parameters: dict[str, Any], n: int) -> dict[str, Any]:
    """Return parameters for n training rows, an alpha such as "0.05/n^0.5" as a number."""
    rule = re.fullmatch(r"(.+)/n\^(.+)", str(parameters.get("alpha")))
    if rule is None:
        return parameters
    scale, power = map(float, rule.groups())
    return {**parameters, "alpha": scale / n**power}


class Defaults(Benchmark):
    """Default estimators beside default MLPs."""

    name = "bench_accuracy_defaults"
    keys = ("set", "rows", "split", "model")
    settings = ("max_test",)
    prepare = staticmethod(warm_up)

    def add_options(self, add: Any) -> None:
        add("--defaults", nargs="*", metavar="PARAMETER=VALUE,...", default=[])
        add("--sets", nargs="+", default=[], help="these sets only")
        add("--rows", nargs="+", type=int, default=[250, 1000, 4000], help="most rows to train")
        add("--splits", type=int, default=2)
        add("--max-test", type=int, default=5000)

    def plan(self) -> Iterable[Cell]:
        models, seen = {"mlp": {}, **combinations(self.options.defaults)}, set()
        for limit in self.options.rows:
            for name in set_names(FOLDERS, self.options.sets):
                rows = min(limit, available(name))  # the same for all limits above
                for number in range(self.options.splits if (name, rows) not in seen else 0):
                    for model, parameters in models.items():
                        key = dict(zip(self.keys, (name, rows, number, model), strict=True))
                        yield key | {"parameters": plain(parameters)}
                seen.add((name, rows))

    def measure(self, cell: Cell) -> Cell:
        data = split(cell["set"], cell["rows"], self.options.max_test, cell["split"])
        kind = "default_mlp" if cell["model"] == "mlp" else OURS[0]
        parameters = of_rows(cell["parameters"], len(data.X))
        model = make_model(kind, data.classes, **parameters)
        fitted = timed(model.fit, data.X, data.y)
        found = {"error": data.error(model.predict(data.X_test)), "cpu": fitted.cpu}
        found |= {"constant": data.error_of_constant(), "warned": fitted.warned}
        found |= {"n_neurons": getattr(model[-1], "n_neurons_", None)}
        return {**found, **data.sizes, "available": available(cell["set"])}

    def report(self, cells: list[Cell]) -> Iterable[str]:
        yield "Default parameters of this package compared"
        if not cells:
            yield ""
            return
        yield (
            "Nothing is tuned; `mlp` are scikit-learn's with their defaults, all on standardised "
            "inputs. Errors are root mean squared errors in standard deviations of the target, or "
            "error rates, means over the splits, as the processor seconds are. `constant` is the "
            f"error of the best constant; an error above {WORST} times it is marked with !."
        )
        frame = pd.DataFrame(cells)
        for limit in self.options.rows:
            fits = frame[frame["rows"] == frame["available"].clip(upper=limit)]
            if len(fits):
                means = fits.groupby(["set", "model"], sort=False).mean(numeric_only=True)
                yield f"## At most {limit} training rows\n\n{self.summary(fits, means)}"
                yield self.sets(means)

    def sets(self, means: pd.DataFrame) -> str:
        """Return a row for each set."""
        rows: dict[str, Cell] = {}
        for (name, model), fit in means.iterrows():
            row = rows.setdefault(name, {"set": name, "n train": int(fit["n_train"])})
            row |= {"d": int(fit["d"]), "classes": int(fit["n_classes"])}
            row["constant"] = f"{fit['constant']:.4f}"
            worst = " !" if fit["error"] > WORST * fit["constant"] else ""
            row |= {f"{model} error": f"{fit['error']:.4f}{worst}", f"{model} s": fit["cpu"]}
        return markdown(rows.values())

    def summary(self, fits: pd.DataFrame, means: pd.DataFrame) -> str:
        """Return a row for each setting: against the MLP, and among the settings."""
        tasks = fits.drop_duplicates("set").set_index("set")["task"]
        error, cpu, constant = (means[key].unstack() for key in ("error", "cpu", "constant"))
        models = [model for model in dict.fromkeys(fits["model"]) if model != "mlp"]
        complete = error.reindex(columns=models).dropna()
        shares, ranks = complete.clip(lower=1e-9), complete.rank(axis=1)
        shares, rows = shares.div(shares.min(axis=1), axis=0), []
        for model in models:
            row: Cell = {"setting": model, "sets": int(error[model].notna().sum())}
            if "mlp" in error:
                pairs = error[[model, "mlp"]].dropna()
                row["time / mlp"] = geometric_mean((cpu[model] / cpu["mlp"]).dropna())
                row["wins / ties / losses"] = outcomes(pairs[model], pairs["mlp"])
                row["over 5 % behind"] = int((pairs[model] > 1.05 * pairs["mlp"]).sum())
            for task in MEASURES if len(models) > 1 else ():
                of_task = complete.index[tasks.reindex(complete.index) == task]
                row[f"{task}: error / best"] = geometric_mean(shares.loc[of_task, model])
                row[f"{task}: mean rank"] = float(ranks.loc[of_task, model].mean())
            row[f"above {WORST} constant"] = int((error[model] > WORST * constant[model]).sum())
            rows.append(row)
        return markdown(rows)


if __name__ == "__main__":
    chosen = Defaults if any(word.startswith("--defaults") for word in sys.argv[1:]) else Tuned
    sys.exit(chosen().main())

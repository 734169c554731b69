"""Whole fits, predictions and memory of the estimators with their defaults, beside MLPs.

What the tables hold is in the README.
"""

import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from _suite.benchmark import Benchmark, command
from _suite.data import (
    MANY_TARGETS,
    TEACHERS,
    data_folder,
    load,
    load_images,
    many_targets,
    teacher,
    test_error,
)
from _suite.package import own_model, warm_up
from _suite.runner import run_apart, timed
from _suite.store import Cell
from _suite.tables import geometric_mean, markdown

import numpy as np
from sklearn.compose import TransformedTargetRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

Array = np.ndarray
REGRESSION, CLASSIFICATION = ("diabetes",), ("iris", "wine", "breast_cancer", "digits")


def data(name: str, n: int = 10_000) -> tuple[Array, Array]:
    """Return inputs and targets, which are integers for classification."""
    if name in TEACHERS:
        return teacher(n, classes=name == TEACHERS[1])
    if name in MANY_TARGETS:
        return many_targets(name)
    if name == "mnist":
        X, y = load_images(name)[:2]
        return X.reshape(len(X), -1).astype(np.float32), y
    X, y = load(name)
    return X, y if name in REGRESSION else y.astype(np.int64)


def own(y: Array, **parameters: Any) -> Any:
    """Return our estimator for a target."""
    return own_model(y.dtype.kind == "i", **parameters)


def mlp(y: Array, **parameters: Any) -> Any:
    """Return an MLP on standardised inputs, and targets if they are numbers."""
    if y.dtype.kind == "i":
        return make_pipeline(StandardScaler(), MLPClassifier(**parameters))
    model = make_pipeline(StandardScaler(), MLPRegressor(**parameters))
    return TransformedTargetRegressor(model, transformer=StandardScaler())


def rounds(model: Any) -> int:
    """Return the rounds of ours, or the epochs of what :func:`mlp` has made, fitted."""
    model = getattr(model, "regressor_", model)
    return model.n_iter_ if hasattr(model, "n_iter_") else model[-1].n_iter_


class FitTable(Benchmark):
    """What the three tables have in common."""

    keys: tuple[str, ...] = ("data", "rows")
    settings: tuple[str, ...] = ("max_iter",)
    names: Sequence[str]
    sizes: Sequence[int]
    prepare = staticmethod(warm_up)

    def add_options(self, add: Any) -> None:
        add("--data", nargs="+", choices=self.names, default=self.names)
        add("--sizes", type=int, nargs="+", default=self.sizes, help="rows")
        add("--max-iter", type=int, help="most rounds of our fits")

    def parameters(self) -> dict[str, Any]:
        """Return the parameters of our estimators that the command line sets."""
        return {} if self.options.max_iter is None else {"max_iter": self.options.max_iter}

    def plan(self) -> Iterator[Cell]:
        names = self.options.data
        for name in (name for name in names if name not in TEACHERS):
            if name == "mnist" and not (data_folder() / "mnist").is_dir():
                print("note: no mnist/ in the data folder: left out")
            else:
                yield {"data": name, "rows": len(data(name)[0])}
        for n in self.options.sizes:
            yield from ({"data": name, "rows": n} for name in names if name in TEACHERS)

    def report(self, cells: list[Cell]) -> Iterable[str]:
        rows = [{k: v for k, v in cell.items() if k != "run"} for cell in cells]
        yield self.title
        yield self.words
        yield markdown(rows)
        lines = [
            f"- geometric mean of `{key}`: {geometric_mean(row[key] for row in rows):.3g} over "
            f"{len(rows)} rows"
            for key in (key for key in rows[0] if key.startswith("ratio"))
        ]
        yield "\n".join([*lines, *exponents(rows)])


def exponents(rows: Sequence[Cell]) -> Iterator[str]:
    """Yield a line for data of several sizes: the powers of the rows that our times grow with."""
    for name in dict.fromkeys(row["data"] for row in rows):
        own = [row for row in rows if row["data"] == name]
        prefix = "ours " if "ours s" in own[0] else ""
        sizes = np.log([row["rows"] for row in own])
        if f"{prefix}rounds" not in own[0] or np.ptp(sizes) == 0:
            continue
        seconds, rounds = (np.array([row[prefix + key] for row in own]) for key in ("s", "rounds"))
        whole, each = (np.polyfit(sizes, np.log(a), 1)[0] for a in (seconds, seconds / rounds))
        yield (
            f"- {name}: seconds of our fits grow like rows to the power {whole:.2f}, those of a "
            f"round like rows to the power {each:.2f}"
        )


class Fit(FitTable):
    """Times and errors."""

    name = "bench_fit"
    title = "Whole fits with default parameters, beside MLPs"
    words = (
        "Processor seconds; a ratio is an MLP's over ours, so above 1 ours is the quicker. Errors: "
        "root mean squared error in standard deviations of the target, or error rate. `rounds` "
        "are an MLP's epochs."
    )
    names = (*REGRESSION, *CLASSIFICATION, *MANY_TARGETS, *TEACHERS)
    sizes = (10_000, 100_000, 1_000_000)

    def measure(self, cell: Cell) -> Cell:
        X, y = data(cell["data"], cell["rows"])
        runs = [self.fit_once(X, y, seed) for seed in range(3 if len(X) < 10_000 else 1)]
        row: Cell = {"d": X.shape[1]}
        for key in runs[0]:
            middle = np.mean if key.endswith("error") else np.median
            row[key] = float(middle([run[key] for run in runs]))
        return row | {f"ratio {k}": row[f"{k} s"] / row["ours s"] for k in ("mlp", "mlp_early")}

    def fit_once(self, X: Array, y: Array, seed: int) -> dict[str, float]:
        """Fit all models to one split."""
        classes = y if y.dtype.kind == "i" else None
        X, X_test, y, y_test = train_test_split(X, y, random_state=seed, stratify=classes)
        models = {
            "ours": own(y, random_state=seed, **self.parameters()),
            "mlp": mlp(y, random_state=seed),
            "mlp_early": mlp(y, random_state=seed, early_stopping=True),
        }
        run: dict[str, float] = {}
        for name, model in models.items():
            run[f"{name} s"] = timed(model.fit, X, y).cpu
            scale, classes = float(y.std()), y.dtype.kind == "i"
            run[f"{name} error"] = test_error(y_test, model.predict(X_test), scale, classes)
            run[f"{name} rounds"] = rounds(model)
        return run | {"neurons": models["ours"].n_neurons_, "gap": models["ours"].dual_gap_}


def rows_per_second(predicts: dict[str, Callable[[Array], Array]], X: Array) -> dict[str, float]:
    """Return the most rows a second of each function, of turns that each take some time."""
    best = dict.fromkeys(predicts, 0.0)
    for turn in range(6):  # the first one only warms up
        for name, predict in predicts.items():
            calls, seconds, start = 0, 0.0, time.process_time()
            while seconds < 0.05 or calls < 2:
                predict(X)
                calls += 1
                seconds = time.process_time() - start
            if turn:
                best[name] = max(best[name], calls * len(X) / seconds)
    return best


class Predict(FitTable):
    """Rows a second."""

    name = "bench_predict"
    keys = ("data", "dtype", "rows")
    settings = ()
    title = "Predictions, rows a second"
    words = (
        "Of processor time. A ratio is ours over the MLP's, so above 1 ours is the quicker. `mlp "
        "same` has our number of neurons."
    )
    names, sizes = (*TEACHERS, "digits"), (1, 100, 100_000)

    def plan(self) -> Iterator[Cell]:
        for name in self.options.data:
            for dtype in ("float64", "float32"):
                for n in self.options.sizes:
                    yield {"data": name, "dtype": dtype, "rows": n}

    def measure(self, cell: Cell) -> Cell:
        X, y = data(cell["data"], 2000)
        if getattr(self, "fitted", None) != cell["data"]:
            self.fitted, self.model = cell["data"], own(y, tol=0.1).fit(X, y)
        units = {"mlp 100": 100, "mlp same": self.model.n_neurons_}
        X, kind = X.astype(cell["dtype"]), MLPClassifier if y.dtype.kind == "i" else MLPRegressor
        models: dict[str, Any] = {"ours": self.model}
        for key, size in units.items():
            models[key] = kind((size,), max_iter=1, random_state=0).fit(X, y)
        inputs = np.ascontiguousarray(X[np.arange(cell["rows"]) % len(X)])
        speeds = rows_per_second({key: model.predict for key, model in models.items()}, inputs)
        row = {"d": X.shape[1], "neurons": self.model.n_neurons_}
        row |= {f"{key} rows/s": speed for key, speed in speeds.items()}
        return row | {f"ratio {key}": speeds["ours"] / speeds[key] for key in units}

    def report(self, cells: list[Cell]) -> Iterable[str]:
        first = ("data", "d", "neurons", "dtype", "rows")
        return super().report([{key: cell[key] for key in first} | cell for cell in cells])


def status_of(process: int | str) -> dict[str, int]:
    """Return the sizes in bytes that Linux states of a process, such as VmRSS and RssAnon."""
    text = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    lines = (line.split() for line in text.splitlines())
    return {words[0].rstrip(":"): 1024 * int(words[1]) for words in lines if words[-1] == "kB"}


def fit_mapped(folder: str, parameters: dict[str, Any]) -> Iterator[Any]:
    """Fit to mapped inputs; yield the sizes before and after, and facts of the fit."""
    warnings.simplefilter("ignore", ConvergenceWarning)
    X, y = np.load(f"{folder}/X.npy", mmap_mode="r"), np.load(f"{folder}/y.npy")
    first = np.unique(y, return_index=True)[1][:2] if y.dtype.kind == "i" else np.arange(2)
    few = np.append(first, np.arange(100))
    own(y, max_iter=1).fit(np.array(X[few]), y[few])  # loads and starts what a fit needs
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak is what now is
    yield status_of("self")
    model = own(y, **parameters)
    seconds, after = timed(model.fit, X, y).cpu, status_of("self")
    facts = {"components": model.n_components_, "neurons": model.n_neurons_, "s": seconds}
    yield after, facts | {"rounds": model.n_iter_, "gap": model.dual_gap_}


class Memory(FitTable):
    """Peak memory."""

    name = "bench_memory"
    title = "Peak memory of a fit to mapped inputs"
    words = (
        "Above that of the process before the fit, as a ratio to the whitened data in float32. "
        "Resident memory counts pages of the mapped file; anonymous memory is sampled."
    )
    names, sizes = (*TEACHERS, "mnist"), (10_000, 100_000, 1_000_000)

    def prepare(self) -> None:
        if not Path("/proc/self/clear_refs").exists():
            raise SystemExit("Memory is read from /proc, which this platform does not have.")

    def measure(self, cell: Cell) -> Cell:
        X, y = data(cell["data"], cell["rows"])
        row: Cell = {"d": X.shape[1], "dtype": X.dtype.name, "X MiB": X.nbytes / 2**20}
        peak = 0

        def watch(process: int, n_answers: int) -> None:
            nonlocal peak
            if n_answers == 1:
                peak = max(peak, status_of(process)["RssAnon"])

        with tempfile.TemporaryDirectory() as folder:
            np.save(f"{folder}/X.npy", X)
            np.save(f"{folder}/y.npy", y)
            del X
            fit = fit_mapped, folder, self.parameters()
            answers, end = run_apart(*fit, start="spawn", watch=watch)
        if end != "done":
            raise RuntimeError(f"the fit's process: {end}")
        before, (after, facts) = answers
        resident, anonymous = after["VmHWM"] - before["VmRSS"], max(peak - before["RssAnon"], 0)
        whitened = 4 * cell["rows"] * (facts["components"] + 1)
        sizes = {"whitened": whitened, "resident": resident, "anonymous": anonymous}
        row |= {f"{name} MiB": size / 2**20 for name, size in sizes.items()}
        row |= {f"ratio {name}": sizes[name] / whitened for name in ("resident", "anonymous")}
        return row | facts


if __name__ == "__main__":
    sys.exit(command(Fit, Predict, Memory))

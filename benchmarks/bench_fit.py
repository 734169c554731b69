"""Whole fits, predictions and memory of the estimators with their defaults, beside MLPs.

``fit`` gives processor seconds and test errors of ``ConvexBNRegressor`` and ``ConvexBNClassifier``
beside ``MLPRegressor`` and ``MLPClassifier``, each with its defaults and with early stopping, on
scikit-learn's bundled sets and on a teacher network's data. An MLP gets standardised inputs and
targets, ours get them as they are. Sets of less than 10^4 rows are split with three seeds: errors
are means, all else medians. A quarter of the rows is the test set.

``predict`` gives rows a second of ``predict`` on 1, 100 and 10^5 rows, beside MLPs of 100 units and
of our number of neurons, which are fitted in the inputs' dtype.

``memory`` gives the peak memory of a fit to inputs that are mapped from a file, each in a process
of its own, above what that process has after imports, a small fit and the targets, as a multiple
of the whitened data in float32. The resident set counts pages of the file too, which the system
takes back when it needs them; anonymous memory, which it cannot, is sampled every 2 ms::

    python benchmarks/bench_fit.py fit [--data digits teacher] [--sizes 10000 100000]
    python benchmarks/bench_fit.py predict
    python benchmarks/bench_fit.py memory [--data teacher mnist] [--sizes 100000 1000000]

MNIST is read from ``mnist/mnist.npz`` in the data folder, and left out where it is not. Results are
written to ``benchmarks/results/bench_TABLE.md`` and ``.json`` after every row, with the power of
the rows that our times grow with where there are several sizes.
"""

from __future__ import annotations

import _suite  # noqa: F401 - first: it sets the number of threads

# isort: split
import argparse
import json
import multiprocessing
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _suite.circumstances import circumstances
from _suite.data import data_folder, load
from scipy.stats import gmean
from sklearn.compose import TransformedTargetRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import root_mean_squared_error, zero_one_loss
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_convexbn import ConvexBNClassifier, ConvexBNRegressor

Array = np.ndarray
Row = dict[str, Any]

REGRESSION, CLASSIFICATION = ("diabetes",), ("iris", "wine", "breast_cancer", "digits")
TEACHERS = ("teacher", "teacher_classes")  # regression and two classes
PEERS = ("mlp", "mlp_early")
N_FEATURES, N_TEACHER_UNITS, NOISE = 30, 10, 0.3


# --------------------------------------------------------------------------------------
# Data and models
# --------------------------------------------------------------------------------------


def teacher_data(n: int, classes: bool = False, seed: int = 0) -> tuple[Array, Array]:
    """Return inputs (n, 30) and a ReLU network's outputs with noise, or their signs.

    Neighbouring columns of the inputs have a correlation of one half; the condition number of
    their covariance is 9, so that whitening them matters little.
    """
    rng = np.random.default_rng(seed)
    distance = np.abs(np.subtract.outer(np.arange(N_FEATURES), np.arange(N_FEATURES)))
    X = rng.standard_normal((n, N_FEATURES)) @ np.linalg.cholesky(0.5**distance).T
    hidden = rng.standard_normal((N_FEATURES, N_TEACHER_UNITS)) / np.sqrt(N_FEATURES)
    y = np.maximum(X @ hidden, 0.0) @ rng.standard_normal(N_TEACHER_UNITS)
    y = (y - y.mean()) / y.std() + NOISE * rng.standard_normal(n)
    return X, (y > 0).astype(np.int64) if classes else y


def mnist() -> tuple[Array, Array]:
    """Return the images of the training set as rows, and the digits."""
    with np.load(data_folder() / "mnist" / "mnist.npz") as file:
        names = {name: file[name] for name in file.files}
    X, y = (names.get(f"{a}_train", names.get(a)) for a in ("X", "y"))
    assert X is not None
    assert y is not None
    return X.reshape(len(X), -1)[:60000].astype(np.float32), y[:60000]


def data(name: str, n: int = 10_000) -> tuple[Array, Array]:
    """Return inputs and targets, which are integers for classification."""
    if name in TEACHERS:
        return teacher_data(n, classes=name == TEACHERS[1])
    if name == "mnist":
        return mnist()
    X, y = load(name)
    return X, y if name in REGRESSION else y.astype(np.int64)


def limits(options: argparse.Namespace) -> dict[str, Any]:
    """Return the parameters of our estimators that the command line sets."""
    return {} if options.max_iter is None else {"max_iter": options.max_iter}


def own_model(y: Array, seed: int = 0, **parameters: Any) -> Any:
    """Return our estimator for a target."""
    kind = ConvexBNClassifier if y.dtype.kind == "i" else ConvexBNRegressor
    return kind(random_state=seed, **parameters)


def mlp(y: Array, seed: int = 0, **parameters: Any) -> Any:
    """Return an MLP on standardised inputs, and targets if they are numbers."""
    classes = y.dtype.kind == "i"
    network = (MLPClassifier if classes else MLPRegressor)(random_state=seed, **parameters)
    model = make_pipeline(StandardScaler(), network)
    return model if classes else TransformedTargetRegressor(model, transformer=StandardScaler())


def network_of(model: Any) -> Any:
    """Return the MLP within what :func:`mlp` has made, fitted."""
    return (model.regressor_ if isinstance(model, TransformedTargetRegressor) else model)[-1]


def test_error(model: Any, X: Array, y: Array, scale: float) -> float:
    """Return the error rate, or the root mean squared error in standard deviations."""
    if y.dtype.kind == "i":
        return float(zero_one_loss(y, model.predict(X)))
    return float(root_mean_squared_error(y, model.predict(X)) / scale)


# --------------------------------------------------------------------------------------
# Whole fits
# --------------------------------------------------------------------------------------


def fit_row(name: str, X: Array, y: Array, parameters: dict[str, Any]) -> Row:
    """Fit all models to splits of one data set."""
    row: Row = {"data": name, "rows": len(X), "d": X.shape[1]}
    runs = [_fit_once(X, y, seed, parameters) for seed in range(3 if len(X) < 10_000 else 1)]
    for key in runs[0]:
        values = [run[key] for run in runs]
        row[key] = float((np.mean if key.endswith("error") else np.median)(values))
    for peer in PEERS:
        row[f"ratio {peer}"] = row[f"{peer} s"] / row["ours s"]
    return row


def _fit_once(X: Array, y: Array, seed: int, parameters: dict[str, Any]) -> dict[str, float]:
    classes = y if y.dtype.kind == "i" else None
    X, X_test, y, y_test = train_test_split(X, y, random_state=seed, stratify=classes)
    models = {
        "ours": own_model(y, seed, **parameters),
        "mlp": mlp(y, seed),
        "mlp_early": mlp(y, seed, early_stopping=True),
    }
    run: dict[str, float] = {}
    for name, model in models.items():
        start = time.process_time()
        model.fit(X, y)
        run[f"{name} s"] = time.process_time() - start
        run[f"{name} error"] = test_error(model, X_test, y_test, float(y.std()))
        run[f"{name} rounds"] = model.n_iter_ if name == "ours" else network_of(model).n_iter_
    own = models["ours"]
    return run | {"neurons": own.n_neurons_, "gap": own.dual_gap_}


def fit_rows(options: argparse.Namespace) -> Iterator[Row]:
    """Yield the rows of the table of whole fits."""
    names, parameters = options.data or (*REGRESSION, *CLASSIFICATION, *TEACHERS), limits(options)
    for name in (name for name in names if name not in TEACHERS):
        yield fit_row(name, *data(name), parameters)
    for n in options.sizes or (10_000, 100_000):
        for name in (name for name in names if name in TEACHERS):
            yield fit_row(name, *data(name, n), parameters)


# --------------------------------------------------------------------------------------
# Predictions
# --------------------------------------------------------------------------------------


def rows_per_second(predicts: dict[str, Callable[[Array], Array]], X: Array) -> dict[str, float]:
    """Return the most rows a second of each function, of turns that each take some time."""
    best = dict.fromkeys(predicts, 0.0)
    for turn in range(6):  # the first one only warms up
        for name, predict in predicts.items():
            calls, start, seconds = 0, time.process_time(), 0.0
            while seconds < 0.05 or calls < 2:
                predict(X)
                calls += 1
                seconds = time.process_time() - start
            if turn:
                best[name] = max(best[name], calls * len(X) / seconds)
    return best


def predict_rows(options: argparse.Namespace) -> Iterator[Row]:
    """Yield the rows of the table of predictions."""
    for name in options.data or (*TEACHERS, "digits"):
        X, y = data(name, 2000)
        own = own_model(y, tol=0.1).fit(X, y)
        for dtype in ("float64", "float32"):
            cast = X.astype(dtype)
            units = {"mlp 100": 100, "mlp same": own.n_neurons_}
            models = {"ours": own, **{key: _peer(cast, y, size) for key, size in units.items()}}
            predicts = {key: model.predict for key, model in models.items()}
            for n in options.sizes or (1, 100, 100_000):
                inputs = np.ascontiguousarray(cast[np.arange(n) % len(cast)])
                speeds = rows_per_second(predicts, inputs)
                row = {"data": name, "d": X.shape[1], "neurons": own.n_neurons_, "dtype": dtype}
                row |= {"rows": n, **{f"{key} rows/s": speeds[key] for key in models}}
                yield row | {f"ratio {key}": speeds["ours"] / speeds[key] for key in units}


def _peer(X: Array, y: Array, n_units: int) -> Any:
    """Return an MLP that can predict; its weights do not matter."""
    kind = MLPClassifier if y.dtype.kind == "i" else MLPRegressor
    return kind(hidden_layer_sizes=(n_units,), max_iter=1, random_state=0).fit(X, y)


# --------------------------------------------------------------------------------------
# Memory
# --------------------------------------------------------------------------------------


def status_of(process: int | str) -> dict[str, int]:
    """Return the sizes in bytes that Linux states of a process, such as VmRSS and RssAnon."""
    text = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    lines = (line.split() for line in text.splitlines())
    return {words[0].rstrip(":"): 1024 * int(words[1]) for words in lines if words[-1] == "kB"}


def _child(pipe: Any, folder: str, parameters: dict[str, Any]) -> None:
    """Fit to mapped inputs; tell before and after."""
    warnings.simplefilter("ignore", ConvergenceWarning)
    X, y = np.load(f"{folder}/X.npy", mmap_mode="r"), np.load(f"{folder}/y.npy")
    first = np.unique(y, return_index=True)[1][:2] if y.dtype.kind == "i" else np.arange(2)
    few = np.append(first, np.arange(100))
    own_model(y, max_iter=1).fit(np.array(X[few]), y[few])  # loads and starts what a fit needs
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak is what now is
    pipe.send(status_of("self"))
    pipe.recv()
    start = time.process_time()
    model = own_model(y, **parameters).fit(X, y)
    seconds, after = time.process_time() - start, status_of("self")
    facts = {"components": model.n_components_, "neurons": model.n_neurons_, "s": seconds}
    pipe.send((after, facts | {"rounds": model.n_iter_, "gap": model.dual_gap_}))


def peak_memory(folder: str, parameters: dict[str, Any]) -> tuple[int, int, dict[str, Any]]:
    """Return by how much the resident set and anonymous memory of a fit rise, and its facts."""
    context = multiprocessing.get_context("spawn")
    pipe, other = context.Pipe()
    process = context.Process(target=_child, args=(other, folder, parameters))
    process.start()
    other.close()
    assert process.pid is not None
    before = pipe.recv()
    anonymous = 0
    pipe.send("go")
    while not pipe.poll(0.002):
        anonymous = max(anonymous, status_of(process.pid)["RssAnon"])
    after, facts = pipe.recv()
    process.join()
    return after["VmHWM"] - before["VmRSS"], max(anonymous - before["RssAnon"], 0), facts


def memory_row(name: str, X: Array, y: Array, parameters: dict[str, Any]) -> Row:
    """Measure one fit."""
    row: Row = {"data": name, "rows": len(X), "d": X.shape[1], "dtype": X.dtype.name}
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/X.npy", X)
        np.save(f"{folder}/y.npy", y)
        row["X MiB"], shape = X.nbytes / 2**20, X.shape
        del X
        resident, anonymous, facts = peak_memory(folder, parameters)
    whitened = 4 * shape[0] * (facts["components"] + 1)
    return row | {
        "whitened MiB": whitened / 2**20,
        "resident MiB": resident / 2**20,
        "anonymous MiB": anonymous / 2**20,
        "ratio resident": resident / whitened,
        "ratio anonymous": anonymous / whitened,
        **facts,
    }


def memory_rows(options: argparse.Namespace) -> Iterator[Row]:
    """Yield the rows of the table of memory."""
    if not Path("/proc/self/clear_refs").exists():
        sys.exit("memory is read from /proc, which this platform does not have")
    names, parameters = options.data or (TEACHERS[0], "mnist"), limits(options)
    for n in options.sizes or (100_000, 1_000_000):
        for name in (name for name in names if name in TEACHERS):
            yield memory_row(name, *data(name, n), parameters)
    for name in (name for name in names if name not in TEACHERS):
        if name == "mnist" and not (data_folder() / "mnist" / "mnist.npz").is_file():
            print("note: no mnist/mnist.npz in the data folder: left out")
            continue
        yield memory_row(name, *data(name), parameters)


# --------------------------------------------------------------------------------------
# Tables
# --------------------------------------------------------------------------------------

TABLES = {
    "fit": (
        "Whole fits with default parameters, beside MLPs",
        "Processor seconds; a ratio is an MLP's over ours, so above 1 ours is the quicker. Errors: "
        "root mean squared error in standard deviations of the target, or error rate. `rounds` "
        "are an MLP's epochs.",
        fit_rows,
    ),
    "predict": (
        "Predictions, rows a second",
        "Of processor time. A ratio is ours over the MLP's, so above 1 ours is the quicker. `mlp "
        "same` has our number of neurons.",
        predict_rows,
    ),
    "memory": (
        "Peak memory of a fit to mapped inputs",
        "Above that of the process before the fit, as a ratio to the whitened data in float32. "
        "Resident memory counts pages of the mapped file; anonymous memory is sampled.",
        memory_rows,
    ),
}


def text(value: Any) -> str:
    """Return a table cell."""
    return f"{value:.3g}" if isinstance(value, float) and abs(value) < 1e3 else f"{value:,.0f}"


def report(rows: Sequence[Row], table: str) -> str:
    """Return the table in markdown, with the geometric means of its ratios."""
    title, words, _ = TABLES[table]
    names = list(rows[0])
    lines = [f"# {title}", "", words, "", "| " + " | ".join(names) + " |"]
    lines.append("|" + " --- |" * len(names))
    for row in rows:
        cells = (row[key] if isinstance(row[key], str) else text(row[key]) for key in names)
        lines.append("| " + " | ".join(cells) + " |")
    lines.append("")
    for key in (key for key in names if key.startswith("ratio")):
        mean = gmean([row[key] for row in rows])
        lines.append(f"- geometric mean of `{key}`: {mean:.3g} over {len(rows)} rows")
    lines += exponents(rows)
    facts = (f"- {key}: {value}" for key, value in circumstances().items())
    return "\n".join([*lines, "", "## Circumstances", "", *facts]) + "\n"


def exponents(rows: Sequence[Row]) -> list[str]:
    """Return a line for data of several sizes: the powers of the rows that our times grow with."""
    lines = []
    for name in dict.fromkeys(row["data"] for row in rows):
        own = [row for row in rows if row["data"] == name]
        prefix = "ours " if "ours s" in own[0] else ""
        sizes = np.log([row["rows"] for row in own])
        if f"{prefix}rounds" not in own[0] or np.ptp(sizes) == 0:
            continue
        seconds, rounds = (np.array([row[prefix + key] for row in own]) for key in ("s", "rounds"))
        whole, each = (np.polyfit(sizes, np.log(a), 1)[0] for a in (seconds, seconds / rounds))
        lines.append(
            f"- {name}: seconds of our fits grow like rows to the power {whole:.2f}, those of a "
            f"round like rows to the power {each:.2f}"
        )
    return lines


def write_results(rows: Sequence[Row], table: str, folder: Path) -> None:
    """Write the table and what is behind it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"bench_{table}.md"
    path.write_text(report(rows, table), encoding="utf-8")
    content = {"circumstances": circumstances(), "rows": list(rows)}
    path.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", choices=tuple(TABLES))
    default = Path(__file__).parent / "results"
    parser.add_argument("results", type=Path, nargs="?", default=default, help="folder")
    names = (*REGRESSION, *CLASSIFICATION, *TEACHERS, "mnist")
    parser.add_argument("--data", nargs="+", choices=names, help="keep these data sets only")
    parser.add_argument(
        "--sizes", type=int, nargs="+", help="rows of the teacher's data; of a call of predict"
    )
    parser.add_argument("--max-iter", type=int, help="of our fits in `fit` and `memory`")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make a table, writing it after every row."""
    options = parse_arguments(arguments)
    warnings.simplefilter("ignore", ConvergenceWarning)
    X, y = data("iris")
    own_model(y, max_iter=1).fit(X, y)  # what a first fit loads is not timed
    rows: list[Row] = []
    for row in TABLES[options.table][2](options):
        rows.append(row)
        write_results(rows, options.table, options.results)
        print(row, flush=True)
    if rows:
        print("\n" + report(rows, options.table))
    return 0


if __name__ == "__main__":
    sys.exit(main())

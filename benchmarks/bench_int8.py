"""Networks in 8-bit integers: what they lose, weigh and take, beside float32.

`export_int8` beside `to_torch(fold=True)` exported in float32, both run by onnxruntime in one
thread. Columns of the tabular sets are standardized; all but MNIST (4000 rows) train on 70 % of
their rows. `test` is the accuracy on test rows in %, `bytes` the size of the file, `us_1` and
`us_1000` are median microseconds of processor time for a batch of 1 and of 1000 rows.
"""

import sys
import tempfile
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from _suite.benchmark import Benchmark
from _suite.data import data_folder, load, load_images, read
from _suite.package import own_model
from _suite.store import Cell

import numpy as np
from sklearn.model_selection import train_test_split

#: Parameters of the fits, of at most 4000 rows.
PROBLEMS: dict[str, dict[str, Any]] = {
    "digits": {"alpha": 1e-2, "n_components": 20},
    "mnist": {"alpha": 1e-3, "n_components": 40},
    "breast_cancer": {"alpha": 1e-2, "shrinkage": 0.1},
    "spambase": {"alpha": 1e-2, "shrinkage": 0.1},
}
REPEATS = 200


def data(name: str) -> list[np.ndarray]:
    """Return rows and labels to train, then those to test."""
    if name == "mnist":
        images = load_images(name)
        X, y, X_test, y_test = (A.reshape(len(A), -1) if A.ndim > 1 else A for A in images)
        return [X[:4000] / 255.0, y[:4000], X_test / 255.0, y_test]
    if name == "spambase":
        X, y = read(data_folder() / "uci_classification" / f"{name}.npz", "X", "y")
    else:
        X, y = load(name)
    parts = train_test_split(X, y, test_size=0.3, stratify=y, random_state=0)
    centre, scale = parts[0].mean(axis=0), parts[0].std(axis=0)
    scale = np.where((scale > 0) & (name != "digits"), scale, 1.0)
    X, X_test = ((A - centre) / scale for A in parts[:2])
    return [X[:4000], parts[2][:4000], X_test, parts[3]]


def write_float32(model: Any, X: np.ndarray, path: Path) -> None:
    """Export the folded network of a model by way of torch."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model.to_torch(fold=True).float(),
            (torch.as_tensor(X[:2], dtype=torch.float32),),
            str(path),
            dynamo=True,
            dynamic_shapes=({0: "n"},),
            input_names=["X"],
            output_names=["F"],
            external_data=False,
            verbose=False,
        )


def judged(path: Path, model: Any, X: np.ndarray, y: np.ndarray) -> Cell:
    """Return accuracy, size and latencies of a file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    rows = X.astype(np.float32)
    (F,) = session.run(None, {"X": rows})
    codes = 1 * (F[:, 0] > 0) if F.shape[1] == 1 else F.argmax(axis=1)
    found = {"test": 100 * float((model.classes_[codes] == y).mean())}
    found["bytes"] = path.stat().st_size
    for n in (1, 1000):
        batch, times = np.resize(rows, (n, rows.shape[1])), []
        for _ in range(REPEATS):
            begin = time.process_time_ns()
            session.run(None, {"X": batch})
            times.append((time.process_time_ns() - begin) / 1e3)
        found[f"us_{n}"] = float(np.median(times))
    return found


class Int8(Benchmark):
    name = "bench_int8"
    keys = ("set", "file")
    title, words = "8-bit integers", (__doc__ or "").strip()
    columns = dict.fromkeys(("set", "columns", "units", "outputs", "file"), "")
    columns |= {"test": ".2f", "bytes": ",", "us_1": ".1f", "us_1000": ".0f"}

    def add_options(self, add: Any) -> None:
        add("--data", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))

    def plan(self) -> Iterable[Cell]:
        for name in self.options.data:
            for file in ("float32", "int8"):
                yield {"set": name, "file": file}

    def measure(self, cell: Cell) -> Cell:
        from sklearn_convexbn import export_int8

        X, y, X_test, y_test = data(cell["set"])
        model = own_model(True, tol=0.2, max_iter=10, **PROBLEMS[cell["set"]]).fit(X, y)
        W, V = model.coefs_
        found = {"columns": W.shape[0], "units": W.shape[1], "outputs": V.shape[1]}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            if cell["file"] == "int8":
                export_int8(model, X, path)
            else:
                write_float32(model, X, path)
            return found | judged(path, model, X_test, y_test)


if __name__ == "__main__":
    sys.exit(Int8().main())

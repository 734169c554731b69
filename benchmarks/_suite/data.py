"""Data sets of the benchmarks.

Those of ``uci/``, ``uci_classification/`` and ``highdim/`` are read from NAME.npz (arrays ``X`` and
``y``) in the folder named by the environment variable SKLEARN_CONVEXBN_DATA, or else in
``../shared/data`` beside the repository; images from folders of their names there. The others come
with scikit-learn, or are drawn.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn import datasets
from sklearn.metrics import root_mean_squared_error, zero_one_loss

Array = NDArray[np.float64]
TEACHERS = ("teacher", "teacher_classes")  # regression and two classes
N_FEATURES, N_TEACHER_UNITS, NOISE = 30, 10, 0.3
MANY_TARGETS = ("noise_60_classes", "noise_20_outputs", "classes_150", "outputs_100")


def data_folder() -> Path:
    """Return the folder of the data that scikit-learn does not carry."""
    beside = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"
    return Path(os.environ.get("SKLEARN_CONVEXBN_DATA", beside))


def read_all(path: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of a file."""
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def read(path: Path, *names: str) -> list[NDArray[Any]]:
    """Return some arrays of a file."""
    file = read_all(path)
    return [file[name] for name in names]


def has(name: str) -> bool:
    """Return whether a data set is here."""
    return hasattr(datasets, f"load_{name}") or (data_folder() / "uci" / f"{name}.npz").is_file()


def load(name: str) -> tuple[Array, Array]:
    """Return inputs (n, d) and targets (n,)."""
    if hasattr(datasets, f"load_{name}"):
        X, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    else:
        X, y = read(data_folder() / "uci" / f"{name}.npz", "X", "y")
    return np.asarray(X, dtype=np.float64), np.asarray(y, dtype=np.float64)


def test_error(y: NDArray[Any], prediction: NDArray[Any], scale: float, classes: bool) -> float:
    """Return the error rate, or the root mean squared error in units of `scale`."""
    if classes:
        return float(zero_one_loss(y, prediction))
    return float(root_mean_squared_error(y, prediction) / scale)


def teacher(n: int, classes: bool = False, seed: int = 0) -> tuple[Array, NDArray[Any]]:
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


def many_targets(name: str, seed: int = 0) -> tuple[Array, NDArray[Any]]:
    """Return inputs (n, 10) and many classes or outputs, which may have nothing to do with them.

    `MANY_TARGETS` names them: normal noise and random labels, clusters of standard deviation 0.3 a
    class around normal centres, and a unit with noise of standard deviation 0.3 an output.
    """
    rng, count = np.random.default_rng(seed), int("".join(filter(str.isdigit, name)))
    if name == "noise_60_classes":
        return rng.standard_normal((400, 10)), np.arange(400) % count
    if name == "classes_150":
        y = np.arange(2000) % count
        return rng.standard_normal((count, 10))[y] + 0.3 * rng.standard_normal((2000, 10)), y
    X, noise = rng.standard_normal((700, 10)), rng.standard_normal((700, count))
    if name == "noise_20_outputs":
        return X, noise
    return X, np.maximum(X @ rng.standard_normal((10, count)), 0.0) + 0.3 * noise


def load_images(name: str) -> tuple[NDArray[np.uint8], ...]:
    """Return images (n, height, width, channels) and labels (n,) to train, then those to test."""
    if name == "digits":
        X, y = datasets.load_digits(return_X_y=True)
        X = np.asarray(15 * X, dtype=np.uint8).reshape(-1, 8, 8, 1)
        return X[:1400], y[:1400], X[1400:], y[1400:]
    folder = data_folder() / name
    if not folder.is_dir():
        raise SystemExit(
            f"No images in {folder}: name the folder that has {name}/ in SKLEARN_CONVEXBN_DATA."
        )
    parts = [folder / f"{name}_{part}.npz" for part in ("train", "test")]
    if parts[0].is_file():
        arrays = [array for part in parts for array in read(part, "X", "y")]
    else:
        arrays = read(folder / f"{name}.npz", "X_train", "y_train", "X_test", "y_test")
    X, y, X_test, y_test = arrays
    return (X.reshape(*X.shape[:3], -1), y, X_test.reshape(*X_test.shape[:3], -1), y_test)

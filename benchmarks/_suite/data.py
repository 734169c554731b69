"""Data sets of the benchmarks.

Those of ``uci/`` are read from ``uci/NAME.npz`` (arrays ``X`` and ``y``) in the folder named by
the environment variable SKLEARN_CONVEXBN_DATA, or else in ``../shared/data`` beside the
repository; images from folders of their names there. The others come with scikit-learn.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn import datasets

Array = NDArray[np.float64]


def data_folder() -> Path:
    """Return the folder of the data that scikit-learn does not carry."""
    beside = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"
    return Path(os.environ.get("SKLEARN_CONVEXBN_DATA", beside))


def has(name: str) -> bool:
    """Return whether a data set is here."""
    return hasattr(datasets, f"load_{name}") or (data_folder() / "uci" / f"{name}.npz").is_file()


def load(name: str) -> tuple[Array, Array]:
    """Return inputs (n, d) and targets (n,)."""
    if hasattr(datasets, f"load_{name}"):
        X, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    else:
        with np.load(data_folder() / "uci" / f"{name}.npz") as file:
            X, y = file["X"], file["y"]
    return np.asarray(X, dtype=np.float64), np.asarray(y, dtype=np.float64)


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
    paths = {part: folder / f"{name}_{part}.npz" for part in ("train", "test")}
    if paths["train"].is_file():
        arrays = []
        for path in paths.values():
            with np.load(path) as file:
                arrays += [file["X"], file["y"]]
    else:
        with np.load(folder / f"{name}.npz") as file:
            arrays = [file[key] for key in ("X_train", "y_train", "X_test", "y_test")]
    X, y, X_test, y_test = arrays
    return (X.reshape(*X.shape[:3], -1), y, X_test.reshape(*X_test.shape[:3], -1), y_test)

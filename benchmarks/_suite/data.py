"""Data sets of the benchmarks.

Those of ``uci/`` are read from ``uci/NAME.npz`` (arrays ``X`` and ``y``) in the folder named by
the environment variable SKLEARN_CONVEXBN_DATA, or else in ``../shared/data`` beside the
repository; the others come with scikit-learn.
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

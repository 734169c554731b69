"""Versions, threads and command: what the numbers depend on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import sys
import time
from pathlib import Path

from _suite import THREAD_VARIABLES

#: Packages whose versions are kept, besides this one.
PACKAGES = (
    *("numpy", "scipy", "scikit-learn", "numba", "torch"),
    *("pyscnn", "skglm", "celer", "adelie", "cvxpy", "clarabel"),
)


def version(package: str) -> str | None:
    """Return the version of an installed package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def environment() -> dict[str, str]:
    """Return the versions and thread settings that the numbers depend on."""
    import sklearn_convexbn

    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpus": str(os.cpu_count()),
        **{package: version(package) or "not installed" for package in PACKAGES},
        "sklearn-convexbn": sklearn_convexbn.__version__,
        **{variable: os.environ[variable] for variable in THREAD_VARIABLES},
    }


def circumstances() -> dict[str, str]:
    """Return the command, the day and the environment; of absolute paths the last part only."""
    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
    script = f"benchmarks/{Path(sys.argv[0]).name}"
    command = shlex.join(["python", script, *words])
    return {"command": command, "date": time.strftime("%Y-%m-%d"), **environment()}

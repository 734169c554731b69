"""Versions, threads and command: what the numbers depend on."""

import importlib.metadata
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from _suite import THREAD_VARIABLES

#: Packages whose versions are kept, besides this one.
PACKAGES = (
    *("numpy", "scipy", "scikit-learn", "numba", "torch"),
    *("pyscnn", "skglm", "celer", "adelie", "cvxpy", "clarabel"),
)


def version(package: str) -> str:
    """Return the version of a package, or that it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def circumstances() -> dict[str, str]:
    """Return command, day, versions and threads; of absolute paths the last part only."""
    import sklearn_convexbn

    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
    script = f"benchmarks/{Path(sys.argv[0]).name}"
    return {
        "command": shlex.join(["python", script, *words]),
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpus": str(os.cpu_count()),
        **{package: version(package) for package in PACKAGES},
        "sklearn-convexbn": sklearn_convexbn.__version__,
        **{variable: os.environ[variable] for variable in THREAD_VARIABLES},
    }


def circumstances_block(runs: Iterable[dict[str, str]]) -> str:
    """Return the circumstances of some runs in markdown, what differs between them side by side."""
    values: dict[str, dict[str, None]] = {}
    for run in runs:
        for key, value in run.items():
            values.setdefault(key, {})[value] = None
    lines = (f"- {key}: {'; '.join(distinct)}" for key, distinct in values.items())
    return "\n".join(["## Circumstances", "", *lines])

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

PACKAGES = (
    *("numpy", "scipy", "scikit-learn", "numba", "torch", "pyscnn", "skglm", "celer", "adelie"),
    *("cvxpy", "clarabel", "sklearn-convexbn"),
)


def circumstances() -> dict[str, str]:
    """Return command, day, versions and threads; of absolute paths the last part only."""
    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
    installed = {one.name: one.version for one in importlib.metadata.distributions()}
    return {
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words]),
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpus": str(os.cpu_count()),
        **{package: installed.get(package, "not installed") for package in PACKAGES},
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

"""Versions of everything that results may depend on, for a bug report or beside a saved model."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import sys
from collections.abc import Iterator

from threadpoolctl import threadpool_info

#: Distributions that the package needs, then those that are of use to it.
REQUIRED = ("numpy", "scipy", "scikit-learn", "torch", "cvxpy", "clarabel")
OPTIONAL = ("matplotlib", "pandas", "polars", "skops", "onnx", "onnxruntime")


def show_versions() -> None:
    """Print versions of Python, this package and its dependencies, kernels and devices.

    Results depend on the kernel of the linear algebra library in their last digits, and where a
    search decides, in more. Paste the output into a bug report, and keep it beside a saved model.

    See Also
    --------
    sklearn.show_versions : The same for scikit-learn.

    Examples
    --------
    >>> from sklearn_convexbn import show_versions
    >>> show_versions()  # doctest: +ELLIPSIS, +NORMALIZE_WHITESPACE
    System python: 3...
    """
    for title, rows in _sections():
        print(title)
        for name, value in rows.items():
            print(f"{name:>20}: {value}")


def _sections() -> Iterator[tuple[str, dict[str, str]]]:
    system = {"python": sys.version.replace("\n", " "), "machine": platform.platform()}
    yield "System", system
    own = getattr(sys.modules["sklearn_convexbn"], "__version__", "unknown")
    yield "Packages", {"sklearn-convexbn": own} | {name: _version(name) for name in REQUIRED}
    yield "Optional packages", {name: _version(name) for name in OPTIONAL}
    yield "Devices", {"CUDA": _cuda()}
    yield "Threads", dict(_threads())


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _cuda() -> str:
    """Return the CUDA devices that torch sees."""
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed"
    import torch

    if not torch.cuda.is_available():
        return f"none (torch built for CUDA {torch.version.cuda or 'none'})"
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return f"{torch.version.cuda}, {', '.join(names)}"


def _threads() -> Iterator[tuple[str, str]]:
    """Yield the libraries for linear algebra and threads that are loaded."""
    for library in threadpool_info():
        kernel = library.get("architecture", "")
        words = (library["internal_api"], str(library["version"]), kernel)
        threads = f"{library['num_threads']} threads"
        yield library["prefix"], ", ".join([" ".join(filter(None, words)), threads])

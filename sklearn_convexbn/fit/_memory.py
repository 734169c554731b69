"""What fits into memory: estimates made before work starts."""

from __future__ import annotations

import os

from sklearn_convexbn.data._rows import RowBlocks
from sklearn_convexbn.program._problem import Problem
from sklearn_convexbn.support._arrays import Array, is_tensor

#: Whitened rows that would take more of the memory than this are computed when they are read.
STORED_SHARE = 0.3


def are_stored(n: int, k: int, rows: RowBlocks, *, compact: bool) -> bool:
    """Return whether whitened rows (n, k) had better be in the memory where `rows` are.

    In float32 if `compact`, as in :func:`check_rows_fit`.
    """
    available = memory_of(rows.example)
    return available is None or (4 if compact else 8) * n * k <= STORED_SHARE * available


def check_arrangements_fit(problem: Problem, n_gates: int) -> None:
    """Refuse a program on a list of arrangements that cannot fit into this machine's memory.

    Raises
    ------
    ValueError
        With an estimate of what is needed.
    """
    # Doubles per row and gate: three work arrays an output for gated programs, seven for each
    # of both signs for cones; besides them the patterns, one byte each, and the weights.
    (n, k), n_outputs = problem.Z.shape, problem.n_weights
    doubles = 3 * n_outputs if problem.activation == "gated_relu" else 14
    needed = n * n_gates * (1 + 8 * doubles) + 8 * n_gates * k * n_outputs
    available = physical_memory()
    if available is not None and needed > 0.8 * available:
        size = f"{n} rows and {n_outputs} outputs"
        if not problem.pooling.is_identity:
            size = f"{n} patches and {n_outputs} outputs of cells"
        raise ValueError(
            f"n_gates={n_gates} with {size} needs about "
            f"{needed / 2**30:.1f} GiB (an estimate), more than this machine's "
            f"{available / 2**30:.1f} GiB. Lower n_gates, or use activation='relu' with "
            "solver='pursuit', which needs no list of gates."
        )


def check_rows_fit(n: int, k: int, *, compact: bool) -> None:
    """Refuse whitened rows (n, k), in float32 if `compact`, that cannot fit into memory.

    Raises
    ------
    ValueError
        With an estimate of what is needed.
    """
    needed, available = (4 if compact else 8) * n * k, physical_memory()
    if available is not None and needed > 0.8 * available:
        raise ValueError(
            f"{n} rows whitened in {k - 1} directions need about {needed / 2**30:.1f} GiB (an "
            f"estimate), more than this machine's {available / 2**30:.1f} GiB. Keep fewer "
            "directions with n_components."
        )


def memory_of(a: Array) -> int | None:
    """Return the bytes of memory where an array is, or None where that is not told."""
    if is_tensor(a) and a.device.type == "cuda":
        import torch

        return int(torch.cuda.get_device_properties(a.device).total_memory)
    return physical_memory()


def physical_memory() -> int | None:
    """Return the machine's memory in bytes, or None where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None

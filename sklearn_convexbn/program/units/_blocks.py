"""Rows that are worked on together: a block of them, and its products, stay in the cache."""

from __future__ import annotations

from collections.abc import Iterator

#: Rows times units of a block: about 1 MiB in float32, the size of a core's cache. On CUDA,
#: where launching a kernel is what costs, a block is larger.
BLOCK_ELEMENTS = {"cpu": 2**18, "cuda": 2**26}

#: Least and most rows of a block.
LEAST_ROWS, MOST_ROWS = 256, {"cpu": 4096, "cuda": 2**20}


def row_slices(n: int, width: int, kind: str, together: int = 1) -> Iterator[slice]:
    """Yield slices of n rows such that `width` numbers a row make a block.

    Parameters
    ----------
    n : int
    width : int
    kind : {"cpu", "cuda"}
        Where they are.
    together : int, default=1
        So many consecutive rows are not torn apart.
    """
    most = BLOCK_ELEMENTS[kind] // max(1, width)
    size = max(1, min(max(most, LEAST_ROWS), MOST_ROWS[kind]) // together) * together
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))

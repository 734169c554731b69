"""Whitened rows that are computed when they are read, where they do not fit into memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sklearn_convexbn.data._rows import RowBlocks
from sklearn_convexbn.data._whitening import Whitening


class WhitenedRows:
    """The matrix Z (n, k) of a whitening, computed anew a block of rows at a time.

    It stands where the pursuit reads a tensor: slices of it, or rows by their numbers, are tensors
    on the device that `rows` are sent to.

    Parameters
    ----------
    rows : RowBlocks
        Rows of X in blocks that are tensors.
    whitening : Whitening
    dtype : torch.dtype
        float32 or float64; computed in float64.
    """

    #: Bytes that are in memory.
    nbytes = 0

    def __init__(self, rows: RowBlocks, whitening: Whitening, dtype: torch.dtype) -> None:
        self.rows, self.whitening, self.dtype = rows, whitening, dtype
        self.device = rows.example.device
        self.shape = (len(rows), whitening.n_components + 1)

    def __len__(self) -> int:
        return self.shape[0]

    def part(self, rows: slice) -> WhitenedRows:
        """Return some of the rows, still to be computed."""
        return WhitenedRows(self.rows.part(rows), self.whitening, self.dtype)

    def __getitem__(self, rows: Any) -> Tensor:
        """Return the rows of a slice (rows, k), or of a tensor of numbers (*shape, k)."""
        if isinstance(rows, slice):
            return self._whitened(self.rows[slice(*rows.indices(len(self))[:2])])
        numbers, place = rows.unique(return_inverse=True)
        found = torch.empty(len(numbers), self.shape[1], dtype=self.dtype, device=self.device)
        for block in self.rows.slices():
            first, last = torch.searchsorted(
                numbers, torch.tensor([block.start, block.stop], device=numbers.device)
            ).tolist()
            if first < last:
                inside = numbers[first:last] - block.start
                found[first:last] = self._whitened(self.rows[block][inside])
        return found[place]

    def _whitened(self, block: Any) -> Tensor:
        return self.whitening.of_block(block, self.dtype)

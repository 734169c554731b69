"""Activations of fixed units on the training rows, stored or computed when they are needed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from sklearn_convexbn.data._pooling import columns_of
from sklearn_convexbn.program.units._blocks import row_slices
from sklearn_convexbn.support._sharding import Shards

#: Yields slices of the samples and the activations there (rows, m cells) of units (k, m).
Features = Callable[[Tensor], Iterator[tuple[slice, Tensor]]]


class Activations(ABC):
    """Activations (n, m) of fixed units, known by their products with other matrices.

    Sums over rows are over those of all `shards`. Pooled units have `cells` columns each, one after
    the other; then m counts columns.
    """

    shards: Shards
    cells: int = 1

    def columns_of(self, units: Tensor) -> Tensor:
        """Return the numbers of the columns of some of the units."""
        return columns_of(units, self.cells)

    @abstractmethod
    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield slices of rows and their activations (rows, m)."""

    @abstractmethod
    def columns(self, units: Tensor) -> Activations:
        """Return the activations of some of the units."""

    @abstractmethod
    def centred(self, centre: Tensor) -> Activations:
        """Return the activations less `centre` (m,) in every row."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """Numbers of rows and units (n, m)."""

    def fit(self, V: Tensor) -> Tensor:
        """Return ``A V`` (n, C) for V (m, C)."""
        F, Vt = V.new_empty(self.shape[0], V.shape[1]), V.T.contiguous()
        for rows, A in self.blocks():
            torch.mm(A, Vt.T, out=F[rows])
        return F

    def correlations(self, G: Tensor) -> Tensor:
        """Return ``A^T G`` (m, C) for G (n, C)."""
        T = G.new_zeros(G.shape[1], self.shape[1])
        for rows, A in self.blocks():
            T.addmm_(G[rows].T, A)
        return self.shards.total(T).T

    def means(self, p: Tensor) -> Tensor:
        """Return ``A^T p`` (m,) for row weights p (n,)."""
        return self.correlations(p[:, None])[:, 0]

    def gram(self, W: Tensor) -> Tensor:
        """Return ``A^T diag(W_c) A`` (C, m, m) for row weights W (n, C)."""
        m = self.shape[1]
        H = W.new_zeros(W.shape[1], m, m)
        for rows, A in self.blocks():
            for H_c, w in zip(H, W[rows].T, strict=True):
                H_c.addmm_((w[:, None] * A).T, A)
        return self.shards.total(H)


class StoredActivations(Activations):
    """Activations that are in memory.

    Parameters
    ----------
    A : torch.Tensor of shape (n, m)
    shards : Shards
    cells : int, default=1
        Columns of a unit.
    """

    def __init__(self, A: Tensor, shards: Shards, cells: int = 1) -> None:
        self.A, self.shards, self.cells = A, shards, cells

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        for rows in row_slices(len(self.A), self.A.shape[1], self.A.device.type):
            yield rows, self.A[rows]

    def columns(self, units: Tensor) -> Activations:
        return StoredActivations(self.A[:, self.columns_of(units)], self.shards, self.cells)

    def centred(self, centre: Tensor) -> Activations:
        return StoredActivations(self.A - centre, self.shards, self.cells)

    @property
    def shape(self) -> tuple[int, int]:
        return self.A.shape[0], self.A.shape[1]


class ComputedActivations(Activations):
    """Activations that are computed anew, a block of rows at a time, whenever they are needed.

    Parameters
    ----------
    features : Features
        What they yield may be written to.
    Q : torch.Tensor of shape (k, m)
    n_samples : int
    shards : Shards
    cells : int, default=1
        Columns of a unit.
    centre : torch.Tensor of shape (m cells,), default=None
        Subtracted from every row.
    """

    def __init__(
        self,
        features: Features,
        Q: Tensor,
        n_samples: int,
        shards: Shards,
        cells: int = 1,
        centre: Tensor | None = None,
    ) -> None:
        self.features, self.Q, self.n_samples = features, Q, n_samples
        self.shards, self.cells = shards, cells
        self.centre = Q.new_zeros(self.shape[1]) if centre is None else centre

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        for samples, A in self.features(self.Q):
            yield samples, A.sub_(self.centre)

    def columns(self, units: Tensor) -> Activations:
        return self._like(self.Q[:, units], self.centre[self.columns_of(units)])

    def centred(self, centre: Tensor) -> Activations:
        return self._like(self.Q, self.centre + centre)

    def _like(self, Q: Tensor, centre: Tensor) -> Activations:
        return ComputedActivations(
            self.features, Q, self.n_samples, self.shards, self.cells, centre
        )

    @property
    def shape(self) -> tuple[int, int]:
        return self.n_samples, self.Q.shape[1] * self.cells


def activations_of(
    features: Features,
    Q: Tensor,
    n_samples: int,
    shards: Shards,
    cells: int = 1,
    *,
    stored_bytes: int,
) -> Activations:
    """Return activations, stored if they take up to `stored_bytes` of the memory."""
    computed = ComputedActivations(features, Q, n_samples, shards, cells)
    n, m = computed.shape
    if Q.element_size() * n * m > stored_bytes:
        return computed
    A = Q.new_empty(n, m)
    for samples, block in features(Q):
        A[samples] = block
    return StoredActivations(A, shards, cells)

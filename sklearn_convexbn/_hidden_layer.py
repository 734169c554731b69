r"""The hidden layer on the training rows: everything that is computed from :math:`(Z q)_+`.

The pursuit, its search and its refits need nothing of the rows but sums over them: fits,
correlations with a dual point, their gradients, Gram matrices. They are taken here, a block of
rows at a time: a block's activations stay in the processor's cache, where comparing and scaling
them costs little beside the matrix products, and memory does not grow with rows times units.
Rows may be stored in float32; then sums are taken in the precision that the directions have.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from sklearn_convexbn._losses import Loss
from sklearn_convexbn._pooling import IDENTITY, Pooling, columns_of
from sklearn_convexbn._sharding import ALL_HERE, Shards

#: Rows times units of a block: about 1 MiB in float32, the size of a core's cache. On CUDA,
#: where launching a kernel is what costs, a block is larger.
BLOCK_ELEMENTS = {"cpu": 2**18, "cuda": 2**26}

#: Least and most rows of a block.
LEAST_ROWS, MOST_ROWS = 256, {"cpu": 4096, "cuda": 2**20}

#: Products of up to this many bytes are kept from the values of an ascent step to its gradients.
KEPT_BYTES = 2**24

#: Activations of up to this many bytes are stored while output weights are refitted.
STORED_BYTES = 2**27


def column_norms(A: Tensor) -> Tensor:
    """Return the norms (m,) of columns (k, m).

    On the CPU, for tens of rows and hundreds of columns, torch's own takes five times as long.
    """
    return (A * A).sum(dim=0).sqrt_()


def unit_columns(A: Tensor) -> Tensor:
    """Return columns (k, m) divided by their norms; columns of zeros stay."""
    return A / column_norms(A).clamp_min_(1e-12)


class WhitenedMatrix(Protocol):
    """What is read of whitened rows (n, k): a tensor, or rows that are computed when read.

    Attributes
    ----------
    nbytes : int
        Bytes that it takes of the memory.
    """

    shape: Any
    dtype: torch.dtype
    device: torch.device
    nbytes: int

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any) -> Tensor:
        """Return the rows of a slice, or those with the numbers in a tensor, (..., k)."""


class HiddenLayer:
    """The map from unit directions to their activations on one set of rows.

    Parameters
    ----------
    Z : torch.Tensor or WhitenedMatrix of shape (n, k)
        Whitened rows, float32 or float64, on any device.
    shards : Shards, default=ALL_HERE
        Where the other rows are, if these are not all. Sums are over all rows; arrays with an
        entry for each row are about those here.
    pooling : Pooling, default=IDENTITY
        Of n rows, K for each of n / K samples, to G cells. Then targets, fits and dual points have
        an entry for each sample, and a unit has G C output weights, cell by cell.

    Attributes
    ----------
    n_rows : int
        Number of all rows.
    """

    def __init__(
        self,
        Z: WhitenedMatrix,
        shards: Shards = ALL_HERE,
        pooling: Pooling = IDENTITY,
    ) -> None:
        self.Z, self.shards, self.pooling = Z, shards, pooling
        self.n_rows = shards.count(len(Z))

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of rows here and of coordinates (n, k)."""
        return self.Z.shape[0], self.Z.shape[1]

    @property
    def is_stored(self) -> bool:
        """Whether the whitened rows are in memory."""
        return isinstance(self.Z, Tensor)

    def take(self, index: Tensor) -> HiddenLayer:
        """Return the layer on some of all rows, by their numbers, which are not pooled.

        It has these rows here.
        """
        return HiddenLayer(self.shards.entries(self.Z, index))

    def of_rows(self, Lambda: Tensor, index: Tensor) -> Tensor:
        """Return a dual point (n / K, C) on the rows of :meth:`take`, (r, G C)."""
        if self.pooling.is_identity:
            return self.shards.entries(Lambda, index)
        return self.pooling.of_rows(Lambda, index)

    def blocks(self, width: int) -> Iterator[slice]:
        """Yield slices of rows such that `width` numbers a row make a block."""
        kind = self.Z.device.type
        n, most = len(self.Z), BLOCK_ELEMENTS[kind] // max(1, width)
        K = self.pooling.n_patches
        size = max(1, min(max(most, LEAST_ROWS), MOST_ROWS[kind]) // K) * K
        for start in range(0, n, size):
            yield slice(start, min(start + size, n))

    def products(
        self, Q: Tensor, kept: Tensor | None = None
    ) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield rows, their block of Z and ``Z Q`` (rows, S) in the precision of Q (k, S).

        The products are in `kept` (n, S) if it is given; else each takes the place of the last.
        """
        buffer = None
        for rows in self.blocks(Q.shape[1]):
            Z = self.Z[rows].to(Q.dtype)
            if kept is not None:
                buffer = kept[rows]
            elif buffer is None or len(buffer) != len(Z):
                buffer = Q.new_empty(len(Z), Q.shape[1])
            yield rows, Z, torch.mm(Z, Q, out=buffer)

    def _of_rows(self, kept: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield rows, their block of Z and of what :meth:`products` has kept (n, S)."""
        for rows in self.blocks(kept.shape[1]):
            yield rows, self.Z[rows].to(kept.dtype), kept[rows]

    def fit(self, Q: Tensor, V: Tensor) -> Tensor:
        """Return ``(Z Q)_+ V``, pooled, (n / K, C), for directions Q (k, m) and V (m, G C)."""
        Vt = self._by_cells(V)
        F = V.new_empty(len(self.Z) // self.pooling.n_patches, len(Vt))
        for rows, _, H in self.products(Q):
            pooled = self.pooling.pool(H.clamp_min_(0)).flatten(1)
            torch.mm(pooled, Vt.T, out=F[self.pooling.samples(rows)])
        return F

    def _by_cells(self, V: Tensor) -> Tensor:
        """Return output weights V (m, G C) as (C, G m)."""
        m, G = len(V), self.pooling.n_cells
        C = V.shape[1] // G
        return V.reshape(m, G, C).permute(2, 1, 0).reshape(C, G * m).contiguous()

    def _by_units(self, T: Tensor) -> Tensor:
        """Return T (C, G m) as (G C, m), the transpose of what :meth:`_by_cells` is given."""
        C, G = len(T), self.pooling.n_cells
        return T.reshape(C, G, -1).transpose(0, 1).reshape(G * C, -1)

    def activations(self, Q: Tensor) -> Activations:
        """Return the activations of directions Q (k, m), stored if they are few."""
        n, m = self.shape[0] // self.pooling.n_patches, Q.shape[1] * self.pooling.n_cells
        if Q.element_size() * n * m > max(STORED_BYTES, self.Z.nbytes):
            return ComputedActivations(self, Q)
        A = Q.new_empty(n, m)
        for rows, _, H in self.products(Q):
            A[self.pooling.samples(rows)] = self.pooling.features(H.clamp_min_(0))
        return StoredActivations(A, self.shards, self.pooling.n_cells)

    def correlations(self, Lambda: Tensor, Q: Tensor, kept: Tensor | None = None) -> Tensor:
        """Return ``Lambda^T (Z Q)_+`` (G C, S), pooled; ``(Z Q)_+`` is in `kept`, if given."""
        T = Q.new_zeros(Lambda.shape[1], self.pooling.n_cells * Q.shape[1])
        for rows, _, H in self.products(Q, kept):
            pooled = self.pooling.pool(H.clamp_min_(0)).flatten(1)
            T.addmm_(Lambda[self.pooling.samples(rows)].to(Q.dtype).T, pooled)
        return self.shards.total(self._by_units(T))

    def ascent(self, Lambda: Tensor, Q: Tensor) -> tuple[Tensor, Tensor]:
        """Return the values ``|Lambda^T (Z q)_+|`` (S,) and their gradients (k, S)."""
        gradient, pooling = torch.zeros_like(Q), self.pooling
        if Lambda.shape[1] * pooling.n_cells == 1:
            for rows, Z, H in self.products(Q):
                weights = pooling.spread(Lambda[pooling.samples(rows)].to(Q.dtype)[:, None])
                gradient.addmm_((weights * Z).T, H.gt_(0))
            gradient = self.shards.total(gradient)
            T = (Q * gradient).sum(dim=0)  # homogeneous of degree one
            return T.abs(), gradient * T.sign()
        n, S = len(self.Z), Q.shape[1]
        fits = Q.element_size() * n * S <= KEPT_BYTES
        kept = Q.new_empty(n, S) if fits else None
        T = self.correlations(Lambda, Q, kept)
        directions = self._by_cells(unit_columns(T).T)
        slopes = Q.new_empty(0, directions.shape[1])
        again = self.products(Q) if kept is None else self._of_rows(kept)
        for rows, Z, H in again:
            G = Lambda[pooling.samples(rows)].to(Q.dtype)
            slopes = slopes if len(slopes) == len(G) else slopes.new_empty(len(G), slopes.shape[1])
            torch.mm(G, directions, out=slopes)
            weights = slopes.reshape(len(G), pooling.n_cells, -1)
            gradient.addmm_(Z.T, pooling.multiply_spread(H.gt_(0), weights))
        return column_norms(T), self.shards.total(gradient)

    def loss(
        self, loss: Loss, Y: Tensor, p: Tensor, Q: Tensor, V: Tensor, b: Tensor
    ) -> tuple[float, Tensor, Tensor, Tensor]:
        """Return the mean loss of a network and its gradients.

        Parameters
        ----------
        loss : Loss
        Y : torch.Tensor of shape (n / K, C)
        p : torch.Tensor of shape (n / K,)
        Q : torch.Tensor of shape (k, m)
            Hidden weights; their precision is that of the products.
        V : torch.Tensor of shape (m, G C)
        b : torch.Tensor of shape (C,)

        Returns
        -------
        value : float
        dQ : torch.Tensor of shape (k, m)
        dV : torch.Tensor of shape (m, G C)
        db : torch.Tensor of shape (C,)
        """
        # Products with few outputs are fastest with the outputs in rows.
        Vt, pooling = self._by_cells(V), self.pooling
        dQ, dVt, db = torch.zeros_like(Q), torch.zeros_like(Vt), Y.new_zeros(len(Vt))
        value, single, slopes = Y.new_zeros(()), V.shape[1] == 1, Vt.new_empty(0, Vt.shape[1])
        for rows, Z, H in self.products(Q):
            samples = pooling.samples(rows)
            pooled = pooling.pool(H.clamp_min_(0)).flatten(1)
            F = torch.mm(pooled, Vt.T).add_(b).to(Y.dtype)
            part, G = loss.value_and_gradient(F, Y[samples], p[samples])
            value += part
            db += G.sum(dim=0)
            G = G.to(Q.dtype)
            if single:
                dQ.addmm_((pooling.spread(G[:, None]) * Z).T, H.gt_(0))
                continue
            dVt.addmm_(G.T, pooled)  # before H, which it may be a view of, becomes a mask
            slopes = slopes if len(slopes) == len(G) else slopes.new_empty(len(G), slopes.shape[1])
            torch.mm(G, Vt, out=slopes)
            weights = slopes.reshape(len(G), pooling.n_cells, -1)
            dQ.addmm_(Z.T, pooling.multiply_spread(H.gt_(0), weights))
        value, db, dQ, dVt = self.shards.totals(value, db, dQ, dVt)
        if single:  # the slopes of a unit are its activity times G, up to its own output weight
            dVt = (Q * dQ).sum(dim=0)[None]
            dQ *= Vt
        return float(value), dQ, self._by_units(dVt).T, db

    def nearest(self, Q: Tensor, count: int) -> Tensor:
        """Return the rows (count, S) whose hyperplanes are nearest to each direction (k, S).

        All rows must be here.
        """
        best: list[tuple[Tensor, Tensor]] = []
        for rows, _, H in self.products(Q):
            values, index = H.abs_().topk(min(count, len(H)), dim=0, largest=False)
            best.append((values, index + rows.start))
        values, index = (torch.cat(parts) for parts in zip(*best, strict=True))
        order = values.topk(min(count, len(values)), dim=0, largest=False).indices
        return index.gather(0, order)


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
    shards : Shards, default=ALL_HERE
    cells : int, default=1
        Columns of a unit.
    """

    def __init__(self, A: Tensor, shards: Shards = ALL_HERE, cells: int = 1) -> None:
        self.A, self.shards, self.cells = A, shards, cells

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        for rows in HiddenLayer(self.A).blocks(self.A.shape[1]):
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
    layer : HiddenLayer
    Q : torch.Tensor of shape (k, m)
    centre : torch.Tensor of shape (m,), default=None
        Subtracted from every row.
    """

    def __init__(self, layer: HiddenLayer, Q: Tensor, centre: Tensor | None = None) -> None:
        self.layer, self.Q, self.shards = layer, Q, layer.shards
        self.cells = layer.pooling.n_cells
        self.centre = Q.new_zeros(self.shape[1]) if centre is None else centre

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        for rows, _, H in self.layer.products(self.Q):
            features = self.layer.pooling.features(H.clamp_min_(0))
            yield self.layer.pooling.samples(rows), features.sub_(self.centre)

    def columns(self, units: Tensor) -> Activations:
        centre = self.centre[self.columns_of(units)]
        return ComputedActivations(self.layer, self.Q[:, units], centre)

    def centred(self, centre: Tensor) -> Activations:
        return ComputedActivations(self.layer, self.Q, self.centre + centre)

    @property
    def shape(self) -> tuple[int, int]:
        n = self.layer.shape[0] // self.layer.pooling.n_patches
        return n, self.Q.shape[1] * self.cells

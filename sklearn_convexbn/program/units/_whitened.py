r"""ReLU units on whitened rows, :math:`a(q) = (Z q)_+`, dense or pooled over patches.

Sums over rows are taken a block at a time: a block's activations stay in the processor's cache,
where comparing and scaling them costs little beside the matrix products, and memory does not grow
with rows times units. Rows may be stored in float32; then sums are taken in the precision that the
units have. Fits and correlations work on NumPy arrays as well; what the search and the slide need
besides is for torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from sklearn_convexbn.data._pooling import IDENTITY, Pooling
from sklearn_convexbn.losses._base import Loss
from sklearn_convexbn.program.units._base import (
    STORED_BYTES,
    Draw,
    Units,
    column_norms,
    unit_columns,
)
from sklearn_convexbn.program.units._blocks import row_slices
from sklearn_convexbn.support._arrays import (
    Array,
    array_namespace,
    as_numpy,
    cast,
    is_tensor,
    like,
    on_device,
)
from sklearn_convexbn.support._sharding import ALL_HERE, Shards

if TYPE_CHECKING:
    from torch import Tensor

    from sklearn_convexbn.program.units._activations import Activations

#: Products of up to this many bytes are kept from the values of an ascent step to its gradients.
KEPT_BYTES = 2**24

#: Rows whose signs are packed into bits together.
PACKED_ROWS = 4096


class WhitenedMatrix(Protocol):
    """What is read of whitened rows (n, k): an array, or rows that are computed when read.

    Attributes
    ----------
    nbytes : int
        Bytes that it takes of the memory.
    """

    shape: Any
    dtype: Any
    device: Any
    nbytes: int

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any) -> Any:
        """Return the rows of a slice, or those with the numbers in a tensor, (..., k)."""


class WhitenedUnits(Units):
    """ReLU units on whitened rows.

    Parameters
    ----------
    Z : ndarray, torch.Tensor or WhitenedRows of shape (n, k)
        Whitened rows, on any device; float32 where they are many, and computed when they are read
        where they do not fit into memory.
    shards : Shards
        Where the other rows are, if these are not all.
    pooling : Pooling, default=IDENTITY
        Of n rows, K for each of n / K samples, to G cells.
    """

    def __init__(self, Z: WhitenedMatrix, shards: Shards, pooling: Pooling = IDENTITY) -> None:
        self.Z, self.shards, self.pooling = Z, shards, pooling
        self.n_parameters, self.n_samples = int(Z.shape[1]), len(Z) // pooling.n_patches
        self.n_rows = shards.count(len(Z))
        self.device, self.precision = Z.device, Z.dtype
        self.is_flat = shards.size == 1 and not hasattr(Z, "whitening") and pooling.is_identity
        self.rectified_rows = Z if self.is_flat else None

    def part(self, samples: slice) -> WhitenedUnits:
        first, last, _ = samples.indices(self.n_samples)
        rows = slice(first * self.pooling.n_patches, last * self.pooling.n_patches)
        Z = self.Z.part(rows) if hasattr(self.Z, "part") else self.Z[rows]
        return WhitenedUnits(Z, ALL_HERE, self.pooling)

    # ------------------------------------------------------------------------ sums over rows

    def blocks(self, width: int) -> Iterator[slice]:
        """Yield slices of rows such that `width` numbers a row make a block."""
        kind = getattr(self.Z.device, "type", "cpu")
        return row_slices(len(self.Z), width, kind, self.pooling.n_patches)

    def products(self, Q: Array, kept: Tensor | None = None) -> Iterator[tuple[slice, Any, Any]]:
        """Yield rows, their block of Z and ``Z Q`` (rows, S) in the precision of Q (k, S).

        The products are in `kept` (n, S) if it is given; else each takes the place of the last.
        """
        xp, buffer = array_namespace(Q), None
        for rows in self.blocks(Q.shape[1]):
            Z = cast(self.Z[rows], Q.dtype)
            if kept is not None:
                buffer = kept[rows]
            elif buffer is None or len(buffer) != len(Z):
                buffer = xp.empty((len(Z), Q.shape[1]), dtype=Q.dtype, **on_device(Q))
            yield rows, Z, xp.matmul(Z, Q, out=buffer)

    def _of_rows(self, kept: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield rows, their block of Z and of what :meth:`products` has kept (n, S)."""
        for rows in self.blocks(kept.shape[1]):
            yield rows, cast(self.Z[rows], kept.dtype), kept[rows]

    def fit(self, Q: Array, V: Array) -> Any:
        xp, Vt = array_namespace(Q), self._by_cells(V)
        F = xp.empty((self.n_samples, len(Vt)), dtype=V.dtype, **on_device(V))
        for rows, _, H in self.products(Q):
            pooled = self._pooled(H)
            xp.matmul(pooled, Vt.T, out=F[self.pooling.samples(rows)])
        return F

    def _pooled(self, H: Array) -> Any:
        """Return pooled activations (rows / K, G m) of products (rows, m), which they replace."""
        activations = array_namespace(H).clip(H, 0, None, out=H)
        pooled = self.pooling.pool(activations)
        return pooled.reshape(len(pooled), -1)

    def _by_cells(self, V: Any) -> Any:
        """Return output weights V (m, G C) as (C, G m)."""
        m, G = len(V), self.n_cells
        C = V.shape[1] // G
        of_cells = V.reshape(m, G, C).swapaxes(0, 2).reshape(C, G * m)
        return of_cells.contiguous() if is_tensor(V) else np.ascontiguousarray(of_cells)

    def _by_units(self, T: Array) -> Any:
        """Return T (C, G m) as (G C, m), the transpose of what :meth:`_by_cells` is given."""
        C, G = len(T), self.n_cells
        return T.reshape(C, G, -1).swapaxes(0, 1).reshape(G * C, T.shape[1] // G)

    def activations(self, Q: Tensor, stored_bytes: int = STORED_BYTES) -> Activations:
        from sklearn_convexbn.program.units._activations import activations_of

        layer, most = (self.n_samples, self.shards, self.n_cells), max(stored_bytes, self.Z.nbytes)
        return activations_of(self._features, Q, *layer, stored_bytes=most)

    def _features(self, Q: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield samples and the activations (rows, m G) of units Q, the cells of one together."""
        for rows, _, H in self.products(Q):
            yield self.pooling.samples(rows), self.pooling.features(H.clamp_min_(0))

    def correlations(self, Lambda: Array, Q: Array, kept: Tensor | None = None) -> Any:
        """Return ``Lambda^T (Z Q)_+`` (G C, S), pooled; ``(Z Q)_+`` is in `kept`, if given."""
        xp = array_namespace(Q)
        shape = (Lambda.shape[1], self.n_cells * Q.shape[1])
        T = xp.zeros(shape, dtype=Q.dtype, **on_device(Q))
        for rows, _, H in self.products(Q, kept):
            L, pooled = cast(Lambda[self.pooling.samples(rows)], Q.dtype), self._pooled(H)
            T = T.addmm_(L.T, pooled) if is_tensor(T) else T + L.T @ pooled
        return self.shards.total(self._by_units(T))

    def ascent(self, Lambda: Tensor, Q: Tensor) -> tuple[Tensor, Tensor]:
        import torch

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
        import torch

        # Products with few outputs are fastest with the outputs in rows.
        Vt, pooling = self._by_cells(V), self.pooling
        dQ, dVt, db = torch.zeros_like(Q), torch.zeros_like(Vt), Y.new_zeros(len(Vt))
        value, single, slopes = Y.new_zeros(()), V.shape[1] == 1, Vt.new_empty(0, Vt.shape[1])
        for rows, Z, H in self.products(Q):
            samples = pooling.samples(rows)
            pooled = self._pooled(H)
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

    def patterns(self, Q: np.ndarray) -> np.ndarray:
        """Return the rows on which units (k, m) are active, a bit a row, as bytes (m, any).

        A unit that is active on the same rows as another is the same linear function there. Of
        rows that are elsewhere too, a hash of the bits.
        """
        units = like(Q, self.Z[0:0])
        units = cast(units, array_namespace(units).float64)
        # Bytes hold eight rows, so that a block has a multiple of them.
        blocks = (self.Z[i : i + PACKED_ROWS] for i in range(0, len(self.Z), PACKED_ROWS))
        packed = [np.packbits(as_numpy(cast(Z, units.dtype) @ units > 0), axis=0) for Z in blocks]
        keys = np.concatenate(packed).T
        if self.shards.size == 1:
            return keys
        hashes = [hashlib.blake2b(key.tobytes(), digest_size=16).digest() for key in keys]
        gathered = self.shards.parts(np.frombuffer(b"".join(hashes), dtype=np.uint8))
        return np.hstack([part.reshape(len(keys), 16) for part in gathered])

    # ------------------------------------------------------------------------------ search

    def on(self, device: str) -> WhitenedUnits:
        if not isinstance(self.Z, np.ndarray):
            return self
        import torch

        return WhitenedUnits(torch.as_tensor(self.Z, device=device), self.shards, self.pooling)

    def gathered(self, Lambda: Array) -> tuple[np.ndarray, np.ndarray]:
        """Return Z (n, k) and a dual point (n, G C) on all rows, which must be few, as arrays."""
        if self.is_flat:
            return as_numpy(self.Z), as_numpy(Lambda)
        units = self.on("cpu")
        index = units.all_rows()
        Lambda = units.of_rows(like(Lambda, units.Z[0:0]), index)
        return as_numpy(units.sample(index).Z), as_numpy(Lambda)

    def here(self) -> WhitenedUnits:
        if self.shards.size > 1:
            return self.sample(self.all_rows())
        if is_tensor(self.Z):
            return self
        return WhitenedUnits(self.Z[:], ALL_HERE, self.pooling)

    def all_rows(self) -> Tensor:
        """Return the numbers of all rows, here and elsewhere."""
        import torch

        return torch.arange(self.n_rows, device=self.Z.device)

    def sample(self, index: Tensor) -> WhitenedUnits:
        return WhitenedUnits(self.shards.entries(self.Z, index), ALL_HERE)

    def of_rows(self, Lambda: Tensor, index: Tensor) -> Tensor:
        if self.pooling.is_identity:
            return self.shards.entries(Lambda, index)
        return self.pooling.of_rows(Lambda, index)

    def rows(self, numbers: np.ndarray) -> np.ndarray:
        """Return some of all rows of Z (*numbers.shape, k), by their numbers, in float64."""
        import torch

        index = torch.as_tensor(numbers, device=self.Z.device)
        return self.shards.entries(self.Z, index).double().cpu().numpy()

    def nearest(self, Q: Tensor, count: int) -> Tensor:
        """Return the rows (count, S) whose hyperplanes are nearest to each direction (k, S).

        All rows must be here.
        """
        import torch

        best: list[tuple[Tensor, Tensor]] = []
        for rows, _, H in self.products(Q):
            values, index = H.abs_().topk(min(count, len(H)), dim=0, largest=False)
            best.append((values, index + rows.start))
        values, index = (torch.cat(parts) for parts in zip(*best, strict=True))
        order = values.topk(min(count, len(values)), dim=0, largest=False).indices
        return index.gather(0, order)

    def starts(
        self, count: int, draw: Draw, random_state: np.random.RandomState, known: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        from sklearn_convexbn.program.units._vertices import fresh_starts

        return fresh_starts(self, count, draw, random_state)

    def relatives(
        self,
        Lambda: Tensor,
        known: np.ndarray,
        count: int,
        draw: Draw,
        random_state: np.random.RandomState,
        *,
        generation: int,
    ) -> Tensor:
        from sklearn_convexbn.program.units._vertices import circle_maxima, circles_through

        numbers = known, count, draw, random_state
        circles = circles_through(self, *numbers, whole=generation % 2 == 1)
        return circle_maxima(self, Lambda, *circles)

r"""Units with a hidden layer of their own: sub-networks in parallel, with a norm of their paths.

On rows z (standardised columns and a constant), a unit has h inner units and a linear part,

.. math:: a(z) = \Big(\sum_i \epsilon_i (z \cdot w_i)_+ + z \cdot s\Big)_+,

with signs :math:`\epsilon_i` of +1 for the first half of the inner units and -1 for the rest. It is
homogeneous of degree one in its parameters q = (w_1, ..., w_h, s), so that the l1 norm of the paths
from its inputs is :math:`|q|_1`, and a sum of such units with the penalty of :class:`Units` trains
through a convex program over measures (Ergen and Pilanci, "Path Regularization: A Convexity and
Sparsity Inducing Regularization for Parallel ReLU Networks", arXiv:2110.09548). With w = 0 it is a
ReLU unit on z; h copies of an inner unit cost as much as one of h times its size.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from sklearn_convexbn.losses._base import Loss
from sklearn_convexbn.program.units._activations import Activations, activations_of
from sklearn_convexbn.program.units._base import FAR, STORED_BYTES, Draw, Units, unit_columns
from sklearn_convexbn.program.units._blocks import row_slices
from sklearn_convexbn.support._arrays import Array, as_numpy, is_tensor
from sklearn_convexbn.support._sharding import ALL_HERE

#: First steps of starts that are made of known directions.
MIDDLE = 0.3

#: Noise on known directions, and on whole units; size of inner units beside a dominant linear part.
DIRECTION_NOISE, UNIT_NOISE, SMALL_INNER = 0.1, 0.05, 0.3

#: Parts of a unit of norm one that are below this are no directions to start from.
NEGLIGIBLE_PART = 1e-3

#: Units are told apart by their activations on at most so many rows.
SIGNATURE_ROWS = 256


class PathUnits(Units):
    """Parallel sub-networks of two hidden layers, with the Euclidean norm of all parameters.

    Parameters
    ----------
    Z : torch.Tensor of shape (n, k)
        Rows, float64; their order is taken for random.
    inner_width : int
        Number h of inner units.
    precision : torch.dtype, default=torch.float64
        In which all units and output weights are moved together.

    Notes
    -----
    Parameters (K, m), K = (h + 1) k, are those of the inner units one after another, then those
    of the linear part.
    """

    shards, is_flat = ALL_HERE, True

    def __init__(self, Z: Tensor, inner_width: int, precision: torch.dtype = torch.float64) -> None:
        self.Z, self.inner_width, self.precision = Z, inner_width, precision
        self.n_samples = self.n_rows = len(Z)
        self.n_inputs = int(Z.shape[1])
        self.n_parameters = (inner_width + 1) * self.n_inputs
        self.device = Z.device
        self.signs = inner_signs(inner_width)
        self._rows = {Z.dtype: Z}

    def part(self, samples: slice) -> PathUnits:
        return self._like(self.Z[samples])

    # ------------------------------------------------------------------------ sums over rows

    def _layers(self, Q: Tensor) -> Tensor:
        """Return parameters (K, m) as (h + 1, k, m)."""
        return Q.reshape(self.inner_width + 1, self.n_inputs, Q.shape[1])

    def _blocks(self, Q: Tensor) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
        """Yield rows, their block of Z, the inner activations (h, rows, m) and g (rows, m).

        That is one inner unit of all units at a time, all of them in the precision of Q (K, m).
        Arrays may be written to; each takes the place of the last.
        """
        Z, layers, m = self._rows_in(Q.dtype), self._layers(Q), Q.shape[1]
        h, buffer = self.inner_width, Q.new_empty(self.inner_width + 1, 0, m)
        for rows in row_slices(len(Z), (h + 1) * m, Z.device.type):
            part = Z[rows]
            buffer = buffer if buffer.shape[1] == len(part) else Q.new_empty(h + 1, len(part), m)
            g = torch.mm(part, layers[-1], out=buffer[-1])
            for H, W, sign in zip(buffer, layers, self.signs, strict=False):
                g.add_(torch.mm(part, W, out=H).clamp_min_(0.0), alpha=sign)
            yield rows, part, buffer[:-1], g

    def _rows_in(self, dtype: torch.dtype) -> Tensor:
        if dtype not in self._rows:
            self._rows[dtype] = self.Z.to(dtype)
        return self._rows[dtype]

    def _pull_back(self, gradient: Tensor, Z: Tensor, H: Tensor, slopes: Tensor) -> None:
        """Add to gradients (K, m) those of ``sum(slopes * g)``; H (h, rows, m) is overwritten."""
        parts = self._layers(gradient)
        parts[-1].addmm_(Z.T, slopes)
        for part, active, sign in zip(parts, H, self.signs, strict=False):
            part.addmm_(Z.T, active.sign_().mul_(slopes), alpha=sign)

    def fit(self, Q: Array, V: Array) -> Array:
        units, weights = self._tensor(Q), self._tensor(V)
        F = units.new_empty(self.n_samples, weights.shape[1])
        for rows, _, _, g in self._blocks(units):
            torch.mm(g.clamp_min_(0.0), weights, out=F[rows])
        return F if is_tensor(Q) else F.numpy()

    def correlations(self, Lambda: Array, Q: Array) -> Array:
        units = self._tensor(Q)
        L = self._tensor(Lambda).to(units.dtype)
        T = units.new_zeros(L.shape[1], units.shape[1])
        for rows, _, _, g in self._blocks(units):
            T.addmm_(L[rows].T, g.clamp_min_(0.0))
        return T if is_tensor(Q) else T.numpy()

    def _tensor(self, a: Array) -> Tensor:
        return torch.as_tensor(np.ascontiguousarray(a) if not is_tensor(a) else a).to(self.device)

    def activations(self, Q: Tensor, stored_bytes: int = STORED_BYTES) -> Activations:
        def features(Q: Tensor) -> Iterator[tuple[slice, Tensor]]:
            for rows, _, _, g in self._blocks(Q):
                yield rows, g.clamp_min_(0.0)

        return activations_of(features, Q, self.n_samples, self.shards, stored_bytes=stored_bytes)

    def ascent(self, Lambda: Tensor, Q: Tensor) -> tuple[Tensor, Tensor]:
        L = Lambda.to(Q.dtype)
        gradient, directions = torch.zeros_like(Q), None
        if L.shape[1] > 1:
            T = torch.as_tensor(self.correlations(L, Q))
            directions = unit_columns(T)
        for rows, Z, H, g in self._blocks(Q):
            slopes = L[rows] if directions is None else L[rows] @ directions
            self._pull_back(gradient, Z, H, g.gt_(0.0).mul_(slopes))
        values = (Q * gradient).sum(dim=0)  # what a function of degree one is
        if directions is None:  # one output: the sign is known at last
            gradient *= values.sign()
            values = values.abs()
        return values, gradient

    def loss(
        self, loss: Loss, Y: Tensor, p: Tensor, Q: Tensor, V: Tensor, b: Tensor
    ) -> tuple[float, Tensor, Tensor, Tensor]:
        dQ, dV, db = torch.zeros_like(Q), torch.zeros_like(V), Y.new_zeros(len(b))
        value, single, Vt = Y.new_zeros(()), V.shape[1] == 1, V.T.contiguous()
        for rows, Z, H, g in self._blocks(Q):
            active = g.clamp_min_(0.0)
            F = torch.mm(active, V).add_(b).to(Y.dtype)
            part, G = loss.value_and_gradient(F, Y[rows], p[rows])
            value += part
            db += G.sum(dim=0)
            G = G.to(Q.dtype)
            if not single:
                dV.addmm_(active.T, G)
                G = torch.mm(G, Vt)
            self._pull_back(dQ, Z, H, active.sign_().mul_(G))
        if single:  # the slopes of a unit are its activity times G, up to its own output weight
            dV = (Q * dQ).sum(dim=0)[:, None]
            dQ *= Vt
        return float(value), dQ, dV, db

    def patterns(self, Q: np.ndarray) -> np.ndarray:
        """Return the rows on which units and their inner units are active, as bytes (m, any)."""
        parts = [
            np.packbits(as_numpy(torch.cat([H, g[None]]) > 0.0), axis=1)
            for _, _, H, g in self._blocks(self._tensor(Q).double())
        ]
        return np.ascontiguousarray(np.concatenate(parts, axis=1).reshape(-1, Q.shape[1]).T)

    # ------------------------------------------------------------------------------ search

    def signatures(self, Q: np.ndarray) -> np.ndarray:
        """Return activations on some of the rows: equal units may have other parameters."""
        some = self._like(self.Z[:SIGNATURE_ROWS]) if self.n_rows > SIGNATURE_ROWS else self
        units = some._tensor(Q).float()
        A = units.new_empty(some.n_rows, units.shape[1])
        for rows, _, _, g in some._blocks(units):
            A[rows] = g.clamp_min_(0.0)
        return as_numpy(unit_columns(A))

    def on(self, device: str) -> PathUnits:
        return self if self.Z.device.type != "cpu" else self._like(self.Z.to(device))

    def here(self) -> PathUnits:
        return self

    def sample(self, index: Tensor) -> PathUnits:
        return self._like(self.Z[index])

    def _like(self, Z: Tensor) -> PathUnits:
        return type(self)(Z, self.inner_width, self.precision)

    def of_rows(self, Lambda: Tensor, index: Tensor) -> Tensor:
        return Lambda[index]

    def starts(
        self, count: int, draw: Draw, random_state: np.random.RandomState, known: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return a third each of random units, of known inner units, and of nearly linear ones."""
        h, parts = self.inner_width, self._random_parts(count, random_state)
        first, kinds = np.full(count, MIDDLE), np.arange(count) * 3 // max(count, 1)
        first[kinds == 0] = FAR
        pool = self._directions_in(known)
        linear = np.flatnonzero(kinds == 2)
        parts[:h, :, linear] *= SMALL_INNER
        for part, units in [*((i, np.flatnonzero(kinds == 1)) for i in range(h)), (h, linear[::2])]:
            if pool.shape[1]:
                found = pool[:, random_state.randint(pool.shape[1], size=len(units))]
                parts[part, :, units] = (found + DIRECTION_NOISE * parts[part, :, units].T).T
        return parts.reshape(-1, count), first

    def _random_parts(self, count: int, random_state: np.random.RandomState) -> np.ndarray:
        """Return random unit vectors (h + 1, k, count), half of them through a random row."""
        parts = random_state.standard_normal((self.inner_width + 1, self.n_inputs, count))
        shape = parts[:, -1, ::2].shape
        index = torch.as_tensor(random_state.randint(self.n_rows, size=shape), device=self.device)
        rows = as_numpy(self.Z[index])
        parts[:, -1, ::2] = -np.einsum("ikm,imk->im", parts[:, :-1, ::2], rows[..., :-1])
        return parts / np.maximum(np.linalg.norm(parts, axis=1, keepdims=True), 1e-300)

    def _directions_in(self, Q: np.ndarray) -> np.ndarray:
        """Return the directions (k, any), of length one, of the parts of units Q (K, m)."""
        parts = Q.reshape(self.inner_width + 1, self.n_inputs, Q.shape[1])
        parts = np.hstack(list(parts))
        lengths = np.linalg.norm(parts, axis=0)
        return parts[:, lengths > NEGLIGIBLE_PART] / lengths[lengths > NEGLIGIBLE_PART]

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
        """Return known units with noise on all their parts."""
        chosen = known[:, random_state.randint(known.shape[1], size=count)]
        noise = self._random_parts(count, random_state).reshape(chosen.shape)
        lengths = np.maximum(np.linalg.norm(chosen, axis=0), 1e-300)
        return self.unit(self._tensor(chosen / lengths + UNIT_NOISE * noise).float())


class L1PathUnits(PathUnits):
    """The same with the l1 norm of all paths, which sets most of them to zero."""

    has_l1_norm = True

    def norms(self, Q: np.ndarray) -> np.ndarray:
        return np.abs(Q).sum(axis=0)

    def unit(self, Q: Tensor) -> Tensor:
        return Q / Q.abs().sum(dim=0).clamp_min_(1e-12)

    def penalty(self, Q: np.ndarray) -> tuple[float, np.ndarray]:
        norms = self.norms(Q)
        return 0.5 * float(norms @ norms), norms * np.sign(Q)

    def step(self, Q: Tensor, gradient: Tensor, lengths: Tensor) -> Tensor:
        """Step along the gradient of the ratio to the norm; parameters stop where they reach zero.

        Lengths are on the Euclidean sphere: on that of the l1 norm, a step of one length would be
        another for units of other numbers of parameters.
        """
        value = (Q * gradient).sum(dim=0)
        side = torch.where(Q == 0.0, gradient, Q).sign_()
        rise = gradient - value * side
        rise = torch.where((Q == 0.0) & (rise * side < 0.0), 0.0, rise)
        moved = unit_columns(Q).add_(lengths * unit_columns(rise))
        return self.unit(torch.where(moved * side < 0.0, 0.0, moved))

    def simplified(self, Q: np.ndarray) -> np.ndarray:
        """Return units (K, m) of the same activations on all rows, with fewer inner units.

        An inner unit that is active on no row is zero there, one that is active on all of them
        linear, and two that are active on the same rows, with the same sign, are one. By the
        triangle inequality no norm grows.
        """
        pairs = [
            (i, j)
            for i, j in combinations(range(self.inner_width), 2)
            if self.signs[i] == self.signs[j]
        ]
        somewhere = np.zeros((self.inner_width, Q.shape[1]), dtype=bool)
        everywhere, equal = ~somewhere, np.ones((len(pairs), Q.shape[1]), dtype=bool)
        for _, _, H, _ in self._blocks(self._tensor(Q).double()):
            on = as_numpy(H > 0.0)
            somewhere |= on.any(axis=1)
            everywhere &= on.all(axis=1)
            for same, (i, j) in zip(equal, pairs, strict=True):
                np.logical_and(same, (on[i] == on[j]).all(axis=0), out=same)
        parts = Q.copy().reshape(self.inner_width + 1, self.n_inputs, Q.shape[1])
        for inner, some, every, sign in zip(parts, somewhere, everywhere, self.signs, strict=False):
            parts[-1] += np.where(every, sign * inner, 0.0)
            inner[:, every | ~some] = 0.0
        for (i, j), same in zip(pairs, equal, strict=True):
            parts[i] += np.where(same, parts[j], 0.0)
            parts[j][:, same] = 0.0
        return parts.reshape(Q.shape)


def inner_signs(inner_width: int) -> list[float]:
    """Return the signs of the inner units: +1 for the first half, rounded up, -1 for the rest."""
    return [1.0 if i < (inner_width + 1) // 2 else -1.0 for i in range(inner_width)]


#: Kinds of path units by the name of their norm.
NORMS: dict[str, type[PathUnits]] = {"l1": L1PathUnits, "l2": PathUnits}

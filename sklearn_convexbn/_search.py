r"""The search for the most violated direction of the ReLU dual.

The dual constraint of the full ReLU problem, :math:`|\Lambda^T (Z q)_+| \le \alpha` for every
unit q, is non-convex in q. Ascent from many starts at once, all of it matrix products, finds
large values; their maximum is a lower bound on the true one, so a certificate that rests on
it is an estimate.

How wide a basin of attraction is decides what finds it. Random starts with long first steps
find wide basins, also in many dimensions. In few dimensions the worst violators are needles:
vertices of the arrangement, where the hyperplanes of nearly k - 1 rows meet and the function
has a kink across each. Starts at random vertices, with short first steps, find some. Many lie
near other high maxima in the sense of the arrangement: they share all but a few hyperplanes with
them. On the circle on which the shared ones meet, the function is known between breakpoints, and
one sort finds its maximum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy import special
from torch import Tensor

from sklearn_convexbn._arrays import Array, as_numpy
from sklearn_convexbn._hidden_layer import HiddenLayer, column_norms, unit_columns

#: Searches of more rows than this are steered by a random subset of so many.
STEERING_ROWS = 20_000

#: Starts that ascend together, and rows times circles that are sorted together.
TOGETHER, CIRCLE_ELEMENTS = 256, 2**18

#: First steps, on the unit sphere, of starts that stand for a region and of starts that are
#: thought to be close to a maximum.
FAR, NEAR = 0.5, 0.1

#: Hyperplanes of at most this many rows meet in a start.
VERTEX_ROWS = 16

#: Maxima remembered from one search to the next.
MEMORY = 100

#: Directions of a larger cosine count as the same maximum, and as the neuron's own.
SAME, OWN = 0.99, 0.9999

#: First steps from the maxima of circles, and the part of a circle around its base left out.
CIRCLE_STEP, CIRCLE_GAP = 0.05, 0.05


def ascend(
    layer: HiddenLayer,
    Lambda: Tensor,
    starts: Tensor,
    *,
    n_steps: int,
    first: Tensor | float = FAR,
    last: float = 0.01,
) -> tuple[Tensor, Tensor]:
    """Raise ``|Lambda^T (Z q)_+|`` over unit q from many starts at once.

    Each step moves along the normalized gradient by a length that falls geometrically from
    `first` to `last`; the best point each start has met is kept. A long first step forgets
    all about its start but the wider surroundings.

    Parameters
    ----------
    layer : HiddenLayer
        Of n rows with k coordinates.
    Lambda : torch.Tensor of shape (n, C)
    starts : torch.Tensor of shape (k, S)
        Their precision is that of the ascent.
    n_steps : int
    first : torch.Tensor of shape (S,), or float
        Length of the first step on the unit sphere.
    last : float
        Length of the last step.

    Returns
    -------
    values : torch.Tensor of shape (S,)
    directions : torch.Tensor of shape (k, S)
        Unit columns.
    """
    lengths = torch.as_tensor(first).to(starts).expand(starts.shape[1])
    parts = [
        _ascend_together(layer, Lambda, Q, n_steps, steps, last)
        for Q, steps in zip(
            torch.split(starts, TOGETHER, dim=1), torch.split(lengths, TOGETHER), strict=True
        )
    ]
    values, directions = zip(*parts, strict=True)
    return torch.cat(values), torch.cat(directions, dim=1)


def _ascend_together(
    layer: HiddenLayer, Lambda: Tensor, Q: Tensor, n_steps: int, first: Tensor, last: float
) -> tuple[Tensor, Tensor]:
    Q = unit_columns(Q)
    best, best_Q = torch.full_like(Q[0], -1.0), Q.clone()
    ratio = (last / first) ** (1.0 / max(1, n_steps - 1))
    for i in range(n_steps + 1):
        if i == n_steps:
            values = column_norms(layer.correlations(Lambda, Q))
        else:
            values, gradient = layer.ascent(Lambda, Q)
        better = values > best
        best = torch.where(better, values, best)
        best_Q = torch.where(better, Q, best_Q)
        if i < n_steps:
            Q = Q + first * ratio**i * unit_columns(gradient)
            Q = unit_columns(Q)
    return best, best_Q


def circle_maxima(layer: HiddenLayer, Lambda: Tensor, bases: Tensor, tangents: Tensor) -> Tensor:
    """Return the best vertices (k, 2 S) on both halves of circles, away from their bases.

    For several outputs, the best for the output direction of the base.

    Parameters
    ----------
    layer : HiddenLayer
        Of n rows with k coordinates.
    Lambda : torch.Tensor of shape (n, C)
    bases, tangents : torch.Tensor of shape (k, S)
        Orthonormal pairs; a circle is ``cos(t) base + sin(t) tangent``.
    """
    Z = layer.Z[:].to(bases.dtype)
    block = max(1, CIRCLE_ELEMENTS // max(1, Z.shape[0]))
    parts = [
        _circle_block(Z, Lambda, q, t)
        for q, t in zip(
            torch.split(bases, block, dim=1), torch.split(tangents, block, dim=1), strict=True
        )
    ]
    return torch.cat(parts, dim=1)


def _circle_block(Z: Tensor, Lambda: Tensor, bases: Tensor, tangents: Tensor) -> Tensor:
    H, G = (Z @ bases).T.contiguous(), (Z @ tangents).T.contiguous()
    T = torch.nn.functional.normalize(H.clamp_min(0) @ Lambda, dim=1)
    slopes = T @ Lambda.T
    # Row i changes sides where h_i cos t + g_i sin t = 0, once in every half turn. Between such
    # breakpoints the function is a cos t + b sin t, with sums a and b over the active rows.
    angles, order = torch.remainder(torch.atan2(-H, G), torch.pi).sort(dim=1)
    active = H > 0
    cos, sin = angles.cos(), angles.sin()

    def sums(weighted: Tensor) -> Tensor:
        changes = torch.where(active, -weighted, weighted).gather(1, order).cumsum(dim=1)
        return (weighted * active).sum(dim=1, keepdim=True) + changes

    a, b = slopes * H, slopes * G
    first = sums(a) * cos + sums(b) * sin
    # f(q) - f(-q) is linear in q, which gives the other half turn.
    second = first - (a.sum(dim=1, keepdim=True) * cos + b.sum(dim=1, keepdim=True) * sin)
    apart = (angles > CIRCLE_GAP) & (angles < torch.pi - CIRCLE_GAP)
    best = [torch.where(apart, half.abs(), -1.0).argmax(dim=1) for half in (first, second)]
    t1, t2 = (angles.gather(1, i[:, None])[:, 0] for i in best)
    t2 = t2 + torch.pi
    found = [bases * t.cos() + tangents * t.sin() for t in (t1, t2)]
    return unit_columns(torch.cat(found, dim=1))


def distinct_violators(
    values: np.ndarray, directions: np.ndarray, threshold: float, *, most: int, cosine: float
) -> np.ndarray:
    """Return the indices of the largest values above `threshold`, pairwise apart.

    Parameters
    ----------
    values : ndarray of shape (S,)
    directions : ndarray of shape (k, S)
        Unit columns.
    threshold : float
    most : int
        Largest number to return.
    cosine : float
        Two of them have at most this cosine.

    Returns
    -------
    chosen : ndarray of shape (at most `most`,)
        Largest value first.
    """
    chosen: list[int] = []
    for i in np.argsort(-values, kind="stable"):
        if values[i] <= threshold or len(chosen) >= most:
            break
        if not chosen or (directions[:, chosen].T @ directions[:, i]).max() <= cosine:
            chosen.append(int(i))
    return np.array(chosen, dtype=np.intp)


def _rows(layer: HiddenLayer, rows: np.ndarray) -> np.ndarray:
    """Return some rows of Z (*rows.shape, k), by their numbers."""
    index = torch.as_tensor(rows, device=layer.Z.device)
    return layer.shards.entries(layer.Z, index).double().cpu().numpy()


@dataclass(frozen=True)
class _Dual:
    """A dual point (n, C) on the rows of a layer, and the same in float32 at the scale of one.

    The scale keeps float32 away from underflow; ascent does not depend on it.
    """

    layer: HiddenLayer
    Lambda: Tensor
    scaled: Tensor

    @classmethod
    def of(cls, layer: HiddenLayer, Lambda: Tensor) -> _Dual:
        largest = layer.shards.maximum(float(Lambda.abs().max()))
        return cls(layer, Lambda, (Lambda / max(largest, 1e-300)).float())

    def take(self, index: Tensor) -> _Dual:
        """Return the dual point on some of all rows, by their numbers; it has these rows here."""
        parts = (self.layer.of_rows(a, index) for a in (self.Lambda, self.scaled))
        return _Dual(self.layer.take(index), *parts)

    def ascended(self, starts: Tensor, first: Tensor | float, n_steps: int) -> Tensor:
        """Return unit directions (k, S), float64, that ascent from starts (k, S) ends in."""
        _, Q = ascend(self.layer, self.scaled, starts.float(), n_steps=n_steps, first=first)
        return unit_columns(Q.double())

    def values(self, directions: Tensor) -> np.ndarray:
        """Return ``|Lambda^T (Z q)_+|`` (S,) in float64 for directions (k, S)."""
        T = self.layer.correlations(self.Lambda, directions)
        return column_norms(T).cpu().numpy()

    def best(self, directions: Tensor) -> Tensor:
        """Return the best of the directions (k, S), pairwise apart, in float32."""
        Q = directions.float()
        values = column_norms(self.layer.correlations(self.scaled, Q))
        chosen = distinct_violators(
            values.cpu().numpy(), Q.cpu().numpy(), -np.inf, most=TOGETHER, cosine=SAME
        )
        return Q[:, torch.as_tensor(chosen, device=Q.device)]


@dataclass
class Search:
    """Searches of one run: they share their random numbers and the maxima met so far.

    Parameters
    ----------
    layer : HiddenLayer
        On the device of the search. Ascent runs in float32, values are float64.
    random_directions : callable
        ``random_directions(count)`` draws directions (k, count).
    random_state : numpy.random.RandomState
        Draws rows.
    """

    layer: HiddenLayer
    random_directions: Callable[[int], np.ndarray]
    random_state: np.random.RandomState
    maxima: np.ndarray | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        # Few rows that are spread over processes, or computed when read, are gathered: searches on
        # all of them here cost less.
        self._shards, self._whole = self.layer.shards, self.layer
        self._gathered: Tensor | None = None
        self._sampled = self.layer.n_rows > STEERING_ROWS
        if self._sampled:
            return
        if self._shards.size > 1:
            self._gathered = self._all_rows()
            self.layer = self.layer.take(self._gathered)
        elif not self.layer.is_stored:
            self.layer = HiddenLayer(self.layer.Z[:], pooling=self.layer.pooling)

    def __call__(
        self,
        Lambda: Array,
        units: np.ndarray,
        *,
        n_starts: int,
        n_circles: int,
        n_steps: int,
        n_generations: int,
        steered: bool = False,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Search from fresh starts, given ones and earlier maxima, then around the best.

        Where rows are more than `STEERING_ROWS`, circles are sorted on a random subset of that
        size; the values returned are always those on all rows.

        Parameters
        ----------
        Lambda : array of shape (n, C)
        units : ndarray of shape (k, m)
            Directions of the neurons, which are starts as well.
        n_starts : int
            Fresh starts, half of them random and half of them vertices.
        n_circles : int
            Circles through known maxima in each generation; both halves give a start.
        n_steps : int
            Ascent steps.
        n_generations : int
            How often new circles are drawn through the best maxima so far.
        steered : bool, default=False
            Whether starts may ascend on the subset, and only the best on all rows from there.

        Returns
        -------
        values : ndarray of shape (S,)
            ``|Lambda^T (Z q)_+|``.
        directions : ndarray of shape (k, S)
            Unit columns.
        """
        whole = self._dual(Lambda)
        part = self._subset(whole)
        starts, first = map(self._tensor, self._starts(units, n_starts))
        if steered and self._sampled:
            near = whole.best(part.ascended(starts, first, n_steps))
            found = whole.ascended(near, NEAR, n_steps // 2)
        else:
            found = whole.ascended(starts, first, n_steps)
        values, directions = whole.values(found), found.cpu().numpy()
        for generation in range(n_generations):
            self._remember(values, directions, units)
            circles = self._circles(part, units, n_circles, whole=generation % 2 == 1)
            starts = circle_maxima(part.layer, part.scaled, *map(self._tensor, circles))
            starts = whole.best(starts) if self._sampled else starts
            found = whole.ascended(starts, CIRCLE_STEP, n_steps)
            values = np.concatenate([values, whole.values(found)])
            directions = np.hstack([directions, found.cpu().numpy()])
        values, directions = self._shards.agreed((values, directions))
        self._remember(values, directions, units)
        return values, directions

    def _dual(self, Lambda: Array) -> _Dual:
        """Return the dual point (n, C), on the rows that are searched."""
        Lambda = torch.as_tensor(Lambda, device=self.layer.Z.device)
        if self._gathered is not None:
            Lambda = self._whole.of_rows(Lambda, self._gathered)
        return _Dual.of(self.layer, Lambda)

    def gathered(self, Lambda: Array) -> tuple[np.ndarray, np.ndarray]:
        """Return Z (n, k) and a dual point (n, G C) on all rows, which must be few, as arrays."""
        dual = self._dual(Lambda)
        if not (dual.layer.is_stored and dual.layer.pooling.is_identity):
            dual = dual.take(self._all_rows())
        return as_numpy(dual.layer.Z), as_numpy(dual.Lambda)

    def _all_rows(self) -> Tensor:
        return torch.arange(self.layer.n_rows, device=self.layer.Z.device)

    def _subset(self, whole: _Dual) -> _Dual:
        """Return the dual point on a random subset of the rows, or on all if they are few.

        All rows of the subset are in this process, and none are pooled.
        """
        if not self._sampled:
            pooled = not whole.layer.pooling.is_identity
            return whole.take(self._all_rows()) if pooled else whole
        rows = self.random_state.randint(self.layer.n_rows, size=STEERING_ROWS)
        index = torch.as_tensor(np.sort(rows), device=self.layer.Z.device)
        return whole.take(index)

    def _starts(self, units: np.ndarray, n_starts: int) -> tuple[np.ndarray, np.ndarray]:
        """Return starts (k, S) and the lengths (S,) of their first steps."""
        n_far = n_starts // 2
        n, k = self.layer.n_rows, self.layer.shape[1]
        n_near, n_rows = n_starts - n_far, min(k - 1, VERTEX_ROWS)
        rows = self.random_state.randint(n, size=(n_near, n_rows))
        parts = [
            self._through_rows(self.random_directions(n_far)),
            vertices(self.random_directions(n_near), _rows(self.layer, rows)),
            units,
        ]
        if self.maxima is not None:
            parts.append(self.maxima)
        starts = np.hstack(parts)
        return starts, np.where(np.arange(starts.shape[1]) < n_far, FAR, NEAR)

    def _tensor(self, a: np.ndarray) -> Tensor:
        """Return an array in float32 on the device."""
        return torch.as_tensor(a, device=self.layer.Z.device).float()

    def _through_rows(self, directions: np.ndarray) -> np.ndarray:
        """Move every other hyperplane (k, S) in parallel until it passes through a random row.

        A random offset is small beside the length of a random direction, so hyperplanes that cut
        off few rows would hardly be drawn. The row is picked by the offset's own quantile.
        """
        moved = directions.copy()
        rows = (special.ndtr(moved[-1, ::2]) * self.layer.n_rows).astype(np.intp)
        through = _rows(self.layer, rows)[:, :-1]
        moved[-1, ::2] = -np.einsum("ks,sk->s", moved[:-1, ::2], through)
        return moved

    def _circles(
        self, dual: _Dual, units: np.ndarray, count: int, *, whole: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return circles through neurons, maxima or their antipodes as orthonormal pairs (k, S).

        They keep to all but one of the k - 1 hyperplanes nearest to the base (at most
        `VERTEX_ROWS`), or if `whole` to none. Antipodes are bases because, once the linear part of
        the fit is settled, the residuals on both sides of a hyperplane say the same.
        """
        assert self.maxima is not None
        pool = np.hstack([self.maxima, units])
        k, size = pool.shape
        bases = pool[:, self.random_state.randint(size, size=count)]
        bases = np.where(np.arange(count) % 2 == 1, -bases, bases)
        kept = 0 if whole else max(0, min(k - 2, VERTEX_ROWS))
        nearest = dual.layer.nearest(self._tensor(bases), kept + 1).T.cpu().numpy()
        dropped = self.random_state.randint(kept + 1, size=count)
        others = np.arange(kept) + (np.arange(kept) >= dropped[:, None])
        rows = _rows(dual.layer, np.take_along_axis(nearest, others, axis=1))
        fixed = np.concatenate([bases.T[:, None], rows], axis=1)[:, : k - 1]
        tangents = vertices(self.random_directions(count), fixed)
        lengths = np.linalg.norm(tangents, axis=0)
        return bases, tangents / np.maximum(lengths, 1e-300)

    def _remember(self, values: np.ndarray, directions: np.ndarray, units: np.ndarray) -> None:
        """Keep the best maxima besides the neurons themselves, which are known anyway."""
        known = (units.T @ directions).max(axis=0, initial=-1.0) > OWN
        order = np.where(known, values - values.max() - 1.0, values)
        best = distinct_violators(order, directions, -np.inf, most=MEMORY, cosine=SAME)
        self.maxima = directions[:, best]


def vertices(directions: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Project directions (k, S) onto what is orthogonal to rows (S, r, k), r < k."""
    Q, _ = np.linalg.qr(rows.transpose(0, 2, 1))
    q = directions.T[:, :, None]
    for _ in range(2):  # once more, for what cancellation leaves of nearly dependent ones
        q = q - Q @ (Q.transpose(0, 2, 1) @ q)
    return q[:, :, 0].T

r"""The search for the most violated unit of the dual.

The dual constraint, :math:`|\Lambda^T a(q)| \le \alpha` for every unit q of norm one, is non-convex
in q. Ascent from many starts at once, all of it matrix products, finds large values; their maximum
is a lower bound on the true one, so a certificate that rests on it is an estimate.
Where starts lie is the business of the kind of unit (:mod:`sklearn_convexbn.program.units`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sklearn_convexbn.program.units._base import NEAR, Draw, Units, column_norms
from sklearn_convexbn.search._dc_step import DCStep, operations
from sklearn_convexbn.support._arrays import Array

#: Searches of more rows than this are steered by a random subset of so many.
STEERING_ROWS = 20_000

#: Starts that ascend together.
TOGETHER = 256

#: First steps of relatives of maxima.
RELATED = 0.05

#: Maxima remembered from one search to the next.
MEMORY = 100

#: Directions of a larger cosine count as the same maximum, and as the neuron's own.
SAME, OWN = 0.99, 0.9999

#: The part of ascents that are polished, but at least so many, and the cosine of the closest two.
POLISHED_PART, LEAST_POLISHED, APART = 0.02, 30, 0.999

#: The operations of DC steps, as a part of those of the ascents: they take longer, in float64.
POLISHING = 0.25


class Effort(NamedTuple):
    """How much a search does.

    Attributes
    ----------
    n_starts : int
        Fresh starts.
    n_relatives : int
        Relatives of known maxima in each generation.
    n_steps : int
        Ascent steps.
    n_generations : int
        How often new relatives are looked for around the best maxima so far.
    steered : bool
        Whether starts may ascend on a subset of the rows, and only the best on all from there.
    polished : bool
        Whether DC steps raise the best few of what ascents end in, where units have such steps.
    """

    n_starts: int
    n_relatives: int
    n_steps: int
    n_generations: int
    steered: bool = False
    polished: bool = False


def ascend(
    units: Units,
    Lambda: Tensor,
    starts: Tensor,
    *,
    n_steps: int,
    first: Tensor | float = 0.5,
    last: float = 0.01,
) -> tuple[Tensor, Tensor]:
    """Raise ``|Lambda^T a(q)|`` over units q of norm one from many starts at once.

    Each step moves along the normalized gradient by a length that falls geometrically from
    `first` to `last`; the best point each start has met is kept. A long first step forgets
    all about its start but the wider surroundings.

    Parameters
    ----------
    units : Units
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
        Of norm one.
    """
    lengths = torch.as_tensor(first).to(starts).expand(starts.shape[1])
    parts = [
        _ascend_together(units, Lambda, Q, n_steps, steps, last)
        for Q, steps in zip(
            torch.split(starts, TOGETHER, dim=1), torch.split(lengths, TOGETHER), strict=True
        )
    ]
    values, directions = zip(*parts, strict=True)
    return torch.cat(values), torch.cat(directions, dim=1)


def _ascend_together(
    units: Units, Lambda: Tensor, Q: Tensor, n_steps: int, first: Tensor, last: float
) -> tuple[Tensor, Tensor]:
    Q = units.unit(Q)
    best, best_Q = torch.full_like(Q[0], -1.0), Q.clone()
    ratio = (last / first) ** (1.0 / max(1, n_steps - 1))
    for i in range(n_steps + 1):
        if i == n_steps:
            values = column_norms(units.correlations(Lambda, Q))
        else:
            values, gradient = units.ascent(Lambda, Q)
        better = values > best
        best = torch.where(better, values, best)
        best_Q = torch.where(better, Q, best_Q)
        if i < n_steps:
            Q = units.step(Q, gradient, first * ratio**i)
    return best, best_Q


def distinct_violators(
    values: np.ndarray, signatures: np.ndarray, threshold: float, *, most: int, cosine: float
) -> np.ndarray:
    """Return the indices of the largest values above `threshold`, pairwise apart.

    Parameters
    ----------
    values : ndarray of shape (S,)
    signatures : ndarray of shape (any, S)
        Unit columns that tell units apart.
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
    # In float32 some kernels of OpenBLAS raise the flag of invalid values for finite ones.
    signatures = signatures.astype(np.float64, copy=False)
    chosen: list[int] = []
    for i in np.argsort(-values, kind="stable"):
        if values[i] <= threshold or len(chosen) >= most:
            break
        if not chosen or (signatures[:, chosen].T @ signatures[:, i]).max() <= cosine:
            chosen.append(int(i))
    return np.array(chosen, dtype=np.intp)


@dataclass(frozen=True)
class _Dual:
    """A dual point (n, C) on the rows of units, and the same in float32 at the scale of one.

    The scale keeps float32 away from underflow; ascent does not depend on it.
    """

    units: Units
    Lambda: Tensor
    scaled: Tensor

    @classmethod
    def of(cls, units: Units, Lambda: Tensor) -> _Dual:
        largest = units.shards.maximum(float(Lambda.abs().max()))
        return cls(units, Lambda, (Lambda / max(largest, 1e-300)).float())

    def take(self, index: Tensor) -> _Dual:
        """Return the dual point on some of all rows, by their numbers; it has these rows here."""
        parts = (self.units.of_rows(a, index) for a in (self.Lambda, self.scaled))
        return _Dual(self.units.sample(index), *parts)

    def ascended(self, starts: Tensor, first: Tensor | float, n_steps: int) -> Tensor:
        """Return units (k, S) of norm one, float64, that ascent from starts (k, S) ends in."""
        _, Q = ascend(self.units, self.scaled, starts.float(), n_steps=n_steps, first=first)
        return self.units.unit(Q.double())

    def values(self, directions: Tensor) -> np.ndarray:
        """Return ``|Lambda^T a(q)|`` (S,) in float64 for units (k, S)."""
        T = self.units.correlations(self.Lambda, directions)
        return column_norms(T).cpu().numpy()

    def best(self, directions: Tensor) -> Tensor:
        """Return the best of the units (k, S), pairwise apart, in float32."""
        Q = directions.float()
        values = column_norms(self.units.correlations(self.scaled, Q))
        chosen = distinct_violators(
            values.cpu().numpy(),
            self.units.signatures(Q.cpu().numpy()),
            -np.inf,
            most=TOGETHER,
            cosine=SAME,
        )
        return Q[:, torch.as_tensor(chosen, device=Q.device)]


@dataclass
class Search:
    """Searches of one run: they share their random numbers and the maxima met so far.

    Parameters
    ----------
    units : Units
        On the device of the search. Ascent runs in float32, values are float64.
    draw : callable
        ``draw(count)`` draws units (k, count).
    random_state : numpy.random.RandomState
        The source of all other random numbers.
    steering_rows : int, default=20_000
        Where rows are more, relatives are looked for on a random subset of so many.
    """

    units: Units
    draw: Draw
    random_state: np.random.RandomState
    steering_rows: int = STEERING_ROWS
    maxima: np.ndarray | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        # Few rows that are spread over processes, or computed when read, are gathered: searches on
        # all of them here cost less.
        self._shards, self._whole = self.units.shards, self.units
        self._sampled = self.units.n_rows > self.steering_rows
        if not self._sampled:
            self.units = self.units.here()

    def __call__(
        self, Lambda: Array, known: np.ndarray, effort: Effort
    ) -> tuple[np.ndarray, np.ndarray]:
        """Search from fresh starts, given ones and earlier maxima, then around the best.

        Where rows are more than `steering_rows`, relatives are looked for on a random subset of
        that size; the values returned are always those on all rows.

        Parameters
        ----------
        Lambda : array of shape (n, C)
        known : ndarray of shape (k, m)
            Units of the network, which are starts as well.
        effort : Effort

        Returns
        -------
        values : ndarray of shape (S,)
            ``|Lambda^T a(q)|``.
        directions : ndarray of shape (k, S)
            Units of norm one.
        """
        whole = self._dual(Lambda)
        part = self._subset(whole)
        starts, first = map(self._tensor, self._starts(known, effort.n_starts))
        if effort.steered and self._sampled:
            near = whole.best(part.ascended(starts, first, effort.n_steps))
            found = whole.ascended(near, NEAR, effort.n_steps // 2)
        else:
            found = whole.ascended(starts, first, effort.n_steps)
        values, directions = whole.values(found), found.cpu().numpy()
        for generation in range(effort.n_generations):
            self._remember(values, directions, known)
            starts = self._relatives(part, known, effort.n_relatives, generation)
            starts = whole.best(starts) if self._sampled else starts
            found = whole.ascended(starts, RELATED, effort.n_steps)
            values = np.concatenate([values, whole.values(found)])
            directions = np.hstack([directions, found.cpu().numpy()])
        if effort.polished:
            found = self._polished(part, values, directions, known, effort.n_steps)
            values = np.concatenate([values, whole.values(found)])
            directions = np.hstack([directions, found.cpu().numpy()])
        values, directions = self._shards.agreed((values, directions))
        self._remember(values, directions, known)
        return values, directions

    def _dual(self, Lambda: Array) -> _Dual:
        """Return the dual point (n, C), on the rows that are searched."""
        Lambda = torch.as_tensor(Lambda, device=self.units.device)
        if not self._sampled and self._shards.size > 1:
            Lambda = self._whole.of_rows(Lambda, self._all_rows())
        return _Dual.of(self.units, Lambda)

    def _flat(self, dual: _Dual) -> _Dual:
        """Return a dual point on all rows, which must be few, here and unpooled."""
        return dual if dual.units.is_flat else dual.take(self._all_rows())

    def _subset(self, whole: _Dual) -> _Dual:
        """Return the dual point on a random subset of the rows, or on all if they are few.

        All rows of the subset are in this process, and none are pooled.
        """
        if not self._sampled:
            return self._flat(whole)
        rows = self.random_state.randint(self.units.n_rows, size=self.steering_rows)
        return whole.take(torch.as_tensor(np.sort(rows), device=self.units.device))

    def _all_rows(self) -> Tensor:
        return torch.arange(self.units.n_rows, device=self.units.device)

    def _starts(self, known: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return starts (k, S) and the lengths (S,) of their first steps."""
        fresh, first = self.units.starts(count, self.draw, self.random_state, known)
        earlier = [known] if self.maxima is None else [known, self.maxima]
        starts = np.hstack([fresh, *earlier])
        return starts, np.append(first, np.full(starts.shape[1] - count, NEAR))

    def _relatives(self, dual: _Dual, known: np.ndarray, count: int, generation: int) -> Tensor:
        """Return starts (k, any) near the maxima and units that are known."""
        assert self.maxima is not None
        pool = np.hstack([self.maxima, known])
        return dual.units.relatives(
            dual.scaled, pool, count, self.draw, self.random_state, generation=generation
        )

    def _polished(
        self,
        part: _Dual,
        values: np.ndarray,
        directions: np.ndarray,
        known: np.ndarray,
        n_steps: int,
    ) -> Tensor:
        """Return the units (k, any) that DC steps make of the best that ascents ended in.

        Not of neurons, which are maxima already. The steps take a part of the operations of
        the ascents at most. Vertices of a subset of the rows are none of all: there are no steps
        then.
        """
        rows = None if self._sampled else part.units.rectified_rows
        count = max(LEAST_POLISHED, int(POLISHED_PART * len(values)))
        if rows is not None:
            ascents = 4.0 * rows.numel() * n_steps * len(values)
            count = min(count, int(POLISHING * ascents / operations(*rows.shape)))
        if rows is None or count == 0:
            return self._tensor(directions[:, :0]).double()
        others = np.where(self._own(directions, known), -np.inf, values)
        best = distinct_violators(others, directions, -np.inf, most=count, cosine=APART)
        chosen = torch.as_tensor(directions[:, best], device=rows.device)
        return DCStep(rows, part.Lambda).polished(chosen)[1]

    def _own(self, directions: np.ndarray, known: np.ndarray) -> np.ndarray:
        """Return which of the directions (k, S) are those of neurons."""
        signatures = self.units.signatures
        return (signatures(known).T @ signatures(directions)).max(axis=0, initial=-1.0) > OWN

    def _remember(self, values: np.ndarray, directions: np.ndarray, known: np.ndarray) -> None:
        """Keep the best maxima besides the neurons themselves, which are known anyway."""
        signatures = self.units.signatures(directions)
        own = self._own(directions, known)
        order = np.where(own, values - values.max() - 1.0, values)
        best = distinct_violators(order, signatures, -np.inf, most=MEMORY, cosine=SAME)
        self.maxima = directions[:, best]

    def _tensor(self, a: np.ndarray) -> Tensor:
        """Return an array in float32 on the device."""
        return torch.as_tensor(a, device=self.units.device).float()

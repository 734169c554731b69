r"""A proved bound on the largest correlation of one output, by branch and bound over cones.

:math:`f(q) = \lambda^T (Z q)_+` is :math:`P(q) - N(q)`: P sums the rows of positive multipliers,
N those of negative ones, both convex and homogeneous. For :math:`-f` they change places, so let the
sign be given. Let a cone be spanned by unit vectors :math:`v_1 \ldots v_k`, no two of which have a
negative product, and let b be a convex combination of subgradients of N, taken anywhere. Then
:math:`N(q) \ge b \cdot q` everywhere, and on the cone, where :math:`q = \sum_i a_i v_i` with
:math:`a \ge 0`, a convex homogeneous P is at most :math:`\sum_i a_i P(v_i)`. So for any vector r

.. math:: f(q) \le \sum_i a_i (P(v_i) - b \cdot v_i)
          \le r \cdot q + \sum_i a_i e, \qquad e = \max_i (P(v_i) - b \cdot v_i - r \cdot v_i)_+,

which is at most :math:`|r| + \sqrt{k}\, e` for unit q, because :math:`1 = |q|^2 \ge \sum_i a_i^2`.
The best r and b are looked for by coordinate descent and conditional gradient steps; whether they
were found does not matter to the bound, which is that of the line above for whatever they are.
Cones of too large a bound are halved, at the edge along which P and N bend most.

Rounding. All sums are taken in float64, of rows and multipliers scaled such that the rows have norm
one and the multipliers a sum of absolute values S. With u the unit roundoff and m rows:

* a subgradient is a sum of at most m terms of size at most their multiplier, so it is off by
  :math:`(m + 4) u S`, whichever order they are summed in. Which rows a product counts as active
  does not matter for N: ``w (z q)_+`` is at least w z q and at least zero everywhere. For P a row
  whose product is rounded to the wrong side of zero changes P by at most :math:`2 k u` of its
  multiplier, and so does a row that is taken for linear on a cone because its products with all
  generators were rounded to one side.
* every conditional gradient step moves b by less than S and rounds it by at most :math:`8 u S`, and
  an earlier error of b does not grow. A cone keeps count of the steps that its b has seen.
* products with b, r and v are off by :math:`(k + 2) u` of the vectors' norms.

`_Rows.slack` adds these to each e with a factor of four to spare, and `_bound` :math:`32 k u |r|`
to the norm of r.
Rows outside a subspace on which they nearly lie add what is cut off of them times their multiplier.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from itertools import product
from math import sqrt

import numpy as np
import torch
from torch import Tensor

#: Dimensions in which the 2^k orthants to start from are not too many.
MOST_DIMENSIONS = 12

#: Unit roundoff of float64.
ROUNDOFF = 2.0**-53

#: Rows are taken to lie in a subspace if so little of them is outside.
OUTSIDE = 1e-12

#: Conditional gradient steps on a cone's b, and sweeps of coordinate descent after each.
STEPS, SWEEPS = 6, 3

#: Cones halved together; a block of more than this many is divided.
TOGETHER, DIVIDED = 768, 3072

#: Weight of an edge's squared length beside the bend of P and N along it, relative to S.
ROUNDNESS = 1e-3

#: Directions kept of those met.
KEPT = 100


@dataclass(frozen=True)
class Proof:
    """What branch and bound over cones has shown.

    Attributes
    ----------
    bound : float
        No unit q has a larger ``|lambda^T (Z q)_+|``.
    values : ndarray of shape (s,)
        Of the best directions met.
    directions : ndarray of shape (k, s)
        Unit vectors.
    n_evaluations : int
        Directions at which P or N were evaluated.
    """

    bound: float
    values: np.ndarray
    directions: np.ndarray
    n_evaluations: int


def prove(
    Z: np.ndarray,
    multipliers: np.ndarray,
    *,
    wanted: float = 0.0,
    closeness: float = 1e-9,
    known: np.ndarray | None = None,
    n_evaluations: int = 1_000_000,
) -> Proof:
    """Bound ``|multipliers^T (Z q)_+|`` over all unit q.

    Parameters
    ----------
    Z : ndarray of shape (n, k)
    multipliers : ndarray of shape (n,)
    wanted : float, default=0.0
        The proof ends when the bound is at most this,
    closeness : float, default=1e-9
        or when it is at most ``1 + closeness`` times the largest value met.
    known : ndarray of shape (k, m), default=None
        Directions to start from; the better they are, the sooner cones can be left out.
    n_evaluations : int, default=1_000_000
        The proof ends after about so many evaluations, with the bound it has then. The first
        2^k + 2k are made in any case.

    Returns
    -------
    proof : Proof
        The same for the same arguments, however fast the machine is.
    """
    rows = _Rows.of(np.asarray(Z, dtype=float), np.asarray(multipliers, dtype=float).ravel())
    k = np.shape(Z)[1]
    start = np.zeros((k, 0)) if known is None else np.asarray(known, dtype=float)
    if rows.n_rows == 0:
        return Proof(0.0, np.zeros(0), np.zeros((k, 0)), 0)
    search = _BranchAndBound(rows, rows.scaled(wanted), closeness, n_evaluations)
    search.offer(rows.span.T @ start)
    bound = search.run()
    directions = rows.span @ search.directions
    values, bounds = rows.unscaled(search.values), rows.unscaled(np.array([bound]))
    return Proof(float(bounds[0]), values, directions, search.count)


@dataclass(frozen=True)
class _Rows:
    """Rows of norm one in their span and multipliers that sum to one in absolute value.

    Attributes
    ----------
    Z : ndarray of shape (n, k)
    multipliers : ndarray of shape (n,)
    span : ndarray of shape (any, k)
        Orthonormal columns: the coordinates of `Z`.
    scale : tuple of (float, int)
        The function is this mantissa times two to this power times the one given.
    outside : float
        What the rows have outside their span can change the function by no more.
    """

    Z: np.ndarray
    multipliers: np.ndarray
    span: np.ndarray
    scale: tuple[float, int]
    outside: float

    @classmethod
    def of(cls, Z: np.ndarray, multipliers: np.ndarray) -> _Rows:
        """Scale rows and multipliers without over- or underflow, and merge equal rows."""
        largest = np.abs(Z).max(axis=1, initial=0.0)
        keep = (largest > 0) & (multipliers != 0)
        Z, multipliers, largest = Z[keep], multipliers[keep], largest[keep]
        powers = np.frexp(largest)[1] - 1
        Z = np.ldexp(Z, -powers[:, None])
        norms = np.linalg.norm(Z, axis=1)
        mantissas, exponents = np.frexp(multipliers)
        exponents = exponents + powers
        top = int(exponents.max(initial=-(2**20)))
        weights = np.ldexp(mantissas * norms, np.maximum(exponents - top, -2000))
        total = float(np.abs(weights).sum())
        unit = Z / norms[:, None]
        unit, group = np.unique(unit, axis=0, return_inverse=True)
        weights = np.bincount(group.ravel(), weights, minlength=len(unit)) / (total or 1.0)
        unit, weights = unit[weights != 0], weights[weights != 0]
        if len(unit) == 0:
            return cls(unit, weights, np.eye(Z.shape[1]), (0.0, 0), 0.0)
        _, sizes, axes = np.linalg.svd(unit, full_matrices=False)
        span = axes[sizes > OUTSIDE * sizes[0]].T
        reduced = unit @ span
        lost = np.linalg.norm(unit - reduced @ span.T, axis=1)
        return cls(reduced, weights, span, (total, top), float(np.abs(weights) @ lost))

    @property
    def n_rows(self) -> int:
        return len(self.Z)

    def scaled(self, value: float) -> float:
        """Return a value of the function given as one of this."""
        mantissa, power = self.scale
        return float(np.ldexp(value / mantissa, -power)) if np.isfinite(value) else value

    def unscaled(self, values: np.ndarray) -> np.ndarray:
        """Return values of this function as those of the one given."""
        mantissa, power = self.scale
        return np.ldexp(values * mantissa, power)

    def slack(self, n_steps: int) -> float:
        """Return what rounding can add to e after so many steps of a cone's b."""
        n, k = self.Z.shape
        return 4.0 * ROUNDOFF * (n + 8.0 * k + 16.0 + 8.0 * n_steps) + 2.0 * self.outside

    def halves(self, sign: float) -> tuple[_Sum, _Sum]:
        """Return P and N of the function times a sign."""
        weights, none = sign * self.multipliers, np.zeros(self.Z.shape[1])
        parts = [(self.Z[w > 0], w[w > 0]) for w in (weights, -weights)]
        P, N = (_Sum(*map(torch.from_numpy, (Z, w[:, None] * Z, none))) for Z, w in parts)
        return P, N


@dataclass(frozen=True)
class _Sum:
    """A sum of ``w_i (z_i q)_+`` over rows, w > 0: linear rows apart from those with a kink.

    Attributes
    ----------
    Z : torch.Tensor of shape (m, k)
        Rows that are active on a part of the cones.
    slopes : torch.Tensor of shape (m, k)
        ``w_i z_i``.
    linear : torch.Tensor of shape (k,)
        The sum of the slopes of the rows that are active on all of the cones.
    """

    Z: Tensor
    slopes: Tensor
    linear: Tensor

    def gradients(self, Q: Tensor) -> Tensor:
        """Return subgradients (k, s) at directions (k, s)."""
        active = torch.mm(self.Z, Q).gt_(0)
        return torch.addmm(self.linear[:, None], self.slopes.T, active)

    def narrowed(self, V: Tensor) -> _Sum:
        """Return the same sum on the cones that are spanned by directions V (k, v)."""
        lowest, highest = torch.mm(self.Z, V).aminmax(dim=1)
        on, kinked = lowest >= 0, (lowest < 0) & (highest > 0)
        linear = self.linear + self.slopes[on].sum(dim=0)
        return _Sum(self.Z[kinked], self.slopes[kinked], linear)


@dataclass
class _Block:
    """Cones that are near each other, of one sign of the function.

    Attributes
    ----------
    P, N : _Sum
        Linear where they are so on all cones.
    V : torch.Tensor of shape (k, v)
        Unit vectors that span the cones.
    heights : torch.Tensor of shape (v,)
        P at these.
    slopes : torch.Tensor of shape (k, v)
        Subgradients of P + N at these.
    cones : torch.Tensor of shape (k, m), int
        The generators of each, by their numbers.
    b : torch.Tensor of shape (k, m)
        A combination of subgradients of N for each.
    bounds : torch.Tensor of shape (m,)
    n_steps : int
        Conditional gradient steps that the b have seen.
    """

    P: _Sum
    N: _Sum
    V: Tensor
    heights: Tensor
    slopes: Tensor
    cones: Tensor
    b: Tensor
    bounds: Tensor
    n_steps: int = 0
    spent: int = 0

    @property
    def top(self) -> float:
        return float(self.bounds.max()) if len(self.bounds) else 0.0

    def keep(self, chosen: Tensor) -> None:
        """Keep some of the cones."""
        self.cones, self.b = self.cones[:, chosen], self.b[:, chosen]
        self.bounds = self.bounds[chosen]

    def narrowed(self) -> _Block:
        """Return the same cones, with the rows sorted out that are linear on all of them."""
        used, cones = torch.unique(self.cones, return_inverse=True)
        V = self.V[:, used]
        return _Block(
            self.P.narrowed(V),
            self.N.narrowed(V),
            V,
            self.heights[used],
            self.slopes[:, used],
            cones,
            self.b,
            self.bounds,
            self.n_steps,
        )

    def divided(self) -> list[_Block]:
        """Return two blocks of cones that lie apart."""
        centres = self.V[:, self.cones].sum(dim=1)
        axes = torch.linalg.svd(centres - centres.mean(dim=1, keepdim=True), full_matrices=False)
        order = torch.argsort(axes[0][:, 0] @ centres, stable=True)
        parts = []
        for chosen in torch.tensor_split(order, 2):
            part = _Block(**vars(self))
            part.keep(chosen)
            parts.append(part.narrowed())
        return parts


@dataclass
class _BranchAndBound:
    """The best directions so far, and the cones that may hold better ones.

    Parameters
    ----------
    rows : _Rows
    wanted, closeness : float
        As for :func:`prove`, at the scale of the rows.
    most : int
        Evaluations.
    """

    rows: _Rows
    wanted: float
    closeness: float
    most: int
    values: np.ndarray = field(init=False)
    directions: np.ndarray = field(init=False)
    count: int = field(default=0, init=False)
    pruned: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self.values = np.zeros(0)
        self.directions = np.zeros((self.rows.Z.shape[1], 0))

    def offer(self, Q: np.ndarray) -> None:
        """Keep the best of the directions (k, s)."""
        Q = Q / np.maximum(np.linalg.norm(Q, axis=0), 1e-300)
        values = np.abs(self.rows.multipliers @ np.maximum(self.rows.Z @ Q, 0.0))
        self._merge(values, Q)

    def _merge(self, values: np.ndarray, Q: np.ndarray) -> None:
        values = np.concatenate([self.values, values])
        best = np.argsort(-values, kind="stable")[:KEPT]
        self.directions = np.hstack([self.directions, Q])[:, best]
        self.values = values[best]

    @property
    def best(self) -> float:
        return float(self.values.max(initial=0.0))

    @property
    def target(self) -> float:
        """A cone of no larger bound is done with."""
        # Closer than a few roundings no proof comes.
        return max(self.wanted, self.best * (1.0 + self.closeness), self.best + self._rounding)

    @property
    def _rounding(self) -> float:
        return 4.0 * sqrt(self.rows.Z.shape[1]) * self.rows.slack(200 * STEPS)

    def run(self) -> float:
        """Return a bound on the function."""
        blocks = [self._first(sign) for sign in (1.0, -1.0)]
        queue = [(-block.top, i, block) for i, block in enumerate(blocks)]
        heapq.heapify(queue)
        n_blocks = len(blocks)
        while queue and -queue[0][0] > self.target and self.count < self.most:
            block = heapq.heappop(queue)[2]
            for part in self._advanced(block):
                heapq.heappush(queue, (-part.top, n_blocks, part))
                n_blocks += 1
        return max(self.pruned, self.best, -queue[0][0] if queue else 0.0)

    def _first(self, sign: float) -> _Block:
        """Return the orthants."""
        P, N = self.rows.halves(sign)
        k = self.rows.Z.shape[1]
        axes = torch.eye(k, dtype=torch.float64)
        V = torch.hstack([axes, -axes])
        cones = torch.tensor(list(product(*((j, j + k) for j in range(k))))).T
        heights, slopes, at = self._evaluated(P, N, V)
        b = at[:, cones].mean(dim=1)
        bounds = torch.full_like(b[0], np.inf)
        block = _Block(P, N, V, heights, slopes, cones, b, bounds)
        block.bounds = self._bounded(block, block.cones, block.b, bounds)
        block.n_steps = STEPS + k
        return block

    def _evaluated(self, P: _Sum, N: _Sum, V: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return P (v,) and the subgradients of P + N and of N (k, v) at directions (k, v)."""
        up, down = P.gradients(V), N.gradients(V)
        heights = (up * V).sum(dim=0)
        values = heights - (down * V).sum(dim=0)
        self.count += V.shape[1]
        least = float(self.values[-1]) if len(self.values) == KEPT else 0.0
        better = values > max(self.wanted, least)
        if bool(better.any()):
            self._merge(values[better].numpy(), V[:, better].numpy())
        return heights, up + down, down

    def _advanced(self, block: _Block) -> list[_Block]:
        """Return blocks of the same cones, some of them halved."""
        self._prune(block)
        m = len(block.bounds)
        if m == 0:
            return []
        if m > DIVIDED:
            return block.divided()
        if block.spent > 2 * DIVIDED:
            block = block.narrowed()
        n = min(m, TOGETHER, max(16, (self.most - self.count) // (2 * STEPS)))
        chosen = torch.topk(block.bounds, n).indices if n < m else torch.arange(m)
        cones = self._halved(block, block.cones[:, chosen])
        b, before = block.b[:, chosen].repeat(1, 2), block.bounds[chosen].repeat(2)
        bounds = torch.minimum(before, self._bounded(block, cones, b, before))
        rest = torch.ones(m, dtype=torch.bool)
        rest[chosen] = False
        block.cones = torch.hstack([block.cones[:, rest], cones])
        block.b = torch.hstack([block.b[:, rest], b])
        block.bounds = torch.cat([block.bounds[rest], bounds])
        block.n_steps += STEPS
        block.spent += n
        self._prune(block)
        return [block] if len(block.bounds) else []

    def _prune(self, block: _Block) -> None:
        """Leave out the cones that are done with."""
        left = block.bounds > self.target
        if not bool(left.all()):
            self.pruned = max(self.pruned, float(block.bounds[~left].max()))
            block.keep(left)

    def _halved(self, block: _Block, cones: Tensor) -> Tensor:
        """Return the halves (k, 2 m) of cones (k, m); new generators are added to the block."""
        k, m = cones.shape
        V, slopes = block.V[:, cones], block.slopes[:, cones]
        at, angles = (torch.einsum("cim,cjm->ijm", A, V) for A in (slopes, V))
        bend = torch.diagonal(at).T[None] - at  # of P + N, from j to i
        weights = bend + bend.transpose(0, 1) + ROUNDNESS * (1.0 - angles)
        upper = torch.triu_indices(k, k, 1)
        edge = weights[upper[0], upper[1]].argmax(dim=0)
        i, j = upper[0][edge], upper[1][edge]
        columns = torch.arange(m)
        ends = torch.stack([cones[i, columns], cones[j, columns]]).sort(dim=0).values
        n_old = block.V.shape[1]
        keys, which = torch.unique(ends[0] * n_old + ends[1], return_inverse=True)
        middle = block.V[:, keys // n_old] + block.V[:, keys % n_old]
        middle = middle / (middle * middle).sum(dim=0).sqrt()
        heights, slopes, _ = self._evaluated(block.P, block.N, middle)
        block.V = torch.hstack([block.V, middle])
        block.heights = torch.cat([block.heights, heights])
        block.slopes = torch.hstack([block.slopes, slopes])
        left, right = cones.clone(), cones.clone()
        left[i, columns] = right[j, columns] = n_old + which
        return torch.hstack([left, right])

    def _bounded(self, block: _Block, cones: Tensor, b: Tensor, before: Tensor) -> Tensor:
        """Return bounds (m,) on cones (k, m), with b (k, m) improved in place."""
        target = self.target
        V, heights = block.V[:, cones], block.heights[cones]
        slack = self.rows.slack(block.n_steps + STEPS)
        W = torch.linalg.inv(V.permute(2, 1, 0)).permute(1, 2, 0).contiguous()
        steps = 1.0 / (W * W).sum(dim=0)
        r = (W * heights).sum(dim=1) - b
        c = torch.zeros_like(r)
        bounds, left = torch.full_like(before, np.inf), torch.arange(len(before))
        part = V, heights, W, steps, b.clone(), c, r
        for step in range(STEPS + 1):
            V, heights, W, steps, b_, c, r = part
            _descend(W, steps, c, r)
            inside = _inside(V, W, r)
            found = _bound(V, heights, b_, r, inside, slack)
            bounds[left] = torch.minimum(bounds[left], found)
            if step == STEPS:
                b[:, left] = b_
                break
            open_ = bounds[left] > target
            at = block.N.gradients(inside)
            self.count += inside.shape[1]
            towards = b_ - at
            length = (towards * towards).sum(dim=0).clamp_min(1e-300)
            theta = (-(r * towards).sum(dim=0) / length).clamp(0, 1)
            # On a small cone the last subgradient alone may do better than any r at hand.
            alone = _multiple(V, heights - (V * at[:, None]).sum(dim=0), inside)
            theta = torch.where(alone < found, 1.0, theta)
            # With the best b the bound is at least this: above the target it is time to halve.
            least = ((r + towards) * inside).sum(dim=0)
            b_ -= theta * towards
            r += theta * towards
            b[:, left] = b_
            open_ &= least < target
            chosen = torch.nonzero(open_)[:, 0]
            if len(chosen) == 0:
                break
            left = left[chosen]
            V, heights, W = V[..., chosen], heights[:, chosen], W[..., chosen]
            part = V, heights, W, steps[:, chosen], b_[:, chosen], c[:, chosen], r[:, chosen]
        return bounds


def _descend(W: Tensor, steps: Tensor, c: Tensor, r: Tensor) -> None:
    """Lower ``|r|``, r + W c with c >= 0, by coordinate descent, in place.

    Parameters
    ----------
    W : torch.Tensor of shape (k, k, m)
        Column i of each has product one with generator i and none with the others.
    steps : torch.Tensor of shape (k, m)
        ``1 / |w_i|^2``.
    c : torch.Tensor of shape (k, m)
    r : torch.Tensor of shape (k, m)
    """
    for _ in range(SWEEPS):
        for i in range(len(c)):
            w = W[:, i]
            change = ((w * r).sum(dim=0) * steps[i]).minimum(c[i])
            c[i] -= change
            r -= change * w


def _inside(V: Tensor, W: Tensor, r: Tensor) -> Tensor:
    """Return unit vectors (k, m) of the cones that are near the directions r (k, m)."""
    a = (W * r[:, None]).sum(dim=0).clamp_min_(0.0)
    a = a / a.amax(dim=0).clamp_min(1e-300) + 1e-12
    q = (V * a).sum(dim=1)
    return q / (q * q).sum(dim=0).sqrt()


def _bound(V: Tensor, heights: Tensor, b: Tensor, r: Tensor, q: Tensor, slack: float) -> Tensor:
    """Return the smaller of the bounds by r and by a multiple of q, which leaves no e."""
    k = len(r)
    ends = heights - (V * b[:, None]).sum(dim=0)
    e = (ends - (V * r[:, None]).sum(dim=0)).amax(dim=0).clamp_min(0.0)
    norm = (r * r).sum(dim=0).sqrt()
    found = torch.minimum(norm + sqrt(k) * e, _multiple(V, ends, q)).nan_to_num(nan=np.inf)
    return found * (1.0 + 32.0 * k * ROUNDOFF) + sqrt(k) * (slack + 32.0 * k * ROUNDOFF)


def _multiple(V: Tensor, ends: Tensor, q: Tensor) -> Tensor:
    """Return the least multiples (m,) of q (k, m) that are at least `ends` (k, m) along V."""
    return (ends / (V * q[:, None]).sum(dim=0)).amax(dim=0).clamp_min(0.0)

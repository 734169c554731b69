"""Cones of the ReLU program: projection onto arrangement cones, second-order cone algebra.

All functions work on many blocks at once; a block is one sign and one arrangement.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# -- arrangement cones {q : T Z q >= 0} ------------------------------------------------------


def project_on_cones(Z: Tensor, T: Tensor, C: Tensor, *, max_steps: int | None = None) -> Tensor:
    """Project points onto the cones ``{q : T_j * (Z q) >= 0}``, all in lock step.

    The projection of c is ``c + M mu`` with ``M = Z^T diag(T)`` and mu the solution of
    ``min_{mu >= 0} |c + M mu|`` (Moreau), found by the active-set method of Lawson and Hanson,
    "Solving Least Squares Problems" (1974), chapter 23. At most k rows are in a passive set,
    so a block's state is k row numbers and k weights. Any mu >= 0 gives a length that bounds
    ``max <c, q>`` over unit q in the cone from above: stopping early is safe for a bound.

    Parameters
    ----------
    Z : Tensor of shape (n, k)
    T : Tensor of shape (B, n)
        Signs +1 and -1 of the B cones.
    C : Tensor of shape (B, k)
    max_steps : int, default=None
        Active-set changes at most; None means ``6 k + 20``.

    Returns
    -------
    Q : Tensor of shape (B, k)
    """
    B, k = C.shape
    Zn = Z / Z.norm(dim=1, keepdim=True).clamp(min=1e-300)
    index = torch.zeros(B, k, dtype=torch.long, device=Z.device)
    used = torch.zeros(B, k, dtype=torch.bool, device=Z.device)
    mu = torch.zeros_like(C)
    scale = C.norm(dim=1)
    alive = torch.arange(B, device=Z.device)[scale > 0]
    for _ in range(6 * k + 20 if max_steps is None else max_steps):
        if len(alive) == 0:
            break
        i, u, c, Ta = index[alive], used[alive], C[alive], T[alive]
        R = _passive_rows(Zn, Ta, i, u)
        u, w, back = _towards_least_squares(R, c, u, mu[alive])
        q = c + (R * w[..., None]).sum(1)
        lowest, row = (q @ Zn.T).mul_(Ta).min(1)
        repeated = ((i == row[:, None]) & u).any(1)
        done = ~back & ((lowest >= -1e-13 * scale[alive]) | repeated | u.all(1))
        add = (~back & ~done)[:, None]
        slot = (~u).to(torch.int8).argmax(1, keepdim=True)
        index[alive] = torch.where(add, i.scatter(1, slot, row[:, None]), i)
        used[alive] = torch.where(add, u.scatter(1, slot, True), u)
        mu[alive] = w
        alive = alive[~done]
    return C + (_passive_rows(Zn, T, index, used) * mu[..., None]).sum(1)


def _passive_rows(Z: Tensor, T: Tensor, index: Tensor, used: Tensor) -> Tensor:
    """Return the signed rows of Z in each block's passive set, zero in unused slots: (B, k, k)."""
    return Z[index] * (T.gather(1, index) * used)[..., None]


def _towards_least_squares(
    R: Tensor, c: Tensor, used: Tensor, w: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Move w towards argmin |c + R^T w| until a weight hits zero and leaves the passive set.

    Returns (used, w, whether a weight blocked the full move) per block.
    """
    eye = torch.eye(c.shape[1], dtype=c.dtype, device=c.device)
    # The identity pins unused slots to zero; the rest of it keeps equal rows solvable.
    gram = R @ R.mT + eye * (~used[:, None, :] + 1e-13)
    new = -torch.linalg.solve(gram, (R @ c[..., None])[..., 0]) * used
    bad = used & (new <= 0)
    ratio = torch.where(bad, w / (w - new).clamp(min=1e-300), torch.full_like(w, 2.0))
    step = ratio.amin(1, keepdim=True).clamp(max=1)
    used = used & ~(bad & (ratio <= step))
    w = torch.where(used, (w + step * (new - w)).clamp(min=0), torch.zeros_like(w))
    return used, w, bad.any(1)


# -- second-order cones t >= |s| -------------------------------------------------------------


@dataclass(frozen=True)
class Scaling:
    """Nesterov-Todd scaling ``W = eta W(w0, w)`` of the cones t >= |s| with duals alpha >= |z|."""

    w0: Tensor
    w: Tensor
    eta: Tensor

    def apply(self, x0: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return W (x0, x)."""
        q = (self.w * x).sum(-1)
        y = x + self.w * (x0 + q / (1 + self.w0))[..., None]
        return self.eta * (self.w0 * x0 + q), self.eta[..., None] * y

    def invert(self, x0: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return W^-1 (x0, x)."""
        q = (self.w * x).sum(-1)
        y = x - self.w * (x0 - q / (1 + self.w0))[..., None]
        return (self.w0 * x0 - q) / self.eta, y / self.eta[..., None]

    def squared_inverse(self) -> tuple[Tensor, Tensor]:
        """Return the first row (h00, h0) of W^-2."""
        return (2 * self.w0**2 - 1) / self.eta**2, -2 * (self.w0 / self.eta**2)[..., None] * self.w

    def schur(self, x: Tensor) -> Tensor:
        """Apply to x the curvature left on s once t is eliminated (its dual alpha is fixed)."""
        c = 2 / (2 * self.w0**2 - 1)
        return (x - self.w * (c * (self.w * x).sum(-1))[..., None]) / self.eta[..., None] ** 2

    def schur_matrix(self) -> Tensor:
        """Return the matrices (..., k, k) of :meth:`schur`."""
        c = 2 / (2 * self.w0**2 - 1)
        eye = torch.eye(self.w.shape[-1], dtype=self.w.dtype, device=self.w.device)
        outer = self.w[..., :, None] * self.w[..., None, :]
        return (eye - c[..., None, None] * outer) / self.eta[..., None, None] ** 2


def nesterov_todd(t: Tensor, s: Tensor, alpha: Tensor, z: Tensor) -> Scaling:
    """Return the scaling that maps (alpha, z) and (t, s) to the same point."""
    rs, rz = cone_root(t, s), cone_root(alpha, z)
    s0, s1, z0, z1 = t / rs, s / rs[..., None], alpha / rz, z / rz[..., None]
    gamma = ((1 + s0 * z0 + (s1 * z1).sum(-1)) / 2).sqrt()
    return Scaling((s0 + z0) / (2 * gamma), (s1 - z1) / (2 * gamma)[..., None], (rs / rz).sqrt())


def cone_root(x0: Tensor, x: Tensor) -> Tensor:
    """Return sqrt(x0^2 - |x|^2), accurate near the boundary too."""
    size = x.norm(dim=-1)
    return ((x0 - size) * (x0 + size)).clamp(min=1e-300).sqrt()


def cone_divide(l0: Tensor, l: Tensor, u0: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:  # noqa: E741
    """Return x with ``l o x = u`` in the Jordan algebra of the second-order cone."""
    x0 = (l0 * u0 - (l * u).sum(-1)) / cone_root(l0, l) ** 2
    return x0, (u - l * x0[..., None]) / l0[..., None]


def cone_step(x0: Tensor, x: Tensor, d0: Tensor, d: Tensor) -> float:
    """Return the largest a >= 0 with ``x0 + a d0 >= |x + a d|`` in every block (1e30: no end)."""
    a2 = d0 * d0 - (d * d).sum(-1)
    a1 = x0 * d0 - (x * d).sum(-1)
    a0 = cone_root(x0, x) ** 2
    below = (a1 * a1 - a2 * a0).clamp(min=0).sqrt() - a1
    reach = torch.where(below > 0, a0 / below.clamp(min=1e-300), torch.full_like(a0, 1e30))
    return float(reach.min())

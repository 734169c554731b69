r"""The DC step: from where ascent ends to the ridge.

For a fixed output direction t, :math:`f(q) = t \cdot \Lambda^T (Z q)_+` is a difference of convex
functions: the sum over rows whose slope :math:`s_i = \lambda_i \cdot t` is positive, less that over
rows whose slope is negative. Its maxima on the sphere are vertices, where the hyperplanes of about
k - 1 rows of negative slope meet; ascent along gradients zigzags across such ridges and ends short
of them. One step of the convex-concave procedure (Yuille and Rangarajan, 2003) replaces the convex
part by its tangent at q, and with it the concave part of far rows; the nearest rows E of negative
slope are kept as they are:

.. math:: x = \arg\min_x \tfrac12 |x|^2 - A \cdot x + \sum_{i \in E} (h_i \cdot x)_+ ,
          \qquad h_i = |s_i| z_i ,

A the gradient at q without the rows of E. The step goes to x / |x|. The dual of the problem,
:math:`\min |A - H^T u|` over :math:`0 \le u \le 1`, is solved for many starts at once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sklearn_convexbn.program.units._base import column_norms, unit_columns

#: Rows of negative slope that are kept as they are: so many, or so many times the parameters.
LEAST_KEPT, KEPT_PER_PARAMETER = 24, 3

#: Largest number of steps of a start, and the relative rise below which it has ended.
N_STEPS, LEAST_RISE = 3, 1e-6

#: Largest number of steps of the inner problem, and its relative accuracy.
INNER_STEPS, INNER_TOLERANCE = 25, 1e-9

#: Steps of the inner problem that are counted on.
USUAL_INNER_STEPS = 15

#: Numbers in the largest arrays of starts that are worked on together.
BLOCK_ELEMENTS = {"cpu": 2**19, "cuda": 2**26}


def operations(n: int, k: int) -> float:
    """Return about how many operations the steps of one start take, on n rows of k numbers."""
    inner = 2.0 * USUAL_INNER_STEPS * n_kept(n, k) * k * k
    return N_STEPS * (4.0 * n * k + inner)


def n_kept(n: int, k: int) -> int:
    """Return how many of n rows of negative slope are kept as they are, for k parameters."""
    return min(n, max(LEAST_KEPT, KEPT_PER_PARAMETER * k))


class DCStep:
    """DC steps for one dual point.

    Parameters
    ----------
    Z : torch.Tensor of shape (n, k)
        Rows, none of them pooled.
    Lambda : torch.Tensor of shape (n, C)
        Dual point.
    """

    def __init__(self, Z: Tensor, Lambda: Tensor) -> None:
        self.scale = max(float(Lambda.abs().max()), 1e-300)  # keeps squares from underflow
        self.Z, self.Lambda = Z.double(), Lambda.double() / self.scale
        n, k = self.Z.shape
        self.n_kept = n_kept(n, k)
        self.lengths = column_norms(self.Z.T)
        self.together = max(1, BLOCK_ELEMENTS[Z.device.type] // max(n, self.n_kept * k))

    def polished(self, directions: Tensor) -> tuple[Tensor, Tensor]:
        """Return the best values (S,) and units (k, S) that steps from units of norm one meet."""
        parts = [self._polished(q.T) for q in directions.double().split(self.together, dim=1)]
        values, units = zip(*parts, strict=True)
        return torch.cat(values) * self.scale, torch.cat(units).T

    def _at(self, Q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return values (S,), products (S, n) and slopes (S, n) of units Q (S, k)."""
        H = Q @ self.Z.T
        T = H.clamp_min(0) @ self.Lambda
        values = torch.linalg.vector_norm(T, dim=1)
        return values, H, (T / values.clamp_min(1e-300)[:, None]) @ self.Lambda.T

    def _polished(self, Q: Tensor) -> tuple[Tensor, Tensor]:
        best, H, slopes = self._at(Q)
        best_Q, rising = Q.clone(), torch.arange(len(Q), device=Q.device)
        for _ in range(N_STEPS):
            X = self._step(H, slopes, slopes * (H > 0))
            values, H, slopes = self._at(X)
            rise = values - best[rising]
            better = rise > 0
            best_Q[rising[better]] = X[better]
            go_on = rise > LEAST_RISE * best[rising]
            best[rising[better]] = values[better]
            rising, H, slopes = rising[go_on], H[go_on], slopes[go_on]
            if len(rising) == 0:
                break
        return best, best_Q

    def _nearest(self, H: Tensor, among: Tensor, count: int) -> Tensor:
        """Return the numbers (S, count) of the rows nearest to units, first those that are among.

        Parameters
        ----------
        H : torch.Tensor of shape (S, n)
            Products.
        among : torch.Tensor of shape (S, n), bool
        count : int
            At most n are returned.
        """
        distances = torch.where(among, H.abs() / self.lengths.clamp_min(1e-300), torch.inf)
        return distances.topk(min(count, H.shape[1]), dim=1, largest=False, sorted=False).indices

    def _step(self, H: Tensor, slopes: Tensor, weights: Tensor) -> Tensor:
        """Return units (S, k) after one step.

        Parameters
        ----------
        H, slopes : torch.Tensor of shape (S, n)
        weights : torch.Tensor of shape (S, n)
            Slopes of the rows that are taken to be active, zero for the others.
        """
        kept = self._nearest(H, slopes < 0, self.n_kept)
        bends = slopes.gather(1, kept).neg_().clamp_min_(0)  # those of other rows are none
        Z = self.Z[kept]
        counted = torch.where(bends > 0, weights.gather(1, kept), 0.0)
        A = weights @ self.Z - torch.bmm(counted[:, None], Z)[:, 0]
        X = nearest_of_zonotope(bends[:, :, None] * Z, A)
        return unit_columns(X.T).T


def nearest_of_zonotope(H: Tensor, A: Tensor) -> Tensor:
    """Return ``x = A - H^T u`` (S, k) of least norm over ``0 <= u <= 1``.

    It also minimises ``|x|^2 / 2 - A . x + sum_j (h_j . x)_+``.

    Parameters
    ----------
    H : torch.Tensor of shape (S, m, k)
    A : torch.Tensor of shape (S, k)
    """
    size = torch.maximum(H.abs().amax(dim=(1, 2)), A.abs().amax(dim=1)).clamp_min(1e-300)
    inner = _InnerProblem(H / size[:, None, None], A / size[:, None])
    for _ in range(INNER_STEPS):
        if inner.is_solved:
            break
        inner.step()
    return inner.X * size[:, None]


class _InnerProblem:
    """Primal-dual steps with Mehrotra's (1992) correction, of problems of size one.

    ``h . x = w - y`` with the multipliers y and w >= 0 of ``u >= 0`` and ``v = 1 - u >= 0``.
    """

    def __init__(self, H: Tensor, A: Tensor) -> None:
        self.H, self.A = H, A
        self.eye = torch.eye(A.shape[1], dtype=A.dtype, device=A.device)
        self.most = 1e12 / (H * H).sum(dim=(1, 2)).clamp_min(1e-30)[:, None]
        self._move(torch.full_like(H[:, :, 0], 0.5))
        start = self.heights.abs().mean(dim=1, keepdim=True) + 1e-12
        self.y = (-self.heights).clamp_min(0) + start
        self.w = self.heights.clamp_min(0) + start

    def _move(self, u: Tensor) -> None:
        self.u, self.v = u, 1.0 - u
        self.X = self.A - self._back(u)
        self.heights = self._times(self.X)

    def _times(self, x: Tensor) -> Tensor:
        return torch.bmm(self.H, x[:, :, None])[:, :, 0]

    def _back(self, u: Tensor) -> Tensor:
        return torch.bmm(u[:, None], self.H)[:, 0]

    @property
    def products(self) -> Tensor:
        """The gaps (S,) that are left."""
        return (self.u * self.y + self.v * self.w).sum(dim=1)

    @property
    def is_solved(self) -> bool:
        least = INNER_TOLERANCE * (self.X * self.X).sum(dim=1)
        return bool((self.products <= least + 1e-16).all())

    def step(self) -> None:
        """Take one step, predicted and corrected."""
        u, v, y, w, products = self.u, self.v, self.y, self.w, self.products
        D = torch.minimum(1.0 / (y / u + w / v), self.most)
        K = torch.baddbmm(self.eye, self.H.transpose(1, 2), D[:, :, None] * self.H)
        factor = torch.linalg.cholesky_ex(K).L
        du, dy, dw = self._direction(D, factor, -u * y, -v * w)
        a = self._longest(du, dy, dw)
        ahead = ((u + a * du) * (y + a * dy) + (v - a * du) * (w + a * dw)).sum(dim=1)
        centre = (ahead / products) ** 3 * products / (2.0 * u.shape[1])
        targets = centre[:, None] - u * y - du * dy, centre[:, None] - v * w + du * dw
        du, dy, dw = self._direction(D, factor, *targets)
        a = 0.99 * self._longest(du, dy, dw)
        # A product of 1e-14 and 1e-100 is still far from a denormal number.
        self.y, self.w = (y + a * dy).clamp_min(1e-100), (w + a * dw).clamp_min(1e-100)
        self._move((u + a * du).clamp(1e-14, 1.0 - 1e-14))

    def _direction(
        self, D: Tensor, factor: Tensor, of_y: Tensor, of_w: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the step of u, y and w that changes u y and v w by so much."""
        z = D * (of_y / self.u - of_w / self.v - (self.w - self.y - self.heights))
        p = torch.cholesky_solve(self._back(z)[:, :, None], factor)[:, :, 0]
        du = z - D * self._times(p)
        return du, (of_y - self.y * du) / self.u, (of_w + self.w * du) / self.v

    def _longest(self, du: Tensor, dy: Tensor, dw: Tensor) -> Tensor:
        """Return the part (S, 1) of a step that stays within the bounds."""
        ratios = torch.stack([-du / self.u, du / self.v, -dy / self.y, -dw / self.w])
        return 1.0 / ratios.amax(dim=(0, 2)).clamp_min(1.0)[:, None]

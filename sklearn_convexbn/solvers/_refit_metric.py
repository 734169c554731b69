"""Metrics that do not couple outputs, for the refits of several: ridge problems and Hessians.

What :mod:`_multi_output_refit` asks of the quadratic model of the loss: through the k columns of
the neurons or, where there are more of them than rows, through the n rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sklearn_convexbn.data._pooling import columns_of
from sklearn_convexbn.solvers._scale_newton import SMALLEST_SCALE
from sklearn_convexbn.support._linear_algebra import safe_cholesky


@dataclass(frozen=True)
class Scales:
    """Scales eta, the indices of the columns of positive ones, the ridge solution there, phi.

    `factor` is the Cholesky factor of ``alpha + diag(eta)^1/2 H diag(eta)^1/2``.
    """

    eta: Tensor
    index: Tensor
    V: Tensor
    factor: Tensor
    phi: float


@dataclass(frozen=True)
class Metric(ABC):
    """A quadratic model H of the loss in the k columns of the neurons `rows`, `cells` for each.

    `means` (B, k) are weighted means of the columns, for all outputs together (B = 1) or for each;
    scales are one for each neuron.
    """

    means: Tensor
    alpha: float
    rows: Tensor
    cells: int

    @abstractmethod
    def part(self, rows: Tensor) -> GramMetric:
        """Return the metric of some of its neurons, numbered as in `rows`."""

    @abstractmethod
    def apply(self, V: Tensor) -> Tensor:
        """Return the product of the metric and V (k, C)."""

    @abstractmethod
    def ridge(self, eta: Tensor, R: Tensor) -> Scales:
        """Solve ``(H + alpha diag(1 / eta)) V = R`` where eta is positive."""

    @abstractmethod
    def coupled(self, at: Scales, w: Tensor, rows: Tensor) -> Tensor:
        """Return ``sum_c w_jc (C_c)_jk w_kc`` of the columns `rows`."""

    def split(self, V: Tensor) -> Tensor:
        """Return V (k, C) as (B, k, C / B)."""
        B = len(self.means)
        return V.reshape(len(V), B, V.shape[1] // B).permute(1, 0, 2)

    def join(self, V: Tensor) -> Tensor:
        """Return the inverse of `split`."""
        return V.permute(1, 0, 2).flatten(1)

    def positive(self, eta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the columns of positive scales, the scales without tiny ones, and their roots."""
        keep = eta > SMALLEST_SCALE * eta.amax()
        rows, eta = keep.nonzero()[:, 0], torch.where(keep, eta, 0.0)
        root = eta[rows].sqrt().repeat_interleave(self.cells).unsqueeze(1)
        return columns_of(rows, self.cells), eta, root

    def phi(self, eta: Tensor, R: Tensor, V: Tensor) -> float:
        """Return phi of the scales whose ridge solution is V."""
        return 0.5 * float(self.alpha * eta.sum() - (R * V).sum())

    def scale_hessian(self, at: Scales, w: Tensor, rows: Tensor) -> Tensor:
        """Return the Hessian of phi in the scales `rows`."""
        H = self.coupled(at, w, columns_of(rows, self.cells)) / self.alpha**2
        return H.unflatten(1, (-1, self.cells)).unflatten(0, (-1, self.cells)).sum(dim=(1, 3))


@dataclass(frozen=True)
class GramMetric(Metric):
    """The metric by its matrices: H (B, k, k)."""

    H: Tensor

    def part(self, rows: Tensor) -> GramMetric:
        if len(rows) == len(self.rows):
            return self
        i = columns_of(torch.searchsorted(self.rows, rows), self.cells)
        H = self.H[:, i[:, None], i]
        return replace(self, H=H, means=self.means[:, i], rows=rows)

    def apply(self, V: Tensor) -> Tensor:
        return self.join(self.H @ self.split(V))

    def ridge(self, eta: Tensor, R: Tensor) -> Scales:
        index, eta, root = self.positive(eta)
        # One output at a time: its matrices stay in the cache.
        factor = torch.stack([self._factor(H[index[:, None], index], root) for H in self.H])
        right, V = root * self.split(R[index]), torch.zeros_like(R)
        V[index] = self.join(root * torch.cholesky_solve(right, factor))
        return Scales(eta, index, V, factor, self.phi(eta, R, V))

    def _factor(self, H: Tensor, root: Tensor) -> Tensor:
        matrix = H.mul_(root).mul_(root.T)
        matrix.diagonal().add_(self.alpha)
        return safe_cholesky(matrix)

    def coupled(self, at: Scales, w: Tensor, rows: Tensor) -> Tensor:
        root = at.eta.repeat_interleave(self.cells)[at.index].sqrt().unsqueeze(1)
        total = self.H.new_zeros(len(rows), len(rows))
        for H, factor, w_c in zip(self.H, at.factor, self.split(w[rows]), strict=True):
            columns = H[:, rows]
            half = torch.linalg.solve_triangular(factor, root * columns[at.index], upper=False)
            total += (columns[rows] - half.T @ half) * (w_c @ w_c.T)
        return total


@dataclass(frozen=True)
class RowMetric(Metric):
    """The metric of one matrix ``H = B^T B`` for all outputs, through the rows of B (n, k).

    With ``K = alpha + B diag(eta) B^T`` the C of the Hessian is ``alpha B^T K^-1 B``. The `factor`
    of scales is the inverse of K.
    """

    B: Tensor

    def part(self, rows: Tensor) -> GramMetric:
        i = columns_of(torch.searchsorted(self.rows, rows), self.cells)
        B = self.B[:, i]
        return GramMetric(self.means[:, i], self.alpha, rows, self.cells, (B.T @ B)[None])

    def apply(self, V: Tensor) -> Tensor:
        return self.B.T @ (self.B @ V)

    def ridge(self, eta: Tensor, R: Tensor) -> Scales:
        index, eta, root = self.positive(eta)
        scaled, V = self.B[:, index] * root.T, torch.zeros_like(R)
        K = scaled @ scaled.T
        K.diagonal().add_(self.alpha)
        inverse, right = torch.cholesky_inverse(safe_cholesky(K)), root * R[index]
        found = torch.zeros_like(right)
        for _ in range(2):  # the second one refines
            error = right - self.alpha * found - scaled.T @ (scaled @ found)
            found += (error - scaled.T @ (inverse @ (scaled @ error))) / self.alpha
        V[index] = root * found
        return Scales(eta, index, V, inverse, self.phi(eta, R, V))

    def curved(self, at: Scales, X: Tensor) -> Tensor:
        """Return ``C X`` for X (k, C)."""
        return self.B.T @ (self.alpha * at.factor @ (self.B @ X))

    def scale_curvatures(self, at: Scales, w: Tensor) -> Tensor:
        """Return the diagonal of the Hessian of phi in the scales, as if each were alone.

        A column alone has ``C = H / (1 + eta H / alpha)``.
        """
        H = self.B.square().sum(dim=0)
        C = H / (1.0 + at.eta.repeat_interleave(self.cells) * H / self.alpha)
        weighed = C * w.square().sum(dim=1) / self.alpha**2
        return weighed.reshape(-1, self.cells).sum(dim=1)

    def coupled(self, at: Scales, w: Tensor, rows: Tensor) -> Tensor:
        B = self.B[:, rows]
        return (B.T @ (self.alpha * at.factor @ B)) * (w[rows] @ w[rows].T)


def scale_product(metric: RowMetric, at: Scales, w: Tensor, x: Tensor) -> Tensor:
    """Return the product of the Hessian of phi in all scales and x, without the Hessian."""
    curved = metric.curved(at, w * x.repeat_interleave(metric.cells).unsqueeze(1))
    along = (w * curved).sum(dim=1) / metric.alpha**2
    return along.reshape(-1, metric.cells).sum(dim=1)

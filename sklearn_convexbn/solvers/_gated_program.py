"""The gated program in torch, for any number of outputs: operators, norms and working sets."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sklearn_convexbn.program._objective import Objective
from sklearn_convexbn.program._problem import Neurons, Problem
from sklearn_convexbn.support._linear_algebra import spectral_norms

#: Least number of gates that a round may add.
NEW_GATES = 64


@dataclass(frozen=True)
class Point:
    """Blocks S (m, k, G C) behind distinct gates (m,), and b (C,) in centred columns."""

    gates: Tensor
    S: Tensor
    b: Tensor


class GatedProgram(Objective[Tensor]):
    """The gated program's arrays on a torch device.

    Where units are pooled over K patches of a sample to G cells, Z and M have n K rows and a block
    is (k, G C), cell by cell.
    """

    def __init__(self, problem: Problem, device: str, dtype: torch.dtype) -> None:
        def tensor(a: np.ndarray) -> Tensor:
            return torch.as_tensor(np.ascontiguousarray(a), device=device).to(dtype)

        super().__init__(**problem.converted(tensor))
        self.Z, self.M, self.pooling = tensor(problem.Z), tensor(problem.patterns), problem.pooling
        # With b fitted, columns are centred: the loss then hardly couples b and the blocks.
        self.centres = self._correlations(self.p[:, None]) * self.fit_intercept
        self.eps = torch.finfo(dtype).eps

    def restricted(self, gates: Tensor) -> GatedProgram:
        """Return the same program on some of the gates."""
        part = copy(self)
        part.M, part.centres = self.M[:, gates], self.centres[gates]
        return part

    def value(self, point: Point) -> float:
        """Return the objective of a point on the gates of this program."""
        mass = float(singular_values(point.S).sum())
        return self.mean_loss(self.fit(point.S) + point.b) + self.alpha * mass

    def fit(self, S: Tensor) -> Tensor:
        """Return ``sum_g D_g Z S_g``, pooled, (n, C) in centred columns; S is (P, k, G C)."""
        (n, k), pooling = self.Z.shape, self.pooling
        rows = (self.M @ S.flatten(1)).view(n, k, S.shape[2])
        F = pooling.fit((self.Z.unsqueeze(1) @ rows).squeeze(1))
        return F - torch.einsum("mkg,mkgc->c", self.centres, self._by_cells(S))

    def adjoint(self, G: Tensor) -> Tensor:
        """Return ``Z^T D_g G`` (P, k, G C) of G (n, C), spread, in centred columns."""
        w = self._correlations(G)
        return w - (self.centres.unsqueeze(3) * G.sum(dim=0)).flatten(2)

    def _correlations(self, G: Tensor) -> Tensor:
        G = self.pooling.on_rows(G)
        (n, k), C = self.Z.shape, G.shape[1]
        spread = (self.Z.unsqueeze(2) * G.unsqueeze(1)).reshape(n, k * C)
        return (spread.T @ self.M).T.reshape(self.M.shape[1], k, C)

    def _by_cells(self, S: Tensor) -> Tensor:
        """Return blocks (P, k, G C) as (P, k, G, C)."""
        return S.unflatten(2, (self.pooling.n_cells, -1))

    def squared_norm(self) -> float:
        """Return the largest eigenvalue of A^T diag(p) A of the stacked columns, nearly."""
        # Power iteration from no special direction; the line search of the proximal steps
        # makes up for what is missing.
        S = torch.arange(self.centres.numel(), device=self.Z.device).to(self.Z).cos()
        S, size = S.view(self.centres.shape), 0.0
        for _ in range(20):
            S = S / float(torch.linalg.vector_norm(S).clamp_min(1e-30))
            S = self.adjoint(self.p[:, None] * self.fit(S))
            size, last = float(torch.linalg.vector_norm(S)), size
            if abs(size - last) <= 1e-3 * size:
                break
        return max(size, 1e-30)

    def start(self, problem: Problem, neurons: Neurons | None) -> Point:
        """Return the point of a network, or the constant model."""
        if neurons is None or neurons.gates is None:
            neurons = problem.nothing[0]
        neurons = problem.with_best_intercept(neurons)[0]
        assert neurons.gates is not None
        which, group = np.unique(neurons.gates, return_inverse=True)
        S = np.zeros((len(which), self.Z.shape[1], problem.n_weights))
        products = neurons.directions[:, :, None] * neurons.weights[:, None, :]
        np.add.at(S, group.ravel(), products)
        gates = torch.as_tensor(which, dtype=torch.long, device=self.Z.device)
        blocks = torch.as_tensor(S).to(self.Z)
        shift = torch.einsum("mkg,mkgc->c", self.centres[gates], self._by_cells(blocks))
        return Point(gates, blocks, torch.as_tensor(neurons.intercept).to(self.Z) + shift)

    def neurons(self, point: Point) -> Neurons:
        blocks = self._by_cells(point.S)
        b = point.b - torch.einsum("mkg,mkgc->c", self.centres[point.gates], blocks)
        which, U, V = balanced_factors(point.S)
        q, v, intercept = (a.cpu().numpy().astype(np.float64) for a in (U, V, b))
        gates = point.gates[which].cpu().numpy().astype(np.intp)
        return Neurons.from_products(q, v, intercept, gates)

    def look_at_all_gates(self, point: Point) -> tuple[Tensor, float, float]:
        """Return the norm of every gate's correlation (P,), the objective and ``max/alpha - 1``."""
        part = self.restricted(point.gates)
        norms = spectral_norms(self.adjoint(self.gradient(part.fit(point.S) + point.b)))
        largest = float(norms.amax()) if len(norms) else 0.0
        return norms, part.value(point), max(largest / self.alpha - 1.0, 0.0)

    def working_set(self, point: Point, norms: Tensor) -> Point:
        """Add zero blocks for the worst violators: as many as are active, at least 64."""
        score = norms.clone()
        score[point.gates] = 0.0
        worst = score.topk(min(len(norms), max(NEW_GATES, len(point.gates)))).indices
        new = worst[score[worst] > self.alpha]
        gates, order = torch.cat([point.gates, new]).sort()
        zeros = point.S.new_zeros(len(new), *point.S.shape[1:])
        return Point(gates, torch.cat([point.S, zeros])[order], point.b)


def singular_values(X: Tensor) -> Tensor:
    """Return the singular values (m, r) of matrices (m, k, C)."""
    return torch.linalg.svdvals(X) if len(X) else X.new_zeros(0, min(X.shape[1:]))


def balanced_factors(S: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return (block, U, V) of every singular triple, ``S_g = sum_j U_j V_j^T``, |U_j| = |V_j|."""
    left, s, right = torch.linalg.svd(S, full_matrices=False)
    largest = float(s.amax()) if len(s) else 0.0
    which, triple = (s > 100 * torch.finfo(S.dtype).eps * largest).nonzero(as_tuple=True)
    root = s[which, triple].sqrt().unsqueeze(1)
    return which, left[which, :, triple] * root, right[which, triple] * root

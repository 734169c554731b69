"""Programs on fixed gates, and the judges of their answers: the same for every solver.

For ``P`` gates, one output and no intercept, with ``Z = [sqrt(n) U, 1]`` from the thin SVD of
the centred inputs and ``D_g = diag(Z G_g >= 0)`` for normal ``G``, the gated program is::

    minimise_S  mean_i loss(F_i, y_i) + alpha * sum_g |S_g|_2,   F = sum_g D_g Z S_g

and the exact ReLU program on the same arrangements::

    minimise_{S+, S-}  mean_i loss(F_i, y_i) + alpha * sum_g (|S+_g|_2 + |S-_g|_2),
    F = sum_g D_g Z (S+_g - S-_g),   (2 D_g - I) Z S+_g >= 0,   (2 D_g - I) Z S-_g >= 0.

The loss is ``(f - y)^2 / 2`` (with ``y`` standardised) or ``log(1 + exp f) - y f``. Nothing here is
the package's, so that it does not judge itself.
"""

import contextlib
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, NamedTuple, Self

from _suite.data import Array, load

import numpy as np
from scipy.optimize import lsq_linear, nnls
from scipy.special import entr, expit

Loss = Literal["squared", "logistic"]


class Verdict(NamedTuple):
    """Objective of an answer once it is feasible, a lower bound of the optimum, and `violation`.

    That is how far the answer was outside its cones: the largest ``-(2 D_g - I) Z S_g``.
    """

    primal: float
    dual: float
    violation: float = 0.0

    @property
    def gap(self) -> float:
        return (self.primal - self.dual) / self.primal


@dataclass(frozen=True)
class Objective(ABC):
    """One data set with its gates, and a penalty."""

    name: str
    loss: Loss
    Z: Array  # (n, r + 1)
    y: Array  # (n,)
    masks: Array  # (n, P): the diagonals of the D_g, entries 0.0 and 1.0
    gates: Array  # (r + 1, P)
    alpha: float = math.nan
    bound: float = math.nan  # of the optimum, where it is not taken from each answer

    @classmethod
    def of(cls, name: str, loss: Loss, n_gates: int, seed: int = 0) -> Self:
        """Load a data set, for the logistic loss cut at the median if needed, and draw gates."""
        X, y = load(name)
        if loss == "logistic":
            y = (y > np.median(y)).astype(np.float64) if len(np.unique(y)) > 2 else y
        else:
            y = (y - y.mean()) / y.std()
        Z = whiten(X)[0]
        gates = np.random.default_rng(seed).standard_normal((Z.shape[1], n_gates))
        return cls.on(name, loss, Z, y, gates)

    @classmethod
    def on(cls, name: str, loss: Loss, Z: Array, y: Array, gates: Array) -> Self:
        """Keep one gate of each non-empty pattern."""
        masks = Z @ gates >= 0
        _, first = np.unique(masks, axis=1, return_index=True)
        keep = np.sort(first[masks[:, first].any(axis=0)])
        chosen = np.ascontiguousarray(masks[:, keep], dtype=np.float64)
        return cls(name, loss, np.ascontiguousarray(Z), y, chosen, gates[:, keep].copy())

    def at(self, fraction: float) -> Self:
        """Return the objective with ``alpha = fraction * alpha_max``."""
        return replace(self, alpha=fraction * self.alpha_max)

    @cached_property
    def alpha_max(self) -> float:
        """The smallest penalty for which zero is optimal."""
        return self.largest_score(residual(np.zeros_like(self.y), self.y, self.loss))

    @property
    def facts(self) -> str:
        """The objective in words."""
        return (
            f"- {self.name}: {self.loss} loss, n = {len(self.y)}, r + 1 = {self.Z.shape[1]}, "
            f"P = {self.masks.shape[1]}, alpha_max = {self.alpha_max:.4g}"
        )

    def predict(self, S: Array) -> Array:
        """Return ``F = sum_g D_g Z S_g`` of one block S_g a gate."""
        return np.einsum("ij,ij->i", self.masks, self.Z @ S.T)

    def correlate(self, v: Array) -> Array:
        """Return the (P, r + 1) array of ``Z^T D_g v``."""
        return self.masks.T @ (self.Z * v[:, None])

    def lower_bound(self, F: Array) -> float:
        """Return the dual value at minus the loss's gradient, scaled until it is feasible."""
        Lambda = residual(F, self.y, self.loss)
        return dual_value(Lambda, self.largest_score(Lambda), self.y, self.loss, self.alpha)

    def primal(self, F: Array, S: Array) -> float:
        """Return the objective of blocks whose predictions are F."""
        blocks = S.reshape(-1, S.shape[-1])
        return primal_value(F, blocks, self.y, self.loss, self.alpha)

    @abstractmethod
    def largest_score(self, v: Array) -> float:
        """Return the largest correlation of v (n,) with a unit vector behind a gate."""

    @abstractmethod
    def judge(self, S: Array) -> Verdict:
        """Return the primal value of an answer and a lower bound of the optimum."""


class GatedObjective(Objective):
    """The gated program; an answer S has shape (P, r + 1)."""

    def largest_score(self, v: Array) -> float:
        return float(np.linalg.norm(self.correlate(v), axis=1).max())

    def judge(self, S: Array) -> Verdict:
        return self.judged(self.predict(S), S)

    def judged(self, F: Array, S: Array) -> Verdict:
        """Judge an answer whose predictions are known."""
        return Verdict(self.primal(F, S), self.lower_bound(F))


class ListObjective(Objective):
    """The exact ReLU program; an answer holds S+ and S- in shape (2, P, r + 1).

    The judge first moves every block to the nearest point of its cone, so that primal values
    are those of feasible answers; this is not on the solver's clock. The lower bound is the
    same for all answers: that of a reference, see :meth:`with_bound_of`.
    """

    def with_bound_of(self, S: Array) -> Self:
        """Return the objective with the dual value of an answer near the optimum as its bound."""
        return replace(self, bound=self.lower_bound(self.fit(self.projected(S))))

    def largest_score(self, v: Array) -> float:
        correlations = self.correlate(v)
        blocks = np.stack([correlations, -correlations])
        return float(np.linalg.norm(self.projected(blocks), axis=-1).max())

    def fit(self, S: Array) -> Array:
        """Return ``F = sum_g D_g Z (S+_g - S-_g)``."""
        return self.predict(S[0] - S[1])

    def projected(self, S: Array) -> Array:
        """Return the blocks (2, P, r + 1) moved to the nearest points of their cones."""
        cones = [(2.0 * mask - 1.0)[:, None] * self.Z for mask in self.masks.T]
        return np.array([[project(A, s) for A, s in zip(cones, T, strict=True)] for T in S])

    def judge(self, S: Array) -> Verdict:
        slack = (2.0 * self.masks - 1.0) * np.einsum("ij,agj->aig", self.Z, S)
        T = self.projected(S)
        return Verdict(self.primal(self.fit(T), T), self.bound, max(0.0, -float(slack.min())))


def whiten(X: Array) -> tuple[Array, Array]:
    """Return ``Z = [sqrt(n) U, 1]`` (n, r + 1) and the principal directions V (d, r)."""
    U, s, Vt = np.linalg.svd(X - X.mean(axis=0), full_matrices=False)
    kept = s >= 1e-10 * s[0]
    return np.hstack([math.sqrt(len(X)) * U[:, kept], np.ones((len(X), 1))]), Vt[kept].T


def project(A: Array, s: Array) -> Array:
    """Return the point of the cone ``{x : A x >= 0}`` nearest to s, A (n, k).

    By Moreau: ``s + A^T u`` with the u >= 0 that makes this smallest. nnls has been seen to fail
    for degenerate rows, and before SciPy 1.15 to cycle: its answer is checked.
    """
    size = np.linalg.norm(s)
    if size == 0.0 or (A @ s).min() >= 0.0:
        return s
    M, unit = (A / np.maximum(np.linalg.norm(A, axis=1), 1e-300)[:, None]).T, s / size
    with contextlib.suppress(RuntimeError):
        x = unit + M @ nnls(M, -unit, maxiter=20 * max(M.shape))[0]
        if np.linalg.norm(x) <= 1.0 + 1e-9 and (M.T @ x).min() >= -1e-7:
            return size * x
    return size * (unit + M @ lsq_linear(M, -unit, bounds=(0.0, np.inf), tol=1e-14).x)


def residual(F: Array, y: Array, loss: Loss) -> Array:
    """Return minus the gradient of the mean loss."""
    return (y - (F if loss == "squared" else expit(F))) / len(y)


def primal_value(F: Array, S: Array, y: Array, loss: Loss, alpha: float) -> float:
    """Return the objective at blocks S (any number, r + 1), whose predictions are F."""
    losses = 0.5 * (F - y) ** 2 if loss == "squared" else np.logaddexp(0.0, F) - y * F
    return float(losses.mean() + alpha * np.linalg.norm(S, axis=1).sum())


def dual_value(Lambda: Array, largest_score: float, y: Array, loss: Loss, alpha: float) -> float:
    """Return the dual objective at ``Lambda`` shrunk until it is feasible."""
    n = len(y)
    c = min(1.0, alpha / largest_score) if largest_score > 0 else 1.0
    if loss == "squared":
        return float(c * (Lambda @ y) - n * c**2 * (Lambda @ Lambda) / 2)
    u = np.clip(y - c * n * Lambda, 0.0, 1.0)
    return float(np.mean(entr(u) + entr(1 - u)))

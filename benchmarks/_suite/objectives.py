"""Programs on fixed gates, and the judges of their answers: the same for every solver.

For ``P`` gates, one output and no intercept, with ``Z = [sqrt(n) U, 1]`` from the thin SVD of
the centred inputs and ``D_g = diag(Z G_g >= 0)`` for normal ``G``, the gated program is::

    minimise_S  mean_i loss(F_i, y_i) + alpha * sum_g |S_g|_2,   F = sum_g D_g Z S_g

and the exact ReLU program on the same arrangements::

    minimise_{S+, S-}  mean_i loss(F_i, y_i) + alpha * sum_g (|S+_g|_2 + |S-_g|_2),
    F = sum_g D_g Z (S+_g - S-_g),   (2 D_g - I) Z S+_g >= 0,   (2 D_g - I) Z S-_g >= 0.

The loss is ``(f - y)^2 / 2`` (with ``y`` standardised) or ``log(1 + exp f) - y f``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, Self

import numpy as np
from scipy.special import entr, expit

from _suite.data import Array, load
from sklearn_convexbn._arrangements import project_onto_cone

Loss = Literal["squared", "logistic"]


@dataclass(frozen=True)
class Verdict:
    """What a judge says of an answer.

    Attributes
    ----------
    primal : float
        Objective of the answer, once it is feasible.
    dual : float
        A lower bound of the optimum.
    violation : float
        How far the answer was outside its cones: the largest ``-(2 D_g - I) Z S_g`` of all rows
        and blocks, in standard deviations of the target for the squared loss.
    """

    primal: float
    dual: float
    violation: float = 0.0

    @property
    def gap(self) -> float:
        return (self.primal - self.dual) / self.primal


@dataclass(frozen=True)
class Objective(ABC):
    """One data set with its gates, and a penalty.

    Attributes
    ----------
    name : str
    loss : {"squared", "logistic"}
    Z : ndarray of shape (n, r + 1)
    y : ndarray of shape (n,)
    masks : ndarray of shape (n, P)
        Diagonals of the D_g, entries 0.0 and 1.0.
    gates : ndarray of shape (r + 1, P)
    alpha : float
    """

    name: str
    loss: Loss
    Z: Array
    y: Array
    masks: Array
    gates: Array
    alpha: float = math.nan

    @classmethod
    def of(cls, name: str, loss: Loss, n_gates: int, seed: int = 0) -> Self:
        """Load a data set, cut at the median for the logistic loss if it has more values."""
        X, y = load(name)
        if loss == "logistic" and len(np.unique(y)) > 2:
            y = (y > np.median(y)).astype(np.float64)
        return cls.sample(name, X, y, loss, n_gates, seed)

    @classmethod
    def sample(cls, name: str, X: Array, y: Array, loss: Loss, n_gates: int, seed: int = 0) -> Self:
        """Whiten the inputs and draw the gates, keeping one of each non-empty pattern."""
        if loss == "squared":
            y = (y - y.mean()) / y.std()
        U, s, _ = np.linalg.svd(X - X.mean(axis=0), full_matrices=False)
        U = U[:, s >= 1e-10 * s[0]]
        Z = np.hstack([math.sqrt(len(y)) * U, np.ones((len(y), 1))])
        gates = np.random.default_rng(seed).standard_normal((Z.shape[1], n_gates))
        masks = Z @ gates >= 0
        _, first = np.unique(masks, axis=1, return_index=True)
        keep = np.sort(first[masks[:, first].any(axis=0)])
        return cls(
            name,
            loss,
            np.ascontiguousarray(Z),
            y,
            np.ascontiguousarray(masks[:, keep], dtype=np.float64),
            np.ascontiguousarray(gates[:, keep]),
        )

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

    def lower_bound(self, F: Array) -> float:
        """Return the dual value at minus the loss's gradient, scaled until it is feasible."""
        Lambda = residual(F, self.y, self.loss)
        return dual_value(Lambda, self.largest_score(Lambda), self.y, self.loss, self.alpha)

    @abstractmethod
    def largest_score(self, v: Array) -> float:
        """Return the largest correlation of v (n,) with a unit vector behind a gate."""

    @abstractmethod
    def judge(self, S: Array) -> Verdict:
        """Return the primal value of an answer and a lower bound of the optimum."""


class GatedObjective(Objective):
    """The gated program; an answer S has shape (P, r + 1)."""

    def largest_score(self, v: Array) -> float:
        return float(group_scores(self.Z, self.masks, v).max())

    def judge(self, S: Array) -> Verdict:
        S = np.asarray(S, dtype=np.float64)
        F = predict(self.Z, self.masks, S)
        return Verdict(primal_value(F, S, self.y, self.loss, self.alpha), self.lower_bound(F))


@dataclass(frozen=True)
class ListObjective(Objective):
    """The exact ReLU program; an answer holds S+ and S- in shape (2, P, r + 1).

    The judge first moves every block to the nearest point of its cone, so that primal values
    are those of feasible answers; this is not on the solver's clock. The lower bound is the
    same for all answers: that of a reference, see :meth:`with_bound_of`.
    """

    bound: float = math.nan

    def with_bound_of(self, S: Array) -> Self:
        """Return the objective with the dual value of an answer near the optimum as its bound."""
        return replace(self, bound=self.lower_bound(self.fit(self.projected(S))))

    def largest_score(self, v: Array) -> float:
        correlations = correlate(self.Z, self.masks, v)
        blocks = np.stack([correlations, -correlations])
        return float(np.linalg.norm(self.projected(blocks), axis=-1).max())

    def fit(self, S: Array) -> Array:
        """Return ``F = sum_g D_g Z (S+_g - S-_g)``."""
        return predict(self.Z, self.masks, S[0] - S[1])

    def projected(self, S: Array) -> Array:
        """Return the blocks (2, P, r + 1) moved to the nearest points of their cones."""
        patterns = self.masks.T > 0
        return np.array(
            [[project_onto_cone(self.Z, *pair) for pair in zip(patterns, T)] for T in S]  # noqa: B905
        )

    def judge(self, S: Array) -> Verdict:
        S = np.asarray(S, dtype=np.float64)
        slack = (2.0 * self.masks - 1.0) * np.einsum("ij,agj->aig", self.Z, S)
        T = self.projected(S)
        primal = primal_value(
            self.fit(T), T.reshape(-1, T.shape[-1]), self.y, self.loss, self.alpha
        )
        return Verdict(primal, self.bound, max(0.0, -float(slack.min())))


def predict(Z: Array, masks: Array, S: Array) -> Array:
    """Return ``F = sum_g D_g Z S_g``."""
    return np.einsum("ij,ij->i", masks, Z @ S.T)


def correlate(Z: Array, masks: Array, v: Array) -> Array:
    """Return the (P, r + 1) array of ``Z^T D_g v``."""
    return masks.T @ (Z * v[:, None])


def group_scores(Z: Array, masks: Array, v: Array) -> Array:
    """Return ``|Z^T D_g v|_2`` for every gate."""
    return np.linalg.norm(correlate(Z, masks, v), axis=1)


def residual(F: Array, y: Array, loss: Loss) -> Array:
    """Return minus the gradient of the mean loss."""
    return (y - (F if loss == "squared" else expit(F))) / len(y)


def primal_value(F: Array, S: Array, y: Array, loss: Loss, alpha: float) -> float:
    """Return the objective at blocks S (any number, r + 1), whose predictions are F."""
    if loss == "squared":
        fit = 0.5 * np.mean((F - y) ** 2)
    else:
        fit = np.mean(np.logaddexp(0.0, F) - y * F)
    return float(fit + alpha * np.linalg.norm(S, axis=1).sum())


def dual_value(Lambda: Array, largest_score: float, y: Array, loss: Loss, alpha: float) -> float:
    """Return the dual objective at ``Lambda`` shrunk until it is feasible."""
    n = len(y)
    c = min(1.0, alpha / largest_score) if largest_score > 0 else 1.0
    if loss == "squared":
        return float(c * (Lambda @ y) - n * c**2 * (Lambda @ Lambda) / 2)
    u = np.clip(y - c * n * Lambda, 0.0, 1.0)
    return float(np.mean(entr(u) + entr(1 - u)))

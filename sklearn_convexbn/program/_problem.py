r"""The training problem in convex form: objective, dual point and certificate.

With whitened rows Z (n x k, last column ones), row weights p summing to one and a mean loss
L, a network is a list of neurons (q_j, v_j), |q_j| = 1, and costs

.. math:: L\Big(\sum_j (Z q_j)_+ v_j^T + 1 b^T\Big) + \alpha \sum_j |v_j|,

which equals the weight-decay-regularized batch-normalized network after balancing the
scales of q_j and v_j (Ergen et al., ICLR 2022). For gated ReLU the factor (Z q_j)_+ is
``D_g Z q_j`` with the fixed 0/1 pattern of gate g.

Any :math:`\Lambda` with :math:`1^T\Lambda = 0` (when b is fitted) and
:math:`|\Lambda^T (Z q)_+| \le \alpha` for every unit q bounds the optimum from below by
:math:`-L^*(-\Lambda)`. That bound is what :class:`Certificate` reports.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from sklearn_convexbn.data._pooling import Pooling
from sklearn_convexbn.program._arrangements import activation_patterns, cone_norm, largest_in_cones
from sklearn_convexbn.program._objective import Objective
from sklearn_convexbn.program.units._base import Units
from sklearn_convexbn.support._arrays import Array, as_numpy, like
from sklearn_convexbn.support._linear_algebra import spectral_norms

#: Relative gaps below this are looked at again with the correlations of the network's own units.
CLOSE = 1e-6

#: Errors of a bound up to this share of the objective are rounding.
NEGLIGIBLE = 1e-9

#: The cautious gap is that of so many times the excess over alpha that searches have found.
CAUTION = 3.0


@dataclass(frozen=True)
class Neurons:
    """A network in the whitened coordinates; the form every solver returns.

    Attributes
    ----------
    directions : ndarray of shape (m, k)
        Unit vectors q_j.
    weights : ndarray of shape (m, C), or (m, G C) where units are pooled to G cells
        Output weights v_j, cell by cell; ``|v_j|`` is what the neuron costs.
    intercept : ndarray of shape (C,)
    gates : ndarray of shape (m,), int, or None
        Index of each neuron's gate (gated ReLU), or of the cone it was fitted in (ReLU on a
        list of arrangements); None where the solver had no list.
    """

    directions: np.ndarray
    weights: np.ndarray
    intercept: np.ndarray
    gates: np.ndarray | None = None

    def __len__(self) -> int:
        return int(self.directions.shape[0])

    @property
    def mass(self) -> float:
        """Sum of ``|v_j|``: the regularizer."""
        return float(np.linalg.norm(self.weights, axis=1).sum())

    @classmethod
    def empty(cls, k: int, intercept: np.ndarray, n_cells: int = 1) -> Neurons:
        """Return the network without hidden units."""
        weights = np.zeros((0, n_cells * intercept.shape[0]))
        return cls(np.zeros((0, k)), weights, intercept, np.zeros(0, dtype=np.intp))

    @classmethod
    def from_products(
        cls, q: np.ndarray, g: np.ndarray, intercept: np.ndarray, gates: np.ndarray | None
    ) -> Neurons:
        """Normalize neurons given as q_j (m, k) and g_j (m, C) of any length; drop zero ones."""
        length = np.linalg.norm(q, axis=1)
        keep = (length > 0) & (np.linalg.norm(g, axis=1) > 0)
        q, g, length = q[keep], g[keep], length[keep, None]
        return cls(q / length, g * length, intercept, None if gates is None else gates[keep])


@dataclass(frozen=True)
class Certificate:
    """How far a network is from the optimum of its training problem, at most.

    Attributes
    ----------
    primal : float
        Objective of the network.
    dual : float
        Lower bound on the optimal value; an estimate of one where `kind` says so.
    gap : float
        Relative duality gap, ``(primal - dual) / primal``: the larger of that of the stopping test
        and that of the verification, if there was one.
    infeasibility : float
        Relative excess ``max |Lambda^T (Z q)_+| / alpha - 1`` of the dual point before it
        was scaled back, at least 0; the largest that any search has found.
    kind : {"exact", "estimated"}
        "exact" when the bound is rigorous for the program named by `program`;
        "estimated" when the maximum over arrangements came from a search, which may have
        missed the most violated direction.
    program : str
        The optimum that is bounded: that of "all arrangements", or of a fixed list.
    n_verified : int
        Random starts of the verification, a search that was drawn after the decision to stop and
        counts whatever it found. 0 where there was none: then the gap is that of a search which
        was repeated until it passed, or the bound is exact.
    n_hits : int
        How many of them ended in the best maximum of the verification. Few, or none where it was
        met near a neuron only, say that a larger search may find a better one.
    cautious_gap : float
        The gap if the largest correlation exceeded alpha by three times `infeasibility`. An exact
        certificate's is `gap`. Like `gap` an estimate, only a more careful one.
    """

    primal: float
    dual: float
    gap: float
    infeasibility: float
    kind: str
    program: str
    n_verified: int
    n_hits: int
    cautious_gap: float

    @property
    def step(self) -> str:
        """What the bound rests on: "exact", or the "verified" or "stopping" one of a search."""
        if self.kind == "exact":
            return "exact"
        return "verified" if self.n_verified else "stopping"

    def scaled(self, factor: float) -> Certificate:
        """Return the certificate with both values multiplied by `factor`."""
        return replace(self, primal=self.primal * factor, dual=self.dual * factor)

    def of_objective(self, primal: float) -> Certificate:
        """Return the certificate of a network with another objective, by the same bounds."""
        cautious = self.primal * (1.0 - self.cautious_gap)
        return replace(
            self,
            primal=primal,
            gap=relative_gap(primal, self.dual),
            cautious_gap=relative_gap(primal, cautious),
        )

    def __str__(self) -> str:
        return f"objective {self.primal:.6g}, {self._within()}{self._at_caution()}"

    def _within(self) -> str:
        """Say how close to the optimum the network is, and how that is known."""
        how = {
            "exact": "certified",
            "verified": f"estimated, by an independent search of {self.n_verified} starts,",
            "stopping": "estimated, by the searches of the fit alone,",
        }
        within = f"to be within {100 * self.gap:.2g} % of the optimum over {self.program}"
        return f"{how[self.step]} {within}"

    def _at_caution(self) -> str:
        """Say what three times the violation found would mean, and how often it was found."""
        if self.step == "exact":
            return ""
        cautious = f"{100 * self.cautious_gap:.2g} % at three times the violation"
        if self.step == "stopping":
            return f" ({cautious} they found)"
        hits = f"{self.n_hits} of the starts ended in its best maximum"
        return f" ({cautious} it found; {hits})"


@dataclass(frozen=True, eq=False, kw_only=True)
class Problem(Objective[Any]):
    """One training problem, an objective and the hidden units it is for; immutable.

    Attributes
    ----------
    units : Units
        The hidden units over all arrangements. Fits, dual points and their sums are computed where
        their rows are; neurons are NumPy arrays always.
    Y, p, loss, alpha, fit_intercept, shards
        As in :class:`~sklearn_convexbn.program._objective.Objective`.
    activation : {"relu", "gated_relu"}
    gates : ndarray of shape (k, P) or None
        The list of arrangements the program is restricted to (always for gated ReLU).
        None is the full ReLU problem.
    all_arrangements : bool
        Whether `gates` lists every arrangement, so that nothing is lost.
    spectrum : ndarray of shape (k,)
        Diagonal of Z^T diag(p) Z.
    """

    units: Units
    activation: str
    gates: np.ndarray | None
    all_arrangements: bool
    spectrum: np.ndarray

    @property
    def Z(self) -> Any:
        """The whitened rows (n, k), last column ones, or (n K, k) for K patches of a sample."""
        return self.units.Z

    @property
    def pooling(self) -> Pooling:
        """How the activations on the patches of a sample become its features."""
        return self.units.pooling

    @property
    def n_outputs(self) -> int:
        """Number of outputs C."""
        return int(self.Y.shape[1])

    @property
    def n_weights(self) -> int:
        """Number of output weights of a neuron, C or G C."""
        return self.n_outputs * self.units.n_cells

    @property
    def program(self) -> str:
        """The program in words, for certificates and messages."""
        if self.gates is None or (self.activation == "relu" and self.all_arrangements):
            return "all arrangements"
        if self.activation == "gated_relu":
            return f"{self.gates.shape[1]} fixed gates"
        return f"{self.gates.shape[1]} sampled arrangements"

    @cached_property
    def patterns(self) -> np.ndarray:
        """0/1 patterns (n, P), bool, of the listed arrangements."""
        if self.gates is None:
            raise ValueError("This program has no list of arrangements.")
        return activation_patterns(self.Z, self.gates)

    def part(self, samples: slice) -> Problem:
        """Return the problem on some of the samples, all of which are here, in their place."""
        p = self.p[samples]
        units = self.units.part(samples)
        return replace(self, units=units, Y=self.Y[samples], p=p / p.sum(), shards=units.shards)

    def fit_without_intercept(self, neurons: Neurons) -> Array:
        """Return ``sum_j a_j v_j^T`` (n, C)."""
        if self.activation == "gated_relu":
            of_cells = neurons.weights.reshape(-1, self.n_outputs)
            return self.pooling.features(self._behind_gates(neurons)) @ of_cells
        Q, V = like(neurons.directions.T, self.Y), like(neurons.weights, self.Y)
        return self.units.fit(Q, V)

    def _behind_gates(self, neurons: Neurons) -> np.ndarray:
        """Return ``D_g Z q`` (n, m), on patches if there are some, of gated neurons."""
        return np.where(self.patterns[:, neurons.gates], self.Z @ neurons.directions.T, 0.0)

    def correlations(self, Lambda: Array, directions: np.ndarray) -> np.ndarray:
        """Return ``|Lambda^T (Z q)_+|`` (S,) for directions (k, S)."""
        T = self.units.correlations(Lambda, like(directions, self.Y))
        return np.linalg.norm(as_numpy(T), axis=0)

    @cached_property
    def nothing(self) -> tuple[Neurons, float]:
        """The best network without hidden units, and its objective."""
        neurons = Neurons.empty(self.units.n_parameters, self.constant(), self.units.n_cells)
        return neurons, self.mean_loss(self.constant_fit())

    def with_best_intercept(self, neurons: Neurons) -> tuple[Neurons, Array]:
        """Return the neurons with the optimal b, and the fit (n, C) including it."""
        F = self.fit_without_intercept(neurons)
        if not self.fit_intercept:
            zero = np.zeros(self.n_outputs)  # a solver may hand over rounding errors
            return (replace(neurons, intercept=zero) if neurons.intercept.any() else neurons), F
        b = like(neurons.intercept, F)
        b = b + self.best_intercept(F + b)
        return replace(neurons, intercept=as_numpy(b)), F + b

    def objective(self, neurons: Neurons) -> float:
        """Return the mean loss plus ``alpha`` times the mass, at the neurons' own b."""
        return self.loss_of(neurons) + self.alpha * neurons.mass

    def loss_of(self, neurons: Neurons) -> float:
        """Return the mean loss at the neurons' own b."""
        return self.mean_loss(self.fit_without_intercept(neurons) + like(neurons.intercept, self.Y))

    def gate_norms(self, Lambda: np.ndarray) -> np.ndarray:
        """Return ``|Z^T D_g Lambda|`` (P,) for every gate: spectral norms, Euclidean for C = 1.

        Where units are pooled Lambda (n, C) is spread over the patches, (n K, G C).
        """
        Lambda = self.pooling.on_rows(Lambda)
        if Lambda.shape[1] == 1:
            return np.linalg.norm(self.Z.T @ (self.patterns * Lambda), axis=0)
        (n, k), C = self.Z.shape, Lambda.shape[1]
        products = (self.Z[:, :, None] * Lambda[:, None, :]).reshape(n, k * C)
        blocks = (products.T @ self.patterns).T.reshape(-1, k, C)
        return spectral_norms(blocks)

    def cone_norms(self, Lambda: np.ndarray) -> np.ndarray:
        """Return ``max <e Z^T D_i Lambda, q>`` over unit q in cone i, (2, P) for e = +1, -1.

        For one output. Where the maximum over the whole space is below alpha already, that
        upper bound is returned: no projection is needed to see that the constraint holds.
        """
        correlations = self.Z.T @ (self.patterns * Lambda)
        free = np.linalg.norm(correlations, axis=0)
        norms = np.vstack([free, free])
        for i in np.flatnonzero(free > self.alpha):
            for row, sign in enumerate((1.0, -1.0)):
                norms[row, i] = cone_norm(self.Z, self.patterns[:, i], sign * correlations[:, i])
        return norms

    def own_correlation(self, neurons: Neurons, Lambda: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the largest correlation a ReLU network's own cones and units can have, and its q.

        That is the largest of ``<D_j Lambda g_j, Z q>`` over unit q in the cone of neuron j, g_j
        its unit output direction, and of ``|Lambda^T (Z q_j)_+|``, over all j. It is at most
        `alpha` where the network is optimal among those that move each neuron within its cone
        or turn its output; a stationary point of training is (Wang, Lacotte and Pilanci, "The
        Hidden Convex Optimization Landscape of Two-Layer ReLU Neural Networks", ICLR 2022).

        Parameters
        ----------
        neurons : Neurons
        Lambda : ndarray of shape (n, C)

        Returns
        -------
        largest : float
        q : ndarray of shape (k,)
            Unit vector that attains at least `largest`; zero for an empty network.
        """
        outputs = neurons.weights / np.linalg.norm(neurons.weights, axis=1, keepdims=True)
        active = self.Z @ neurons.directions.T >= 0
        in_cones = self.Z.T @ (active * (self.pooling.on_rows(Lambda) @ outputs.T))
        largest, q = largest_in_cones(self.Z, active, in_cones)
        turned = self.correlations(Lambda, neurons.directions.T)
        if turned.max(initial=0.0) > largest:
            return float(turned.max()), neurons.directions[turned.argmax()]
        return largest, q

    def certificate(
        self,
        neurons: Neurons,
        *,
        Lambda: Array | None = None,
        largest_correlation: float | None = None,
        proven: bool = False,
        n_verified: int = 0,
        n_hits: int = 0,
    ) -> tuple[Neurons, Certificate]:
        """Set the optimal b and bound the distance from the optimum.

        Parameters
        ----------
        neurons : Neurons
        Lambda : ndarray of shape (n, C), default=None
            A dual point, summing to zero over the rows when b is fitted. None takes minus the
            gradient of the mean loss at the network.
        largest_correlation : float, default=None
            An upper bound on ``max |Lambda^T (Z q)_+|`` over the program's unit directions
            if the solver has one (from its multipliers), or the largest value a search has
            found where the program has no list of arrangements. None computes it, which
            needs a list.
        proven : bool, default=False
            Whether `largest_correlation` is an upper bound, not the result of a search.
        n_verified, n_hits : int, default=0
            Of a certificate that is not proven.

        Returns
        -------
        neurons : Neurons
            The same network with the optimal b.
        certificate : Certificate
        """
        neurons, F = self.with_best_intercept(neurons)
        primal = self.mean_loss(F) + self.alpha * neurons.mass
        own = self.dual_point(F)
        if Lambda is None:
            Lambda = own
        else:
            Lambda, moved = self._feasible(Lambda, own)
            if largest_correlation is not None:
                largest_correlation += moved
        if largest_correlation is None:
            largest_correlation, proven = self._largest_correlation(Lambda), True
        dual = self.dual_value(Lambda, largest_correlation)
        cautious = largest_correlation
        if not self._sums_to_zero(Lambda, neurons.intercept, primal):
            cautious = np.inf
            dual = self.dual_value(Lambda, cautious)
        elif primal - dual < CLOSE * abs(primal):
            # The network's own units bound the gap from below; a search may have missed them.
            largest_correlation = max(largest_correlation, self._unit_correlation(Lambda, neurons))
            dual = self.dual_value(Lambda, largest_correlation)
            cautious = largest_correlation
        cautious_dual = dual if proven else self.cautious_dual_value(Lambda, cautious)
        return neurons, Certificate(
            primal=primal,
            dual=dual,
            gap=relative_gap(primal, dual),
            infeasibility=self.excess(largest_correlation),
            kind="exact" if proven else "estimated",
            program=self.program,
            n_verified=n_verified,
            n_hits=n_hits,
            cautious_gap=relative_gap(primal, cautious_dual),
        )

    def excess(self, correlation: float) -> float:
        """Return by which share of alpha a correlation exceeds it, at least 0."""
        return max(0.0, correlation / self.alpha - 1.0)

    def _sums_to_zero(self, Lambda: Array, intercept: np.ndarray, primal: float) -> bool:
        """Return whether what is left of the sum of Lambda moves the bound by rounding only."""
        if not self.fit_intercept:
            return True
        residual = as_numpy(self.shards.total(Lambda.sum(axis=0)))
        return bool(abs(residual) @ abs(intercept) <= NEGLIGIBLE * abs(primal))

    def cautious_dual_value(self, Lambda: Array, largest_correlation: float) -> float:
        """Return the dual value if correlations exceeded alpha by `CAUTION` times as much."""
        excess = max(largest_correlation - self.alpha, 0.0)
        return self.dual_value(Lambda, self.alpha + CAUTION * excess)

    def _feasible(self, Lambda: Array, own: Array) -> tuple[Array, float]:
        """Return a dual point near Lambda that is feasible but for its correlations.

        It sums to zero over the rows, if b is fitted, and lies in the conjugate's domain; where it
        does not, as much of the network's `own` point is mixed in as is needed. Besides, by how
        much any correlation may have become larger.
        """
        moved = 0.0
        if self.fit_intercept:
            residual = self.shards.total(Lambda.sum(axis=0))
            length = self.shards.total(abs(Lambda).sum())
            if float(abs(residual).max()) > 4.0 * np.finfo(float).eps * float(length):
                Lambda = Lambda - self.p[:, None] * residual
                moved = self._reach * float((residual**2).sum() ** 0.5)
        difference = own - Lambda
        distance = float(self.shards.total((difference**2 / self.p[:, None]).sum())) ** 0.5
        for share in (0.0, *10.0 ** np.arange(-15.0, 1.0)):
            mixed = Lambda + share * difference if share < 1.0 else own
            if self.shards.maximum(float(self.loss.outside(-mixed, self.Y, self.p))) == 0.0:
                break
        return mixed, moved + share * self._reach * distance

    @cached_property
    def _reach(self) -> float:
        """Upper bound on ``(sum_i p_i |a_i|^2)^(1/2)`` of the activations a of a unit direction."""
        patches = self.pooling.n_patches * self.pooling.weights.sum(axis=1).max()
        return float(self.spectrum.max() * patches) ** 0.5

    def _unit_correlation(self, Lambda: Array, neurons: Neurons) -> float:
        """Return the largest ``|Lambda^T a_j|`` over a network's own units."""
        if len(neurons) == 0:
            return 0.0
        if self.activation != "gated_relu":
            return float(self.correlations(Lambda, neurons.directions.T).max())
        T = self.pooling.on_rows(Lambda).T @ self._behind_gates(neurons)
        return float(np.linalg.norm(T, axis=0).max())

    def _largest_correlation(self, Lambda: Any) -> float:
        if self.gates is None:
            raise ValueError("The full ReLU problem needs a search; pass largest_correlation.")
        norms = self.gate_norms if self.activation == "gated_relu" else self.cone_norms
        return float(norms(Lambda).max(initial=0.0))

    def cone_violation(self, neurons: Neurons) -> float:
        """Return how far neurons leave the cones they are listed in: ``max -(2D-I) Z q``, >= 0."""
        signs = np.where(self.patterns[:, neurons.gates], 1.0, -1.0)
        return float(-(signs * (self.Z @ neurons.directions.T)).min(initial=0.0))


def relative_gap(primal: float, dual: float) -> float:
    """Return (primal - dual) / primal; rounding below zero is reported as zero."""
    if primal <= 0.0:
        return 0.0
    gap = (primal - dual) / primal
    return 0.0 if -1e-9 <= gap <= 0.0 else gap

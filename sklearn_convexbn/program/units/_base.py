"""What a hidden unit is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from sklearn_convexbn.data._pooling import IDENTITY, Pooling
from sklearn_convexbn.losses._base import Loss
from sklearn_convexbn.support._arrays import Array
from sklearn_convexbn.support._sharding import Shards

if TYPE_CHECKING:
    from torch import Tensor

    from sklearn_convexbn.program.units._activations import Activations

#: First steps, on the unit sphere, of starts that stand for a region and of starts that are
#: thought to be close to a maximum.
FAR, NEAR = 0.5, 0.1

#: Draws vectors of parameters (k, count), the same sequence for the same random state.
Draw = Callable[[int], np.ndarray]


def column_norms(A: Tensor) -> Tensor:
    """Return the norms (m,) of columns (k, m).

    On the CPU, for tens of rows and hundreds of columns, torch's own takes five times as long.
    """
    return (A * A).sum(dim=0).sqrt_()


def unit_columns(A: Tensor) -> Tensor:
    """Return columns (k, m) divided by their norms; columns of zeros stay."""
    return A / column_norms(A).clamp_min_(1e-12)


#: Activations of up to this many bytes are stored while output weights are refitted.
STORED_BYTES = 2**27


class Units(ABC):
    """One kind of hidden unit on one set of rows.

    A unit is a vector q of k parameters. Its activations a(q) on the n samples, G numbers each
    (one unless they are pooled to cells), and its norm |q| are homogeneous of degree one, so that
    a network is a sum of ``a(q_j) v_j`` over units of norm one and costs ``alpha sum_j |v_j|``.
    Output weights v are (G C,), cell by cell, for C outputs.

    The pursuit, its search and its refits know no more of a hidden layer than what is here. Sums
    are over all rows, also those of other processes; arrays with an entry a sample are about
    those here.

    Attributes
    ----------
    shards : Shards
        Where the other rows are, if these are not all.
    Z : ndarray, torch.Tensor or WhitenedRows of shape (n, any)
        The rows here that units are evaluated on, of n_samples samples.
    pooling : Pooling
        How the activations on the rows of a sample become its features.
    n_parameters : int
        Length k of a unit.
    n_samples : int
        Number of samples here.
    n_rows : int
        Number of rows that a unit is evaluated on, here and elsewhere.
    device : torch.device
        Where rows are.
    precision : torch.dtype
        That rows are stored in.
    is_flat : bool
        Whether all rows are stored here and each is a sample.
    rectified_rows : torch.Tensor of shape (n, k), or None
        For DC steps: the rows Z, if they are all here, none are pooled, a(q) is (Z q)_+ and |q| is
        the Euclidean norm. Other kinds of units have none.
    has_l1_norm : bool
        Whether the norm is the sum of the sizes of the parameters, most of which are then zero.
    """

    shards: Shards
    Z: Any
    pooling: Pooling = IDENTITY
    n_parameters: int
    n_samples: int
    n_rows: int
    device: Any
    precision: Any
    is_flat: bool
    rectified_rows: Any = None
    has_l1_norm: bool = False

    @property
    def n_cells(self) -> int:
        """Activations G of a unit on a sample."""
        return self.pooling.n_cells

    @abstractmethod
    def part(self, samples: slice) -> Self:
        """Return the same units on some of the samples here."""

    # -------------------------------------------------------------------- parameters and norm

    def norms(self, Q: np.ndarray) -> np.ndarray:
        """Return the norms (m,) of units Q (k, m)."""
        return np.linalg.norm(Q, axis=0)

    def unit(self, Q: Tensor) -> Tensor:
        """Return units (k, m) scaled to norm one; zeros stay."""
        return unit_columns(Q)

    def penalty(self, Q: np.ndarray) -> tuple[float, np.ndarray]:
        """Return half the sum of the squared norms of units Q (k, m), and its gradient."""
        return 0.5 * float((Q * Q).sum()), Q

    def step(self, Q: Tensor, gradient: Tensor, lengths: Tensor) -> Tensor:
        """Return units (k, m) of norm one after an ascent step from units Q (k, m) of norm one.

        `gradient` is that of :meth:`ascent`; `lengths` (m,) are those of the steps.
        """
        return self.unit(Q + lengths * self.unit(gradient))

    def signatures(self, Q: np.ndarray) -> np.ndarray:
        """Return unit columns (any, m) that tell units Q (k, m) of norm one apart.

        Of those with a cosine near one, a search keeps the best only.
        """
        return Q

    def simplified(self, Q: np.ndarray) -> np.ndarray:
        """Return units (k, m) of the same activations on all rows, with norms that are no larger.

        Kinds of units may drop parts of Q (k, m) that make no difference.
        """
        return Q

    # ------------------------------------------------------------------------ sums over rows

    @abstractmethod
    def fit(self, Q: Array, V: Array) -> Any:
        """Return ``sum_j a(q_j) v_j`` (n, C) for units Q (k, m) and output weights V (m, G C)."""

    @abstractmethod
    def correlations(self, Lambda: Array, Q: Array) -> Any:
        """Return ``Lambda^T a(q)`` (G C, m) for a dual point (n, C) and units Q (k, m)."""

    @abstractmethod
    def activations(self, Q: Tensor, stored_bytes: int = STORED_BYTES) -> Activations:
        """Return the activations of units Q (k, m), stored if they are of so many bytes at most."""

    @abstractmethod
    def ascent(self, Lambda: Tensor, Q: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``|Lambda^T a(q)|`` (m,) for units of norm one, and its gradients (k, m)."""

    @abstractmethod
    def loss(
        self, loss: Loss, Y: Tensor, p: Tensor, Q: Tensor, V: Tensor, b: Tensor
    ) -> tuple[float, Tensor, Tensor, Tensor]:
        """Return the mean loss of a network and its gradients in Q, V and b."""

    @abstractmethod
    def patterns(self, Q: np.ndarray) -> np.ndarray:
        """Return bytes (m, any) for units Q (k, m).

        Units of equal ones add up to one unit whose activations are the sum of theirs.
        """

    # ------------------------------------------------------------------------------ search

    @abstractmethod
    def on(self, device: str) -> Units:
        """Return the same units in torch; rows that are tensors already stay where they are."""

    @abstractmethod
    def here(self) -> Units:
        """Return the same units with all rows stored in this process, for searches of few rows."""

    @abstractmethod
    def sample(self, index: Tensor) -> Units:
        """Return units on some of all rows, by their numbers, in this process and not pooled."""

    @abstractmethod
    def of_rows(self, Lambda: Tensor, index: Tensor) -> Tensor:
        """Return a dual point (n, C) on the rows of :meth:`sample`, (r, G C)."""

    @abstractmethod
    def starts(
        self, count: int, draw: Draw, random_state: np.random.RandomState, known: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return fresh starts of an ascent (k, count) and the lengths (count,) of first steps.

        Parts of the units `known` (k, any) so far may be put together anew in them.
        """

    @abstractmethod
    def relatives(
        self,
        Lambda: Tensor,
        known: np.ndarray,
        count: int,
        draw: Draw,
        random_state: np.random.RandomState,
        *,
        generation: int,
    ) -> Tensor:
        """Return starts (k, any) that share much with known maxima but are apart from them.

        All rows are here and none are pooled.

        Parameters
        ----------
        Lambda : torch.Tensor of shape (n, C)
        known : ndarray of shape (k, any)
        count : int
            How many to look for.
        draw : callable
        random_state : numpy.random.RandomState
        generation : int
            Counts the generations of one search; kinds of relatives may take turns.
        """

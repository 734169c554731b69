"""The conjugate of a loss row by row, in unknowns of its own, for methods on the dual.

A dual point is ``Lambda_i = p_i M_i x_i`` with unknowns x (n, q) in an open domain. The conjugate
at ``-Lambda`` has derivatives there, and near the border of the domain x keeps digits that Lambda
loses.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from sklearn_convexbn.support._arrays import Array, Same, array_namespace, on_device


class DualRows(ABC):
    """What :meth:`Loss.dual_rows` returns.

    Attributes
    ----------
    maps : array of shape (n, C, q)
        The M_i.
    """

    maps: Array

    def inside(self, x: Array) -> bool:
        """Return whether all rows of x (n, q) are in the domain; everything is unless overridden.

        The gradient has no bound near the border of a domain, so that Newton steps stay inside.
        """
        return True

    @abstractmethod
    def value(self, x: Array) -> float:
        """Return the conjugate of the mean loss at ``-Lambda``, up to a constant."""

    @abstractmethod
    def slopes(self, x: Same) -> tuple[Same, Same]:
        """Return the gradient (n, q) and the Hessians (n, q, q) of :meth:`value`."""


class Residuals(DualRows):
    """Of half the squared distance from `targets` (n, C): x is what is left of them."""

    def __init__(self, targets: Array, p: Array) -> None:
        self.targets, self.p = targets, p[:, None]
        n, C = targets.shape
        self.maps = array_namespace(targets).broadcast_to(_eye(targets, C), (n, C, C))

    def value(self, x: Array) -> float:
        return float((self.p * x * (0.5 * x - self.targets)).sum())

    def slopes(self, x: Same) -> tuple[Same, Same]:
        return self.p * (x - self.targets), self.p[:, :, None] * self.maps


class Probabilities(DualRows):
    """Of cross-entropies: x are the probabilities of the classes other than a row's own.

    So those near zero keep their digits.

    Parameters
    ----------
    Y : array of shape (n, C)
        One-hot, or for one output 0 and 1.
    p : array of shape (n,)
    """

    def __init__(self, Y: Array, p: Array) -> None:
        self.p, C = p[:, None], Y.shape[1]
        if C == 1:
            self.maps = (2.0 * Y - 1.0)[:, :, None]
            return
        xp, eye = array_namespace(Y), _eye(Y, C)
        rest = [[other for other in range(C) if other != own] for own in range(C)]
        others = xp.stack([eye[:, columns] for columns in rest])[Y.argmax(1)]
        self.maps = Y[:, :, None] - others

    def inside(self, x: Array) -> bool:
        return float(x.min()) > 0.0 and float((1.0 - x.sum(1)).min()) > 0.0

    def value(self, x: Array) -> float:
        own, log_own = self._own(x)
        log = array_namespace(x).log(x)
        return float((self.p * x * log).sum() + (self.p * own * log_own).sum())

    def slopes(self, x: Same) -> tuple[Same, Same]:
        own, log_own = self._own(x)
        diagonal = (1.0 / x)[:, :, None] * _eye(x, x.shape[1])
        hessians = self.p[:, :, None] * (diagonal + (1.0 / own)[:, :, None])
        return self.p * (array_namespace(x).log(x) - log_own), hessians

    def _own(self, x: Array) -> tuple[Array, Array]:
        """Return the probability (n, 1) of a row's own class, and its logarithm."""
        others = x.sum(1)[:, None]
        return 1.0 - others, array_namespace(x).log1p(-others)


def _eye(a: Array, size: int) -> Any:
    return array_namespace(a).eye(size, dtype=a.dtype, **on_device(a))

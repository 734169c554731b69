"""Losses that estimators take, by name or as an instance, and what a new one is made of.

All act on raw outputs F (n, C) and weigh rows by p (n,), which sums to one. Those for numbers sum
over the outputs of a row.
"""

from __future__ import annotations

from numbers import Real
from typing import Any, ClassVar

from sklearn.base import clone

from sklearn_convexbn.losses._base import (
    LogisticLoss,
    Loss,
    SoftmaxLoss,
    SquaredError,
    _sigmoid,
    cross_validated,
)
from sklearn_convexbn.losses._base import _xlogx as xlogx
from sklearn_convexbn.losses._dual_rows import DualRows
from sklearn_convexbn.support._arrays import Array, Same, array_namespace, like, on_device
from sklearn_convexbn.support._compat import Interval, StrOptions, check_parameters
from sklearn_convexbn.support._sharding import Shards

__all__ = [
    "Huber",
    "LogLoss",
    "Loss",
    "Poisson",
    "Quantile",
    "SquaredError",
    "array_namespace",
    "like",
    "xlogx",
]

#: Raw outputs of a Poisson network above this count as this: their exponentials are finite.
LARGEST_LOG_MEAN = 600.0


class LogLoss(Loss):
    """Logistic loss for two classes, softmax cross-entropy for more.

    For two classes ``log(1 + exp(f)) - y f`` of one output with y in {0, 1}; for more
    ``log sum_c exp(f_c) - f_y`` of one output a class.
    """

    name = "log"
    curvature = 0.5
    accepts = frozenset({"labels"})

    def of_outputs(self, n_outputs: int) -> Loss:
        """Return the logistic loss for one output, the softmax cross-entropy for more."""
        return LogisticLoss() if n_outputs == 1 else SoftmaxLoss()

    def value(self, F: Same, Y: Same, p: Same) -> Any:
        return self.of_outputs(F.shape[1]).value(F, Y, p)

    def gradient(self, F: Same, Y: Same, p: Same) -> Same:
        return self.of_outputs(F.shape[1]).gradient(F, Y, p)

    def hessian(self, F: Same, Y: Same, p: Same) -> Same:
        return self.of_outputs(F.shape[1]).hessian(F, Y, p)

    def curvatures(self, F: Same, Y: Same, p: Same) -> tuple[Same, Same]:
        return self.of_outputs(F.shape[1]).curvatures(F, Y, p)

    def conjugate(self, U: Same, Y: Same, p: Same) -> Any:
        return self.of_outputs(U.shape[1]).conjugate(U, Y, p)

    def outside(self, U: Same, Y: Same, p: Same) -> Any:
        return self.of_outputs(U.shape[1]).outside(U, Y, p)

    def dual_rows(self, Y: Array, p: Array) -> DualRows | None:
        return self.of_outputs(Y.shape[1]).dual_rows(Y, p)

    def estimated_error(self, value: float, freedom: float) -> float:
        return LogisticLoss().estimated_error(value, freedom)

    def cvxpy_value(self, F: Any, Y: Array, p: Array) -> Any:
        return self.of_outputs(F.shape[1]).cvxpy_value(F, Y, p)


class _Separable(Loss):
    """A loss that is a sum over outputs; subclasses give the second derivatives (n, C)."""

    def _second(self, F: Same, Y: Same) -> Same:
        raise NotImplementedError

    def hessian(self, F: Same, Y: Same, p: Same) -> Same:
        second = p[:, None] * self._second(F, Y)
        return second[:, :, None] * array_namespace(F).eye(
            F.shape[1], dtype=F.dtype, **on_device(F)
        )

    def curvatures(self, F: Same, Y: Same, p: Same) -> tuple[Same, Same]:
        D = p[:, None] * self._second(F, Y)
        return D, D[None][:0]


class Huber(_Separable):
    """Half the squared error of residuals up to `delta`, linear beyond: robust to outliers.

    ``1/2 r^2`` for ``|r| <= delta`` and ``delta (|r| - delta/2)`` beyond, r = f - y.

    Parameters
    ----------
    delta : float, default=1.35
        Positive. In units of the scaled target, that is of the standard deviation of y.
    """

    name = "Huber"
    curvature = 1.0
    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "delta": [Interval(Real, 0, None, closed="neither")]
    }

    def __init__(self, delta: float = 1.35) -> None:
        self.delta = delta

    def value(self, F: Same, Y: Same, p: Same) -> Any:
        size = abs(F - Y)
        inner = size.clip(max=self.delta)
        return (p[:, None] * inner * (size - 0.5 * inner)).sum()

    def gradient(self, F: Same, Y: Same, p: Same) -> Same:
        return p[:, None] * (F - Y).clip(min=-self.delta, max=self.delta)

    def _second(self, F: Same, Y: Same) -> Same:
        return 1.0 * (abs(F - Y) <= self.delta)

    def curvatures(self, F: Same, Y: Same, p: Same) -> tuple[Same, Same]:
        """Return the curvature of the parabola that touches the loss at F from above.

        The Hessian is zero beyond delta, where a Newton step would have no end.
        """
        D = p[:, None] * self.delta / abs(F - Y).clip(min=self.delta)
        return D, D[None][:0]

    def conjugate(self, U: Same, Y: Same, p: Same) -> Any:
        u = U / p[:, None]
        value = (U * (Y + 0.5 * u)).sum()
        beyond = (abs(u) > self.delta * (1.0 + 1e-9)).any()
        return value + float("inf") if bool(beyond) else value

    def outside(self, U: Same, Y: Same, p: Same) -> Any:
        return (abs(U / p[:, None]) - self.delta).clip(min=0.0).max()

    def estimated_error(self, value: float, freedom: float) -> float:
        return cross_validated(value, freedom, power=2)

    def cvxpy_value(self, F: Any, Y: Array, p: Array) -> Any:
        import cvxpy as cp

        return 0.5 * cp.sum(cp.multiply(p[:, None], cp.huber(F - Y, self.delta)))  # type: ignore[arg-type]


class Poisson(_Separable):
    """Half the Poisson deviance of counts: the network's raw output is the log of the mean.

    ``exp(f) - y f + y log y - y``, at least zero. Targets must not be negative and are not
    rescaled; predictions are ``exp(f)``.
    """

    name = "Poisson"
    target_range = (0.0, float("inf"))
    rescales_target = False

    def prediction(self, F: Same) -> Same:
        return array_namespace(F).exp(F.clip(max=LARGEST_LOG_MEAN))

    def value(self, F: Same, Y: Same, p: Same) -> Any:
        # Relative to the best fit log y, so that nothing cancels near it.
        xp, F = array_namespace(F), F.clip(max=LARGEST_LOG_MEAN)
        positive = Y > 0
        y = xp.where(positive, Y, xp.ones_like(Y))
        d = F - xp.log(y)
        return (p[:, None] * y * xp.where(positive, xp.expm1(d) - d, xp.exp(F))).sum()

    def gradient(self, F: Same, Y: Same, p: Same) -> Same:
        return p[:, None] * (self.prediction(F) - Y)

    def _second(self, F: Same, Y: Same) -> Same:
        return self.prediction(F)

    def conjugate(self, U: Same, Y: Same, p: Same) -> Any:
        xp, u = array_namespace(U), U / p[:, None]
        y = xp.where(Y > 0, Y, xp.ones_like(Y))
        t = u / y
        # (u + y) log(u + y) - (u + y) less y log y - y, and u log u - u where y is zero.
        values = xp.where(Y > 0, y * (xlogx(1.0 + t, -t) - t) + u * xp.log(y), xlogx(u) - u)
        return (p[:, None] * values).sum()

    def outside(self, U: Same, Y: Same, p: Same) -> Any:
        return (-(U / p[:, None] + Y)).clip(min=0.0).max()

    def first_intercept(self, F: Same, Y: Same, p: Same, shards: Shards) -> Same:
        """Return the best intercept, ``log sum_i p_i y_i - log sum_i p_i exp(F_i)``."""
        xp = array_namespace(F)
        top = shards.maximum(float(F.max()))
        means, fitted = shards.totals(p @ Y, p @ xp.exp(F - top))
        tiny = 1e-300
        return xp.log(means.clip(min=tiny)) - xp.log(fitted.clip(min=tiny)) - top

    def estimated_error(self, value: float, freedom: float) -> float:
        return value + freedom  # Akaike's criterion: a negative log-likelihood

    def cvxpy_value(self, F: Any, Y: Array, p: Array) -> Any:
        import cvxpy as cp

        best = float((p[:, None] * (xlogx(Y) - Y)).sum())
        return cp.sum(cp.multiply(p[:, None], cp.exp(F) - cp.multiply(Y, F))) + best


class Quantile(_Separable):
    """Pinball loss, smoothed by a logistic kernel: the network estimates a quantile of y.

    ``w log(1 + exp((f - y) / w)) - quantile (f - y)``, w = `width`, which exceeds the pinball loss
    by at most ``w log 2``. At the best constant the mean of ``sigmoid((f - y) / w)`` is `quantile`:
    it is the quantile of y with logistic noise of scale w added (convolution smoothing: M.
    Fernandes, E. Guerre, E. Horta, "Smoothing Quantile Regressions", JBES 2021).

    Parameters
    ----------
    quantile : float, default=0.5
        In (0, 1).
    width : float, default=0.05
        Positive. In units of the scaled target, that is of the standard deviation of y.
    """

    name = "quantile"
    degree = 1
    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "quantile": [Interval(Real, 0, 1, closed="neither")],
        "width": [Interval(Real, 0, None, closed="neither")],
    }

    def __init__(self, quantile: float = 0.5, width: float = 0.05) -> None:
        self.quantile = quantile
        self.width = width

    @property
    def curvature(self) -> float:  # type: ignore[override]
        """Largest second derivative, ``1 / (4 width)``."""
        return 0.25 / self.width

    def value(self, F: Same, Y: Same, p: Same) -> Any:
        xp, T = array_namespace(F), (F - Y) / self.width
        zero = xp.zeros_like(T)
        # Each side of y has a sum of two terms that are not negative.
        rows = (1.0 - self.quantile) * xp.logaddexp(zero, T)
        rows = rows + self.quantile * xp.logaddexp(zero, -T)
        return self.width * (p[:, None] * rows).sum()

    def gradient(self, F: Same, Y: Same, p: Same) -> Same:
        T = (F - Y) / self.width
        slopes = (1.0 - self.quantile) * _sigmoid(T) - self.quantile * _sigmoid(-T)
        return p[:, None] * slopes

    def _second(self, F: Same, Y: Same) -> Same:
        T = (F - Y) / self.width
        return _sigmoid(T) * _sigmoid(-T) / self.width

    def curvatures(self, F: Same, Y: Same, p: Same) -> tuple[Same, Same]:
        """Return the Hessian, a tenth of it replaced by the parabola that touches from above.

        Far from y the loss is nearly linear, and a Newton step would have no end. With a tenth of
        an upper bound (T. Jaakkola, M. Jordan, 2000) a tenth of the step lowers the value for sure.
        """
        T = (abs(F - Y) / self.width).clip(min=1e-4)
        above = array_namespace(T).tanh(0.5 * T) / (2.0 * T) / self.width
        D = p[:, None] * (0.9 * self._second(F, Y) + 0.1 * above)
        return D, D[None][:0]

    def conjugate(self, U: Same, Y: Same, p: Same) -> Any:
        u = U / p[:, None]
        above, below = self.quantile + u, (1.0 - self.quantile) - u
        return (U * Y + self.width * p[:, None] * (xlogx(above) + xlogx(below))).sum()

    def outside(self, U: Same, Y: Same, p: Same) -> Any:
        u = U / p[:, None]
        beyond = array_namespace(u).maximum(-(self.quantile + u), u - (1.0 - self.quantile))
        return beyond.clip(min=0.0).max()

    def estimated_error(self, value: float, freedom: float) -> float:
        return cross_validated(value, freedom, power=1)

    def cvxpy_value(self, F: Any, Y: Array, p: Array) -> Any:
        import cvxpy as cp

        rows = self.width * cp.logistic((F - Y) / self.width) - self.quantile * (F - Y)
        return cp.sum(cp.multiply(p[:, None], rows))


#: Name -> class, of what `loss` parameters take.
NAMED: dict[str, type[Loss]] = {
    "squared_error": SquaredError,
    "log_loss": LogLoss,
    "huber": Huber,
    "poisson": Poisson,
    "quantile": Quantile,
}


def names_for(kind: str) -> set[str]:
    """Return the names of losses for "numbers" or "labels"."""
    return {name for name, loss in NAMED.items() if kind in loss.accepts}


def loss_constraint(*kinds: str) -> list[Any]:
    """Return what a parameter `loss` for targets of these kinds may be."""
    return [StrOptions(set().union(*map(names_for, kinds))), Loss]


def resolved_loss(loss: str | Loss, kind: str) -> Loss:
    """Return the loss of a name, or a copy of an instance, for "numbers" or "labels".

    Raises
    ------
    ValueError
        For parameters of the loss out of range, or a loss for other targets.
    """
    chosen = NAMED[loss]() if isinstance(loss, str) else clone(loss)
    check_parameters(chosen, chosen._parameter_constraints)
    if kind not in chosen.accepts:
        others = ", ".join(repr(name) for name in sorted(names_for(kind)))
        wanted = " or ".join(sorted(chosen.accepts))
        raise ValueError(
            f"loss={loss!r} is for targets that are {wanted}, and here they are {kind}: take one "
            f"of {others}."
        )
    return chosen

"""Losses on the raw fit F (n, C): value, gradient, conjugate and curvature.

Every method takes and returns NumPy arrays or torch tensors alike, and weights rows by
``p`` (n,), non-negative and summing to one, so that "mean loss" always means
``sum_i p_i loss(F_i, Y_i)``. What users choose from is in :mod:`sklearn_convexbn.losses`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import ModuleType
from typing import Any, ClassVar

from sklearn.base import BaseEstimator

from sklearn_convexbn._arrays import Array, array_namespace, on_device
from sklearn_convexbn._sharding import ALL_HERE, Shards


class Loss(BaseEstimator, ABC):
    """A convex loss of one row, and its weighted mean.

    A subclass defines :meth:`value`, :meth:`gradient`, :meth:`hessian` and :meth:`conjugate` for
    raw outputs F (n, C), encoded targets Y (n, C) and row weights p (n,) that sum to one, NumPy
    arrays or torch tensors alike, and overrides of what follows where it differs. It is a small
    scikit-learn parameter object: an estimator reaches the parameters of its constructor as
    ``loss__x``, and `_parameter_constraints` are checked before a fit.

    Attributes
    ----------
    name : str
        Name of the loss in messages.
    curvature : float, default=inf
        Upper bound on the largest eigenvalue of the Hessian of one row's loss, for step sizes.
        Where there is none, steps are found by backtracking.
    identity_hessian : bool, default=False
        Whether the Hessian of one row's loss is the identity everywhere, so that it is half the
        squared distance from a target and a constant. Solvers then factorise once.
    accepts : frozenset of {"numbers", "labels"}, default={"numbers"}
        Targets it is for: numbers of regressors, labels of classifiers, or both. Labels are
        encoded as one target of -1 and 1 for two classes and one-hot for more.
    target_range : tuple of two floats, default=(-inf, inf)
        Closed interval of targets. Each output needs one in its inside, or at either end.
    rescales_target : bool, default=True
        Whether a regression target is centred and scaled to unit variance.
    degree : int, default=2
        Power of the unit of the target that the loss is in, where that is rescaled.
    """

    name: ClassVar[str]
    curvature: float = float("inf")
    identity_hessian: ClassVar[bool] = False
    accepts: ClassVar[frozenset[str]] = frozenset({"numbers"})
    target_range: ClassVar[tuple[float, float]] = (-float("inf"), float("inf"))
    rescales_target: ClassVar[bool] = True
    degree: ClassVar[int] = 2
    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {}

    def __eq__(self, other: object) -> bool:
        """Whether both are of one class and have the same parameters."""
        if not isinstance(other, Loss):
            return NotImplemented
        return type(self) is type(other) and self.get_params() == other.get_params()

    def __hash__(self) -> int:
        return hash((type(self), *sorted(self.get_params().items())))

    @abstractmethod
    def value(self, F: Array, Y: Array, p: Array) -> Array:
        """Return ``sum_i p_i loss(F_i, Y_i)``, a scalar."""

    @abstractmethod
    def gradient(self, F: Array, Y: Array, p: Array) -> Array:
        """Return the gradient of :meth:`value` in F, shape (n, C); row i carries p_i."""

    def value_and_gradient(self, F: Array, Y: Array, p: Array) -> tuple[Array, Array]:
        """Return :meth:`value` and :meth:`gradient`; a loss may share work between them."""
        return self.value(F, Y, p), self.gradient(F, Y, p)

    @abstractmethod
    def conjugate(self, U: Array, Y: Array, p: Array) -> Array:
        """Return the conjugate of :meth:`value` at U (n, C): ``sup_F <U, F> - value(F)``.

        Infinite outside the domain, which is judged up to rounding error.
        """

    @abstractmethod
    def hessian(self, F: Array, Y: Array, p: Array) -> Array:
        """Return the Hessian of :meth:`value` row by row, shape (n, C, C)."""

    def curvatures(self, F: Array, Y: Array, p: Array) -> tuple[Array, Array]:
        """Return D (n, C) and U (R, n, C): row i's Hessian is ``diag(D_i) - sum_r U_ri U_ri^T``.

        Newton steps of the solvers use this form, without n C^2 numbers where R is small. It may be
        another positive semidefinite matrix near the Hessian, where that vanishes or jumps. The
        default is computed from :meth:`hessian`.
        """
        return _low_rank_parts(self.hessian(F, Y, p))

    def prediction(self, F: Array) -> Array:
        """Return what a regressor predicts at the raw output F (n, C), of the same shape."""
        return F

    def of_outputs(self, n_outputs: int) -> Loss:
        """Return the loss for a number of outputs; this one unless it has several forms."""
        return self

    def first_intercept(self, F: Array, Y: Array, p: Array, shards: Shards = ALL_HERE) -> Array:
        """Return the b (C,) that the search for the best intercept of F starts at, zeros here."""
        return array_namespace(F).zeros_like(F[0])

    def cvxpy_value(self, F: Any, Y: Array, p: Array) -> Any:
        """Return :meth:`value` of a CVXPY expression F (n, C), for ``solver="cvxpy"``."""
        raise NotImplementedError(f"The {self.name} loss has no form in CVXPY.")

    def constant_fit(self, Y: Array, p: Array) -> Array:
        """Return the b (C,) that minimises ``value(1 b^T)``."""
        xp = array_namespace(Y)
        return optimal_intercept(self, xp.zeros_like(Y), Y, p)


class SquaredError(Loss):
    """Half the squared error, ``1/2 |f - y|^2``, for any number of outputs.

    Classifiers take it to targets of -1 and 1, or one-hot ones for more than two classes.
    """

    name = "squared"
    curvature = 1.0
    identity_hessian = True
    accepts = frozenset({"numbers", "labels"})

    def value(self, F: Array, Y: Array, p: Array) -> Array:
        return 0.5 * (p[:, None] * (F - Y) ** 2).sum()

    def gradient(self, F: Array, Y: Array, p: Array) -> Array:
        return p[:, None] * (F - Y)

    def conjugate(self, U: Array, Y: Array, p: Array) -> Array:
        return (U * (Y + 0.5 * U / p[:, None])).sum()

    def hessian(self, F: Array, Y: Array, p: Array) -> Array:
        xp = array_namespace(F)
        return p[:, None, None] * xp.eye(F.shape[1], dtype=F.dtype, **on_device(F))

    def curvatures(self, F: Array, Y: Array, p: Array) -> tuple[Array, Array]:
        return p[:, None] + 0.0 * F, F[None][:0]

    def cvxpy_value(self, F: Any, Y: Array, p: Array) -> Any:
        import cvxpy as cp

        return 0.5 * cp.sum_squares(cp.multiply(p[:, None] ** 0.5, F - Y))


class LogisticLoss(Loss):
    """Binary logistic loss, ``log(1 + exp(f)) - y f`` with y in {0, 1} and one output."""

    name = "logistic"
    curvature = 0.25
    accepts = frozenset({"labels"})

    def value(self, F: Array, Y: Array, p: Array) -> Array:
        xp = array_namespace(F)
        return (p[:, None] * (xp.logaddexp(xp.zeros_like(F), F) - Y * F)).sum()

    def gradient(self, F: Array, Y: Array, p: Array) -> Array:
        return p[:, None] * (_sigmoid(F) - Y)

    def conjugate(self, U: Array, Y: Array, p: Array) -> Array:
        pi = U / p[:, None] + Y
        return (p[:, None] * (_xlogx(pi) + _xlogx(1.0 - pi))).sum()

    def hessian(self, F: Array, Y: Array, p: Array) -> Array:
        s = _sigmoid(F)
        return (p[:, None] * s * _sigmoid(-F))[:, :, None]

    def cvxpy_value(self, F: Any, Y: Array, p: Array) -> Any:
        import cvxpy as cp

        return p @ (cp.logistic(F) - cp.multiply(Y, F))[:, 0]


class SoftmaxLoss(Loss):
    """Multinomial cross-entropy, ``log sum_c exp(f_c) - <y, f>`` with one-hot y (n, C)."""

    name = "softmax"
    curvature = 0.5
    accepts = frozenset({"labels"})

    def value(self, F: Array, Y: Array, p: Array) -> Array:
        xp = array_namespace(F)
        top = xp.amax(F, axis=1, keepdims=True)
        lse = xp.log(xp.exp(F - top).sum(axis=1)) + top[:, 0]
        return (p * (lse - (Y * F).sum(axis=1))).sum()

    def gradient(self, F: Array, Y: Array, p: Array) -> Array:
        return self.value_and_gradient(F, Y, p)[1]

    def value_and_gradient(self, F: Array, Y: Array, p: Array) -> tuple[Array, Array]:
        xp = array_namespace(F)
        top = xp.amax(F, axis=1, keepdims=True)
        e = xp.exp(F - top)
        total = e.sum(axis=1)
        value = (p * (xp.log(total) + top[:, 0] - (Y * F).sum(axis=1))).sum()
        # 1 - softmax of the own class cancels where that is near 1.
        others = e * (1.0 - Y) / total[:, None]
        return value, p[:, None] * (others - Y * others.sum(axis=1)[:, None])

    def conjugate(self, U: Array, Y: Array, p: Array) -> Array:
        xp = array_namespace(U)
        pi = U / p[:, None] + Y
        outside = xp.abs(pi.sum(axis=1) - 1.0) > 1e-9
        entropy = (p[:, None] * _xlogx(pi)).sum()
        return entropy + float("inf") if bool(outside.any()) else entropy

    def hessian(self, F: Array, Y: Array, p: Array) -> Array:
        xp = array_namespace(F)
        s = softmax(F)
        diagonal = s[:, :, None] * xp.eye(s.shape[1], dtype=s.dtype, **on_device(s))
        return p[:, None, None] * (diagonal - s[:, :, None] * s[:, None, :])

    def curvatures(self, F: Array, Y: Array, p: Array) -> tuple[Array, Array]:
        s = softmax(F)
        return p[:, None] * s, (p[:, None] ** 0.5 * s)[None]

    def cvxpy_value(self, F: Any, Y: Array, p: Array) -> Any:
        import cvxpy as cp

        return p @ (cp.log_sum_exp(F, axis=1) - cp.sum(cp.multiply(Y, F), axis=1))


LOSSES: dict[str, Loss] = {
    loss.name: loss for loss in (SquaredError(), LogisticLoss(), SoftmaxLoss())
}


def _low_rank_parts(H: Array) -> tuple[Array, Array]:
    """Return D (n, C) and U (R, n, C) of the Hessians H (n, C, C) of rows."""
    xp = array_namespace(H)
    D = xp.diagonal(H, 0, 1, 2)
    couplings = H - D[:, :, None] * xp.eye(H.shape[1], dtype=H.dtype, **on_device(H))
    if not bool((couplings != 0).any()):
        return D, D[None][:0]
    values, vectors = xp.linalg.eigh(H)
    top = values[:, -1:]
    U = vectors * ((top - values).clip(min=0.0) ** 0.5)[:, None, :]
    return top + 0.0 * values, xp.moveaxis(U, 2, 0)[:-1]


def softmax(F: Array) -> Array:
    """Return the row-wise softmax of F (n, C)."""
    xp = array_namespace(F)
    e = xp.exp(F - xp.amax(F, axis=1, keepdims=True))
    return e / e.sum(axis=1)[:, None]


def optimal_intercept(
    loss: Loss,
    F: Array,
    Y: Array,
    p: Array,
    *,
    max_iter: int = 200,
    shards: Shards = ALL_HERE,
) -> Array:
    """Return the b (C,) that minimises ``loss.value(F + 1 b^T)``.

    Newton steps, and where the curvature has underflown (a fit far from the targets) gradient
    steps, which the curvature bound makes safe, doubled as long as they help. At the minimum
    the columns of the gradient sum to zero, which is the constraint ``1^T Lambda = 0`` of the
    dual (:mod:`sklearn_convexbn._problem`); the steps go on until that sum is at rounding
    level. Where no minimum exists (one class only) the last iterate is returned.

    Parameters
    ----------
    loss : Loss
    F : array of shape (n, C)
        The fit without intercept.
    Y : array of shape (n, C)
    p : array of shape (n,)
        Row weights, summing to one.
    max_iter : int, default=200
    shards : Shards, default=ALL_HERE
        Where the other rows are, if these are not all.

    Returns
    -------
    b : array of shape (C,)
    """
    xp, total = array_namespace(F), shards.total
    b = loss.first_intercept(F, Y, p, shards)
    value, steepest = float(total(loss.value(F + b, Y, p))), float("inf")
    for _ in range(max_iter):
        gradient = loss.gradient(F + b, Y, p)
        slope, length = shards.totals(gradient.sum(axis=0), xp.abs(gradient).sum())
        size, rounding = float(xp.abs(slope).max()), _eps(F) * float(length)
        if size <= 4 * rounding or (size <= 100 * rounding and size >= 0.5 * steepest):
            break
        steepest = size
        newton = -_pinv_solve(xp, total(_summed_hessian(loss, F + b, Y, p)), slope)
        b_new = b + newton
        new = float(total(loss.value(F + b_new, Y, p)))
        # Gradient steps lower the value by at least half of slope^2 / curvature.
        promised = 0.25 * float((slope * slope).sum()) / loss.curvature
        if not new <= value - promised + 1e-15 * abs(value):
            b_new, new = _gradient_step(loss, F, Y, p, b, slope, value, shards)
            if not new < value:
                break
        b, value = b_new, new
    return b


def _summed_hessian(loss: Loss, F: Array, Y: Array, p: Array, block: int = 4096) -> Array:
    """Return the sum of the Hessians of all rows (C, C)."""
    blocks = [slice(start, start + block) for start in range(0, len(F), block)]
    return sum(loss.hessian(F[rows], Y[rows], p[rows]).sum(axis=0) for rows in blocks)


def _gradient_step(
    loss: Loss,
    F: Array,
    Y: Array,
    p: Array,
    b: Array,
    slope: Array,
    value: float,
    shards: Shards,
) -> tuple[Array, float]:
    """Step by 1 / curvature along minus `slope`, doubled while the value falls.

    Without a bound on the curvature the first step is halved until the value falls.
    """
    best, best_value = b, value
    bounded = loss.curvature < float("inf")
    size = 1.0 / loss.curvature if bounded else 1.0
    for _ in range(0 if bounded else 200):
        if float(shards.total(loss.value(F + (b - size * slope), Y, p))) < value:
            break
        size *= 0.5
    while True:
        trial = float(shards.total(loss.value(F + (b - size * slope), Y, p)))
        if not trial < best_value:
            return best, best_value
        best, best_value = b - size * slope, trial
        size *= 2.0


def _pinv_solve(xp: ModuleType, H: Array, g: Array) -> Array:
    """Solve H x = g for a small symmetric PSD H; softmax leaves the all-ones direction free."""
    scale = float(xp.abs(H).max())
    if scale == 0.0:
        return xp.zeros_like(g)
    values, vectors = xp.linalg.eigh(H / scale)
    kept = values > 1e-12
    inverse = xp.where(kept, 1.0 / xp.where(kept, values, xp.ones_like(values)), 0 * values)
    return vectors @ (inverse * (vectors.T @ g)) / scale


def _sigmoid(F: Array) -> Array:
    xp = array_namespace(F)
    return xp.exp(-xp.logaddexp(xp.zeros_like(F), -F))


def _xlogx(t: Array) -> Array:
    """Return t log t, 0 at t = 0 (and just below, by rounding), infinity for negative t."""
    xp = array_namespace(t)
    safe = xp.where(t > 0, t, xp.ones_like(t))
    outside = xp.where(t < -1e-9, xp.full_like(t, float("inf")), xp.zeros_like(t))
    return safe * xp.log(safe) + outside


def _eps(a: Array) -> float:
    return float(array_namespace(a).finfo(a.dtype).eps)

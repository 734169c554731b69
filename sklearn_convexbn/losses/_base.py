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

from sklearn_convexbn.losses._dual_rows import DualRows, Probabilities, Residuals
from sklearn_convexbn.support._arrays import Array, Same, array_namespace, on_device
from sklearn_convexbn.support._sharding import Shards

#: Newton steps of the intercept with less curvature than this would leave the range of floats.
LEAST_CURVATURE = 1e-150

#: Estimated errors divide by at least this share of the rows, where degrees of freedom nearly are
#: as many as they.
LEAST_FREEDOM = 0.05


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
    exact_curvatures : bool, default=False
        Whether :meth:`curvatures` are the Hessian, and cheaper for many outputs.
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
    exact_curvatures: ClassVar[bool] = False
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
    def value(self, F: Same, Y: Same, p: Same) -> Any:
        """Return ``sum_i p_i loss(F_i, Y_i)``, a scalar."""

    @abstractmethod
    def gradient(self, F: Same, Y: Same, p: Same) -> Same:
        """Return the gradient of :meth:`value` in F, shape (n, C); row i carries p_i."""

    def value_and_gradient(self, F: Same, Y: Same, p: Same) -> tuple[Any, Same]:
        """Return :meth:`value` and :meth:`gradient`; a loss may share work between them."""
        return self.value(F, Y, p), self.gradient(F, Y, p)

    @abstractmethod
    def conjugate(self, U: Same, Y: Same, p: Same) -> Any:
        """Return the conjugate of :meth:`value` at U (n, C): ``sup_F <U, F> - value(F)``.

        Infinite outside the domain, which is judged up to rounding error. Accurate relative to
        itself, also where it is tiny, like :meth:`value`: certificates are differences of both.
        """

    def outside(self, U: Same, Y: Same, p: Same) -> Any:
        """Return how far U (n, C) leaves the conjugate's domain, at least 0; 0 is inside.

        Judged without tolerance. A loss whose conjugate is finite everywhere need not define it.
        """
        return 0.0 * U.sum()

    @abstractmethod
    def hessian(self, F: Same, Y: Same, p: Same) -> Same:
        """Return the Hessian of :meth:`value` row by row, shape (n, C, C)."""

    def curvatures(self, F: Same, Y: Same, p: Same) -> tuple[Same, Same]:
        """Return D (n, C) and U (R, n, C): row i's Hessian is ``diag(D_i) - sum_r U_ri U_ri^T``.

        Newton steps of the solvers use this form, without n C^2 numbers where R is small. It may be
        another positive semidefinite matrix near the Hessian, where that vanishes or jumps. The
        default is computed from :meth:`hessian`.
        """
        return _low_rank_parts(self.hessian(F, Y, p))

    def dual_rows(self, Y: Array, p: Array) -> DualRows | None:
        """Return the conjugate row by row with its derivatives, for methods on the dual.

        None, where it is not known: such methods then leave the loss to others. Known here where
        the Hessian is the identity.
        """
        if not self.identity_hessian:
            return None
        return Residuals(-self.gradient(array_namespace(Y).zeros_like(Y), Y, p) / p[:, None], p)

    def estimated_error(self, value: float, freedom: float) -> float:
        """Return an estimate of the mean loss on new rows, from that on the training rows.

        Parameters
        ----------
        value : float
            `value` of a network on the rows it was fitted to.
        freedom : float
            Degrees of freedom that were spent on it, a row.

        Returns
        -------
        float
            `value` here, for a loss that nothing is known of; ``alpha="auto"`` then stays as it
            begins.
        """
        return value

    def prediction(self, F: Same) -> Same:
        """Return what a regressor predicts at the raw output F (n, C), of the same shape."""
        return F

    def of_outputs(self, n_outputs: int) -> Loss:
        """Return the loss for a number of outputs; this one unless it has several forms."""
        return self

    def first_intercept(self, F: Same, Y: Same, p: Same, shards: Shards) -> Same:
        """Return the b (C,) that the search for the best intercept of F starts at, zeros here."""
        return array_namespace(F).zeros_like(F[0])

    def cvxpy_value(self, F: Any, Y: Array, p: Array) -> Any:
        """Return :meth:`value` of a CVXPY expression F (n, C), for ``solver="cvxpy"``."""
        raise NotImplementedError(f"The {self.name} loss has no form in CVXPY.")


class SquaredError(Loss):
    """Half the squared error, ``1/2 |f - y|^2``, for any number of outputs.

    Classifiers take it to targets of -1 and 1, or one-hot ones for more than two classes.
    """

    name = "squared"
    curvature = 1.0
    identity_hessian = True
    exact_curvatures = True
    accepts = frozenset({"numbers", "labels"})

    def value(self, F: Same, Y: Same, p: Same) -> Any:
        return 0.5 * (p[:, None] * (F - Y) ** 2).sum()

    def gradient(self, F: Same, Y: Same, p: Same) -> Same:
        return p[:, None] * (F - Y)

    def conjugate(self, U: Same, Y: Same, p: Same) -> Any:
        return (U * (Y + 0.5 * U / p[:, None])).sum()

    def hessian(self, F: Same, Y: Same, p: Same) -> Same:
        xp = array_namespace(F)
        return p[:, None, None] * xp.eye(F.shape[1], dtype=F.dtype, **on_device(F))

    def curvatures(self, F: Same, Y: Same, p: Same) -> tuple[Same, Same]:
        return p[:, None] + 0.0 * F, F[None][:0]

    def estimated_error(self, value: float, freedom: float) -> float:
        return cross_validated(value, freedom, power=2)

    def cvxpy_value(self, F: Any, Y: Array, p: Array) -> Any:
        import cvxpy as cp

        return 0.5 * cp.sum_squares(cp.multiply(p[:, None] ** 0.5, F - Y))


class LogisticLoss(Loss):
    """Binary logistic loss, ``log(1 + exp(f)) - y f`` with y in {0, 1} and one output."""

    name = "logistic"
    curvature = 0.25
    accepts = frozenset({"labels"})

    def value(self, F: Same, Y: Same, p: Same) -> Any:
        # log(1 + exp(f)) - f and sigmoid(f) - 1 would cancel where rows are fitted well.
        xp = array_namespace(F)
        zero = xp.zeros_like(F)
        losses = (1.0 - Y) * xp.logaddexp(zero, F) + Y * xp.logaddexp(zero, -F)
        return (p[:, None] * losses).sum()

    def gradient(self, F: Same, Y: Same, p: Same) -> Same:
        return p[:, None] * ((1.0 - Y) * _sigmoid(F) - Y * _sigmoid(-F))

    def conjugate(self, U: Same, Y: Same, p: Same) -> Any:
        u = U / p[:, None]
        pi, rest = Y + u, (1.0 - Y) - u
        return (p[:, None] * (_xlogx(pi, rest) + _xlogx(rest, pi))).sum()

    def outside(self, U: Same, Y: Same, p: Same) -> Any:
        u = U / p[:, None]
        return _largest_below_zero(Y + u, (1.0 - Y) - u)

    def dual_rows(self, Y: Array, p: Array) -> DualRows:
        return Probabilities(Y, p)

    def estimated_error(self, value: float, freedom: float) -> float:
        return value + freedom  # Akaike's criterion: a negative log-likelihood

    def hessian(self, F: Same, Y: Same, p: Same) -> Same:
        s = _sigmoid(F)
        return (p[:, None] * s * _sigmoid(-F))[:, :, None]

    def cvxpy_value(self, F: Any, Y: Array, p: Array) -> Any:
        import cvxpy as cp

        return p @ (cp.logistic(F) - cp.multiply(Y, F))[:, 0]


class SoftmaxLoss(Loss):
    """Multinomial cross-entropy, ``log sum_c exp(f_c) - <y, f>`` with one-hot y (n, C)."""

    name = "softmax"
    curvature = 0.5
    exact_curvatures = True
    accepts = frozenset({"labels"})

    def value(self, F: Same, Y: Same, p: Same) -> Any:
        return (p * _cross_entropies(F, Y)[0]).sum()

    def gradient(self, F: Same, Y: Same, p: Same) -> Same:
        return self.value_and_gradient(F, Y, p)[1]

    def value_and_gradient(self, F: Same, Y: Same, p: Same) -> tuple[Any, Same]:
        losses, others, rest = _cross_entropies(F, Y)
        return (p * losses).sum(), p[:, None] * (others - Y * rest[:, None])

    def conjugate(self, U: Same, Y: Same, p: Same) -> Any:
        # The own class has what the others leave: 1 + u would lose what is near zero there.
        xp = array_namespace(U)
        u = U / p[:, None]
        others = u * (1.0 - Y)
        rest = others.sum(axis=1)
        entropy = (p[:, None] * _xlogx(others, 1.0 - others)).sum()
        entropy = entropy + (p * _xlogx(1.0 - rest, rest)).sum()
        outside = xp.abs(u.sum(axis=1)) > 1e-9
        return entropy + float("inf") if bool(outside.any()) else entropy

    def outside(self, U: Same, Y: Same, p: Same) -> Any:
        others = U / p[:, None] * (1.0 - Y)
        return _largest_below_zero(others, 1.0 - others.sum(axis=1))

    def dual_rows(self, Y: Array, p: Array) -> DualRows:
        return Probabilities(Y, p)

    def estimated_error(self, value: float, freedom: float) -> float:
        return value + freedom  # Akaike's criterion: a negative log-likelihood

    def hessian(self, F: Same, Y: Same, p: Same) -> Same:
        xp = array_namespace(F)
        s = softmax(F)
        diagonal = s[:, :, None] * xp.eye(s.shape[1], dtype=s.dtype, **on_device(s))
        return p[:, None, None] * (diagonal - s[:, :, None] * s[:, None, :])

    def curvatures(self, F: Same, Y: Same, p: Same) -> tuple[Same, Same]:
        s = softmax(F)
        return p[:, None] * s, (p[:, None] ** 0.5 * s)[None]

    def cvxpy_value(self, F: Any, Y: Array, p: Array) -> Any:
        import cvxpy as cp

        return p @ (cp.log_sum_exp(F, axis=1) - cp.sum(cp.multiply(Y, F), axis=1))


LOSSES: dict[str, Loss] = {
    loss.name: loss for loss in (SquaredError(), LogisticLoss(), SoftmaxLoss())
}


def cross_validated(value: float, freedom: float, *, power: int) -> float:
    """Return a mean loss of degree `power` in the residuals as generalized cross-validation does.

    Left out, a row has its residual over ``1 - freedom`` (P. Craven, G. Wahba, "Smoothing Noisy
    Data with Spline Functions", Numerische Mathematik 1979; for absolute values M. Yuan, "GACV for
    Quantile Smoothing Splines", Computational Statistics & Data Analysis 2006).
    """
    return value / max(1.0 - freedom, LEAST_FREEDOM) ** power


def _low_rank_parts(H: Same) -> tuple[Same, Same]:
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


def softmax(F: Same) -> Same:
    """Return the row-wise softmax of F (n, C)."""
    xp = array_namespace(F)
    e = xp.exp(F - xp.amax(F, axis=1, keepdims=True))
    return e / e.sum(axis=1)[:, None]


def _cross_entropies(F: Same, Y: Same) -> tuple[Same, Same, Same]:
    """Return the losses (n,), the softmax off the own class (n, C), 0 there, and its sums (n,).

    Where the own class is near 1, the logarithm of the sum and 1 - softmax would cancel.
    """
    xp = array_namespace(F)
    top = xp.amax(F, axis=1, keepdims=True)
    e = xp.exp(F - top)
    total = e.sum(axis=1)
    others = e * (1.0 - Y)
    rest, behind = others.sum(axis=1), top[:, 0] - (Y * F).sum(axis=1)
    losses = xp.where(behind == 0.0, xp.log1p(rest), xp.log(total) + behind)
    return losses, others / total[:, None], rest / total


def optimal_intercept(
    loss: Loss,
    F: Same,
    Y: Same,
    p: Same,
    shards: Shards,
    *,
    max_iter: int = 200,
) -> Same:
    """Return the b (C,) that minimises ``loss.value(F + 1 b^T)``.

    Newton steps as long as they halve the slope; where that leads nowhere, those that lower the
    value, and where the curvature has underflown (a fit far from the targets) gradient steps,
    which the curvature bound makes safe, doubled as long as they help. At the minimum
    the columns of the gradient sum to zero, which is the constraint ``1^T Lambda = 0`` of the
    dual (:mod:`sklearn_convexbn.program._problem`); the steps go on until that sum is at rounding
    level. Where no minimum exists (one class only) the last iterate is returned.

    Parameters
    ----------
    loss : Loss
    F : array of shape (n, C)
        The fit without intercept.
    Y : array of shape (n, C)
    p : array of shape (n,)
        Row weights, summing to one.
    shards : Shards
        Where the other rows are, if these are not all.
    max_iter : int, default=200

    Returns
    -------
    b : array of shape (C,)
    """
    xp, total = array_namespace(F), shards.total
    b = loss.first_intercept(F, Y, p, shards)
    near, done = _polished(loss, F, Y, p, b, shards)
    if done:
        return near
    value, steepest = float(total(loss.value(F + b, Y, p))), float("inf")
    for _ in range(max_iter):
        slope, rounding = _slope(loss, F + b, Y, p, shards)
        size = float(xp.abs(slope).max())
        if size <= 4 * rounding or (size <= 100 * rounding and size >= 0.5 * steepest):
            break
        steepest = size
        H = total(_summed_hessian(loss, F + b, Y, p))
        # Gradient steps lower the value by at least half of slope^2 / curvature.
        promised = 0.25 * float((slope * slope).sum()) / loss.curvature
        for scaled in (True, False):
            b_new = b - _pinv_solve(xp, H, slope, scaled=scaled)
            new = float(total(loss.value(F + b_new, Y, p)))
            if new <= value - promised + 1e-15 * abs(value):
                break
        else:
            b_new, new = _gradient_step(loss, F, Y, p, b, slope, value, shards)
            if not new < value:
                break
        b, value = b_new, new
    return _polished(loss, F, Y, p, b, shards)[0]


def _polished(
    loss: Loss, F: Same, Y: Same, p: Same, b: Same, shards: Shards, max_iter: int = 20
) -> tuple[Same, bool]:
    """Take Newton steps on b (C,) for as long as they halve the slope; say if that is rounding.

    Close to the minimum values differ by less than rounding, which the slope, relative to the sum
    of its terms, does not yet; and the dual value is off by the slope times b.
    """
    xp = array_namespace(F)
    slope, rounding = _slope(loss, F + b, Y, p, shards)
    size = float(xp.abs(slope).max())
    for _ in range(max_iter):
        if size <= rounding:
            break
        trial = b + newton_step(loss, F + b, Y, p, slope, shards)
        slope, trial_rounding = _slope(loss, F + trial, Y, p, shards)
        trial_size = float(xp.abs(slope).max())
        if not trial_size <= 0.5 * size:
            break
        b, size, rounding = trial, trial_size, trial_rounding
    return b, size <= 100 * rounding


def newton_step(loss: Loss, F: Same, Y: Same, p: Same, slope: Same, shards: Shards) -> Same:
    """Return the Newton step of the intercept (C,) at the fit F with its summed gradient (C,)."""
    H = shards.total(_summed_hessian(loss, F, Y, p))
    return -_pinv_solve(array_namespace(F), H, slope, scaled=True)


def newton_change(loss: Loss, F: Same, Y: Same, p: Same, step: Same, block: int = 4096) -> Same:
    """Return how a step of the intercept (C,) changes the gradient (n, C), to first order."""
    if loss.exact_curvatures:
        D, U = loss.curvatures(F, Y, p)
        return D * step - ((U @ step)[:, :, None] * U).sum(axis=0)
    blocks = [slice(start, start + block) for start in range(0, len(F), block)]
    products = [loss.hessian(F[rows], Y[rows], p[rows]) @ step for rows in blocks]
    return array_namespace(F).concatenate(products)


def _slope(loss: Loss, F: Same, Y: Same, p: Same, shards: Shards) -> tuple[Same, float]:
    """Return the summed gradient (C,) at the fit F, and the rounding error that it may have."""
    gradient = loss.gradient(F, Y, p)
    length = array_namespace(F).abs(gradient).sum()
    slope, length = shards.totals(gradient.sum(axis=0), length)
    return slope, _eps(F) * float(length)


def _summed_hessian(loss: Loss, F: Same, Y: Same, p: Same, block: int = 4096) -> Same:
    """Return the sum of the Hessians of all rows (C, C)."""
    if loss.exact_curvatures:
        D, U = loss.curvatures(F, Y, p)
        couplings = U.reshape(-1, F.shape[1])
        H = -couplings.T @ couplings
        H.reshape(-1)[:: len(H) + 1] = (D - (U * U).sum(axis=0)).sum(axis=0)
        return H
    if len(F) <= block:
        return loss.hessian(F, Y, p).sum(axis=0)
    blocks = [slice(start, start + block) for start in range(0, len(F), block)]
    return sum(loss.hessian(F[rows], Y[rows], p[rows]).sum(axis=0) for rows in blocks)


def _gradient_step(
    loss: Loss,
    F: Same,
    Y: Same,
    p: Same,
    b: Same,
    slope: Same,
    value: float,
    shards: Shards,
) -> tuple[Same, float]:
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


def _pinv_solve(xp: ModuleType, H: Same, g: Same, *, scaled: bool) -> Same:
    """Solve H x = g for a small symmetric PSD H; softmax leaves the all-ones direction free.

    Where a class weighs next to nothing, `scaled` keeps its direction, whose curvature is tiny;
    else such directions are left out.
    """
    diagonal = H.diagonal()
    if not float(diagonal.max()) > LEAST_CURVATURE:
        return xp.zeros_like(g)
    if len(g) == 1:
        return g / diagonal
    sizes = xp.where(diagonal > 0, diagonal, xp.ones_like(g)) if scaled else 0 * g + diagonal.max()
    d = sizes**-0.5
    values, vectors = xp.linalg.eigh(H * d[:, None] * d)
    kept = values > 1e-12
    inverse = xp.where(kept, 1.0 / xp.where(kept, values, xp.ones_like(values)), 0 * values)
    return d * (vectors @ (inverse * (vectors.T @ (d * g))))


def _sigmoid(F: Same) -> Same:
    xp = array_namespace(F)
    return xp.exp(-xp.logaddexp(xp.zeros_like(F), -F))


def _xlogx(t: Array, rest: Array | None = None) -> Array:
    """Return t log t, 0 at t = 0 (and just below, by rounding), infinity for negative t.

    Near t = 1 the logarithm is taken of ``rest = 1 - t``, which may be given with more digits.
    """
    xp = array_namespace(t)
    rest = 1.0 - t if rest is None else rest
    safe = xp.where(t > 0, t, xp.ones_like(t))
    near = xp.abs(rest) < 0.5
    logarithm = xp.where(near, xp.log1p(-xp.where(near, rest, 0.0 * rest)), xp.log(safe))
    outside = xp.where(t < -1e-9, xp.full_like(t, float("inf")), xp.zeros_like(t))
    return xp.where(t > 0, t, xp.zeros_like(t)) * logarithm + outside


def _largest_below_zero(*arrays: Array) -> Array:
    """Return the largest amount by which an entry is below zero, at least 0."""
    amounts = [(-a).clip(min=0.0).max() for a in arrays]
    return max(amounts)


def _eps(a: Array) -> float:
    return float(array_namespace(a).finfo(a.dtype).eps)

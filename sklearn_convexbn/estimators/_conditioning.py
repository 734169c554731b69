"""How well conditioned the training of a hidden layer is, with and without normalization."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy import linalg
from sklearn.utils import check_random_state

from sklearn_convexbn.data._whitening import Whitening
from sklearn_convexbn.estimators._certify import CONSTRAINTS
from sklearn_convexbn.estimators._judged_problem import problem_of_network
from sklearn_convexbn.losses._base import Loss
from sklearn_convexbn.program._problem import Neurons, Problem
from sklearn_convexbn.support._compat import check_arguments
from sklearn_convexbn.support._device import plain_torch
from sklearn_convexbn.support._sharding import refuse_shards

#: Numbers in a Jacobian, at most (0.5 GiB), and its smaller side, whose cube the time grows with.
MAX_NUMBERS, MAX_SIDE = 2**26, 3000

NAMES = ("loss", "sample_weight", "n_components", "shrinkage", "random_state")


class CurvatureSpectrum(NamedTuple):
    """Eigenvalues of a positive semidefinite matrix of curvatures.

    Attributes
    ----------
    eigenvalues : ndarray of shape (r,)
        Decreasing, up to the rank: those at rounding level are left out.
    """

    eigenvalues: np.ndarray

    def condition_number(self, share: float = 1.0) -> float:
        """Return the largest eigenvalue over that at a share of the spectrum, by default the last.

        Gradient descent takes about so many steps to reach the optimum along the directions up to
        there. NaN without eigenvalues.
        """
        r = len(self.eigenvalues)
        if r == 0:
            return float("nan")
        return float(self.eigenvalues[0] / self.eigenvalues[max(1, round(share * r)) - 1])


class LayerSpectra(NamedTuple):
    """Spectra of the hidden layer in one set of coordinates.

    Attributes
    ----------
    gram : CurvatureSpectrum
        Of the mean of ``z z^T`` over the rows z that enter the layer.
    initial : CurvatureSpectrum
        Of the Hessian at a random network of the same width.
    final : CurvatureSpectrum
        Of the Hessian at the network itself.
    """

    gram: CurvatureSpectrum
    initial: CurvatureSpectrum
    final: CurvatureSpectrum


class Conditioning(NamedTuple):
    """Spectra of the hidden layer, by the coordinates that training moves.

    Attributes
    ----------
    plain : LayerSpectra
        Weights and offsets of a layer without normalization, on X as it is.
    batch_norm : LayerSpectra
        Weights of length one, scales and shifts of a batch-normalized layer, on the directions of X
        that are kept.
    whitened : LayerSpectra
        Weights on whitened rows and a one: the coordinates of the convex program.
    """

    plain: LayerSpectra
    batch_norm: LayerSpectra
    whitened: LayerSpectra


@plain_torch()
def conditioning(
    network: Any,
    X: Any,
    y: Any,
    *,
    loss: str | Loss | None = None,
    sample_weight: Any = None,
    n_components: int | float | None = None,
    shrinkage: float | str | None = None,
    random_state: int | np.random.RandomState | None = None,
) -> Conditioning:
    """Return the curvature that training sees in the hidden layer, before and after normalization.

    At a random network and at a fitted one, the spectrum of the Hessian of the mean loss in the
    hidden weights is computed in three coordinates: weights of a plain layer on X, those of a
    batch-normalized layer, and those on whitened rows. The steps of gradient descent grow with the
    ratio of largest and smallest eigenvalue.

    Parameters
    ----------
    network : estimator or torch.nn.Sequential
        Any of those that :func:`certify` takes, but for images. It is not modified.
    X : {array-like, sparse matrix} of shape (n_samples, n_features)
        The rows it was trained on, in the units of training: after the scaler of a pipeline.
    y : array-like of shape (n_samples,) or (n_samples, n_outputs)
        Their targets.
    loss : str or Loss or None, default=None
        As in :func:`certify`.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights of the rows.
    n_components : int, float or None, default=None
        Directions of X kept by the whitening; None takes the estimator's, or all.
    shrinkage : float in [0, 1], "eps", "auto" or None, default=None
        Of the whitening; None takes the estimator's, or 0.
    random_state : int, RandomState instance or None, default=None
        Draws the random network.

    Returns
    -------
    spectra : Conditioning
        Named tuple of `plain`, `batch_norm` and `whitened`, each a `LayerSpectra` of `gram`,
        `initial` and `final`.

    Raises
    ------
    TypeError
        If `network` is none of the kinds above.
    ValueError
        As :func:`certify`, and for images, a network without hidden units, or a layer that is too
        large: fewer rows do.

    See Also
    --------
    certify : How far the network is from the optimum.
    SpectrumDisplay : Draws the singular values of X.

    Notes
    -----
    For fixed output weights the network is piecewise linear in the weights of a plain layer and of
    whitened ones, so that ``J^T H J`` is the Hessian wherever it exists: J the derivatives of the
    outputs in the hidden weights, H the Hessian of the mean loss in the outputs. Through batch
    normalization that is the Gauss-Newton part of it. Output weights are those of balanced
    scales, the same in all three. The random network has weights drawn from a normal
    distribution, of length one, no offsets (scale 1 and shift 0 with normalization), and output
    weights of length ``m^(-1/2)`` for m units. The ratio of the extreme eigenvalues is the
    layer-wise condition of [1]_. The length of weights, which batch normalization ignores, is left
    out.

    References
    ----------
    .. [1] L. Huang et al., "Layer-wise Conditioning Analysis in Exploring the Learning Dynamics of
       DNNs", ECCV 2020, arXiv:2002.10801.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn_convexbn import ConvexBNRegressor, conditioning
    >>> X, y = load_diabetes(return_X_y=True)
    >>> model = ConvexBNRegressor(alpha=0.1, shrinkage=0.0, random_state=0).fit(X, y)
    >>> spectra = conditioning(model, X, y, random_state=0)
    >>> spectra.whitened.gram.condition_number() < 1.0001 < spectra.plain.gram.condition_number()
    True
    """
    given = (loss, sample_weight, n_components, shrinkage, random_state)
    constraints = {name: CONSTRAINTS[name] for name in NAMES if name in CONSTRAINTS}
    check_arguments("conditioning", dict(zip(NAMES, given, strict=True)), constraints)
    refuse_shards("conditioning")
    data, problem, whitening, neurons = problem_of_network(
        network,
        X,
        y,
        sample_weight,
        caller="conditioning",
        alpha=1.0,
        loss=loss,
        n_components=n_components,
        shrinkage=shrinkage,
    )
    if data.patches is not None:
        raise ValueError("conditioning does not take networks of images.")
    if len(neurons) == 0:
        raise ValueError("The network has no hidden units, so there is no layer to look at.")
    _check_size(len(neurons), problem.n_outputs, *data.rows.shape)
    rows = data.rows.on_cpu().to_array()
    start, plain_start, end = _networks(problem, whitening, rows, neurons, random_state)
    on_rows = np.hstack([rows, np.ones((len(rows), 1))])
    Z = np.asarray(problem.Z, dtype=np.float64)
    centred = (Z[:, :-1] * whitening.scales) @ (whitening.components * whitening.units[:, None]).T
    normalized = [_through_batch_norm(centred, problem.p, net) for net in (start, end)]
    return Conditioning(
        plain=_spectra(problem, on_rows, [(plain_start, on_rows), (end, on_rows)]),
        batch_norm=_spectra(problem, centred, list(zip((start, end), normalized, strict=True))),
        whitened=_spectra(problem, Z, [(start, Z), (end, Z)]),
    )


class _Layered(NamedTuple):
    """Inputs (n, m) of the hidden units on the rows, and weights (d, m) and (m, C)."""

    inputs: np.ndarray
    hidden: np.ndarray
    output: np.ndarray


def _networks(
    problem: Problem,
    whitening: Whitening,
    rows: np.ndarray,
    neurons: Neurons,
    random_state: int | np.random.RandomState | None,
) -> tuple[_Layered, _Layered, _Layered]:
    """Return a random network, with and without normalization, and the given one, balanced."""
    rng = check_random_state(random_state)
    root = np.linalg.norm(neurons.weights, axis=1, keepdims=True) ** 0.5
    q = neurons.directions * root
    V = rng.standard_normal(neurons.weights.shape)
    V /= np.linalg.norm(V, axis=1, keepdims=True) * len(V) ** 0.5
    W = whitening.projected(rng.standard_normal((rows.shape[1], len(V))))
    W /= np.linalg.norm(W, axis=0)
    inputs = rows @ W
    centred = inputs - problem.p @ inputs
    deviation = np.sqrt(problem.p @ centred**2)
    return (
        _Layered(centred / deviation, W / deviation, V),
        _Layered(inputs, W, V),
        _Layered(problem.Z @ q.T, whitening.hidden_layer(q)[0], neurons.weights / root),
    )


def _through_batch_norm(centred: np.ndarray, p: np.ndarray, network: _Layered) -> np.ndarray:
    """Return the derivatives (n, m, d + 1) of the units' inputs in weights, scale and shift.

    Those in the weights are along the sphere, in an orthonormal basis of its d - 1 dimensions.
    """
    H = network.inputs - p @ network.inputs
    deviation = np.sqrt(p @ H**2)
    H = np.divide(H, deviation, out=np.zeros_like(H), where=deviation > 0.0)
    J = np.ones((*H.shape, centred.shape[1] + 1))
    for j, w in enumerate(network.hidden.T):
        u = w / max(np.linalg.norm(w), 1e-300)
        u[0] += np.copysign(1.0, u[0])  # a reflection takes w to the first axis
        A = (centred - np.outer(centred @ u, u * (2.0 / (u @ u))))[:, 1:]
        J[:, j, :-2] = np.linalg.norm(w) * (A - np.outer(H[:, j], p * H[:, j] @ A))
    J[:, :, -2] = H
    return J


def _spectra(
    problem: Problem, entering: np.ndarray, points: list[tuple[_Layered, np.ndarray]]
) -> LayerSpectra:
    """Return the spectra of rows that enter the layer and of networks, each with derivatives."""
    gram = _squared_singular_values(problem.p[:, None] ** 0.5 * entering)
    return LayerSpectra(gram, *(_hessian(problem, *point) for point in points))


def _hessian(problem: Problem, network: _Layered, derivatives: np.ndarray) -> CurvatureSpectrum:
    """Return the spectrum for derivatives (n, K) or (n, m, K) of the units' inputs."""
    H = np.maximum(network.inputs, 0.0)
    F = H @ network.output
    F += problem.best_intercept(F)
    values, vectors = np.linalg.eigh(problem.loss.hessian(F, problem.Y, problem.p))
    roots = vectors * np.sqrt(values.clip(min=0.0))[:, None, :]  # (n, C, C)
    A = np.einsum("icr,jc->irj", roots, network.output) * (network.inputs > 0.0)[:, None, :]
    if derivatives.ndim == 2:
        derivatives = derivatives[:, None, :]
    J = A[:, :, :, None] * derivatives[:, None]
    return _squared_singular_values(J.reshape(A.shape[0] * A.shape[1], -1))


def _squared_singular_values(A: np.ndarray) -> CurvatureSpectrum:
    s = linalg.svdvals(A) if A.size else np.zeros(0)
    return CurvatureSpectrum(s[s > np.finfo(float).eps * max(A.shape) * s.max(initial=0.0)] ** 2)


def _check_size(m: int, C: int, n: int, d: int) -> None:
    """Refuse Jacobians that are too large to decompose."""
    numbers, side = n * C * m * (d + 1), min(n * C, m * (d + 1))
    if numbers > MAX_NUMBERS or side > MAX_SIDE:
        raise ValueError(
            f"The Jacobian of {m} hidden units of {d} weights on {n} distinct rows and {C} outputs "
            f"has {numbers:.1e} numbers and a smaller side of {side}, more than {MAX_NUMBERS:.1e} "
            f"or {MAX_SIDE}. Pass fewer rows."
        )

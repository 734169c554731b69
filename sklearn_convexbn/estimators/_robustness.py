"""How much a change of its inputs can change what a network predicts."""

from __future__ import annotations

from itertools import combinations
from numbers import Real
from typing import Any, NamedTuple, overload

import numpy as np
from scipy import sparse
from sklearn.base import is_classifier
from sklearn.utils import check_array

from sklearn_convexbn.data._patches import PatchGrid
from sklearn_convexbn.data._rows import Rows
from sklearn_convexbn.data._validation import ACCEPTED_X, validated_rows
from sklearn_convexbn.data._whitening import ClippedCoordinates
from sklearn_convexbn.estimators._targets import TIE
from sklearn_convexbn.fit._foreign import Layers, read_network
from sklearn_convexbn.fit._lipschitz import (
    ROUNDING,
    lipschitz,
    lipschitz_around,
    radius_of_decrease,
    rounding_of_output,
)
from sklearn_convexbn.fit._network import PREDICTED_NUMBERS, Network
from sklearn_convexbn.support._arrays import as_numpy
from sklearn_convexbn.support._compat import Interval, check_arguments
from sklearn_convexbn.support._device import plain_torch

#: Numbers in the hidden weights of a convolutional network written as a dense one, at most: 1 GiB.
MAX_DENSE_NUMBERS = 2**27

CONSTRAINTS: dict[str, list[Any]] = {"radius": [Interval(Real, 0, None, closed="left")]}


@overload
def lipschitz_bound(network: Any, X: None = None, *, radius: float = 0.0) -> float: ...
@overload
def lipschitz_bound(network: Any, X: Any, *, radius: float = 0.0) -> np.ndarray: ...
@plain_torch()
def lipschitz_bound(network: Any, X: Any = None, *, radius: float = 0.0) -> float | np.ndarray:
    """Bound how fast a network's output can change, rigorously.

    With the bound L, ``|f(x) - f(z)| <= L |x - z|`` in Euclidean lengths, for all x and z, or with
    `X` for those of a ball around each row. f is the network's output in the units of y, for a
    classifier the argument of the softmax (or sigmoid); x is in the units of X.

    Parameters
    ----------
    network : estimator or torch.nn.Sequential
        A fitted estimator of this package with ``activation="relu"``, a fitted
        :class:`~sklearn.neural_network.MLPRegressor` or
        :class:`~sklearn.neural_network.MLPClassifier` of one hidden relu layer, or
        ``Sequential(Linear, ReLU, Linear)``, with or without ``BatchNorm1d``, which is taken as in
        eval mode; or those of images that :func:`certify` takes, which need `X`.
    X : {array-like, sparse matrix} of shape (n_samples, n_features), default=None
        Rows to bound the network around; None bounds it everywhere.
    radius : float, default=0.0
        Of the balls around the rows of `X`, in its units. At 0 the bound is the norm of the
        Jacobian of each row.

    Returns
    -------
    bound : float or ndarray of shape (n_samples,)
        An upper bound of the Lipschitz constant in the spectral norm, for each row if there is
        `X`.

    Raises
    ------
    TypeError
        If `network` is none of the kinds above.
    ValueError
        For another activation or architecture, an estimator that is not fitted, X that it does
        not take, a negative radius, or images with patches that are normalized or too large to
        be written as a dense network.

    See Also
    --------
    certified_radius : How far inputs may move without a change of the predicted class.

    Notes
    -----
    Everywhere it is the smallest of ``sum_j |w_j| |v_j|`` over the units, a product of spectral
    norms, the maximum over all on/off patterns (up to ten units), and a semidefinite bound (up to
    1500): for one output the relaxation of a quadratic form of signs [1]_, for several LipSDP
    [2]_. Around a row, units whose hyperplane the ball does not reach stay on or off.

    An estimator of ``clip=True`` is a network of whitened coordinates, whose lengths are scaled to
    those of steps of the row. Clipping them shortens distances, so the bound is that of the network
    times the spectral norm of the map to them. That is one where the directions are orthonormal, as
    without shrinkage; the bound everywhere is then that without `clip`. Around rows that are
    clipped it is about the nearest point in the range, and may be far above the truth.

    References
    ----------
    .. [1] A. Raghunathan, J. Steinhardt, P. Liang, "Certified Defenses against Adversarial
       Examples", ICLR 2018, arXiv:1801.09344.
    .. [2] M. Fazlyab, A. Robey, H. Hassani, M. Morari, G. Pappas, "Efficient and Accurate
       Estimation of Lipschitz Constants for Deep Neural Networks", NeurIPS 2019, arXiv:1906.04893.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn_convexbn import ConvexBNRegressor, lipschitz_bound
    >>> X, y = load_diabetes(return_X_y=True)
    >>> model = ConvexBNRegressor(alpha=0.1, random_state=0).fit(X, y)
    >>> bool((lipschitz_bound(model, X) <= lipschitz_bound(model)).all())
    True
    """
    check_arguments("lipschitz_bound", {"radius": radius}, CONSTRAINTS)
    layers = _read(network, X, "lipschitz_bound")
    plain = _plain(layers)
    (W, V), stretch = plain.network.coefs, plain.stretch
    overall = lipschitz(W, V)
    if X is None:
        return stretch * overall
    H = _inputs_of_units(layers, plain, X)[0]
    return stretch * lipschitz_around(H, W, V, stretch * float(radius), overall)


@plain_torch()
def certified_radius(network: Any, X: Any) -> np.ndarray:
    """Return how far each row may move without a change of the predicted class, at least.

    Parameters
    ----------
    network : estimator or torch.nn.Sequential
        A classifier, of the kinds that :func:`lipschitz_bound` takes. Outputs of a torch module are
        logits: one column, positive for the second of two classes, or one a class.
    X : {array-like, sparse matrix} of shape (n_samples, n_features)

    Returns
    -------
    radius : ndarray of shape (n_samples,)
        Euclidean, in the units of X. Every z with ``|z - x| < radius`` is predicted as x is. It
        is 0 where outputs are equal up to rounding, and infinite where the output cannot change
        enough.

    Raises
    ------
    TypeError
        If `network` is none of the kinds above.
    ValueError
        As :func:`lipschitz_bound`, and for a regressor, or an MLPClassifier of several labels a
        row.

    See Also
    --------
    lipschitz_bound : The bound that the radius rests on.

    Notes
    -----
    For the predicted class and each other one, the difference of the two outputs is a network of
    one output. Units that add to it are convex: they stay above their tangent at the row. The
    others fall below theirs once the row has moved to their hyperplane. The slope of this bound,
    or the Lipschitz bound of the difference where that is smaller, is integrated until the
    margin is spent. The true distance to the next class may be larger.

    Examples
    --------
    >>> from sklearn.datasets import load_breast_cancer
    >>> from sklearn_convexbn import ConvexBNClassifier, certified_radius
    >>> X, y = load_breast_cancer(return_X_y=True)
    >>> X = (X - X.mean(axis=0)) / X.std(axis=0)
    >>> model = ConvexBNClassifier(alpha=0.1, random_state=0).fit(X, y)
    >>> radius = certified_radius(model, X)
    >>> bool((model.predict(X + 0.99 * radius[:, None] / 30**0.5) == model.predict(X)).all())
    True
    """
    layers = _read(network, X, "certified_radius")
    _check_classifier(layers)
    plain = _plain(layers)
    network = _per_class(plain.network)
    H, lengths, moved = _inputs_of_units(layers, plain, X)
    W, V = network.coefs
    F = np.maximum(H, 0.0) @ V + network.intercepts[1]
    predicted = F.argmax(axis=1)
    slack = TIE * np.maximum(np.abs(F).max(axis=1), 1.0)
    slack += 2 * rounding_of_output(lengths, network)
    radius = np.full(len(F), np.inf)
    for one, other in combinations(range(F.shape[1]), 2):
        g = V[:, one] - V[:, other]
        overall = lipschitz(W, g[:, None])
        for a, b, sign in ((one, other, 1.0), (other, one, -1.0)):
            rows = np.flatnonzero(predicted == a)
            margin = F[rows, a] - F[rows, b] - slack[rows]
            far = radius_of_decrease(H[rows], W, sign * g, margin, overall)
            radius[rows] = np.minimum(radius[rows], far)
    return np.maximum(radius - 2 * moved, 0.0) / plain.stretch


def _read(network: Any, X: Any, caller: str) -> Layers:
    layers = read_network(network, X, caller)
    if layers.patches is not None and layers.patches.contrast is not None:
        raise ValueError(
            f"{caller} needs Patches(normalize=False): patches that are normalized are no linear "
            "function of the image, and change without bound where they are constant."
        )
    return layers


class _Plain(NamedTuple):
    """A dense network, of rows or of what they are mapped to and clipped.

    A step of a row is at most `stretch` times as long in the network's inputs.
    """

    network: Network
    inputs: ClippedCoordinates | None
    stretch: float


def _plain(layers: Layers) -> _Plain:
    """Return a network as a dense one without clipping.

    Coordinates are scaled so that each is a step of length one of the row, which makes the map
    from rows an isometry where its directions are orthonormal, as without shrinkage. Clipping them
    shortens distances.
    """
    if layers.clipped is None:
        return _Plain(_dense(layers.in_eval_mode()), None, 1.0)
    coefs = layers.clipped.coordinates.coefs
    lengths = np.linalg.norm(coefs, axis=0)
    clipped = layers.clipped.rescaled(np.zeros_like(lengths), lengths)
    stretch = ROUNDING * float(np.linalg.norm(clipped.coordinates.coefs, 2))
    return _Plain(clipped.network, clipped.coordinates, stretch)


def _check_classifier(layers: Layers) -> None:
    """Refuse networks that do not predict one class a row."""
    if layers.estimator is None:
        return
    if not is_classifier(layers.estimator):
        raise ValueError(f"certified_radius needs a classifier. Got a {layers.name}.")
    several = layers.coefs[1].shape[1] > 1
    if several and getattr(layers.estimator, "out_activation_", "softmax") != "softmax":
        raise ValueError(
            f"certified_radius needs one class a row. The {layers.name} was trained on several "
            "labels a row."
        )


def _dense(network: Network) -> Network:
    """Return a network on whole images: a hidden unit for each unit and patch."""
    grid = network.patches
    if grid is None:
        return network
    W, V = network.coefs
    d, m = int(np.prod(grid.image_shape)), W.shape[1]
    K, G = grid.pooling.weights.shape
    if d * m * K > MAX_DENSE_NUMBERS:
        raise ValueError(
            f"The network has {m} units on {K} patches of images of {d} values: written as a dense "
            f"network that is {d * m * K:.1e} hidden weights, more than {MAX_DENSE_NUMBERS:.1e}."
        )
    wide = _patches_of_pixels(grid, d) @ W  # (d, K, m)
    cells = np.einsum("kg,mgc->kmc", grid.pooling.weights, V.reshape(m, G, -1))
    coefs = [wide.reshape(d, K * m), cells.reshape(K * m, -1)]
    return Network(coefs, [np.tile(network.intercepts[0], K), network.intercepts[1]], {})


def _patches_of_pixels(grid: PatchGrid, d: int) -> np.ndarray:
    """Return the patches (d, K, h) of the d images of one bright value each."""
    return grid.cut(np.eye(d)).reshape(d, grid.n_patches, grid.n_features)


def _per_class(network: Network) -> Network:
    """Return a network of one output a class: for two classes, zero and its single output."""
    V, v0 = network.coefs[1], network.intercepts[1]
    if len(v0) > 1:
        return network
    V, v0 = np.hstack([np.zeros_like(V), V]), np.append(0.0, v0)
    return Network([network.coefs[0], V], [network.intercepts[0], v0], {})


def _inputs_of_units(
    layers: Layers, plain: _Plain, X: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the inputs of the ReLUs (n, m) of rows and the lengths (n,) of what they see.

    The third is by how much (n,) that may be off through rounding.
    """
    X = layers.as_rows(X)
    if layers.estimator is not None:
        X = validated_rows(layers.estimator, X)
    else:
        X = check_array(as_numpy(X), **ACCEPTED_X, input_name="X")
    if X.shape[1] != layers.n_features:
        raise ValueError(
            f"X has {X.shape[1]} features, but the network expects {layers.n_features}."
        )
    rows, (W, w0) = Rows(X).on_cpu(), (plain.network.coefs[0], plain.network.intercepts[0])
    H, (lengths, moved) = np.empty((len(rows), len(w0))), np.zeros((2, len(rows)))
    for block, part in rows.multipliable(len(w0), PREDICTED_NUMBERS):
        lengths[block], seen = _lengths(part), part
        if plain.inputs is not None:
            moved[block] = _rounding_of_coordinates(lengths[block], plain.inputs)
            seen = plain.inputs.of_block(part)
            lengths[block] = _lengths(seen)
        H[block] = seen @ W + w0
    return H, lengths, moved


def _lengths(rows: Any) -> np.ndarray:
    norm = sparse.linalg.norm if sparse.issparse(rows) else np.linalg.norm
    return np.asarray(norm(rows, axis=1))


def _rounding_of_coordinates(lengths: np.ndarray, inputs: ClippedCoordinates) -> np.ndarray:
    """Return how far rounding may move the coordinates (n,) of rows of some lengths (n,)."""
    d, sizes = len(inputs.coefs), np.linalg.norm(inputs.coefs, axis=0)
    terms = lengths[:, None] * sizes + np.abs(inputs.intercepts)
    return np.finfo(float).eps * (d + 10) * np.linalg.norm(terms, axis=1)

"""How much a change of its inputs can change what a network predicts."""

from __future__ import annotations

from itertools import combinations
from numbers import Real
from typing import Any, overload

import numpy as np
from scipy import sparse
from sklearn.base import is_classifier
from sklearn.utils import check_array

from sklearn_convexbn.data._patches import PatchGrid
from sklearn_convexbn.data._rows import Rows
from sklearn_convexbn.data._validation import ACCEPTED_X, validated_rows
from sklearn_convexbn.estimators._targets import TIE
from sklearn_convexbn.fit._foreign import Layers, read_network
from sklearn_convexbn.fit._lipschitz import (
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
    plain = _dense(layers.in_eval_mode())
    W, V = plain.coefs
    overall = lipschitz(W, V)
    if X is None:
        return overall
    return lipschitz_around(_inputs_of_units(layers, plain, X)[0], W, V, float(radius), overall)


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
    plain = _per_class(_dense(layers.in_eval_mode()))
    H, lengths = _inputs_of_units(layers, plain, X)
    W, V = plain.coefs
    F = np.maximum(H, 0.0) @ V + plain.intercepts[1]
    predicted = F.argmax(axis=1)
    slack = TIE * np.maximum(np.abs(F).max(axis=1), 1.0)
    slack += 2 * rounding_of_output(lengths, plain)
    radius = np.full(len(F), np.inf)
    for one, other in combinations(range(F.shape[1]), 2):
        g = V[:, one] - V[:, other]
        overall = lipschitz(W, g[:, None])
        for a, b, sign in ((one, other, 1.0), (other, one, -1.0)):
            rows = np.flatnonzero(predicted == a)
            margin = F[rows, a] - F[rows, b] - slack[rows]
            far = radius_of_decrease(H[rows], W, sign * g, margin, overall)
            radius[rows] = np.minimum(radius[rows], far)
    return radius


def _read(network: Any, X: Any, caller: str) -> Layers:
    layers = read_network(network, X, caller)
    if layers.patches is not None and layers.patches.contrast is not None:
        raise ValueError(
            f"{caller} needs Patches(normalize=False): patches that are normalized are no linear "
            "function of the image, and change without bound where they are constant."
        )
    return layers


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


def _inputs_of_units(layers: Layers, plain: Network, X: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the inputs of the ReLUs (n, m) of rows, and the lengths (n,) of the rows."""
    X = layers.as_rows(X)
    if layers.estimator is not None:
        X = validated_rows(layers.estimator, X)
    else:
        X = check_array(as_numpy(X), **ACCEPTED_X, input_name="X")
    W, w0 = plain.coefs[0], plain.intercepts[0]
    if X.shape[1] != len(W):
        raise ValueError(f"X has {X.shape[1]} features, but the network expects {len(W)}.")
    rows = Rows(X).on_cpu()
    H, lengths = np.empty((len(rows), len(w0))), np.empty(len(rows))
    for block, part in rows.multipliable(len(w0), PREDICTED_NUMBERS):
        H[block] = part @ W + w0
        norm = sparse.linalg.norm if sparse.issparse(part) else np.linalg.norm
        lengths[block] = norm(part, axis=1)
    return H, lengths

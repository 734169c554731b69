"""Networks trained here or elsewhere, read into plain arrays; nothing of them is modified."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, is_regressor
from sklearn.utils.validation import check_is_fitted

from sklearn_convexbn._network import Network
from sklearn_convexbn._patches import PatchGrid, windows
from sklearn_convexbn._validation import named

ACCEPTED = (
    "network must be a fitted ConvexBNRegressor, ConvexBNClassifier, MLPRegressor or "
    "MLPClassifier of one hidden layer, or a torch.nn.Sequential of (Linear, BatchNorm1d, ReLU, "
    "Linear) or (Linear, ReLU, Linear), or of (Conv2d, BatchNorm2d, ReLU, AvgPool2d, Flatten, "
    "Linear), with or without BatchNorm2d."
)


@dataclass(frozen=True)
class BatchNorm:
    """Scale, shift (both (m,)) and eps of a batch normalization; statistics come from data."""

    scale: np.ndarray
    shift: np.ndarray
    eps: float


@dataclass(frozen=True)
class Layers:
    """A two-layer ReLU network as it was trained, in float64.

    Attributes
    ----------
    coefs : list of two ndarrays of shapes (d, m) and (m, C)
    intercepts : list of two ndarrays of shapes (m,) and (C,)
    batch_norm : BatchNorm or None
        What stands between the first layer and the ReLU.
    has_output_bias : bool
        Whether the output intercept was trained.
    estimator : BaseEstimator or None
        The scikit-learn estimator that the network was read from.
    convolution : Convolution or None
        How a convolutional torch network cuts and pools.
    grid : PatchGrid or None
        How images are cut; then d is the number of values of a patch, and the output weights are
        (m G, C), those of a unit together.
    """

    coefs: list[np.ndarray]
    intercepts: list[np.ndarray]
    batch_norm: BatchNorm | None
    has_output_bias: bool
    estimator: BaseEstimator | None = None
    convolution: Convolution | None = None
    grid: PatchGrid | None = None

    @property
    def name(self) -> str:
        """Name of the kind of network, for messages."""
        return "torch module" if self.estimator is None else type(self.estimator).__name__

    def setting(self, name: str, given: Any, default: Any) -> Any:
        """Return `given`; where that is None, the estimator's parameter or else `default`."""
        own = getattr(self.estimator, name, None) if given is None else given
        return default if own is None else own

    def for_images(self, image_shape: tuple[int, int, int]) -> Layers:
        """Return a convolutional torch network for images (height, width, channels).

        Raises
        ------
        ValueError
            If they are not those of the network.
        """
        assert self.convolution is not None
        grid = self.convolution.grid(image_shape)
        n_outputs, m = self.coefs[1].shape[1], len(self.intercepts[0])
        if len(self.coefs[0]) != grid.n_features or len(self.coefs[1]) != m * grid.pooling.n_cells:
            raise ValueError(
                f"The network's layers do not fit images of {image_shape} (height, width, "
                f"channels): {grid.n_features} values of a patch and {m * grid.pooling.n_cells} "
                f"pooled activations, but weights for {len(self.coefs[0])} and "
                f"{len(self.coefs[1])} in {n_outputs} outputs."
            )
        return replace(self, grid=grid)

    def folded(self, X: np.ndarray, weights: np.ndarray) -> Network:
        """Fold batch normalization with the statistics of rows X (n, d) of weights (n,).

        The rows are patches where there are any. The variance is the population variance, as in
        torch's train mode, and eps is added to it; a weight of 2 is the row twice.
        """
        if self.batch_norm is None:
            return Network(self.coefs, self.intercepts, {}, patches=self.grid)
        p = weights / weights.sum()
        centre = p @ X
        variance = p @ ((X - centre) @ self.coefs[0]) ** 2
        W = self.coefs[0] * (self.batch_norm.scale / np.sqrt(variance + self.batch_norm.eps))
        intercept = self.batch_norm.shift - centre @ W
        coefs, intercepts = [W, self.coefs[1]], [intercept, self.intercepts[1]]
        return Network(coefs, intercepts, {}, patches=self.grid)


@dataclass(frozen=True)
class Convolution:
    """Geometry of a Conv2d and an AvgPool2d: sizes and strides, downwards and to the right."""

    patch_shape: tuple[int, int]
    stride: tuple[int, int]
    pool_shape: tuple[int, int]
    pool_stride: tuple[int, int]

    def grid(self, image_shape: tuple[int, int, int]) -> PatchGrid:
        """Return how images of a shape are cut and pooled.

        Raises
        ------
        ValueError
            If a patch or the pooling is larger than the images.
        """
        grid = PatchGrid(
            image_shape, self.patch_shape, self.stride, self.pool_shape, self.pool_stride
        )
        if min(grid.grid) < 1 or min(windows(grid.grid, self.pool_shape, self.pool_stride)) < 1:
            raise ValueError(
                f"Images of {image_shape} (height, width, channels) are too small for patches of "
                f"{self.patch_shape} and pooling of {self.pool_shape}."
            )
        return grid


def read_network(network: Any) -> Layers:
    """Read a two-layer ReLU network.

    Raises
    ------
    TypeError
        If it is not one of the kinds named in :data:`ACCEPTED`.
    ValueError
        For more than one hidden layer, another activation, shapes that do not fit, an estimator
        that is not fitted (NotFittedError), or weights that are not finite.
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(network, torch.nn.Sequential):
        layers = _from_torch(network, torch.nn)
    elif isinstance(network, BaseEstimator) and hasattr(network, "activation"):
        layers = _from_estimator(network)
    else:
        raise TypeError(f"{ACCEPTED} Got {named(network)}.")
    arrays = [*layers.coefs, *layers.intercepts]
    if layers.batch_norm is not None:
        arrays += [layers.batch_norm.scale, layers.batch_norm.shift]
    if not all(np.isfinite(a).all() for a in arrays):
        raise ValueError("The network's weights contain NaN or infinity.")
    return layers


def _from_estimator(network: Any) -> Layers:
    check_is_fitted(network)
    if network.activation != "relu":
        raise ValueError(
            f"certify needs activation='relu'. Got a {type(network).__name__} with "
            f"activation={network.activation!r}."
        )
    if is_regressor(network) and getattr(network, "out_activation_", "identity") != "identity":
        raise ValueError(
            f"certify needs outputs that are the predictions. Got a {type(network).__name__} with "
            f"loss={network.loss!r}, whose predictions are the exponentials of its outputs, so it "
            "is no network of a problem with squared error."
        )
    if len(getattr(network, "coefs_", ())) != 2:
        raise ValueError(f"{ACCEPTED} Got a {type(network).__name__} with other layers.")
    coefs, intercepts = (
        [np.asarray(a, dtype=np.float64) for a in arrays]
        for arrays in (network.coefs_, network.intercepts_)
    )
    patches = getattr(network, "patches_", None)
    grid = None if patches is None else PatchGrid(**patches)
    return Layers(coefs, intercepts, None, True, network, grid=grid)


def _from_torch(network: Any, nn: Any) -> Layers:
    if len(network) and isinstance(network[0], nn.Conv2d):
        return _from_convolution(network, nn)
    kinds = (nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear)
    layers = list(network)
    plain = len(layers) == 3
    expected = (kinds[0], *kinds[2:]) if plain else kinds
    if len(layers) != len(expected) or not all(map(isinstance, layers, expected)):
        got = ", ".join(type(layer).__name__ for layer in layers)
        raise ValueError(f"{ACCEPTED} Got a Sequential of ({got}).")
    hidden, output = layers[0], layers[-1]
    norm = None if plain else _batch_norm(layers[1])
    m = hidden.out_features
    if output.in_features != m or (norm is not None and len(norm.scale) != m):
        raise ValueError(
            f"The network's layers do not fit together: {m} hidden units, "
            f"{output.in_features} inputs of the output layer"
            + ("." if norm is None else f", batch normalization of {len(norm.scale)}.")
        )
    return Layers(
        [_array(hidden.weight).T, _array(output.weight).T],
        [_array(hidden.bias, np.zeros(m)), _array(output.bias, np.zeros(output.out_features))],
        norm,
        output.bias is not None,
    )


def _from_convolution(network: Any, nn: Any) -> Layers:
    kinds = (nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.AvgPool2d, nn.Flatten, nn.Linear)
    layers = list(network)
    plain = len(layers) == 5
    expected = (kinds[0], *kinds[2:]) if plain else kinds
    if len(layers) != len(expected) or not all(map(isinstance, layers, expected)):
        got = ", ".join(type(layer).__name__ for layer in layers)
        raise ValueError(f"{ACCEPTED} Got a Sequential of ({got}).")
    conv, pool, output = layers[0], layers[-3], layers[-1]
    _check_plain(conv, pool)
    # (m, channels, height, width) -> a patch flattened with channels last
    W = _array(conv.weight).transpose(0, 2, 3, 1).reshape(conv.out_channels, -1).T
    m, C = conv.out_channels, output.out_features
    norm = None if plain else _batch_norm(layers[1])
    if norm is not None and len(norm.scale) != m:
        raise ValueError(
            f"The network's layers do not fit together: {m} channels, batch normalization of "
            f"{len(norm.scale)}."
        )
    geometry = Convolution(
        conv.kernel_size, conv.stride, _pair(pool.kernel_size), _pair(pool.stride)
    )
    return Layers(
        [W, _array(output.weight).T],
        [_array(conv.bias, np.zeros(m)), _array(output.bias, np.zeros(C))],
        norm,
        output.bias is not None,
        convolution=geometry,
    )


def _check_plain(conv: Any, pool: Any) -> None:
    """Refuse padding, dilation, groups and rounding up, which patches do not have."""
    plain = {
        "padding": (conv.padding, pool.padding) in [((0, 0), 0), ((0, 0), (0, 0))],
        "dilation": tuple(conv.dilation) == (1, 1),
        "groups": conv.groups == 1,
        "ceil_mode": not pool.ceil_mode,
        "divisor_override": pool.divisor_override is None,
    }
    wrong = [name for name, fine in plain.items() if not fine]
    if wrong:
        raise ValueError(
            f"certify reads Conv2d and AvgPool2d with default {' and '.join(wrong)} only. Got "
            f"{conv} and {pool}."
        )


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)


def _batch_norm(layer: Any) -> BatchNorm:
    m = layer.num_features
    return BatchNorm(_array(layer.weight, np.ones(m)), _array(layer.bias, np.zeros(m)), layer.eps)


def _array(tensor: Any, absent: np.ndarray | None = None) -> np.ndarray:
    """Return a tensor's values in float64 on the CPU, or `absent` for one that is None."""
    if tensor is None and absent is not None:
        return absent
    return tensor.detach().cpu().double().numpy()

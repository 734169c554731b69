"""Networks trained here or elsewhere, read into plain arrays; nothing of them is modified."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, is_regressor
from sklearn.utils.validation import check_is_fitted

from sklearn_convexbn.data._patches import PatchGrid, flattened, windows
from sklearn_convexbn.data._validation import named
from sklearn_convexbn.fit._network import ClippedNetwork, Network
from sklearn_convexbn.support._arrays import as_numpy

ACCEPTED = (
    "network must be a fitted ConvexBNRegressor, ConvexBNClassifier, MLPRegressor or "
    "MLPClassifier of one hidden layer, or a torch.nn.Sequential of (Linear, BatchNorm1d, ReLU, "
    "Linear), (Linear, ReLU, Linear) or (Conv2d, BatchNorm2d, ReLU, AvgPool2d, Flatten, Linear), "
    "the last with or without BatchNorm2d."
)


@dataclass(frozen=True)
class BatchNorm:
    """Scale, shift (both (m,)) and eps of a batch normalization, and its running statistics."""

    scale: np.ndarray
    shift: np.ndarray
    eps: float
    running: tuple[np.ndarray, np.ndarray] | None = None  # mean and variance


@dataclass(frozen=True)
class Trained:
    """A ReLU network as it was trained, in float64, whatever its layers.

    Attributes
    ----------
    coefs : list of ndarrays, of the first (d, any) and the last (any, C)
    intercepts : list of ndarrays, the last of shape (C,)
    has_output_bias : bool
        Whether the output intercept was trained.
    estimator : BaseEstimator or None
        The scikit-learn estimator that the network was read from.
    patches : PatchGrid or None
        Of a convolutional network with G cells: d values of a patch, and output weights (m G, C),
        those of a unit together.
    """

    coefs: list[np.ndarray]
    intercepts: list[np.ndarray]
    has_output_bias: bool
    estimator: BaseEstimator | None = None
    patches: PatchGrid | None = None

    @property
    def n_features(self) -> int:
        """Number of columns of X, as rows."""
        return len(self.coefs[0]) if self.patches is None else prod(self.patches.image_shape)

    @property
    def n_outputs(self) -> int:
        """Number of outputs C."""
        return int(self.coefs[-1].shape[1])

    def as_rows(self, X: Any) -> Any:
        """Return X, as the network takes it, as rows; images with their channels last."""
        if self.patches is None:
            return X
        if self.estimator is None:
            X = as_numpy(X).transpose(0, 2, 3, 1)
        return flattened(X, self.patches.image_shape)

    @property
    def name(self) -> str:
        """Name of the kind of network, for messages."""
        return "torch module" if self.estimator is None else type(self.estimator).__name__

    def setting(self, name: str, given: Any, default: Any) -> Any:
        """Return `given`; where that is None, the estimator's parameter or else `default`."""
        own = getattr(self.estimator, name, None) if given is None else given
        return default if own is None else own

    def check_finite(self) -> None:
        """Refuse weights that are not finite."""
        if not all(np.isfinite(a).all() for a in (*self.coefs, *self.intercepts)):
            raise ValueError("The network's weights contain NaN or infinity.")


@dataclass(frozen=True, kw_only=True)
class Layers(Trained):
    """A two-layer ReLU network as it was trained.

    Attributes
    ----------
    batch_norm : BatchNorm or None
        What stands between the first layer and the ReLU.
    clipped : ClippedNetwork or None
        What the output is computed by where inputs are clipped.
    """

    batch_norm: BatchNorm | None
    clipped: ClippedNetwork | None = None

    def check_finite(self) -> None:
        """Refuse weights, scales and shifts that are not finite."""
        super().check_finite()
        norm = self.batch_norm
        if norm is not None and not (np.isfinite(norm.scale) & np.isfinite(norm.shift)).all():
            raise ValueError("The network's weights contain NaN or infinity.")

    def folded(self, X: np.ndarray, weights: np.ndarray) -> Network:
        """Fold batch normalization with the statistics of rows X (n, d) of weights (n,).

        Of a convolutional network these are the patches of all images.
        The variance is the population variance, as in torch's train mode, and eps is added to
        it; a weight of 2 is the row twice.
        """
        if self.batch_norm is None:
            return Network(self.coefs, self.intercepts, {}, patches=self.patches)
        p = weights / weights.sum()
        centre = p @ X
        variance = p @ ((X - centre) @ self.coefs[0]) ** 2
        W = self.coefs[0] * (self.batch_norm.scale / np.sqrt(variance + self.batch_norm.eps))
        intercept = self.batch_norm.shift - centre @ W
        coefs, intercepts = [W, self.coefs[1]], [intercept, self.intercepts[1]]
        return Network(coefs, intercepts, {}, patches=self.patches)

    def in_eval_mode(self) -> Network:
        """Fold batch normalization with its running statistics.

        Raises
        ------
        ValueError
            If it has none.
        """
        if self.batch_norm is None:
            return Network(self.coefs, self.intercepts, {}, patches=self.patches)
        if self.batch_norm.running is None:
            raise ValueError(
                "The network's batch normalization has track_running_stats=False, so its output "
                "for a row depends on the other rows of a batch."
            )
        mean, variance = self.batch_norm.running
        factor = self.batch_norm.scale / np.sqrt(variance + self.batch_norm.eps)
        intercept = self.batch_norm.shift + (self.intercepts[0] - mean) * factor
        coefs = [self.coefs[0] * factor, self.coefs[1]]
        return Network(coefs, [intercept, self.intercepts[1]], {}, patches=self.patches)


def read_network(network: Any, X: Any, caller: str = "certify") -> Layers:
    """Read a two-layer ReLU network; X, as the network takes it, has the shape of images.

    Messages name the `caller`.

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
        layers = _from_torch(network, torch.nn, X)
    elif isinstance(network, BaseEstimator) and hasattr(network, "activation"):
        layers = _from_estimator(network, caller)
    else:
        other = " For that there is certify_path_net." if hasattr(network, "inner_width") else ""
        raise TypeError(f"{ACCEPTED} Got {named(network)}.{other}")
    layers.check_finite()
    return layers


def check_estimator(network: Any, caller: str) -> None:
    """Refuse an estimator that is not fitted, or whose network is no plain ReLU network."""
    check_is_fitted(network)
    if network.activation != "relu":
        raise ValueError(
            f"{caller} needs activation='relu'. Got a {type(network).__name__} with "
            f"activation={network.activation!r}."
        )
    if is_regressor(network) and getattr(network, "out_activation_", "identity") != "identity":
        raise ValueError(
            f"{caller} needs outputs that are the predictions. Got a {type(network).__name__} with "
            f"loss={network.loss!r}, whose predictions are the exponentials of its outputs, so it "
            "is no network of a problem with squared error."
        )


def layers_of(network: Any) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return the weights and offsets of a fitted estimator in float64."""
    coefs, intercepts = (
        [np.asarray(a, dtype=np.float64) for a in arrays]
        for arrays in (network.coefs_, network.intercepts_)
    )
    return coefs, intercepts


def _from_estimator(network: Any, caller: str) -> Layers:
    check_estimator(network, caller)
    if len(getattr(network, "coefs_", ())) != 2:
        raise ValueError(f"{ACCEPTED} Got a {type(network).__name__} with other layers.")
    coefs, intercepts = layers_of(network)
    patches = getattr(network, "patches_", None)
    grid = None if patches is None else PatchGrid(**patches)
    clipped = network._network().clipped if hasattr(network, "whitened_range_") else None
    return Layers(coefs, intercepts, True, network, grid, batch_norm=None, clipped=clipped)


def _from_torch(network: Any, nn: Any, X: Any) -> Layers:
    if len(network) and isinstance(network[0], nn.Conv2d):
        return _from_convolution(network, nn, X)
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
        [array_of(hidden.weight).T, array_of(output.weight).T],
        [array_of(hidden.bias, np.zeros(m)), array_of(output.bias, np.zeros(output.out_features))],
        output.bias is not None,
        batch_norm=norm,
    )


def _from_convolution(network: Any, nn: Any, X: Any) -> Layers:
    kinds = (nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.AvgPool2d, nn.Flatten, nn.Linear)
    layers = list(network)
    plain = len(layers) == 5
    expected = (kinds[0], *kinds[2:]) if plain else kinds
    if len(layers) != len(expected) or not all(map(isinstance, layers, expected)):
        got = ", ".join(type(layer).__name__ for layer in layers)
        raise ValueError(f"{ACCEPTED} Got a Sequential of ({got}).")
    hidden, output = layers[0], layers[-1]
    norm = None if plain else _batch_norm(layers[1])
    grid = _grid_of_layers(hidden, layers[-3], X)
    m, G = hidden.out_channels, grid.pooling.n_cells
    if output.in_features != m * G or (norm is not None and len(norm.scale) != m):
        raise ValueError(
            f"The network's layers do not fit together: {m} channels in {G} cells of pooling, "
            f"{output.in_features} inputs of the output layer"
            + ("." if norm is None else f", batch normalization of {len(norm.scale)}.")
        )
    filters = array_of(hidden.weight).transpose(2, 3, 1, 0)  # channels of a pixel together
    return Layers(
        [filters.reshape(grid.n_features, m), array_of(output.weight).T],
        [array_of(hidden.bias, np.zeros(m)), array_of(output.bias, np.zeros(output.out_features))],
        output.bias is not None,
        patches=grid,
        batch_norm=norm,
    )


def _grid_of_layers(conv: Any, pool: Any, X: Any) -> PatchGrid:
    """Return how a convolution and its pooling cut images X (n, channels, height, width).

    Raises
    ------
    ValueError
        For another X, or layers that do more than cut and average.
    """
    shape = tuple(np.shape(X))
    if len(shape) != 4 or shape[1] != conv.in_channels:
        raise ValueError(
            "X must be images as the network takes them, of shape (n_samples, "
            f"{conv.in_channels} channels, height, width). Got shape {shape}."
        )
    if conv.padding not in (0, (0, 0), "valid") or conv.dilation != (1, 1) or conv.groups != 1:
        raise ValueError(
            "What can be read is a Conv2d of padding=0, dilation=1 and groups=1: its units must "
            f"see patches of the image. Got {conv}."
        )
    if pool.padding not in (0, (0, 0)) or pool.ceil_mode or pool.divisor_override:
        raise ValueError(
            "What can be read is an AvgPool2d of padding=0 and ceil_mode=False without a "
            f"divisor_override. Got {pool}."
        )
    grid = PatchGrid(
        (*map(int, shape[2:]), conv.in_channels),
        conv.kernel_size,
        conv.stride,
        _pair(pool.kernel_size),
        _pair(pool.stride),
    )
    cells = (0, 0)
    if min(grid.grid) >= 1:
        cells = windows(grid.grid, grid.pool_shape, grid.pool_stride)
    if min(cells) < 1:
        raise ValueError(
            f"Images of {shape[2]} x {shape[3]} are too small for the network: no patch of "
            f"{grid.patch_shape[0]} x {grid.patch_shape[1]}, or no cell of "
            f"{grid.pool_shape[0]} x {grid.pool_shape[1]} patches, fits into them."
        )
    return grid


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)


def _batch_norm(layer: Any) -> BatchNorm:
    m = layer.num_features
    scale, shift = array_of(layer.weight, np.ones(m)), array_of(layer.bias, np.zeros(m))
    running = None
    if layer.running_mean is not None:
        running = (array_of(layer.running_mean), array_of(layer.running_var))
    return BatchNorm(scale, shift, layer.eps, running)


def array_of(tensor: Any, absent: np.ndarray | None = None) -> np.ndarray:
    """Return a tensor's values in float64 on the CPU, or `absent` for one that is None."""
    if tensor is None and absent is not None:
        return absent
    return tensor.detach().cpu().double().numpy()

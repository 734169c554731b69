"""Networks of two hidden layers, trained here or elsewhere, read as sub-networks in parallel."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from sklearn_convexbn.data._validation import named
from sklearn_convexbn.fit._foreign import Trained, array_of, check_estimator, layers_of
from sklearn_convexbn.fit._path_network import PathNetwork


@dataclass(frozen=True, kw_only=True)
class ParallelLayers(Trained):
    """Sub-networks in parallel as they were trained.

    Attributes
    ----------
    network : PathNetwork
        The same network; its mass of paths from each column is not known (zeros).
    norm : {"l1", "l2"}
        Norm of its paths.
    """

    network: PathNetwork
    norm: str

    @property
    def inner_width(self) -> int:
        """Number of inner units of a sub-network."""
        return len(self.network.signs)


ACCEPTED = (
    "network must be a fitted PathNetRegressor or PathNetClassifier, an MLPRegressor or "
    "MLPClassifier of two hidden layers, or a torch.nn.Sequential of (Linear, ReLU, Linear, ReLU, "
    "Linear)."
)


def read_parallel(network: Any, inner_width: int | None, caller: str) -> ParallelLayers:
    """Read a network of two hidden layers, with so many inner units or as few as it needs.

    Messages name the `caller`.

    Raises
    ------
    TypeError
        If it is not one of the kinds named in :data:`ACCEPTED`.
    ValueError
        For another number of layers, another activation, an estimator that is not fitted
        (NotFittedError), layers that do not fit together, weights that are not finite, or fewer
        inner units than the network has.
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(network, torch.nn.Sequential):
        layers = _from_torch(network, torch.nn, inner_width)
    elif isinstance(network, BaseEstimator) and hasattr(network, "inner_width"):
        layers = _from_path_net(network)
    elif isinstance(network, BaseEstimator) and hasattr(network, "activation"):
        layers = _from_mlp(network, inner_width, caller)
    else:
        raise TypeError(f"{ACCEPTED} Got {named(network)}.")
    layers.check_finite()
    own = layers.inner_width
    if inner_width not in (None, own):
        raise ValueError(
            f"The {layers.name} needs inner_width={own}"
            + ("." if hasattr(network, "inner_width") else " or more.")
            + f" Got inner_width={inner_width}."
        )
    return layers


def _from_path_net(network: Any) -> ParallelLayers:
    check_is_fitted(network)
    own = {"network": network._network(), "norm": network.norm}
    return ParallelLayers(*layers_of(network), True, network, **own)


def _from_mlp(network: Any, inner_width: int | None, caller: str) -> ParallelLayers:
    check_estimator(network, caller)
    if len(getattr(network, "coefs_", ())) != 3:
        raise ValueError(f"{ACCEPTED} Got a {type(network).__name__} with other layers.")
    coefs, intercepts = layers_of(network)
    own = parallel(coefs, intercepts, inner_width)
    return ParallelLayers(coefs, intercepts, True, network, network=own, norm="l1")


def _from_torch(network: Any, nn: Any, inner_width: int | None) -> ParallelLayers:
    kinds = (nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear)
    if len(network) != len(kinds) or not all(map(isinstance, network, kinds)):
        got = ", ".join(type(layer).__name__ for layer in network)
        raise ValueError(f"{ACCEPTED} Got a Sequential of ({got}).")
    linear = list(network)[::2]
    sizes = [(layer.in_features, layer.out_features) for layer in linear]
    if any(left[1] != right[0] for left, right in pairwise(sizes)):
        raise ValueError(f"The network's layers do not fit together: {sizes}.")
    coefs = [array_of(layer.weight).T for layer in linear]
    intercepts = [array_of(layer.bias, np.zeros(layer.out_features)) for layer in linear]
    own = parallel(coefs, intercepts, inner_width)
    return ParallelLayers(coefs, intercepts, linear[-1].bias is not None, network=own, norm="l1")


def parallel(
    coefs: list[np.ndarray], intercepts: list[np.ndarray], inner_width: int | None = None
) -> PathNetwork:
    """Return three plain layers as sub-networks: each unit of the second with its inner units.

    An inner unit that feeds several is copied. Two inner units of a sub-network that add up to a
    linear function, ``relu(g) - relu(-g)``, are its linear part, which has a smaller norm.

    Parameters
    ----------
    coefs : list of ndarrays of shapes (d, any), (any, m) and (m, C)
    intercepts : list of ndarrays
    inner_width : int, default=None
        Number of inner units, the signs of which are half and half. As few as are needed if None,
        or where more are.
    """
    from sklearn_convexbn.program.units._paths import inner_signs

    d, m = len(coefs[0]), len(intercepts[1])
    linear, linear_offsets = np.zeros((d, m)), intercepts[1].copy()
    added: list[list[np.ndarray]] = []
    taken: list[list[np.ndarray]] = []
    for j in range(m):
        plus, minus, both = _inner_units(coefs, intercepts, j)
        added.append(plus)
        taken.append(minus)
        for unit in both:
            linear[:, j] += unit[:-1]
            linear_offsets[j] += unit[-1]
    n_added, n_taken = max(map(len, added), default=0), max(map(len, taken), default=0)
    h = max(2 * n_added - 1, 2 * n_taken, inner_width or 0)
    signs = np.array(inner_signs(h))
    inner = np.zeros((h, d + 1, m))
    for units, places in ((added, np.flatnonzero(signs > 0)), (taken, np.flatnonzero(signs < 0))):
        for j, own in enumerate(units):
            for place, unit in zip(places, own, strict=False):
                inner[place, :, j] = unit
    return PathNetwork(
        inner=inner[:, :-1],
        inner_offsets=inner[:, -1],
        linear=linear,
        linear_offsets=linear_offsets,
        output=coefs[2],
        intercept=intercepts[2],
        signs=signs,
        feature_weights=np.zeros(d),
    )


def _inner_units(
    coefs: list[np.ndarray], intercepts: list[np.ndarray], j: int
) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """Return inner units, weights and offset (d + 1,), of unit j: added, subtracted and linear."""
    factors = coefs[1][:, j]
    units = np.column_stack([coefs[0].T, intercepts[0]]) * np.abs(factors)[:, None] + 0.0
    opposite: dict[bytes, list[np.ndarray]] = {}
    for unit in _nonzero(units[factors < 0]):
        opposite.setdefault(_key(-unit), []).append(unit)
    added, both = [], []
    for unit in _nonzero(units[factors > 0]):
        pair = opposite.get(_key(unit))
        if pair:
            pair.pop()
            both.append(unit)
        else:
            added.append(unit)
    return added, [unit for rest in opposite.values() for unit in rest], both


def _nonzero(units: np.ndarray) -> Iterator[np.ndarray]:
    return (unit for unit in units if unit.any())


def _key(unit: np.ndarray) -> bytes:
    """Return bytes that equal units have in common; zeros have no sign."""
    return (unit + 0.0).tobytes()

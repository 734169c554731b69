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
from sklearn_convexbn.fit._foreign import Trained, array_of
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
    "network must be a fitted PathNetRegressor or PathNetClassifier, or a torch.nn.Sequential of "
    "(Linear, ReLU, Linear, ReLU, Linear)."
)


def is_parallel(network: Any) -> bool:
    """Return whether a network has two hidden layers: one of this package, or a torch module."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(network, torch.nn.Sequential):
        nn = torch.nn
        kinds = (nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear)
        return len(network) == len(kinds) and all(map(isinstance, network, kinds))
    return isinstance(network, BaseEstimator) and hasattr(network, "inner_width")


def read_parallel(network: Any, inner_width: int | None) -> ParallelLayers:
    """Read a network of two hidden layers, with so many inner units or as few as it needs.

    Raises
    ------
    TypeError
        If it is not one of the kinds named in :data:`ACCEPTED`.
    ValueError
        For an estimator that is not fitted (NotFittedError), layers that do not fit together,
        weights that are not finite, or fewer inner units than the network has.
    """
    if not is_parallel(network):
        raise TypeError(f"{ACCEPTED} Got {named(network)}.")
    if isinstance(network, BaseEstimator):
        check_is_fitted(network)
        layers = ParallelLayers(
            network.coefs_,
            network.intercepts_,
            True,
            network,
            network=network._network(),
            norm=network.norm,
        )
    else:
        layers = _from_torch(network, inner_width)
    layers.check_finite()
    own = layers.inner_width
    if inner_width not in (None, own):
        raise ValueError(
            f"The network needs inner_width={own}, or more. Got inner_width={inner_width}."
            if layers.estimator is None
            else f"The {layers.name} has inner_width={own}. Got inner_width={inner_width}."
        )
    return layers


def _from_torch(network: Any, inner_width: int | None) -> ParallelLayers:
    linear = [layer for layer in network if hasattr(layer, "weight")]
    sizes = [(layer.in_features, layer.out_features) for layer in linear]
    if any(left[1] != right[0] for left, right in pairwise(sizes)):
        raise ValueError(f"The network's layers do not fit together: {sizes}.")
    coefs = [array_of(layer.weight).T for layer in linear]
    intercepts = [array_of(layer.bias, np.zeros(layer.out_features)) for layer in linear]
    return ParallelLayers(
        coefs,
        intercepts,
        linear[-1].bias is not None,
        network=parallel(coefs, intercepts, inner_width),
        norm="l1",
    )


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

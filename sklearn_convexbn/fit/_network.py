"""From neurons in whitened coordinates to a batch-normalized network, and to torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sklearn_convexbn.data._canonical import TargetScaling
from sklearn_convexbn.data._patches import PatchGrid, flattened
from sklearn_convexbn.data._pooling import IDENTITY, Pooling
from sklearn_convexbn.data._rows import Rows
from sklearn_convexbn.data._whitening import ClippedCoordinates, Whitening
from sklearn_convexbn.program._problem import Neurons
from sklearn_convexbn.support._arrays import Array, like, writable

#: Numbers in a block of rows and their hidden units: what a core's cache holds.
PREDICTED_NUMBERS = 2**17

#: Added to the variance by the exported BatchNorm1d: below rounding for every unit that
#: varies, but keeps a unit that does not (pure shift) from dividing zero by zero.
BATCH_NORM_EPS = 1e-30


@dataclass(frozen=True)
class Network:
    """A two-layer network with batch normalization folded in, in the units of X and y.

    Its output is ``relu(X @ coefs[0] + intercepts[0]) @ coefs[1] + intercepts[1]``; with gates
    the relu is replaced by the gates' 0/1 values.

    Attributes
    ----------
    coefs : list of two ndarrays of shapes (d, m) and (m, C)
    intercepts : list of two ndarrays of shapes (m,) and (C,)
    batch_norm : dict of ndarrays of shape (m,)
        "mean", "var", "scale" and "shift" of each hidden unit's normalization, for hidden
        weights of unit variance.
    gates : ndarray of shape (d + 1, m) or None
        Weights and, in the last row, offset of each unit's gate.
    n_components : int or None
        Number of principal directions of X that the hidden units may depend on; None if unknown.
    patches : PatchGrid or None
        Of a convolutional network with G cells: d values of a patch, and output weights (m G, C),
        those of a unit together.
    clipped : ClippedNetwork or None
        What the output is computed by where inputs are clipped; it is that of the formula above on
        rows that are not changed by it.
    """

    coefs: list[np.ndarray]
    intercepts: list[np.ndarray]
    batch_norm: dict[str, np.ndarray]
    gates: np.ndarray | None = None
    n_components: int | None = None
    patches: PatchGrid | None = None
    clipped: ClippedNetwork | None = None

    @property
    def pooling(self) -> Pooling:
        """How the activations on the patches of an image become its features."""
        return IDENTITY if self.patches is None else self.patches.pooling

    def forward(self, X: Any) -> Any:
        """Return the output (n, C), where X is, for rows X (n, d), dense, sparse or `Rows`.

        With patches the rows are images.
        """
        rows = self._rows(X)
        v, v0 = (like(a, rows.example) for a in (self.coefs[1], self.intercepts[1]))
        F = rows.empty(v.shape[1])
        for block, hidden in self._hidden_blocks(rows):
            F[block] = hidden @ v + v0
        return F

    def hidden_activations(self, X: Any) -> Array:
        """Return the hidden units' values (n, m), where X is, for X as in :meth:`forward`.

        With patches the values are pooled to G cells, (n, m G), those of a unit together.
        """
        rows = self._rows(X)
        H = rows.empty(len(self.coefs[1]))
        for block, hidden in self._hidden_blocks(rows):
            H[block] = hidden
        return H

    def _rows(self, X: Any) -> Rows:
        if isinstance(X, Rows):
            return X
        return Rows(X if self.patches is None else flattened(X, self.patches.image_shape))

    def _hidden_blocks(self, rows: Rows) -> Iterator[tuple[slice, Array]]:
        """Yield slices of rows and the hidden units' values there."""
        cut = rows if self.patches is None else self.patches.rows(rows)
        network = self if self.clipped is None else self.clipped.network
        inputs = None if self.clipped is None else self.clipped.coordinates.on(rows.example)
        W, w0 = (like(a, rows.example) for a in (network.coefs[0], network.intercepts[0]))
        G = None if network.gates is None else like(network.gates, rows.example)
        pooling, width = self.pooling, W.shape[1] + (0 if inputs is None else W.shape[0])
        for block, given in cut.multipliable(width, PREDICTED_NUMBERS):
            part = given if inputs is None else inputs.of_block(given)
            hidden = part @ W
            hidden += w0
            hidden = hidden.clip(min=0.0) if G is None else hidden * (part @ G[:-1] + G[-1] >= 0)
            yield pooling.samples(block), pooling.features(hidden)

    def to_torch(self, *, fold: bool = False) -> Any:
        """Return the network as a float64 ``torch.nn.Sequential`` in eval mode.

        Parameters
        ----------
        fold : bool, default=False
            Whether to fold batch normalization into the first layer.

        Returns
        -------
        torch.nn.Sequential
            (Linear, BatchNorm1d, ReLU, Linear), with patches (Conv2d, BatchNorm2d, ReLU, AvgPool2d,
            Flatten, Linear), without batch normalization when folded. An empty network is given one
            hidden unit of zeros, as torch's layers need one. Where inputs are clipped (Linear,
            Hardtanh) come first: whitened coordinates, from zero to one in their range.

        Raises
        ------
        ValueError
            For gates or patches that no Sequential of these layers has.
        """
        from torch import nn

        self._check_exportable()
        if self.clipped is not None:
            low, high = self.clipped.coordinates.limits
            clipped = self.clipped.rescaled(low, high - low)
            first = linear_layer(clipped.coordinates.coefs, clipped.coordinates.intercepts)
            rest = clipped.network.to_torch(fold=fold)
            return nn.Sequential(first, nn.Hardtanh(0.0, 1.0), *rest).eval()
        network = self if len(self.intercepts[0]) else self._with_a_unit()
        W, norm, grid = network.coefs[0], network.batch_norm, self.patches
        if fold:
            hidden = [network._hidden_layer(W, network.intercepts[0])]
        else:
            scale, W = norm["scale"], W * np.sqrt(norm["var"])
            W = np.divide(W, scale, out=np.zeros_like(W), where=scale > 0)
            hidden = [network._hidden_layer(W, None), network._batch_norm_layer()]
        pool: list[Any] = []
        if grid is not None:
            pool = [nn.AvgPool2d(grid.pool_shape, grid.pool_stride), nn.Flatten()]
        output = linear_layer(network.coefs[1], network.intercepts[1])
        return nn.Sequential(*hidden, nn.ReLU(), *pool, output).eval()

    def _check_exportable(self) -> None:
        if self.gates is not None:
            raise ValueError(
                "to_torch needs activation='relu': the gates of activation='gated_relu' do not "
                "depend on the hidden layer, so no Sequential of Linear and ReLU has them."
            )
        if self.patches is not None and self.patches.contrast is not None:
            raise ValueError(
                "to_torch needs Patches(normalize=False): no Sequential of Conv2d, BatchNorm2d, "
                "ReLU, AvgPool2d and Linear normalizes patches."
            )

    def _with_a_unit(self) -> Network:
        """Return an empty network with a hidden unit of zeros."""
        zero, one = np.zeros(1), np.ones(1)
        v0, norm = self.intercepts[1], {"mean": zero, "var": one, "scale": zero, "shift": zero}
        coefs = [np.zeros((len(self.coefs[0]), 1)), np.zeros((self.pooling.n_cells, len(v0)))]
        return replace(self, coefs=coefs, intercepts=[zero, v0], batch_norm=norm)

    def _hidden_layer(self, W: np.ndarray, bias: np.ndarray | None) -> Any:
        """Return hidden weights W (d, m) as a layer of torch, a convolution with patches."""
        import torch

        if self.patches is None:
            return linear_layer(W, bias)
        channels, shape = self.patches.image_shape[2], self.patches.patch_shape
        layer = torch.nn.Conv2d(
            channels, W.shape[1], shape, self.patches.stride, bias=bias is not None
        ).double()
        filters = W.reshape(*shape, channels, -1).transpose(3, 2, 0, 1)
        return _filled(layer, weight=filters, bias=bias)

    def _batch_norm_layer(self) -> Any:
        import torch

        kind = torch.nn.BatchNorm1d if self.patches is None else torch.nn.BatchNorm2d
        norm = self.batch_norm
        layer = kind(len(norm["var"]), eps=BATCH_NORM_EPS, dtype=torch.float64)
        statistics = {"running_mean": norm["mean"], "running_var": norm["var"]}
        return _filled(layer, weight=norm["scale"], bias=norm["shift"], **statistics)


@dataclass(frozen=True)
class ClippedNetwork:
    """A dense network of whitened coordinates that are limited to their range in training.

    Attributes
    ----------
    coordinates : ClippedCoordinates
        Of rows X (n, d): k of them.
    network : Network
        With hidden weights (k, m).
    """

    coordinates: ClippedCoordinates
    network: Network

    @classmethod
    def of(
        cls,
        network: Network,
        coordinates: ClippedCoordinates,
        hidden: np.ndarray,
        gates: np.ndarray | None,
    ) -> ClippedNetwork:
        """Return a network of X, with its hidden weights (k, m) and gates (k + 1, m) on Z."""
        norm = {**network.batch_norm, "mean": np.zeros(hidden.shape[1])}
        coefs, intercepts = [hidden, network.coefs[1]], [norm["shift"], network.intercepts[1]]
        inner = Network(coefs, intercepts, norm, gates, network.n_components)
        return cls(coordinates, inner)

    def rescaled(self, offset: np.ndarray, size: np.ndarray) -> ClippedNetwork:
        """Return the same with coordinates less an offset (k,), divided by a size (k,).

        The offset of coordinates of size zero, which are to be constant, is their value.
        """
        given, network = self.coordinates, self.network
        factor = np.divide(1.0, size, out=np.zeros_like(size), where=size > 0)
        coordinates = ClippedCoordinates(
            given.coefs * factor,
            (given.intercepts - offset) * factor,
            (given.limits - offset) * factor,
        )
        W, scale = network.coefs[0], network.batch_norm["scale"]
        moved = offset @ W
        mean = np.divide(-moved, scale, out=np.zeros_like(moved), where=scale > 0)
        network = replace(
            network,
            coefs=[W * size[:, None], network.coefs[1]],
            intercepts=[network.intercepts[0] + moved, network.intercepts[1]],
            batch_norm={**network.batch_norm, "mean": mean},
        )
        return ClippedNetwork(coordinates, network)


def recover_network(
    neurons: Neurons,
    whitening: Whitening,
    *,
    gates: np.ndarray | None = None,
    target: TargetScaling | None = None,
    patches: PatchGrid | None = None,
    coordinates: ClippedCoordinates | None = None,
) -> Network:
    """Return the batch-normalized network of given neurons.

    The scales are balanced, |(gamma_j, beta_j)| = |v_j|, which makes the weight decay
    ``alpha/2 sum_j (gamma_j^2 + beta_j^2 + |v_j|^2)`` equal to ``alpha sum_j |q_j| |v_j|``
    (without shrinkage). Units are sorted by their mass, the largest first.

    Parameters
    ----------
    neurons : Neurons
    whitening : Whitening
    gates : ndarray of shape (k, P), default=None
        The gates that ``neurons.gates`` indexes; None for ReLU.
    target : TargetScaling, default=None
        Undone in the output layer.
    patches : PatchGrid, default=None
        Of a convolutional network.
    coordinates : ClippedCoordinates, default=None
        Of the whitening, where the network clips its inputs.

    Returns
    -------
    Network
    """
    scale = 1.0 if target is None else target.scale
    mass = np.linalg.norm(neurons.weights, axis=1)
    order = np.argsort(-mass, kind="stable")
    root = np.sqrt(mass[order] * scale)[:, None]
    q = neurons.directions[order] * root
    v = neurons.weights[order] / mass[order, None] * root
    W, intercept = whitening.hidden_layer(q)
    deviation = np.sqrt((q[:, :-1] ** 2 * whitening.spectrum[:-1]).sum(axis=1))
    batch_norm = {
        "mean": np.divide(
            whitening.mean_of(W), deviation, out=np.zeros_like(deviation), where=deviation > 0
        ),
        "var": np.ones_like(deviation),
        "scale": deviation,
        "shift": q[:, -1].copy(),
    }
    offset = neurons.intercept * scale + (0.0 if target is None else target.offset)
    rows = own = None
    if gates is not None:
        own = gates[:, neurons.gates[order]]  # type: ignore[index]
        rows = np.vstack(whitening.hidden_layer(own.T))
    layers = [W, v.reshape(-1, len(offset))], [intercept, offset]
    network = Network(*layers, batch_norm, rows, whitening.n_components, patches)
    if coordinates is None:
        return network
    return replace(network, clipped=ClippedNetwork.of(network, coordinates, q[:, :-1].T, own))


def neurons_of_network(
    network: Network,
    whitening: Whitening,
    *,
    gates: np.ndarray | None = None,
    target: TargetScaling | None = None,
) -> Neurons:
    """Return the neurons of a network in the coordinates of a whitening.

    The inverse of :func:`recover_network` where both use the same whitening; else the part of
    each hidden unit that the whitening can express. Gated units whose gate is not in the
    list `gates` (k, P) are left out.
    """
    scale = 1.0 if target is None else target.scale
    W = network.coefs[0]
    v = network.coefs[1].reshape(-1, network.pooling.n_cells * network.coefs[1].shape[1]) / scale
    q = whitening.coordinates(W, network.intercepts[0])
    offset = 0.0 if target is None else target.offset
    intercept = (network.intercepts[1] - offset) / scale
    if gates is None or network.gates is None:
        return Neurons.from_products(q, v, intercept, None)
    listed = np.vstack(whitening.hidden_layer(gates.T))
    size = np.abs(listed).max(initial=0.0) or 1.0
    distances = [np.abs(listed - gate[:, None]).max(axis=0) for gate in network.gates.T]
    same = np.array(distances).reshape(len(q), -1) <= 1e-9 * size
    found = same.any(axis=1)
    return Neurons.from_products(q[found], v[found], intercept, same[found].argmax(axis=1))


def check_finite(**layers: tuple[np.ndarray, ...]) -> None:
    """Raise a ValueError for arrays of layers, passed by their names, that are not finite."""
    for name, arrays in layers.items():
        if not all(np.isfinite(a).all() for a in arrays):
            raise ValueError(
                f"The network's {name} weights are not finite in the units of X and y: their "
                "numbers are so small or so large that the network's would leave the range of "
                "float64. Scale them."
            )


def linear_layer(W: np.ndarray, bias: np.ndarray | None) -> Any:
    """Return weights W (n_in, n_out) and a bias (n_out,), or none, as a float64 layer of torch."""
    import torch

    n_in, n_out = W.shape
    layer = torch.nn.Linear(n_in, n_out, bias=bias is not None, dtype=torch.float64)
    return _filled(layer, weight=W.T, bias=bias)


def _filled(layer: Any, **values: np.ndarray | None) -> Any:
    """Return a layer of torch with some of its tensors' values replaced."""
    import torch

    with torch.no_grad():
        for name, value in values.items():
            if value is not None:
                getattr(layer, name).copy_(torch.as_tensor(writable(value)))
    return layer

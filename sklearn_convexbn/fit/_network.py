"""From neurons in whitened coordinates to a batch-normalized network, and to torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from sklearn_convexbn.data._canonical import TargetScaling
from sklearn_convexbn.data._patches import PatchGrid, flattened
from sklearn_convexbn.data._pooling import IDENTITY
from sklearn_convexbn.data._rows import Rows
from sklearn_convexbn.data._whitening import Whitening
from sklearn_convexbn.program._problem import Neurons
from sklearn_convexbn.support._arrays import Array, array_namespace, like, on_device, writable

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
    """

    coefs: list[np.ndarray]
    intercepts: list[np.ndarray]
    batch_norm: dict[str, np.ndarray]
    gates: np.ndarray | None = None
    n_components: int | None = None
    patches: PatchGrid | None = None

    def forward(self, X: Any) -> Array:
        """Return the output (n, C) for rows X (n, d), dense or sparse, or images of a network."""
        if self.patches is not None:
            X = flattened(X, self.patches.image_shape)
        return forward(X, self.coefs, self.intercepts, self.gates, self.patches)


def recover_network(
    neurons: Neurons,
    whitening: Whitening,
    *,
    gates: np.ndarray | None = None,
    target: TargetScaling | None = None,
    patches: PatchGrid | None = None,
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
    rows = None
    if gates is not None:
        G, g0 = whitening.hidden_layer(gates[:, neurons.gates[order]].T)  # type: ignore[index]
        rows = np.vstack([G, g0])
    coefs = [W, v.reshape(-1, len(offset))]
    return Network(coefs, [intercept, offset], batch_norm, rows, whitening.n_components, patches)


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
    n_cells = 1 if network.patches is None else network.patches.pooling.n_cells
    v = network.coefs[1].reshape(-1, n_cells * network.coefs[1].shape[1]) / scale
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


def forward(
    X: Any,
    coefs: list[np.ndarray],
    intercepts: list[np.ndarray],
    gates: np.ndarray | None = None,
    patches: PatchGrid | None = None,
) -> Any:
    """Return the network's output (n, C), where X is, for rows X (n, d): an array or `Rows`.

    The rows are images where `patches` are given.
    """
    rows = X if isinstance(X, Rows) else Rows(X)
    v, v0 = (like(a, rows.example) for a in (coefs[1], intercepts[1]))
    F = _empty(rows, v.shape[1])
    for block, hidden in _hidden_blocks(rows, coefs[0], intercepts[0], gates, patches):
        F[block] = hidden @ v + v0
    return F


def hidden_activations(
    X: Any,
    coefs: list[np.ndarray],
    intercepts: list[np.ndarray],
    gates: np.ndarray | None = None,
    patches: PatchGrid | None = None,
) -> Array:
    """Return the hidden units' values (n, m), where X is, for rows X (n, d): an array or `Rows`.

    These are ``relu(X @ coefs[0] + intercepts[0])``; with gates the relu is replaced by the
    gates' 0/1 values. With patches the rows are images and the values are pooled to G cells,
    (n, m G), those of a unit together.
    """
    rows = X if isinstance(X, Rows) else Rows(X)
    H = _empty(rows, coefs[1].shape[0])
    for block, hidden in _hidden_blocks(rows, coefs[0], intercepts[0], gates, patches):
        H[block] = hidden
    return H


def _empty(rows: Rows, width: int) -> Array:
    """Return an array (n, width) for values in float64, of the kind of the rows' blocks."""
    example = rows.example
    return array_namespace(example).empty(
        (len(rows), width), dtype=example.dtype, **on_device(example)
    )


def _hidden_blocks(
    rows: Rows,
    W: np.ndarray,
    w0: np.ndarray,
    gates: np.ndarray | None,
    patches: PatchGrid | None,
) -> Iterator[tuple[slice, Array]]:
    """Yield slices of rows and the values (rows, m) of the hidden units there, pooled (., m G)."""
    cut = rows if patches is None else patches.rows(rows)
    example = rows.example
    W, w0 = like(W, example), like(w0, example)
    G = None if gates is None else like(gates, example)
    pooling = IDENTITY if patches is None else patches.pooling
    for block, part in cut.multipliable(W.shape[1], PREDICTED_NUMBERS):
        hidden = part @ W
        hidden += w0
        hidden = hidden.clip(min=0.0) if G is None else hidden * (part @ G[:-1] + G[-1] >= 0)
        yield pooling.samples(block), pooling.features(hidden)


def to_torch(
    coefs: list[np.ndarray],
    intercepts: list[np.ndarray],
    batch_norm: dict[str, np.ndarray],
    *,
    fold: bool = False,
    n_cells: int = 1,
) -> Any:
    """Return the network as a float64 ``torch.nn.Sequential`` in eval mode.

    Parameters
    ----------
    fold : bool, default=False
        Whether to fold batch normalization into the first layer.
    n_cells : int, default=1
        Features of a unit in the last layer, where units are pooled before it.

    Returns
    -------
    torch.nn.Sequential
        (Linear, BatchNorm1d, ReLU, Linear), or (Linear, ReLU, Linear) when folded. An empty
        network is given one hidden unit of zeros, as torch's layers need one.
    """
    import torch

    if len(intercepts[0]) == 0:
        coefs = [np.zeros((coefs[0].shape[0], 1)), np.zeros((n_cells, coefs[1].shape[1]))]
        intercepts = [np.zeros(1), intercepts[1]]
        batch_norm = {"mean": np.zeros(1), "var": np.ones(1)}
        batch_norm |= {"scale": np.zeros(1), "shift": np.zeros(1)}
    d, m = coefs[0].shape
    C = coefs[1].shape[1]
    output = torch.nn.Linear(len(coefs[1]), C, dtype=torch.float64)
    hidden = torch.nn.Linear(d, m, bias=fold, dtype=torch.float64)
    with torch.no_grad():
        _assign(output.weight, coefs[1].T)
        _assign(output.bias, intercepts[1])
    if fold:
        with torch.no_grad():
            _assign(hidden.weight, coefs[0].T)
            _assign(hidden.bias, intercepts[0])
        return torch.nn.Sequential(hidden, torch.nn.ReLU(), output).eval()
    norm = torch.nn.BatchNorm1d(m, eps=BATCH_NORM_EPS, dtype=torch.float64)
    scale, var = batch_norm["scale"], batch_norm["var"]
    W = np.divide(coefs[0] * np.sqrt(var), scale, out=np.zeros_like(coefs[0]), where=scale > 0)
    with torch.no_grad():
        _assign(hidden.weight, W.T)
        _assign(norm.weight, scale)
        _assign(norm.bias, batch_norm["shift"])
        _assign(norm.running_mean, batch_norm["mean"])
        _assign(norm.running_var, var)
    return torch.nn.Sequential(hidden, norm, torch.nn.ReLU(), output).eval()


def convolution_to_torch(
    coefs: list[np.ndarray],
    intercepts: list[np.ndarray],
    batch_norm: dict[str, np.ndarray],
    patches: PatchGrid,
    *,
    fold: bool = False,
) -> Any:
    """Return a convolutional network as a float64 ``torch.nn.Sequential`` in eval mode.

    Returns
    -------
    torch.nn.Sequential
        (Conv2d, BatchNorm2d, ReLU, AvgPool2d, Flatten, Linear), without BatchNorm2d when folded.
        An empty network is given one hidden unit of zeros.
    """
    import torch

    dense = to_torch(coefs, intercepts, batch_norm, fold=fold, n_cells=patches.pooling.n_cells)
    linear, output, m = dense[0], dense[-1], dense[0].out_features
    channels, shape = patches.image_shape[2], patches.patch_shape
    conv = torch.nn.Conv2d(
        channels, m, shape, stride=patches.stride, bias=fold, dtype=torch.float64
    )
    with torch.no_grad():
        filters = linear.weight.reshape(m, *shape, channels).permute(0, 3, 1, 2)
        conv.weight.copy_(filters)
        if conv.bias is not None:
            conv.bias.copy_(linear.bias)
    layers: list[Any] = [conv]
    if not fold:
        norm = torch.nn.BatchNorm2d(m, eps=BATCH_NORM_EPS, dtype=torch.float64)
        norm.load_state_dict(dense[1].state_dict())
        layers.append(norm)
    pool = torch.nn.AvgPool2d(patches.pool_shape, patches.pool_stride)
    layers += [torch.nn.ReLU(), pool, torch.nn.Flatten(), output]
    return torch.nn.Sequential(*layers).eval()


def _assign(tensor: Any, values: np.ndarray) -> None:
    import torch

    tensor.copy_(torch.as_tensor(writable(values)))

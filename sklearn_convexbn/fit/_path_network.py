"""Path networks in the units of X and y: from neurons and back, as layers, and to torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sklearn_convexbn.data._canonical import TargetScaling
from sklearn_convexbn.data._rows import Rows
from sklearn_convexbn.data._whitening import Whitening
from sklearn_convexbn.program._problem import Neurons
from sklearn_convexbn.support._arrays import Array, array_namespace, like, on_device, writable

#: Numbers in a block of rows and their hidden units: what a core's cache holds.
PREDICTED_NUMBERS = 2**18


@dataclass(frozen=True)
class PathNetwork:
    """Sub-networks in parallel, in the units of X and y.

    The output is ``sum_j v_j relu(sum_i signs[i] relu(x @ w_ij + c_ij) + x @ s_j + t_j) + b``.

    Attributes
    ----------
    inner, inner_offsets : ndarray of shapes (h, d, m) and (h, m)
        Weights w_ij and offsets c_ij of the inner units.
    linear, linear_offsets : ndarray of shapes (d, m) and (m,)
        The linear parts s_j and t_j.
    output : ndarray of shape (m, C)
        Output weights v_j.
    intercept : ndarray of shape (C,)
    signs : ndarray of shape (h,)
    feature_weights : ndarray of shape (d,)
        Path mass of each column, for a column of unit variance.
    """

    inner: np.ndarray
    inner_offsets: np.ndarray
    linear: np.ndarray
    linear_offsets: np.ndarray
    output: np.ndarray
    intercept: np.ndarray
    signs: np.ndarray
    feature_weights: np.ndarray

    def layers(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Return weights and offsets of the same network as three plain layers.

        The first hidden layer has the inner units that are not zero, unit by unit, and a linear
        part as the difference of two units.
        """
        W, offsets, into, signs = [], [], [], []
        for j in range(self.output.shape[0]):
            parts = [*zip(self.inner[:, :, j], self.inner_offsets[:, j], self.signs, strict=True)]
            parts += [(self.linear[:, j], 0.0, 1.0), (-self.linear[:, j], 0.0, -1.0)]
            for weights, offset, sign in parts:
                if weights.any() or offset > 0.0:
                    W.append(weights)
                    offsets.append(offset)
                    into.append(j)
                    signs.append(sign)
        d, m = self.linear.shape
        second = np.zeros((len(W), m))
        second[np.arange(len(W)), np.array(into, dtype=np.intp)] = signs
        first = np.array(W).reshape(-1, d).T.copy()
        return [first, second, self.output], [
            np.array(offsets, dtype=float),
            self.linear_offsets,
            self.intercept,
        ]


def recover_paths(
    neurons: Neurons,
    whitening: Whitening,
    signs: np.ndarray,
    target: TargetScaling | None,
) -> PathNetwork:
    """Return the network of neurons on standardised columns, units of largest mass first.

    The hidden layers are as the neurons have them, each unit of norm one on standardised columns.
    """
    scale = 1.0 if target is None else target.scale
    order = np.argsort(-np.linalg.norm(neurons.weights, axis=1), kind="stable")
    h, m, k = len(signs), len(order), whitening.n_components + 1
    q, v = neurons.directions[order], neurons.weights[order] * scale
    W, offsets = whitening.hidden_layer(q.reshape(m * (h + 1), k))
    d = len(W)
    W = W.reshape(d, m, h + 1).transpose(2, 0, 1)
    offsets = offsets.reshape(m, h + 1).T
    sizes = np.abs(q.reshape(m, h + 1, k)[:, :, :-1]).sum(axis=1)
    masses = np.linalg.norm(v, axis=1) @ sizes
    return PathNetwork(
        inner=W[:h],
        inner_offsets=offsets[:h],
        linear=W[h],
        linear_offsets=offsets[h],
        output=v,
        intercept=neurons.intercept * scale + (0.0 if target is None else target.offset),
        signs=signs,
        feature_weights=whitening.components @ masses,
    )


def neurons_of_paths(
    network: PathNetwork, whitening: Whitening, target: TargetScaling | None, units: Any
) -> Neurons:
    """Return the neurons of a network on the columns of a standardization, of norm one."""
    scale, offset = (1.0, 0.0) if target is None else (target.scale, target.offset)
    h, m = network.inner_offsets.shape
    W = np.concatenate([network.inner, network.linear[None]]).transpose(1, 2, 0)
    offsets = np.concatenate([network.inner_offsets, network.linear_offsets[None]]).T
    q = whitening.coordinates(W.reshape(len(W), -1), offsets.ravel()).reshape(
        m, (h + 1) * (whitening.n_components + 1)
    )
    norms, v = units.norms(q.T), network.output / scale
    kept = (norms > 0) & (np.linalg.norm(v, axis=1) > 0)
    intercept = (network.intercept - offset) / scale
    return Neurons(q[kept] / norms[kept, None], v[kept] * norms[kept, None], intercept)


def forward_layers(X: Any, coefs: list[np.ndarray], intercepts: list[np.ndarray]) -> Array:
    """Return the output (n, C) of layers with relu between them, where X (n, d) is."""
    rows = Rows(X)
    example = rows.example
    layers = [(like(W, example), like(b, example)) for W, b in zip(coefs, intercepts, strict=True)]
    F = array_namespace(example).empty(
        (len(rows), len(intercepts[-1])), dtype=example.dtype, **on_device(example)
    )
    for block, part in rows.multipliable(sum(len(b) for b in intercepts), PREDICTED_NUMBERS):
        H = part
        for W, b in layers[:-1]:
            H = (H @ W + b).clip(min=0.0)
        F[block] = H @ layers[-1][0] + layers[-1][1]
    return F


def layers_to_torch(coefs: list[np.ndarray], intercepts: list[np.ndarray]) -> Any:
    """Return layers as a float64 ``torch.nn.Sequential`` of Linear and ReLU in eval mode.

    Layers without units are given one of zeros, as torch's need one.
    """
    import torch

    modules: list[Any] = []
    for i, (W, b) in enumerate(zip(coefs, intercepts, strict=True)):
        n_in, n_out = (max(1, size) for size in W.shape)
        linear = torch.nn.Linear(n_in, n_out, dtype=torch.float64)
        with torch.no_grad():
            linear.weight.zero_()
            linear.bias.zero_()
            linear.weight[: W.shape[1], : W.shape[0]] = torch.as_tensor(writable(W.T))
            linear.bias[: len(b)] = torch.as_tensor(writable(b))
        modules += [linear, torch.nn.ReLU()] if i < len(coefs) - 1 else [linear]
    return torch.nn.Sequential(*modules).eval()

"""Path networks in the units of X and y: from neurons and back, as layers, and to torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sklearn_convexbn.data._canonical import TargetScaling
from sklearn_convexbn.data._rows import Rows
from sklearn_convexbn.data._whitening import Whitening
from sklearn_convexbn.fit._network import linear_layer
from sklearn_convexbn.program._problem import Neurons
from sklearn_convexbn.support._arrays import Array, like

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
        parts = np.concatenate([self.inner, self.linear[None], -self.linear[None]])
        parts = parts.transpose(2, 0, 1)
        offsets = np.pad(self.inner_offsets.T, [(0, 0), (0, 2)])
        signs = np.append(self.signs, [1.0, -1.0])
        kept = parts.any(axis=2) | (offsets > 0.0)
        into, part = np.nonzero(kept)
        second = np.zeros((len(into), len(parts)))
        second[np.arange(len(into)), into] = signs[part]
        return [parts[kept].T.copy(), second, self.output], [
            offsets[kept],
            self.linear_offsets,
            self.intercept,
        ]

    def forward(self, X: Any) -> Array:
        """Return the output (n, C), where X is, for rows X (n, d)."""
        rows = Rows(X)
        coefs, intercepts = ([like(a, rows.example) for a in each] for each in self.layers())
        F = rows.empty(len(intercepts[-1]))
        for block, part in rows.multipliable(sum(map(len, intercepts)), PREDICTED_NUMBERS):
            H = part
            for W, b in zip(coefs[:-1], intercepts[:-1], strict=True):
                H = (H @ W + b).clip(min=0.0)
            F[block] = H @ coefs[-1] + intercepts[-1]
        return F

    def to_torch(self) -> Any:
        """Return the layers as a float64 ``torch.nn.Sequential`` of Linear and ReLU in eval mode.

        Layers without units are given one of zeros, as torch's need one.
        """
        import torch

        modules: list[Any] = []
        for layer in zip(*self.layers(), strict=True):
            padded = (np.pad(a, [(0, int(size == 0)) for size in a.shape]) for a in layer)
            modules += [linear_layer(*padded), torch.nn.ReLU()]
        return torch.nn.Sequential(*modules[:-1]).eval()


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

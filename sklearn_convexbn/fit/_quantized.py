"""Two-layer networks as ONNX graphs, in float32 and with 8-bit integers.

The rescalings here leave the function of the network as it is and make it fit for 8 bits: columns
of X get one range, and so do hidden units, whose ReLU commutes with a positive factor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

#: Offsets are at most this in 32-bit integers, which leaves room for the products.
LARGEST_OFFSET = 2.0**30

#: Added to the second moments of inputs, as a share of their mean, before they are inverted.
DAMPING = 0.01

#: Versions of the operators and of the file that onnxruntime 1.20 and newer read.
OPSET, IR_VERSION = 17, 8


@dataclass(frozen=True)
class Rescaled:
    """The network ``relu(((x - offset) * factor) @ W + w0) @ V + v0``."""

    offset: np.ndarray
    factor: np.ndarray
    W: np.ndarray
    w0: np.ndarray
    V: np.ndarray
    v0: np.ndarray


def rescaled(coefs: list[np.ndarray], intercepts: list[np.ndarray], X: np.ndarray) -> Rescaled:
    """Return a network whose inputs and hidden units have the range [0, 1] on rows X (n, d).

    Units that depend on no column join the output intercept, and one of zeros stands for none.
    """
    (W, V), (w0, v0) = coefs, intercepts
    low, high = X.min(axis=0), X.max(axis=0)
    width = np.where(high > low, high - low, 1.0)
    w0, W = w0 + low @ W, W * width[:, None]
    varies = W.any(axis=0)
    v0 = v0 + np.maximum(w0[~varies], 0.0) @ V[~varies]
    W, w0, V = W[:, varies], w0[varies], V[varies]
    if not varies.any():
        W, w0, V = np.zeros((len(low), 1)), np.zeros(1), np.zeros((1, len(v0)))
    largest = np.maximum(((X - low) / width) @ W + w0, 0.0).max(axis=0)
    # Units that are off on all rows are given a range by their weights.
    size = np.where(largest > 0, largest, np.abs(W).sum(axis=0))
    size = np.where(size > 0, size, 1.0)
    return Rescaled(low, 1.0 / width, W / size, w0 / size, V * size[:, None], v0)


def rounded_weights(
    A: np.ndarray, offset: np.ndarray, second_moment: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return 8-bit weights (d, m) and the scale (m,) of each unit.

    The scale brings a unit's largest weight to 127, unless its offset would then be beyond 32-bit
    integers with steps of scale / 255. Inputs are rounded one after another, those of
    most power first, and later ones make up for what rounding the earlier ones has changed on
    inputs of the given second moments (d, d).

    References
    ----------
    .. [1] E. Frantar, S. Ashkboos, T. Hoefler, D. Alistarh, "GPTQ: Accurate Post-Training
       Quantization for Generative Pre-trained Transformers", ICLR 2023, arXiv:2210.17323.
    """
    scale = np.maximum(np.abs(A).max(axis=0) / 127.0, np.abs(offset) * 255.0 / LARGEST_OFFSET)
    scale = np.where(scale > 0, scale, 1.0)
    power = np.diag(second_moment)
    order = np.argsort(-power, kind="stable")
    damping = DAMPING * max(float(power.mean()), 1e-300)
    H = second_moment[np.ix_(order, order)] + damping * np.eye(len(power))
    feedback = np.linalg.cholesky(np.linalg.inv(H)).T
    left, codes = (A / scale)[order], np.empty(A.shape, dtype=np.int8)
    for i, row in enumerate(left):
        codes[order[i]] = np.clip(np.rint(row), -127, 127)
        error = (row - codes[order[i]]) / feedback[i, i]
        left[i + 1 :] -= np.outer(feedback[i, i + 1 :], error)
    return codes, scale


def quantized_model(network: Rescaled, X: np.ndarray) -> Any:
    """Return the network as an ONNX model with 8-bit weights, inputs and hidden units.

    Both Gemm take what QuantizeLinear and DequantizeLinear leave of their inputs, which
    onnxruntime runs in integers. The step of inputs and hidden units is 1 / 255, as their range is
    [0, 1]; a weight's is that of its unit, and an offset's the product of both. Outputs stay in
    float32. Weights are rounded with regard to rows X (n, d).
    """
    from onnx import TensorProto, helper, numpy_helper

    step = np.float32(1.0 / 255.0)
    inputs = np.rint(np.clip((X - network.offset) * network.factor, 0.0, 1.0) * 255.0) / 255.0
    arrays: dict[str, np.ndarray] = {
        "offset": network.offset.astype(np.float32),
        "factor": network.factor.astype(np.float32),
        "step": np.asarray(step),
        "zero": np.asarray(0, dtype=np.uint8),
    }
    for name, A, a in (("hidden", network.W, network.w0), ("output", network.V, network.v0)):
        codes, scale = rounded_weights(A, a, inputs.T @ inputs / len(inputs))
        arrays |= {f"{name}_weights": codes, f"{name}_scale": scale.astype(np.float32)}
        arrays[f"{name}_zeros"] = np.zeros(len(a), dtype=np.int8)  # onnxruntime asks for them
        arrays[f"{name}_offset"] = np.rint(a / (scale * float(step))).astype(np.int32)
        arrays[f"{name}_offset_scale"] = scale.astype(np.float32) * step
        inputs = np.clip(inputs @ (codes * scale) + a, 0.0, 1.0)
        inputs = np.rint(inputs * 255.0) / 255.0
    nodes = [
        helper.make_node("Sub", ["X", "offset"], ["centred"]),
        helper.make_node("Mul", ["centred", "factor"], ["scaled"]),
        *_layer(helper, "scaled", "hidden", "inputs"),
        helper.make_node("Relu", ["inputs"], ["units"]),
        *_layer(helper, "units", "output", "F"),
    ]
    kind, (d, C) = TensorProto.FLOAT, (len(network.offset), len(network.v0))
    ends = [helper.make_tensor_value_info(k, kind, ["n", e]) for k, e in (("X", d), ("F", C))]
    stored = [numpy_helper.from_array(np.asarray(a), name) for name, a in arrays.items()]
    graph = helper.make_graph(nodes, "sklearn_convexbn", ends[:1], ends[1:], stored)
    opset = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, opset_imports=opset, producer_name="sklearn_convexbn")
    model.ir_version = IR_VERSION
    return model


def _layer(helper: Any, source: str, name: str, result: str) -> list[Any]:
    """Return the nodes of a linear layer in integers."""
    make = helper.make_node
    weights, offset = f"{name}_weights", f"{name}_offset"
    return [
        make("QuantizeLinear", [source, "step", "zero"], [f"{source}_codes"]),
        make("DequantizeLinear", [f"{source}_codes", "step", "zero"], [f"{source}_rounded"]),
        make(
            "DequantizeLinear", [weights, f"{name}_scale", f"{name}_zeros"], [f"{name}_W"], axis=1
        ),
        make("DequantizeLinear", [offset, f"{name}_offset_scale"], [f"{name}_b"], axis=0),
        make("Gemm", [f"{source}_rounded", f"{name}_W", f"{name}_b"], [result]),
    ]

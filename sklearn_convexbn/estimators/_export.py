"""Networks as files that run elsewhere."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.utils import check_array

from sklearn_convexbn.data._validation import ACCEPTED_X, validated_rows
from sklearn_convexbn.fit._foreign import read_network
from sklearn_convexbn.fit._quantized import quantized_model, rescaled
from sklearn_convexbn.support._arrays import as_numpy
from sklearn_convexbn.support._device import plain_torch


@plain_torch()
def export_int8(network: Any, X: Any, path: str | os.PathLike[str]) -> None:
    """Write a network as an ONNX file that computes with 8-bit integers.

    Batch normalization is folded, weights are integers of 8 bits with a scale for each unit,
    inputs and hidden units integers of 8 bits with one scale for each layer [1]_; onnxruntime
    runs both layers in integers. Its input "X" (n, d) and its output "F" (n, n_outputs) are
    float32: predictions of a regressor, for a classifier the argument of the softmax (or
    sigmoid). Neither torch nor this package is needed to run it.

    Parameters
    ----------
    network : estimator or torch.nn.Sequential
        A fitted estimator of this package with ``activation="relu"``, without `patches` and
        `clip`, or another network that :func:`lipschitz_bound` takes.
    X : {array-like, sparse matrix} of shape (n_samples, n_features)
        Rows to calibrate with: columns and hidden units are clipped to the range they have there.
        The training data, or some hundred rows of them.
    path : str or path-like
        Of the file, such as "model.onnx". It is replaced if it exists.

    Raises
    ------
    ImportError
        If onnx is not installed; ``pip install "sklearn-convexbn[onnx]"``.
    TypeError
        If `network` is none of the kinds above.
    ValueError
        For another activation or architecture, a network with `patches` or `clip`, an estimator
        that is not fitted, or X that it does not take.

    See Also
    --------
    ConvexBNClassifier.to_torch : The network in float64, from where torch exports it.

    Notes
    -----
    Columns are shifted and scaled to [0, 1] in float32 before they are rounded, and hidden units
    have the range [0, 1] too. Weights are rounded one input after another, and later ones make
    up for the errors of earlier ones on X [2]_. What 8 bits cost grows where the network tells
    nearly equal columns apart: `shrinkage` and `n_components` prevent it. Compare the file's
    predictions with the estimator's before you use it.

    References
    ----------
    .. [1] D. Lin, G. Xie, P. Sun, S. Zhou, Z. Zhang, "Optimal Quantization for Batch Normalization
       in Neural Network Deployments and Beyond", 2020, arXiv:2008.13128.
    .. [2] E. Frantar, S. Ashkboos, T. Hoefler, D. Alistarh, "GPTQ: Accurate Post-Training
       Quantization for Generative Pre-trained Transformers", ICLR 2023, arXiv:2210.17323.
    """
    if importlib.util.find_spec("onnx") is None:
        raise ImportError(
            'export_int8 needs onnx, which is not installed: pip install "sklearn-convexbn[onnx]".'
        )
    layers = read_network(network, X, "export_int8")
    if layers.patches is not None:
        raise ValueError(
            "export_int8 needs a dense network, with patches=None. For a convolutional one export "
            "to_torch(fold=True) and use onnxruntime's quantize_static."
        )
    if layers.clipped is not None:
        raise ValueError(
            "export_int8 needs a network of clip=False. Columns and hidden units are clipped to "
            "their range on X in 8-bit integers anyway; export to_torch(fold=True) for a file that "
            "clips as the estimator does."
        )
    plain = layers.in_eval_mode()
    if layers.estimator is not None:
        X = validated_rows(layers.estimator, X)
    else:
        X = check_array(as_numpy(X), **ACCEPTED_X, input_name="X")
    if X.shape[1] != layers.n_features:
        raise ValueError(
            f"X has {X.shape[1]} features, but the network expects {layers.n_features}."
        )
    X = np.asarray(X.toarray() if hasattr(X, "toarray") else as_numpy(X), dtype=np.float64)
    model = quantized_model(rescaled(plain.coefs, plain.intercepts, X), X)
    Path(path).write_bytes(model.SerializeToString())

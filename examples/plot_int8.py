"""
A network in 8-bit integers
===========================

:func:`~sklearn_convexbn.export_int8` folds batch normalization into the first layer and writes an
ONNX file that onnxruntime runs in 8-bit integers: weights with a scale for each unit, one
scale for all inputs of a layer. What the rounding costs, on digits.
"""

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import onnxruntime
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from sklearn_convexbn import ConvexBNClassifier, export_int8

X, y = load_digits(return_X_y=True)
X, X_test, y, y_test = train_test_split(X, y, stratify=y, random_state=0)
model = ConvexBNClassifier(0.01, n_components=20, random_state=0).fit(X, y)

# %%
# The rows that calibrate the ranges are those of training.

with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "digits.onnx"
    export_int8(model, X, file)
    size = file.stat().st_size
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
(rounded,) = session.run(None, {"X": X_test.astype(np.float32)})
exact = model.decision_function(X_test)

accuracy = (model.classes_[rounded.argmax(axis=1)] == y_test).mean()
print(f"accuracy {model.score(X_test, y_test):.4f}, in 8 bits {accuracy:.4f}, {size} bytes")
print(f"largest error of a logit {np.abs(rounded - exact).max():.3f} of {np.abs(exact).max():.1f}")

fig, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
axes[0].plot(exact.ravel(), rounded.ravel(), ".", ms=2)
axes[0].set(xlabel="logit in float64", ylabel="logit in 8 bits")
axes[1].hist((rounded - exact).ravel(), bins=60)
axes[1].set(xlabel="error of a logit")
plt.show()

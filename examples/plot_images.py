"""
Images from the usual places
============================

A convolutional network on CIFAR-10 or MNIST where this machine has them in the form in which
torchvision keeps them, and on scikit-learn's digits where it does not. Nothing is downloaded.

The folder is ``data``, or the one that the environment variable ``IMAGE_DATA`` names. Looked for
are ``cifar-10-batches-py`` and ``MNIST/raw`` there. Data of OpenML are one call away:
``fetch_openml("mnist_784")`` gives rows that are flattened 28 x 28 images.
"""

# %%
# Readers
# -------
#
# CIFAR-10 is five pickled batches of rows with the channels first; MNIST is in idx files: a header
# of big-endian integers, then bytes. Unpickling runs code that is in the file: read only batches
# that you trust.

import gzip
import os
import pickle
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from sklearn_convexbn import ConvexBNClassifier, Patches


def read_idx(path):
    """Return the array of an idx file, compressed or not."""
    with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
        content = file.read()
    shape = np.frombuffer(content, dtype=">i4", count=content[3], offset=4)
    return np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * content[3]).reshape(shape)


def mnist(folder):
    """Return images (n, 28, 28) and labels of MNIST, or None."""
    arrays = []
    for name in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"):
        paths = [folder / "MNIST" / "raw" / f"{name}{end}" for end in ("", ".gz")]
        arrays += [read_idx(path) for path in paths if path.is_file()][:1]
    return arrays if len(arrays) == 2 else None


def cifar10(folder):
    """Return images (n, 32, 32, 3) and labels of CIFAR-10, or None."""
    paths = sorted((folder / "cifar-10-batches-py").glob("data_batch_?"))
    if not paths:
        return None
    batches = [pickle.loads(path.read_bytes(), encoding="bytes") for path in paths]
    rows = np.concatenate([batch[b"data"] for batch in batches])
    y = np.concatenate([batch[b"labels"] for batch in batches])
    return [rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), y]


def digits(folder):
    """Return images (n, 8, 8) and labels of scikit-learn's digits."""
    X, y = load_digits(return_X_y=True)
    return [X.reshape(-1, 8, 8), y]


# %%
# A fit
# -----
#
# 400 images of the first set that is found, so that the example takes seconds, and the rest up to
# 2000 to test. More images make a better network.

folder = Path(os.environ.get("IMAGE_DATA", "data"))
name, (X, y) = next(
    (read.__name__, found)
    for read in (cifar10, mnist, digits)
    if (found := read(folder)) is not None
)
X, X_test, y, y_test = train_test_split(
    X[:2000], y[:2000], train_size=400, stratify=y[:2000], random_state=0
)
side = X.shape[1]
patches = Patches(size=3, stride=1) if side == 8 else Patches(size=6, stride=4)
model = ConvexBNClassifier(
    alpha=0.01, patches=patches, n_components=0.95, tol=0.1, random_state=0
).fit(X, y)
accuracy = model.score(X_test, y_test)
print(f"{name}: {model.n_neurons_} units, {100 * accuracy:.1f} % of the test images")
print(model.certificate_)

# %%
# The filters
# -----------
#
# Those of the units with the largest weights: what a unit multiplies a patch with.

count = min(12, model.n_neurons_)
fig, axes = plt.subplots(2, 6, figsize=(7, 2.6))
for ax in axes.flat:
    ax.axis("off")
for ax, weights in zip(axes.flat, model.coefs_[0].T[:count], strict=False):
    filters = weights.reshape(*model.patches_["patch_shape"], -1)
    low, high = filters.min(), filters.max()
    ax.imshow((filters - low) / (high - low), cmap="gray")
fig.suptitle(f"Filters of the {count} largest units, {name}")
plt.show()

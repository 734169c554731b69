"""Patches of images: rows of a matrix for whitening, K of them for each image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from sklearn_convexbn._arrays import Array, array_namespace, as_numpy
from sklearn_convexbn._pooling import Pooling, grid_pooling
from sklearn_convexbn._rows import RowBlocks, Rows

#: Added to the variance of a patch in local contrast normalization, as a share of the mean
#: variance of the training patches.
CONTRAST_SHARE = 0.01


@dataclass(frozen=True)
class Patches:
    """How images are cut into patches and patches are pooled.

    Attributes
    ----------
    image_shape : tuple of int
        Height, width and channels. A row is an image, flattened in this order.
    patch_shape : tuple of int
        Height and width; a flattened patch has all channels of a pixel together.
    stride : int
        Pixels between neighbouring patches.
    cells : int
        Pooling is over a grid of `cells` x `cells`.
    contrast : float or None
        Added to the variance of a patch by local contrast normalization, None for none.
    """

    image_shape: tuple[int, int, int]
    patch_shape: tuple[int, int]
    stride: int
    cells: int
    contrast: float | None = None

    @property
    def grid(self) -> tuple[int, int]:
        """Numbers of patches below each other and beside each other."""
        height, width = (
            (size - patch) // self.stride + 1
            for size, patch in zip(self.image_shape, self.patch_shape, strict=False)
        )
        return height, width

    @property
    def n_patches(self) -> int:
        """Number of patches of an image."""
        return self.grid[0] * self.grid[1]

    @property
    def n_features(self) -> int:
        """Number of values of a patch."""
        return self.patch_shape[0] * self.patch_shape[1] * self.image_shape[2]

    @property
    def pooling(self) -> Pooling:
        """The pooling of the units on the patches."""
        return grid_pooling(self.grid, self.cells)

    def cut(self, images: Array) -> Array:
        """Return the patches (n K, h) of flattened images (n, d)."""
        height, width = self.patch_shape
        images = images.reshape(-1, *self.image_shape)
        if isinstance(images, np.ndarray):
            windows = np.lib.stride_tricks.sliding_window_view(images, (height, width), (1, 2))
            windows = windows[:, :: self.stride, :: self.stride].transpose(0, 1, 2, 4, 5, 3)
        else:
            windows = images.unfold(1, height, self.stride).unfold(2, width, self.stride)
            windows = windows.permute(0, 1, 2, 4, 5, 3)
        patches = windows.reshape(-1, self.n_features)
        return patches if self.contrast is None else _normalized(patches, self.contrast)

    def fitted(self, images: Rows, weights: np.ndarray) -> Patches:
        """Return the patches with the constant of local contrast normalization set from images."""
        if self.contrast is None:
            return self
        plain, variance = replace(self, contrast=None), 0.0
        for rows, block in images.blocks():
            variances = as_numpy(plain.cut(block).var(axis=1)).reshape(-1, self.n_patches)
            variance += float(weights[rows] @ variances.mean(axis=1))
        return replace(self, contrast=CONTRAST_SHARE * variance / float(weights.sum()))


def _normalized(patches: Array, contrast: float) -> Array:
    """Subtract the mean of each patch and divide by its standard deviation."""
    centred = patches - patches.mean(axis=1)[:, None]
    scale = ((centred**2).mean(axis=1) + contrast) ** 0.5
    return centred / array_namespace(scale).where(scale > 0, scale, 1.0)[:, None]


class PatchRows(RowBlocks):
    """The patches of images as rows, cut when they are read.

    Parameters
    ----------
    images : Rows
        Flattened images, n of them.
    patches : Patches
    """

    def __init__(self, images: Rows, patches: Patches) -> None:
        self.images, self.patches = images, patches

    def __len__(self) -> int:
        return len(self.images) * self.patches.n_patches

    @property
    def shape(self) -> tuple[int, int]:
        return len(self), self.patches.n_features

    @property
    def example(self) -> Array:
        return self.images.example

    def slices(self, width: int = 0, numbers: int | None = None) -> Iterator[slice]:
        yield from self._slices(self.shape[1] + width, numbers, unit=self.patches.n_patches)

    def __getitem__(self, rows: slice) -> Array:
        K = self.patches.n_patches
        first, last = rows.start // K, -(-rows.stop // K)
        patches = self.patches.cut(self.images[slice(first, last)])
        return patches[rows.start - first * K : rows.stop - first * K]

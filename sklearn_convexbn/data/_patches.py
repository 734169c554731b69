"""Patches of images: rows of a matrix for whitening, K of them for each image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from numbers import Integral
from typing import Any, ClassVar, Self

import numpy as np
from sklearn.base import BaseEstimator

from sklearn_convexbn.data._pooling import Pooling, grid_pooling, pooling_window
from sklearn_convexbn.data._rows import RowBlocks, Rows
from sklearn_convexbn.data._validation import image_array
from sklearn_convexbn.support._arrays import Array, array_namespace, as_numpy
from sklearn_convexbn.support._compat import (
    DOCUMENTATION_PAGES,
    Interval,
    check_parameters,
    documented_name,
)

#: Added to the variance of a patch in local contrast normalization, as a share of the mean
#: variance of the training patches.
CONTRAST_SHARE = 0.01


class Patches(BaseEstimator):
    """How images are cut into patches, for the `patches` parameter of the estimators.

    Every hidden unit sees all patches of an image; batch normalization is over the patches of all
    images, and the activations are averaged over a grid of cells before the linear layer: a
    two-layer convolutional network. The parameters are reached from an estimator as
    ``patches__size``. Read more in :doc:`images </images>`.

    Parameters
    ----------
    image_shape : tuple of int, default=None
        Height, width and, where there are several, channels of an image. A row of X is a flattened
        image in this order; X of shape (n_samples, height, width[, channels]) is accepted too.
        None takes the shape from such an X, and takes a row of a 2-D X for an image of height 1,
        such as a signal.

    size : int, tuple of two ints or None, default=5
        Height and width of a patch, in pixels. None is the whole image: one patch, which makes
        the network a dense one.

    stride : int, default=1
        Pixels between neighbouring patches.

    pooling : int, default=2
        Activations are averaged over a grid of `pooling` x `pooling` cells; 1 is global average
        pooling. Where `pooling` does not divide the patches of an image, cells overlap. In a
        direction of one patch there is one cell.

    normalize : bool, default=False
        Whether to subtract the mean of each patch and divide by its standard deviation (local
        contrast normalization). A hundredth of the mean variance of the training patches is
        added to the variance.

    See Also
    --------
    ConvexBNClassifier : Classification, of images where it has `patches`.
    ConvexBNRegressor : The same for regression.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn_convexbn import ConvexBNClassifier, Patches
    >>> X, y = load_digits(n_class=2, return_X_y=True)
    >>> patches = Patches(image_shape=(8, 8), size=4, stride=2)
    >>> model = ConvexBNClassifier(alpha=0.1, patches=patches, random_state=0).fit(X, y)
    >>> model.dual_gap_ <= 0.01
    True
    """

    _doc_link_module = "sklearn_convexbn"
    _doc_link_template = DOCUMENTATION_PAGES
    _doc_link_url_param_generator = documented_name

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "image_shape": [tuple, list, None],
        "size": [Interval(Integral, 1, None, closed="left"), tuple, list, None],
        "stride": [Interval(Integral, 1, None, closed="left")],
        "pooling": [Interval(Integral, 1, None, closed="left")],
        "normalize": ["boolean"],
    }

    def __init__(
        self,
        image_shape: Sequence[int] | None = None,
        *,
        size: int | Sequence[int] | None = 5,
        stride: int = 1,
        pooling: int = 2,
        normalize: bool = False,
    ) -> None:
        self.image_shape = image_shape
        self.size = size
        self.stride = stride
        self.pooling = pooling
        self.normalize = normalize


@dataclass(frozen=True)
class PatchGrid:
    """How images of a known shape are cut into patches and patches are pooled.

    Attributes
    ----------
    image_shape : tuple of int
        Height, width and channels. A row is an image, flattened in this order.
    patch_shape : tuple of int
        Height and width; a flattened patch has all channels of a pixel together.
    stride : tuple of int
        Pixels between neighbouring patches, downwards and to the right.
    pool_shape, pool_stride : tuple of int
        Patches that a cell is the mean of, and patches between neighbouring cells, in these
        directions.
    contrast : float or None
        Added to the variance of a patch by local contrast normalization, None for none.
    """

    image_shape: tuple[int, int, int]
    patch_shape: tuple[int, int]
    stride: tuple[int, int]
    pool_shape: tuple[int, int]
    pool_stride: tuple[int, int]
    contrast: float | None = None

    @property
    def grid(self) -> tuple[int, int]:
        """Numbers of patches below each other and beside each other."""
        return windows(self.image_shape[:2], self.patch_shape, self.stride)

    @property
    def n_patches(self) -> int:
        """Number of patches of an image."""
        return prod(self.grid)

    @property
    def n_features(self) -> int:
        """Number of values of a patch."""
        return prod(self.patch_shape) * self.image_shape[2]

    @property
    def is_whole(self) -> bool:
        """Whether the one patch of an image is the image."""
        return self.patch_shape == self.image_shape[:2] and self.contrast is None

    @property
    def pooling(self) -> Pooling:
        """The pooling of the units on the patches."""
        return grid_pooling(self.grid, self.pool_shape, self.pool_stride)

    def cut(self, images: Any) -> Any:
        """Return the patches (n K, h) of flattened images (n, d)."""
        (height, width), (down, right) = self.patch_shape, self.stride
        images = images.reshape(-1, *self.image_shape)
        if isinstance(images, np.ndarray):
            windows = np.lib.stride_tricks.sliding_window_view(images, (height, width), (1, 2))
            windows = windows[:, ::down, ::right].transpose(0, 1, 2, 4, 5, 3)
        else:
            windows = images.unfold(1, height, down).unfold(2, width, right)
            windows = windows.permute(0, 1, 2, 4, 5, 3)
        patches = windows.reshape(-1, self.n_features)
        return patches if self.contrast is None else _normalized(patches, self.contrast)

    def fitted(self, images: Rows, weights: np.ndarray) -> PatchGrid:
        """Return the grid with the constant of local contrast normalization set from images."""
        if self.contrast is None:
            return self
        plain, variance = replace(self, contrast=None), 0.0
        for rows, block in images.blocks():
            variances = as_numpy(plain.cut(block).var(axis=1)).reshape(-1, self.n_patches)
            variance += float(weights[rows] @ variances.mean(axis=1))
        return replace(self, contrast=CONTRAST_SHARE * variance / float(weights.sum()))

    def rows(self, images: Rows) -> RowBlocks:
        """Return the patches of images as rows."""
        return images if self.is_whole else PatchRows(images, self)

    def weights(self, weights: np.ndarray) -> np.ndarray:
        """Return the weights (n K,) of the patches of images of some weights (n,)."""
        return np.repeat(weights / self.n_patches, self.n_patches)


def windows(shape: Sequence[int], window: Sequence[int], stride: Sequence[int]) -> tuple[int, int]:
    """Return how many windows fit below each other and beside each other."""
    down, right = (
        (n - size) // step + 1 for n, size, step in zip(shape, window, stride, strict=True)
    )
    return down, right


def images_as_rows(patches: Patches | None, X: Any) -> tuple[Any, PatchGrid | None]:
    """Return X of a fit as rows, and how these are cut.

    Without patches X stays as it is, and so does what is no X of images, for its validation to
    refuse.

    Raises
    ------
    ValueError
        For invalid parameters, patches that do not fit into the images, or an X that is not
        made of them.
    """
    if patches is None:
        return X, None
    check_parameters(patches, Patches._parameter_constraints)
    given = patches.image_shape
    image_shape = None if given is None else _checked_image_shape(given)
    X, shape = _with_shape(X)
    if len(shape) not in (2, 3, 4) or 0 in shape:
        return X, None
    if image_shape is None:
        image_shape = _checked_image_shape((1, *shape[1:]) if len(shape) == 2 else shape[1:])
    grid = patch_grid(patches, image_shape)
    if len(shape) == 2 and shape[1] != prod(image_shape):
        raise ValueError(
            f"The 'image_shape' parameter of Patches is {given!r}, which has {prod(image_shape)} "
            f"values, but the rows of X have {shape[1]}."
        )
    return flattened(X, image_shape), grid


def flattened(X: Any, image_shape: tuple[int, int, int]) -> Any:
    """Return images as rows; what has less than three dimensions stays as it is.

    Raises
    ------
    ValueError
        For images of another shape.
    """
    X, shape = _with_shape(X)
    if len(shape) < 3:
        return X
    found = tuple(int(size) for size in shape[1:])
    if found not in (image_shape, image_shape[:2] if image_shape[2] == 1 else image_shape):
        raise ValueError(
            f"X has images of shape {found}, but they should be {image_shape} (height, width, "
            "channels)."
        )
    return X.reshape((shape[0], prod(image_shape)))


def _with_shape(X: Any) -> tuple[Any, tuple[int, ...]]:
    """Return X with its shape, lists as an array."""
    X = image_array(X)
    return X, tuple(X.shape)


def patch_grid(patches: Patches, image_shape: tuple[int, int, int]) -> PatchGrid:
    """Return how patches of valid types cut images of a shape.

    Raises
    ------
    ValueError
        If they do not fit into the images.
    """
    height, width, _ = image_shape
    size: Any = (height, width) if patches.size is None else patches.size
    sizes = (size, size) if isinstance(size, Integral) else tuple(size)
    if len(sizes) != 2 or not all(isinstance(s, Integral) and int(s) >= 1 for s in sizes):
        raise ValueError(
            "The 'size' parameter of Patches must be a positive int, a pair of them (height, "
            f"width) or None. Got {size!r} instead."
        )
    patch_shape, stride = (int(sizes[0]), int(sizes[1])), (int(patches.stride),) * 2
    if patch_shape[0] > height or patch_shape[1] > width:
        raise ValueError(
            f"The 'size' parameter of Patches, {size!r}, is larger than the images, which are "
            f"{height} x {width}."
        )
    grid = windows((height, width), patch_shape, stride)
    cells = [1 if n == 1 else int(patches.pooling) for n in grid]
    if cells[0] > grid[0] or cells[1] > grid[1]:
        raise ValueError(
            f"The 'pooling' parameter of Patches, {patches.pooling}, is more than the {grid[0]} x "
            f"{grid[1]} patches of an image. Lower pooling, size or stride."
        )
    pool_shape, pool_stride = zip(*map(pooling_window, grid, cells), strict=True)
    contrast = 0.0 if patches.normalize else None
    return PatchGrid(image_shape, patch_shape, stride, pool_shape, pool_stride, contrast)


def _checked_image_shape(shape: Any) -> tuple[int, int, int]:
    """Return (height, width, channels).

    Raises
    ------
    ValueError
        For anything but two or three positive integers.
    """
    sizes: tuple[Any, ...] = tuple(shape)
    if len(sizes) not in (2, 3) or not all(isinstance(s, Integral) and int(s) >= 1 for s in sizes):
        raise ValueError(
            "The 'image_shape' parameter of Patches must be (height, width) or (height, width, "
            f"channels), positive ints. Got {shape!r} instead."
        )
    height, width, channels = (*sizes, 1)[:3]
    return int(height), int(width), int(channels)


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
    patches : PatchGrid
    """

    def __init__(self, images: Rows, patches: PatchGrid) -> None:
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

    def part(self, rows: slice) -> Self:
        """Return the rows of some images: a slice of multiples of the number of their patches."""
        (first, last, _), K = rows.indices(len(self)), self.patches.n_patches
        return type(self)(self.images.part(slice(first // K, last // K)), self.patches)

    def __getitem__(self, rows: slice) -> Array:
        K = self.patches.n_patches
        first, last = rows.start // K, -(-rows.stop // K)
        patches = self.patches.cut(self.images[slice(first, last)])
        return patches[rows.start - first * K : rows.stop - first * K]

"""Convolutional estimators: two-layer networks on the patches of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from numbers import Integral
from typing import Any, ClassVar

import numpy as np
from sklearn.utils.validation import check_is_fitted

from sklearn_convexbn import solvers
from sklearn_convexbn._base_estimator import BaseConvexBN
from sklearn_convexbn._compat import Interval
from sklearn_convexbn._encoding import TrainingData
from sklearn_convexbn._estimators import ConvexBNClassifier, ConvexBNRegressor
from sklearn_convexbn._network import convolution_to_torch
from sklearn_convexbn._patches import Patches
from sklearn_convexbn._sharding import ALL_HERE, Shards
from sklearn_convexbn._validation import image_array

#: What the parameters of convolution may be, as scikit-learn's constraints.
CONVOLUTION_CONSTRAINTS: dict[str, list[Any]] = {
    "image_shape": [tuple, list, None],
    "patch_size": [Interval(Integral, 1, None, closed="left"), tuple, list],
    "stride": [Interval(Integral, 1, None, closed="left")],
    "pooling": [Interval(Integral, 1, None, closed="left")],
    "normalize_patches": ["boolean"],
}


class ConvolutionMixin(BaseConvexBN):
    """Images as X, their patches as the rows that a network is stated on."""

    image_shape: Sequence[int] | None
    patch_size: int | Sequence[int]
    stride: int
    pooling: int
    normalize_patches: bool

    def _flattened(self, X: Any, *, reset: bool) -> Any:
        """Return images as rows.

        Raises
        ------
        ValueError
            For images of another shape than `image_shape`, or than those of the fit.
        """
        shape = getattr(X, "shape", None)
        if shape is None and self.image_shape is not None:
            X = image_array(X)
            shape = X.shape
        if reset:
            self._shape_of_images = None
            if self.image_shape is not None:
                self._shape_of_images = _image_shape(self.image_shape)
            elif shape is not None and len(shape) == 4:
                self._shape_of_images = _image_shape(shape[1:])
        expected = self._shape_of_images
        if expected is None or shape is None or len(shape) < 3:
            return X
        found = tuple(int(size) for size in shape[1:])
        if found not in (expected, expected[:2] if expected[2] == 1 else expected):
            raise ValueError(
                f"X has images of shape {found}, but they should be {expected} (height, width, "
                "channels)."
            )
        return X.reshape(shape[0], int(np.prod(found)))

    def _encode(
        self, X: Any, y: np.ndarray, sample_weight: np.ndarray, shards: Shards = ALL_HERE
    ) -> TrainingData:
        patches = None
        if self._shape_of_images is not None:
            if shards.size > 1:
                raise ValueError("Inside row_shards image_shape must be None: rows are no patches.")
            patches = self._checked_patches(self._shape_of_images)
        data = super()._encode(X, y, sample_weight, shards)  # type: ignore[safe-super]
        if patches is None:
            return data
        return replace(data, patches=patches.fitted(data.rows.on_cpu(), data.weights))

    def _checked_patches(self, shape: tuple[int, int, int]) -> Patches:
        """Return the patches that the parameters ask for.

        Raises
        ------
        ValueError
            If they do not fit into the images, or X is not made of them.
        """
        if int(np.prod(shape)) != self.n_features_in_:
            raise ValueError(
                f"image_shape={shape} has {int(np.prod(shape))} values, but the rows of X have "
                f"{self.n_features_in_}."
            )
        size: Any = self.patch_size
        sizes = (size, size) if isinstance(size, Integral) else tuple(size)
        if len(sizes) != 2 or not all(isinstance(s, Integral) and int(s) >= 1 for s in sizes):
            raise ValueError(
                "patch_size must be a positive int or a tuple of two (height, width). "
                f"Got {size!r}."
            )
        if sizes[0] > shape[0] or sizes[1] > shape[1]:
            raise ValueError(
                f"patch_size={size!r} is larger than the images, which are {shape[0]} x {shape[1]}."
            )
        patches = Patches(
            image_shape=shape,
            patch_shape=(int(sizes[0]), int(sizes[1])),
            stride=int(self.stride),
            cells=1,
            contrast=0.0 if self.normalize_patches else None,
        )
        if patches.n_patches == 1:  # one cell, whatever `pooling` is
            return patches
        if self.pooling > min(patches.grid):
            raise ValueError(
                f"pooling={self.pooling} is more than the {patches.grid[0]} x {patches.grid[1]} "
                "patches of an image. Lower pooling, patch_size or stride."
            )
        return replace(patches, cells=int(self.pooling))

    def _cut(self) -> Patches | None:
        return Patches(**self.patches_) if hasattr(self, "patches_") else None

    def to_torch(self, fold: bool = False) -> Any:
        """Return the fitted network as a float64 torch module in eval mode.

        Images are tensors of shape (n_samples, channels, height, width), as torch has them.

        Parameters
        ----------
        fold : bool, default=False
            Whether to fold batch normalization into the convolution.

        Returns
        -------
        torch.nn.Sequential
            (Conv2d, BatchNorm2d, ReLU, AvgPool2d, Flatten, Linear), without BatchNorm2d when
            folded. For a dense network that of
            :meth:`ConvexBNRegressor.to_torch <sklearn_convexbn.ConvexBNRegressor.to_torch>`.

        Raises
        ------
        ValueError
            For ``normalize_patches=True`` or ``activation="gated_relu"``, which no Sequential of
            these layers has.
        """
        check_is_fitted(self)
        patches = self._cut()
        if patches is None:
            return super().to_torch(fold)
        if patches.contrast is not None:
            raise ValueError(
                "to_torch needs normalize_patches=False: no Sequential of Conv2d, BatchNorm2d, "
                "ReLU, AvgPool2d and Linear normalizes patches."
            )
        if hasattr(self, "gates_"):
            raise ValueError("to_torch needs activation='relu'.")
        return convolution_to_torch(
            self.coefs_, self.intercepts_, self.batch_norm_, patches, fold=fold
        )


def _image_shape(shape: Any) -> tuple[int, int, int]:
    """Return (height, width, channels).

    Raises
    ------
    ValueError
        For anything but two or three positive integers.
    """
    sizes: tuple[Any, ...] = tuple(shape)
    if len(sizes) not in (2, 3) or not all(isinstance(s, Integral) and int(s) >= 1 for s in sizes):
        raise ValueError(
            "image_shape must be (height, width) or (height, width, channels), positive integers. "
            f"Got {shape!r}."
        )
    height, width, channels = (*sizes, 1)[:3]
    return int(height), int(width), int(channels)


class ConvexBNConvRegressor(ConvolutionMixin, ConvexBNRegressor):
    """Batch-normalized two-layer convolutional network for regression, trained in convex form.

    Every unit sees all patches of an image; batch normalization is over the patches of all images,
    and the activations are averaged over a grid of cells before the linear layer [1]_. Training is
    that of :class:`ConvexBNRegressor` on patches, with the same certificate. Read more in
    :doc:`images </images>`.

    Parameters
    ----------
    image_shape : tuple of int, default=None
        Height, width and, where there are several, channels of an image. A row of X is a flattened
        image in this order; X of shape (n_samples, height, width[, channels]) is accepted too.
        None takes the shape from a 4-D X, and treats a row of a 2-D X as one patch: a dense
        network.

    patch_size : int or tuple of two ints, default=5
        Height and width of a patch, in pixels.

    stride : int, default=1
        Pixels between neighbouring patches.

    pooling : int, default=2
        Activations are averaged over a grid of `pooling` x `pooling` cells; 1 is global average
        pooling. Where `pooling` does not divide the patches of an image, cells overlap.

    normalize_patches : bool, default=False
        Whether to subtract the mean of each patch and divide by its standard deviation (local
        contrast normalization). A hundredth of the mean variance of the training patches is
        added to the variance.

    alpha : float, default=3e-3
        Weight decay on BN scales, BN shifts and output weights, relative to a mean loss on a
        target of unit variance; it has no unit. Must be positive.

    n_components : int, float or None, default=None
        Number of leading singular directions of the patches that are kept, or, in (0, 1), the share
        of variance to keep. None keeps all. Keeping fewer is the explicit form of the bias of
        gradient descent towards large directions: tune it.

    shrinkage : float or "auto", default=0.0
        Damp small directions instead of cutting them: whiten with the covariance shrunk
        towards a multiple of the identity, 0 (batch normalization) to 1 (no whitening).
        "auto" is the Ledoit-Wolf estimate.

    activation : {"relu", "gated_relu"}, default="relu"
        "gated_relu" fixes the on/off pattern of each unit by `n_gates` random gates, which
        makes the program a group lasso; it is for images of one patch, several patches need
        "relu".

    solver : {"auto", "closed_form", "pursuit", "fista", "cvxpy"} or Solver, default="auto"
        "auto" takes a closed form where one is proven to hold, then pursuit for "relu" and
        FISTA for "gated_relu". Patches need pursuit. The parameters of an instance are reached
        as ``solver__x``.

    n_gates : int or "all", default=256
        Number of arrangements to sample where the program needs a fixed list ("gated_relu";
        "relu" with solver "fista" or "cvxpy"). "all" enumerates them, if they are few.

    fit_intercept : bool, default=True
        Whether to fit the (not penalised) output intercept. Without it the target is not
        centred.

    tol : float, default=1e-2
        The fit stops when the relative duality gap ``(primal - dual) / primal`` is at most
        `tol`. It means the same for every solver.

    max_iter : int, default=200
        Largest number of rounds of the solver.

    device : str or None, default=None
        Where solvers that use torch compute: None or "cpu", "cuda", "cuda:1", or "auto" for
        CUDA where there is one.

    warm_start : bool, default=False
        Whether to start from the previous fit's network.

    random_state : int, RandomState instance or None, default=None
        Seeds gates and searches. Pass an int for identical results across calls.

    verbose : int, default=0
        Print one line a round when positive.

    Attributes
    ----------
    coefs_ : list of ndarrays of shapes (n_inputs, n_neurons) and (n_neurons * n_cells, n_outputs)
        Weights with batch normalization folded in: of the values of a patch, and of the pooled
        activations, those of a unit together.
    intercepts_ : list of two ndarrays of shapes (n_neurons,) and (n_outputs,)
        Offsets of the hidden units and of the outputs.
    batch_norm_ : dict of ndarrays of shape (n_neurons,)
        "mean", "var", "scale" and "shift" of each hidden unit's batch normalization.
    gates_ : ndarray of shape (n_inputs + 1, n_neurons)
        Only with gated_relu: a unit is on where ``x @ gates_[:-1] + gates_[-1] >= 0``.
    n_neurons_ : int
        Number of hidden units.
    certificate_ : Certificate
        primal, dual, gap, infeasibility, kind ("exact" when rigorous, "estimated" when the
        maximum over arrangements came from a search) and program (the optimum it is about).
        Values are in squared units of y.
    objective_ : float
        Objective of the fitted network, ``certificate_.primal``.
    dual_gap_ : float
        Relative duality gap, ``certificate_.gap``.
    n_iter_ : int
        Rounds run.
    history_ : dict of ndarrays of shape (`n_iter_`,)
        "objective", "dual_gap", "n_neurons" and "time" (seconds) after each round.
    solver_ : Solver
        The solver used.
    n_components_ : int
        Number of directions kept.
    singular_values_ : ndarray of shape (rank,)
        All singular values of the centred patches (weighted), decreasing.
    explained_variance_ratio_ : ndarray of shape (rank,)
        Share of the variance along each direction.
    shrinkage_ : float
        The shrinkage used.
    weight_decay_ : float
        `alpha` in the units of y.
    patches_ : dict
        Only with images: how they are cut and pooled. "image_shape", "patch_shape", "stride",
        "cells" (pooling is over a grid of cells x cells) and "contrast", what is added to the
        variance of a patch, None where patches are not normalized.
    n_features_in_ : int
        Number of columns of X.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Only when X has feature names that are all strings.

    See Also
    --------
    ConvexBNRegressor : The dense network.

    References
    ----------
    .. [1] T. Ergen, A. Sahiner, B. Ozturkler, J. Pauly, M. Mardani, M. Pilanci, "Demystifying
       Batch Normalization in ReLU Networks: Equivalent Convex Optimization Models and
       Implicit Regularization", ICLR 2022, arXiv:2103.01499.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn_convexbn import ConvexBNConvRegressor
    >>> X, y = load_digits(n_class=2, return_X_y=True)
    >>> model = ConvexBNConvRegressor(
    ...     image_shape=(8, 8), patch_size=4, stride=2, alpha=0.1, random_state=0
    ... ).fit(X, y)
    >>> model.dual_gap_ <= 0.01
    True
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **ConvexBNRegressor._parameter_constraints,
        **CONVOLUTION_CONSTRAINTS,
    }

    def __init__(
        self,
        image_shape: Sequence[int] | None = None,
        patch_size: int | Sequence[int] = 5,
        stride: int = 1,
        pooling: int = 2,
        normalize_patches: bool = False,
        *,
        alpha: float = 3e-3,
        n_components: int | float | None = None,
        shrinkage: float | str = 0.0,
        activation: str = "relu",
        solver: str | solvers.Solver = "auto",
        n_gates: int | str = 256,
        fit_intercept: bool = True,
        tol: float = 1e-2,
        max_iter: int = 200,
        device: str | None = None,
        warm_start: bool = False,
        random_state: int | np.random.RandomState | None = None,
        verbose: int | bool = 0,
    ) -> None:
        super().__init__(
            alpha,
            n_components=n_components,
            shrinkage=shrinkage,
            activation=activation,
            solver=solver,
            n_gates=n_gates,
            fit_intercept=fit_intercept,
            tol=tol,
            max_iter=max_iter,
            device=device,
            warm_start=warm_start,
            random_state=random_state,
            verbose=verbose,
        )
        self.image_shape = image_shape
        self.patch_size = patch_size
        self.stride = stride
        self.pooling = pooling
        self.normalize_patches = normalize_patches


class ConvexBNConvClassifier(ConvolutionMixin, ConvexBNClassifier):
    """Batch-normalized two-layer convolutional network for classification, trained in convex form.

    Every unit sees all patches of an image; batch normalization is over the patches of all images,
    and the activations are averaged over a grid of cells before the linear layer [1]_. Training is
    that of :class:`ConvexBNClassifier` on patches, with the same certificate. Read more in
    :doc:`images </images>`.

    Parameters
    ----------
    image_shape : tuple of int, default=None
        Height, width and, where there are several, channels of an image. A row of X is a flattened
        image in this order; X of shape (n_samples, height, width[, channels]) is accepted too.
        None takes the shape from a 4-D X, and treats a row of a 2-D X as one patch: a dense
        network.

    patch_size : int or tuple of two ints, default=5
        Height and width of a patch, in pixels.

    stride : int, default=1
        Pixels between neighbouring patches.

    pooling : int, default=2
        Activations are averaged over a grid of `pooling` x `pooling` cells; 1 is global average
        pooling. Where `pooling` does not divide the patches of an image, cells overlap.

    normalize_patches : bool, default=False
        Whether to subtract the mean of each patch and divide by its standard deviation (local
        contrast normalization). A hundredth of the mean variance of the training patches is
        added to the variance.

    alpha : float, default=3e-3
        Weight decay on BN scales, BN shifts and output weights, relative to a mean loss. Must
        be positive.

    n_components : int, float or None, default=None
        Number of leading singular directions of the patches that are kept, or, in (0, 1), the share
        of variance to keep. None keeps all. Keeping fewer is the explicit form of the bias of
        gradient descent towards large directions: tune it.

    shrinkage : float or "auto", default=0.0
        Damp small directions instead of cutting them: whiten with the covariance shrunk
        towards a multiple of the identity, 0 (batch normalization) to 1 (no whitening).
        "auto" is the Ledoit-Wolf estimate.

    activation : {"relu", "gated_relu"}, default="relu"
        "gated_relu" fixes the on/off pattern of each unit by `n_gates` random gates, which
        makes the program a group lasso (nuclear norms for several outputs); it is for images
        of one patch, several patches need "relu".

    solver : {"auto", "closed_form", "pursuit", "fista", "cvxpy"} or Solver, default="auto"
        "auto" takes a closed form where one is proven to hold, then pursuit for "relu" and
        FISTA for "gated_relu". Patches need pursuit. The parameters of an instance are reached
        as ``solver__x``.

    n_gates : int or "all", default=256
        Number of arrangements to sample where the program needs a fixed list ("gated_relu";
        "relu" with solver "fista" or "cvxpy"). "all" enumerates them, if they are few.

    fit_intercept : bool, default=True
        Whether to fit the (not penalised) output intercept.

    tol : float, default=1e-2
        The fit stops when the relative duality gap ``(primal - dual) / primal`` is at most
        `tol`. It means the same for every solver.

    max_iter : int, default=200
        Largest number of rounds of the solver.

    device : str or None, default=None
        Where solvers that use torch compute: None or "cpu", "cuda", "cuda:1", or "auto" for
        CUDA where there is one.

    warm_start : bool, default=False
        Whether to start from the previous fit's network.

    random_state : int, RandomState instance or None, default=None
        Seeds gates and searches. Pass an int for identical results across calls.

    verbose : int, default=0
        Print one line a round when positive.

    loss : {"log_loss", "squared_error"}, default="log_loss"
        "log_loss" is logistic for two classes and softmax cross-entropy for more.
        "squared_error" is taken to one-hot targets, for two classes to one target of -1 and 1.

    class_weight : dict, "balanced" or None, default=None
        Weights of the classes, multiplied with the sample weights.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Labels of the classes that have a sample of positive weight.
    coefs_ : list of ndarrays of shapes (n_inputs, n_neurons) and (n_neurons * n_cells, n_outputs)
        Weights with batch normalization folded in: of the values of a patch, and of the pooled
        activations, those of a unit together.
    intercepts_ : list of two ndarrays of shapes (n_neurons,) and (n_outputs,)
        Offsets of the hidden units and of the outputs.
    batch_norm_ : dict of ndarrays of shape (n_neurons,)
        "mean", "var", "scale" and "shift" of each hidden unit's batch normalization.
    gates_ : ndarray of shape (n_inputs + 1, n_neurons)
        Only with gated_relu: a unit is on where ``x @ gates_[:-1] + gates_[-1] >= 0``.
    n_neurons_ : int
        Number of hidden units.
    certificate_ : Certificate
        primal, dual, gap, infeasibility, kind ("exact" when rigorous, "estimated" when the
        maximum over arrangements came from a search) and program (the optimum it is about).
    objective_ : float
        Objective of the fitted network, ``certificate_.primal``.
    dual_gap_ : float
        Relative duality gap, ``certificate_.gap``.
    n_iter_ : int
        Rounds run.
    history_ : dict of ndarrays of shape (`n_iter_`,)
        "objective", "dual_gap", "n_neurons" and "time" (seconds) after each round.
    solver_ : Solver
        The solver used.
    n_components_ : int
        Number of directions kept.
    singular_values_ : ndarray of shape (rank,)
        All singular values of the centred patches (weighted), decreasing.
    explained_variance_ratio_ : ndarray of shape (rank,)
        Share of the variance along each direction.
    shrinkage_ : float
        The shrinkage used.
    weight_decay_ : float
        `alpha`.
    patches_ : dict
        Only with images: how they are cut and pooled. "image_shape", "patch_shape", "stride",
        "cells" (pooling is over a grid of cells x cells) and "contrast", what is added to the
        variance of a patch, None where patches are not normalized.
    n_features_in_ : int
        Number of columns of X.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Only when X has feature names that are all strings.

    See Also
    --------
    ConvexBNClassifier : The dense network.

    References
    ----------
    .. [1] T. Ergen, A. Sahiner, B. Ozturkler, J. Pauly, M. Mardani, M. Pilanci, "Demystifying
       Batch Normalization in ReLU Networks: Equivalent Convex Optimization Models and
       Implicit Regularization", ICLR 2022, arXiv:2103.01499.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn_convexbn import ConvexBNConvClassifier
    >>> X, y = load_digits(n_class=2, return_X_y=True)
    >>> model = ConvexBNConvClassifier(
    ...     image_shape=(8, 8), patch_size=4, stride=2, alpha=0.1, random_state=0
    ... ).fit(X, y)
    >>> model.dual_gap_ <= 0.01
    True
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **ConvexBNClassifier._parameter_constraints,
        **CONVOLUTION_CONSTRAINTS,
    }

    def __init__(
        self,
        image_shape: Sequence[int] | None = None,
        patch_size: int | Sequence[int] = 5,
        stride: int = 1,
        pooling: int = 2,
        normalize_patches: bool = False,
        *,
        alpha: float = 3e-3,
        n_components: int | float | None = None,
        shrinkage: float | str = 0.0,
        activation: str = "relu",
        solver: str | solvers.Solver = "auto",
        n_gates: int | str = 256,
        fit_intercept: bool = True,
        tol: float = 1e-2,
        max_iter: int = 200,
        device: str | None = None,
        warm_start: bool = False,
        random_state: int | np.random.RandomState | None = None,
        verbose: int | bool = 0,
        loss: str = "log_loss",
        class_weight: dict[Any, float] | str | None = None,
    ) -> None:
        super().__init__(
            alpha,
            n_components=n_components,
            shrinkage=shrinkage,
            activation=activation,
            solver=solver,
            n_gates=n_gates,
            fit_intercept=fit_intercept,
            tol=tol,
            max_iter=max_iter,
            device=device,
            warm_start=warm_start,
            random_state=random_state,
            verbose=verbose,
            loss=loss,
            class_weight=class_weight,
        )
        self.image_shape = image_shape
        self.patch_size = patch_size
        self.stride = stride
        self.pooling = pooling
        self.normalize_patches = normalize_patches

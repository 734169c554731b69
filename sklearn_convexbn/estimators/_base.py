"""What all estimators share: parameters, a fit's course and attributes, prediction."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any, ClassVar, Self

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from sklearn_convexbn import solvers
from sklearn_convexbn.data._decomposition import Decomposition
from sklearn_convexbn.data._encoding import TrainingData
from sklearn_convexbn.data._patches import (
    Patches,
    PatchGrid,
    flattened,
    images_as_rows,
    patch_grid,
)
from sklearn_convexbn.data._validation import named, validated_rows
from sklearn_convexbn.data._whitening import ClippedCoordinates
from sklearn_convexbn.fit._callbacks import FitHooks
from sklearn_convexbn.fit._network import ClippedNetwork, Network
from sklearn_convexbn.fit._progressive import train
from sklearn_convexbn.fit._training import (
    FIT_CONSTRAINTS,
    Prepared,
    Trained,
    TrainingSettings,
    check_for_shards,
    prepare,
    total_weight,
    train_path,
)
from sklearn_convexbn.losses._base import Loss
from sklearn_convexbn.solvers import Result
from sklearn_convexbn.support._arrays import Array
from sklearn_convexbn.support._compat import (
    DOCUMENTATION_PAGES,
    CallbackSupportMixin,
    check_parameters,
    documented_name,
)
from sklearn_convexbn.support._device import plain_torch
from sklearn_convexbn.support._sharding import Shards, current_shards


class BaseNetwork(CallbackSupportMixin, BaseEstimator, ABC):
    """The course of a fit, whatever the kind of network."""

    # Read by scikit-learn's HTML display, which shows texts of the docstring where it can link.
    _doc_link_module = "sklearn_convexbn"
    _doc_link_template = DOCUMENTATION_PAGES
    _doc_link_url_param_generator = documented_name

    _parameter_constraints: ClassVar[dict[str, list[Any]]]

    #: Fitted attributes that some networks have and others have not.
    _optional_attributes: ClassVar[tuple[str, ...]] = ()

    fit_intercept: bool
    tol: float
    max_iter: int
    random_state: int | np.random.RandomState | None
    classes_: np.ndarray
    loss_: Loss

    @abstractmethod
    def _flattened(self, X: Any, *, reset: bool) -> Any:
        """Return what users pass as rows; `reset` in a fit."""

    @abstractmethod
    def _network(self) -> Any:
        """Return the fitted network."""

    def _raw_predict(self, X: Any) -> Array:
        """Return the network's output (n, C), where X is."""
        check_is_fitted(self)
        return self._network().forward(validated_rows(self, self._flattened(X, reset=False)))

    @abstractmethod
    def _validated(self, X: Any, y: Any, sample_weight: Any) -> tuple[Any, np.ndarray, np.ndarray]:
        """Return the data as arrays and note their shape."""

    @abstractmethod
    def _encode(
        self, X: Any, y: np.ndarray, sample_weight: np.ndarray, shards: Shards
    ) -> TrainingData:
        """Return validated data as canonical rows with encoded targets."""

    @abstractmethod
    def _fit_settings(self, shards: Shards) -> Any:
        """Return the parameters of a fit."""

    @abstractmethod
    def _train(self, data: TrainingData, settings: Any, hooks: FitHooks) -> None:
        """Solve the problem on canonical rows and set the fitted attributes."""

    @abstractmethod
    def _path(
        self, data: TrainingData, settings: Any, alphas: np.ndarray, shared: Any
    ) -> Iterator[tuple[dict[str, Any], bool]]:
        """Yield the fitted attributes for each of descending alphas, and whether a fit converged.

        `shared` is what paths on the same rows share.
        """

    def _validated_together(
        self, X: Any, y: Any, sample_weight: Any, shards: Shards
    ) -> tuple[Any, np.ndarray, np.ndarray]:
        """Validate data, those on other processes with them."""
        return self._validated(X, y, sample_weight)

    def _training_data(
        self, X: Any, y: np.ndarray, sample_weight: np.ndarray, shards: Shards
    ) -> TrainingData:
        """Return validated data encoded, rows that are images cut into patches."""
        return self._encode(X, y, sample_weight, shards)

    def _check_parameters(self) -> None:
        """Refuse parameters that no data could be trained with."""
        check_parameters(self, self._parameter_constraints)

    def _max_subtasks(self) -> int | None:
        """Return how many parts of a fit callbacks see at most, None if only the data say."""
        return int(self.max_iter)

    def _fit(self, X: Any, y: Any, sample_weight: Any) -> Self:
        """Train the network; leave the estimator as it was if that fails."""
        shards = current_shards()
        with shards.raised_together():
            self._check_parameters()
            hooks = FitHooks.of_fit(self, X, y, sample_weight, max_subtasks=self._max_subtasks())
        with unchanged_on_failure(self), plain_torch():
            validated = self._validated_together(X, y, sample_weight, shards)
            with shards.in_step():
                data = self._training_data(*validated, shards)
                if len(data.classes):
                    self.classes_ = data.classes
                self._train(data, self._fit_settings(shards), hooks)
        return self

    def _set_fitted(self, attributes: dict[str, Any]) -> None:
        """Publish a fit."""
        for name in self._optional_attributes:
            if hasattr(self, name):
                delattr(self, name)
        for name, value in attributes.items():
            setattr(self, name, value)


class BaseConvexBN(BaseNetwork):
    """Parameters, fitted attributes and prediction of networks with batch normalization."""

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **FIT_CONSTRAINTS,
        "warm_start": ["boolean"],
    }
    _optional_attributes = ("gates_", "patches_", "whitened_range_", "whitening_")

    def __init__(
        self,
        alpha: float | str = "auto",
        *,
        n_components: int | float | None = None,
        shrinkage: float | str = "eps",
        clip: bool = False,
        activation: str = "relu",
        patches: Patches | None = None,
        solver: str | solvers.Solver = "auto",
        n_gates: int | str = 256,
        fit_intercept: bool = True,
        tol: float = 0.2,
        max_iter: int = 200,
        device: str | None = None,
        warm_start: bool = False,
        random_state: int | np.random.RandomState | None = None,
        verbose: int | bool = 0,
    ) -> None:
        self.alpha = alpha
        self.n_components = n_components
        self.shrinkage = shrinkage
        self.clip = clip
        self.activation = activation
        self.patches = patches
        self.solver = solver
        self.n_gates = n_gates
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter
        self.device = device
        self.warm_start = warm_start
        self.random_state = random_state
        self.verbose = verbose

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.input_tags.three_d_array = self.patches is not None
        return tags

    def _check_parameters(self) -> None:
        super()._check_parameters()
        if self.clip and self.patches is not None:
            raise ValueError(
                "clip=True needs patches=None: the coordinates that are clipped are those of rows, "
                f"not of patches. Got patches={self.patches!r}."
            )

    def _training_data(
        self, X: Any, y: np.ndarray, sample_weight: np.ndarray, shards: Shards
    ) -> TrainingData:
        data = super()._training_data(X, y, sample_weight, shards)
        if self._image_shape is None or self.patches is None:
            return data
        return data.cut(patch_grid(self.patches, self._image_shape))

    def _validated_together(
        self, X: Any, y: Any, sample_weight: Any, shards: Shards
    ) -> tuple[Any, np.ndarray, np.ndarray]:
        """Validate data; those on other processes must be valid and of the same kind."""
        with shards.raised_together():
            if shards.size > 1:
                check_for_shards(self.get_params(deep=False))
            X, y, weights = self._validated(X, y, sample_weight)
        if shards.size > 1:
            shards.check_same(self._facts(y))
        return X, y, weights

    def _facts(self, y: np.ndarray) -> dict[str, str]:
        """Return what fits to parts of the same data have in common."""
        facts = {"The class of the estimator": type(self).__name__}
        for name, value in self.get_params().items():
            if name not in ("device", "verbose"):
                facts[f"The parameter {name}"] = repr(value)
        return facts | {
            "The number of features": str(self.n_features_in_),
            "The names of features": str(list(getattr(self, "feature_names_in_", []))),
            "The shape of a target": str(y.shape[1:]),
            "The kind of target": self._kind_of_target(y),
            "What warm_start begins with": str(self.warm_start and hasattr(self, "coefs_")),
        }

    def _kind_of_target(self, y: np.ndarray) -> str:
        return "a number"

    def _fit_settings(self, shards: Shards) -> TrainingSettings:
        """Return the parameters of a fit, with random numbers that are the same everywhere."""
        values = self.get_params(deep=False)
        if shards.size > 1 and values["random_state"] is None:
            values["random_state"] = shards.agreed(int(np.random.randint(2**31)))  # noqa: NPY002
        return TrainingSettings.of(values)

    def _train(self, data: TrainingData, settings: TrainingSettings, hooks: FitHooks) -> None:
        prepared = prepare(data, settings)
        _warn_of_lost_columns(prepared, getattr(self, "feature_names_in_", None))
        start = None
        if self.warm_start and hasattr(self, "coefs_"):
            start = prepared.start(self._network())

        def attributes(result: Result) -> dict[str, Any]:
            return fitted_attributes(prepared.trained(result), data)

        hooks.attributes = attributes
        trained = train(prepared, settings, total_weight(data), start=start, monitor=hooks)
        self._set_fitted(fitted_attributes(trained, data))
        hooks.end(lambda: attributes(trained.result))

    def _path(
        self,
        data: TrainingData,
        settings: TrainingSettings,
        alphas: np.ndarray,
        shared: Decomposition | None,
    ) -> Iterator[tuple[dict[str, Any], bool]]:
        path = train_path(data, settings, alphas, shared)
        for trained in path:
            yield fitted_attributes(trained, data), trained.result.converged

    def _network(self) -> Network:
        network = Network(
            self.coefs_,
            self.intercepts_,
            self.batch_norm_,
            getattr(self, "gates_", None),
            self.n_components_,
            self._cut(),
        )
        if not hasattr(self, "whitened_range_") or self.n_components_ == 0:
            return network
        own = self.whitening_
        inputs = ClippedCoordinates(own["coefs"], own["intercepts"], self.whitened_range_)
        clipped = ClippedNetwork.of(network, inputs, own["hidden_coefs"], own.get("gates"))
        return replace(network, clipped=clipped)

    def _cut(self) -> PatchGrid | None:
        """Return how rows are cut into patches, None for dense networks."""
        return PatchGrid(**self.patches_) if hasattr(self, "patches_") else None

    def _flattened(self, X: Any, *, reset: bool) -> Any:
        """Return images as rows; `reset` in a fit. Rows of dense networks stay as they are."""
        if reset:
            X, grid = images_as_rows(self.patches, X)
            self._image_shape = None if grid is None else grid.image_shape
            return X
        grid = self._cut()
        return X if grid is None else flattened(X, grid.image_shape)

    def to_torch(self, fold: bool = False) -> Any:
        """Return the fitted network as a float64 torch module in eval mode.

        In train mode, on the whole training set without sample weights, the unfolded module
        computes its batch statistics afresh and returns the same outputs. Its running statistics
        are those of the fit, and a batch in train mode moves them by a tenth (torch's default).

        Parameters
        ----------
        fold : bool, default=False
            Whether to fold batch normalization into the first linear layer.

        Returns
        -------
        torch.nn.Sequential
            (Linear, BatchNorm1d, ReLU, Linear), or (Linear, ReLU, Linear) when folded. For a
            classifier the output is the argument of the softmax (or sigmoid). With `patches`
            (Conv2d, BatchNorm2d, ReLU, AvgPool2d, Flatten, Linear), without BatchNorm2d when
            folded, of images (n_samples, channels, height, width), as torch has them. With
            ``clip=True`` (Linear, Hardtanh) come first: the whitened coordinates, from zero to one
            in their range.

        Raises
        ------
        ValueError
            For ``activation="gated_relu"``, whose gates no Sequential of these layers has, or
            patches that are normalized, for the same reason.
        """
        check_is_fitted(self)
        return self._network().to_torch(fold=fold)


def _warn_of_lost_columns(prepared: Prepared, names: np.ndarray | None) -> None:
    """Warn of columns that the network cannot depend on, by name or number."""
    lost = prepared.whitening.lost_columns
    if not len(lost):
        return
    shown = [repr(str(names[j])) if names is not None else str(j) for j in lost[:10]]
    more = f" and {len(lost) - 10} more" if len(lost) > 10 else ""
    what = "values of patches" if prepared.patches is not None else "columns of X"
    warnings.warn(
        f"{len(lost)} {what} vary by no more than the rounding of their offset in float64 and are "
        f"left out: {', '.join(shown)}{more}. Subtract their means before X becomes float64.",
        UserWarning,
        stacklevel=2,
    )


def attributes_of(result: Result, data: TrainingData) -> dict[str, Any]:
    """Return the fitted attributes that all kinds of networks have, in the units of y."""
    certificate = result.certificate.scaled(data.unit)
    return {
        "n_neurons_": len(result.neurons),
        "certificate_": certificate,
        "objective_": certificate.primal,
        "dual_gap_": certificate.gap,
        "n_iter_": result.n_iter,
        "history_": dict(result.history, objective=result.history["objective"] * data.unit),
        "loss_": data.loss,
    }


def fitted_attributes(trained: Trained, data: TrainingData) -> dict[str, Any]:
    """Return the fitted attributes of an estimator, in the units of y."""
    network, whitening, alpha = trained.network, trained.whitening, trained.result.alpha
    attributes = {
        **attributes_of(trained.result, data),
        "coefs_": network.coefs,
        "intercepts_": network.intercepts,
        "batch_norm_": network.batch_norm,
        "solver_": trained.solver,
        "n_components_": whitening.n_components,
        "singular_values_": whitening.singular_values,
        "explained_variance_ratio_": whitening.explained_variance_ratio,
        "shrinkage_": whitening.shrinkage,
        "damping_": whitening.damping,
        "alpha_": alpha,
        "weight_decay_": alpha * data.unit / data.scale,
    }
    if network.gates is not None:
        attributes["gates_"] = network.gates
    if network.patches is not None:
        attributes["patches_"] = asdict(network.patches)
    if network.clipped is not None:
        attributes |= _of_clipping(network.clipped)
    return attributes


def _of_clipping(clipped: ClippedNetwork) -> dict[str, Any]:
    """Return the fitted attributes of a network that clips its inputs."""
    inputs, inner = clipped.coordinates, clipped.network
    own = {"coefs": inputs.coefs, "intercepts": inputs.intercepts, "hidden_coefs": inner.coefs[0]}
    if inner.gates is not None:
        own["gates"] = inner.gates
    return {"whitened_range_": inputs.limits, "whitening_": own}


@contextmanager
def unchanged_on_failure(estimator: BaseEstimator) -> Iterator[None]:
    """Leave an estimator as it was if the fit fails or is interrupted."""
    before = dict(vars(estimator))
    try:
        yield
    except BaseException:
        vars(estimator).clear()
        vars(estimator).update(before)
        raise


def check_own(estimator: Any, caller: str) -> None:
    """Raise a TypeError unless `estimator` is an instance of an estimator of this package."""
    if not isinstance(estimator, BaseConvexBN):
        raise TypeError(
            f"The estimator of {caller} must be a ConvexBNClassifier, a ConvexBNRegressor or a "
            f"cross-validated form of these. Got {named(estimator)}."
        )

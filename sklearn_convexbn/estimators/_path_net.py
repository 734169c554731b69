"""Estimators of path networks: sub-networks of two hidden layers, in parallel."""

from __future__ import annotations

from abc import ABC, abstractmethod
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
from scipy import sparse
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from sklearn_convexbn import solvers
from sklearn_convexbn.data._encoding import TrainingData
from sklearn_convexbn.data._validation import validated_rows
from sklearn_convexbn.estimators._base import unchanged_on_failure
from sklearn_convexbn.estimators._targets import LabelsMixin, NumbersMixin
from sklearn_convexbn.fit._callbacks import FitHooks
from sklearn_convexbn.fit._path_network import PathNetwork, forward_layers, layers_to_torch
from sklearn_convexbn.fit._path_training import (
    PathSettings,
    PreparedPaths,
    TrainedPaths,
    alphas_down_to,
    path_solver,
    prepare_paths,
    train_paths,
)
from sklearn_convexbn.fit._training import FIT_CONSTRAINTS
from sklearn_convexbn.losses import loss_constraint
from sklearn_convexbn.losses._base import Loss
from sklearn_convexbn.support._arrays import Array
from sklearn_convexbn.support._compat import (
    DOCUMENTATION_PAGES,
    CallbackSupportMixin,
    Interval,
    StrOptions,
    check_parameters,
    documented_name,
    with_callbacks,
)
from sklearn_convexbn.support._device import plain_torch, resolve_device
from sklearn_convexbn.support._sharding import refuse_shards

#: ``alpha="auto"`` is this over the root of the number of rows.
AUTO_ALPHA = 0.03


class BasePathNet(CallbackSupportMixin, BaseEstimator, ABC):
    """Parameters, fitted attributes and prediction that path networks share."""

    # Read by scikit-learn's HTML display, which shows texts of the docstring where it can link.
    _doc_link_module = "sklearn_convexbn"
    _doc_link_template = DOCUMENTATION_PAGES
    _doc_link_url_param_generator = documented_name

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **{
            name: FIT_CONSTRAINTS[name]
            for name in ("fit_intercept", "device", "random_state", "tol", "max_iter", "verbose")
        },
        "alpha": [Interval(Real, 0, None, closed="neither"), StrOptions({"auto"})],
        "inner_width": [Interval(Integral, 0, None, closed="left")],
        "norm": [StrOptions({"l1", "l2"})],
        "solver": FIT_CONSTRAINTS["solver"],
        "warm_start": ["boolean"],
    }

    def __init__(
        self,
        alpha: float | str = "auto",
        *,
        inner_width: int = 4,
        norm: str = "l1",
        solver: str | solvers.Solver = "auto",
        fit_intercept: bool = True,
        tol: float = 0.1,
        max_iter: int = 50,
        device: str | None = None,
        warm_start: bool = False,
        random_state: int | np.random.RandomState | None = None,
        verbose: int | bool = 0,
    ) -> None:
        self.alpha = alpha
        self.inner_width = inner_width
        self.norm = norm
        self.solver = solver
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter
        self.device = device
        self.warm_start = warm_start
        self.random_state = random_state
        self.verbose = verbose

    @abstractmethod
    def _validated(self, X: Any, y: Any, sample_weight: Any) -> tuple[Any, np.ndarray, np.ndarray]:
        """Return the data as arrays and note their shape."""

    @abstractmethod
    def _encode(self, X: Any, y: np.ndarray, sample_weight: np.ndarray) -> TrainingData:
        """Return validated data as canonical rows with encoded targets."""

    def _fit(self, X: Any, y: Any, sample_weight: Any) -> Self:
        """Train the network; leave the estimator as it was if that fails."""
        check_parameters(self, self._parameter_constraints)
        path_solver(self.solver)
        refuse_shards(type(self).__name__)
        hooks = FitHooks.of_fit(self, X, y, sample_weight, max_subtasks=self.max_iter)
        with unchanged_on_failure(self), plain_torch():
            data = self._encode(*self._validated(X, y, sample_weight))
            if len(data.classes):
                self.classes_ = data.classes
            self._train(data, self._settings(), hooks)
        return self

    def _settings(self) -> PathSettings:
        """Return the parameters of a fit."""
        return PathSettings(
            inner_width=int(self.inner_width),
            norm=self.norm,
            solver=self.solver,
            fit_intercept=self.fit_intercept,
            tol=self.tol,
            max_iter=self.max_iter,
            device=resolve_device(self.device),
            random_state=check_random_state(self.random_state),
            verbose=self.verbose,
        )

    def _alpha(self, data: TrainingData) -> float:
        """Return the alpha of a fit, as a number."""
        return automatic_alpha(data) if isinstance(self.alpha, str) else float(self.alpha)

    def _train(self, data: TrainingData, settings: PathSettings, hooks: FitHooks) -> None:
        """Solve the problem along a path of alphas and set the fitted attributes."""
        prepared, alpha = prepare_paths(data, settings), self._alpha(data)
        start, alphas = self._start(prepared), np.array([alpha])
        if start is None:
            alphas = alphas_down_to(alpha)

        def attributes(result: solvers.Result) -> dict[str, Any]:
            return path_attributes(prepared.at(alpha).trained(result), data)

        hooks.attributes = attributes
        *_, trained = train_paths(prepared, settings, alphas, start=start, monitor=hooks)
        self._set_fitted(path_attributes(trained, data))
        hooks.end(lambda: attributes(trained.result))

    def _start(self, prepared: PreparedPaths) -> Any:
        """Return the neurons of the network so far, if a warm start is asked for."""
        if not (self.warm_start and hasattr(self, "paths_")):
            return None
        network = PathNetwork(
            **self.paths_, intercept=self.intercepts_[-1], feature_weights=self.feature_weights_
        )
        return prepared.start(network)

    def _set_fitted(self, attributes: dict[str, Any]) -> None:
        """Publish a fit."""
        for name, value in attributes.items():
            setattr(self, name, value)

    def _flattened(self, X: Any, *, reset: bool) -> Any:
        """Return rows as they are, if they are not sparse; `reset` in a fit."""
        if sparse.issparse(X):
            raise TypeError(
                f"{type(self).__name__} does not take sparse X: its columns are standardised. "
                "Use X.toarray()."
            )
        return X

    def _raw_predict(self, X: Any) -> Array:
        """Return the network's output (n, C), where X is."""
        check_is_fitted(self)
        X = validated_rows(self, self._flattened(X, reset=False))
        return forward_layers(X, self.coefs_, self.intercepts_)

    def to_torch(self) -> Any:
        """Return the fitted network as a float64 torch module in eval mode.

        Returns
        -------
        torch.nn.Sequential
            (Linear, ReLU, Linear, ReLU, Linear), with `coefs_` and `intercepts_`. For a classifier
            the output is the argument of the softmax (or sigmoid).
        """
        check_is_fitted(self)
        return layers_to_torch(self.coefs_, self.intercepts_)


def automatic_alpha(data: TrainingData) -> float:
    """Return the alpha that "auto" stands for, by the number of rows that merged ones stand for."""
    rows = data.weights.sum() ** 2 / (data.weights**2).sum()
    return AUTO_ALPHA / float(np.sqrt(rows))


def path_attributes(trained: TrainedPaths, data: TrainingData) -> dict[str, Any]:
    """Return the fitted attributes of an estimator, in the units of y."""
    network, result = trained.network, trained.result
    certificate = result.certificate.scaled(data.unit)
    coefs, intercepts = network.layers()
    names = ("inner", "inner_offsets", "linear", "linear_offsets", "output", "signs")
    return {
        "coefs_": coefs,
        "intercepts_": intercepts,
        "paths_": {name: getattr(network, name) for name in names},
        "feature_weights_": network.feature_weights,
        "n_neurons_": len(result.neurons),
        "alpha_": trained.alpha,
        "certificate_": certificate,
        "objective_": certificate.primal,
        "dual_gap_": certificate.gap,
        "n_iter_": result.n_iter,
        "history_": dict(result.history, objective=result.history["objective"] * data.unit),
        "solver_": trained.solver,
        "loss_": data.loss,
    }


class PathNetRegressor(RegressorMixin, NumbersMixin, BasePathNet):
    """Parallel ReLU sub-networks of two hidden layers for regression, with a path norm.

    Trains ``f(x) = sum_j v_j relu(sum_i e_i relu(z . w_ij) + z . s_j) + b``, where z are the
    columns of x standardised, with a constant, and e_i = +-1, by minimising ::

        mean(loss(f(x_i), y_i)) + alpha * sum_j |v_j| (sum_i |w_ij|_1 + |s_j|_1)

    over any number of sub-networks j: a price on the paths from the inputs to the outputs, convex
    in the measure over sub-networks [1]_. Columns that do not help are not used. The fit follows a
    path of alphas, from 0.01 or ten times `alpha` down to `alpha`, each from the network before:
    that is quicker than `alpha` at once, and generalises better. There is no batch normalization,
    and no whitening. Read more in :doc:`depth </depth>`.

    Parameters
    ----------
    alpha : float or "auto", default="auto"
        Price of a path, relative to a mean loss on a target of unit variance. "auto" is
        ``0.03 / sqrt(n)`` for n training rows.

    inner_width : int, default=4
        Number of inner units h of each sub-network; the first half adds, the rest subtracts. 0
        gives a network of one hidden layer.

    norm : {"l1", "l2"}, default="l1"
        Norm of the paths: "l1" sets most inner weights to zero; "l2" is the Euclidean norm of all
        weights of a sub-network.

    solver : {"auto", "pursuit"} or Solver, default="auto"
        "auto" is the pursuit with searches and slides that suit path networks. The parameters of
        an instance are reached as ``solver__x``.

    fit_intercept : bool, default=True
        Whether to fit the (not penalised) output intercept.

    tol : float, default=0.1
        The fit stops when the estimated relative duality gap is at most `tol`.

    max_iter : int, default=50
        Largest number of rounds of the solver at the last alpha.

    device : str or None, default=None
        Where torch computes: None or "cpu", "cuda", "cuda:1", or "auto" for CUDA where there is
        one.

    warm_start : bool, default=False
        Whether to start from the previous fit's network, and without the path of larger alphas.

    random_state : int, RandomState instance or None, default=None
        Seeds searches. Pass an int for identical results across calls.

    verbose : int, default=0
        Print one line a round when positive.

    loss : {"squared_error", "huber", "poisson", "quantile"} or Loss, default="squared_error"
        As in :class:`ConvexBNRegressor`.

    Attributes
    ----------
    coefs_ : list of three ndarrays
        Weights of the network as three plain layers, of shapes (n_features, n_inner), (n_inner,
        n_neurons) and (n_neurons, n_outputs), as in
        :class:`~sklearn.neural_network.MLPRegressor` with two hidden layers. The first has
        the inner units that are not zero of all sub-networks, and two units for a linear part.
    intercepts_ : list of three ndarrays of shapes (n_inner,), (n_neurons,) and (n_outputs,)
        Offsets of these layers.
    paths_ : dict of ndarrays
        The sub-networks themselves: "inner" (inner_width, n_features, n_neurons),
        "inner_offsets" (inner_width, n_neurons), "signs" (inner_width,), "linear"
        (n_features, n_neurons), "linear_offsets" (n_neurons,) and "output"
        (n_neurons, n_outputs).
    feature_weights_ : ndarray of shape (n_features,)
        Mass of all paths from each column, which bounds how far the output can move when the
        column moves by its standard deviation. Zero for columns that are not used.
    n_neurons_ : int
        Number of sub-networks.
    alpha_ : float
        The alpha used.
    certificate_ : Certificate
        primal, dual, gap, infeasibility, kind, which is "estimated" as the most violated
        sub-network came from a search, and program.
    objective_ : float
        Objective of the fitted network, ``certificate_.primal``.
    dual_gap_ : float
        Estimated relative duality gap, ``certificate_.gap``.
    n_iter_ : int
        Rounds run at the last alpha.
    history_ : dict of ndarrays of shape (`n_iter_`,)
        "objective", "dual_gap", "n_neurons" and "time" (seconds) after each of these rounds.
    solver_ : Solver
        The solver used.
    loss_ : Loss
        The loss trained with.
    n_features_in_ : int
        Number of columns of X.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Only when X has feature names that are all strings.

    See Also
    --------
    PathNetClassifier : The same for classification.
    ConvexBNRegressor : One hidden layer, with batch normalization.

    References
    ----------
    .. [1] T. Ergen, M. Pilanci, "Path Regularization: A Convexity and Sparsity Inducing
       Regularization for Parallel ReLU Networks", NeurIPS 2023, arXiv:2110.09548.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn_convexbn import PathNetRegressor
    >>> X, y = load_diabetes(return_X_y=True)
    >>> model = PathNetRegressor(alpha=0.1, random_state=0).fit(X, y)
    >>> model.dual_gap_ <= 0.1
    True
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BasePathNet._parameter_constraints,
        "loss": loss_constraint("numbers"),
    }

    def __init__(
        self,
        alpha: float | str = "auto",
        *,
        inner_width: int = 4,
        norm: str = "l1",
        solver: str | solvers.Solver = "auto",
        fit_intercept: bool = True,
        tol: float = 0.1,
        max_iter: int = 50,
        device: str | None = None,
        warm_start: bool = False,
        random_state: int | np.random.RandomState | None = None,
        verbose: int | bool = 0,
        loss: str | Loss = "squared_error",
    ) -> None:
        super().__init__(
            alpha,
            inner_width=inner_width,
            norm=norm,
            solver=solver,
            fit_intercept=fit_intercept,
            tol=tol,
            max_iter=max_iter,
            device=device,
            warm_start=warm_start,
            random_state=random_state,
            verbose=verbose,
        )
        self.loss = loss

    @with_callbacks
    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train the network.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
        sample_weight : array-like of shape (n_samples,), default=None
            Non-negative. A weight of 2 equals the row twice, 0 equals no row.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            For invalid parameters or data. The estimator then stays as it was.
        TypeError
            For sparse X.
        """
        return self._fit(X, y, sample_weight)


class PathNetClassifier(ClassifierMixin, LabelsMixin, BasePathNet):
    """Parallel ReLU sub-networks of two hidden layers for classification, with a path norm.

    Trains ``f(x) = sum_j v_j relu(sum_i e_i relu(z . w_ij) + z . s_j) + b``, where z are the
    columns of x standardised, with a constant, and e_i = +-1, by minimising ::

        mean(loss(f(x_i), y_i)) + alpha * sum_j |v_j| (sum_i |w_ij|_1 + |s_j|_1)

    over any number of sub-networks j: a price on the paths from the inputs to the outputs, convex
    in the measure over sub-networks [1]_. Columns that do not help are not used. The fit follows a
    path of alphas, from 0.01 or ten times `alpha` down to `alpha`, each from the network before:
    that is quicker than `alpha` at once, and generalises better. There is no batch normalization,
    and no whitening. Read more in :doc:`depth </depth>`.

    Parameters
    ----------
    alpha : float or "auto", default="auto"
        Price of a path, relative to a mean loss. "auto" is ``0.03 / sqrt(n)`` for n training rows.

    inner_width : int, default=4
        Number of inner units h of each sub-network; the first half adds, the rest subtracts. 0
        gives a network of one hidden layer.

    norm : {"l1", "l2"}, default="l1"
        Norm of the paths: "l1" sets most inner weights to zero; "l2" is the Euclidean norm of all
        weights of a sub-network.

    solver : {"auto", "pursuit"} or Solver, default="auto"
        "auto" is the pursuit with searches and slides that suit path networks. The parameters of
        an instance are reached as ``solver__x``.

    fit_intercept : bool, default=True
        Whether to fit the (not penalised) output intercept.

    tol : float, default=0.1
        The fit stops when the estimated relative duality gap is at most `tol`.

    max_iter : int, default=50
        Largest number of rounds of the solver at the last alpha.

    device : str or None, default=None
        Where torch computes: None or "cpu", "cuda", "cuda:1", or "auto" for CUDA where there is
        one.

    warm_start : bool, default=False
        Whether to start from the previous fit's network, and without the path of larger alphas.

    random_state : int, RandomState instance or None, default=None
        Seeds searches. Pass an int for identical results across calls.

    verbose : int, default=0
        Print one line a round when positive.

    loss : {"log_loss", "squared_error"} or Loss, default="log_loss"
        As in :class:`ConvexBNClassifier`.

    class_weight : dict, "balanced" or None, default=None
        Weights of the classes, multiplied with the sample weights.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Labels of the classes that have a sample of positive weight.
    coefs_ : list of three ndarrays
        Weights of the network as three plain layers, of shapes (n_features, n_inner), (n_inner,
        n_neurons) and (n_neurons, n_outputs), as in
        :class:`~sklearn.neural_network.MLPClassifier` with two hidden layers. The first has
        the inner units that are not zero of all sub-networks, and two units for a linear part.
    intercepts_ : list of three ndarrays of shapes (n_inner,), (n_neurons,) and (n_outputs,)
        Offsets of these layers.
    paths_ : dict of ndarrays
        The sub-networks themselves: "inner" (inner_width, n_features, n_neurons),
        "inner_offsets" (inner_width, n_neurons), "signs" (inner_width,), "linear"
        (n_features, n_neurons), "linear_offsets" (n_neurons,) and "output"
        (n_neurons, n_outputs).
    feature_weights_ : ndarray of shape (n_features,)
        Mass of all paths from each column, which bounds how far the output can move when the
        column moves by its standard deviation. Zero for columns that are not used.
    n_neurons_ : int
        Number of sub-networks.
    alpha_ : float
        The alpha used.
    certificate_ : Certificate
        primal, dual, gap, infeasibility, kind, which is "estimated" as the most violated
        sub-network came from a search, and program.
    objective_ : float
        Objective of the fitted network, ``certificate_.primal``.
    dual_gap_ : float
        Estimated relative duality gap, ``certificate_.gap``.
    n_iter_ : int
        Rounds run at the last alpha.
    history_ : dict of ndarrays of shape (`n_iter_`,)
        "objective", "dual_gap", "n_neurons" and "time" (seconds) after each of these rounds.
    solver_ : Solver
        The solver used.
    loss_ : Loss
        The loss trained with.
    n_features_in_ : int
        Number of columns of X.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Only when X has feature names that are all strings.

    See Also
    --------
    PathNetRegressor : The same for regression.
    ConvexBNClassifier : One hidden layer, with batch normalization.

    References
    ----------
    .. [1] T. Ergen, M. Pilanci, "Path Regularization: A Convexity and Sparsity Inducing
       Regularization for Parallel ReLU Networks", NeurIPS 2023, arXiv:2110.09548.

    Examples
    --------
    >>> from sklearn.datasets import load_breast_cancer
    >>> from sklearn_convexbn import PathNetClassifier
    >>> X, y = load_breast_cancer(return_X_y=True)
    >>> model = PathNetClassifier(alpha=0.03, random_state=0).fit(X, y)
    >>> model.dual_gap_ <= 0.1
    True
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BasePathNet._parameter_constraints,
        "loss": loss_constraint("labels"),
        "class_weight": [dict, StrOptions({"balanced"}), None],
    }

    def __init__(
        self,
        alpha: float | str = "auto",
        *,
        inner_width: int = 4,
        norm: str = "l1",
        solver: str | solvers.Solver = "auto",
        fit_intercept: bool = True,
        tol: float = 0.1,
        max_iter: int = 50,
        device: str | None = None,
        warm_start: bool = False,
        random_state: int | np.random.RandomState | None = None,
        verbose: int | bool = 0,
        loss: str | Loss = "log_loss",
        class_weight: dict[Any, float] | str | None = None,
    ) -> None:
        super().__init__(
            alpha,
            inner_width=inner_width,
            norm=norm,
            solver=solver,
            fit_intercept=fit_intercept,
            tol=tol,
            max_iter=max_iter,
            device=device,
            warm_start=warm_start,
            random_state=random_state,
            verbose=verbose,
        )
        self.loss = loss
        self.class_weight = class_weight

    @with_callbacks
    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train the network.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        y : array-like of shape (n_samples,)
            Class labels.
        sample_weight : array-like of shape (n_samples,), default=None
            Non-negative. A weight of 2 equals the row twice, 0 equals no row.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            For invalid parameters or data. The estimator then stays as it was.
        TypeError
            For sparse X.
        """
        return self._fit(X, y, sample_weight)

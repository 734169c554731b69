"""Estimators of path networks: sub-networks of two hidden layers, in parallel."""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Integral
from typing import Any, ClassVar, Self

import numpy as np
from scipy import sparse
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.utils.validation import check_is_fitted

from sklearn_convexbn import solvers
from sklearn_convexbn.data._encoding import TrainingData
from sklearn_convexbn.estimators._base import BaseNetwork, attributes_of
from sklearn_convexbn.estimators._targets import LabelsMixin, NumbersMixin
from sklearn_convexbn.fit._callbacks import FitHooks
from sklearn_convexbn.fit._path_network import PathNetwork
from sklearn_convexbn.fit._path_training import (
    PathSettings,
    PreparedPaths,
    TrainedPaths,
    alphas_down_to,
    automatic_alphas,
    path_solver,
    prepare_paths,
    train_paths,
    train_until_noise,
)
from sklearn_convexbn.fit._training import FIT_CONSTRAINTS
from sklearn_convexbn.losses._base import Loss
from sklearn_convexbn.support._compat import Interval, StrOptions, with_callbacks
from sklearn_convexbn.support._sharding import Shards, refuse_shards


class BasePathNet(BaseNetwork):
    """Parameters, fitted attributes and prediction that path networks share."""

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **{name: FIT_CONSTRAINTS[name] for name in ("alpha", "fit_intercept", "tol", "max_iter")},
        **{name: FIT_CONSTRAINTS[name] for name in ("solver", "device", "random_state", "verbose")},
        "inner_width": [Interval(Integral, 0, None, closed="left")],
        "norm": [StrOptions({"l1", "l2"})],
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
        tol: float = 0.2,
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

    def _check_parameters(self) -> None:
        super()._check_parameters()
        path_solver(self.solver)
        refuse_shards(type(self).__name__)

    def _fit_settings(self, shards: Shards) -> PathSettings:
        return PathSettings.of(self.get_params(deep=False))

    def _max_subtasks(self) -> int | None:
        return None

    def _alphas(self, data: TrainingData) -> np.ndarray:
        """Return the alphas of a path, descending, that a fit without a start follows."""
        return automatic_alphas(data) if self._is_automatic else alphas_down_to(float(self.alpha))

    @property
    def _is_automatic(self) -> bool:
        """Whether a fit chooses alpha on its path."""
        return isinstance(self.alpha, str)

    def _train(self, data: TrainingData, settings: PathSettings, hooks: FitHooks) -> None:
        prepared, alphas = prepare_paths(data, settings), self._alphas(data)
        start = self._start(prepared)

        def watch(here: PreparedPaths, rounds: int) -> FitHooks:
            part = hooks.subtask("alpha", max_subtasks=rounds)
            part.attributes = lambda result: path_attributes(here.trained(result), data)
            return part

        if self._is_automatic:
            if start is not None and (alphas <= self.alpha_).any():
                alphas = alphas[alphas <= self.alpha_]
            trained = train_until_noise(prepared, settings, alphas, start=start, watch=watch)
        else:
            alphas = alphas if start is None else alphas[-1:]
            *_, trained = train_paths(prepared, settings, alphas, start=start, watch=watch)
        attributes = path_attributes(trained, data)
        self._set_fitted(attributes)
        hooks.end(lambda: attributes)

    def _path(
        self, data: TrainingData, settings: PathSettings, alphas: np.ndarray, shared: None
    ) -> Iterator[tuple[dict[str, Any], bool]]:
        for trained in train_paths(prepare_paths(data, settings), settings, alphas):
            yield path_attributes(trained, data), trained.result.converged

    def _start(self, prepared: PreparedPaths) -> Any:
        """Return the neurons of the network so far, if a warm start is asked for."""
        if not (self.warm_start and hasattr(self, "paths_")):
            return None
        return prepared.start(self._network())

    def _network(self) -> PathNetwork:
        return PathNetwork(
            **self.paths_, intercept=self.intercepts_[-1], feature_weights=self.feature_weights_
        )

    def _flattened(self, X: Any, *, reset: bool) -> Any:
        if sparse.issparse(X):
            raise TypeError(
                f"{type(self).__name__} does not take sparse X: its columns are standardised. "
                "Use X.toarray()."
            )
        return X

    def to_torch(self) -> Any:
        """Return the fitted network as a float64 torch module in eval mode.

        Returns
        -------
        torch.nn.Sequential
            (Linear, ReLU, Linear, ReLU, Linear), with `coefs_` and `intercepts_`. For a classifier
            the output is the argument of the softmax (or sigmoid).
        """
        check_is_fitted(self)
        return self._network().to_torch()


def path_attributes(trained: TrainedPaths, data: TrainingData) -> dict[str, Any]:
    """Return the fitted attributes of an estimator, in the units of y."""
    network = trained.network
    coefs, intercepts = network.layers()
    names = ("inner", "inner_offsets", "linear", "linear_offsets", "output", "signs")
    return {
        **attributes_of(trained.result, data),
        "coefs_": coefs,
        "intercepts_": intercepts,
        "paths_": {name: getattr(network, name) for name in names},
        "feature_weights_": network.feature_weights,
        "alpha_": trained.alpha,
        "solver_": trained.solver,
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
        Price of a path, relative to a mean loss on a target of unit variance. "auto" takes the
        alpha of the path, down to ``0.015 / sqrt(n)`` for n training rows, after which the error
        on a fifth of the rows rises, that the way down does without; with fewer than 750 rows an
        estimate of it from the training loss and the number of sub-networks.

    inner_width : int, default=4
        Number of inner units h of each sub-network; the first half adds, the rest subtracts. 0
        gives a network of one hidden layer.

    norm : {"l1", "l2"}, default="l1"
        Norm of the paths: "l1" sets most inner weights to zero; "l2" is the Euclidean norm of all
        weights of a sub-network.

    solver : {"auto", "pursuit"} or Solver, default="auto"
        "auto" is the pursuit with 60 starts a round. The parameters of an instance are reached as
        ``solver__x``.

    fit_intercept : bool, default=True
        Whether to fit the (not penalised) output intercept.

    tol : float, default=0.2
        The fit stops when the estimated relative duality gap is at most `tol`.

    max_iter : int, default=50
        Largest number of rounds of the solver at the last alpha.

    device : str or None, default=None
        Where torch computes: None or "cpu", "cuda", "cuda:1", or "auto" for CUDA where there is
        one.

    warm_start : bool, default=False
        Whether to start from the previous fit's network, and without the path of larger alphas;
        "auto" does not go back to an alpha above `alpha_`.

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
    >>> model.dual_gap_ <= 0.2
    True
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BasePathNet._parameter_constraints,
        **NumbersMixin._parameter_constraints,
    }

    def __init__(
        self,
        alpha: float | str = "auto",
        *,
        inner_width: int = 4,
        norm: str = "l1",
        solver: str | solvers.Solver = "auto",
        fit_intercept: bool = True,
        tol: float = 0.2,
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
        Price of a path, relative to a mean loss. "auto" takes the alpha of the path, down to
        ``0.015 / sqrt(n)`` for n training rows, after which the loss on a fifth of the rows rises,
        that the way down does without; with fewer than 750 rows an estimate of it from the
        training loss and the number of sub-networks.

    inner_width : int, default=4
        Number of inner units h of each sub-network; the first half adds, the rest subtracts. 0
        gives a network of one hidden layer.

    norm : {"l1", "l2"}, default="l1"
        Norm of the paths: "l1" sets most inner weights to zero; "l2" is the Euclidean norm of all
        weights of a sub-network.

    solver : {"auto", "pursuit"} or Solver, default="auto"
        "auto" is the pursuit with 60 starts a round. The parameters of an instance are reached as
        ``solver__x``.

    fit_intercept : bool, default=True
        Whether to fit the (not penalised) output intercept.

    tol : float, default=0.2
        The fit stops when the estimated relative duality gap is at most `tol`.

    max_iter : int, default=50
        Largest number of rounds of the solver at the last alpha.

    device : str or None, default=None
        Where torch computes: None or "cpu", "cuda", "cuda:1", or "auto" for CUDA where there is
        one.

    warm_start : bool, default=False
        Whether to start from the previous fit's network, and without the path of larger alphas;
        "auto" does not go back to an alpha above `alpha_`.

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
    >>> model.dual_gap_ <= 0.2
    True
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BasePathNet._parameter_constraints,
        **LabelsMixin._parameter_constraints,
    }

    def __init__(
        self,
        alpha: float | str = "auto",
        *,
        inner_width: int = 4,
        norm: str = "l1",
        solver: str | solvers.Solver = "auto",
        fit_intercept: bool = True,
        tol: float = 0.2,
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

"""Cross-validated estimators: alpha and n_components chosen along warm-started paths."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from copy import copy
from dataclasses import replace
from itertools import product
from numbers import Integral
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from sklearn.base import is_classifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import check_scoring, get_scorer_names, make_scorer, mean_squared_error
from sklearn.model_selection import check_cv
from sklearn.utils import check_random_state
from sklearn.utils.metadata_routing import MetadataRouter, MethodMapping
from sklearn.utils.parallel import Parallel, delayed

from sklearn_convexbn import solvers
from sklearn_convexbn._base_estimator import BaseConvexBN, fitted_attributes, unchanged_on_failure
from sklearn_convexbn._callbacks import FitHooks
from sklearn_convexbn._compat import (
    StrOptions,
    check_arguments,
    check_parameters,
    parameters_of_rows,
    routed_parameters,
    with_callbacks,
)
from sklearn_convexbn._encoding import TrainingData
from sklearn_convexbn._estimators import ConvexBNClassifier, ConvexBNRegressor
from sklearn_convexbn._path import ALPHA_CONSTRAINTS, alpha_grid, check_alphas, largest_alpha
from sklearn_convexbn._training import FIT_CONSTRAINTS, TrainingSettings, train_path

#: Largest seed drawn for the searches of all folds.
LARGEST_SEED = np.iinfo(np.int32).max


class _Fold(NamedTuple):
    """Training and test rows of one fold, and the total weight of the latter."""

    train: np.ndarray
    test: np.ndarray
    weight: float


class _FoldPath(NamedTuple):
    """Scores, neurons and objectives, each (n_alphas,), of the networks of one fold's path."""

    scores: list[float]
    n_neurons: list[int]
    objectives: list[float]
    n_unconverged: int


class _ConvexBNCV(BaseConvexBN):
    """The choice of alpha and n_components that both cross-validated estimators share."""

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **{name: FIT_CONSTRAINTS[name] for name in FIT_CONSTRAINTS if name != "alpha"},
        **ALPHA_CONSTRAINTS,
        "n_components": [*FIT_CONSTRAINTS["n_components"], "array-like"],
        "selection": [StrOptions({"best", "one_standard_error"})],
        "cv": ["cv_object"],
        "n_jobs": [Integral, None],
    }

    #: The estimator without cross-validation.
    _plain: ClassVar[type[ConvexBNRegressor] | type[ConvexBNClassifier]]
    #: Name of the attribute that holds the scores, and whether the larger are the better.
    _scores_name: ClassVar[str]
    _sign: ClassVar[float]

    def _scorer(self, model: Any) -> Callable[..., float]:
        """Return the function ``score(model, X, y, **params)`` of a fold."""
        raise NotImplementedError

    def _fit(self, X: Any, y: Any, sample_weight: Any, params: dict[str, Any]) -> Self:
        """Choose alpha and n_components by cross-validation and train on all rows."""
        check_parameters(self, self._parameter_constraints)
        grid = self._components()
        alphas = None if isinstance(self.alphas, Integral) else check_alphas(self.alphas)
        routed = routed_parameters(self, params, sample_weight)
        hooks = FitHooks.of_fit(self, X, y, sample_weight, max_subtasks=2)
        with unchanged_on_failure(self):
            X, y, weights = self._validated(X, y, sample_weight)
            data = self._encode(X, y, weights)
            if is_classifier(self):
                self.classes_ = data.classes
            splits = check_cv(self.cv, y, classifier=is_classifier(self))
            folds = _folds(splits.split(X, y, **routed.splitter.split), y, weights, data.classes)
            settings = self._settings(grid)
            if alphas is None:
                largest = max(largest_alpha(data, each.fresh()) for each in settings)
                alphas = alpha_grid(largest, int(self.alphas), self.eps)
            search = hooks.subtask("cross-validation")
            model = self._model()
            score = self._scorer(model)
            paths = Parallel(n_jobs=self.n_jobs)(
                delayed(_fold_path)(
                    model, X, y, weights, fold, each, alphas, score, routed.scorer.score
                )
                for each, fold in product(settings, folds)
            )
            search.end()
            self._choose(paths, grid, alphas, folds)
            chosen = replace(settings[self.best_index_[0]].fresh(), alpha=self.alpha_)
            refit = hooks.subtask("refit", max_subtasks=self.max_iter)
            self._train(data, replace(chosen, provisional=False), refit)
            hooks.end()
        return self

    def _components(self) -> list[int | float | None]:
        """Return the settings of n_components to try."""
        given: Any = self.n_components
        grid = [given] if given is None or np.ndim(given) == 0 else list(given)
        if not grid:
            raise ValueError("n_components is an empty list: there is nothing to choose from.")
        for entry in grid:
            allowed = {"n_components": FIT_CONSTRAINTS["n_components"]}
            check_arguments(type(self).__name__, {"n_components": entry}, allowed)
        return grid

    def _settings(self, grid: list[int | float | None]) -> list[TrainingSettings]:
        """Return the settings of provisional fits for each of `grid`, all of one seed."""
        seed = self.random_state
        if not isinstance(seed, Integral):
            seed = check_random_state(seed).randint(LARGEST_SEED)
        values = {**self.get_params(deep=False), "alpha": 1.0, "random_state": seed}
        return [
            TrainingSettings.of({**values, "n_components": k, "provisional": True}) for k in grid
        ]

    def _model(self) -> Any:
        """Return a plain estimator of the same parameters, with what it needs to predict."""
        own = self.get_params(deep=False)
        model = self._plain()
        model.set_params(
            **{name: own[name] for name in model.get_params(deep=False) if name in own}
        )
        for name in ("classes_", "n_features_in_", "_single_output"):
            if hasattr(self, name):
                setattr(model, name, getattr(self, name))
        return model

    def _choose(
        self,
        paths: list[_FoldPath],
        grid: list[int | float | None],
        alphas: np.ndarray,
        folds: list[_Fold],
    ) -> None:
        """Publish the paths' arrays (n_grid, n_alphas, n_folds) and what they say is best."""
        shape = (len(grid), len(folds), len(alphas))

        def table(column: str) -> np.ndarray:
            values = [getattr(path, column) for path in paths]
            return np.array(values).reshape(shape).transpose(0, 2, 1)

        scores = table("scores")
        setattr(self, self._scores_name, scores)
        self.n_neurons_path_, self.objective_path_ = table("n_neurons"), table("objectives")
        self.alphas_, self.n_components_grid_ = alphas, grid
        weights = [fold.weight for fold in folds]
        means = self._sign * np.average(scores, axis=2, weights=weights)
        row, column = np.unravel_index(means.argmax(), means.shape)
        if self.selection == "one_standard_error" and len(folds) > 1:
            error = scores[row, column].std(ddof=1) / np.sqrt(len(folds))
            column = np.flatnonzero(means[row] >= means[row, column] - error)[0]
        self.best_index_ = int(row), int(column)
        self.alpha_ = float(alphas[column])
        self._warn(sum(path.n_unconverged for path in paths), len(paths) * len(alphas))

    def _warn(self, n_unconverged: int, n_fits: int) -> None:
        """Warn once of fits in the folds that did not reach the tolerance."""
        if n_unconverged:
            warnings.warn(
                f"{n_unconverged} of {n_fits} fits of the cross-validation stopped after "
                f"max_iter={self.max_iter} rounds or stalled with a relative duality gap above "
                f"tol={self.tol:g}. Their scores are those of usable networks. Increase max_iter, "
                "tol or eps, or give larger alphas.",
                ConvergenceWarning,
                stacklevel=4,
            )

    def get_metadata_routing(self) -> MetadataRouter:
        """Return how metadata reach the splitter (and the scorer).

        Returns
        -------
        routing : MetadataRouter
        """
        return (
            MetadataRouter(owner=self)
            .add_self_request(self)
            .add(
                splitter=check_cv(self.cv),
                method_mapping=MethodMapping().add(caller="fit", callee="split"),
            )
            .add(
                scorer=self._scorer(self._plain()),
                method_mapping=MethodMapping().add(caller="fit", callee="score"),
            )
        )


def _folds(splits: Any, y: np.ndarray, weights: np.ndarray, classes: np.ndarray) -> list[_Fold]:
    """Fix the folds, and refuse those that cannot be trained on or scored.

    Raises
    ------
    ValueError
        For a fold whose rows weigh nothing, or whose training rows lack a class.
    """
    folds = []
    for number, (train, test) in enumerate(splits):
        fold = _Fold(train, test, float(weights[test].sum()))
        if not (weights[train].any() and fold.weight > 0.0):
            raise ValueError(
                f"Fold {number} of cv has no training or no test rows of positive weight."
            )
        present = np.unique(y[train][weights[train] > 0])
        missing = np.setdiff1d(classes, present)
        if len(missing):
            raise ValueError(
                f"The training rows of fold {number} of cv lack the classes {missing.tolist()}. "
                "Use fewer or stratified folds, or leave out classes of too few samples."
            )
        folds.append(fold)
    if not folds:
        raise ValueError("cv gives no folds.")
    return folds


def _fold_path(
    model: Any,
    X: np.ndarray,
    y: np.ndarray,
    weights: np.ndarray,
    fold: _Fold,
    settings: TrainingSettings,
    alphas: np.ndarray,
    score: Callable[..., float],
    params: dict[str, Any],
) -> _FoldPath:
    """Train along the path on the fold's training rows and score on its test rows."""
    train, test = fold.train, fold.test
    data: TrainingData = model._encode(X[train], y[train], weights[train])
    params = parameters_of_rows(X, params, test)
    scores, n_neurons, objectives, n_unconverged = [], [], [], 0
    for alpha, trained in zip(alphas, train_path(data, settings.fresh(), alphas), strict=True):
        model = copy(model)
        attributes = fitted_attributes(trained, alpha, data.scale)
        model._set_fitted(attributes)
        scores.append(float(score(model, X[test], y[test], **params)))
        n_neurons.append(attributes["n_neurons_"])
        objectives.append(attributes["objective_"])
        n_unconverged += not trained.result.converged
    return _FoldPath(scores, n_neurons, objectives, n_unconverged)


class ConvexBNRegressorCV(_ConvexBNCV, ConvexBNRegressor):
    """Regression with alpha and n_components chosen by cross-validation.

    In each fold, and for each of `n_components`, networks are trained along descending alphas,
    each from the one before. A network with the best alpha and `n_components` is then trained on
    all rows. Equal to :class:`~sklearn.model_selection.GridSearchCV` over the same grid, but for
    where within `tol` each fit ends. Mean scores weigh the folds by their test rows' weights.

    Parameters
    ----------
    alphas : int or array-like of shape (n_alphas,), default=30
        Number of alphas, geometrically spaced from the largest useful one
        (:func:`alpha_max`, over all of `n_components`) down, or the alphas themselves: positive,
        strictly descending. All folds and all of `n_components` share them.

    eps : float, default=1e-3
        Smallest alpha divided by the largest, where `alphas` is a number.

    n_components : int, float, None or list of these, default=None
        Settings to choose from: numbers of leading singular directions of X, shares of its
        variance in (0, 1), or None for all.

    shrinkage : float or "auto", default=0.0
        As in :class:`ConvexBNRegressor`, like the parameters below that say no more.

    activation : {"relu", "gated_relu"}, default="relu"
        Activation of the hidden units.

    solver : {"auto", "closed_form", "pursuit", "fista", "cvxpy"} or Solver, default="auto"
        Solver of every fit.

    n_gates : int or "all", default=256
        Number of arrangements where the program needs a list.

    fit_intercept : bool, default=True
        Whether to fit the output intercept.

    tol : float, default=1e-2
        Relative duality gap at which every fit stops. In the folds it is estimated from a smaller
        search than in the final fit, whose certificate is as that of :class:`ConvexBNRegressor`.

    max_iter : int, default=200
        Largest number of rounds of each fit.

    cv : int, cross-validation generator or iterable, default=None
        Folds, fixed once for all fits: as in :func:`~sklearn.model_selection.check_cv`, None for
        five.

    n_jobs : int or None, default=None
        Paths (one for each fold and setting of `n_components`) trained at a time, by joblib.

    selection : {"best", "one_standard_error"}, default="best"
        "one_standard_error" takes, at the best `n_components`, the largest alpha whose mean score
        is within one standard error (over the folds) of the best.

    device : str or None, default=None
        Where solvers that use torch compute.

    random_state : int, RandomState instance or None, default=None
        Seeds gates and searches, the same for every fit. Folds are seeded by `cv`.

    verbose : int, default=0
        Print one line a round of every fit when positive.

    Attributes
    ----------
    alpha_ : float
        The alpha chosen.
    alphas_ : ndarray of shape (n_alphas,)
        The alphas tried, descending.
    n_components_grid_ : list
        The settings of `n_components` tried.
    n_components_ : int
        Number of directions the final network keeps.
    best_index_ : tuple of two int
        Positions in `n_components_grid_` and `alphas_` of what was chosen. Of equal scores the
        first counts: the largest alpha.
    mse_path_ : ndarray of shape (n_grid, n_alphas, n_folds)
        Mean squared errors on the test rows (weighted), in squared units of y.
    n_neurons_path_ : ndarray of shape (n_grid, n_alphas, n_folds)
        Numbers of hidden units.
    objective_path_ : ndarray of shape (n_grid, n_alphas, n_folds)
        Objectives on the training rows, in squared units of y.
    coefs_, intercepts_, batch_norm_, certificate_, and the others of ConvexBNRegressor
        Of the final network.

    See Also
    --------
    ConvexBNRegressor : The same for one alpha and `n_components`.
    convexbn_path : The path alone.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn_convexbn import ConvexBNRegressorCV
    >>> X, y = load_diabetes(return_X_y=True)
    >>> model = ConvexBNRegressorCV(5, eps=0.1, n_components=[4, None], cv=3, random_state=0)
    >>> model.fit(X, y).mse_path_.shape
    (2, 5, 3)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **_ConvexBNCV._parameter_constraints,
    }
    _plain = ConvexBNRegressor
    _scores_name = "mse_path_"
    _sign = -1.0

    def __init__(
        self,
        alphas: int | Any = 30,
        *,
        eps: float = 1e-3,
        n_components: int | float | list[Any] | None = None,
        shrinkage: float | str = 0.0,
        activation: str = "relu",
        solver: str | solvers.Solver = "auto",
        n_gates: int | str = 256,
        fit_intercept: bool = True,
        tol: float = 1e-2,
        max_iter: int = 200,
        cv: Any = None,
        n_jobs: int | None = None,
        selection: str = "best",
        device: str | None = None,
        random_state: int | np.random.RandomState | None = None,
        verbose: int | bool = 0,
    ) -> None:
        self.alphas = alphas
        self.eps = eps
        self.n_components = n_components  # type: ignore[assignment]
        self.shrinkage = shrinkage
        self.activation = activation
        self.solver = solver
        self.n_gates = n_gates
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter
        self.cv = cv
        self.n_jobs = n_jobs
        self.selection = selection
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    @with_callbacks
    def fit(self, X: Any, y: Any, sample_weight: Any = None, **params: Any) -> Self:
        """Choose alpha and n_components and train the network.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
        sample_weight : array-like of shape (n_samples,), default=None
            Non-negative; weigh rows in the fits and in the scores.
        **params : dict
            Passed to the splitter where metadata routing is enabled, such as `groups`.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            For invalid parameters or data, an empty grid, alphas that are not positive and
            descending, or folds that cannot be trained on. The
            estimator then stays as it was.
        """
        return self._fit(X, y, sample_weight, params)

    def _scorer(self, model: Any) -> Callable[..., float]:
        return make_scorer(mean_squared_error)


class ConvexBNClassifierCV(_ConvexBNCV, ConvexBNClassifier):
    """Classification with alpha and n_components chosen by cross-validation.

    In each fold, and for each of `n_components`, networks are trained along descending alphas,
    each from the one before. A network with the best alpha and `n_components` is then trained on
    all rows. Equal to :class:`~sklearn.model_selection.GridSearchCV` over the same grid, but for
    where within `tol` each fit ends. Mean scores weigh the folds by their test rows' weights.

    Parameters
    ----------
    alphas : int or array-like of shape (n_alphas,), default=30
        Number of alphas, geometrically spaced from the largest useful one
        (:func:`alpha_max`, over all of `n_components`) down, or the alphas themselves: positive,
        strictly descending. All folds and all of `n_components` share them.

    eps : float, default=1e-3
        Smallest alpha divided by the largest, where `alphas` is a number.

    n_components : int, float, None or list of these, default=None
        Settings to choose from: numbers of leading singular directions of X, shares of its
        variance in (0, 1), or None for all.

    shrinkage : float or "auto", default=0.0
        As in :class:`ConvexBNClassifier`, like the parameters below that say no more.

    activation : {"relu", "gated_relu"}, default="relu"
        Activation of the hidden units.

    solver : {"auto", "closed_form", "pursuit", "fista", "cvxpy"} or Solver, default="auto"
        Solver of every fit.

    n_gates : int or "all", default=256
        Number of arrangements where the program needs a list.

    fit_intercept : bool, default=True
        Whether to fit the output intercept.

    tol : float, default=1e-2
        Relative duality gap at which every fit stops. In the folds it is estimated from a smaller
        search than in the final fit, whose certificate is as that of :class:`ConvexBNClassifier`.

    max_iter : int, default=200
        Largest number of rounds of each fit.

    cv : int, cross-validation generator or iterable, default=None
        Folds, fixed once for all fits: as in :func:`~sklearn.model_selection.check_cv`, None for
        five.

    scoring : str, callable or None, default=None
        Score to maximise, as in scikit-learn; None is the accuracy.

    n_jobs : int or None, default=None
        Paths (one for each fold and setting of `n_components`) trained at a time, by joblib.

    selection : {"best", "one_standard_error"}, default="best"
        "one_standard_error" takes, at the best `n_components`, the largest alpha whose mean score
        is within one standard error (over the folds) of the best.

    device : str or None, default=None
        Where solvers that use torch compute.

    random_state : int, RandomState instance or None, default=None
        Seeds gates and searches, the same for every fit. Folds are seeded by `cv`.

    verbose : int, default=0
        Print one line a round of every fit when positive.

    loss : {"log_loss", "squared_error"}, default="log_loss"
        Loss of every fit.

    class_weight : dict, "balanced" or None, default=None
        Weights of the classes in every fit.

    Attributes
    ----------
    alpha_ : float
        The alpha chosen.
    alphas_ : ndarray of shape (n_alphas,)
        The alphas tried, descending.
    n_components_grid_ : list
        The settings of `n_components` tried.
    n_components_ : int
        Number of directions the final network keeps.
    best_index_ : tuple of two int
        Positions in `n_components_grid_` and `alphas_` of what was chosen. Of equal scores the
        first counts: the largest alpha.
    scores_ : ndarray of shape (n_grid, n_alphas, n_folds)
        Scores on the test rows.
    n_neurons_path_ : ndarray of shape (n_grid, n_alphas, n_folds)
        Numbers of hidden units.
    objective_path_ : ndarray of shape (n_grid, n_alphas, n_folds)
        Objectives on the training rows.
    coefs_, intercepts_, batch_norm_, certificate_, and the others of ConvexBNClassifier
        Of the final network.

    See Also
    --------
    ConvexBNClassifier : The same for one alpha and `n_components`.
    convexbn_path : The path alone.

    Examples
    --------
    >>> from sklearn.datasets import load_breast_cancer
    >>> from sklearn_convexbn import ConvexBNClassifierCV
    >>> X, y = load_breast_cancer(return_X_y=True)
    >>> model = ConvexBNClassifierCV(5, eps=0.1, n_components=[10, 0.99], cv=3, random_state=0)
    >>> model.fit(X, y).scores_.shape
    (2, 5, 3)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **_ConvexBNCV._parameter_constraints,
        "loss": ConvexBNClassifier._parameter_constraints["loss"],
        "class_weight": ConvexBNClassifier._parameter_constraints["class_weight"],
        "scoring": [StrOptions(set(get_scorer_names())), callable, None],
    }
    _plain = ConvexBNClassifier
    _scores_name = "scores_"
    _sign = 1.0

    def __init__(
        self,
        alphas: int | Any = 30,
        *,
        eps: float = 1e-3,
        n_components: int | float | list[Any] | None = None,
        shrinkage: float | str = 0.0,
        activation: str = "relu",
        solver: str | solvers.Solver = "auto",
        n_gates: int | str = 256,
        fit_intercept: bool = True,
        tol: float = 1e-2,
        max_iter: int = 200,
        cv: Any = None,
        scoring: str | Callable[..., float] | None = None,
        n_jobs: int | None = None,
        selection: str = "best",
        device: str | None = None,
        random_state: int | np.random.RandomState | None = None,
        verbose: int | bool = 0,
        loss: str = "log_loss",
        class_weight: dict[Any, float] | str | None = None,
    ) -> None:
        self.alphas = alphas
        self.eps = eps
        self.n_components = n_components  # type: ignore[assignment]
        self.shrinkage = shrinkage
        self.activation = activation
        self.solver = solver
        self.n_gates = n_gates
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter
        self.cv = cv
        self.scoring = scoring
        self.n_jobs = n_jobs
        self.selection = selection
        self.device = device
        self.random_state = random_state
        self.verbose = verbose
        self.loss = loss
        self.class_weight = class_weight

    @with_callbacks
    def fit(self, X: Any, y: Any, sample_weight: Any = None, **params: Any) -> Self:
        """Choose alpha and n_components and train the network.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        y : array-like of shape (n_samples,)
            Labels.
        sample_weight : array-like of shape (n_samples,), default=None
            Non-negative; weigh rows in the fits and, where the scorer takes weights, in the scores.
        **params : dict
            Passed to the splitter and the scorer where metadata routing is enabled, such as
            `groups`.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            For invalid parameters or data, an empty grid, alphas that are not positive and
            descending, or folds that cannot be trained on, such as ones without a class. The
            estimator then stays as it was.
        """
        return self._fit(X, y, sample_weight, params)

    def _scorer(self, model: Any) -> Callable[..., float]:
        return check_scoring(model, self.scoring)

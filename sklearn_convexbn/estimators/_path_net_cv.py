"""Path networks with alpha chosen by cross-validation along the path that a fit follows anyway."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from copy import copy
from dataclasses import replace
from numbers import Integral
from typing import Any, ClassVar, Self

import numpy as np
from sklearn.metrics import accuracy_score, check_scoring, get_scorer_names, mean_squared_error
from sklearn.model_selection import check_cv
from sklearn.utils import check_random_state
from sklearn.utils.parallel import Parallel, delayed

from sklearn_convexbn import solvers
from sklearn_convexbn.estimators._base import unchanged_on_failure
from sklearn_convexbn.estimators._cross_validation import (
    LARGEST_SEED,
    BaseConvexBNCV,
    _Fold,
    _folds,
)
from sklearn_convexbn.estimators._path import ALPHA_CONSTRAINTS, check_alphas
from sklearn_convexbn.estimators._path_net import (
    BasePathNet,
    PathNetClassifier,
    PathNetRegressor,
    path_attributes,
)
from sklearn_convexbn.fit._callbacks import FitHooks
from sklearn_convexbn.fit._path_training import (
    FIRST_ALPHA,
    PathSettings,
    path_solver,
    prepare_paths,
    train_paths,
)
from sklearn_convexbn.losses._base import Loss
from sklearn_convexbn.support._arrays import on_cpu
from sklearn_convexbn.support._compat import (
    StrOptions,
    check_parameters,
    parameters_of_rows,
    routed_parameters,
    weighted_scorer,
    with_callbacks,
)
from sklearn_convexbn.support._device import plain_torch
from sklearn_convexbn.support._sharding import refuse_shards


class BasePathNetCV(BasePathNet):
    """The choice of alpha that both cross-validated path networks share."""

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **{
            name: allowed
            for name, allowed in BasePathNet._parameter_constraints.items()
            if name not in ("alpha", "warm_start")
        },
        **ALPHA_CONSTRAINTS,
        "cv": ["cv_object"],
        "n_jobs": [Integral, None],
    }

    #: The estimator without cross-validation.
    _plain: ClassVar[type[BasePathNet]]
    #: Name of the attribute that holds the scores, and whether the larger are the better.
    _scores_name: ClassVar[str]
    _sign: ClassVar[float]
    warm_start = False

    alphas: Any
    eps: float
    cv: Any
    n_jobs: int | None

    get_metadata_routing = BaseConvexBNCV.get_metadata_routing

    @abstractmethod
    def _scorer(self, model: Any) -> Callable[..., float]:
        """Return the function ``score(model, X, y, **params)`` of a fold."""

    def _fit_path(self, X: Any, y: Any, sample_weight: Any, params: dict[str, Any]) -> Self:
        """Choose alpha by cross-validation and train on all rows."""
        check_parameters(self, self._parameter_constraints)
        path_solver(self.solver)
        refuse_shards(type(self).__name__)
        if isinstance(self.alphas, Integral):
            alphas = FIRST_ALPHA * np.geomspace(1.0, self.eps, int(self.alphas))
        else:
            alphas = check_alphas(self.alphas)
        routed = routed_parameters(self, params, sample_weight)
        hooks = FitHooks.of_fit(self, X, y, sample_weight, max_subtasks=2)
        with unchanged_on_failure(self), plain_torch():
            X, y, weights = self._validated(X, y, sample_weight)
            scored = routed.scorer.score
            if "sample_weight" in scored:
                scored = {**scored, "sample_weight": weights}
            X = on_cpu(X)
            data = self._encode(X, y, weights)
            if len(data.classes):
                self.classes_ = data.classes
            splits = check_cv(self.cv, y, classifier=bool(len(data.classes)))
            folds = _folds(splits.split(X, y, **routed.splitter.split), y, weights, data.classes)
            settings, seed = self._settings(), self._seed()
            search, model = hooks.subtask("cross-validation"), self._model()
            score = self._scorer(model)
            scores = Parallel(n_jobs=self.n_jobs)(
                delayed(_fold_scores)(
                    model, X, y, weights, fold, _seeded(settings, seed), alphas, score, scored
                )
                for fold in folds
            )
            search.end()
            self._choose(np.array(scores).T, alphas, folds)
            refit = hooks.subtask("refit", max_subtasks=self.max_iter)
            settings = _seeded(settings, seed)
            prepared = prepare_paths(data, settings)
            refit.attributes = lambda result: path_attributes(
                prepared.at(self.alpha_).trained(result), data
            )
            path = alphas[: self.best_index_ + 1]
            *_, trained = train_paths(prepared, settings, path, monitor=refit)
            self._set_fitted(path_attributes(trained, data))
            refit.end(lambda: path_attributes(trained, data))
            hooks.end()
        return self

    def _seed(self) -> int:
        """Return the seed of the searches of all paths."""
        seed = self.random_state
        if isinstance(seed, Integral):
            return int(seed)
        return int(check_random_state(seed).randint(LARGEST_SEED))

    def _model(self) -> Any:
        """Return a plain estimator of the same parameters, with what it needs to predict."""
        own, model = self.get_params(deep=False), self._plain()
        model.set_params(
            **{name: own[name] for name in model.get_params(deep=False) if name in own}
        )
        for name in ("classes_", "n_features_in_", "_single_output"):
            if hasattr(self, name):
                setattr(model, name, getattr(self, name))
        return model

    def _choose(self, scores: np.ndarray, alphas: np.ndarray, folds: list[_Fold]) -> None:
        """Publish scores (n_alphas, n_folds) and what they say is best."""
        setattr(self, self._scores_name, scores)
        weights = [fold.weight for fold in folds]
        means = self._sign * np.average(scores, axis=1, weights=weights)
        if np.isnan(means).all():
            raise ValueError("Every alpha has a fold whose score is NaN: nothing can be chosen.")
        self.alphas_ = alphas
        self.best_index_ = int(np.nanargmax(means))
        self.alpha_ = float(alphas[self.best_index_])


def _seeded(settings: PathSettings, seed: int) -> PathSettings:
    """Return settings with a random state of their own."""
    return replace(settings, random_state=np.random.RandomState(seed))


def _fold_scores(
    model: Any,
    X: np.ndarray,
    y: np.ndarray,
    weights: np.ndarray,
    fold: _Fold,
    settings: PathSettings,
    alphas: np.ndarray,
    score: Callable[..., float],
    params: dict[str, Any],
) -> list[float]:
    """Train along the path on the fold's training rows and score on its test rows."""
    train, test = fold.train, fold.test
    data = model._encode(X[train], y[train], weights[train])
    params, scores = parameters_of_rows(X, params, test), []
    for trained in train_paths(prepare_paths(data, settings), settings, alphas, provisional=True):
        fitted = copy(model)
        fitted._set_fitted(path_attributes(trained, data))
        scores.append(float(score(fitted, X[test], y[test], **params)))
    return scores


class PathNetRegressorCV(BasePathNetCV, PathNetRegressor):
    """Path networks for regression, with alpha chosen by cross-validation along a path.

    In each fold networks are trained along descending alphas, each from the one before, and
    scored on the rows left out. The path is then followed on all rows down to the best alpha.

    Parameters
    ----------
    alphas : int or array-like of shape (n_alphas,), default=5
        Number of alphas, geometrically spaced from 0.01 down, or the alphas themselves: positive,
        strictly descending.

    eps : float, default=1e-2
        Smallest alpha divided by the largest, where `alphas` is a number.

    inner_width : int, default=4
        As in :class:`PathNetRegressor`, like the parameters below that say no more.

    norm : {"l1", "l2"}, default="l1"
        Norm of the paths.

    solver : {"auto", "pursuit"} or Solver, default="auto"
        Solver of every fit.

    fit_intercept : bool, default=True
        Whether to fit the output intercept.

    tol : float, default=0.1
        Estimated relative duality gap at which every fit stops.

    max_iter : int, default=50
        Largest number of rounds of the last fit; those in the folds, and those at larger alphas,
        have five at most.

    cv : int, cross-validation generator or iterable, default=None
        Folds, as in :func:`~sklearn.model_selection.check_cv`, None for five.

    n_jobs : int or None, default=None
        Folds trained at a time, by joblib.

    device : str or None, default=None
        Where torch computes.

    random_state : int, RandomState instance or None, default=None
        Seeds searches, the same for every path. Folds are seeded by `cv`.

    verbose : int, default=0
        Print one line a round of every fit when positive.

    loss : {"squared_error", "huber", "poisson", "quantile"} or Loss, default="squared_error"
        As in :class:`ConvexBNRegressor`. Scores are mean squared errors whatever the loss.

    Attributes
    ----------
    alpha_ : float
        The alpha chosen.
    alphas_ : ndarray of shape (n_alphas,)
        The alphas tried, descending.
    mse_path_ : ndarray of shape (n_alphas, n_folds)
        Mean squared errors on the test rows (weighted), in squared units of y.
    best_index_ : int
        Position of `alpha_` in `alphas_`; of equal scores the first.
    coefs_, feature_weights_, certificate_, and the others of PathNetRegressor
        Of the final network.

    See Also
    --------
    PathNetRegressor : The same for one alpha.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn_convexbn import PathNetRegressorCV
    >>> X, y = load_diabetes(return_X_y=True)
    >>> model = PathNetRegressorCV([0.3, 0.1], cv=3, random_state=0).fit(X, y)
    >>> model.mse_path_.shape
    (2, 3)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BasePathNetCV._parameter_constraints,
        "loss": PathNetRegressor._parameter_constraints["loss"],
    }
    _plain = PathNetRegressor
    _scores_name = "mse_path_"
    _sign = -1.0

    def __init__(
        self,
        alphas: int | Any = 5,
        *,
        eps: float = 1e-2,
        inner_width: int = 4,
        norm: str = "l1",
        solver: str | solvers.Solver = "auto",
        fit_intercept: bool = True,
        tol: float = 0.1,
        max_iter: int = 50,
        cv: Any = None,
        n_jobs: int | None = None,
        device: str | None = None,
        random_state: int | np.random.RandomState | None = None,
        verbose: int | bool = 0,
        loss: str | Loss = "squared_error",
    ) -> None:
        self.alphas = alphas
        self.eps = eps
        self.inner_width = inner_width
        self.norm = norm
        self.solver = solver
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter
        self.cv = cv
        self.n_jobs = n_jobs
        self.device = device
        self.random_state = random_state
        self.verbose = verbose
        self.loss = loss

    @with_callbacks
    def fit(self, X: Any, y: Any, sample_weight: Any = None, **params: Any) -> Self:
        """Choose alpha and train the network.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
        sample_weight : array-like of shape (n_samples,), default=None
            Non-negative; weigh rows in the fits and in the scores.
        **params : dict
            Passed to the splitter and the scorer where metadata routing is enabled.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            For invalid parameters or data, alphas that are not positive and descending, or folds
            that cannot be trained on. The estimator then stays as it was.
        TypeError
            For sparse X.
        """
        return self._fit_path(X, y, sample_weight, params)

    def _scorer(self, model: Any) -> Callable[..., float]:
        return weighted_scorer(mean_squared_error)


class PathNetClassifierCV(BasePathNetCV, PathNetClassifier):
    """Path networks for classification, with alpha chosen by cross-validation along a path.

    In each fold networks are trained along descending alphas, each from the one before, and
    scored on the rows left out. The path is then followed on all rows down to the best alpha.

    Parameters
    ----------
    alphas : int or array-like of shape (n_alphas,), default=5
        Number of alphas, geometrically spaced from 0.01 down, or the alphas themselves: positive,
        strictly descending.

    eps : float, default=1e-2
        Smallest alpha divided by the largest, where `alphas` is a number.

    inner_width : int, default=4
        As in :class:`PathNetClassifier`, like the parameters below that say no more.

    norm : {"l1", "l2"}, default="l1"
        Norm of the paths.

    solver : {"auto", "pursuit"} or Solver, default="auto"
        Solver of every fit.

    fit_intercept : bool, default=True
        Whether to fit the output intercept.

    tol : float, default=0.1
        Estimated relative duality gap at which every fit stops.

    max_iter : int, default=50
        Largest number of rounds of the last fit; those in the folds, and those at larger alphas,
        have five at most.

    cv : int, cross-validation generator or iterable, default=None
        Folds, as in :func:`~sklearn.model_selection.check_cv`, None for five.

    scoring : str, callable or None, default=None
        Score to maximise, as in scikit-learn; None is the accuracy.

    n_jobs : int or None, default=None
        Folds trained at a time, by joblib.

    device : str or None, default=None
        Where torch computes.

    random_state : int, RandomState instance or None, default=None
        Seeds searches, the same for every path. Folds are seeded by `cv`.

    verbose : int, default=0
        Print one line a round of every fit when positive.

    loss : {"log_loss", "squared_error"} or Loss, default="log_loss"
        Loss of every fit.

    class_weight : dict, "balanced" or None, default=None
        Weights of the classes in every fit.

    Attributes
    ----------
    alpha_ : float
        The alpha chosen.
    alphas_ : ndarray of shape (n_alphas,)
        The alphas tried, descending.
    scores_ : ndarray of shape (n_alphas, n_folds)
        Scores on the test rows.
    best_index_ : int
        Position of `alpha_` in `alphas_`; of equal scores the first.
    coefs_, feature_weights_, certificate_, and the others of PathNetClassifier
        Of the final network.

    See Also
    --------
    PathNetClassifier : The same for one alpha.

    Examples
    --------
    >>> from sklearn.datasets import load_breast_cancer
    >>> from sklearn_convexbn import PathNetClassifierCV
    >>> X, y = load_breast_cancer(return_X_y=True)
    >>> model = PathNetClassifierCV([0.1, 0.03], cv=3, random_state=0).fit(X, y)
    >>> model.scores_.shape
    (2, 3)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BasePathNetCV._parameter_constraints,
        "loss": PathNetClassifier._parameter_constraints["loss"],
        "class_weight": PathNetClassifier._parameter_constraints["class_weight"],
        "scoring": [StrOptions(set(get_scorer_names())), callable, None],
    }
    _plain = PathNetClassifier
    _scores_name = "scores_"
    _sign = 1.0

    def __init__(
        self,
        alphas: int | Any = 5,
        *,
        eps: float = 1e-2,
        inner_width: int = 4,
        norm: str = "l1",
        solver: str | solvers.Solver = "auto",
        fit_intercept: bool = True,
        tol: float = 0.1,
        max_iter: int = 50,
        cv: Any = None,
        scoring: str | Callable[..., float] | None = None,
        n_jobs: int | None = None,
        device: str | None = None,
        random_state: int | np.random.RandomState | None = None,
        verbose: int | bool = 0,
        loss: str | Loss = "log_loss",
        class_weight: dict[Any, float] | str | None = None,
    ) -> None:
        self.alphas = alphas
        self.eps = eps
        self.inner_width = inner_width
        self.norm = norm
        self.solver = solver
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter
        self.cv = cv
        self.n_jobs = n_jobs
        self.device = device
        self.random_state = random_state
        self.verbose = verbose
        self.loss = loss
        self.class_weight = class_weight
        self.scoring = scoring

    @with_callbacks
    def fit(self, X: Any, y: Any, sample_weight: Any = None, **params: Any) -> Self:
        """Choose alpha and train the network.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        y : array-like of shape (n_samples,)
            Labels.
        sample_weight : array-like of shape (n_samples,), default=None
            Non-negative; weigh rows in the fits and in the scores.
        **params : dict
            Passed to the splitter and the scorer where metadata routing is enabled.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            For invalid parameters or data, alphas that are not positive and descending, or folds
            that cannot be trained on. The estimator then stays as it was.
        TypeError
            For sparse X.
        """
        return self._fit_path(X, y, sample_weight, params)

    def _scorer(self, model: Any) -> Callable[..., float]:
        if self.scoring is None:
            return weighted_scorer(accuracy_score)
        return check_scoring(model, self.scoring)

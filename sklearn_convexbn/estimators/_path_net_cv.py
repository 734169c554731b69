"""Path networks with alpha chosen by cross-validation, along the path that fits follow anyway."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Self

import numpy as np

from sklearn_convexbn import solvers
from sklearn_convexbn.data._encoding import TrainingData
from sklearn_convexbn.estimators._cross_validation import BaseCV, LabelsCV, NumbersCV
from sklearn_convexbn.estimators._path_net import BasePathNet, PathNetClassifier, PathNetRegressor
from sklearn_convexbn.estimators._targets import LabelsMixin, NumbersMixin
from sklearn_convexbn.fit._path_training import FIRST_ALPHA, PathSettings
from sklearn_convexbn.losses._base import Loss
from sklearn_convexbn.support._compat import with_callbacks


class BasePathNetCV(BaseCV, BasePathNet):
    """The choice of alpha and inner_width that both cross-validated path networks share."""

    inner_width: int | list[int]  # type: ignore[assignment]

    _grid_constraints: ClassVar[dict[str, list[Any]]] = {
        "inner_width": BasePathNet._parameter_constraints["inner_width"]
    }
    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **{
            name: allowed
            for name, allowed in BasePathNet._parameter_constraints.items()
            if name not in ("alpha", "warm_start")
        },
        **BaseCV._parameter_constraints,
        **{name: [*allowed, "array-like"] for name, allowed in _grid_constraints.items()},
    }

    def _settings(self, values: dict[str, Any]) -> list[PathSettings]:
        return [PathSettings.of({**values, **each}) for each in self._grid()]

    def _largest_alpha(self, data: TrainingData, settings: list[PathSettings]) -> float:
        return FIRST_ALPHA

    def _publish(self, tables: dict[str, np.ndarray], row: int, column: int) -> None:
        super()._publish(tables, row, column)
        self.inner_width_ = self.inner_width_grid_[row]

    _is_automatic = False

    def _alphas(self, data: TrainingData) -> np.ndarray:
        return self.alphas_[: self.best_index_[1] + 1]


class PathNetRegressorCV(NumbersCV, BasePathNetCV, PathNetRegressor):
    """Path networks for regression, with alpha and width chosen by cross-validation.

    In each fold, and for each `inner_width`, networks are trained along descending alphas, each
    from the one before, and scored on the rows left out. The path of the best `inner_width` is
    then followed on all rows down to the best alpha.

    Parameters
    ----------
    alphas : int or array-like of shape (n_alphas,), default=5
        Number of alphas, geometrically spaced from 0.01 down, or the alphas themselves: positive,
        strictly descending.

    eps : float, default=1e-2
        Smallest alpha divided by the largest, where `alphas` is a number.

    inner_width : int or list of int, default=4
        Numbers of inner units to choose from, each as in :class:`PathNetRegressor`, like the
        parameters below that say no more.

    norm : {"l1", "l2"}, default="l1"
        Norm of the paths.

    solver : {"auto", "pursuit"} or Solver, default="auto"
        Solver of every fit.

    fit_intercept : bool, default=True
        Whether to fit the output intercept.

    tol : float, default=0.2
        Estimated relative duality gap at which every fit stops.

    max_iter : int, default=50
        Largest number of rounds of the last fit; those in the folds, and those at larger alphas,
        have five at most.

    patience : int or None, default=None
        Number of alphas after which a path in a fold ends early: so many in succession have scored
        below its best, none better than the one before. What is left out has NaN for scores and is
        not chosen. None follows every path to its end.

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
    inner_width_ : int
        The number of inner units chosen.
    inner_width_grid_ : list of int
        Those tried.
    mse_path_ : ndarray of shape (n_grid, n_alphas, n_folds)
        Mean squared errors on the test rows (weighted), in squared units of y.
    n_neurons_path_ : ndarray of shape (n_grid, n_alphas, n_folds)
        Numbers of sub-networks, -1 where a path ended before.
    objective_path_ : ndarray of shape (n_grid, n_alphas, n_folds)
        Objectives on the training rows, in squared units of y.
    best_index_ : tuple of two int
        Positions of `inner_width_` and `alpha_` among those tried; of equal scores the first.
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
    (1, 2, 3)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BasePathNetCV._parameter_constraints,
        **NumbersMixin._parameter_constraints,
    }

    def __init__(
        self,
        alphas: int | Any = 5,
        *,
        eps: float = 1e-2,
        inner_width: int | list[int] = 4,
        norm: str = "l1",
        solver: str | solvers.Solver = "auto",
        fit_intercept: bool = True,
        tol: float = 0.2,
        max_iter: int = 50,
        patience: int | None = None,
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
        self.patience = patience
        self.cv = cv
        self.n_jobs = n_jobs
        self.device = device
        self.random_state = random_state
        self.verbose = verbose
        self.loss = loss

    _plain = PathNetRegressor

    @with_callbacks
    def fit(self, X: Any, y: Any, sample_weight: Any = None, **params: Any) -> Self:
        """Choose alpha and the number of inner units, and train the network.

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
        return self._search(X, y, sample_weight, params)


class PathNetClassifierCV(LabelsCV, BasePathNetCV, PathNetClassifier):
    """Path networks for classification, with alpha and width chosen by cross-validation.

    In each fold, and for each `inner_width`, networks are trained along descending alphas, each
    from the one before, and scored on the rows left out. The path of the best `inner_width` is
    then followed on all rows down to the best alpha.

    Parameters
    ----------
    alphas : int or array-like of shape (n_alphas,), default=5
        Number of alphas, geometrically spaced from 0.01 down, or the alphas themselves: positive,
        strictly descending.

    eps : float, default=1e-2
        Smallest alpha divided by the largest, where `alphas` is a number.

    inner_width : int or list of int, default=4
        Numbers of inner units to choose from, each as in :class:`PathNetClassifier`, like the
        parameters below that say no more.

    norm : {"l1", "l2"}, default="l1"
        Norm of the paths.

    solver : {"auto", "pursuit"} or Solver, default="auto"
        Solver of every fit.

    fit_intercept : bool, default=True
        Whether to fit the output intercept.

    tol : float, default=0.2
        Estimated relative duality gap at which every fit stops.

    max_iter : int, default=50
        Largest number of rounds of the last fit; those in the folds, and those at larger alphas,
        have five at most.

    patience : int or None, default=None
        Number of alphas after which a path in a fold ends early: so many in succession have scored
        below its best, none better than the one before. What is left out has NaN for scores and is
        not chosen. None follows every path to its end.

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
    inner_width_ : int
        The number of inner units chosen.
    inner_width_grid_ : list of int
        Those tried.
    scores_ : ndarray of shape (n_grid, n_alphas, n_folds)
        Scores on the test rows.
    n_neurons_path_ : ndarray of shape (n_grid, n_alphas, n_folds)
        Numbers of sub-networks, -1 where a path ended before.
    objective_path_ : ndarray of shape (n_grid, n_alphas, n_folds)
        Objectives on the training rows.
    best_index_ : tuple of two int
        Positions of `inner_width_` and `alpha_` among those tried; of equal scores the first.
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
    (1, 2, 3)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BasePathNetCV._parameter_constraints,
        **LabelsMixin._parameter_constraints,
        **LabelsCV._parameter_constraints,
    }

    def __init__(
        self,
        alphas: int | Any = 5,
        *,
        eps: float = 1e-2,
        inner_width: int | list[int] = 4,
        norm: str = "l1",
        solver: str | solvers.Solver = "auto",
        fit_intercept: bool = True,
        tol: float = 0.2,
        max_iter: int = 50,
        patience: int | None = None,
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
        self.patience = patience
        self.cv = cv
        self.n_jobs = n_jobs
        self.device = device
        self.random_state = random_state
        self.verbose = verbose
        self.loss = loss
        self.class_weight = class_weight
        self.scoring = scoring

    _plain = PathNetClassifier

    @with_callbacks
    def fit(self, X: Any, y: Any, sample_weight: Any = None, **params: Any) -> Self:
        """Choose alpha and the number of inner units, and train the network.

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
        return self._search(X, y, sample_weight, params)

"""Cross-validated estimators of networks with batch normalization, and their grid of settings."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Real
from typing import Any, ClassVar, Self

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from sklearn_convexbn import solvers
from sklearn_convexbn.data._decomposition import Decomposition
from sklearn_convexbn.data._encoding import TrainingData
from sklearn_convexbn.data._patches import Patches
from sklearn_convexbn.estimators._base import BaseConvexBN
from sklearn_convexbn.estimators._cross_validation import BaseCV, LabelsCV, NumbersCV
from sklearn_convexbn.estimators._estimators import ConvexBNClassifier, ConvexBNRegressor
from sklearn_convexbn.estimators._path import largest_alpha
from sklearn_convexbn.estimators._targets import LabelsMixin, NumbersMixin
from sklearn_convexbn.fit._training import FIT_CONSTRAINTS, TrainingSettings, decomposed
from sklearn_convexbn.losses._base import Loss
from sklearn_convexbn.support._compat import (
    Interval,
    StrOptions,
    with_callbacks,
)
from sklearn_convexbn.support._warnings import warn_caller


class BaseConvexBNCV(BaseCV, BaseConvexBN):
    """The choice of alpha, shrinkage and n_components that both estimators share."""

    alphas: int | Any
    eps: float
    n_components: int | float | list[Any] | None  # type: ignore[assignment]
    shrinkage: float | str | list[Any]  # type: ignore[assignment]
    fold_tol: float
    selection: str

    _grid_constraints: ClassVar[dict[str, list[Any]]] = {
        name: FIT_CONSTRAINTS[name] for name in ("n_components", "shrinkage")
    }
    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **{name: FIT_CONSTRAINTS[name] for name in FIT_CONSTRAINTS if name != "alpha"},
        **BaseCV._parameter_constraints,
        **{name: [*allowed, "array-like"] for name, allowed in _grid_constraints.items()},
        "fold_tol": [Interval(Real, 0, None, closed="left")],
        "selection": [StrOptions({"best", "one_standard_error"})],
    }

    def _settings(self, values: dict[str, Any]) -> list[TrainingSettings]:
        values = {**values, "alpha": 1.0, "tol": max(self.tol, self.fold_tol)}
        return [TrainingSettings.of({**values, **each}) for each in self._grid()]

    def _shared(self, data: TrainingData, settings: list[TrainingSettings]) -> Decomposition:
        return decomposed(data, settings)

    def _largest_alpha(self, data: TrainingData, settings: list[TrainingSettings]) -> float:
        whole = decomposed(data, settings)
        return max(largest_alpha(data, each.fresh(), whole) for each in settings)

    def _column(self, means: np.ndarray, scores: np.ndarray, best: int) -> int:
        n_folds = scores.shape[1]
        if self.selection == "best" or n_folds == 1:
            return best
        error = scores[best].std(ddof=1) / np.sqrt(n_folds)
        return int(np.flatnonzero(means >= means[best] - error)[0])

    def _choose(self, paths: list[Any], *args: Any) -> int:
        row = super()._choose(paths, *args)
        self._warn(sum(path.n_unconverged for path in paths), sum(path.n_fits for path in paths))
        return row

    def _warn(self, n_unconverged: int, n_fits: int) -> None:
        """Warn once of fits in the folds that did not reach the tolerance."""
        if n_unconverged:
            warn_caller(
                f"{n_unconverged} of {n_fits} fits of the cross-validation stopped after "
                f"max_iter={self.max_iter} rounds or stalled with a relative duality gap above "
                f"{max(self.tol, self.fold_tol):g}, the larger one of tol and fold_tol. Their "
                "scores are those of usable networks. Increase max_iter, fold_tol or eps, or give "
                "larger alphas.",
                ConvergenceWarning,
            )


class ConvexBNRegressorCV(NumbersCV, BaseConvexBNCV, ConvexBNRegressor):
    """Regression with alpha, shrinkage and n_components chosen by cross-validation.

    In each fold, and for each setting of `n_components` and `shrinkage`, networks are trained along
    descending alphas, each from the one before; a fold's rows are decomposed once. A network with
    the best alpha and setting is then trained on all rows. Equal to
    :class:`~sklearn.model_selection.GridSearchCV` over the same grid, but for where within the
    larger one of `tol` and `fold_tol` each fit ends. Mean scores weigh the folds by their test
    rows' weights.

    Parameters
    ----------
    alphas : int or array-like of shape (n_alphas,), default=30
        Number of alphas, geometrically spaced from the largest useful one
        (:func:`alpha_max`, over all settings) down, or the alphas themselves: positive,
        strictly descending. All folds and all settings share them.

    eps : float, default=1e-3
        Smallest alpha divided by the largest, where `alphas` is a number.

    n_components : int, float, None or list of these, default=None
        Settings to choose from: numbers of leading singular directions of X, shares of its
        variance in (0, 1), or None for all.

    shrinkage : float, "eps", "auto" or list of these, default="eps"
        Settings to choose from, each as in :class:`ConvexBNRegressor`, like the parameters below
        that say no more. All are tried with all of `n_components`.

    clip : bool, default=False
        Whether to limit the whitened coordinates of new rows to their range on the training rows,
        in the folds as in the final network.

    activation : {"relu", "gated_relu"}, default="relu"
        Activation of the hidden units.

    patches : Patches or None, default=None
        Cut rows, which are images then, into patches, as :class:`Patches` says.

    solver : {"auto", "closed_form", "pursuit", "group_newton", "interior_point", "fista", \
            "cvxpy"} or Solver, default="auto"
        Solver of every fit.

    n_gates : int or "all", default=256
        Number of arrangements where the program needs a list.

    fit_intercept : bool, default=True
        Whether to fit the output intercept.

    tol : float, default=0.2
        Relative duality gap at which the final fit stops, whose certificate is as that of
        :class:`ConvexBNRegressor`.

    max_iter : int, default=200
        Largest number of rounds of each fit.

    fold_tol : float, default=0.2
        Fits in the folds stop at a relative duality gap of `fold_tol`, or of `tol` where that is
        larger; it is estimated from a smaller search than in the final fit. 0 is `tol`.

    patience : int or None, default=None
        Number of alphas after which a path in a fold ends early: so many in succession have scored
        below its best, none better than the one before. What is left out has NaN for scores and is
        not chosen. None follows every path to its end.

    cv : int, cross-validation generator or iterable, default=None
        Folds, fixed once for all fits: as in :func:`~sklearn.model_selection.check_cv`, None for
        five.

    n_jobs : int or None, default=None
        Paths (one for each fold and setting) trained at a time, by joblib.

    selection : {"best", "one_standard_error"}, default="best"
        "one_standard_error" takes, at the best setting, the largest alpha whose mean score is
        within one standard error (over the folds) of the best.

    device : str or None, default=None
        Where solvers that use torch compute.

    random_state : int, RandomState instance or None, default=None
        Seeds gates and searches, the same for every fit. Folds are seeded by `cv`.

    verbose : int, default=0
        Print one line a round of every fit when positive.

    loss : {"squared_error", "huber", "poisson", "quantile"} or Loss, default="squared_error"
        As in :class:`ConvexBNRegressor`. Scores are mean squared errors of predictions whatever
        the loss.

    Attributes
    ----------
    alpha_ : float
        The alpha chosen.
    alphas_ : ndarray of shape (n_alphas,)
        The alphas tried, descending.
    n_components_grid_ : list
        The `n_components` of each setting tried.
    shrinkage_grid_ : list
        The `shrinkage` of each setting tried.
    shrinkage_ : float
        Shrinkage of the final network, as a number.
    n_components_ : int
        Number of directions the final network keeps.
    best_index_ : tuple of two int
        Positions of what was chosen among the settings and `alphas_`. Of equal scores the
        first counts: the largest alpha.
    mse_path_ : ndarray of shape (n_grid, n_alphas, n_folds)
        Mean squared errors on the test rows (weighted), in squared units of y.
    n_neurons_path_ : ndarray of shape (n_grid, n_alphas, n_folds)
        Numbers of hidden units, -1 where a path ended before.
    objective_path_ : ndarray of shape (n_grid, n_alphas, n_folds)
        Objectives on the training rows, in squared units of y.
    coefs_, intercepts_, batch_norm_, certificate_, and the others of ConvexBNRegressor
        Of the final network.

    See Also
    --------
    ConvexBNRegressor : The same for one alpha and setting.
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
        **BaseConvexBNCV._parameter_constraints,
        **NumbersMixin._parameter_constraints,
    }

    def __init__(
        self,
        alphas: int | Any = 30,
        *,
        eps: float = 1e-3,
        n_components: int | float | list[Any] | None = None,
        shrinkage: float | str | list[Any] = "eps",
        clip: bool = False,
        activation: str = "relu",
        patches: Patches | None = None,
        solver: str | solvers.Solver = "auto",
        n_gates: int | str = 256,
        fit_intercept: bool = True,
        tol: float = 0.2,
        max_iter: int = 200,
        fold_tol: float = 0.2,
        patience: int | None = None,
        cv: Any = None,
        n_jobs: int | None = None,
        selection: str = "best",
        device: str | None = None,
        random_state: int | np.random.RandomState | None = None,
        verbose: int | bool = 0,
        loss: str | Loss = "squared_error",
    ) -> None:
        self.alphas = alphas
        self.eps = eps
        self.loss = loss
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
        self.fold_tol = fold_tol
        self.patience = patience
        self.cv = cv
        self.n_jobs = n_jobs
        self.selection = selection
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    _plain = ConvexBNRegressor

    @with_callbacks
    def fit(self, X: Any, y: Any, sample_weight: Any = None, **params: Any) -> Self:
        """Choose alpha, shrinkage and n_components and train the network.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            With `patches` images, (n_samples, height, width[, channels]) or flattened.
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
        return self._search(X, y, sample_weight, params)


class ConvexBNClassifierCV(LabelsCV, BaseConvexBNCV, ConvexBNClassifier):
    """Classification with alpha, shrinkage and n_components chosen by cross-validation.

    In each fold, and for each setting of `n_components` and `shrinkage`, networks are trained along
    descending alphas, each from the one before; a fold's rows are decomposed once. A network with
    the best alpha and setting is then trained on all rows. Equal to
    :class:`~sklearn.model_selection.GridSearchCV` over the same grid, but for where within the
    larger one of `tol` and `fold_tol` each fit ends. Mean scores weigh the folds by their test
    rows' weights.

    Parameters
    ----------
    alphas : int or array-like of shape (n_alphas,), default=30
        Number of alphas, geometrically spaced from the largest useful one
        (:func:`alpha_max`, over all settings) down, or the alphas themselves: positive,
        strictly descending. All folds and all settings share them.

    eps : float, default=1e-3
        Smallest alpha divided by the largest, where `alphas` is a number.

    n_components : int, float, None or list of these, default=None
        Settings to choose from: numbers of leading singular directions of X, shares of its
        variance in (0, 1), or None for all.

    shrinkage : float, "eps", "auto" or list of these, default="eps"
        Settings to choose from, each as in :class:`ConvexBNClassifier`, like the parameters below
        that say no more. All are tried with all of `n_components`.

    clip : bool, default=False
        Whether to limit the whitened coordinates of new rows to their range on the training rows,
        in the folds as in the final network.

    activation : {"relu", "gated_relu"}, default="relu"
        Activation of the hidden units.

    patches : Patches or None, default=None
        Cut rows, which are images then, into patches, as :class:`Patches` says.

    solver : {"auto", "closed_form", "pursuit", "group_newton", "interior_point", "fista", \
            "cvxpy"} or Solver, default="auto"
        Solver of every fit.

    n_gates : int or "all", default=256
        Number of arrangements where the program needs a list.

    fit_intercept : bool, default=True
        Whether to fit the output intercept.

    tol : float, default=0.2
        Relative duality gap at which the final fit stops, whose certificate is as that of
        :class:`ConvexBNClassifier`.

    max_iter : int, default=200
        Largest number of rounds of each fit.

    fold_tol : float, default=0.2
        Fits in the folds stop at a relative duality gap of `fold_tol`, or of `tol` where that is
        larger; it is estimated from a smaller search than in the final fit. 0 is `tol`.

    patience : int or None, default=None
        Number of alphas after which a path in a fold ends early: so many in succession have scored
        below its best, none better than the one before. What is left out has NaN for scores and is
        not chosen. None follows every path to its end.

    cv : int, cross-validation generator or iterable, default=None
        Folds, fixed once for all fits: as in :func:`~sklearn.model_selection.check_cv`, None for
        five.

    scoring : str, callable or None, default=None
        Score to maximise, as in scikit-learn; None is the accuracy.

    n_jobs : int or None, default=None
        Paths (one for each fold and setting) trained at a time, by joblib.

    selection : {"best", "one_standard_error"}, default="best"
        "one_standard_error" takes, at the best setting, the largest alpha whose mean score is
        within one standard error (over the folds) of the best.

    device : str or None, default=None
        Where solvers that use torch compute.

    random_state : int, RandomState instance or None, default=None
        Seeds gates and searches, the same for every fit. Folds are seeded by `cv`.

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
    n_components_grid_ : list
        The `n_components` of each setting tried.
    shrinkage_grid_ : list
        The `shrinkage` of each setting tried.
    shrinkage_ : float
        Shrinkage of the final network, as a number.
    n_components_ : int
        Number of directions the final network keeps.
    best_index_ : tuple of two int
        Positions of what was chosen among the settings and `alphas_`. Of equal scores the
        first counts: the largest alpha.
    scores_ : ndarray of shape (n_grid, n_alphas, n_folds)
        Scores on the test rows.
    n_neurons_path_ : ndarray of shape (n_grid, n_alphas, n_folds)
        Numbers of hidden units, -1 where a path ended before.
    objective_path_ : ndarray of shape (n_grid, n_alphas, n_folds)
        Objectives on the training rows.
    coefs_, intercepts_, batch_norm_, certificate_, and the others of ConvexBNClassifier
        Of the final network.

    See Also
    --------
    ConvexBNClassifier : The same for one alpha and setting.
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
        **BaseConvexBNCV._parameter_constraints,
        **LabelsMixin._parameter_constraints,
        **LabelsCV._parameter_constraints,
    }

    def __init__(
        self,
        alphas: int | Any = 30,
        *,
        eps: float = 1e-3,
        n_components: int | float | list[Any] | None = None,
        shrinkage: float | str | list[Any] = "eps",
        clip: bool = False,
        activation: str = "relu",
        patches: Patches | None = None,
        solver: str | solvers.Solver = "auto",
        n_gates: int | str = 256,
        fit_intercept: bool = True,
        tol: float = 0.2,
        max_iter: int = 200,
        fold_tol: float = 0.2,
        patience: int | None = None,
        cv: Any = None,
        scoring: str | Callable[..., float] | None = None,
        n_jobs: int | None = None,
        selection: str = "best",
        device: str | None = None,
        random_state: int | np.random.RandomState | None = None,
        verbose: int | bool = 0,
        loss: str | Loss = "log_loss",
        class_weight: dict[Any, float] | str | None = None,
    ) -> None:
        self.alphas = alphas
        self.eps = eps
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
        self.fold_tol = fold_tol
        self.patience = patience
        self.cv = cv
        self.scoring = scoring
        self.n_jobs = n_jobs
        self.selection = selection
        self.device = device
        self.random_state = random_state
        self.verbose = verbose
        self.loss = loss
        self.class_weight = class_weight

    _plain = ConvexBNClassifier

    @with_callbacks
    def fit(self, X: Any, y: Any, sample_weight: Any = None, **params: Any) -> Self:
        """Choose alpha, shrinkage and n_components and train the network.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            With `patches` images, (n_samples, height, width[, channels]) or flattened.
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
        return self._search(X, y, sample_weight, params)

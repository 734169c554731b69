"""The choice of alpha, shrinkage and n_components by cross-validation along warm-started paths."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import replace
from itertools import product
from numbers import Integral, Real
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from sklearn.base import is_classifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import check_cv
from sklearn.utils import check_random_state
from sklearn.utils.metadata_routing import MetadataRouter, MethodMapping
from sklearn.utils.parallel import Parallel, delayed

from sklearn_convexbn.data._encoding import TrainingData
from sklearn_convexbn.data._whitening import Decomposition
from sklearn_convexbn.estimators._base import BaseConvexBN, fitted_attributes, unchanged_on_failure
from sklearn_convexbn.estimators._path import (
    ALPHA_CONSTRAINTS,
    alpha_grid,
    check_alphas,
    largest_alpha,
)
from sklearn_convexbn.fit._callbacks import FitHooks
from sklearn_convexbn.fit._training import (
    FIT_CONSTRAINTS,
    TrainingSettings,
    decomposed,
    train_path,
)
from sklearn_convexbn.support._arrays import on_cpu
from sklearn_convexbn.support._compat import (
    Interval,
    StrOptions,
    check_arguments,
    check_parameters,
    parameters_of_rows,
    routed_parameters,
)
from sklearn_convexbn.support._device import plain_torch
from sklearn_convexbn.support._sharding import refuse_shards
from sklearn_convexbn.support._warnings import warn_caller

#: Largest seed drawn for the searches of all folds.
LARGEST_SEED = np.iinfo(np.int32).max


class _Fold(NamedTuple):
    """Training and test rows of one fold, and the total weight of the latter."""

    train: np.ndarray
    test: np.ndarray
    weight: float


class _Setting(NamedTuple):
    """What one path of alphas has of its own."""

    n_components: int | float | None
    shrinkage: float | str


class _FoldPath(NamedTuple):
    """Scores, neurons and objectives, each (n_alphas,), of the networks of one fold's path.

    Where the path ends early the rest is NaN, and -1 neurons.
    """

    scores: list[float]
    n_neurons: list[int]
    objectives: list[float]
    n_fits: int
    n_unconverged: int


class BaseConvexBNCV(BaseConvexBN):
    """The choice of alpha, shrinkage and n_components that both estimators share."""

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **{name: FIT_CONSTRAINTS[name] for name in FIT_CONSTRAINTS if name != "alpha"},
        **ALPHA_CONSTRAINTS,
        "n_components": [*FIT_CONSTRAINTS["n_components"], "array-like"],
        "shrinkage": [*FIT_CONSTRAINTS["shrinkage"], "array-like"],
        "fold_tol": [Interval(Real, 0, None, closed="left")],
        "patience": [Interval(Integral, 1, None, closed="left"), None],
        "selection": [StrOptions({"best", "one_standard_error"})],
        "cv": ["cv_object"],
        "n_jobs": [Integral, None],
    }

    #: The estimator without cross-validation.
    _plain: ClassVar[type[BaseConvexBN]]
    #: Name of the attribute that holds the scores, and whether the larger are the better.
    _scores_name: ClassVar[str]
    _sign: ClassVar[float]

    @abstractmethod
    def _scorer(self, model: Any) -> Callable[..., float]:
        """Return the function ``score(model, X, y, **params)`` of a fold."""

    def _fit(self, X: Any, y: Any, sample_weight: Any, params: dict[str, Any]) -> Self:
        """Choose alpha and the setting by cross-validation and train on all rows."""
        check_parameters(self, self._parameter_constraints)
        refuse_shards(type(self).__name__)
        grid = self._grid()
        alphas = None if isinstance(self.alphas, Integral) else check_alphas(self.alphas)
        routed = routed_parameters(self, params, sample_weight)
        hooks = FitHooks.of_fit(self, X, y, sample_weight, max_subtasks=2)
        with unchanged_on_failure(self), plain_torch():
            X, y, weights = self._validated(X, y, sample_weight)
            scored = routed.scorer.score
            if "sample_weight" in scored:
                scored = {**scored, "sample_weight": weights}
            X = on_cpu(X)
            data = self._training_data(X, y, weights)
            if is_classifier(self):
                self.classes_ = data.classes
            splits = check_cv(self.cv, y, classifier=is_classifier(self))
            folds = _folds(splits.split(X, y, **routed.splitter.split), y, weights, data.classes)
            settings = self._settings(grid)
            if alphas is None:
                whole = decomposed(data, settings)
                largest = max(largest_alpha(data, each.fresh(), whole) for each in settings)
                alphas = alpha_grid(largest, int(self.alphas), self.eps)
            search = hooks.subtask("cross-validation")
            model = self._model()
            score = self._scorer(model)
            course = _Course(model, alphas, score, self._sign, self.patience)
            tasks = _tasks(course, settings, folds, (X, y, weights), scored)
            paths = Parallel(n_jobs=self.n_jobs)(tasks)
            search.end()
            self._choose(paths, grid, alphas, folds)
            chosen = replace(settings[self.best_index_[0]].fresh(), alpha=self.alpha_)
            refit = hooks.subtask("refit", max_subtasks=self.max_iter)
            self._train(data, replace(chosen, provisional=False, tol=self.tol), refit)
            hooks.end()
        return self

    def _grid(self) -> list[_Setting]:
        """Return the settings of n_components and shrinkage to try."""
        return [_Setting(*each) for each in product(*map(self._listed, _Setting._fields))]

    def _listed(self, name: str) -> list[Any]:
        """Return the values to try of a parameter that is one or a list."""
        given: Any = getattr(self, name)
        values = [given] if given is None or np.ndim(given) == 0 else list(given)
        if not values:
            raise ValueError(f"{name} is an empty list: there is nothing to choose from.")
        for value in values:
            allowed = {name: FIT_CONSTRAINTS[name]}
            check_arguments(type(self).__name__, {name: value}, allowed)
        return values

    def _settings(self, grid: list[_Setting]) -> list[TrainingSettings]:
        """Return the settings of provisional fits for each of `grid`, all of one seed."""
        seed = self.random_state
        if not isinstance(seed, Integral):
            seed = check_random_state(seed).randint(LARGEST_SEED)
        own = {"alpha": 1.0, "random_state": seed, "provisional": True}
        own["tol"] = max(self.tol, self.fold_tol)
        values = {**self.get_params(deep=False), **own}
        return [TrainingSettings.of({**values, **each._asdict()}) for each in grid]

    def _model(self) -> Any:
        """Return a plain estimator of the same parameters, with what it needs to predict."""
        own = self.get_params(deep=False)
        model = self._plain()
        model.set_params(
            **{name: own[name] for name in model.get_params(deep=False) if name in own}
        )
        for name in ("classes_", "n_features_in_", "_single_output", "_image_shape"):
            if hasattr(self, name):
                setattr(model, name, getattr(self, name))
        return model

    def _choose(
        self,
        paths: list[_FoldPath],
        grid: list[_Setting],
        alphas: np.ndarray,
        folds: list[_Fold],
    ) -> None:
        """Publish the paths' arrays (n_grid, n_alphas, n_folds) and what they say is best."""
        shape = (len(folds), len(grid), len(alphas))

        def table(column: str) -> np.ndarray:
            values = [getattr(path, column) for path in paths]
            return np.array(values).reshape(shape).transpose(1, 2, 0)

        scores = table("scores")
        setattr(self, self._scores_name, scores)
        self.n_neurons_path_, self.objective_path_ = table("n_neurons"), table("objectives")
        self.alphas_ = alphas
        self.n_components_grid_ = [each.n_components for each in grid]
        self.shrinkage_grid_ = [each.shrinkage for each in grid]
        weights = [fold.weight for fold in folds]
        means = self._sign * np.average(scores, axis=2, weights=weights)
        if np.isnan(means).all():
            raise ValueError(
                "Every candidate has a fold whose score is NaN: nothing can be chosen."
            )
        means = np.where(np.isnan(means), -np.inf, means)
        row, column = np.unravel_index(means.argmax(), means.shape)
        if self.selection == "one_standard_error" and len(folds) > 1:
            error = scores[row, column].std(ddof=1) / np.sqrt(len(folds))
            column = np.flatnonzero(means[row] >= means[row, column] - error)[0]
        self.best_index_ = int(row), int(column)
        self.alpha_ = float(alphas[column])
        self._warn(sum(path.n_unconverged for path in paths), sum(path.n_fits for path in paths))

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
        For a fold of other rows than there are, whose rows weigh nothing, or whose training rows
        lack a class.
    """
    folds, rows = [], np.arange(len(y))
    for number, (train, test) in enumerate(splits):
        try:
            train, test = rows[train], rows[test]  # noqa: PLW2901 - masks become indices
        except IndexError as error:
            raise ValueError(
                f"Fold {number} of cv has no indices of the {len(y)} rows: {error}."
            ) from error
        fold = _Fold(train, test, float(weights[test].sum()))
        if not (weights[train].any() and fold.weight > 0.0):
            raise ValueError(
                f"Fold {number} of cv has no training or no test rows of positive weight."
            )
        present = np.unique(y[train][weights[train] > 0])
        missing = np.setdiff1d(classes, present)
        if len(missing):
            names = ", ".join(map(str, missing[:5])) + (", ..." if len(missing) > 5 else "")
            raise ValueError(
                f"The training rows of fold {number} of cv lack classes ({names}). "
                "Use fewer or stratified folds, or leave out classes of too few samples."
            )
        folds.append(fold)
    if not folds:
        raise ValueError("cv gives no folds.")
    return folds


class _Course(NamedTuple):
    """What the paths of all folds and settings share."""

    model: Any
    alphas: np.ndarray
    score: Callable[..., float]
    sign: float
    patience: int | None


class _FoldData(NamedTuple):
    """Training rows of a fold with their decomposition, and test rows with what scores them."""

    training: TrainingData
    decomposition: Decomposition
    X: Any
    y: np.ndarray
    params: dict[str, Any]


def _tasks(
    course: _Course,
    settings: list[TrainingSettings],
    folds: list[_Fold],
    rows: tuple[Any, np.ndarray, np.ndarray],
    params: dict[str, Any],
) -> Iterator[Any]:
    """Yield the paths to train, fold by fold; one decomposition serves all settings of a fold."""
    X, y, weights = rows
    for fold in folds:
        train, test = fold.train, fold.test
        data = course.model._training_data(X[train], y[train], weights[train])
        of_test = parameters_of_rows(X, params, test)
        held = _FoldData(data, decomposed(data, settings), X[test], y[test], of_test)
        for each in settings:
            yield delayed(_fold_path)(course, held, each)


def _fold_path(course: _Course, fold: _FoldData, settings: TrainingSettings) -> _FoldPath:
    """Train along the path on the fold's training rows and score on its test rows."""
    scores, n_neurons, objectives, n_unconverged = [], [], [], 0
    path = train_path(fold.training, settings.fresh(), course.alphas, fold.decomposition)
    for alpha, trained in zip(course.alphas, path, strict=False):
        model = copy(course.model)
        attributes = fitted_attributes(trained, alpha, fold.training)
        model._set_fitted(attributes)
        scores.append(float(course.score(model, fold.X, fold.y, **fold.params)))
        n_neurons.append(attributes["n_neurons_"])
        objectives.append(attributes["objective_"])
        n_unconverged += not trained.result.converged
        if course.patience is not None and _has_turned(scores, course.sign, course.patience):
            break
    n_fits, rest = len(scores), len(course.alphas) - len(scores)
    return _FoldPath(
        scores + [np.nan] * rest,
        n_neurons + [-1] * rest,
        objectives + [np.nan] * rest,
        n_fits,
        n_unconverged,
    )


def _has_turned(scores: list[float], sign: float, patience: int) -> bool:
    """Return whether the last scores, `patience` of them, are below the best and do not rise."""
    if len(scores) <= patience:
        return False
    values = sign * np.array(scores)
    last = values[-patience - 1 :]
    return bool((np.diff(last) <= 0.0).all() and (last[1:] < values.max()).all())

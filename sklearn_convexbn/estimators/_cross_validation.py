"""Choice by cross-validation along warm-started paths of alphas, whatever the kind of network."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import replace
from itertools import product
from numbers import Integral
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from sklearn.metrics import accuracy_score, check_scoring, get_scorer_names, mean_squared_error
from sklearn.model_selection import check_cv
from sklearn.utils import check_random_state
from sklearn.utils.metadata_routing import MetadataRouter, MethodMapping
from sklearn.utils.parallel import Parallel, delayed

from sklearn_convexbn.data._encoding import TrainingData
from sklearn_convexbn.estimators._base import BaseNetwork, unchanged_on_failure
from sklearn_convexbn.estimators._path import ALPHA_CONSTRAINTS, alpha_grid, check_alphas
from sklearn_convexbn.fit._callbacks import FitHooks
from sklearn_convexbn.support._arrays import on_cpu
from sklearn_convexbn.support._compat import (
    Interval,
    StrOptions,
    check_arguments,
    parameters_of_rows,
    routed_parameters,
    weighted_scorer,
)
from sklearn_convexbn.support._device import plain_torch
from sklearn_convexbn.support._sharding import ALL_HERE, refuse_shards

#: Largest seed drawn for the searches of all folds.
LARGEST_SEED = np.iinfo(np.int32).max


class _Fold(NamedTuple):
    """Training and test rows of one fold, and the total weight of the latter."""

    train: np.ndarray
    test: np.ndarray
    weight: float


class _FoldPath(NamedTuple):
    """Scores, neurons and objectives, each (n_alphas,), of the networks of one fold's path.

    Where the path ends early the rest is NaN, and -1 neurons.
    """

    scores: list[float]
    n_neurons: list[int]
    objectives: list[float]
    n_fits: int
    n_unconverged: int


class BaseCV(BaseNetwork):
    """The search over alphas, and settings of each kind of network, by cross-validation."""

    alphas: int | Any
    eps: float
    patience: int | None
    cv: Any
    n_jobs: int | None

    # No parameters: the search decides.
    alpha: Any
    warm_start = False

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **ALPHA_CONSTRAINTS,
        "patience": [Interval(Integral, 1, None, closed="left"), None],
        "cv": ["cv_object"],
        "n_jobs": [Integral, None],
    }

    #: The estimator without cross-validation.
    _plain: ClassVar[type[BaseNetwork]]
    #: Parameters that may be lists to choose from, and what each value may be.
    _grid_constraints: ClassVar[dict[str, list[Any]]]
    #: Name of the attribute that holds the scores, and whether the larger are the better.
    _scores_name: ClassVar[str]
    _sign: ClassVar[float]

    @abstractmethod
    def _scorer(self, model: Any) -> Callable[..., float]:
        """Return the function ``score(model, X, y, **params)`` of a fold."""

    @abstractmethod
    def _settings(self, values: dict[str, Any]) -> list[Any]:
        """Return the settings of fits to try, for parameters that all of them have."""

    @abstractmethod
    def _largest_alpha(self, data: TrainingData, settings: list[Any]) -> float:
        """Return the alpha that a grid begins with."""

    def _shared(self, data: TrainingData, settings: list[Any]) -> Any:
        """Return what paths of all settings on the same rows have in common, found once."""

    def _column(self, means: np.ndarray, scores: np.ndarray, best: int) -> int:
        """Return the alpha to take for means (n_alphas,) of scores (n_alphas, n_folds)."""
        return best

    def _check_parameters(self) -> None:
        super()._check_parameters()
        self._grid()

    def _grid(self) -> list[dict[str, Any]]:
        """Return the combinations to try of the parameters that may be lists."""
        listed = {name: self._listed(name) for name in self._grid_constraints}
        return [dict(zip(listed, values, strict=True)) for values in product(*listed.values())]

    def _listed(self, name: str) -> list[Any]:
        """Return the values to try of a parameter that is one or a list."""
        given: Any = getattr(self, name)
        given = given.tolist() if isinstance(given, np.ndarray) else given
        values = [given] if given is None or np.ndim(given) == 0 else list(given)
        if not values:
            raise ValueError(f"{name} is an empty list: there is nothing to choose from.")
        for value in values:
            check_arguments(
                type(self).__name__, {name: value}, {name: self._grid_constraints[name]}
            )
        return values

    def _search(self, X: Any, y: Any, sample_weight: Any, params: dict[str, Any]) -> Self:
        """Choose by cross-validation and train on all rows."""
        refuse_shards(type(self).__name__)
        self._check_parameters()
        alphas = None if isinstance(self.alphas, Integral) else check_alphas(self.alphas)
        routed = routed_parameters(self, params, sample_weight)
        hooks = FitHooks.of_fit(self, X, y, sample_weight, max_subtasks=2)
        with unchanged_on_failure(self), plain_torch():
            X, y, weights = self._validated(X, y, sample_weight)
            scored = routed.scorer.score
            if "sample_weight" in scored:
                scored = {**scored, "sample_weight": weights}
            X = on_cpu(X)
            data = self._training_data(X, y, weights, ALL_HERE)
            if len(data.classes):
                self.classes_ = data.classes
            splits = check_cv(self.cv, y, classifier=bool(len(data.classes)))
            folds = _folds(splits.split(X, y, **routed.splitter.split), y, weights, data.classes)
            own = {"random_state": self._seed(), "provisional": True}
            settings = self._settings({**self.get_params(deep=False), **own})
            if alphas is None:
                largest = self._largest_alpha(data, settings)
                alphas = alpha_grid(largest, int(self.alphas), self.eps)
            search = hooks.subtask("cross-validation")
            tasks = self._tasks(settings, alphas, folds, (X, y, weights), scored)
            paths = Parallel(n_jobs=self.n_jobs)(tasks)
            search.end()
            row = self._choose(paths, alphas, folds)
            refit = hooks.subtask("refit", max_subtasks=self._max_subtasks())
            self._train(data, self._final(settings[row]), refit)
            hooks.end()
        return self

    def _seed(self) -> int:
        """Return the seed of the searches of all fits."""
        seed = self.random_state
        if isinstance(seed, Integral):
            return int(seed)
        return int(check_random_state(seed).randint(LARGEST_SEED))

    def _tasks(
        self,
        settings: list[Any],
        alphas: np.ndarray,
        folds: list[_Fold],
        rows: tuple[Any, np.ndarray, np.ndarray],
        params: dict[str, Any],
    ) -> Iterator[Any]:
        """Yield the paths to train, fold by fold."""
        X, y, weights = rows
        model = self._model()
        course = _Course(model, alphas, self._scorer(model), self._sign, self.patience)
        for fold in folds:
            train, test = fold.train, fold.test
            data = model._training_data(X[train], y[train], weights[train], ALL_HERE)
            of_test = parameters_of_rows(X, params, test)
            held = _FoldData(data, self._shared(data, settings), X[test], y[test], of_test)
            for each in settings:
                yield delayed(_fold_path)(course, held, each)

    def _model(self) -> Any:
        """Return a plain estimator of the same parameters, with what it needs to predict."""
        own, model = self.get_params(deep=False), self._plain()
        model.set_params(
            **{name: own[name] for name in model.get_params(deep=False) if name in own}
        )
        for name in ("classes_", "n_features_in_", "_single_output", "_image_shape"):
            if hasattr(self, name):
                setattr(model, name, getattr(self, name))
        return model

    def _choose(self, paths: list[_FoldPath], alphas: np.ndarray, folds: list[_Fold]) -> int:
        """Publish the paths and what they say is best; return the number of its setting."""
        shape = (len(folds), -1, len(alphas))
        columns = {
            name: np.array([getattr(path, name) for path in paths])
            for name in ("scores", "n_neurons", "objectives")
        }
        tables = {name: a.reshape(shape).transpose(1, 2, 0) for name, a in columns.items()}
        scores, weights = tables["scores"], [fold.weight for fold in folds]
        means = self._sign * np.average(scores, axis=2, weights=weights)
        if np.isnan(means).all():
            raise ValueError(
                "Every candidate has a fold whose score is NaN: nothing can be chosen."
            )
        means = np.where(np.isnan(means), -np.inf, means)
        row, best = map(int, np.unravel_index(means.argmax(), means.shape))
        column = self._column(means[row], scores[row], best)
        self.alphas_, self.alpha_ = alphas, float(alphas[column])
        self._publish(tables, row, column)
        return row

    def _publish(self, tables: dict[str, np.ndarray], row: int, column: int) -> None:
        """Publish the paths' columns, each (n_grid, n_alphas, n_folds), and what was chosen."""
        setattr(self, self._scores_name, tables["scores"])
        self.n_neurons_path_, self.objective_path_ = tables["n_neurons"], tables["objectives"]
        for name in self._grid_constraints:
            setattr(self, f"{name}_grid_", [each[name] for each in self._grid()])
        self.best_index_ = row, column

    def _final(self, settings: Any) -> Any:
        """Return the settings of the last fit, for those of the setting chosen."""
        own = {"alpha": self.alpha_} if hasattr(settings, "alpha") else {}
        return replace(settings.fresh(), provisional=False, tol=self.tol, **own)

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


class NumbersCV:
    """Choice by the mean squared error."""

    _scores_name = "mse_path_"
    _sign = -1.0

    def _scorer(self, model: Any) -> Callable[..., float]:
        return weighted_scorer(mean_squared_error)


class LabelsCV:
    """Choice by a score, the accuracy unless another is asked for."""

    scoring: str | Callable[..., float] | None

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "scoring": [StrOptions(set(get_scorer_names())), callable, None],
    }
    _scores_name = "scores_"
    _sign = 1.0

    def _scorer(self, model: Any) -> Callable[..., float]:
        if self.scoring is None:
            return weighted_scorer(accuracy_score)
        return check_scoring(model, self.scoring)


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
    """Training rows of a fold with what their paths share, and test rows with what scores them."""

    training: TrainingData
    shared: Any
    X: Any
    y: np.ndarray
    params: dict[str, Any]


def _fold_path(course: _Course, fold: _FoldData, settings: Any) -> _FoldPath:
    """Train along the path on the fold's training rows and score on its test rows."""
    scores, n_neurons, objectives, n_unconverged = [], [], [], 0
    path = course.model._path(fold.training, settings.fresh(), course.alphas, fold.shared)
    for attributes, converged in path:
        model = copy(course.model)
        model._set_fitted(attributes)
        scores.append(float(course.score(model, fold.X, fold.y, **fold.params)))
        n_neurons.append(attributes["n_neurons_"])
        objectives.append(attributes["objective_"])
        n_unconverged += not converged
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

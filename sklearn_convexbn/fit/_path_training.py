"""Training of path networks: the problem on standardised columns, along descending alphas."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from sklearn_convexbn import solvers
from sklearn_convexbn.data._encoding import TrainingData
from sklearn_convexbn.data._standardization import standardization_of
from sklearn_convexbn.data._whitening import Whitening
from sklearn_convexbn.fit._automatic_alpha import effective_rows, estimated_error
from sklearn_convexbn.fit._callbacks import FitHooks
from sklearn_convexbn.fit._network import check_finite
from sklearn_convexbn.fit._path_network import PathNetwork, neurons_of_paths, recover_paths
from sklearn_convexbn.fit._training import FitSettings
from sklearn_convexbn.program._problem import Neurons, Problem
from sklearn_convexbn.solvers._base import COMPACT_TOLERANCE
from sklearn_convexbn.support._device import out_of_memory_explained
from sklearn_convexbn.support._sharding import ALL_HERE
from sklearn_convexbn.support._warnings import warn_caller

#: The path inside a fit: it begins at this alpha, or ten times the last one if that is less, has
#: this ratio between alphas, and so many rounds at most on all but the last.
FIRST_ALPHA, LEAST_SPAN, RATIO, ROUNDS_ON_THE_WAY = 1e-2, 10.0, 0.3, 5

#: ``alpha="auto"`` goes down to this over the root of the number of rows, unless sub-networks begin
#: to fit noise before.
LAST_SCALE = 0.015

#: From so many rows on this share of them says when, by a hold-out.
HOLDOUT_ROWS, HOLDOUT_SHARE = 750, 0.2

#: Else each counts as so many degrees of freedom: errors on other rows are those of three to five,
#: with 250 and 1000 rows of 12 sets.
FREEDOM = 4.0

#: Random starts of a round. More of them make a fit slower, and no better on new rows.
N_STARTS = 60


@dataclass(frozen=True, kw_only=True)
class PathSettings(FitSettings):
    """The parameters of a fit, already validated; names are those of the estimators."""

    inner_width: int
    norm: str


@dataclass(frozen=True)
class TrainedPaths:
    """What a fit at one alpha produced, and whether a callback has asked to stop there."""

    alpha: float
    network: PathNetwork
    result: solvers.Result
    solver: solvers.Solver
    stopped: bool = False


@dataclass(frozen=True)
class PreparedPaths:
    """A problem stated on standardised columns, and the solver it is for."""

    problem: Problem
    whitening: Whitening
    data: TrainingData
    solver: solvers.Solver
    signs: np.ndarray

    def at(self, alpha: float) -> PreparedPaths:
        """Return the same at an alpha."""
        return replace(self, problem=replace(self.problem, alpha=float(alpha)))

    def start(self, network: PathNetwork) -> Neurons | None:
        """Return the neurons of a network to start from; None for one of another shape."""
        d, C = len(self.whitening.mean), self.problem.n_outputs
        own = (len(self.signs), d, C)
        if (len(network.signs), len(network.linear), len(network.intercept)) != own:
            return None
        target = self.data.target
        return neurons_of_paths(network, self.whitening, target, self.problem.units)

    def trained(self, result: solvers.Result) -> TrainedPaths:
        """Return a result of the solver with its network, in the units of X and y.

        Raises
        ------
        ValueError
            If the network is not finite in these units.
        """
        network = recover_paths(result.neurons, self.whitening, self.signs, self.data.target)
        check_finite(
            hidden=(network.inner, network.linear, network.linear_offsets),
            output=(network.output, network.intercept),
        )
        return TrainedPaths(self.problem.alpha, network, result, self.solver)


def path_solver(solver: str | solvers.Solver) -> solvers.Solver:
    """Return the solver that the parameter stands for.

    Raises
    ------
    ValueError
        For another one than the pursuit.
    """
    if solver == "auto":
        return solvers.Pursuit(n_starts=N_STARTS)
    (chosen,) = solvers.named_solvers(solver, "relu")
    if not isinstance(chosen, solvers.Pursuit):
        raise ValueError(
            f"solver={chosen.name!r} does not handle path networks. Use solver='pursuit'."
        )
    return chosen


@out_of_memory_explained()
def state_path_problem(
    data: TrainingData,
    *,
    alpha: float,
    inner_width: int,
    norm: str,
    fit_intercept: bool,
    compact: bool = False,
) -> tuple[Problem, Whitening]:
    """State the problem on standardised columns; if `compact`, units are moved in float32."""
    import torch

    from sklearn_convexbn.program.units._paths import NORMS

    rows = data.rows.on_cpu()
    whitening = standardization_of(rows, data.weights)
    Z = torch.as_tensor(whitening.transform(rows))
    problem = Problem(
        units=NORMS[norm](Z, inner_width, torch.float32 if compact else torch.float64),
        Y=data.Y,
        p=data.weights / data.weights.sum(),
        loss=data.loss,
        alpha=alpha,
        fit_intercept=fit_intercept,
        activation="relu",
        gates=None,
        all_arrangements=False,
        spectrum=whitening.spectrum,
        shards=ALL_HERE,
    )
    return problem, whitening


def prepare_paths(data: TrainingData, settings: PathSettings) -> PreparedPaths:
    """State the problem of a fit, at an alpha of one."""
    from sklearn_convexbn.program.units._paths import inner_signs

    problem, whitening = state_path_problem(
        data,
        alpha=1.0,
        inner_width=settings.inner_width,
        norm=settings.norm,
        fit_intercept=settings.fit_intercept,
        compact=settings.tol >= COMPACT_TOLERANCE,
    )
    signs = np.array(inner_signs(settings.inner_width))
    return PreparedPaths(problem, whitening, data, path_solver(settings.solver), signs)


def alphas_down_to(alpha: float) -> np.ndarray:
    """Return the alphas of the path inside a fit, descending, the last of which is `alpha`."""
    span = max(FIRST_ALPHA / alpha, LEAST_SPAN)
    count = int(np.ceil(np.log(span) / -np.log(RATIO))) + 1
    return np.append(np.geomspace(alpha * span, alpha, count)[:-1], alpha)


def automatic_alphas(data: TrainingData) -> np.ndarray:
    """Return the alphas that ``alpha="auto"`` may go down to, descending."""
    rows = data.weights.sum() ** 2 / (data.weights**2).sum()  # that merged ones stand for
    return alphas_down_to(LAST_SCALE / float(np.sqrt(rows)))


def path_drawing(k: int) -> Callable[[int, np.random.RandomState], np.ndarray]:
    """Return what draws normal parameters (k, count) of units."""
    return lambda count, random_state: random_state.standard_normal((k, count))


def _ended(hooks: FitHooks, result: solvers.Result) -> bool:
    """End the hooks of one alpha; return whether a callback has asked to stop."""
    return hooks.end(lambda: hooks.attributes(result)) or hooks.stopped


def train_paths(
    prepared: PreparedPaths,
    settings: PathSettings,
    alphas: Sequence[float] | np.ndarray,
    *,
    start: Neurons | None = None,
    watch: Callable[[PreparedPaths, int], FitHooks] | None = None,
) -> Iterator[TrainedPaths]:
    """Yield the solution for each alpha; each starts from the one before.

    On all but the last alpha, and on that too if provisional, rounds are few and a gap that is
    left gives no warning. `watch` gives the hooks of a fit at one alpha and of so many rounds at
    most. Where a callback asks to stop, the path ends there, with a warning if alphas are left.
    """
    for number, alpha in enumerate(alphas):
        on_the_way = settings.provisional or number < len(alphas) - 1
        rounds = min(settings.max_iter, ROUNDS_ON_THE_WAY) if on_the_way else settings.max_iter
        here = prepared.at(alpha)
        hooks = None if watch is None else watch(here, rounds)
        result = solvers.run(
            here.solver,
            here.problem,
            solvers.RunSettings(
                tol=settings.tol,
                device=settings.device,
                random_directions=path_drawing(here.problem.units.n_parameters),
                random_state=settings.random_state,
                start=start,
                provisional=on_the_way,
            ),
            max_iter=rounds,
            verbose=settings.verbose,
            monitor=hooks,
        )
        start = result.neurons
        stopped = hooks is not None and _ended(hooks, result)
        if stopped and number < len(alphas) - 1:
            warn_caller(
                f"A callback asked to stop at alpha={alpha:g}, before the last one, "
                f"{alphas[-1]:g}. The network is that of the larger alpha, and usable.",
                ConvergenceWarning,
            )
        yield replace(here.trained(result), stopped=stopped)
        if stopped:
            break


def _estimate(prepared: PreparedPaths) -> Callable[[TrainedPaths], float]:
    """Return what estimates the error on new rows from the training loss."""
    rows = effective_rows(prepared.problem, float(prepared.data.weights.sum()))

    def error(trained: TrainedPaths) -> float:
        return estimated_error(prepared.at(trained.alpha).problem, trained.result, FREEDOM / rows)

    return error


def _holdout(others: Problem) -> Callable[[TrainedPaths], float]:
    """Return what tells the error on other rows."""
    return lambda trained: others.loss_of(trained.result.neurons)


def train_until_noise(
    prepared: PreparedPaths,
    settings: PathSettings,
    alphas: Sequence[float] | np.ndarray,
    *,
    start: Neurons | None = None,
    watch: Callable[[PreparedPaths, int], FitHooks] | None = None,
) -> TrainedPaths:
    """Return the solution for the alpha with the least estimate of the error on new rows.

    The way down the alphas ends where the estimate rises
    (:mod:`sklearn_convexbn.fit._automatic_alpha`). Rounds are few on it, and are on the rows that
    the estimate leaves; the fit at the alpha chosen goes on from its network, with all rows.
    """
    on_the_way, error = prepared, _estimate(prepared)
    whole, n = prepared.problem, len(prepared.problem.Y)
    if start is None and n >= HOLDOUT_ROWS:
        kept = int((1.0 - HOLDOUT_SHARE) * n)  # rows are in the order of hashes
        on_the_way = replace(prepared, problem=whole.part(slice(kept)))
        error = _holdout(whole.part(slice(kept, n)))
    least, best = np.inf, None
    quick = replace(settings, provisional=True)
    for trained in train_paths(on_the_way, quick, alphas, start=start, watch=watch):
        if trained.stopped:
            return trained
        found = error(trained)
        if best is not None and found > least:
            break
        least, best = found, trained
    assert best is not None
    start = best.result.neurons
    (last,) = train_paths(prepared, settings, [best.alpha], start=start, watch=watch)
    return last

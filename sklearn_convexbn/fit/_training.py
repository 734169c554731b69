"""From canonical data and settings to a solved problem: the path every fit takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from functools import partial
from numbers import Integral, Real
from typing import Any, Self

import numpy as np
from sklearn.utils import check_random_state

from sklearn_convexbn import solvers
from sklearn_convexbn.data._canonical import TargetScaling
from sklearn_convexbn.data._decomposition import Decomposition
from sklearn_convexbn.data._encoding import TrainingData
from sklearn_convexbn.data._patches import Patches, PatchGrid
from sklearn_convexbn.data._pooling import IDENTITY
from sklearn_convexbn.data._rows import RowBlocks, Rows
from sklearn_convexbn.data._whitening import ClippedCoordinates, Whitening
from sklearn_convexbn.fit._automatic_alpha import first_alpha
from sklearn_convexbn.fit._memory import are_stored, check_arrangements_fit, check_rows_fit
from sklearn_convexbn.fit._network import Network, check_finite, neurons_of_network, recover_network
from sklearn_convexbn.program._arrangements import (
    distinct_gates,
    enumerate_gates,
    random_directions,
)
from sklearn_convexbn.program._problem import Neurons, Problem
from sklearn_convexbn.program.units._whitened import WhitenedUnits
from sklearn_convexbn.solvers._base import COMPACT_TOLERANCE
from sklearn_convexbn.support._arrays import is_tensor, like
from sklearn_convexbn.support._compat import Interval, RealNotInt, StrOptions
from sklearn_convexbn.support._device import out_of_memory_explained, resolve_device

#: What the parameters that state a problem may be, as scikit-learn's constraints.
PROBLEM_CONSTRAINTS: dict[str, list[Any]] = {
    "alpha": [Interval(Real, 0, None, closed="neither")],
    "n_components": [
        Interval(Integral, 1, None, closed="left"),
        Interval(RealNotInt, 0, 1, closed="neither"),
        None,
    ],
    "shrinkage": [Interval(Real, 0, 1, closed="both"), StrOptions({"eps", "auto"})],
    "fit_intercept": ["boolean"],
    "device": [str, None],
    "random_state": ["random_state"],
}

#: The same for all parameters of a fit.
FIT_CONSTRAINTS: dict[str, list[Any]] = {
    **PROBLEM_CONSTRAINTS,
    "alpha": [*PROBLEM_CONSTRAINTS["alpha"], StrOptions({"auto"})],
    "clip": ["boolean"],
    "activation": [StrOptions({"relu", "gated_relu"})],
    "patches": [Patches, None],
    "solver": [StrOptions({"auto", *solvers.REGISTRY}), solvers.Solver],
    "n_gates": [Interval(Integral, 1, None, closed="left"), StrOptions({"all"})],
    "tol": [Interval(Real, 0, None, closed="neither")],
    "max_iter": [Interval(Integral, 1, None, closed="left")],
    "verbose": ["verbose"],
}

#: Whitened rows of this many numbers or more are stored in float32 if the tolerance allows it.
COMPACT_NUMBERS = 2**20


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """The parameters of a fit that networks of all kinds have, already validated.

    `provisional` is as in :class:`~sklearn_convexbn.solvers.RunSettings`.
    """

    solver: str | solvers.Solver
    fit_intercept: bool
    tol: float
    max_iter: int
    device: str
    random_state: np.random.RandomState
    verbose: int
    provisional: bool = False

    @classmethod
    def of(cls, values: dict[str, Any]) -> Self:
        """Pick the settings among parameters as a user gives them; the rest is left aside."""
        resolved = {
            **{field.name: values[field.name] for field in fields(cls) if field.name in values},
            "device": resolve_device(values["device"]),
            "random_state": check_random_state(values["random_state"]),
        }
        return cls(**resolved)

    def fresh(self) -> Self:
        """Return the settings with a copy of their random state, to draw from."""
        return replace(self, random_state=deepcopy(self.random_state))


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(FitSettings):
    """The same, with those that shape the problem of a network with batch normalization."""

    alpha: float | str
    n_components: int | float | None
    shrinkage: float | str
    activation: str
    n_gates: int | str
    clip: bool = False

    def on(self, data: TrainingData) -> TrainingSettings:
        """Return the settings with the alpha that "auto" begins with on some data."""
        if self.alpha != "auto":
            return self
        return replace(self, alpha=first_alpha(total_weight(data)))


def total_weight(data: TrainingData) -> float:
    """Return the total weight of the rows, on all processes."""
    return float(data.shards.total(float(data.weights.sum())))


@dataclass(frozen=True)
class Trained:
    """What a fit produced."""

    network: Network
    result: solvers.Result
    whitening: Whitening
    solver: solvers.Solver


@dataclass(frozen=True)
class Prepared:
    """A problem stated on its data, and the solver it is for.

    Attributes
    ----------
    problem : Problem
        With its list of arrangements, if the program has one.
    whitening : Whitening
    target : TargetScaling or None
    solver : Solver
    patches : PatchGrid or None
        Of a convolutional network.
    coordinates : ClippedCoordinates or None
        Of a network that clips its inputs.
    """

    problem: Problem
    whitening: Whitening
    target: TargetScaling | None
    solver: solvers.Solver
    patches: PatchGrid | None = None
    coordinates: ClippedCoordinates | None = None

    def start(self, network: Network) -> Neurons | None:
        """Return the neurons of a network in the units of X and y, to start from.

        None for a network of other numbers of features, outputs or components.
        """
        if (
            network.coefs[0].shape[0] != len(self.whitening.mean)
            or network.patches != self.patches
            or network.coefs[1].shape[1] != self.problem.n_outputs
            or network.n_components not in (None, self.whitening.n_components)
        ):
            return None
        return neurons_of_network(
            network, self.whitening, gates=self.problem.gates, target=self.target
        )

    def trained(self, result: solvers.Result) -> Trained:
        """Return a result of the solver with its network, in the units of X and y.

        Raises
        ------
        ValueError
            If the network is not finite in these units.
        """
        gates = self.problem.gates if self.problem.activation == "gated_relu" else None
        network = recover_network(
            result.neurons,
            self.whitening,
            gates=gates,
            target=self.target,
            patches=self.patches,
            coordinates=self.coordinates,
        )
        hidden, output = zip(network.coefs, network.intercepts, strict=True)
        check_finite(hidden=hidden, output=output)
        return Trained(network, result, self.whitening, self.solver)


def state_problem(
    data: TrainingData,
    *,
    alpha: float,
    fit_intercept: bool,
    n_components: int | float | None,
    shrinkage: float | str,
    activation: str = "relu",
    in_blocks: bool = False,
    device: str | None = None,
    compact: bool = False,
    decomposition: Decomposition | None = None,
) -> tuple[Problem, Whitening]:
    """Whiten the rows and state the problem, without a list of arrangements.

    The problem is in NumPy arrays; `in_blocks` on a torch `device`, or with None where the data
    are, and whitened rows that there is not the memory for are computed when they are read.
    `compact` keeps whitened rows in float32 where they are many and outnumber their columns.
    `decomposition` is that of these rows, if it is known.
    """
    rows = data.rows.to(device) if in_blocks else data.rows.on_cpu()
    setting = (n_components, shrinkage)
    if decomposition is None:
        decomposition = _decomposed(data, rows, [setting])
    whitening = decomposition.whitening(*setting)
    Z = _whitened(data, rows, whitening, in_blocks=in_blocks, compact=compact)
    pooling = IDENTITY if data.patches is None else data.patches.pooling
    problem = Problem(
        units=WhitenedUnits(Z, data.shards, pooling),
        Y=like(data.Y, Z[0:0]),
        p=like(data.weights / data.shards.total(data.weights.sum()), Z[0:0]),
        loss=data.loss,
        alpha=alpha,
        fit_intercept=fit_intercept,
        activation=activation,
        gates=None,
        all_arrangements=False,
        spectrum=whitening.spectrum,
        shards=data.shards,
    )
    return problem, whitening


def _cut(rows: Rows, patches: PatchGrid | None) -> RowBlocks:
    """Return rows, or the patches of rows that are images."""
    return rows if patches is None else patches.rows(rows)


def _whitened(
    data: TrainingData, rows: Rows, whitening: Whitening, *, in_blocks: bool, compact: bool
) -> Any:
    """Return whitened rows, stored or computed when they are read: see :func:`state_problem`."""
    cut, k = _cut(rows, data.patches), whitening.n_components + 1
    n = data.shards.total(float(len(cut)))  # what all processes decide alike by
    compact = compact and n * k >= COMPACT_NUMBERS and n >= 2 * k
    if not in_blocks or data.shards.size > 1 or are_stored(len(cut), k, rows, compact=compact):
        check_rows_fit(len(cut), k, compact=compact)
        return whitening.transform(cut, compact=compact)
    import torch

    from sklearn_convexbn.data._whitened_rows import WhitenedRows

    cut = cut if is_tensor(rows.example) else _cut(rows.to("cpu"), data.patches)
    return WhitenedRows(cut, whitening, torch.float32 if compact else torch.float64)


def decomposed(data: TrainingData, settings: Sequence[TrainingSettings]) -> Decomposition:
    """Decompose rows once for fits of several settings of n_components and shrinkage."""
    pairs = [(each.n_components, each.shrinkage) for each in settings]
    return _decomposed(data, data.rows.on_cpu(), pairs)


def _decomposed(
    data: TrainingData, rows: Rows, settings: Sequence[tuple[int | float | None, float | str]]
) -> Decomposition:
    """Decompose the rows of some data, or their patches, for pairs of settings."""
    weights, by_column = data.weights, True
    if data.patches is not None:  # the values of a patch share one unit, columns have their own
        weights, by_column = data.patches.weights(weights), data.patches.is_whole
    cut = _cut(rows, data.patches)
    return Decomposition.of(cut, weights, settings, by_column=by_column, shards=data.shards)


def train_path(
    data: TrainingData,
    settings: TrainingSettings,
    alphas: Sequence[float] | np.ndarray,
    decomposition: Decomposition | None = None,
) -> Iterator[Trained]:
    """Yield the solution for each alpha; each starts from the one before.

    The rows are whitened, and arrangements drawn, once; ``settings.alpha`` is not used.

    Parameters
    ----------
    data : TrainingData
    settings : TrainingSettings
    alphas : sequence of float
        Descending.
    decomposition : Decomposition, default=None
        Of :func:`decomposed`, if it is known.
    """
    first, start = replace(settings, alpha=float(alphas[0])), None
    prepared = prepare(data, first, decomposition)
    for alpha in alphas:
        if alpha != prepared.problem.alpha:
            problem = replace(prepared.problem, alpha=float(alpha))
            solver = solvers.first_capable(_solvers(data, settings), problem)
            prepared = replace(prepared, problem=problem, solver=solver)
        trained = solve(prepared, settings, start=start)
        start = trained.result.neurons
        yield trained


@out_of_memory_explained()
def prepare(
    data: TrainingData, settings: TrainingSettings, decomposition: Decomposition | None = None
) -> Prepared:
    """Choose the solver, whiten as it takes rows, and state the problem.

    Raises
    ------
    ValueError
        If the solver does not handle the problem, or it does not fit into memory.
    MemoryError
        If it does not fit into the memory of a torch device.
    """
    choice = _solvers(data, settings)
    n, d = _cut(data.rows, data.patches).shape
    many = data.shards.size > 1 or n > 2 * d
    in_blocks = many and all(
        solver.reads_blocks and not _has_list(solver, settings.activation) for solver in choice
    )
    problem, whitening = state_problem(
        data,
        in_blocks=in_blocks,
        device=None if settings.device == "cpu" else settings.device,
        compact=in_blocks and settings.tol >= COMPACT_TOLERANCE,
        alpha=float(settings.on(data).alpha),
        fit_intercept=settings.fit_intercept,
        n_components=settings.n_components,
        shrinkage=settings.shrinkage,
        activation=settings.activation,
        decomposition=decomposition,
    )
    solver = solvers.first_capable(choice, problem)
    problem = with_arrangements(problem, whitening, solver, settings)
    coordinates = whitening.clipped_to(data.rows, data.shards) if settings.clip else None
    return Prepared(problem, whitening, data.target, solver, data.patches, coordinates)


@out_of_memory_explained()
def solve(
    prepared: Prepared,
    settings: TrainingSettings,
    *,
    start: Neurons | None = None,
    monitor: solvers.Monitor | None = None,
    leave: Callable[[solvers.Result], bool] | None = None,
    begin: float | None = None,
) -> Trained:
    """Solve a prepared problem and recover the network.

    `leave` and `begin` are as in :func:`sklearn_convexbn.solvers.run`.

    Raises
    ------
    MemoryError
        If it does not fit into the memory of a torch device.
    """
    whitening = prepared.whitening
    run_settings = solvers.RunSettings(
        tol=settings.tol,
        device=settings.device,
        random_directions=partial(random_directions, whitening),
        random_state=settings.random_state,
        start=start,
        provisional=settings.provisional,
    )
    result = solvers.run(
        prepared.solver,
        prepared.problem,
        run_settings,
        max_iter=settings.max_iter,
        verbose=settings.verbose,
        monitor=monitor,
        leave=leave,
        begin=begin,
    )
    return prepared.trained(result)


def _solvers(data: TrainingData, settings: TrainingSettings) -> list[solvers.Solver]:
    """Return the solvers to choose from once the rows are whitened."""
    n, d = _cut(data.rows, data.patches).shape
    outline = solvers.Outline(
        activation=settings.activation,
        n_rows=n,
        n_columns=d,
        n_outputs=data.Y.shape[1],
        pooled=data.patches is not None and not data.patches.pooling.is_identity,
        spread=data.shards.size > 1,
    )
    return solvers.candidates(settings.solver, outline)


def check_for_shards(values: dict[str, Any]) -> None:
    """Refuse parameters that a fit to rows on several processes cannot have.

    Raises
    ------
    ValueError
    """
    if values["patches"] is not None:
        raise ValueError("Inside row_shards patches must be None: rows are no images there.")
    solver, activation, seed = (values[n] for n in ("solver", "activation", "random_state"))
    if activation != "relu" or not solvers.named_solvers(solver, activation)[-1].reads_blocks:
        raise ValueError(
            "Inside row_shards the solver is the pursuit, for activation='relu'. Got "
            f"solver={solver!r} and activation={activation!r}."
        )
    if not (seed is None or isinstance(seed, Integral)):
        raise ValueError(
            "Inside row_shards random_state must be an int or None, which all processes draw the "
            f"same numbers from. Got {seed!r}."
        )


def _has_list(solver: solvers.Solver, activation: str) -> bool:
    """Return whether the program that a solver is for has a list of arrangements."""
    return activation != "relu" or solver.needs_arrangements


def with_arrangements(
    problem: Problem, whitening: Whitening, solver: solvers.Solver, settings: TrainingSettings
) -> Problem:
    """Give the problem its list of arrangements where the program or the solver needs one."""
    if not _has_list(solver, problem.activation):
        return problem
    every = settings.n_gates == "all"
    if every:
        gates = enumerate_gates(problem.Z)
    else:
        check_arrangements_fit(problem, int(settings.n_gates))
        gates = problem.Z[:0].T
        while gates.shape[1] == 0:  # a few draws may all be of units that are never active
            draws = random_directions(whitening, int(settings.n_gates), settings.random_state)
            gates = distinct_gates(problem.Z, draws)
    return replace(problem, gates=gates, all_arrangements=every)

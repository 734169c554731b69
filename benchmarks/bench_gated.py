"""Time to a certified accuracy on the gated ReLU group lasso, against other solvers.

The program is stated in ``_suite/objectives.py``. ``alpha`` is given as a fraction of
``alpha_max``, the smallest value for which ``S = 0`` is optimal.

Every answer is judged by the same code: a primal value, a dual bound that holds
whatever the answer is, and their relative gap ``(P - D) / P``.  A solver is run on
a ladder of decreasing tolerances, each rung from scratch, and its time for a target
gap is that of the first rung whose answer the judge accepts.  The time is that of the
solver call plus what the solver needs built before it (the explicit ``n x P (r + 1)``
matrix, or the compilation to cone form); that second part is also given by itself.
Each call runs in a forked process, which is ended at the time limit.  Imports and
just-in-time compilation are not timed.

Usage::

    python benchmarks/bench_gated.py [RESULTS_FOLDER] [--limit 60] [--gates 500]
    python benchmarks/bench_gated.py --check

The concrete and airfoil data are read from ``uci/NAME.npz`` (arrays ``X`` and ``y``)
in the folder named by the environment variable SKLEARN_CONVEXBN_DATA, or else in
``../shared/data`` beside the repository.  Where they are missing, scikit-learn's
diabetes data stand in for them.
"""

from __future__ import annotations

import _suite  # noqa: F401 - first: it sets the number of threads

# isort: split
import argparse
import sys
from collections.abc import Sequence

from _suite.data import has
from _suite.gated_solvers import SOLVERS
from _suite.objectives import GatedObjective, Loss
from _suite.running import agrees, run_limited, warm_up
from _suite.solvers import Solver
from _suite.tables import Report, fill, run_command


def load_objectives(n_gates: int) -> list[GatedObjective]:
    """Return the benchmark's objectives, with diabetes for data that are missing."""
    objectives = []
    for name in ("concrete", "airfoil"):
        if has(name):
            objectives.append(GatedObjective.of(name, "squared", n_gates))
        else:
            print(f"note: no uci/{name}.npz in the data folder; diabetes stands in")
    if len(objectives) < 2:
        objectives.append(GatedObjective.of("diabetes", "squared", n_gates))
    objectives.append(GatedObjective.of("breast_cancer", "logistic", n_gates))
    return objectives


def small_objectives(losses: Sequence[Loss], n_gates: int, fraction: float) -> list[GatedObjective]:
    """Return diabetes with each loss."""
    return [GatedObjective.of("diabetes", loss, n_gates).at(fraction) for loss in losses]


def check(
    solvers: Sequence[Solver], n_gates: int = 50, tight: float = 3e-6, accuracy: float = 1e-5
) -> bool:
    """Say whether every solver's objective, at a tight tolerance, is CVXPY's."""
    reference = next(s for s in SOLVERS if s.name == "cvxpy")
    agree = True
    losses: tuple[Loss, ...] = ("squared", "logistic")
    warm_up(solvers, small_objectives(losses, 20, 0.1))
    for loss in losses:
        for fraction in (0.1, 0.01):
            objective = small_objectives([loss], n_gates, fraction)[0]
            exact = run_limited(reference, objective, 1e-9, 600.0).S
            assert exact is not None, "CVXPY has no answer"
            value = objective.judge(exact)
            print(
                f"{loss}, {fraction:g} alpha_max: CVXPY {value.primal:.9f}, "
                f"dual bound {value.dual:.9f}"
            )
            for solver in solvers:
                agree &= agrees(solver, objective, value.primal, tight, accuracy)
    return agree


def run_table(solvers: Sequence[Solver], options: argparse.Namespace) -> None:
    """Fill the table."""
    objectives = [
        o for o in load_objectives(options.gates) if not options.data or o.name in options.data
    ]
    warm_up(solvers, small_objectives(sorted({o.loss for o in objectives}), 20, 0.1))
    report = Report(
        title="Gated ReLU group lasso: time to a certified relative gap",
        words="A gap is (primal - dual) / primal of an answer, by the same code for all.",
        solvers=solvers,
        limit=options.limit,
        objectives=objectives,
        courses=[],
    )
    cases = [(fraction, o.at(fraction)) for o in objectives for fraction in options.fractions]
    fill(report, cases, options, options.results / options.name)


if __name__ == "__main__":
    sys.exit(
        run_command(
            __doc__ or "",
            "bench_gated",
            SOLVERS,
            check=check,
            run_table=run_table,
            limit=60.0,
            gates=500,
            targets=(1e-3, 1e-5),
        )
    )

"""Time to a relative error on exact ReLU programs of fixed arrangements, against other solvers.

The program is stated in ``_suite/objectives.py``. ``alpha`` is given as a fraction of its own
``alpha_max``, the smallest value for which zero is optimal.

Every answer is judged by the same code. Its blocks are moved to the nearest points of their
cones, outside the solver's clock, and the value ``P`` of what comes out, which is feasible, is
compared with a lower bound ``D`` of the optimum: the gap is ``(P - D) / P``. The bound is the
dual value of an answer of this package at a far tighter tolerance than the targets, computed by
the judge from that answer alone; it is within 1e-5 of the optimum or the program ends with an
error. How far the answer was outside its cones before it was moved is reported beside the times.

A solver is run on a ladder of decreasing tolerances (scnn: increasing numbers of steps), each
rung from scratch, and its time for a target is that of the first rung whose answer the judge
accepts. Each call runs in a forked process, which is ended at the time limit. Imports are not
timed.

Usage::

    python benchmarks/bench_lists.py [RESULTS_FOLDER] [--limit 30] [--gates 100]
    python benchmarks/bench_lists.py --check

Data are found as ``bench_gated.py`` finds them; those that are missing are left out.
"""

from __future__ import annotations

import _suite  # noqa: F401 - first: it sets the number of threads

# isort: split
import argparse
import sys
from collections.abc import Sequence

from _suite.data import has
from _suite.list_solvers import SOLVERS, Ours
from _suite.objectives import ListObjective
from _suite.running import agrees, run_limited, warm_up
from _suite.solvers import Solver
from _suite.tables import Report, fill, run_command

DATA = ("diabetes", "energy", "concrete", "airfoil")
REFERENCE_TOLS, REFERENCE_GAP = (1e-9, 1e-10, 1e-11, 1e-12), 1e-5

WORDS = """Gap of an answer: (P - D) / P, with P its value once its blocks are moved to the nearest
points of their cones, and D a lower bound of the optimum, the same for all solvers. In brackets
how far P of the answer that gave D is above D."""


def with_bound(objective: ListObjective) -> tuple[ListObjective, float]:
    """Return the objective with its lower bound, and the gap of the answer that gave it."""
    answers = [run_limited(Ours(), objective, tol, 600.0).S for tol in REFERENCE_TOLS]
    bounded = [objective.with_bound_of(S) for S in answers if S is not None]
    best = max(bounded, key=lambda candidate: candidate.bound)
    gap = min(best.judge(S).gap for S in answers if S is not None)
    if gap > REFERENCE_GAP:
        raise RuntimeError(f"{objective.name}: the lower bound is only within {gap:.1e}.")
    return best, gap


def small_objective(n_gates: int, fraction: float) -> ListObjective:
    """Return diabetes on a short list."""
    return ListObjective.of("diabetes", "squared", n_gates).at(fraction)


def check(
    solvers: Sequence[Solver], n_gates: int = 15, tight: float = 1e-4, accuracy: float = 1e-4
) -> bool:
    """Say whether every solver's objective is CVXPY's, and within its own bound."""
    reference = next(s for s in SOLVERS if s.name == "cvxpy")
    agree = True
    warm_up(solvers, [small_objective(5, 0.1)])
    for fraction in (0.1, 0.01):
        objective = small_objective(n_gates, fraction)
        exact = run_limited(reference, objective, 1e-10, 600.0).S
        assert exact is not None, "CVXPY has no answer"
        objective = objective.with_bound_of(exact)
        value = objective.judge(exact)
        print(f"{fraction:g} alpha_max: CVXPY {value.primal:.9f}, dual bound {value.dual:.9f}")
        for solver in solvers:
            agree &= agrees(solver, objective, value.primal, tight, accuracy)
    return agree


def run_table(solvers: Sequence[Solver], options: argparse.Namespace) -> None:
    """Fill the table."""
    names = [name for name in DATA if not options.data or name in options.data]
    for name in names:
        if not has(name):
            print(f"note: no uci/{name}.npz in the data folder; {name} is left out")
    lists = [ListObjective.of(name, "squared", options.gates) for name in names if has(name)]
    warm_up(solvers, [small_objective(5, 0.1)])
    cases, gaps = [], []
    for objective in lists:
        for fraction in options.fractions:
            bounded, gap = with_bound(objective.at(fraction))
            cases.append((fraction, bounded))
            gaps.append(f"{objective.name} {fraction:g}: {gap:.0e}")
    report = Report(
        title=f"Exact ReLU on {options.gates} arrangements: time to a relative gap",
        words=f"{WORDS} ({'; '.join(gaps)})",
        solvers=solvers,
        limit=options.limit,
        objectives=lists,
        courses=[],
        violations=True,
    )
    fill(report, cases, options, options.results / options.name)


if __name__ == "__main__":
    sys.exit(
        run_command(
            __doc__ or "",
            "bench_lists",
            SOLVERS,
            check=check,
            run_table=run_table,
            limit=30.0,
            gates=100,
            targets=(1e-3, 1e-4),
        )
    )

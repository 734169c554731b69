"""Time to a relative error on exact ReLU programs of fixed arrangements, against other solvers.

The program is stated in ``_suite/objectives.py``, ladders of solvers and times in the README. The
lower bound is the dual value of an answer of this package at a far tighter tolerance than the
targets, computed by the judge from that answer alone, and within 1e-5 of the optimum.
"""

import sys
from collections.abc import Iterable
from functools import cache

from _suite.data import has
from _suite.ladders import Entry, LadderBenchmark
from _suite.objectives import ListObjective
from _suite.solvers import LISTS
from _suite.store import Cell

DATA = ("diabetes", "energy", "concrete", "airfoil")
REFERENCE_TOLS, REFERENCE_GAP = (1e-9, 1e-10, 1e-11, 1e-12), 1e-5

WORDS = """Gap of an answer: (P - D) / P, with P its value once its blocks are moved to the nearest
points of their cones, and D a lower bound of the optimum, the same for all solvers. In brackets
how far P of the answer that gave D is above D."""
VIOLATIONS = """## Largest cone violation of the answer returned

Of the answer that reached the gap, else of the last within the limit."""
load = cache(ListObjective.of)


@cache
def bounded(name: str, n_gates: int, fraction: float) -> tuple[ListObjective, float]:
    """Return an objective with its lower bound, and the gap of the answer that gave it."""
    objective = load(name, "squared", n_gates).at(fraction)
    answers = [LISTS[0].solve_apart(objective, tol, 600.0).S for tol in REFERENCE_TOLS]
    bounded = [objective.with_bound_of(S) for S in answers if S is not None]
    best = max(bounded, key=lambda candidate: candidate.bound)
    gap = min(best.judge(S).gap for S in answers if S is not None)
    if gap > REFERENCE_GAP:
        raise RuntimeError(f"{name}: the lower bound is only within {gap:.1e}.")
    return best, gap


def violation(row: dict[str, Entry], name: str) -> str:
    """Return how far a solver's answer was outside its cones."""
    value = row.get(name, {}).get("violation")
    return "-" if value is None else f"{value:.0e}"


class Lists(LadderBenchmark):
    name = "bench_lists"
    solvers = LISTS
    limit, gates, targets = 30.0, 100, (1e-3, 1e-4)

    def data(self) -> list[str]:
        return [name for name in DATA if has(name)]

    def objective(self, name: str, fraction: float) -> ListObjective:
        return bounded(name, self.options.gates, fraction)[0]

    def measure(self, cell: Cell) -> Cell:
        gap = bounded(cell["data"], self.options.gates, cell["fraction"])[1]
        return super().measure(cell) | {"bound_gap": float(f"{gap:.0e}")}

    def small_objectives(self, n_gates: int) -> Iterable[ListObjective]:
        for fraction in (0.1, 0.01):
            yield load("diabetes", "squared", n_gates).at(fraction)

    def report(self, cells: list[Cell]) -> Iterable[str]:
        gaps = [f"{c['data']} {c['fraction']:g}: {c['bound_gap']:.0e}" for c in cells]
        yield f"Exact ReLU on {self.options.gates} arrangements: time to a relative gap"
        yield f"{WORDS} ({'; '.join(dict.fromkeys(gaps))})"
        yield from self.times(cells)
        yield f"{VIOLATIONS}\n\n{self.table(cells, violation)}"
        yield from self.reasons(cells)


if __name__ == "__main__":
    sys.exit(Lists().main())

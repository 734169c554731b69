"""Time to a certified accuracy on the gated ReLU group lasso, against other solvers.

The program is stated in ``_suite/objectives.py``, ladders of solvers and times in the README.
"""

import sys
from collections.abc import Iterable
from functools import cache

from _suite.data import has
from _suite.ladders import LadderBenchmark
from _suite.objectives import GatedObjective, Loss
from _suite.solvers import GATED
from _suite.store import Cell

LOSSES: dict[str, Loss] = {"breast_cancer": "logistic"}
load = cache(GatedObjective.of)


class Gated(LadderBenchmark):
    name = "bench_gated"
    solvers = GATED
    limit, gates, targets = 60.0, 500, (1e-3, 1e-5)

    def data(self) -> list[str]:
        there = [name for name in ("concrete", "airfoil") if has(name)]
        asked = "diabetes" in (self.options.data or []) or len(there) < 2
        return [*there, *(["diabetes"] if asked else []), "breast_cancer"]

    def objective(self, name: str, fraction: float) -> GatedObjective:
        return load(name, LOSSES.get(name, "squared"), self.options.gates).at(fraction)

    def small_objectives(self, n_gates: int) -> Iterable[GatedObjective]:
        losses: tuple[Loss, ...] = ("squared", "logistic")
        for loss in losses:
            for fraction in (0.1, 0.01):
                yield load("diabetes", loss, n_gates).at(fraction)

    def report(self, cells: list[Cell]) -> Iterable[str]:
        yield "Gated ReLU group lasso: time to a certified relative gap"
        yield "A gap is (primal - dual) / primal of an answer, by the same code for all."
        yield from self.times(cells)
        yield from self.reasons(cells)


if __name__ == "__main__":
    sys.exit(Gated().main())

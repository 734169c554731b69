"""An interior-point solver of the ReLU program with one output on a list of arrangements.

Its cone constraints rule out the methods for gated programs. A structured interior-point method
measured far faster on them than augmented Lagrangians or ADMM.
"""

from __future__ import annotations

from collections.abc import Iterator

from sklearn_convexbn.program._problem import Problem
from sklearn_convexbn.solvers._base import Iterate, RunSettings, Solver


class InteriorPoint(Solver):
    """Solve the ReLU program with one output on a list of arrangements, by an interior point.

    In torch, in float64.
    """

    name = "interior_point"
    several_outputs = False

    def unsupported(self, problem: Problem) -> str:
        if problem.activation != "relu":
            return f"activation={problem.activation!r}"
        return ""

    def iterates(self, problem: Problem, settings: RunSettings) -> Iterator[Iterate]:
        from sklearn_convexbn.solvers._interior_rounds import interior_point

        return interior_point(problem, settings)

"""Newton's method on the scales of the gates, for gated programs with one output.

The method is :mod:`_group_newton`'s, for any group lasso; here a gate is a group.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from sklearn_convexbn.program._problem import Neurons, Problem
from sklearn_convexbn.solvers._base import Iterate, RunSettings, Solver
from sklearn_convexbn.solvers._fista import FISTA
from sklearn_convexbn.support._arrays import Array, as_numpy


class GroupNewton(Solver):
    """Solve the gated program with one output by Newton steps on one scale a gate.

    In float64, but for factors that only speed it up; in NumPy on the CPU, in torch elsewhere.
    Where these steps stop short of `tol`, as losses of nearly no curvature make them, FISTA goes
    on.
    """

    name = "group_newton"
    several_outputs = False

    def unsupported(self, problem: Problem) -> str:
        if problem.activation != "gated_relu":
            return f"activation={problem.activation!r}"
        return ""

    def iterates(self, problem: Problem, settings: RunSettings) -> Iterator[Iterate]:
        from sklearn_convexbn.solvers._group_newton import group_newton

        def array(a: np.ndarray, dtype: type = np.float64) -> Array:
            a = np.ascontiguousarray(a, dtype=dtype)
            if settings.device == "cpu":
                return a
            import torch

            return torch.as_tensor(a, device=settings.device)

        start = None
        if settings.start is not None and settings.start.gates is not None:
            which, group = np.unique(settings.start.gates, return_inverse=True)
            S = np.zeros((len(which), problem.Z.shape[1]))
            np.add.at(S, group.ravel(), settings.start.directions * settings.start.weights)
            start = (array(which, np.int64), array(S), float(settings.start.intercept[0]))
        rounds = group_newton(
            array(problem.Z),
            array(problem.patterns, np.float32),
            start=start,
            tol=1e-3 * settings.tol,  # so that the driver's certificate decides, not this one
            **problem.converted(array),
        )
        for found in rounds:
            q, b = as_numpy(found.S), np.array([found.b])
            gates = as_numpy(found.active).astype(np.intp)
            neurons = Neurons.from_products(q, np.ones((len(q), 1)), b, gates)
            stalled = found.stalled or found.gap <= 1e-3 * settings.tol
            if stalled and found.gap > settings.tol:
                yield Iterate(neurons)
                yield from FISTA().iterates(problem, replace(settings, start=neurons))
                return
            if found.gap > 1.01 * settings.tol:
                # Looked at all gates already; the driver looks for itself where it may stop.
                Lambda = as_numpy(found.Lambda)
                yield Iterate(neurons, Lambda, found.largest, proven=True)
            else:
                yield Iterate(neurons, stalled=stalled)

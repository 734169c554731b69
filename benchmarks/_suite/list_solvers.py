"""Solvers of the exact ReLU program on a list; each answers with S+, S- of shape (2, P, r + 1)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np

from _suite.data import Array
from _suite.gated_solvers import places
from _suite.objectives import Loss, Objective
from _suite.solvers import Answer, Clarabel, OwnSolver, Solver, clock, decades
from sklearn_convexbn._problem import Neurons


class Ours(OwnSolver):
    """The package's solver ``interior_point``."""

    activation = "relu"

    def blocks(self, objective: Objective, neurons: Neurons) -> Array:
        """Return S (2, P, r + 1)."""
        S = np.zeros((2, objective.masks.shape[1], objective.Z.shape[1]))
        sign = (neurons.weights[:, 0] < 0).astype(int)
        np.add.at(S, (sign, neurons.gates), neurons.directions * np.abs(neurons.weights))
        return S


class SCNN(Solver):
    """scnn's augmented Lagrangian method on its ReLU model, in double precision.

    The ladder holds numbers of steps, for its own stopping rule does not tell the accuracy. Its
    multipliers are updated with the violated part of the constraints only (``constraint_gaps``
    of its ``AL_MLP``), and so never fall: it ends some 5e-4 above the optimum.
    """

    name = "scnn"
    ladder = (1000, 1500, 2000, 3000, 4500, 7000, 15_000)
    accuracy = 1e-3
    packages = ("pyscnn",)

    def unsupported(self, loss: Loss) -> str | None:
        return "scnn's convex models have the squared loss only" if loss == "logistic" else None

    def solve(self, objective: Objective, rung: float, limit: float) -> Answer:
        """Run a number of steps; subproblems are solved better when there are more."""
        from scnn.metrics import Metrics
        from scnn.models import ConvexReLU
        from scnn.optimize import optimize_model
        from scnn.regularizers import NeuronGL1
        from scnn.solvers import AL

        logging.disable(logging.WARNING)  # it says when it stops at the number of steps
        start = clock()
        model = ConvexReLU(objective.gates, c=1, bias=False)
        tol = (objective.alpha * min(0.3, 1000.0 / rung)) ** 2
        model, _ = optimize_model(
            model,
            AL(model, max_primal_iters=int(rung), tol=tol, constraint_tol=1e-8),
            Metrics(objective=False, grad_norm=False),
            objective.Z,
            objective.y,
            regularizer=NeuronGL1(objective.alpha),
            return_convex=True,
            unitize_data=False,
            dtype="float64",
        )
        seconds = clock() - start
        S = np.zeros((2, objective.masks.shape[1], objective.Z.shape[1]))
        S[:, places(model, objective)] = np.stack([blocks[0] for blocks in model.parameters])
        return Answer(S, seconds)


class Adelie(Solver):
    """adelie's group lasso on its matrix ``convex_relu`` with a linear constraint a block."""

    name = "adelie"
    ladder = decades(-4, -12, 1)
    packages = ("adelie",)

    def solve(self, objective: Objective, rung: float, limit: float) -> Answer:
        """Run at one penalty until coordinate descent changes little."""
        import adelie

        n, width = objective.Z.shape
        n_groups = objective.masks.shape[1]
        family = adelie.glm.gaussian if objective.loss == "squared" else adelie.glm.binomial
        start = clock()
        matrix = adelie.matrix.convex_relu(
            np.asfortranarray(objective.Z), np.asfortranarray(objective.masks > 0)
        )
        cones = [
            np.ascontiguousarray(sign[:, None] * objective.Z)
            for sign in (2.0 * objective.masks - 1.0).T
        ]
        bounds = np.zeros(n), np.full(n, np.inf)
        many = {"max_iters": 10_000}  # its default, 100, is not enough for some cones
        built = clock()
        state = adelie.grpnet(
            matrix,
            family(objective.y),
            constraints=[
                adelie.constraint.linear(A, *bounds, configs=many) for A in [*cones, *cones]
            ],
            groups=np.arange(0, 2 * n_groups * width, width),
            penalty=np.ones(2 * n_groups),
            lmda_path=np.array([objective.alpha]),
            intercept=False,
            early_exit=False,
            progress_bar=False,
            tol=rung,
            irls_tol=rung,
        )
        if state.betas.shape[0] == 0:
            return Answer(None, clock() - built, built - start, "adelie stopped with no solution")
        S = state.betas[-1].toarray().reshape(2, n_groups, width)
        return Answer(S, clock() - built, built - start)


class ListClarabel(Clarabel):
    """Clarabel on the exact ReLU program."""

    ladder = (1e-3, 1e-4, 1e-5, 1e-6, 1e-8)

    def state(self, objective: Objective) -> tuple[Any, Callable[[], Array | None]]:
        """Return the program in CVXPY, and a function that reads ``S+`` and ``S-``."""
        import cvxpy as cp

        Z, masks, n = objective.Z, objective.masks, len(objective.y)
        S, T = (cp.Variable((masks.shape[1], Z.shape[1])) for _ in range(2))
        # Of the forms that were tried this is the one that Clarabel solves soonest.
        F = cp.sum(cp.multiply(masks, Z @ (S - T).T), axis=1)
        if objective.loss == "squared":
            fit = cp.sum_squares(F - objective.y) / (2 * n)
        else:
            fit = cp.sum(cp.logistic(F) - cp.multiply(objective.y, F)) / n
        penalty = objective.alpha * sum(cp.sum(cp.norm(V, 2, axis=1)) for V in (S, T))
        cones = [cp.multiply(2.0 * masks - 1.0, Z @ V.T) >= 0 for V in (S, T)]

        def read() -> Array | None:
            return None if S.value is None else np.stack([S.value, T.value])

        return cp.Problem(cp.Minimize(fit + penalty), cones), read


SOLVERS: tuple[Solver, ...] = (Ours(), SCNN(), Adelie(), ListClarabel())

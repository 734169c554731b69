"""Solvers of the gated program; each answers with S of shape (P, r + 1)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from _suite.data import Array
from _suite.objectives import (
    Loss,
    Objective,
    correlate,
    dual_value,
    group_scores,
    predict,
    primal_value,
    residual,
)
from _suite.solvers import (
    Answer,
    Clarabel,
    OwnSolver,
    Solver,
    clock,
    decades,
    explicit_matrix,
)
from sklearn_convexbn._problem import Neurons


class Ours(OwnSolver):
    """The package's solver of gated programs."""

    activation = "gated_relu"

    def blocks(self, objective: Objective, neurons: Neurons) -> Array:
        """Return S (P, r + 1)."""
        S = np.zeros((objective.masks.shape[1], objective.Z.shape[1]))
        np.add.at(S, neurons.gates, neurons.directions * neurons.weights)
        return S


class NumpyFISTA(Solver):
    """FISTA with adaptive restart in plain NumPy: a reference."""

    name = "numpy_fista"
    ladder = decades(-1, -7)

    def solve(self, objective: Objective, rung: float, limit: float) -> Answer:
        """Run to a relative gap."""
        start = clock()
        return Answer(numpy_fista(objective, rung), clock() - start)


def lipschitz(Z: Array, masks: Array, loss: Loss, n_iter: int = 30) -> float:
    """Return the largest curvature of the mean loss in ``S``, by the power method."""
    v = np.random.default_rng(0).standard_normal(len(Z))
    norm = 1.0
    for _ in range(n_iter):
        v = predict(Z, masks, correlate(Z, masks, v / np.linalg.norm(v)))
        norm = float(np.linalg.norm(v))
    return 1.05 * norm / len(Z) * (1.0 if loss == "squared" else 0.25)


def numpy_fista(objective: Objective, tol: float, check_every: int = 10) -> Array:
    """Return ``S``, of shape (P, r + 1), to relative gap `tol`."""
    Z, y, masks = objective.Z, objective.y, objective.masks
    loss, alpha = objective.loss, objective.alpha
    step = 1.0 / lipschitz(Z, masks, loss)
    S = V = np.zeros((masks.shape[1], Z.shape[1]))
    F = F_V = np.zeros(len(y))
    t = 1.0
    for iteration in range(10**7):
        if iteration % check_every == 0:
            Lambda = residual(F, y, loss)
            largest = float(group_scores(Z, masks, Lambda).max())
            primal = primal_value(F, S, y, loss, alpha)
            if primal - dual_value(Lambda, largest, y, loss, alpha) <= tol * primal:
                break
        new = V + step * correlate(Z, masks, residual(F_V, y, loss))
        norms = np.linalg.norm(new, axis=1, keepdims=True)
        new *= np.maximum(1.0 - alpha * step / np.maximum(norms, 1e-300), 0.0)
        new_F = predict(Z, masks, new)
        if np.vdot(V - new, new - S) > 0:
            t = 1.0
        new_t = (1.0 + math.sqrt(1.0 + 4.0 * t * t)) / 2.0
        momentum = (t - 1.0) / new_t
        V = new + momentum * (new - S)
        F_V = new_F + momentum * (new_F - F)
        S, F, t = new, new_F, new_t
    return S


class SCNN(Solver):
    """scnn's R-FISTA on its gated ReLU model, in double precision."""

    name = "scnn"
    ladder = decades(0.5, -6)
    packages = ("pyscnn",)

    def unsupported(self, loss: Loss) -> str | None:
        if loss == "logistic":
            return (
                "scnn's convex models have the squared loss only (its logistic loss serves "
                "linear models, in its private part)"
            )
        return None

    def solve(self, objective: Objective, rung: float, limit: float) -> Answer:
        """Run to a tolerance.

        scnn's mean of half squared errors and its neuron penalty are this program's. It is told
        not to rescale the columns (``unitize_data``) nor to add a bias. It stops on the squared
        norm of the least subgradient, so the rung is taken relative to alpha. It sorts its
        gates: the rows of the answer are put back in this program's order.
        """
        from scnn.metrics import Metrics
        from scnn.models import ConvexGatedReLU
        from scnn.optimize import optimize_model
        from scnn.regularizers import NeuronGL1
        from scnn.solvers import RFISTA

        start = clock()
        model = ConvexGatedReLU(objective.gates, c=1, bias=False)
        model, _ = optimize_model(
            model,
            RFISTA(model, max_iters=10**7, tol=(rung * objective.alpha) ** 2),
            Metrics(objective=False, grad_norm=False),
            objective.Z,
            objective.y,
            regularizer=NeuronGL1(objective.alpha),
            return_convex=True,
            unitize_data=False,
            dtype="float64",
        )
        seconds = clock() - start
        S = np.zeros((objective.masks.shape[1], objective.Z.shape[1]))
        S[places(model, objective)] = model.parameters[0][0]
        return Answer(S, seconds)


def places(model: Any, objective: Objective) -> list[int]:
    """Return the positions, among the objective's gates, of those of a model of scnn."""
    place = {g.tobytes(): i for i, g in enumerate(objective.gates.T)}
    return [place[g.tobytes()] for g in np.asarray(model.G).T]


class Skglm(Solver):
    """skglm's block coordinate descent, or its prox-Newton for the logistic loss.

    ``LogisticGroup`` has no constants per group for ``GroupBCD`` (it inherits those per column),
    hence the other solver.
    """

    name = "skglm"
    ladder = decades(-0.5, -7)
    packages = ("skglm",)
    compiled = True

    def solve(self, objective: Objective, rung: float, limit: float) -> Answer:
        """Run until the largest distance to the subdifferential is the rung times alpha."""
        from skglm.datafits import LogisticGroup, QuadraticGroup
        from skglm.penalties import WeightedGroupL2
        from skglm.solvers import GroupBCD, GroupProxNewton
        from skglm.utils.jit_compilation import compiled_clone

        n_groups, width = objective.masks.shape[1], objective.Z.shape[1]
        start = clock()
        A = explicit_matrix(objective)
        built = clock()
        indices = np.arange(n_groups * width, dtype=np.int32)
        pointers = np.arange(0, n_groups * width + 1, width, dtype=np.int32)
        penalty = WeightedGroupL2(objective.alpha, np.ones(n_groups), pointers, indices)
        tol = rung * objective.alpha
        if objective.loss == "squared":
            y, datafit = objective.y, QuadraticGroup(pointers, indices)
            solver = GroupBCD(max_iter=10**5, max_epochs=1000, tol=tol)
        else:
            y, datafit = 2.0 * objective.y - 1.0, LogisticGroup(pointers, indices)
            solver = GroupProxNewton(max_iter=10**5, tol=tol)
        w = solver.solve(A, y, compiled_clone(datafit), compiled_clone(penalty))[0]
        return Answer(w.reshape(n_groups, width), clock() - built, built - start)


class Celer(Solver):
    """celer's group lasso."""

    name = "celer"
    ladder = decades(-2, -14)
    packages = ("celer",)

    def unsupported(self, loss: Loss) -> str | None:
        return "celer's group lasso has the squared loss only" if loss == "logistic" else None

    def solve(self, objective: Objective, rung: float, limit: float) -> Answer:
        """Run until the gap is the rung times ``mean(y^2)``."""
        from celer import celer_path

        width = objective.Z.shape[1]
        start = clock()
        A = explicit_matrix(objective)
        built = clock()
        _, coefs, _ = celer_path(
            A,
            objective.y,
            "grouplasso",
            groups=width,
            alphas=[objective.alpha],
            max_iter=10**4,
            max_epochs=10**6,
            tol=rung,
        )
        return Answer(coefs[:, 0].reshape(-1, width), clock() - built, built - start)


class Adelie(Solver):
    """adelie's group lasso on its own matrix of the gated program, which is not built."""

    name = "adelie"
    ladder = decades(-2, -18)
    packages = ("adelie",)

    def solve(self, objective: Objective, rung: float, limit: float) -> Answer:
        """Run at one penalty until coordinate descent changes little."""
        import adelie

        n_groups, width = objective.masks.shape[1], objective.Z.shape[1]
        family = adelie.glm.gaussian if objective.loss == "squared" else adelie.glm.binomial
        start = clock()
        matrix = adelie.matrix.convex_relu(
            np.asfortranarray(objective.Z), np.asfortranarray(objective.masks > 0), gated=True
        )
        state = adelie.grpnet(
            matrix,
            family(objective.y),
            groups=np.arange(0, n_groups * width, width),
            penalty=np.ones(n_groups),
            lmda_path=np.array([objective.alpha]),
            intercept=False,
            early_exit=False,
            progress_bar=False,
            tol=rung,
            irls_tol=rung,
        )
        if state.betas.shape[0] == 0:
            return Answer(None, clock() - start, note="adelie stopped with no solution")
        S = state.betas[-1].toarray().reshape(n_groups, width)
        return Answer(S, clock() - start)


class GatedClarabel(Clarabel):
    """Clarabel on the gated program."""

    def state(self, objective: Objective) -> tuple[Any, Callable[[], Array | None]]:
        """Return the program in CVXPY, and a function that reads ``S``."""
        import cvxpy as cp

        n, P, width = len(objective.y), objective.masks.shape[1], objective.Z.shape[1]
        S = cp.Variable((P, width))
        F = explicit_matrix(objective) @ cp.vec(S, order="C")
        if objective.loss == "squared":
            fit = cp.sum_squares(F - objective.y) / (2 * n)
        else:
            fit = cp.sum(cp.logistic(F) - cp.multiply(objective.y, F)) / n
        penalty = objective.alpha * cp.sum(cp.norm(S, 2, axis=1))
        return cp.Problem(cp.Minimize(fit + penalty)), lambda: S.value


SOLVERS: tuple[Solver, ...] = (
    Ours(),
    NumpyFISTA(),
    SCNN(),
    Skglm(),
    Celer(),
    Adelie(),
    GatedClarabel(),
)

"""The convex programs as a modelling language states them, solved by any cone solver.

Slow, accurate and independent of the package's own algorithms: the reference for small
problems.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np

from sklearn_convexbn.losses._base import Loss
from sklearn_convexbn.program._arrangements import project_onto_cone
from sklearn_convexbn.program._problem import Neurons, Problem
from sklearn_convexbn.solvers._base import Iterate, RunSettings, Solver


class CVXPY(Solver):
    """Solve the program on a list of arrangements with CVXPY.

    Parameters
    ----------
    backend : str, default="CLARABEL"
        Any installed CVXPY solver that handles second-order cones (exponential cones for the
        cross-entropies, semidefinite cones for several outputs).
    options : dict, default=None
        Passed to ``cvxpy.Problem.solve``. None takes tolerances of 1e-11 for Clarabel, whose own
        leave gaps up to 1e-5, and larger ones where it fails with them; for other backends their
        own.
    """

    name = "cvxpy"
    pools = True

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "backend": [str],
        "options": [dict, None],
    }

    def __init__(self, backend: str = "CLARABEL", options: dict[str, Any] | None = None) -> None:
        self.backend = backend
        self.options = options

    def unsupported(self, problem: Problem) -> str:
        if problem.activation == "relu" and problem.n_outputs > 1:
            return "ReLU networks with several outputs (their convex program has no cone form)"
        if problem.activation == "relu" and not problem.pooling.is_identity:
            patches = f"{problem.pooling.n_patches} patches of an image"
            return f"{patches} on a list of arrangements, whose cones it has for whole rows only"
        if type(problem.loss).cvxpy_value is Loss.cvxpy_value:
            return f"the {problem.loss.name} loss, which has no form in CVXPY"
        return ""

    def iterates(self, problem: Problem, settings: RunSettings) -> Iterator[Iterate]:
        if problem.activation == "relu":
            neurons = self._solve_relu(problem)
        elif problem.n_outputs == 1 and problem.pooling.is_identity:
            neurons = self._solve_gated(problem)
        else:
            neurons = self._solve_gated_nuclear(problem)
        yield Iterate(neurons, stalled=True)

    def _solve_relu(self, problem: Problem) -> Neurons:
        import cvxpy as cp

        k, P = problem.gates.shape  # type: ignore[union-attr]
        patterns = problem.patterns.astype(float)
        S, T, b = cp.Variable((k, P)), cp.Variable((k, P)), cp.Variable(1)
        fit = cp.sum(cp.multiply(patterns, problem.Z @ (S - T)), axis=1, keepdims=True) + b
        mass = cp.sum(cp.norm(S, 2, axis=0)) + cp.sum(cp.norm(T, 2, axis=0))
        signs = 2.0 * patterns - 1.0
        cones = [cp.multiply(signs, problem.Z @ V) >= 0 for V in (S, T)]
        s, t, b0 = self._minimise(problem, fit, mass, [S, T, b], cones)
        return repaired_relu_neurons(problem, s.T, t.T, b0)

    def _solve_gated(self, problem: Problem) -> Neurons:
        import cvxpy as cp

        k, P = problem.gates.shape  # type: ignore[union-attr]
        S, b = cp.Variable((k, P)), cp.Variable(1)
        terms = cp.multiply(problem.patterns.astype(float), problem.Z @ S)
        fit = cp.sum(terms, axis=1, keepdims=True) + b
        s, b0 = self._minimise(problem, fit, cp.sum(cp.norm(S, 2, axis=0)), [S, b], [])
        return Neurons.from_products(s.T, np.ones((P, 1)), b0, np.arange(P))

    def _solve_gated_nuclear(self, problem: Problem) -> Neurons:
        import cvxpy as cp

        (k, P), C = problem.gates.shape, problem.n_outputs  # type: ignore[union-attr]
        W, b = problem.n_weights, cp.Variable(C)
        blocks = [cp.Variable((k, W)) for _ in range(P)]
        features = [problem.pooling.pool(problem.patterns[:, [g]] * problem.Z) for g in range(P)]
        fit = cp.reshape(b, (1, C), order="C")
        for A, S in zip(features, blocks, strict=True):
            of_cells = range(problem.pooling.n_cells)
            fit = fit + sum(A[:, g] @ S[:, g * C : (g + 1) * C] for g in of_cells)
        mass = sum(cp.normNuc(S) if W > 1 else cp.norm(S, "fro") for S in blocks)
        *values, b0 = self._minimise(problem, fit, mass, [*blocks, b], [])
        return nuclear_neurons(np.array(values), np.arange(P), b0)

    def _attempts(self) -> Iterator[dict[str, Any]]:
        """Yield options to solve with, the next ones where the solver fails with these.

        Clarabel ends in numerical errors, with 1e-11, in one of some hundred runs of the same
        small program: its digits depend on where memory lies.
        """
        if self.options is not None or self.backend.upper() != "CLARABEL":
            yield self.options or {}
            return
        for tolerance in (1e-11, 1e-10, 1e-9, 1e-8):
            yield dict.fromkeys(("tol_gap_abs", "tol_gap_rel", "tol_feas"), tolerance)

    def _minimise(
        self, problem: Problem, fit: Any, mass: Any, variables: list[Any], constraints: list[Any]
    ) -> list[np.ndarray]:
        """Solve, and return the values of the variables; the last of them is the intercept."""
        import cvxpy as cp

        if not problem.fit_intercept:
            constraints = [*constraints, variables[-1] == 0]
        mean_loss = problem.loss.cvxpy_value(fit, problem.Y, problem.p)
        objective = mean_loss + problem.alpha * mass
        # Sums over rows, not means: interior-point tolerances are partly absolute.
        program = cp.Problem(cp.Minimize(len(problem.Y) * objective), constraints)
        for options in self._attempts():
            with warnings.catch_warnings():
                # "Solution may be inaccurate": the certificate says how inaccurate.
                warnings.simplefilter("ignore")
                try:
                    program.solve(solver=self.backend, **options)
                except cp.SolverError as error:
                    ending = str(error)
                    continue
            values = [variable.value for variable in variables]
            if not any(value is None for value in values):
                return values
            ending = f"status {program.status!r}"
        raise RuntimeError(
            f"solver='cvxpy' with backend={self.backend!r} found no solution: {ending}. Try "
            "another backend, another alpha, or solver='interior_point' (ReLU) or 'fista' (gated)."
        )


def nuclear_neurons(blocks: np.ndarray, gates: np.ndarray, b: np.ndarray) -> Neurons:
    """Return one neuron for each singular triple of the blocks S_g (P, k, C).

    A neuron (u, sigma v) costs sigma, so the network costs the sum of the nuclear norms (see the
    user guide, arrangements).
    """
    if blocks.shape[0] == 0:
        return Neurons.empty(blocks.shape[1], b)
    U, s, Vt = np.linalg.svd(blocks, full_matrices=False)
    keep = s > 1e-12 * s.max(initial=0.0)
    which, triple = np.nonzero(keep)
    return Neurons(
        directions=U[which, :, triple],
        weights=s[which, triple][:, None] * Vt[which, triple],
        intercept=b,
        gates=gates[which],
    )


def repaired_relu_neurons(
    problem: Problem, S: np.ndarray, T: np.ndarray, b: np.ndarray, drop: float = 1e-9
) -> Neurons:
    """Project blocks (P, k), entering the output with +1 (S) and -1 (T), onto their cones.

    Blocks shorter than `drop` times the longest are zero up to the solver's accuracy.
    """
    blocks, signs = np.vstack([S, T]), np.repeat([1.0, -1.0], len(S))
    cones = np.tile(np.arange(len(S)), 2)
    lengths = np.linalg.norm(blocks, axis=1)
    keep = np.flatnonzero(lengths > drop * max(lengths.max(initial=0.0), 1e-300))
    Q = [project_onto_cone(problem.Z, problem.patterns[:, cones[j]], blocks[j]) for j in keep]
    Q_kept = np.array(Q).reshape(len(keep), S.shape[1])
    return Neurons.from_products(Q_kept, signs[keep, None], b, cones[keep])

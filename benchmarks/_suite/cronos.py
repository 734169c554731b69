"""CRONOS, the convex heads of Feng, Frangella and Pilanci (arXiv:2411.01088), as they publish them.

Their repository is no package that can be installed: the environment variable CRONOS names a
checkout of it. It needs ``jax==0.4.35``: of versions tried, 0.10.2 applies its operators wrongly on
a CPU (its preconditioner has NaN). Its modules load data sets and ask for a GPU where they are
imported, so that those of the algorithm are imported one by one. Its own loop over the steps fails
at that state (a metric of ten classes for labels of two), and is written here: their operators,
sampled gates, preconditioner and steps are run as they are.
"""

import os
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
PACKAGES = ("models", "optimizers", "preconditioner", "utils")
RANK = 10  # of the preconditioner, theirs


@cache
def modules() -> tuple[Any, ...]:
    """Return the algorithm's modules, or say that there is no checkout."""
    folder = Path(os.environ.get("CRONOS", "CRONOS-not-named"))
    if not folder.is_dir():
        raise SystemExit("Name a checkout of CRONOS in the environment variable CRONOS.")
    for name in PACKAGES:  # without what their __init__ imports
        package = sys.modules[name] = ModuleType(name)
        package.__path__ = [str(folder / name)]
    from utils import linops_utils

    for name in ("tensor_to_vec", "vec_to_tensor"):
        setattr(sys.modules["utils"], name, getattr(linops_utils, name))
    from models import cvx_relu_mlp
    from optimizers import cronos
    from preconditioner import nystrom

    return cvx_relu_mlp, cronos, nystrom


@dataclass(frozen=True)
class Settings:
    """Sampled gates, the penalty of ADMM, its steps, and those of conjugate gradients in each."""

    n_gates: int
    rho: float
    n_steps: int
    n_inner: int = 20


def run(X: Array, y: Array, beta: float, settings: Settings) -> tuple[Array, Array]:
    """Return hidden weights (d, m) and output weights (m,) of a ReLU network without biases.

    They are an approximate minimiser of ``0.5 * ||F - y||^2 + beta / 2 (||W||^2 + ||w||^2)`` over
    networks whose units have one of the sampled arrangements of activity.
    """
    import jax
    import jax.numpy as jnp

    cvx_relu_mlp, cronos, nystrom = modules()
    n, d = X.shape
    rows, targets = (jnp.asarray(a, dtype=jnp.float32) for a in (X, y))
    model = cvx_relu_mlp.CVX_ReLU_MLP(
        rows, targets, settings.n_gates, beta, settings.rho, jax.random.key(0)
    )
    model.init_model()
    U, S, model.seed = nystrom.rand_nys_appx(model, RANK, "CReLU", model.seed)
    precond = nystrom.Nys_Precond(U, S, d, model.rho, settings.n_gates, "CReLU")
    state = cronos.init_cronos_state(d, n, settings.n_gates)
    for k in range(settings.n_steps):
        tol = 1 / (1 + k) ** 1.2  # theirs
        state = cronos.cronos_step(state, model, precond, beta, 1.0, settings.n_inner, tol)
    W, w = model.get_ncvx_weights(state.v)
    return np.asarray(W, dtype=np.float64), np.asarray(w, dtype=np.float64)

r"""Output weights of several outputs for neurons that have just been inserted: one cheap step.

.. math:: V_j = -t \, (1 - \alpha / |G_j|)_+ \, G_j, \qquad G = A^T \nabla L(F),

the step of the proximal gradient method from zero, of a length t for all of them that minimises the
quadratic model along it and is shortened until the objective falls. The slide that follows moves
all weights; it only has to start where the new neurons count.
"""

from __future__ import annotations

from torch import Tensor

from sklearn_convexbn.program._objective import Objective
from sklearn_convexbn.program.units._activations import Activations

#: Lengths of the step that are tried at most, each a quarter of the one before.
MAX_TRIALS = 60


def first_weights(
    A: Activations, objective: Objective[Tensor], V: Tensor, b: Tensor
) -> tuple[Tensor, Tensor]:
    """Return output weights in which neurons of zero weights have some, if one step finds any.

    Parameters
    ----------
    A : Activations
        Of n rows and m units, float64.
    objective : Objective
    V : torch.Tensor of shape (m, cells, C)
    b : torch.Tensor of shape (C,)

    Returns
    -------
    V : torch.Tensor of shape (m, cells, C)
    b : torch.Tensor of shape (C,)
        The objective is at most that of the arguments.
    """
    new = (V == 0).flatten(1).all(dim=1).nonzero()[:, 0]
    total, part = objective.shards.total, A.columns(new)
    F = A.fit(V.flatten(0, 1)) + b
    G = objective.gradient(F)
    slopes = part.correlations(G).reshape(len(new), *V.shape[1:])
    norms = slopes.flatten(1).norm(dim=1).clamp_min(1e-300)
    step = -slopes * (1.0 - objective.alpha / norms).clamp_min(0.0)[:, None, None]
    mass = objective.alpha * float(step.flatten(1).norm(dim=1).sum())
    change = part.fit(step.flatten(0, 1))
    shift = total(objective.p @ change) * float(objective.fit_intercept)
    change = change - shift
    diagonal, couplings = objective.curvatures(F)
    coupled = (couplings * change).sum(dim=2).square().sum()
    slope = float(total((G * change).sum())) + mass
    bend = float(total((diagonal * change * change).sum() - coupled))
    value, t = objective.mean_loss(F), -slope / max(bend, 1e-300)
    for _ in range(MAX_TRIALS if slope < 0.0 else 0):
        if objective.mean_loss(F + t * change) + t * mass < value:
            return V.index_add(0, new, t * step), b - t * shift
        t *= 0.25
    return V, b

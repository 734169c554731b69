"""
Where ten Adam runs end
=======================

A point where training stops is more than it seems: its hidden units have on/off patterns on the
training rows, and among all networks of these patterns it is the best one, the optimum of a convex
program with few of the arrangements (Ergen and Pilanci, arXiv:2312.12657). What it misses are
other patterns. Ten runs of Adam on one batch-normalized network, from ten random starts, are drawn
beside the two optima: that of each run's own program, and that over all arrangements.
"""

# %%
# Ten runs
# --------
#
# 100 rows of the diabetes data, full-batch Adam in torch with a falling step size, all runs at
# once: one leading dimension of the weights is the run.

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_diabetes
from sklearn.preprocessing import StandardScaler

from sklearn_convexbn import ConvexBNRegressor, certify

ALPHA, RUNS, WIDTH, N_STEPS = 0.03, 10, 5, 4000

X, y = load_diabetes(return_X_y=True)
X = StandardScaler().fit_transform(X[:100])
y = (y[:100] - y[:100].mean()) / y[:100].std()


def adam():
    """Return the weights W, gamma, beta, V and b of all runs, each (RUNS, ., .)."""
    rng = np.random.default_rng(0)
    start = [
        rng.standard_normal((RUNS, X.shape[1], WIDTH)),
        np.ones((RUNS, 1, WIDTH)),
        np.zeros((RUNS, 1, WIDTH)),
        rng.standard_normal((RUNS, WIDTH, 1)) / WIDTH**0.5,
        np.zeros((RUNS, 1, 1)),
    ]
    weights = [torch.tensor(a, requires_grad=True) for a in start]
    optimizer = torch.optim.Adam(weights, lr=0.03, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 1e-3 ** (1 / N_STEPS))
    rows, target = torch.tensor(X), torch.tensor(y)[:, None]
    for _ in range(N_STEPS):
        W, gamma, beta, V, b = weights
        H = rows @ W
        H = (H - H.mean(1, keepdim=True)) / H.std(1, correction=0, keepdim=True)
        F = torch.relu(gamma * H + beta) @ V + b
        decay = sum((w**2).sum() for w in weights[1:4])
        objective = 0.5 * ((F - target) ** 2).mean((1, 2)).sum() + 0.5 * ALPHA * decay
        optimizer.zero_grad()
        objective.backward()
        optimizer.step()
        schedule.step()
    return [w.detach() for w in weights]


def network(weights):
    """Return one run as a module."""
    W, gamma, beta, V, b = weights
    d, m = W.shape
    module = torch.nn.Sequential(
        torch.nn.Linear(d, m, bias=False),
        torch.nn.BatchNorm1d(m, eps=0.0),
        torch.nn.ReLU(),
        torch.nn.Linear(m, 1),
    ).double()
    places = (module[0].weight, module[1].weight, module[1].bias, module[3].weight, module[3].bias)
    for parameter, value in zip(places, (W.T, gamma[0], beta[0], V.T, b[0]), strict=True):
        parameter.data.copy_(value)
    return module


# %%
# Each as an optimum
# ------------------
#
# ``stationarity_gap`` is a rigorous bound on the distance to the optimum of the run's own
# arrangements; ``gap`` one on that over all arrangements, by a search. The optimum itself is
# computed by a fit.

optimum = ConvexBNRegressor(ALPHA, shrinkage=0, tol=0.003, random_state=0).fit(X, y)
weights = adam()
found = [
    certify(network([w[run] for w in weights]), X, y, alpha=ALPHA, effort="quick", random_state=0)
    for run in range(RUNS)
]
found.sort(key=lambda run: run.primal)
print(f"{'run':>3}{'objective':>11}{'own program, within':>21}{'above the optimum':>19}{'gap':>7}")
for run, c in enumerate(found):
    above = 1 - optimum.objective_ / c.primal
    print(f"{run:3}{c.primal:11.5f}{c.stationarity_gap:21.2%}{above:19.1%}{c.gap:7.0%}")

fig, ax = plt.subplots(figsize=(8, 4.5), layout="constrained")
runs = np.arange(RUNS)
ended = np.array([c.primal for c in found])
own = np.array([c.primal * (1 - c.stationarity_gap) for c in found])
ax.vlines(runs, optimum.objective_, ended, color="0.7", label="what other patterns would gain")
ax.plot(runs, ended, "o", color="C3", label="where Adam ends")
ax.plot(runs, own, "_", color="C0", ms=22, mew=2, label="optimum of its arrangements, at least")
ax.axhline(optimum.objective_, color="C2", label="optimum over all arrangements")
ax.axhspan(optimum.certificate_.dual, optimum.objective_, color="C2", alpha=0.2)
ax.set(xlabel="run, sorted", ylabel="objective", xticks=runs)
ax.legend(loc="upper left")
plt.show()

# %%
# Most of the runs end within a few percent of the optimum of their own arrangements, which a bound
# proves: for these patterns there is little left to gain. Where more is left, rows lie on the
# hyperplane of a unit, and steps go back and forth there. All end some 10 to 20 % above the optimum
# over all arrangements, and each at another value: what they lack are patterns, not steps. With
# more units there are more patterns from the start, and less is lost (*How far from optimal is
# Adam?*, ``examples/plot_adam_gap.py``).

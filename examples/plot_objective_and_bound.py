"""
Objective and bound, beside Adam
================================

What a fit does on the diabetes data of scikit-learn: the objective falls, the lower bound on the
optimum rises, and it stops when both are within ``tol``. Full-batch Adam on the same training
problem, with 200 units and two learning rates, has no bound, and no way to tell that it is done.
"""

import argparse
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_diabetes

from sklearn_convexbn import ConvexBNRegressor

ALPHA, WIDTH, N_STEPS = 0.01, 200, 1000

X, y = load_diabetes(return_X_y=True)
X, y = X / X.std(axis=0), (y - y.mean()) / y.std()


def adam(lr, n_steps=N_STEPS):
    """Return processor seconds and objectives of the steps of Adam."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Linear(X.shape[1], WIDTH, bias=False),
        torch.nn.BatchNorm1d(WIDTH),
        torch.nn.ReLU(),
        torch.nn.Linear(WIDTH, 1),
    )
    decayed = [network[1].weight, network[1].bias, network[3].weight]
    rows, target = torch.tensor(X).float(), torch.tensor(y).float()
    optimizer = torch.optim.Adam(network.parameters(), lr=lr)
    seconds, objectives, begin = [], [], time.process_time()
    for _ in range(n_steps):
        optimizer.zero_grad()
        loss = 0.5 * ((network(rows)[:, 0] - target) ** 2).mean()
        objective = loss + 0.5 * ALPHA * sum((w**2).sum() for w in decayed)
        objective.backward()
        optimizer.step()
        seconds.append(time.process_time() - begin)
        objectives.append(objective.item())
    return np.array(seconds), np.minimum.accumulate(objectives)


# %%
# The fit's ``history_`` has objective and gap of each round. The bound rests on a search: the
# shaded band is what it leaves open.

adam(0.01, 10)  # torch's first steps take longer
runs = {lr: adam(lr) for lr in (0.01, 0.03)}
model = ConvexBNRegressor(ALPHA, shrinkage=0, tol=0.01, random_state=0)
begin = time.process_time(), time.perf_counter()
history = model.fit(X, y).history_
used = (time.process_time() - begin[0]) / (time.perf_counter() - begin[1])  # of the wall seconds
objective, seconds = history["objective"], history["time"] * used
bound = objective * (1 - history["dual_gap"])

fig, ax = plt.subplots(figsize=(8, 4.2), layout="constrained")
ax.fill_between(seconds, bound, objective, color="C0", alpha=0.15, lw=0)
ax.plot(seconds, objective, "o-", ms=4, color="C0", label="this package: objective")
ax.plot(seconds, bound, "s--", ms=4, color="C0", label="this package: lower bound (by a search)")
for (lr, (spent, reached)), color in zip(runs.items(), ("C1", "C3"), strict=True):
    ax.plot(spent, reached, color=color, label=f"Adam, {WIDTH} units, rate {lr:g}")
ax.set(xscale="log", xlabel="processor seconds", ylabel="training objective")
ax.set_xlim(left=0.02)
ax.set_ylim(0.95 * bound[len(bound) // 3 :].min(), 2.2 * objective[-1])
ax.set_title(f"diabetes, {len(X)} rows, alpha {ALPHA:g}: objective and bound close in", fontsize=11)
ax.legend()
ax.grid(alpha=0.3)
parser = argparse.ArgumentParser()
parser.add_argument("--picture", type=Path, help="save the figure there")
if (picture := parser.parse_known_args()[0].picture) is not None:
    fig.savefig(picture, dpi=120)
plt.show()

# %%
# In numbers, with the processor seconds that each took to get there:

best = min(reached[-1] for _, reached in runs.values())
soonest = min(spent[reached <= best].min(initial=np.inf) for spent, reached in runs.values())
sooner = seconds[objective <= best]
print(f"Adam's best objective {best:.4f} after {soonest:.2f} s")
print(f"the fit has it after {sooner[0]:.2f} s, and ends at {objective[-1]:.4f}")
print(model.certificate_)

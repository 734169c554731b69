"""
How far from optimal is Adam?
=============================

Trains batch-normalized two-layer ReLU networks on scikit-learn's diabetes data with full-batch
Adam in torch, for several widths and learning rates, and bounds the gap of every one of them as it
trains: how far it is, at most, from the optimum over all networks of any width. The same
training problem solved through its convex form shows where that optimum is. Saves a picture.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_diabetes

from sklearn_convexbn import ConvexBNRegressor, certify

ALPHA = 0.03
WIDTHS = [5, 20, 100]
LEARNING_RATES = [0.001, 0.01, 0.1]
CHECKPOINTS = [1, 4, 16, 64, 256, 1024]


def train(X: np.ndarray, y: np.ndarray, width: int, lr: float) -> tuple[list, float]:
    """Train by Adam; return the certificates at the checkpoints and the seconds of training."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Linear(X.shape[1], width, bias=False),
        torch.nn.BatchNorm1d(width),
        torch.nn.ReLU(),
        torch.nn.Linear(width, 1),
    ).double()
    decayed = [network[1].weight, network[1].bias, network[3].weight]
    rows, target = torch.tensor(X), torch.tensor(y)
    optimizer = torch.optim.Adam(network.parameters(), lr=lr)
    certificates, seconds = [], 0.0
    for step in range(1, CHECKPOINTS[-1] + 1):
        begin = time.perf_counter()
        optimizer.zero_grad()
        loss = 0.5 * ((network(rows)[:, 0] - target) ** 2).mean()
        (loss + 0.5 * ALPHA * sum((w**2).sum() for w in decayed)).backward()
        optimizer.step()
        seconds += time.perf_counter() - begin
        if step in CHECKPOINTS:
            starts = 500 if step == CHECKPOINTS[-1] else 50
            certificates.append(certify(network, X, y, alpha=ALPHA, effort=starts, random_state=0))
    return certificates, seconds


def draw(runs: dict, optimum: ConvexBNRegressor, path: Path) -> None:
    """Draw gaps, and excesses over the optimum found, against training steps."""
    figure, axes = plt.subplots(
        1, len(WIDTHS), figsize=(11, 4.2), sharey=True, layout="constrained"
    )
    for axis, width in zip(axes, WIDTHS, strict=True):
        for i, lr in enumerate(LEARNING_RATES):
            certificates = runs[width, lr][0]
            gaps = [100 * c.gap for c in certificates]
            excess = [100 * (1 - optimum.objective_ / c.primal) for c in certificates]
            axis.loglog(
                CHECKPOINTS, gaps, "o-", ms=4, color=f"C{i}", label=f"Adam, rate {lr:g}: gap"
            )
            axis.loglog(CHECKPOINTS, excess, ":", color=f"C{i}")
        axis.axhline(100 * optimum.dual_gap_, color="0.3", ls="--", label="pursuit: gap")
        axis.plot([], [], ":", color="0.5", label="Adam: excess over pursuit")
        axis.set(xlabel="Adam steps", title=f"{width} hidden units")
        axis.set_xticks(CHECKPOINTS, CHECKPOINTS, minor=False)
        axis.minorticks_off()
        axis.yaxis.set_major_formatter("{x:g}")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("% of the network's objective")
    figure.suptitle("Distance from the optimum. Solid: bound. Dotted: what the pursuit gains")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    figure.savefig(path, dpi=150)
    plt.show()


def main() -> None:
    """Train, certify, print a table and save the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--picture", type=Path, default=Path("adam_gap.png"))
    picture = parser.parse_args().picture

    X, y = load_diabetes(return_X_y=True)
    X, y = X / X.std(axis=0), (y - y.mean()) / y.std()
    begin = time.perf_counter()
    optimum = ConvexBNRegressor(ALPHA, shrinkage=0, tol=2e-3, random_state=0).fit(X, y)
    seconds = time.perf_counter() - begin
    runs = {(m, lr): train(X, y, m, lr) for m in WIDTHS for lr in LEARNING_RATES}

    print(f"diabetes: {len(X)} rows, alpha = {ALPHA}; Adam: {CHECKPOINTS[-1]} full-batch steps")
    print("gap: bound (by a search) on the distance to the optimum over all networks; restricted:")
    print("rigorous bound for networks of the same activation patterns; excess: over the pursuit\n")
    print(
        f"{'width':>7}{'rate':>8}{'objective':>11}{'gap':>9}{'restricted':>12}{'excess':>9}{'s':>7}"
    )
    for (width, lr), (certificates, spent) in runs.items():
        c = certificates[-1]
        excess = 1 - optimum.objective_ / c.primal
        print(
            f"{width:7d}{lr:8g}{c.primal:11.5f}{c.gap:9.2%}{c.stationarity_gap:12.2%}"
            f"{excess:9.2%}{spent:7.1f}"
        )
    print(
        f"{optimum.n_neurons_:7d}{'pursuit':>8}{optimum.objective_:11.5f}{optimum.dual_gap_:9.2%}"
        f"{'':21}{seconds:7.1f}"
    )
    draw(runs, optimum, picture)
    print(f"\npicture: {picture.resolve().name}")


if __name__ == "__main__":
    main()

"""Heads on frozen features: ours, those of CRONOS, logistic regression and Adam's.

A small CNN is trained by Adam on eight of ten classes; its last hidden layer's 64 units, before
their ReLU, are the features, and frozen. Heads then learn to tell the other two classes, which the
features have not seen (CRONOS has two classes, with squared loss on labels of -1 and 1). Adam's
head has a hidden layer of 64 units with batch normalization, `ours` are the defaults of
`replace_head`, CRONOS has the settings of its repository.

Heads called `program` train the same program: squared loss and weight decay, alpha 0.01, on
whitened features and a constant, where CRONOS is bound to some sampled gates and ours to none. Its
penalty is 0.1, of those tried on the first set (0.01 to 1) one of the best. The objectives are
evaluated on the networks' weights by `certify`, and so is the gap, to the optimum over all
arrangements: an estimate. Processor seconds; CRONOS is compiled before it is timed::

    CRONOS=folder python benchmarks/bench_heads.py
"""

import _suite  # noqa: F401 - first: it sets the number of threads

# isort: split
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from _suite import cronos
from _suite.benchmark import Benchmark
from _suite.data import load_images
from _suite.package import warm_up
from _suite.runner import timed
from _suite.store import Cell
from _suite.tables import markdown

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from sklearn_convexbn import ConvexBNClassifier, ConvexBNRegressor, certify, replace_head

Array = NDArray[Any]

#: Classes that heads tell apart: CRONOS's own two of CIFAR-10, and such as are easily confused.
PAIRS = {
    "cifar10 0 1": ("cifar10", (0, 1)),
    "cifar10 3 5": ("cifar10", (3, 5)),
    "fashion_mnist 0 6": ("fashion_mnist", (0, 6)),
    "mnist 4 9": ("mnist", (4, 9)),
}
N_FEATURES, EPOCHS, BATCH = 64, 8, 100
ALPHA = 0.01  # of the program that two heads have in common
HEAD_WIDTH, HEAD_EPOCHS = 64, 30

#: CRONOS with the settings of its repository's example on data of one's own, and along a ladder.
OWN = cronos.Settings(n_gates=40, rho=0.1, n_steps=30)
MANY_GATES = 1000  # on the sets of 2000 rows only: minutes on the others
LADDER = {
    f"CRONOS, program, {n_gates} gates, {n_steps} steps": cronos.Settings(n_gates, 0.1, n_steps)
    for n_gates, n_steps in ((10, 10), (100, 30), (100, 100), (MANY_GATES, 30))
}
MODELS = ("logistic", "Adam", "ours", "CRONOS", "ours, program", *LADDER)


def cnn(channels: int, side: int) -> nn.Sequential:
    """Return features: two strided convolutions and a dense layer."""
    side = ((side - 5) // 2 + 1 - 3) // 2 + 1
    layers = [nn.Conv2d(channels, 32, 5, stride=2), nn.BatchNorm2d(32), nn.ReLU()]
    layers += [nn.Conv2d(32, 64, 3, stride=2), nn.BatchNorm2d(64), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(64 * side**2, N_FEATURES))


def train(network: nn.Module, X: torch.Tensor, y: torch.Tensor, epochs: int) -> nn.Module:
    """Train by AdamW in mini-batches on the cross-entropy; return it in eval mode."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.1)
    n_steps = epochs * (len(X) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
    for _ in range(epochs):
        order = torch.randperm(len(X))
        for rows in order[: len(X) // BATCH * BATCH].split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(X[rows]), y[rows]).backward()
            optimizer.step()
            schedule.step()
    return network.eval()


@dataclass(frozen=True)
class Pair:
    """Frozen features of two classes, labels of -1 and 1."""

    X: Array
    y: Array
    X_test: Array
    y_test: Array

    def error(self, predictions: Array) -> float:
        return float((predictions != self.y_test).mean())


@cache
def pair(name: str) -> Pair:
    """Train the features on the other classes, and return those of the two."""
    data, (low, high) = PAIRS[name]
    images, labels, *test = load_images(data)

    def tensor(X: Array) -> torch.Tensor:
        return torch.as_tensor(X).float().permute(0, 3, 1, 2) / 255 - 0.5

    torch.manual_seed(0)
    others = np.flatnonzero((labels != low) & (labels != high))
    targets = torch.as_tensor(np.unique(labels[others], return_inverse=True)[1])
    features = cnn(images.shape[-1], images.shape[1])
    network = nn.Sequential(features, nn.ReLU(), nn.Linear(N_FEATURES, 8))
    train(network, tensor(images[others]), targets, EPOCHS)
    features.eval()
    parts: list[Array] = []
    with torch.no_grad():
        for X, y in ((images, labels), test):
            own = (y == low) | (y == high)
            parts += [features(tensor(X[own])).numpy().astype(np.float64)]
            parts += [np.where(y[own] == high, 1.0, -1.0)]
    return Pair(*parts)


def whitened(X: Array) -> tuple[Array, Array, Array]:
    """Return orthonormal columns of the centred X, the constant's last, and the way back.

    Units ``(rows @ w)_+`` are ``(X @ (back @ w[:-1]) + w[-1] / sqrt(n) - mean @ back @ w[:-1])_+``.
    """
    mean = X.mean(axis=0)
    U, s, Vt = np.linalg.svd(X - mean, full_matrices=False)
    kept = s > 1e-6 * s[0]
    constant = np.full(len(X), len(X) ** -0.5)
    return np.column_stack([U[:, kept], constant]), Vt[kept].T / s[kept], mean


def module(W: Array, offsets: Array, w: Array) -> nn.Sequential:
    """Return a network (Linear, ReLU, Linear) without an output bias."""
    d, m = W.shape
    network = nn.Sequential(nn.Linear(d, m), nn.ReLU(), nn.Linear(m, 1, bias=False)).double()
    for target, values in zip(network.parameters(), (W.T, offsets, w[None]), strict=True):
        target.data = torch.as_tensor(np.ascontiguousarray(values))
    return network


def signs(network: nn.Module, X: Array) -> Array:
    """Return the signs of a network's outputs."""
    dtype = next(network.parameters()).dtype
    with torch.no_grad():
        return np.sign(network(torch.as_tensor(X, dtype=dtype)).double().numpy()[:, 0])


def cronos_own(data: Pair) -> nn.Sequential:
    """CRONOS on standardised features and a constant, with its own settings and decay 1e-3."""
    scaler = StandardScaler().fit(data.X)
    rows = np.column_stack([scaler.transform(data.X), np.ones(len(data.X))])
    W, w = cronos.run(rows, data.y, 1e-3, OWN)
    inner = W[:-1] / scaler.scale_[:, None]
    return module(inner, W[-1] - scaler.mean_ @ inner, w)


def cronos_program(data: Pair, settings: cronos.Settings) -> nn.Sequential:
    """CRONOS on the program of ours, on orthonormal columns and with sums for means."""
    rows, back, mean = whitened(data.X)
    W, w = cronos.run(rows, data.y, ALPHA * len(rows) ** 0.5, settings)
    inner = back @ W[:-1]
    return module(inner, W[-1] * len(rows) ** -0.5 - mean @ inner, w)


def fitted(data: Pair, model: str) -> tuple[nn.Module | None, Callable[[Array], Array]]:
    """Fit a head; return its network, if it is one, and what predicts labels."""
    if model == "logistic":
        logistic = make_pipeline(StandardScaler(), LogisticRegression())
        return None, logistic.fit(data.X, data.y).predict
    if model == "Adam":
        torch.manual_seed(0)
        layers = [nn.BatchNorm1d(N_FEATURES), nn.Linear(N_FEATURES, HEAD_WIDTH)]
        layers += [nn.BatchNorm1d(HEAD_WIDTH), nn.ReLU(), nn.Linear(HEAD_WIDTH, 2)]
        X, y = torch.as_tensor(data.X).float(), torch.as_tensor(data.y > 0).long()
        head = train(nn.Sequential(*layers), X, y, HEAD_EPOCHS)
        return None, lambda X: np.array([-1.0, 1.0])[
            head(torch.as_tensor(X).float()).argmax(dim=1).numpy()
        ]
    if model == "ours":
        estimator = ConvexBNClassifier(random_state=0)
        return None, replace_head(nn.Identity(), data.X, data.y, estimator=estimator)[1].predict
    if model == "ours, program":
        own = {"loss": "squared_error", "fit_intercept": False, "shrinkage": 0.0}
        estimator = ConvexBNRegressor(ALPHA, tol=0.1, random_state=0, **own)
        network = estimator.fit(data.X, data.y).to_torch()
    elif model == "CRONOS":
        network = cronos_own(data)
    else:
        network = cronos_program(data, LADDER[model])
    return network, lambda X: signs(network, X)


class Heads(Benchmark):
    name = "bench_heads"
    keys = ("set", "model")

    def prepare(self) -> None:
        warm_up()

    def add_options(self, add: Any) -> None:
        add("--sets", nargs="+", choices=PAIRS, default=list(PAIRS))
        add("--models", nargs="+", choices=MODELS, default=MODELS)

    def plan(self) -> Iterable[Cell]:
        for name in self.options.sets:
            for model in self.options.models:
                many = model in LADDER and LADDER[model].n_gates == MANY_GATES
                if not many or PAIRS[name][0] == "cifar10":
                    yield {"set": name, "model": model}

    def measure(self, cell: Cell) -> Cell:
        data, model = pair(cell["set"]), cell["model"]
        if "CRONOS" in model:
            fitted(data, model)  # compiles
        fit = timed(fitted, data, model)
        network, predict = fit.answer
        found = {"test error": data.error(predict(data.X_test))}
        found |= {"train error": float((predict(data.X) != data.y).mean()), "s": fit.cpu}
        if "program" in model:
            judged = certify(
                network.eval(), data.X, data.y, alpha=ALPHA, loss="squared_error", effort="quick",
                fit_intercept=False, random_state=0,
            )  # fmt: skip
            found |= {"objective": judged.primal, "gap": judged.gap}
        return found | {"rows": len(data.X), "test rows": len(data.X_test)}

    def report(self, cells: list[Cell]) -> Iterable[str]:
        yield "Heads on frozen features"
        yield (__doc__ or "").partition("\n\n")[2].partition("::")[0].strip() + "."
        formats = {"test error": ".4f", "train error": ".4f", "s": ".3g"}
        formats |= {"objective": ".5g", "gap": ".3g", "rows": "", "test rows": ""}
        yield markdown(cells, {"set": "", "model": "", **formats}, "")

    def facts(self) -> dict[str, str]:
        import jax

        return {"jax": jax.__version__}


if __name__ == "__main__":
    sys.exit(Heads().main())

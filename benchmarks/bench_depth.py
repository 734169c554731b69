"""Three ways to more than one hidden layer, with defaults: test errors and times.

`stacked` is a layer of this package on another, `head` replaces the last two layers of a torch
network that Adam has trained (`adam`), `path_net` trains two hidden layers together::

    python benchmarks/bench_depth.py [--sets airfoil segment] [--models one_layer path_net]
"""

import _suite  # noqa: F401 - first: it sets the number of threads

# isort: split
import sys
from collections.abc import Iterable
from typing import Any

from _suite.benchmark import Benchmark
from _suite.runner import timed
from _suite.store import Cell
from _suite.tables import geometric_mean, markdown

import numpy as np
import pandas as pd
import torch
from bench_accuracy import Split, make_model, split, warm_up
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_convexbn import (
    ConvexBNClassifier,
    ConvexBNRegressor,
    ConvexBNTransformer,
    PathNetClassifier,
    PathNetRegressor,
    replace_head,
)

SETS = ("airfoil", "concrete", "energy", "segment", "vehicle")
WIDTH, N_STEPS = 64, 1000
nn = torch.nn


def adam(data: Split) -> nn.Sequential:
    """Train three hidden layers, the last two with batch normalization, by full-batch Adam."""
    torch.manual_seed(0)
    X, y = torch.tensor(data.X).float(), torch.tensor(data.y)
    C = int(data.y.max()) + 1 if data.classes else 1
    features = nn.Sequential(nn.BatchNorm1d(X.shape[1]), nn.Linear(X.shape[1], WIDTH))
    features.extend([nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU()])
    head = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU())
    network = nn.Sequential(features, head.append(nn.Linear(WIDTH, C)))
    loss = nn.CrossEntropyLoss() if data.classes else nn.MSELoss()
    target = y if data.classes else ((y - y.mean()) / y.std()).float()[:, None]
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, N_STEPS)
    for _ in range(N_STEPS):
        optimizer.zero_grad()
        loss(network(X), target).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():  # statistics of all rows, as in the last steps
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm1d):
                layer.reset_running_stats()
                layer.momentum = None
        network(X)
    return network.eval()


def output(network: nn.Sequential, X: np.ndarray, classes: bool) -> np.ndarray:
    """Return the predictions of a torch network."""
    with torch.no_grad():
        F = network(torch.tensor(X).float()).numpy()
    return F.argmax(axis=1) if classes else F[:, 0]


def predictor(data: Split, model: str) -> Any:
    """Fit a model to the training rows; return what predicts others."""
    one = (ConvexBNClassifier if data.classes else ConvexBNRegressor)(random_state=0)
    if model in ("adam", "head"):
        network = adam(data)
        centre, scale = (0.0, 1.0) if data.classes else (data.y.mean(), data.y.std(ddof=1))
        if model == "head":
            X = data.X.astype(np.float32)
            network, head = replace_head(network[0], X, data.y, estimator=one)
            return lambda X: head.predict(network[0](torch.tensor(X).float()).detach().numpy())
        return lambda X: output(network, X, data.classes) * scale + centre
    path_net = PathNetClassifier if data.classes else PathNetRegressor
    models = {
        "one_layer": (StandardScaler(), one),
        "stacked": (StandardScaler(), ConvexBNTransformer(one), one),
        "path_net": (path_net(random_state=0),),
        "mlp": (make_model("mlp", data.classes),),
    }
    return make_pipeline(*models[model]).fit(data.X, data.y).predict


class Depth(Benchmark):
    """Test errors and processor seconds of whole fits."""

    name = "bench_depth"
    keys = ("set", "model")
    settings = ("max_train", "seed")
    prepare = staticmethod(warm_up)

    def add_options(self, add: Any) -> None:
        models = ("one_layer", "stacked", "adam", "head", "path_net", "mlp")
        add("--models", nargs="+", choices=models, default=models)
        add("--sets", nargs="+", default=list(SETS))
        add("--max-train", type=int, default=1000)
        add("--seed", type=int, default=0, help="of splits")

    def plan(self) -> Iterable[Cell]:
        for name in self.options.sets:
            for model in self.options.models:
                yield {"set": name, "model": model}

    def measure(self, cell: Cell) -> Cell:
        data = split(cell["set"], self.options.max_train, 5000, self.options.seed)
        fitted = timed(predictor, data, cell["model"])
        return {"error": data.error(fitted.answer(data.X_test)), "cpu": fitted.cpu, **data.sizes}

    def report(self, cells: list[Cell]) -> Iterable[str]:
        yield "Three ways to depth"
        yield (
            f"At most {self.options.max_train} training rows, one split, nothing tuned. Root mean "
            "squared errors in standard deviations of the target, or error rates."
        )
        frame = pd.DataFrame(cells)
        for value, digits in (("error", 4), ("cpu", 2)):
            table = frame.pivot_table(values=value, index="set", columns="model", sort=False)
            means = pd.DataFrame({"geometric mean": table.apply(geometric_mean)}).T
            rows = pd.concat([table, means]).map(lambda v, d=digits: f"{v:.{d}f}")
            rows = [{value: name, **row} for name, row in rows.to_dict("index").items()]
            yield markdown(rows)


if __name__ == "__main__":
    sys.exit(Depth().main())

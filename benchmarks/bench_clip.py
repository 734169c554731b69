"""Test errors with `clip` and without, of the same fits with default parameters.

The option changes predictions, not fits: each network is trained once, on standardised inputs, and
evaluated twice. Test rows are drawn at random, or are the farthest from the mean of the
standardised inputs, a quarter of the rows (of each class). `outside` is the share of test
rows that have a whitened coordinate outside its range in training, which `clip` changes. Errors are
root mean squared errors in standard deviations of the target, or error rates. `predict time` is the
processor time of a prediction of all test rows with `clip` by that without.
"""

import sys
from collections.abc import Iterable
from typing import Any

from _suite.benchmark import Benchmark
from _suite.package import own_model, warm_up, without_clip
from _suite.runner import least_seconds, timed
from _suite.store import Cell
from _suite.tables import geometric_mean, markdown

import numpy as np
import pandas as pd
from bench_accuracy import FOLDERS, Split, load, outcomes, set_names, split
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

#: Which test rows, and the parameters of the fit.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "random": ("random", {}),
    "random, shrinkage=0": ("random", {"shrinkage": 0.0}),
    "farthest": ("farthest", {}),
}


def farthest(name: str, max_train: int, max_test: int, seed: int) -> Split:
    """Return rows near the mean to train with, and the farthest quarter of each class to test."""
    X, y, _, classes = load(name)
    if len(X) > max_train + max_test:
        kept = {"train_size": max_train + max_test, "stratify": y if classes else None}
        X, _, y, _ = train_test_split(X, y, random_state=seed, **kept)
    distance, test = np.linalg.norm(StandardScaler().fit_transform(X), axis=1), np.zeros(len(X))
    for group in [y == label for label in np.unique(y)] if classes else [np.ones(len(y), bool)]:
        test[group] = distance[group] > np.quantile(distance[group], 0.75)
    near, far = np.flatnonzero(test == 0), np.flatnonzero(test)
    if len(near) > max_train:
        strata = y[near] if classes else None
        near = train_test_split(near, train_size=max_train, random_state=seed, stratify=strata)[0]
    return Split(X[near], y[near], X[far], y[far], classes)


class Clip(Benchmark):
    name = "bench_clip"
    keys = ("set", "case")
    settings = ("rows", "max_test", "seed")
    prepare = staticmethod(warm_up)

    def add_options(self, add: Any) -> None:
        add("--sets", nargs="+", default=[], help="these sets only")
        add("--cases", nargs="+", choices=CASES, default=list(CASES))
        add("--rows", type=int, default=1000, help="most rows to train")
        add("--max-test", type=int, default=5000)
        add("--seed", type=int, default=0, help="of splits")

    def plan(self) -> Iterable[Cell]:
        for case in self.options.cases:
            for name in set_names(FOLDERS, self.options.sets):
                yield {"set": name, "case": case}

    def measure(self, cell: Cell) -> Cell:
        which, parameters = CASES[cell["case"]]
        o, draw = self.options, {"random": split, "farthest": farthest}[which]
        data = draw(cell["set"], o.rows, o.max_test, o.seed)
        scaler = StandardScaler().fit(data.X)
        X, X_test = scaler.transform(data.X), scaler.transform(data.X_test)
        model = own_model(data.classes, clip=True, **parameters)
        fitted = timed(model.fit, X, data.y)
        Z = X_test @ model.whitening_["coefs"] + model.whitening_["intercepts"]
        low, high = model.whitened_range_
        plain = without_clip(model)
        return {
            **data.sizes,
            "fit": fitted.cpu,
            "neurons": model.n_neurons_,
            "outside": float(((low > Z) | (high < Z)).any(axis=1).mean()),
            "constant": data.error_of_constant(),
            "error": data.error(plain.predict(X_test)),
            "clipped": data.error(model.predict(X_test)),
            "predict": least_seconds(lambda: plain.predict(X_test), 0.15),
            "predict_clipped": least_seconds(lambda: model.predict(X_test), 0.15),
        }

    def report(self, cells: list[Cell]) -> Iterable[str]:
        o = self.options
        yield "Predictions with whitened coordinates clipped"
        yield (
            f"{(__doc__ or '').strip()}\n\nAt most {o.rows} training and {o.max_test} test rows a "
            f"set, seed {o.seed}. A ratio is the error with `clip` by that without; half a test "
            "row is added to both where they are rates, so that none is of zeros."
        )
        if not cells:
            return
        frame = pd.DataFrame(cells)
        half = np.where(frame["n_classes"] > 0, 0.5 / frame["n_test"], 0.0)
        frame["ratio"] = (frame["clipped"] + half) / (frame["error"] + half)
        frame["predict time"] = frame["predict_clipped"] / frame["predict"]
        yield markdown(self.summary(frame), ".3f")
        columns = dict.fromkeys(("set", "n_train", "d", "n_classes", "neurons"), "")
        columns |= {"outside": ".3f", "constant": ".4f", "error": ".4f", "clipped": ".4f"}
        for case, group in frame.groupby("case", sort=False):
            table = markdown(group, columns | {"ratio": ".3f", "predict time": ".1f"})
            yield f"## {case.capitalize()}\n\n{table}"

    def summary(self, frame: pd.DataFrame) -> Iterable[Cell]:
        """Yield a row for each case and task."""
        for case, group in frame.groupby("case", sort=False):
            for task, part in (*group.groupby("task"), ("all", group)):
                ratio, names = part["ratio"], part["set"]
                errors = (part[key].round(6) for key in ("clipped", "error"))
                best, worst = ratio.idxmin(), ratio.idxmax()
                yield {
                    "case": case,
                    "task": task,
                    "sets": str(len(part)),
                    "outside": float(part["outside"].mean()),
                    "ratio, geometric mean": geometric_mean(ratio),
                    "better / same / worse": outcomes(*errors),
                    "smallest": f"{ratio[best]:.3f} ({names[best]})",
                    "largest": f"{ratio[worst]:.3f} ({names[worst]})",
                    "predict time, median": float(part["predict time"].median()),
                }


if __name__ == "__main__":
    sys.exit(Clip().main())

"""Gaps that fits of path networks report, beside what a larger search sees.

Each set is fitted at fixed alphas and several tolerances, and the network is judged by
``certify_path_net`` from many more starts, drawn by another seed, in float64::

    python benchmarks/bench_path_certificates.py [--sets pol bike] [--tols 0.2 0.1]
"""

import _suite  # noqa: F401 - first: it sets the number of threads

# isort: split
import sys
import warnings
from collections.abc import Iterable
from functools import partial
from typing import Any

from _suite.benchmark import Benchmark
from _suite.runner import timed
from _suite.store import Cell
from _suite.tables import markdown

import numpy as np
from bench_accuracy import split
from sklearn.exceptions import ConvergenceWarning

from sklearn_convexbn import PathNetClassifier, PathNetRegressor, certify_path_net

SETS = (
    *("pol", "bike", "airfoil", "kin40k", "concrete", "housing", "energy", "yacht", "elevators"),
    *("segment", "vehicle", "phoneme", "sonar", "spambase"),
)
STARTS = 50_000


class PathCertificates(Benchmark):
    name = "bench_path_certificates"
    keys = ("set", "tol")
    settings = ("alpha", "max_train", "seed", "starts")
    columns = (
        {"set": "", "rows": "d", "d": "d", "outputs": "d", "tol": "g", "objective": ".5g"}
        | {"sub-networks": "d", "seconds": ".3g", "starts": "d", "gap": ".3f"}
        | {"cautious gap": ".3f", "judge": ".3f", "judge seconds": ".3g", "judge / gap": ".2f"}
    )

    def add_options(self, add: Any) -> None:
        add("--sets", nargs="+", default=list(SETS))
        add("--tols", type=float, nargs="+", default=[0.2, 0.1, 0.05])
        add("--alpha", type=float, default=1e-3)
        add("--max-train", type=int, default=1000)
        add("--starts", type=int, default=STARTS)
        add("--seed", type=int, default=0)

    def plan(self) -> Iterable[Cell]:
        for tol in self.options.tols:
            for name in self.options.sets:
                yield {"set": name, "tol": tol}

    def order(self, cell: Cell) -> Any:
        return SETS.index(cell["set"]), -cell["tol"]

    def measure(self, cell: Cell) -> Cell:
        options = self.options
        data = split(cell["set"], options.max_train, 1000, options.seed)
        kind = PathNetClassifier if data.classes else PathNetRegressor
        model = kind(options.alpha, tol=cell["tol"], random_state=options.seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            seconds = timed(model.fit, data.X, data.y).cpu
        own = model.certificate_
        judging = partial(
            certify_path_net,
            alpha=options.alpha,
            effort=options.starts,
            random_state=options.seed + 1,
        )
        judge = timed(judging, model, data.X, data.y)
        return {
            **{"rows": len(data.X), "d": data.X.shape[1], "outputs": model.coefs_[-1].shape[1]},
            **{"objective": own.primal, "sub-networks": model.n_neurons_, "seconds": seconds},
            **{"starts": own.n_verified, "gap": own.gap, "cautious gap": own.cautious_gap},
            **{"judge": judge.answer.gap, "judge seconds": judge.cpu},
            **{"hits of the judge": judge.answer.n_hits, "judge / gap": judge.answer.gap / own.gap},
        }

    def report(self, cells: list[Cell]) -> Iterable[str]:
        yield "Gaps that fits of path networks report, beside those of a larger search"
        yield (
            f"At alpha {self.options.alpha:g} and at most {self.options.max_train} rows. `starts`: "
            f"of the fit's verification. `judge`: the gap that `certify_path_net` sees from "
            f"{self.options.starts} starts of another seed. Times in processor seconds."
        )
        yield markdown(cells, self.columns, "-")
        yield "## In short\n\n" + markdown(list(self.shares(cells)))

    def shares(self, cells: list[Cell]) -> Iterable[dict[str, Any]]:
        """Yield what is held at each tolerance."""
        for tol in self.options.tols:
            own = [c for c in cells if c["tol"] == tol]
            if own:
                held = {
                    f"judge <= {key}": f"{sum(c['judge'] <= c[key] for c in own)} of {len(own)}"
                    for key in ("gap", "cautious gap")
                }
                ratios = [c["judge / gap"] for c in own]
                yield {
                    "tol": f"{tol:g}",
                    **held,
                    "median judge / gap": float(np.median(ratios)),
                    "largest": max(ratios),
                    "median hits of the judge": float(
                        np.median([c["hits of the judge"] for c in own])
                    ),
                }


if __name__ == "__main__":
    sys.exit(PathCertificates().main())

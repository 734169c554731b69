"""Gaps that fits report, beside what a second judge sees.

Problems are those of ``bench_pursuit.py adam`` and ten of other shapes: several outputs, pooled
patches, many rows, many columns, few of both. Each is fitted at three tolerances, and the gap of
the network is judged again by an ascent of other code from many more starts::

    python benchmarks/bench_certificates.py [--problems yacht iris] [--tols 0.1 0.01]
"""

import _suite  # noqa: F401 - first: it sets the number of threads

# isort: split
import os
import sys
import warnings
from collections.abc import Iterable
from typing import Any, NamedTuple

from _suite import data
from _suite.benchmark import Benchmark
from _suite.data import Array
from _suite.judge import judged_gap
from _suite.package import own_model, verifications
from _suite.runner import clock
from _suite.store import Cell
from _suite.tables import markdown

import numpy as np
import torch
from bench_pursuit import CASES, Clocked, ClockedPursuit
from sklearn import datasets
from sklearn.exceptions import ConvergenceWarning

from sklearn_convexbn import Patches

STARTS = 200_000
SIZE, STRIDE = 4, 2  # of patches
ALLOWED = 0.1  # of the tolerance: what a judge may see above a gap


class Problem(NamedTuple):
    """A data set of a folder, in a form (``outputs``, ``patches`` or none)."""

    data: str
    loss: str
    alpha: float
    folder: str = "uci"
    form: str = ""
    rows: int | None = None

    @property
    def name(self) -> str:
        return f"{self.data} {self.form}".strip()

    def load(self) -> tuple[Array, Array]:
        """Return inputs and targets, those of regression of unit variance."""
        if self.folder == "uci":
            X, y = data.load(self.data)
        else:
            X, y = data.read(data.data_folder() / self.folder / f"{self.data}.npz", "X", "y")
        if self.rows:
            chosen = np.random.RandomState(0).permutation(len(X))[: self.rows]
            X, y = X[chosen], y[chosen]
        if self.form == "outputs":
            X, y = X[:, :-1], np.stack([y, X[:, -1]], axis=1)
        if self.form == "even or odd":
            y = y % 2
        squared = self.loss == "squared"
        return X, (y - y.mean(axis=0)) / y.std(axis=0) if squared else y.astype(int)

    @property
    def patches(self) -> Patches | None:
        """How images are cut, for global average pooling."""
        if not self.form or self.form == "outputs":
            return None
        return Patches((8, 8), size=SIZE, stride=STRIDE, pooling=1)


OTHERS = "uci_classification"
PROBLEMS = (
    *(Problem(case.data, case.loss, case.alpha) for case in CASES),
    Problem("iris", "softmax", 0.01),
    Problem("banknote", "logistic", 0.01, OTHERS),
    Problem("wheat_seeds", "softmax", 0.003, OTHERS),
    Problem("sonar", "logistic", 0.01, OTHERS),
    Problem("housing", "squared", 0.01, form="outputs"),
    Problem("vehicle", "softmax", 0.01, OTHERS),
    Problem("digits", "softmax", 0.01, form="patches", rows=300),
    Problem("digits", "logistic", 0.01, form="even or odd", rows=300),
    Problem("spambase", "logistic", 0.01, OTHERS, rows=1000),
    Problem("kin40k", "squared", 0.01, rows=10_000),
)


def cut(X: Array) -> Array:
    """Return the patches (n K, h) of images of 8 x 8."""
    windows = np.lib.stride_tricks.sliding_window_view(X.reshape(-1, 8, 8), (SIZE, SIZE), (1, 2))
    return windows[:, ::STRIDE, ::STRIDE].reshape(-1, SIZE * SIZE)


class Certificates(Benchmark):
    name = "bench_certificates"
    keys = ("data", "alpha", "tol")
    settings = ("seed", "limit")
    columns = (
        {"data": "", "loss": "", "rows": "d", "k": "d", "outputs": "d", "alpha": "g", "tol": "g"}
        | {"objective": ".6f", "seconds": ".3g", "share": ".2f", "kind": "", "starts": "d"}
        | {"hits": "d", "gap": ".2e", "cautious gap": ".2e", "judge": ".2e"}
        | {"above gap": "+.2f", "above cautious": "+.2f"}
    )

    def add_options(self, add: Any) -> None:
        add("--problems", nargs="+", help="names of data sets")
        add("--tols", type=float, nargs="+", default=[0.2, 0.1, 0.01, 0.001])
        add("--seed", type=int, default=0)
        add("--limit", type=float, default=300.0, help="seconds of a fit's rounds")

    def problems(self) -> list[Problem]:
        asked = self.options.problems
        return [p for p in PROBLEMS if not asked or p.data in asked]

    def plan(self) -> Iterable[Cell]:
        for tol in self.options.tols:
            for problem in self.problems():
                yield {"data": problem.name, "alpha": problem.alpha, "tol": tol}

    def order(self, cell: Cell) -> Any:
        names = [(p.name, p.alpha) for p in PROBLEMS]
        return names.index((cell["data"], cell["alpha"])), -cell["tol"]

    def prepare(self) -> None:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        own_model(False, tol=0.5).fit(*datasets.load_diabetes(return_X_y=True))  # loads torch

    def measure(self, cell: Cell) -> Cell:
        problem = next(p for p in PROBLEMS if (p.name, p.alpha) == (cell["data"], cell["alpha"]))
        (X, y), squared = problem.load(), problem.loss == "squared"
        chosen = {"alpha": problem.alpha, "tol": cell["tol"], "random_state": self.options.seed}
        if problem.patches is not None:
            chosen["patches"] = problem.patches
        model = own_model(not squared, shrinkage=0.0, solver=ClockedPursuit(), **chosen)
        Clocked.late = clock() + self.options.limit
        with warnings.catch_warnings(), verifications() as verified:
            warnings.simplefilter("ignore", ConvergenceWarning)
            start = clock()
            model.fit(X, y)
            seconds = clock() - start
        certificate, start = model.certificate_, clock()
        outputs = (model.predict if squared else model.decision_function)(X)
        rows = X if problem.patches is None else cut(X)
        network = y, outputs, problem.alpha, model.objective_
        judge = judged_gap(problem.loss, rows, *network, n_starts=STARTS)
        excess = {"gap": certificate.gap, "cautious gap": certificate.cautious_gap}
        above = {f"above {k.split()[0]}": (judge - gap) / cell["tol"] for k, gap in excess.items()}
        return {
            **{"loss": problem.loss, "rows": len(rows), "k": np.linalg.matrix_rank(rows) + 1},
            **{"outputs": outputs.reshape(len(y), -1).shape[1], "objective": model.objective_},
            **{"seconds": seconds, "share": sum(verified) / seconds, "verifications": verified},
            **{"kind": certificate.step, "starts": certificate.n_verified},
            **{"hits": certificate.n_hits, "rounds": model.n_iter_, "judge": judge},
            **excess,
            **{"judge seconds": clock() - start},
            **above,
        }

    def report(self, cells: list[Cell]) -> Iterable[str]:
        yield "Gaps that fits report, beside those of a second judge"
        yield (
            "A fit at `tol`, without shrinkage, regression targets of unit variance, in processor "
            f"seconds (its rounds end after {self.options.limit:g}); `share` of them took its "
            "verifications. `rows` of `k` numbers are whitened: patches, where an image has nine. "
            "`kind`: what the gap rests on; an exact one is proven. `starts` and `hits` are the "
            "verification's. `judge`: the gap that an ascent of other code sees from "
            f"{STARTS} starts, without polishing. `above`: what it sees above the gap and the "
            "cautious gap, in units of `tol`."
        )
        yield markdown(cells, self.columns, "-")
        yield "## In short\n\n" + markdown(list(self.shares(cells)))

    def shares(self, cells: list[Cell]) -> Iterable[dict[str, Any]]:
        """Yield what is held, at each tolerance and at all."""
        for tol in (*self.options.tols, None):
            for kind in ("all", "estimated"):
                own = [c for c in cells if tol in (None, c["tol"])]
                own = [c for c in own if kind == "all" or c["kind"] != "exact"]
                counts = {
                    key: f"{sum(c[key] <= ALLOWED for c in own)} of {len(own)}"
                    for key in ("above gap", "above cautious")
                }
                shares = [c["share"] for c in own if c["starts"]]
                yield {
                    "tol": "all" if tol is None else f"{tol:g}",
                    "certificates": kind,
                    f"judge <= gap + {ALLOWED:g} tol": counts["above gap"],
                    f"judge <= cautious gap + {ALLOWED:g} tol": counts["above cautious"],
                    "median share of verification": float(np.median(shares)) if shares else None,
                    "most above gap": max((c["above gap"] for c in own), default=None),
                }


if __name__ == "__main__":
    sys.exit(Certificates().main())

"""What finds violators of the dual, and what proves that there are none.

Dual points are those that fits without shrinkage end with at tol = 1e-3. ``search``: seconds of
repeated searches of a fit's last rounds, with DC steps and without, to within 0.1 % of the largest
correlation known. ``proof``: branch and bound over cones, to a proved gap of 0.01. ``enumeration``:
the same beside the enumeration of all arrangements, where that is affordable::

    python benchmarks/bench_search.py [--parts search proof enumeration] [--limit 3] [--proof 60]
"""

import _suite  # noqa: F401 - first: it sets the number of threads

# isort: split
import os
import sys
import warnings
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from _suite import data
from _suite.benchmark import Benchmark
from _suite.data import Array
from _suite.package import DualPoint, own_model
from _suite.runner import clock, timed
from _suite.store import Cell
from _suite.tables import geometric_mean, markdown

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning

from sklearn_convexbn.solvers import Pursuit

WITHIN, PROVED, SEEDS = 1e-3, 0.01, 3
KNOWN_STARTS, FEWER_STARTS, WIDE = 20_000, 3000, 60  # of the largest value known; wide: so many k
FIRST_EVALUATIONS, MOST_EVALUATIONS = 20_000, 1_000_000
PARTS, WAYS = ("search", "proof", "enumeration"), ("without", "with")
WORDS = (
    "Where fits without shrinkage end at tol = 1e-3. Processor seconds.\n\n"
    f"Search: seconds of repeated searches to within {WITHIN:g} of the largest correlation known, "
    f"without DC steps and with, geometric means of {SEEDS} runs. Where not all got there in "
    "{limit:g} s their number is given, and the others count as {limit:g} s. The largest known is "
    f"that of two searches with DC steps from {KNOWN_STARTS} starts ({FEWER_STARTS} from "
    f"k = {WIDE} on).\n\n"
    f"Proof: by branch and bound over cones, until a gap of {PROVED:g} is proved or about "
    "{proof:g} s have gone (attempts of fewer evaluations before are not counted).\n\n"
    "Enumeration: seconds to the largest correlation over all arrangements, by cones to a "
    f"billionth of it (at most {MOST_EVALUATIONS} evaluations) and to a proved gap of {PROVED:g}. "
    "`affordable`: where fits enumerate. `difference`: of the bound by cones, relative."
)


class State(NamedTuple):
    """The end of a fit; of `random` data the number of inputs is that of components."""

    part: str
    data: str
    alpha: float
    loss: str = "squared"
    folder: str = "uci"
    components: int | None = None
    rows: int | None = None
    seed: int = 0
    fit: str | None = None  # without DC steps

    def load(self) -> tuple[Array, Array]:
        """Return inputs and targets: of unit variance, or one class against the rest."""
        if self.data == "random":
            rng = np.random.default_rng(0)
            X = rng.standard_normal((self.rows, self.components))
            hidden = np.maximum(X @ rng.standard_normal((self.components, 10)), 0.0)
            y = hidden @ rng.standard_normal(10)
            y = y / y.std() + 0.3 * rng.standard_normal(len(X))
        elif self.folder == "uci":
            X, y = data.load(self.data)
        else:
            X, y = data.read(data.data_folder() / self.folder / f"{self.data}.npz", "X", "y")
        if self.rows:
            X, y = X[: self.rows], y[: self.rows]
        if self.loss == "squared":
            return X, (y - y.mean()) / y.std()
        return X, (y == 1).astype(int) if self.loss == "logistic" else y.astype(int)

    def reached(self) -> DualPoint:
        """Fit."""
        X, y = self.load()
        chosen = {"alpha": self.alpha, "n_components": self.components, "random_state": self.seed}
        fixed = {"tol": 1e-3, "shrinkage": 0.0, "max_iter": 60, "solver": Pursuit(n_verify=0)}
        model = own_model(self.loss != "squared", **chosen, **fixed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            return DualPoint(lambda: model.fit(X, y), polished=self.fit is None)


SEARCHED = (
    *(("diabetes", 0.03), ("diabetes", 0.01), ("yacht", 0.01), ("yacht", 0.001), ("energy", 0.01)),
    *(("energy", 0.001), ("concrete", 0.01), ("concrete", 0.001), ("airfoil", 0.01)),
    *(("airfoil", 0.001), ("autompg", 0.003), ("housing", 0.003)),
)
OTHERS = "uci_classification"
SEARCHES = (
    *(State("search", name, alpha) for name, alpha in SEARCHED),
    State("search", "concrete", 0.001, seed=1),
    State("search", "wine", 0.01, "softmax"),
    State("search", "breast_cancer", 0.01, "logistic"),
    State("search", "digits", 0.01, "softmax"),
)
STATES = (
    *SEARCHES,
    *(state._replace(fit="without") for state in SEARCHES),
    State("proof", "banknote", 0.01, "logistic", OTHERS),
    State("proof", "airfoil", 0.1),
    State("proof", "airfoil", 0.03),
    State("proof", "yacht", 0.03),
    State("proof", "iris", 0.01, "logistic"),
    State("proof", "phoneme", 0.03, "logistic", OTHERS),
    State("proof", "phoneme", 0.01, "logistic", OTHERS),
    State("proof", "yacht", 0.01),
    State("proof", "airfoil", 0.01),
    State("proof", "concrete", 0.01),
    *(State("proof", "random", 0.03, components=k - 1, rows=500) for k in (6, 7, 8)),
    State("enumeration", "diabetes", 0.03, components=2),
    State("enumeration", "airfoil", 0.03, components=2),
    State("enumeration", "diabetes", 0.03, components=3, rows=100),
    State("enumeration", "yacht", 0.03, components=3),
    State("enumeration", "airfoil", 0.03, components=4, rows=25),
)


def seconds_until(target: float, largest: Callable[..., float], limit: float) -> float | None:
    """Return when repeated searches have found so much, if they do within a limit."""
    top, start = 0.0, clock()
    while top < target:
        if clock() - start > limit:
            return None
        top = max(top, largest(100, 100))
    return clock() - start


class SearchTables(Benchmark):
    name = "bench_search"
    keys = ("part", "data", "alpha", "components", "seed", "fit")
    settings = ("limit", "proof")

    def add_options(self, add: Any) -> None:
        add("--parts", nargs="+", choices=PARTS, default=PARTS)
        add("--limit", type=float, default=3.0, help="seconds of repeated searches")
        add("--proof", type=float, default=60.0, help="seconds of a proof, about")

    def plan(self) -> Iterable[Cell]:
        chosen = [state for state in STATES if state.part in self.options.parts]
        return [{key: getattr(state, key) for key in self.keys} for state in chosen]

    def order(self, cell: Cell) -> Any:
        names = [[getattr(state, key) for key in self.keys] for state in STATES]
        return names.index([cell.get(key) for key in self.keys])

    def prepare(self) -> None:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        State("search", "diabetes", 0.1).reached()  # loads torch

    def measure(self, cell: Cell) -> Cell:
        state = next(s for s in STATES if all(getattr(s, k) == cell[k] for k in self.keys))
        point = state.reached()
        n, k = point.rows[0].shape
        ways = {"search": self.searched, "proof": self.proved, "enumeration": self.enumerated}
        return {"loss": state.loss, "n": n, "k": k, **ways[state.part](point)}

    def searched(self, point: DualPoint) -> Cell:
        starts = KNOWN_STARTS if len(point.known) < WIDE else FEWER_STARTS
        searches = [point.searcher(100 + seed, True) for seed in range(2)]
        best = max(largest(starts, point.known.shape[1]) for largest in searches)
        row: Cell = {"largest / alpha": best / point.alpha}
        for name, polished in zip(WAYS, (False, True), strict=True):
            searches = [point.searcher(seed, polished) for seed in range(SEEDS)]
            target = (1.0 - WITHIN) * best
            row[name] = [seconds_until(target, run, self.options.limit) for run in searches]
        return row

    def proved(self, point: DualPoint) -> Cell:
        """Prove in growing numbers of evaluations, the last of which takes about the limit."""
        count, limit = FIRST_EVALUATIONS, self.options.proof
        while True:
            answer = timed(point.by_cones, PROVED, count)
            bound, spent = answer.answer
            if point.gap(bound) <= PROVED * (1 + 1e-6) or 2.0 * answer.cpu > limit:
                break
            count = int(count * min(8.0, limit / answer.cpu))
        return {"evaluations": spent, "seconds": answer.cpu, "proved gap": point.gap(bound)}

    def enumerated(self, point: DualPoint) -> Cell:
        whole = timed(point.by_enumeration)
        to_maximum = timed(point.by_cones, None, MOST_EVALUATIONS)
        to_gap = timed(point.by_cones, PROVED, MOST_EVALUATIONS)
        value, affordable = whole.answer
        return {
            "affordable": "yes" if affordable else "no",
            "enumeration": whole.cpu,
            "cones": to_maximum.cpu,
            "cones to a gap": to_gap.cpu,
            "difference": to_maximum.answer[0] / value - 1.0,
        }

    def report(self, cells: list[Cell]) -> Iterable[str]:
        parts = {key: [c for c in cells if c["part"] == key] for key in PARTS}
        key = {"data": "", "loss": "", "alpha": "g", "n": "d", "k": "d"}
        own = key | {
            "seed": "d",
            "largest / alpha": ".5f",
            "without": "",
            "with": "",
            "ratio": ".3g",
        }
        yield "Search, proof and enumeration"
        yield WORDS.format(**vars(self.options))
        for fit in ("with", "without"):
            rows = [self.row(c) for c in parts["search"] if (c.get("fit") or "with") == fit]
            mean = geometric_mean(row["ratio"] for row in rows)
            yield f"## Search, where fits {fit} DC steps end\n\n" + markdown(rows, own, "-")
            yield f"Geometric mean of the ratios: {mean:.3g}."
        own = {"evaluations": "d", "seconds": ".3g", "proved gap": ".1e"}
        yield "## Proof\n\n" + markdown(parts["proof"], key | own, "-")
        own = {"affordable": "", "enumeration": ".3g", "cones": ".3g", "cones to a gap": ".3g"}
        own |= {"difference": ".1e"}
        yield "## Enumeration\n\n" + markdown(parts["enumeration"], key | own, "-")

    def row(self, cell: Cell) -> Cell:
        """Return a row of the table of searches."""
        means = [geometric_mean([s or self.options.limit for s in cell[n]]) for n in WAYS]
        counts = [sum(s is not None for s in cell[n]) for n in WAYS]
        texts = [
            f"{m:.3g}" + f" ({c} of {SEEDS})" * (c < SEEDS)
            for m, c in zip(means, counts, strict=True)
        ]
        return cell | dict(zip(WAYS, texts, strict=True)) | {"ratio": means[0] / means[1]}


if __name__ == "__main__":
    sys.exit(SearchTables().main())

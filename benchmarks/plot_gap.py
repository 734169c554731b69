"""Relative gap against time, all solvers, from the kept results of two benchmarks.

Every point is a run from scratch, at one tolerance or number of steps.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).resolve().parent
PANELS = {
    "bench_gated": "gated ReLU, {gates} gates",
    "bench_lists": "exact ReLU, {gates} arrangements",
}
#: Name, grey level, line and marker of each solver.
STYLES = {
    "ours": ("this package", "0.0", "-", "o"),
    "numpy_fista": ("NumPy FISTA", "0.45", "--", "v"),
    "scnn": ("scnn", "0.3", "-.", "s"),
    "skglm": ("skglm", "0.3", ":", "D"),
    "celer": ("celer", "0.5", "-", "^"),
    "adelie": ("adelie", "0.5", "--", "P"),
    "cvxpy": ("CVXPY, Clarabel", "0.3", "-", "X"),
}
CLOCKS = {"wall": "seconds", "cpu": "processor seconds"}
FLOOR = 1e-7  # what is below is drawn here


def points_of(cells: list[dict[str, Any]], *key: Any) -> list[tuple[float, float]]:
    """Return (seconds, gap) of a cell, without the answers no better than a sooner one."""
    found = (c["points"] for c in cells if (c["data"], c["fraction"], c["solver"]) == key)
    kept: list[tuple[float, float]] = []
    for seconds, gap in sorted((p["seconds"], max(p["gap"], FLOOR)) for p in next(found, [])):
        if not kept or gap < kept[-1][1]:
            kept.append((seconds, gap))
    return kept


def main() -> None:
    """Draw the figure with one panel for each program."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    default = HERE.parent / "docs" / "images" / "gap_against_time.png"
    parser.add_argument("figure", type=Path, nargs="?", default=default)
    parser.add_argument("--data", default="concrete")
    parser.add_argument("--fraction", type=float, default=0.01)
    o = parser.parse_args()
    fig, panels = plt.subplots(1, len(PANELS), figsize=(9, 4.4), sharey=True, layout="constrained")
    curves = {}
    for axes, (name, title) in zip(panels, PANELS.items(), strict=True):
        content = json.loads((HERE / "results" / f"{name}.json").read_text(encoding="utf-8"))
        settings = content["settings"]
        axes.set(xscale="log", yscale="log", xlabel=f"{CLOCKS[settings['clock']]}, one thread")
        axes.set_title(title.format(**settings), fontsize=10)
        axes.grid(which="major", color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
        for solver, (label, grey, line, marker) in STYLES.items():
            if points := points_of(content["cells"], o.data, o.fraction, solver):
                own = solver == "ours"
                sizes = {"ms": 6 if own else 4.5, "lw": 2.4 if own else 1.2, "zorder": 2 + own}
                look = {"color": grey, "linestyle": line, "marker": marker, **sizes}
                (curves[label],) = axes.plot(*zip(*points, strict=True), **look)
    panels[0].set(ylabel="relative gap, certified", ylim=(0.7 * FLOOR, 0.5))
    fig.suptitle(rf"{o.data}, $\alpha$ = {o.fraction:g} $\alpha_{{\mathrm{{max}}}}$", fontsize=10)
    fig.legend(curves.values(), curves, loc="outside lower center", ncols=7, frameon=False)
    fig.savefig(o.figure, dpi=150)


if __name__ == "__main__":
    main()

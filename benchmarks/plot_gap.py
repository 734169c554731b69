"""Relative gap against time, all solvers, from the kept results of two benchmarks.

Every point is a run from scratch, at one tolerance or number of steps, in ``bench_gated.json`` and
``bench_lists.json``, or, for solvers that are not in there, in files whose names continue theirs::

    python benchmarks/plot_gap.py [FIGURE] [--data concrete] [--fraction 0.01]

matplotlib is needed.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.transforms import Bbox

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


def draw(axes: Any, cells: list[dict[str, Any]], data: str, fraction: float) -> list[Any]:
    """Draw one panel, each curve labelled at its end; return the labels."""
    labels = []
    for solver, (name, grey, line, marker) in STYLES.items():
        if not (points := points_of(cells, data, fraction, solver)):
            continue
        own = solver == "ours"
        sizes = {"markersize": 6 if own else 4.5, "linewidth": 2.4 if own else 1.2}
        look = {"color": grey, "linestyle": line, "marker": marker, "zorder": 3 if own else 2}
        axes.plot(*zip(*points, strict=True), **look, **sizes)
        place = {"xytext": (4, -4), "textcoords": "offset points", "va": "top"}
        font = {"fontsize": 8, "fontweight": "bold" if own else "normal", "color": grey}
        labels.append(axes.annotate(name, points[-1], **place, **font))
    axes.grid(which="major", color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    return labels


def spread(fig: plt.Figure, labels: list[Any]) -> None:
    """Move labels down until none is on another or on a point, from the left to the right."""
    fig.canvas.draw()
    placed = [
        Bbox.from_bounds(x - 3, y - 3, 6, 6)
        for line in labels[0].axes.lines
        for x, y in line.get_transform().transform(line.get_xydata())
    ]
    for label in sorted(labels, key=lambda label: label.xy):
        while any(label.get_window_extent().overlaps(box) for box in placed):
            x, y = label.get_position()
            label.set_position((x, y - 1))
        placed.append(label.get_window_extent())


def main() -> None:
    """Draw the figure with one panel for each program."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    default = HERE.parent / "docs" / "images" / "gap_against_time.png"
    parser.add_argument("figure", type=Path, nargs="?", default=default)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--data", default="concrete")
    parser.add_argument("--fraction", type=float, default=0.01)
    o = parser.parse_args()
    fig, panels = plt.subplots(1, len(PANELS), figsize=(9, 4), sharey=True, layout="constrained")
    labels = []
    for axes, (name, title) in zip(panels, PANELS.items(), strict=True):
        paths = sorted(o.results.glob(f"{name}*.json"), key=lambda path: len(path.name))
        contents = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
        settings = contents[0]["settings"]
        axes.set(xscale="log", yscale="log", xlabel=f"{CLOCKS[settings['clock']]}, one thread")
        axes.set_title(title.format(**settings), fontsize=10)
        cells = [cell for content in contents for cell in content["cells"]]
        labels.append(draw(axes, cells, o.data, o.fraction))
        axes.set_xlim(right=3.5 * axes.get_xlim()[1])  # room for the labels
    panels[0].set(ylabel="relative gap, certified", ylim=(0.7 * FLOOR, 0.5))
    fig.suptitle(rf"{o.data}, $\alpha$ = {o.fraction:g} $\alpha_{{\mathrm{{max}}}}$", fontsize=10)
    for group in labels:
        spread(fig, group)
    o.figure.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(o.figure, dpi=150)


if __name__ == "__main__":
    main()

"""Relative gap against time, all solvers, from the kept results of two benchmarks.

Every point is a run from scratch, at one tolerance or number of steps, in ``courses`` of
``bench_gated.json`` and ``bench_lists.json``, or, for solvers that are not in there, of files
whose names continue theirs::

    python benchmarks/plot_gap.py [FIGURE] [--data concrete] [--fraction 0.01]

matplotlib is needed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

HERE = Path(__file__).resolve().parent
PANELS = {
    "bench_gated": "gated ReLU, {gates} gates",
    "bench_lists": "exact ReLU, {gates} arrangements",
}
#: Name, grey level, line and marker of each solver.
STYLES: dict[str, tuple[str, str, str, str]] = {
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


def course_points(content: dict[str, Any], solver: str, data: str, fraction: float) -> list[Any]:
    """Return (seconds, gap) of a solver, without the answers no better than a sooner one."""
    points: list[tuple[float, float]] = []
    for course in content["courses"]:
        if (course["data"], course["fraction"], course["solver"]) == (data, fraction, solver):
            points = [(p["seconds"], max(p["gap"], FLOOR)) for p in course["points"]]
    kept: list[tuple[float, float]] = []
    for seconds, gap in sorted(points):
        if not kept or gap < kept[-1][1]:
            kept.append((seconds, gap))
    return kept


def draw(
    axes: Axes, contents: Sequence[dict[str, Any]], data: str, fraction: float
) -> list[Annotation]:
    """Draw one panel, each curve labelled at its end; return the labels."""
    labels = []
    for solver, (name, grey, line, marker) in STYLES.items():
        found = (course_points(content, solver, data, fraction) for content in contents)
        points = next(filter(None, found), None)
        if not points:
            continue
        own = solver == "ours"
        axes.plot(
            *zip(*points, strict=True),
            color=grey,
            linestyle=line,
            marker=marker,
            markersize=6 if own else 4.5,
            linewidth=2.4 if own else 1.2,
            zorder=3 if own else 2,
        )
        label = axes.annotate(
            name,
            points[-1],
            xytext=(4, -4),
            textcoords="offset points",
            fontsize=8,
            fontweight="bold" if own else "normal",
            color=grey,
            va="top",
        )
        labels.append(label)
    axes.set(
        xscale="log", yscale="log", xlabel=f"{CLOCKS[contents[0]['options']['clock']]}, one thread"
    )
    axes.grid(which="major", color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    return labels


def spread(fig: plt.Figure, labels: Sequence[Annotation]) -> None:
    """Move labels down until none is on another or on a point, from the left to the right."""
    fig.canvas.draw()
    placed: list[Bbox] = []
    for line in labels[0].axes.lines:
        for x, y in line.get_transform().transform(line.get_xydata()):
            placed.append(Bbox.from_bounds(x - 3, y - 3, 6, 6))
    for label in sorted(labels, key=lambda label: label.xy):
        while any(label.get_window_extent().overlaps(box) for box in placed):
            x, y = label.get_position()
            label.set_position((x, y - 1))
        placed.append(label.get_window_extent())


def figure(results: Path, data: str, fraction: float) -> plt.Figure:
    """Return the figure with one panel for each program."""
    fig, panels = plt.subplots(1, len(PANELS), figsize=(9, 4), sharey=True, layout="constrained")
    labels = []
    for axes, (name, title) in zip(panels, PANELS.items(), strict=True):
        paths = sorted(results.glob(f"{name}*.json"), key=lambda path: len(path.name))
        contents = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
        labels.append(draw(axes, contents, data, fraction))
        axes.set_title(title.format(**contents[0]["options"]), fontsize=10)
        axes.set_xlim(right=3.5 * axes.get_xlim()[1])  # room for the labels
    panels[0].set(ylabel="relative gap, certified", ylim=(0.7 * FLOOR, 0.5))
    fig.suptitle(rf"{data}, $\alpha$ = {fraction:g} $\alpha_{{\mathrm{{max}}}}$", fontsize=10)
    for group in labels:
        spread(fig, group)
    return fig


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    default = HERE.parent / "docs" / "images" / "gap_against_time.png"
    parser.add_argument("figure", type=Path, nargs="?", default=default)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--data", default="concrete")
    parser.add_argument("--fraction", type=float, default=0.01)
    options = parser.parse_args(arguments)
    options.figure.parent.mkdir(parents=True, exist_ok=True)
    figure(options.results, options.data, options.fraction).savefig(options.figure, dpi=150)
    return 0


if __name__ == "__main__":
    sys.exit(main())

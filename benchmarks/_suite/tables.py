"""Tables in markdown, the files that keep them, and the commands that fill them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from _suite.circumstances import circumstances
from _suite.objectives import Objective
from _suite.running import Cell, Course, climb
from _suite.solvers import CLOCK, Solver

#: Text of a cell, from the row it is in.
CellText = Callable[[dict[str, Cell], str], str]
OWN = "ours"


def markdown_table(cells: Sequence[Cell], names: Sequence[str], text: CellText) -> str:
    """Return a table with one row for each data set, penalty and target gap."""
    rows: dict[tuple[str, float, float], dict[str, Cell]] = {}
    for cell in cells:
        rows.setdefault((cell.data, cell.fraction, cell.target), {})[cell.solver] = cell
    lines = [
        "| data | alpha/alpha_max | gap | " + " | ".join(names) + " |",
        "|---|---|---|" + "---:|" * len(names),
    ]
    for (data, fraction, target), row in rows.items():
        texts = [text(row, name) for name in names]
        lines.append(f"| {data} | {fraction:g} | {target:g} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


@dataclass(frozen=True)
class Report:
    """A benchmark's report: its courses with the limit in seconds of a call."""

    title: str
    words: str
    solvers: Sequence[Solver]
    limit: float
    objectives: Sequence[Objective]
    courses: Sequence[Course]
    violations: bool = False

    @property
    def cells(self) -> list[Cell]:
        return [cell for course in self.courses for cell in course.cells]

    def seconds(self, row: dict[str, Cell], name: str) -> str:
        """Return a cell's time."""
        cell = row.get(name)
        if cell is None:
            return ""
        if cell.status == "reached":
            return f"{cell.seconds:.3g}"
        if cell.status == "not reached":
            return f"gap {cell.gap:.0e}"
        return {"limit": f">{self.limit:g}", "skipped": "skip", "failed": "fail"}[cell.status]

    def setup(self, row: dict[str, Cell], name: str) -> str:
        """Return the part of a cell's time that went in building its input."""
        cell = row.get(name)
        return "-" if cell is None or cell.setup is None else f"{cell.setup:.3g}"

    def violation(self, row: dict[str, Cell], name: str) -> str:
        """Return by how much the last answer was outside its cones before it was judged."""
        cell = row.get(name)
        return "-" if cell is None or cell.violation is None else f"{cell.violation:.0e}"

    def ratio(self, row: dict[str, Cell], name: str) -> str:
        """Return a cell's time over ours; of the "best peer", the least of a row."""
        own = row.get(OWN)
        if own is None or own.status != "reached":
            return "-"
        names = [key for key in row if key != OWN] if name == "best peer" else [name]
        cells = [row[key] for key in names if key in row]
        reached = [cell.seconds for cell in cells if cell.status == "reached"]
        if reached:
            return f"{min(reached) / own.seconds:.3g}"
        if any(cell.status == "limit" for cell in cells):
            return f">{self.limit / own.seconds:.3g}"
        return "-"

    def parts(self) -> Iterator[str]:
        """Yield the parts of the report."""
        cells, names = self.cells, [solver.name for solver in self.solvers]
        yield f"# {self.title}\n\n{self.words}\n"
        yield "\n".join(objective.facts for objective in self.objectives)
        clock = f"Seconds of {CLOCK['name']} time, set-up included (limit {self.limit:g} a call)"
        yield f"\n## {clock}\n\n" + markdown_table(cells, names, self.seconds)
        if OWN in names and len(names) > 1:
            peers = [*(name for name in names if name != OWN), "best peer"]
            yield "\n## Ratios peer / ours\n\n" + markdown_table(cells, peers, self.ratio)
        if self.violations:
            yield (
                "\n## Largest cone violation of the answer returned\n\n"
                "Of the answer that reached the gap, else of the last within the limit.\n\n"
            ) + markdown_table(cells, names, self.violation)
        else:
            table = markdown_table(cells, names, self.setup)
            yield "\n## Seconds of set-up among these\n\n" + table
        for status, heading in (("skipped", "Skipped"), ("failed", "Failed")):
            reasons = dict.fromkeys(
                f"- {c.solver} on {c.data}: {c.note}" for c in cells if c.status == status
            )
            if reasons:
                yield f"\n## {heading}\n\n" + "\n".join(reasons)
        facts = (f"- {key}: {value}" for key, value in circumstances().items())
        yield "\n## Circumstances\n\n" + "\n".join(facts)

    def write(self, path: Path, options: dict[str, Any]) -> None:
        """Write the report to `path` with ``.md``, and what is behind it with ``.json``."""
        path.parent.mkdir(parents=True, exist_ok=True)
        text = "\n".join(self.parts()) + "\n"
        path.with_suffix(".md").write_text(text, encoding="utf-8")
        content = {
            "circumstances": circumstances(),
            "options": options,
            "cells": [asdict(cell) for cell in self.cells],
            "courses": [
                {key: value for key, value in asdict(course).items() if key != "cells"}
                for course in self.courses
            ],
        }
        rows = json.dumps(content, indent=1)
        path.with_suffix(".json").write_text(rows + "\n", encoding="utf-8")


def fill(
    report: Report,
    objectives: Sequence[tuple[float, Objective]],
    options: argparse.Namespace,
    path: Path,
) -> None:
    """Run every solver on every objective, given with its fraction of alpha_max.

    The results are written after each solver.
    """
    settings = {key: value for key, value in vars(options).items() if key != "results"}
    courses: list[Course] = report.courses  # type: ignore[assignment]
    for fraction, objective in objectives:
        for solver in report.solvers:
            course = climb(
                solver, objective, fraction, options.targets, options.limit, options.inline
            )
            courses.append(course)
            texts = [report.seconds({cell.solver: cell}, solver.name) for cell in course.cells]
            print(objective.name, f"{fraction:g}", solver.name, texts, flush=True)
            report.write(path, settings)
    print("\n" + path.with_suffix(".md").read_text(encoding="utf-8"))


def run_command(
    description: str,
    name: str,
    solvers: Sequence[Solver],
    *,
    check: Callable[[Sequence[Solver]], bool],
    run_table: Callable[[Sequence[Solver], argparse.Namespace], None],
    limit: float,
    gates: int,
    targets: Sequence[float],
) -> int:
    """Read the command line of a table of times to a gap and fill it, or check the solvers.

    `limit`, `gates` and `targets` are the defaults of options. Returns the exit status.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    _add_options(parser, solvers, name)
    parser.add_argument("--limit", type=float, default=limit, help="seconds a call")
    parser.add_argument("--gates", type=int, default=gates, help="gates or arrangements")
    parser.add_argument("--targets", type=float, nargs="+", default=targets, help="relative gaps")
    options = parser.parse_args()
    CLOCK["name"] = options.clock
    chosen = [solver for solver in solvers if solver.name in options.solvers]
    if options.check:
        return 0 if check(chosen) else 1
    run_table(chosen, options)
    return 0


def _add_options(parser: argparse.ArgumentParser, solvers: Sequence[Solver], name: str) -> None:
    """Add the options that all tables of times to a gap have."""
    default, names = Path(__file__).parents[1] / "results", [solver.name for solver in solvers]
    parser.add_argument(
        "results", type=Path, nargs="?", help="folder for the results", default=default
    )
    parser.add_argument("--name", default=name, help="of the files there")
    parser.add_argument(
        "--fractions", type=float, nargs="+", default=[0.1, 0.01, 0.001], help="alpha / alpha_max"
    )
    parser.add_argument("--solvers", nargs="+", choices=names, default=names)
    parser.add_argument("--data", nargs="+", help="keep these data sets only")
    parser.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu: processor seconds, for a shared machine and one thread only",
    )
    parser.add_argument(
        "--inline", action="store_true", help="no forked processes: the limit is not enforced"
    )
    parser.add_argument(
        "--check", action="store_true", help="only compare objectives with CVXPY's on diabetes"
    )

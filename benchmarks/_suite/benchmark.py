"""What a benchmark is, and the command that fills its table."""

import argparse
import sys
import time
import traceback
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from sklearn.exceptions import ConvergenceWarning

from _suite.circumstances import circumstances, circumstances_block
from _suite.store import Cell, Store
from _suite.tables import text

RESULTS = Path(__file__).resolve().parents[1] / "results"


class Benchmark(ABC):
    """A table: a plan of cells, their measurement and the report."""

    name: str  # of the files of results
    keys: tuple[str, ...]  # what names a cell
    settings: tuple[str, ...] = ()  # options that all cells have in common
    options: argparse.Namespace  # the command line

    @abstractmethod
    def add_options(self, add: Any) -> None:
        """Add options, with the parser's ``add_argument``."""

    @abstractmethod
    def plan(self) -> Iterable[Cell]:
        """Yield the cells to be measured: their keys and whatever else defines them."""

    @abstractmethod
    def measure(self, cell: Cell) -> Cell:
        """Return what is measured for a planned cell."""

    @abstractmethod
    def report(self, cells: list[Cell]) -> Iterable[str]:
        """Yield title, words and tables; `cells` are those that did not fail."""

    def prepare(self) -> None:  # noqa: B027
        """Do what is to be done before the first measurement, and in no time of one."""

    def facts(self) -> dict[str, str]:
        """Return circumstances besides the usual ones."""
        return {}

    def order(self, cell: Cell) -> Any:
        """Return what cells are sorted by in the report; by default they are in order of time."""
        return 0

    def draw(self, cells: list[Cell]) -> None:  # noqa: B027
        """Draw figures, after the last cell."""

    def parse(self, arguments: Sequence[str] | None = None) -> argparse.Namespace:
        """Read the command line."""
        parser = argparse.ArgumentParser(
            description=sys.modules[type(self).__module__].__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        add = parser.add_argument
        self.add_options(add)
        add("--results", type=Path, default=RESULTS, help="folder")
        add("--name", default=self.name, help="of the files there")
        add("--force", action="store_true", help="measure cells again that are there")
        add("--list", action="store_true", help="list the cells and whether they are there")
        add("--report", action="store_true", help="measure nothing, write the report")
        return parser.parse_args(arguments)

    def main(self, arguments: Sequence[str] | None = None) -> int:
        """Measure what is missing, writing the report after every cell; return the exit status."""
        self.options = options = self.parse(arguments)
        warnings.simplefilter("ignore", ConvergenceWarning)
        return self.run(options.results / f"{options.name}.json")

    def run(self, path: Path) -> int:
        """Fill the table of a file."""
        options = self.options
        chosen = {key: getattr(options, key) for key in self.settings}
        self.store = Store(path, self.keys, None if options.report else chosen, options.force)
        vars(options).update(self.store.settings)
        plan = list(self.plan())
        if options.list:
            for cell in plan:
                print(self.label(cell), self.store.why_missing(cell) or "there", sep=": ")
            return 0
        todo = [c for c in plan if options.force or self.store.why_missing(c)]
        failures = 0 if options.report or not todo else self.fill(todo)
        if not self.store.cells and not self.store.content["notes"]:
            raise SystemExit(f"There are no cells in {path}.")
        print("\n" + self.write(plan))
        self.draw(self.finished())
        return int(failures > 0)

    def fill(self, todo: list[Cell]) -> int:
        """Measure cells; return how many failed."""
        print(f"{len(todo)} cells to measure", flush=True)
        self.prepare()
        run, failures = circumstances() | self.facts(), 0
        for cell in todo:
            try:
                found = self.measure(cell)
            except Exception as error:  # the others go on, the report names this one
                traceback.print_exc()
                found = {"failure": f"{type(error).__name__}: {error}"[:300]}
                failures += 1
            self.store.add({**cell, **found}, run)
            self.write(todo)
            print(time.strftime("%H:%M:%S"), self.label(cell), self.said(found), flush=True)
        return failures

    def label(self, cell: Cell) -> str:
        """Return the name of a cell in words."""
        return " ".join(text(cell.get(key), "", "-") for key in self.keys)

    def said(self, found: Cell) -> str:
        """Return what is printed of a measurement: its numbers and short texts."""
        short = {k: v for k, v in found.items() if isinstance(v, (int, float, str))}
        return ", ".join(f"{key} {text(value)}" for key, value in short.items())

    def finished(self) -> list[Cell]:
        """Return the cells that did not fail, in the order of the report."""
        return sorted((c for c in self.store.cells if "failure" not in c), key=self.order)

    def write(self, plan: Iterable[Cell]) -> str:
        """Write and return the report, with what is missing of a plan."""
        title, words, *tables = self.report(self.finished())
        notes = [self.store.content["notes"]] if self.store.content["notes"] else []
        parts = [f"# {title}", *filter(None, [words]), *notes, *tables]
        absent: dict[str, list[str]] = {}
        for cell in plan:
            if reason := self.store.why_missing(cell):
                *others, last = (text(cell.get(key), "", "-") for key in self.keys)
                absent.setdefault(f"- {last}, {reason}", []).append(" ".join(others))
        if absent:
            lines = [f"{what}: {', '.join(names)}".rstrip(": ") for what, names in absent.items()]
            parts.append("## Missing cells\n\n" + "\n".join(lines))
        if self.store.runs():
            parts.append(circumstances_block(self.store.runs()))
        report = "\n\n".join(parts) + "\n"
        self.store.path.with_suffix(".md").write_text(report, encoding="utf-8")
        return report

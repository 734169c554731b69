"""What a benchmark is, and the command that fills its table."""

import argparse
import sys
import time
import traceback
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from _suite.circumstances import circumstances, circumstances_block
from _suite.store import Cell, Store
from _suite.tables import markdown, text

from sklearn.exceptions import ConvergenceWarning

RESULTS = Path(__file__).resolve().parents[1] / "results"


class Benchmark(ABC):
    """A table: a plan of cells, their measurement and the report."""

    name: str  # of the files of results
    keys: tuple[str, ...]  # what names a cell
    settings: tuple[str, ...] = ()  # options that all cells have in common
    options: argparse.Namespace  # the command line
    title: str
    words: str = ""
    columns: Mapping[str, str]  # of a report with one table, and their formats

    @abstractmethod
    def add_options(self, add: Any) -> None:
        """Add options, with the parser's ``add_argument``."""

    @abstractmethod
    def plan(self) -> Iterable[Cell]:
        """Yield the cells to be measured: their keys and whatever else defines them."""

    @abstractmethod
    def measure(self, cell: Cell) -> Cell:
        """Return what is measured for a planned cell."""

    def report(self, cells: list[Cell]) -> Iterable[str]:
        """Yield title, words and tables; `cells` are those that did not fail."""
        yield self.title
        yield self.words
        yield markdown(cells, self.columns, "-")

    def prepare(self) -> None:  # noqa: B027
        """Do what is to be done before the first measurement, and in no time of one."""

    def facts(self) -> dict[str, str]:
        """Return circumstances besides the usual ones."""
        return {}

    def draw(self, cells: list[Cell]) -> None:  # noqa: B027
        """Draw figures, after the last cell."""

    def order(self, cell: Cell) -> Any:
        """Return what cells are sorted by in the report: their place in the plan, or behind it."""
        key = [cell.get(name) for name in self.keys]
        places = (i for i, one in enumerate(self.planned) if [one[k] for k in self.keys] == key)
        return next(places, len(self.planned))

    @cached_property
    def planned(self) -> list[Cell]:
        """The cells of the plan."""
        return list(self.plan())

    def main(self, arguments: Sequence[str] | None = None) -> int:
        """Measure what is missing, writing the report after every cell; return the exit status."""
        parser = argparse.ArgumentParser(
            description=sys.modules[type(self).__module__].__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        add = parser.add_argument
        self.add_options(add)
        add("--results", type=Path, default=RESULTS, help="folder")
        add("--name", default=self.name, help="of the files there")
        add("--report", action="store_true", help="measure nothing, write the report")
        self.options = options = parser.parse_args(arguments)
        warnings.simplefilter("ignore", ConvergenceWarning)
        chosen = None if options.report else {key: getattr(options, key) for key in self.settings}
        self.store = Store(options.results / f"{options.name}.json", self.keys, chosen)
        vars(options).update(self.store.settings)
        todo = [c for c in self.planned if not options.report and self.store.why_missing(c)]
        failures = self.fill(todo) if todo else 0
        if not self.store.cells and not self.store.content["notes"]:
            raise SystemExit(f"There are no cells in {self.store.path}.")
        print("\n" + self.write())
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
            self.write()
            short = {k: v for k, v in found.items() if isinstance(v, (int, float, str))}
            said = ", ".join(f"{key} {text(value)}" for key, value in short.items())
            print(time.strftime("%H:%M:%S"), *self.label(cell), said, flush=True)
        return failures

    def label(self, cell: Cell) -> list[str]:
        """Return the name of a cell in words."""
        return [text(cell.get(key), "", "-") for key in self.keys]

    def finished(self) -> list[Cell]:
        """Return the cells that did not fail, in the order of the report."""
        return sorted((c for c in self.store.cells if "failure" not in c), key=self.order)

    def write(self) -> str:
        """Write and return the report, with what is missing of the plan."""
        title, words, *tables = self.report(self.finished())
        parts = [f"# {title}", *filter(None, [words, self.store.content["notes"]]), *tables]
        absent: dict[str, list[str]] = {}
        for cell in self.planned:
            if reason := self.store.why_missing(cell):
                *others, last = self.label(cell)
                absent.setdefault(f"- {last}, {reason}", []).append(" ".join(others))
        if absent:
            lines = [f"{what}: {', '.join(names)}".rstrip(": ") for what, names in absent.items()]
            parts.append("## Missing cells\n\n" + "\n".join(lines))
        if self.store.runs():
            parts.append(circumstances_block(self.store.runs()))
        report = "\n\n".join(parts) + "\n"
        self.store.path.with_suffix(".md").write_text(report, encoding="utf-8")
        return report


def command(*kinds: type[Benchmark]) -> int:
    """Run the one of some benchmarks that the first word of the command line names."""
    tables = {kind.__name__.lower(): kind for kind in kinds}
    if len(sys.argv) < 2 or sys.argv[1] not in tables:
        raise SystemExit(f"Name a table first: {', '.join(tables)}.")
    return tables[sys.argv[1]]().main(sys.argv[2:])

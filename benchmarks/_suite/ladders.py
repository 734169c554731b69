"""Times to a gap: every solver on every objective, down its ladder until all gaps are reached."""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from _suite.benchmark import Benchmark
from _suite.objectives import Objective
from _suite.package import OWN
from _suite.runner import CLOCK, quietly
from _suite.solvers import Solver
from _suite.store import Cell
from _suite.tables import markdown

#: One solver's entry in a row of a table: its status and the numbers of one answer.
Entry = dict[str, Any]
BEST = "best peer"


def climb(solver: Solver, objective: Objective, targets: Sequence[float], limit: float) -> Cell:
    """Walk down a solver's ladder until every target gap is reached.

    A rung without an answer is passed over. Of a solver that comes so far and no further, one
    rung without progress is enough. Returns the judged answers, how it ended and a note of that.
    """
    if reason := solver.why_skip(objective.loss):
        return {"end": "skipped", "note": reason, "points": []}
    points: list[Entry] = []
    end, note, best = "not reached", "", math.inf
    for rung in solver.ladder:
        answer = solver.solve_apart(objective, rung, limit)
        if answer.seconds > limit:
            end, note = "limit", answer.note
            break
        if answer.S is None:
            note = note if points else answer.note
            continue
        verdict, note = objective.judge(answer.S), answer.note
        judged = {"gap": verdict.gap, "violation": verdict.violation, "primal": verdict.primal}
        points.append({"rung": rung, "seconds": answer.seconds, **judged})
        if verdict.gap <= min(targets):
            end = "reached"
            break
        if 0.9 * best < verdict.gap <= solver.accuracy:
            break
        best = min(best, verdict.gap)
    end = "failed" if not points and end != "limit" else end
    return {"end": end, "note": note, "points": points}


def entry(cell: Cell, target: float) -> Entry:
    """Return what a solver did for a target gap: the first answer that has it, else the last."""
    reached = (point for point in cell["points"] if point["gap"] <= target)
    if point := next(reached, None):
        return {"status": "reached", **point}
    last = cell["points"][-1] if cell["points"] else {}
    return {**last, "status": cell["end"], "seconds": None}


class LadderBenchmark(Benchmark):
    """A table of times to a gap."""

    keys = ("data", "fraction", "solver")
    settings = ("clock", "limit", "gates", "targets")
    solvers: tuple[Solver, ...]
    limit: float  # and these: defaults of options
    gates: int
    targets: tuple[float, ...]

    @abstractmethod
    def data(self) -> list[str]:
        """Return the names of the data sets there are."""

    @abstractmethod
    def objective(self, name: str, fraction: float) -> Objective:
        """Return an objective that answers are judged by."""

    @abstractmethod
    def small_objectives(self, n_gates: int) -> Iterable[Objective]:
        """Yield objectives to warm up with."""

    def add_options(self, add: Any) -> None:
        names = [solver.name for solver in self.solvers]
        add("--data", nargs="+", help="these data sets only")
        add("--fractions", type=float, nargs="+", default=[0.1, 0.01, 0.001], help="of alpha_max")
        add("--solvers", nargs="+", choices=names, default=names)
        add("--targets", type=float, nargs="+", default=list(self.targets), help="relative gaps")
        add("--gates", type=int, default=self.gates, help="gates or arrangements")
        add("--limit", type=float, default=self.limit, help="seconds a call")
        clocks = "cpu: processor seconds, for a shared machine and one thread only"
        add("--clock", choices=("wall", "cpu"), default="wall", help=clocks)

    def plan(self) -> Iterable[Cell]:
        for name in (n for n in self.data() if n in (self.options.data or [n])):
            for fraction in self.options.fractions:
                for solver in self.options.solvers:
                    yield {"data": name, "fraction": fraction, "solver": solver}

    def prepare(self) -> None:
        """Compile the code of just-in-time solvers on small objectives, in this process.

        The others are left alone: a solver with threads of its own (Clarabel's pool) that has
        once run here would hang in the forked processes.
        """
        CLOCK["name"] = self.options.clock
        compiled = [s for s in self.solvers if s.compiled and s.name in self.options.solvers]
        for objective in self.small_objectives(20):
            for solver in compiled:
                if not solver.why_skip(objective.loss):
                    quietly(solver.solve, objective, solver.ladder[2], 60.0)

    def measure(self, cell: Cell) -> Cell:
        objective, options = self.objective(cell["data"], cell["fraction"]), self.options
        solver = next(s for s in self.solvers if s.name == cell["solver"])
        found = climb(solver, objective, options.targets, options.limit)
        return found | {"about": objective.facts}

    def table(self, cells: list[Cell], show: Callable[..., str], own: bool = True) -> str:
        """Return a table with one row for each data set, penalty and target gap.

        `show` gives the text of a solver's entry in a row of them; where ours are left out, of the
        best peer's too.
        """
        there = {cell["solver"] for cell in cells}
        names = [s.name for s in self.solvers if s.name in there and (own or s.name != OWN)]
        rows: dict[tuple[str, float, float], dict[str, Entry]] = {}
        for cell in cells:
            for target in self.options.targets:
                row = rows.setdefault((cell["data"], cell["fraction"], target), {})
                row[cell["solver"]] = entry(cell, target)
        first = "data", "alpha/alpha_max", "gap"
        columns = names if own else [*names, BEST]
        return markdown(
            [
                dict(zip(first, key, strict=True)) | {name: show(row, name) for name in columns}
                for key, row in rows.items()
            ],
            "g",
        )

    def seconds(self, row: dict[str, Entry], name: str) -> str:
        """Return a solver's time, or why there is none."""
        if name not in row:
            return ""
        status = row[name]["status"]
        if status == "reached":
            return f"{row[name]['seconds']:.3g}"
        if status == "not reached":
            return f"gap {row[name]['gap']:.0e}"
        return {"limit": f">{self.options.limit:g}", "skipped": "skip", "failed": "fail"}[status]

    def ratio(self, row: dict[str, Entry], name: str) -> str:
        """Return a solver's time over ours; of the best peer, the least of a row."""
        own = row.get(OWN, {"status": ""})
        if own["status"] != "reached":
            return "-"
        peers = [e for key, e in row.items() if key == name or (name == BEST and key != OWN)]
        reached = [one["seconds"] for one in peers if one["status"] == "reached"]
        if reached:
            return f"{min(reached) / own['seconds']:.3g}"
        late = any(one["status"] == "limit" for one in peers)
        return f">{self.options.limit / own['seconds']:.3g}" if late else "-"

    def times(self, cells: list[Cell]) -> Iterable[str]:
        """Yield what there is to know, the table of times and that of ratios."""
        clock, limit = self.options.clock, self.options.limit
        yield "\n".join(dict.fromkeys(cell["about"] for cell in cells))
        heading = f"## Seconds of {clock} time, set-up included (limit {limit:g} a call)"
        yield f"{heading}\n\n{self.table(cells, self.seconds)}"
        yield f"## Ratios peer / ours\n\n{self.table(cells, self.ratio, own=False)}"

    def reasons(self, cells: list[Cell]) -> Iterable[str]:
        """Yield why solvers were skipped or failed."""
        for end in ("skipped", "failed"):
            own = [cell for cell in cells if cell["end"] == end]
            lines = dict.fromkeys(f"- {c['solver']} on {c['data']}: {c['note']}" for c in own)
            if lines:
                yield f"## {end.capitalize()}\n\n" + "\n".join(lines)

"""Runs of solvers under a limit, and the cells of a table."""

from __future__ import annotations

import math
import multiprocessing
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from _suite.objectives import Objective, Verdict
from _suite.solvers import CLOCK, Answer, Solver

GRACE = 10.0  # seconds beyond the limit, for imports and for solvers that stop late


def run_inline(solver: Solver, objective: Objective, rung: float, limit: float) -> Answer:
    """Call a solver in this process."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return solver.solve(objective, rung, limit)


def _child(pipe: Any, solver: Solver, objective: Objective, rung: float, limit: float) -> None:
    """Send an answer, or the text of an error, through the pipe."""
    if CLOCK["name"] == "cpu":
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(limit + GRACE),) * 2)
    try:
        pipe.send(run_inline(solver, objective, rung, limit))
    except BaseException as error:
        pipe.send(Answer(None, math.nan, note=f"{type(error).__name__}: {error}"[:300]))
    pipe.close()


def run_limited(
    solver: Solver, objective: Objective, rung: float, limit: float, inline: bool = False
) -> Answer:
    """Call a solver in a forked process that is ended soon after the limit."""
    if inline or "fork" not in multiprocessing.get_all_start_methods():
        return run_inline(solver, objective, rung, limit)
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(sender, solver, objective, rung, limit))
    process.start()
    sender.close()
    answer = None
    if receiver.poll(limit + GRACE if CLOCK["name"] == "wall" else None):
        try:
            answer = receiver.recv()
        except EOFError:  # the process was ended, by its limit of processor time or not
            process.join()
            if CLOCK["name"] == "wall":
                answer = Answer(None, math.nan, note=f"ended: {process.exitcode}")
    process.kill()
    process.join()
    return answer or Answer(None, math.inf, note="ended at the limit")


def warm_up(solvers: Sequence[Solver], objectives: Iterable[Objective]) -> None:
    """Compile the code of just-in-time solvers on small objectives, in this process.

    The others are left alone: a solver with threads of its own (Clarabel's pool) that
    has once run here would hang in the forked processes.
    """
    for objective in objectives:
        for solver in solvers:
            if solver.compiled and solver.why_skip(objective.loss) is None:
                run_inline(solver, objective, solver.ladder[2], 60.0)


@dataclass
class Cell:
    """The outcome of one solver on one objective and target gap."""

    data: str
    fraction: float
    target: float
    solver: str
    status: str  # "reached", "limit", "not reached", "skipped" or "failed"
    seconds: float | None = None
    setup: float | None = None
    rung: float | None = None
    gap: float | None = None
    violation: float | None = None
    note: str = ""


@dataclass
class Course:
    """What one solver did on one objective: its answers rung by rung, and the cells they fill."""

    data: str
    fraction: float
    solver: str
    points: list[dict[str, float]] = field(default_factory=list)
    cells: list[Cell] = field(default_factory=list, repr=False)

    @classmethod
    def waiting(cls, data: str, fraction: float, solver: str, targets: Sequence[float]) -> Course:
        """Return the course before the first rung."""
        cells = [Cell(data, fraction, target, solver, "not reached") for target in targets]
        return cls(data, fraction, solver, cells=cells)

    def set(self, **values: Any) -> None:
        """Set values of the cells whose targets are not reached."""
        for cell in self.cells:
            if cell.status == "not reached":
                for key, value in values.items():
                    setattr(cell, key, value)

    def failed(self, note: str) -> None:
        """Note that a rung had no answer, where none has had one before."""
        if not self.points:
            self.set(note=note)

    def note(self, rung: float, answer: Answer, verdict: Verdict) -> bool:
        """Note a judged answer; return whether all targets are reached."""
        seconds = answer.setup + answer.solve
        judged = {"gap": verdict.gap, "violation": verdict.violation}
        self.points.append({"rung": rung, "seconds": seconds, "setup": answer.setup, **judged})
        self.set(rung=rung, note=answer.note, **judged)
        for cell in self.cells:
            if cell.status == "not reached" and verdict.gap <= cell.target:
                cell.status, cell.seconds, cell.setup = "reached", seconds, answer.setup
        return all(cell.status == "reached" for cell in self.cells)


def climb(
    solver: Solver,
    objective: Objective,
    fraction: float,
    targets: Sequence[float],
    limit: float,
    inline: bool = False,
) -> Course:
    """Walk down a solver's ladder until every target gap is reached.

    A rung without an answer is passed over. Of a solver that comes so far and no further, one
    rung without progress is enough.
    """
    course = Course.waiting(objective.name, fraction, solver.name, targets)
    reason = solver.why_skip(objective.loss)
    if reason is not None:
        course.set(note=reason, status="skipped")
        return course
    best = math.inf
    for rung in solver.ladder:
        answer = run_limited(solver, objective, rung, limit, inline)
        seconds = answer.setup + answer.solve
        if answer.S is None and not seconds > limit:
            course.failed(answer.note)
            continue
        if seconds > limit:
            course.set(note=answer.note, status="limit")
            break
        verdict = objective.judge(answer.S)
        if course.note(rung, answer, verdict) or 0.9 * best < verdict.gap <= solver.accuracy:
            break
        best = min(best, verdict.gap)
    if not course.points:  # cells at the limit keep that status
        course.set(status="failed")
    return course


def agrees(
    solver: Solver, objective: Objective, exact: float, tight: float, accuracy: float
) -> bool:
    """Print and return whether one solver comes to the exact value, with a gap of `tight`.

    The solver goes down the lower half of its ladder until the judge's gap is `tight`, so that a
    wrong scale anywhere shows as a gap that is never reached or as a difference. One that comes
    less close by its nature is held to that.
    """
    tight, accuracy = max(tight, solver.accuracy), max(accuracy, solver.accuracy)
    reason = solver.why_skip(objective.loss)
    if reason is not None:
        print(f"  {solver.name:12s} skipped: {reason}")
        return True
    verdict = Verdict(math.inf, -math.inf)
    for rung in solver.ladder[len(solver.ladder) // 2 :]:
        answer = run_limited(solver, objective, rung, 60.0)
        if answer.S is None:
            print(f"  {solver.name:12s} no answer at {rung:g}: {answer.note}")
            continue
        verdict = objective.judge(answer.S)
        if verdict.gap <= tight:
            break
    difference = abs(verdict.primal - exact) / exact
    agree = difference <= accuracy and verdict.gap <= tight
    print(
        f"  {solver.name:12s} {verdict.primal:.9f}  difference {difference:.1e}  "
        f"gap {verdict.gap:.1e} at {rung:g}  {'ok' if agree else 'DIFFERS'}",
        flush=True,
    )
    return agree

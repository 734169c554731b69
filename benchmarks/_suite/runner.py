"""Calls on a clock, with warnings counted, and in processes of their own under a limit."""

import math
import multiprocessing
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning

GRACE = 10.0  # seconds beyond the limit, for imports and for what stops late
PATIENCE = 20.0  # wall seconds for a processor second, at most: other processes may run
CLOCK = {"name": "cpu"}
LIMIT = "ended at the limit"


def clock() -> float:
    """Return this process's own time, or wall time where a command asks for it."""
    return time.process_time() if CLOCK["name"] == "cpu" else time.perf_counter()


@dataclass(frozen=True)
class Timed:
    """What a call returned, its processor and wall seconds, and how often it did not converge."""

    answer: Any
    cpu: float
    wall: float
    warned: int


def timed(action: Callable[..., Any], *arguments: Any) -> Timed:
    """Call on the clock."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cpu, wall = time.process_time(), time.perf_counter()
        answer = action(*arguments)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return Timed(answer, cpu, wall, sum(issubclass(w.category, ConvergenceWarning) for w in caught))


def least_seconds(action: Callable[[], object], least: float = 0.5) -> float:
    """Return processor seconds of one call: the least of three means over about `least` s."""
    action()
    count = max(1, int(least / 3 / max(timed(action).cpu, 1e-6)))
    means = []
    for _ in range(3):
        start = time.process_time()
        for _ in range(count):
            action()
        means.append((time.process_time() - start) / count)
    return min(means)


def quietly(work: Callable[..., Any], *arguments: Any) -> Any:
    """Call without warnings."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return work(*arguments)


def _child(pipe: Any, limit: float, memory: float, work: Any, arguments: tuple[Any, ...]) -> None:
    """Send the answers, each in a tuple, and last how it ended."""
    if math.isfinite(limit):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        soft = math.ceil(time.process_time() + limit + GRACE)  # SIGXCPU, a second later SIGKILL
        resource.setrlimit(resource.RLIMIT_CPU, (soft, soft + 1))
    if math.isfinite(memory):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (int(memory * 2**30),) * 2)
    end = "done"
    try:
        quietly(lambda: [pipe.send((answer,)) for answer in work(*arguments)])
    except MemoryError:
        end = f"above {memory:g} GiB of memory"
    except BaseException as error:
        end = f"{type(error).__name__}: {error}"[:300]
    pipe.send(end)


def run_apart(
    work: Callable[..., Iterator[Any]],
    *arguments: Any,
    limit: float = math.inf,
    memory: float = math.inf,
    start: str = "fork",
    watch: Callable[[int, int], None] | None = None,
) -> tuple[list[Any], str]:
    """Run the generator ``work(*arguments)`` in a process of its own.

    It is ended soon after `limit` seconds of the clock in use, and may have `memory` GiB of address
    space; `start` is "fork" or "spawn". `watch` is called every 2 ms with the process's number and
    the number of answers so far. Returns the answers, and "done", :data:`LIMIT` or what went wrong.
    """
    context = multiprocessing.get_context(start)
    receiver, sender = context.Pipe(duplex=False)
    cpu = limit if CLOCK["name"] == "cpu" else math.inf
    process = context.Process(target=_child, args=(sender, cpu, memory, work, arguments))
    process.start()
    sender.close()
    answers: list[Any] = []
    wall = (limit + GRACE) * (PATIENCE if CLOCK["name"] == "cpu" else 1.0)
    last, end = time.perf_counter() + wall, LIMIT
    try:
        while (left := last - time.perf_counter()) > 0:
            if not receiver.poll(0.002 if watch else min(left, 3600.0)):
                if watch:
                    watch(process.pid or 0, len(answers))
                continue
            message = receiver.recv()
            if isinstance(message, str):
                end = message
                break
            answers += message
    except EOFError:  # ended by its limit of processor time, or for its memory
        process.join()
        if process.exitcode != -signal.SIGXCPU:
            end = f"ended with code {process.exitcode}"
    process.kill()
    process.join()
    return answers, end

"""The cells of a table in one JSON file, from which a stopped run goes on.

The file holds ``settings``, which all cells have in common; ``notes``, words for the report that
are written by hand; ``runs``, the circumstances of measurements; and ``cells``, one a line, each
with the number of its run. Cells that failed are kept with ``failure`` and tried again.
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Cell = dict[str, Any]


def plain(value: Any) -> Any:
    """Return a value as JSON gives it back: NumPy's numbers as Python's, tuples as lists."""
    return json.loads(json.dumps(value, default=lambda a: a.tolist()))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes that lock the folder out."""
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


class Store:
    """The cells of one file, named by their `keys`; several processes may add cells to it.

    `settings` are what all cells have in common; None takes those of the file. Where the file has
    cells of other settings this ends the program.
    """

    def __init__(self, path: Path, keys: Sequence[str], settings: Cell | None) -> None:
        self.path, self.keys = path, keys
        self.content = self._read()
        kept = self.content["settings"]
        self.settings = plain(kept if settings is None else settings)
        changed = {key: value for key, value in self.settings.items() if kept.get(key) != value}
        if changed and self.cells:
            said = ", ".join(f"{key} {kept.get(key)} (now {new})" for key, new in changed.items())
            raise SystemExit(
                f"{path} was measured with other settings: {said}. Give the same to go on with "
                "it, another --name or --results for another table, or remove the file."
            )
        self.content["settings"] = self.settings

    def _read(self) -> dict[str, Any]:
        empty: dict[str, Any] = {"settings": {}, "notes": "", "runs": [], "cells": []}
        there = self.path.is_file()
        return empty | json.loads(self.path.read_text(encoding="utf-8")) if there else empty

    @property
    def cells(self) -> list[Cell]:
        """All cells, those that failed too."""
        return self.content["cells"]

    def place(self, cell: Cell) -> int | None:
        """Return where the cell of this name is."""
        keys = [[one.get(key) for key in self.keys] for one in (cell, *self.cells)]
        return keys.index(keys[0], 1) - 1 if keys[0] in keys[1:] else None

    def why_missing(self, planned: Cell) -> str:
        """Return why there is no cell for a plan, or nothing when there is."""
        planned = plain(planned)
        place = self.place(planned)
        if place is None:
            return "not run"
        cell = self.cells[place]
        if "failure" in cell:
            return f"failed: {cell['failure']}"
        different = [key for key, value in planned.items() if cell.get(key) != value]
        return f"run with another {', '.join(different)}" if different else ""

    def add(self, cell: Cell, run: dict[str, str]) -> None:
        """Add a cell that was measured in a run, in place of an older one, and write the file."""
        with locked(self.path.parent):
            latest = self._read()  # with what another process may have added
            if latest["settings"] == self.settings:
                self.content = latest
            runs = self.content["runs"]
            if run not in runs:
                runs.append(run)
            cell, place = plain({**cell, "run": runs.index(run)}), self.place(cell)
            at = len(self.cells) if place is None else place
            self.cells[at : at + 1] = [cell]
            self._write()

    def runs(self) -> list[dict[str, str]]:
        """Return the runs that cells are of."""
        used = {cell["run"] for cell in self.cells}
        return [run for i, run in enumerate(self.content["runs"]) if i in used]

    def _write(self) -> None:
        """Write the file at once, so that it is whole whenever the process is stopped."""
        lines = {key: self.content[key] for key in ("runs", "cells")}
        texts = {key: json.dumps(value) for key, value in self.content.items()}
        texts |= {k: "[\n" + ",\n".join(map(json.dumps, v)) + "\n]" for k, v in lines.items()}
        parts = [f'"{key}": {text}' for key, text in texts.items()]
        beside = self.path.with_suffix(f".{os.getpid()}.tmp")
        beside.write_text("{" + ",\n".join(parts) + "}\n", encoding="utf-8")
        beside.replace(self.path)

"""Tables in markdown."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import gmean

#: What a text that stands for a number begins with: numbers are set to the right.
NUMBER = re.compile(r"[*>±+-]*\d")


def text(value: Any, form: str | None = None, missing: str = "") -> str:
    """Return an entry of a table, by default with three digits or as a whole number."""
    if value is None:
        return missing
    if isinstance(value, str):
        return value
    if isinstance(value, (list, tuple)):
        return ", ".join(text(item, form, str(None)) for item in value)
    if form is None:
        form = ".3g" if isinstance(value, float) and abs(value) < 1e3 else ",.0f"
    return f"{value:{form}}"


def markdown(
    rows: pd.DataFrame | Iterable[Mapping[str, Any]],
    form: str | Mapping[str, str] | None = None,
    missing: str = "",
) -> str:
    """Return a table: numbers in a format, or in that of each column, which chooses columns too."""
    columns = list(form) if isinstance(form, Mapping) else None
    frame = pd.DataFrame(rows, columns=columns, dtype=object)
    frame = frame.where(frame.notna(), None)
    forms = form if isinstance(form, Mapping) else dict.fromkeys(frame.columns, form)
    texts = {key: [text(v, forms[key], missing) for v in frame[key]] for key in frame.columns}
    lines = [
        list(texts),
        ["---:" if any(map(NUMBER.match, entries)) else "---" for entries in texts.values()],
        *zip(*texts.values(), strict=True),
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def geometric_mean(values: Iterable[float | None]) -> float:
    """Return the geometric mean of what there is, NaN of nothing."""
    found = [value for value in values if value is not None]
    return float(gmean(found)) if found else float(np.nan)

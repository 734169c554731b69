"""Data as users pass them, checked before work begins: rows, targets, labels and weights.

scikit-learn's validation looks for missing and infinite values before objects become numbers;
here they are converted first. What is refused is named: the argument, the column with its dtype,
the row.
"""

from __future__ import annotations

import reprlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Number, Real
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.utils import assert_all_finite, check_X_y
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import column_or_1d, validate_data

from sklearn_convexbn.support._arrays import as_numpy, is_tensor
from sklearn_convexbn.support._compat import check_sample_weight

#: What X may be, as arguments of scikit-learn's validation: it is read a block of rows at a time,
#: in float64.
ACCEPTED_X: dict[str, Any] = {"accept_sparse": "csr", "dtype": "numeric"}

#: How the names of the types of dates and durations begin in pandas, polars and Arrow.
TIMES = ("date", "time", "duration", "period", "interval")

#: Columns, or types, that a message names at most.
NAMED = 5


class InputError(ValueError, TypeError):
    """Data that are no finite numbers; also the TypeError that ``float`` raises for some."""


def validated_rows(estimator: Any, X: Any) -> Any:
    """Return X (n, d), of the kind that `estimator` was fitted to, for prediction.

    Raises
    ------
    ValueError
        For other features than those of the fit, or entries that are no finite numbers.
    """
    X = _plain_tensor(X)
    with _explained(X):
        return _float64_where_needed(validate_data(estimator, X, **ACCEPTED_X, reset=False))


def validated_data(
    X: Any,
    y: Any,
    sample_weight: Any,
    *,
    labels: bool,
    estimator: Any = None,
    reset: bool = False,
) -> tuple[Any, np.ndarray, np.ndarray]:
    """Return X (n, d), y (n,) or (n, C) and weights (n,) that can be computed with.

    Parameters
    ----------
    X : array-like, tensor, sparse matrix or data frame
    y : array-like
    sample_weight : array-like, number or None
    labels : bool
        Whether y holds labels of classes, which may be strings, or numbers.
    estimator : estimator, default=None
        Whose features those of X are.
    reset : bool, default=False
        Whether `estimator` is fitted, and is to note the features.

    Raises
    ------
    ValueError
        For entries that are missing, no numbers or not finite, and for shapes that do not fit.
    TypeError
        For a sparse y.
    """
    X = _plain_tensor(X)
    y = check_labels(y) if labels else check_numbers(y, "y")
    options = {**ACCEPTED_X, "multi_output": not labels, "y_numeric": not labels}
    with _explained(X):
        if estimator is None:
            X, y = check_X_y(X, y, **options)
        else:
            X, y = validate_data(estimator, X, y, reset=reset, **options)
        X = _float64_where_needed(X)
    if labels:
        check_classification_targets(y)
    if not (sample_weight is None or isinstance(sample_weight, Number)):
        sample_weight = check_numbers(sample_weight, "sample_weight")
    return X, as_numpy(y), check_sample_weight(sample_weight, X)


def check_numbers(values: Any, name: str) -> Any:
    """Return the numbers in an argument called `name`; shapes and complex numbers stay.

    Raises
    ------
    ValueError
        If there are dates or entries that are missing, no numbers or not finite.
    TypeError
        If they are sparse.
    """
    values = natural_array(values, name)
    if not isinstance(values, np.ndarray) or values.dtype.kind == "c":
        return values
    _refuse_times_among(values, name)
    if values.dtype.kind in "fiub" and values.dtype.itemsize <= 8:
        return values
    try:
        with np.errstate(over="ignore"):
            numbers = values.astype(np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{name} is not numeric: {_fault(values)} ({error}).") from error
    if not np.isfinite(numbers).all():
        kind = "NaN" if np.isnan(numbers).any() else "infinity or a value too large for float64"
        raise InputError(f"Input {name} contains {kind}: {_fault(values)}.")
    return numbers


def check_labels(y: Any) -> Any:
    """Return labels of classes (n,).

    Raises
    ------
    ValueError
        If labels are missing, or of types that cannot be told apart by their order.
    TypeError
        If they are sparse.
    """
    y = natural_array(y, "y")
    if y is None:
        return None
    y = column_or_1d(y, warn=True)
    if isinstance(y, np.ndarray) and y.dtype.kind == "O":
        types = {"str" if isinstance(v, str) else type(v).__name__ for v in y}
        if types - {"str", "bytes"} or len(types) > 1:
            raise InputError(
                f"Unknown label type: y holds objects of type {_listed(sorted(types))}. Convert "
                "the labels to strings or to integers, all of them."
            )
    return y


def natural_array(values: Any, name: str) -> Any:
    """Return an argument called `name` as an array, of objects only if these are no numbers.

    Tensors, arrays of other libraries with an array API, and None stay as they are.

    Raises
    ------
    ValueError
        For missing entries, unless they are NaN among floating-point numbers.
    TypeError
        If the values are sparse.
    """
    if sparse.issparse(values):
        raise TypeError(
            f"Sparse data was passed for {name}, but dense data is required. Use '.toarray()' to "
            "convert to a dense numpy array."
        )
    _refuse_times(values, name)
    _refuse_masked(values, name)
    if values is None or is_tensor(values):
        return _plain_tensor(values)
    if not isinstance(values, np.ndarray) and hasattr(values, "__array_namespace__"):
        return values
    array = _as_array(values, name)
    if array.dtype.kind not in "OM":
        return array
    missing = _missing(array)
    if missing.any():
        raise InputError(
            f"Input {name} contains NaN: {missing.sum()} of {missing.size} entries are missing, "
            f"the first, in row {np.argwhere(missing)[0][0]}, is {array[missing][0]!r}."
        )
    numeric = array.dtype.kind == "O" and all(isinstance(v, Real | np.bool) for v in array.flat)
    return _natural(array) if numeric and array.size else array


def _natural(objects: np.ndarray) -> np.ndarray:
    """Return numbers kept as objects with a dtype of their own; too large ones stay objects."""
    try:
        return np.array(objects.tolist()).reshape(objects.shape)
    except OverflowError:
        return objects


def image_array(X: Any) -> Any:
    """Return lists of images as an array; what has a shape stays as it is.

    Raises
    ------
    ValueError
        For images of different shapes.
    """
    if hasattr(X, "shape"):
        return X
    try:
        return np.asarray(X)
    except ValueError as error:
        raise InputError(
            f"X is a list of images of different shapes; all have to be of image_shape. ({error})"
        ) from error


def named(value: Any) -> str:
    """Return what to call a value of a wrong type in a message."""
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def _plain_tensor(a: Any) -> Any:
    """Return a tensor without its gradient and in a dtype that NumPy has; other things as is."""
    if not is_tensor(a):
        return a
    a = a.detach()
    return a.float() if str(a.dtype) == "torch.bfloat16" else a


def _as_array(values: Any, name: str) -> np.ndarray:
    """Return an array; a list in which NaN would become the string "nan" as one of objects."""
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise InputError(f"{name} is no array: its entries differ in shape ({error}).") from error
    if array.dtype.kind in "US" and isinstance(values, list | tuple):
        objects = np.asarray(values, dtype=object)
        if _missing(objects).any():
            return objects
    return array


def _missing(values: np.ndarray) -> np.ndarray:
    """Return where entries are None, NaN, NA of pandas, or no time."""
    if values.dtype.kind in "mM":
        return np.isnat(values)
    if values.dtype.kind == "f":
        return np.isnan(values)
    return np.asarray(np.frompyfunc(_is_missing, 1, 1)(values), dtype=bool)


def _is_missing(entry: Any) -> bool:
    if entry is None or type(entry).__name__ in ("NAType", "NaTType"):
        return True
    if isinstance(entry, np.datetime64 | np.timedelta64):
        return bool(np.isnat(entry))
    return isinstance(entry, float | np.floating) and bool(np.isnan(entry))


def _fault(values: np.ndarray) -> str | None:
    """Say which entry is the first that is no finite number, and where; None if all are."""
    for place, entry in np.ndenumerate(values):
        if _is_missing(entry):
            n_missing = int(_missing(values).sum())
            return f"{entry!r} in row {place[0]} is missing ({n_missing} are)"
        shown = reprlib.repr(str(entry) if isinstance(entry, np.generic) else entry)
        try:
            finite = not isinstance(entry, np.datetime64 | np.timedelta64)
            finite = finite and bool(np.isfinite(float(entry)))
        except (TypeError, ValueError, OverflowError):
            finite = False
        if not finite:
            return f"{shown} ({type(entry).__name__}) in row {place[0]} is no finite number"
    return None


@contextmanager
def _explained(X: Any) -> Iterator[None]:
    """Refuse containers that hold no numbers, and name the columns of X where they are refused.

    Raises
    ------
    ValueError
    """
    is_dict = isinstance(X, dict) and not sparse.issparse(X)  # SciPy's dok_array is one
    if is_dict or type(X).__name__ == "LazyFrame":
        help_ = "np.column_stack(list(X.values()))" if is_dict else "X.collect()"
        raise InputError(f"X is a {type(X).__name__}, not an array or data frame: use {help_}.")
    columns = _columns(X)
    repeated = [name for name, k in Counter(name for name, _ in columns).items() if k > 1]
    if repeated:
        raise InputError(
            f"Names of columns of X occur more than once: {_listed(map(repr, repeated))}. Rename "
            "or drop columns."
        )
    _refuse_times(X, "X")
    if isinstance(X, np.ndarray):
        _refuse_times_among(X, "X")
    _refuse_masked(X, "X")
    try:
        yield
    except (TypeError, ValueError, OverflowError) as error:
        explanation = _explanation(X, columns)
        if explanation is None:
            raise
        raise InputError(f"{explanation} ({error})") from error


def _explanation(X: Any, columns: list[tuple[Any, Any]]) -> str | None:
    """Say why X is refused, if it is its shape or what its columns hold."""
    if not columns and not (is_tensor(X) or sparse.issparse(X)):
        try:
            X = np.asarray(X)
        except ValueError:
            return (
                "X is no array: its rows differ in length or, if they are images, in shape. All "
                "images have to be of the estimator's image_shape."
            )
        columns = [(j, X.dtype) for j in range(X.shape[1])] if X.ndim == 2 else []
    if len(getattr(X, "shape", ())) in (3, 4):
        return (
            f"X has shape {tuple(X.shape)}. Images are taken by estimators that are told their "
            f"image_shape, here {tuple(X.shape[1:])}; else reshape X to one row a sample."
        )
    faults = _faults(X, columns)
    if not faults:
        return None
    return f"Columns of X are not numeric: {_listed(faults, '; ')}. Encode, impute or drop them."


def _faults(X: Any, columns: list[tuple[Any, Any]]) -> list[str]:
    """Say which columns hold what is no finite number; those of ordinary numbers are not read."""
    faults = []
    for j, (name, dtype) in enumerate(columns):
        values = np.asarray(_column(X, j))
        fault = None if values.dtype.kind in "fiubc" else _fault(values)
        if fault is not None:
            faults.append(f"{name!r} of dtype {dtype}: {fault}")
    return faults


def _columns(X: Any) -> list[tuple[Any, Any]]:
    """Return names and dtypes of the columns of a data frame; empty for anything else."""
    if hasattr(X, "dtypes") and hasattr(X, "columns"):  # pandas, polars
        return list(zip(X.columns, X.dtypes, strict=True))
    if hasattr(X, "column_names") and hasattr(X, "schema"):  # Arrow
        return [(name, X.schema.field(j).type) for j, name in enumerate(X.column_names)]
    return []


def _column(X: Any, j: int) -> Any:
    """Return the values of a column of a data frame or array."""
    if isinstance(X, np.ndarray):
        return X[:, j]
    if hasattr(X, "iloc"):
        return X.iloc[:, j]
    return X.to_series(j) if hasattr(X, "to_series") else X.column(j)


def _refuse_times(values: Any, name: str) -> None:
    """Refuse dates and durations: as numbers their unit would depend on the container."""
    times = [
        f"{column!r} of dtype {kind}"
        for column, kind in _columns(values)
        if str(kind).lower().startswith(TIMES)
    ]
    if times:
        raise InputError(
            f"{name} has columns of dates or durations: {_listed(times)}. {_advice_on_times(name)}"
        )


def _refuse_times_among(values: np.ndarray, name: str) -> None:
    """Refuse dates and durations in an array, also those of NumPy among objects."""
    kind = values.dtype.kind
    if kind in "mM":
        raise InputError(f"{name} holds {values.dtype}. {_advice_on_times(name)}")
    if kind == "O" and any(isinstance(v, np.datetime64 | np.timedelta64) for v in values.flat):
        raise InputError(f"{name} holds dates or durations. {_advice_on_times(name)}")


def _advice_on_times(name: str) -> str:
    return (
        f"Convert dates and durations to numbers of a unit of your choice, such as the days "
        f"({name} - {name}.min()) / np.timedelta64(1, 'D')."
    )


def _refuse_masked(values: Any, name: str) -> None:
    """Refuse masked entries, which NumPy forgets in a conversion."""
    if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
        raise InputError(
            f"Input {name} contains NaN: {np.ma.count_masked(values)} entries of the masked array "
            "are masked. Fill or drop them before."
        )


def _float64_where_needed(X: Any) -> Any:
    """Return X as it is or, where numbers are stored otherwise, in float64.

    Raises
    ------
    ValueError
        For entries that are no finite numbers.
    """
    if is_tensor(X) or not (isinstance(X, np.ndarray) or sparse.issparse(X)):
        return X
    if X.dtype.kind in "fiub" and X.dtype.itemsize <= 8:
        return X
    if isinstance(X, np.ndarray):
        _refuse_times_among(X, "X")
    with np.errstate(over="ignore", invalid="ignore"):
        X = X.astype(np.float64)
        assert_all_finite(X, input_name="X")
    return X


def _listed(texts: Any, separator: str = ", ") -> str:
    """Join texts, at most `NAMED` of them."""
    texts = list(texts)
    return separator.join(texts[:NAMED]) + (f"{separator}..." if len(texts) > NAMED else "")

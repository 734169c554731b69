"""NumPy arrays and torch tensors alike: where an array is, and how to bring another one there."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np

Array = Any  # numpy.ndarray or torch.Tensor


def is_tensor(a: Any) -> bool:
    """Return whether `a` is a torch tensor; never imports torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(a, torch.Tensor)


def array_namespace(a: Array) -> ModuleType:
    """Return ``torch`` for a tensor, else ``numpy``; never imports torch."""
    return sys.modules["torch"] if is_tensor(a) else np


def on_device(a: Array) -> dict[str, Any]:
    """Return the arguments that create an array where `a` is."""
    return {"device": a.device} if is_tensor(a) else {}


def float64(a: Array) -> Array:
    """Return an array in float64, where it is."""
    return a.double() if is_tensor(a) else np.asarray(a, dtype=np.float64)


def cast(a: Array, dtype: Any) -> Array:
    """Return an array in a dtype of its namespace; `a` itself where it has it."""
    return a.to(dtype) if is_tensor(a) else a.astype(dtype, copy=False)


def like(a: Any, reference: Array) -> Array:
    """Return an array as one of the kind, and on the device, of `reference`; types stay."""
    if not is_tensor(reference):
        return as_numpy(a)
    torch = sys.modules["torch"]
    a = a if is_tensor(a) else writable(a)
    return torch.as_tensor(a, device=reference.device)


def writable(a: Any) -> np.ndarray:
    """Return a contiguous array, copied if it may not be written to.

    torch warns of undefined behaviour of tensors that share memory that is read-only, as memory
    maps and the columns of data frames do.
    """
    a = np.asarray(a, order="C")
    return a if a.flags.writeable else a.copy()


def as_numpy(a: Any) -> np.ndarray:
    """Return an array as a NumPy array; a tensor on a device is copied from there."""
    return a.detach().cpu().numpy() if is_tensor(a) else np.asarray(a)


def on_cpu(X: Any) -> Any:
    """Return a tensor as a NumPy array, and anything else as it is."""
    return as_numpy(X) if is_tensor(X) else X

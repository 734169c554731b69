"""Choice of the torch device, its memory, and what a fork leaves of torch's threads."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

#: The thread that a fork has copied into this process, if torch was loaded before; else None.
_forked_thread: int | None = None


def _note_fork() -> None:
    global _forked_thread  # noqa: PLW0603 - a fact about the process
    if "torch" in sys.modules:
        _forked_thread = threading.get_ident()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


def one_thread_after_fork() -> None:
    """Let torch use one thread in a forked process; elsewhere do nothing.

    A fork copies the thread that calls it and no other. If that one has run a parallel region of
    GNU OpenMP, which torch is built with on Linux, its next one waits forever for the threads
    that are gone.
    """
    global _forked_thread  # noqa: PLW0603
    if _forked_thread == threading.get_ident():
        import torch

        torch.set_num_threads(1)
        _forked_thread = None


@contextmanager
def plain_torch() -> Iterator[None]:
    """Compute as if the caller had set neither automatic mixed precision nor a default device.

    Solvers choose the precision and place of each tensor themselves. Settings of this thread only
    are touched, and only if torch is loaded.
    """
    torch = sys.modules.get("torch")
    with ExitStack() as stack:
        if torch is not None:
            for kind in ("cpu", "cuda"):
                if torch.is_autocast_enabled(kind):
                    stack.enter_context(torch.autocast(kind, enabled=False))
            if torch.get_default_device().type != "cpu":
                stack.enter_context(torch.device("cpu"))
        yield


@contextmanager
def out_of_memory_explained() -> Iterator[None]:
    """Say what helps where a torch device runs out of memory.

    Raises
    ------
    MemoryError
        With what torch says of the amount.
    """
    try:
        yield
    except RuntimeError as error:
        torch = sys.modules.get("torch")
        if torch is None or not isinstance(error, torch.cuda.OutOfMemoryError):
            raise
        raise MemoryError(
            "The device has not enough memory for this fit. Keep fewer directions with "
            "n_components, free what else is on the device, or use device='cpu' with arrays that "
            f"are not on it. torch says: {error}"
        ) from error


def resolve_device(device: str | None) -> str:
    """Resolve the ``device`` parameter to a torch device that exists on this machine.

    Parameters
    ----------
    device : {None, "cpu", "auto", "cuda", "cuda:0", ...}
        None means where the data is: the CPU for arrays and data frames. "auto" is CUDA where
        there is one.

    Returns
    -------
    str

    Raises
    ------
    ValueError
        If the name is not one of these, or the CUDA device is missing.
    """
    one_thread_after_fork()
    if device is None or device == "cpu":
        return "cpu"
    kind, _, index = device.partition(":")
    if device != "auto" and (kind != "cuda" or (":" in device and not index.isdigit())):
        raise ValueError(
            f"The 'device' parameter must be None, 'cpu', 'auto', 'cuda' or 'cuda:<index>'. Got "
            f"{device!r} instead."
        )
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        return "cuda" if count else "cpu"
    if int(index or 0) >= count:
        raise ValueError(
            f"device={device!r} was asked for, but torch sees {count} CUDA devices on this "
            "machine. Use device='cpu', or device='auto' to use CUDA only where there is one."
        )
    return device

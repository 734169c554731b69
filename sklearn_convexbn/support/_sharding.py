"""Rows that are spread over processes: how sums over rows are completed.

All that the pursuit computes from rows is sums over them. Each process takes them over the rows
it has, a :class:`Shards` adds up the parts, and every process goes on with the same numbers. Where
all rows are in one process there is nothing to add up, and :data:`ALL_HERE` returns what it gets.

Every process must call a method of these classes as often as the others do, in the same order.
They are therefore never called once a block of rows, of which each process has its own number.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any

import numpy as np


class Shards:
    """All rows in this process."""

    #: Number of processes, and which one of them this is.
    size, rank = 1, 0

    def of_rows(self, keys: np.ndarray) -> Shards:
        """Return the same with numbers for all rows, given a key (n,) of each row here."""
        return self

    def count(self, n: int) -> int:
        """Return the number of all rows, `n` of which are here."""
        return n

    def entries(self, a: Any, index: Any) -> Any:
        """Return entries (*index.shape, ...) of a tensor (n, ...), by numbers of any rows."""
        return a[index]

    def total(self, a: Any) -> Any:
        """Return the sum over the processes of an array (NumPy or torch) or a float."""
        return a

    def totals(self, *arrays: Any) -> tuple[Any, ...]:
        """Return :meth:`total` of small arrays or floats, with one exchange for all of them."""
        return arrays

    def maximum(self, value: float) -> float:
        """Return the largest of the processes' numbers."""
        return value

    def parts(self, value: Any) -> list[Any]:
        """Return the object that each process has passed, in the order of the processes."""
        return [value]

    def agreed(self, value: Any) -> Any:
        """Return the object that the first process has passed."""
        return value

    def joined(self, a: np.ndarray) -> np.ndarray:
        """Return the rows of all processes, which may have different numbers of them."""
        return a

    def offset(self, n: int) -> int:
        """Return how many rows the processes before this one have, which has `n` itself."""
        return 0

    @contextmanager
    def raised_together(self) -> Iterator[None]:
        """Raise on all processes what one of them raises; nothing inside may depend on others."""
        yield

    @contextmanager
    def in_step(self) -> Iterator[None]:
        """Note if this process leaves work that the others may be in the midst of."""
        yield

    def check_same(self, facts: dict[str, str]) -> None:
        """Raise a ValueError on all processes if facts differ from one to another."""


#: What to do with sums where all rows are in one process.
ALL_HERE = Shards()

_current: Shards = ALL_HERE


class ProcessShards(Shards):
    """Rows on all processes of a torch process group, which has more than one.

    Parameters
    ----------
    group : torch.distributed.ProcessGroup or None
        None is the group of all processes.

    Attributes
    ----------
    numbers : ndarray of shape (n,)
        The numbers of the rows here among all, in the order of their keys: the order that they have
        where all are in one process.
    n_rows : int
        Number of all rows.
    """

    numbers: np.ndarray
    n_rows: int

    def __init__(self, group: Any = None) -> None:
        import torch.distributed as dist

        self.group = group
        self.size, self.rank = dist.get_world_size(group), dist.get_rank(group)
        self.first = 0 if group is None else dist.get_global_rank(group, 0)
        # NCCL sends what is on the GPU that the process has set; other backends send what is not.
        self.device = "cuda" if dist.get_backend(group) == "nccl" else "cpu"
        self.owner = (os.getpid(), threading.get_ident())
        self.lost = False

    def of_rows(self, keys: np.ndarray) -> Shards:
        found, parts = copy(self), self.parts(keys)
        start = sum(len(part) for part in parts[: self.rank])
        order = np.argsort(np.concatenate(parts), kind="stable")
        numbers = np.empty_like(order)
        numbers[order] = np.arange(len(order))
        found.numbers, found.n_rows = numbers[start : start + len(keys)], len(order)
        return found

    def count(self, n: int) -> int:
        return self.n_rows

    def entries(self, a: Any, index: Any) -> Any:
        import torch

        numbers, order = torch.as_tensor(self.numbers, device=a.device).sort()
        place = torch.searchsorted(numbers, index).clamp_max(len(a) - 1)
        here = numbers[place] == index
        found = a.new_zeros(*index.shape, *a.shape[1:])
        found[here] = a[order[place[here]]]
        return self.total(found)

    def total(self, a: Any) -> Any:
        return self._reduced(a, "SUM")

    def totals(self, *arrays: Any) -> tuple[Any, ...]:
        import torch

        given = [_tensor(a) for a in arrays]
        sent = torch.cat([a.reshape(-1).to(self.device, torch.float64) for a in given])
        summed = torch.split(self._reduced(sent, "SUM"), [a.numel() for a in given])
        return tuple(
            _like(part.reshape(tensor.shape), a)
            for part, tensor, a in zip(summed, given, arrays, strict=True)
        )

    def maximum(self, value: float) -> float:
        return float(self._reduced(float(value), "MAX"))

    def parts(self, value: Any) -> list[Any]:
        import torch.distributed as dist

        found = [None] * self.size
        self._collective(dist.all_gather_object, found, value)
        return found

    def agreed(self, value: Any) -> Any:
        import torch.distributed as dist

        found = [value if self.rank == 0 else None]
        self._collective(dist.broadcast_object_list, found, src=self.first)
        return found[0]

    def joined(self, a: np.ndarray) -> np.ndarray:
        return np.concatenate(self.parts(a))

    def offset(self, n: int) -> int:
        return sum(self.parts(n)[: self.rank])

    @contextmanager
    def raised_together(self) -> Iterator[None]:
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            failure = error
        text = None if failure is None else f"{type(failure).__name__}: {failure}"
        failures = [(rank, text) for rank, text in enumerate(self.parts(text)) if text is not None]
        if failure is not None:
            raise failure
        if failures:
            rank, text = failures[0]
            raise ValueError(f"Process {rank} of {self.size} does not take part. {text}")

    @contextmanager
    def in_step(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.lost = True
            raise

    def check_same(self, facts: dict[str, str]) -> None:
        first, *others = self.parts(facts)
        for rank, other in enumerate(others, start=1):
            for name in first:
                if other[name] != first[name]:
                    raise ValueError(
                        f"{name} is not the same on all processes: {first[name]} on process 0, "
                        f"{other[name]} on process {rank}."
                    )

    def _reduced(self, a: Any, operation: str) -> Any:
        import torch.distributed as dist

        sent = _tensor(a).to(self.device, copy=True).contiguous()
        self._collective(dist.all_reduce, sent, op=getattr(dist.ReduceOp, operation))
        return _like(sent, a)

    def _collective(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> None:
        if self.lost:
            raise RuntimeError(
                "An earlier fit of row shards has failed on this process, and the others may still "
                "wait for it. Start the processes anew."
            )
        try:
            function(*arguments, group=self.group, **options)
        except RuntimeError as error:
            raise RuntimeError(
                f"Process {self.rank} of {self.size} has lost touch with the others: one of them "
                "has failed, or has not answered within the timeout of the process group "
                f"(torch.distributed.init_process_group(timeout=...)). {error}"
            ) from error


def _tensor(a: Any) -> Any:
    """Return a tensor as it is, an array or a number as a tensor in float64."""
    import torch

    if isinstance(a, torch.Tensor):
        return a.detach()
    return torch.as_tensor(np.asarray(a, dtype=np.float64))


def _like(sum_: Any, a: Any) -> Any:
    """Return a tensor as what `a` is: a tensor of its device and type, an array or a float."""
    import torch

    if isinstance(a, torch.Tensor):
        return sum_.to(a.device, a.dtype)
    return sum_.cpu().numpy() if isinstance(a, np.ndarray) else sum_.item()


@contextmanager
def row_shards(group: Any = None) -> Iterator[None]:
    """Fit to rows that are spread over the processes of torch.distributed.

    Inside this context `fit` of :class:`~sklearn_convexbn.ConvexBNRegressor` and
    :class:`~sklearn_convexbn.ConvexBNClassifier` takes the rows it is given as one part of the
    data, the other processes having the rest, and ends with the same network on all of them.
    Each process calls `fit` with the same parameters. Other methods are about the rows that
    they are given, as outside. Read more in the :doc:`user guide </distributed>`.

    Parameters
    ----------
    group : torch.distributed.ProcessGroup, default=None
        The processes that take part; None means all.

    Yields
    ------
    None

    Raises
    ------
    RuntimeError
        If torch.distributed is not initialized, this process is not of the group, or it is in
        such a context already.

    Examples
    --------
    In a script that ``torchrun`` starts, X and y being some of the rows::

        torch.distributed.init_process_group("gloo", timeout=timedelta(minutes=5))
        with row_shards():
            model = ConvexBNRegressor(random_state=0).fit(X, y)
    """
    global _current  # noqa: PLW0603 - the group is a fact about the process
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(
            "row_shards needs the processes of torch.distributed: call "
            "torch.distributed.init_process_group first, in a script started by torchrun."
        )
    if _current is not ALL_HERE:
        raise RuntimeError("This process is in row_shards already.")
    if dist.get_rank(group) < 0:
        raise RuntimeError("This process is not a member of the group given to row_shards.")
    _current = ProcessShards(group) if dist.get_world_size(group) > 1 else ALL_HERE
    try:
        yield
    finally:
        _current = ALL_HERE


def current_shards() -> Shards:
    """Return how rows given to a fit are spread over processes.

    Raises
    ------
    RuntimeError
        In another thread, or a fork, than the one that has entered :func:`row_shards`.
    """
    here = (os.getpid(), threading.get_ident())
    if isinstance(_current, ProcessShards) and _current.owner != here:
        raise RuntimeError(
            "Inside row_shards, fit in the thread that has entered it: each process takes part "
            "in one fit at a time."
        )
    return _current


def refuse_shards(name: str) -> None:
    """Raise a ValueError inside :func:`row_shards`, for what does not know how to add up."""
    if _current is not ALL_HERE:
        raise ValueError(
            f"{name} does not work on row shards: ConvexBNRegressor and ConvexBNClassifier do. "
            "Leave row_shards, and give it all rows."
        )

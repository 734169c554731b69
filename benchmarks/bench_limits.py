# ruff: noqa: E402 - the thread variables are set before NumPy is imported
"""How near the pursuit's inner steps come to the limits of the machine.

One step of the search's ascent, one evaluation of the slide (objective and gradients) and the Gram
matrix of a refit are timed in one thread, their operations are counted, and the rate is divided by
that of a large matrix product in the same precision, measured in the same run::

    python benchmarks/bench_limits.py [RESULTS] [--rows 10000 100000]

Operations are those of the matrix products alone; comparing, scaling and the loss are overhead.
``plain`` is the same step written with whole arrays, without blocks of rows, as the package had it
before. Bytes are those of Z: what one pass over the rows has to read at least.
"""

from __future__ import annotations

import os

for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from _suite.circumstances import circumstances
from torch import Tensor

from sklearn_convexbn._losses import LOSSES
from sklearn_convexbn._units._whitened import WhitenedUnits

COLUMNS = (
    "step", "rows", "columns", "units", "outputs", "precision", "ms", "Gflop/s", "share of product",
    "plain share", "times faster", "GB/s of Z", "share of bandwidth",
)  # fmt: skip


def seconds(action: Callable[[], object], least: float = 0.5) -> float:
    """Return processor seconds of one call: the least of three means over about `least` s."""
    action()
    start = time.process_time()
    action()
    count = max(1, int(least / 3 / max(time.process_time() - start, 1e-6)))
    means = []
    for _ in range(3):
        start = time.process_time()
        for _ in range(count):
            action()
        means.append((time.process_time() - start) / count)
    return min(means)


def product_rate(dtype: torch.dtype, size: int = 2048) -> float:
    """Return operations a second of the product of two square matrices."""
    A, B = torch.randn(size, size, dtype=dtype), torch.randn(size, size, dtype=dtype)
    out = torch.empty_like(A)
    return 2 * size**3 / seconds(lambda: torch.mm(A, B, out=out))


def bandwidth(numbers: int = 2**25) -> float:
    """Return bytes a second that summing a long vector reads."""
    a = torch.ones(numbers)
    return 4 * numbers / seconds(a.sum)


def plain_ascent(Z: Tensor, Lambda: Tensor, Q: Tensor) -> Tensor:
    """Return the gradients of ``|Lambda^T (Z Q)_+|`` (k, S)."""
    H = Z @ Q
    T = Lambda.T @ H.clamp_min(0)
    slopes = Lambda @ torch.nn.functional.normalize(T, dim=0)
    return Z.T @ slopes.mul_(H > 0)


def plain_loss(
    Z: Tensor, Y: Tensor, p: Tensor, name: str, Q: Tensor, V: Tensor, b: Tensor
) -> tuple[Tensor, ...]:
    """Return the mean loss and its gradients in Q, V and b."""
    H = Z @ Q
    A = H.clamp_min(0)
    F = (A @ V + b).double()
    G = LOSSES[name].gradient(F, Y, p).to(Z.dtype)
    slopes = (G @ V.T).mul_(H > 0)
    return LOSSES[name].value(F, Y, p), Z.T @ slopes, A.T @ G, G.sum(dim=0)


def steps(n: int, k: int, m: int, C: int, dtype: torch.dtype) -> list[dict[str, object]]:
    """Return the rows of the table of one size: times of the package and of whole arrays."""
    torch.manual_seed(0)
    Z, Q, V = (torch.randn(s, dtype=dtype) for s in ((n, k), (k, m), (m, C)))
    b, p, Lambda = (
        torch.zeros(C, dtype=dtype),
        torch.full((n,), 1.0 / n).double(),
        torch.randn(n, C),
    )
    labels = torch.randint(C, (n,))
    Y = torch.eye(C).double()[labels] if C > 1 else torch.randn(n, 1).double()
    loss, layer, Lambda = (
        "softmax" if C > 1 else "squared",
        WhitenedUnits(Z),
        torch.randn(n, C, dtype=dtype),
    )
    w = p[:, None]
    A = layer.activations(Q.double())
    whole = (Z.double() @ Q.double()).clamp_min(0)
    # For one output correlation and slopes are by-products of two products; for several the
    # package forms Z Q twice rather than keep it.
    ascent = 4 * n * k * m + (4 * n * m * C if C > 1 else 0)
    slide = 4 * n * k * m + (6 * n * m * C if C > 1 else 2 * n * m)
    table = [
        (
            "ascent", ascent, dtype,
            lambda: layer.ascent(Lambda, Q), lambda: plain_ascent(Z, Lambda, Q),
        ),
        (
            "slide", slide, dtype,
            lambda: layer.loss(LOSSES[loss], Y, p, Q, V, b),
            lambda: plain_loss(Z, Y, p, loss, Q, V, b),
        ),
        (
            "Gram matrix", 2 * n * m * m, torch.float64,
            lambda: A.gram(w), lambda: whole.T @ (w * whole),
        ),
    ]  # fmt: skip
    rows = []
    for name, operations, precision, own, plain in table:
        ours, theirs = seconds(own), seconds(plain)
        peak, read = RATES[precision], Z.element_size() * n * k / ours
        rows.append(
            dict(
                zip(
                    COLUMNS,
                    (
                        name, n, k, m, C, str(precision).removeprefix("torch."),
                        round(1e3 * ours, 2), round(operations / ours / 1e9, 1),
                        round(operations / ours / peak, 2), round(operations / theirs / peak, 2),
                        round(theirs / ours, 1), round(read / 1e9, 2),
                        round(read / RATES["bandwidth"], 3),
                    ),
                    strict=True,
                )
            )
        )  # fmt: skip
        print(rows[-1], flush=True)
    return rows


RATES: dict[object, float] = {}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    default = Path(__file__).parent / "results"
    parser.add_argument("results", nargs="?", type=Path, default=default)
    parser.add_argument("--rows", nargs="+", type=int, default=[1000, 10_000, 100_000])
    options = parser.parse_args(arguments)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    for precision in (torch.float32, torch.float64):
        RATES[precision] = product_rate(precision)
    RATES["bandwidth"] = bandwidth()
    sizes = [(31, 100, 1), (31, 100, 10), (101, 300, 10)]
    rows = [row for n in options.rows for size in sizes for row in steps(n, *size, torch.float32)]
    rates = {str(name).removeprefix("torch."): round(rate / 1e9, 1) for name, rate in RATES.items()}
    facts = circumstances() | {f"rate of {name} (G a second)": str(r) for name, r in rates.items()}
    options.results.mkdir(exist_ok=True)
    (options.results / "bench_limits.json").write_text(
        json.dumps({"circumstances": facts, "rows": rows}, indent=1) + "\n"
    )
    lines = ["# Inner steps of the pursuit and the limits of the machine", ""]
    lines += [
        "One thread. `share of product`: of the rate of a 2048 x 2048 matrix product in the same"
    ]
    lines += ["precision; `plain share`: of the same step with whole arrays.", ""]
    lines += ["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
    lines += ["| " + " | ".join(str(row[c]) for c in COLUMNS) + " |" for row in rows]
    lines += ["", "## Circumstances", "", *(f"- {key}: {value}" for key, value in facts.items())]
    (options.results / "bench_limits.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

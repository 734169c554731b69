"""How near the pursuit's inner steps come to the limits of the machine.

One step of the search's ascent, one evaluation of the slide (objective and gradients) and the Gram
matrix of a refit, in one thread, beside the same step with whole arrays. Operations are those of
the matrix products alone.
"""

import sys
from collections.abc import Callable, Iterable
from typing import Any

from _suite.benchmark import Benchmark
from _suite.package import inner_steps
from _suite.runner import least_seconds
from _suite.store import Cell

import torch

SIZES = ((31, 100, 1), (31, 100, 10), (101, 300, 10))
STEPS = ("ascent", "slide", "Gram matrix")
#: Number of operations, precision, the package's step, and the plain one.
Step = tuple[int, torch.dtype, Callable[[], Any], Callable[[], Any]]


def product_rate(dtype: torch.dtype, size: int = 2048) -> float:
    """Return operations a second of the product of two square matrices."""
    A, B = torch.randn(size, size, dtype=dtype), torch.randn(size, size, dtype=dtype)
    out = torch.empty_like(A)
    return 2 * size**3 / least_seconds(lambda: torch.mm(A, B, out=out))


def steps(n: int, k: int, m: int, C: int, dtype: torch.dtype = torch.float32) -> dict[str, Step]:
    """Return the steps of one size."""
    torch.manual_seed(0)
    Z, Q, V, Lambda = (torch.randn(s, dtype=dtype) for s in ((n, k), (k, m), (m, C), (n, C)))
    b, p = torch.zeros(C, dtype=dtype), torch.full((n,), 1.0 / n).double()
    labels = torch.randint(C, (n,))
    Y = torch.eye(C).double()[labels] if C > 1 else torch.randn(n, 1).double()
    (layer, loss), w = inner_steps(Z, "softmax" if C > 1 else "squared"), p[:, None]
    A, whole = layer.activations(Q.double()), (Z.double() @ Q.double()).clamp_min(0)

    def plain_ascent() -> Any:
        H = Z @ Q
        T = Lambda.T @ H.clamp_min(0)
        slopes = Lambda @ torch.nn.functional.normalize(T, dim=0)
        return Z.T @ slopes.mul_(H > 0)

    def plain_slide() -> Any:
        H = Z @ Q
        A = H.clamp_min(0)
        F = (A @ V + b).double()
        G = loss.gradient(F, Y, p).to(Z.dtype)
        slopes = (G @ V.T).mul_(H > 0)
        return loss.value(F, Y, p), Z.T @ slopes, A.T @ G, G.sum(dim=0)

    # For one output correlation and slopes are by-products of two products; for several the
    # package forms Z Q twice rather than keep it.
    ascent = 4 * n * k * m + (4 * n * m * C if C > 1 else 0)
    slide = 4 * n * k * m + (6 * n * m * C if C > 1 else 2 * n * m)
    return {
        "ascent": (ascent, dtype, lambda: layer.ascent(Lambda, Q), plain_ascent),
        "slide": (slide, dtype, lambda: layer.loss(loss, Y, p, Q, V, b), plain_slide),
        "Gram matrix": (
            *(2 * n * m * m, torch.float64),
            *(lambda: A.gram(w), lambda: whole.T @ (w * whole)),
        ),
    }


class Limits(Benchmark):
    name = "bench_limits"
    keys = ("step", "rows", "columns", "units", "outputs")
    title = "Inner steps of the pursuit and the limits of the machine"
    words = (
        "One thread. `share of product`: of the rate of a 2048 x 2048 matrix product in the "
        "same\nprecision; `plain share`: of the same step with whole arrays."
    )
    columns = dict.fromkeys(
        (*keys, "precision", "ms", "Gflop/s", "share of product", "plain share", "times faster"), ""
    )

    def add_options(self, add: Any) -> None:
        add("--rows", nargs="+", type=int, default=[1000, 10_000, 100_000])

    def plan(self) -> Iterable[Cell]:
        for n in self.options.rows:
            for size in SIZES:
                for step in STEPS:
                    yield dict(zip(self.keys, (step, n, *size), strict=True))

    def prepare(self) -> None:
        torch.set_num_threads(1)
        self.rates = {str(t)[6:]: product_rate(t) for t in (torch.float32, torch.float64)}

    def facts(self) -> dict[str, str]:
        rates = {name: f"{rate / 1e9:.1f}" for name, rate in self.rates.items()}
        return {f"rate of {name} (G a second)": rate for name, rate in rates.items()}

    def measure(self, cell: Cell) -> Cell:
        size = [cell[key] for key in self.keys[1:]]
        operations, dtype, own, plain = steps(*size)[cell["step"]]
        ours, theirs, precision = least_seconds(own), least_seconds(plain), str(dtype)[6:]
        return {
            "precision": precision,
            "ms": round(1e3 * ours, 2),
            "Gflop/s": round(operations / ours / 1e9, 1),
            "share of product": round(operations / ours / self.rates[precision], 2),
            "plain share": round(operations / theirs / self.rates[precision], 2),
            "times faster": round(theirs / ours, 1),
        }


if __name__ == "__main__":
    sys.exit(Limits().main())

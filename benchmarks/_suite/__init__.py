"""What the benchmarks share; importing it sets the number of threads, so import it first.

A benchmark is a :class:`~_suite.benchmark.Benchmark`: a plan of cells, how one is measured, and the
tables made of them. Cells are kept in one JSON file a table, from which a stopped run goes on
(`store`), with the circumstances of each run (`circumstances`). Tables are written by `tables`,
what needs a process or a limit is run by `runner`, and `package` holds all that comes from private
modules of the package. Times to a gap (`ladders`) are benchopt's idea: an objective judges every
solver's answer by the same code (`objectives`, which has nothing of the package), and solvers can
say why they skip one (`solvers`, `gated_solvers`, `list_solvers`).
"""

import os

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "RAYON_NUM_THREADS",
)
for _variable in THREAD_VARIABLES:  # before NumPy is imported
    os.environ.setdefault(_variable, os.environ.get("OMP_NUM_THREADS", "1"))

"""What the benchmarks share; importing it sets the number of threads, so import it first.

The parts are those of benchopt: an objective judges every solver's answer by the same code and
gives a duality gap (`objectives`), data sets (`data`), solvers that can say why they skip an
objective (`solvers`, `gated_solvers`, `list_solvers`), runs under a limit (`running`), the
circumstances (`circumstances`) and tables (`tables`).
"""

from __future__ import annotations

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

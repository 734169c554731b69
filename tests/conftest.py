"""One thread: the problems are small, and results should not depend on the machine."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings
from sklearn import datasets

# No deadline: a test that is slow on a loaded machine is not wrong.
settings.register_profile("repository", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("repository")

#: Read by mypy, and not run.
collect_ignore = ["typed_user.py"]


def _data_set(name):
    """Return the fixture of one of scikit-learn's sets: inputs and targets, new for every test."""
    load = getattr(datasets, f"load_{name}")
    return pytest.fixture(lambda: load(return_X_y=True), name=name)


diabetes, iris, wine, breast_cancer, digits = (
    _data_set(name) for name in ("diabetes", "iris", "wine", "breast_cancer", "digits")
)

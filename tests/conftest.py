"""One thread: the problems are small, and results should not depend on the machine."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from hypothesis import settings

# No deadline: a test that is slow on a loaded machine is not wrong.
settings.register_profile("repository", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("repository")

#: Read by mypy, and not run.
collect_ignore = ["typed_user.py"]

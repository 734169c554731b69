# Two commands for a newcomer: `make demo` and `make test`. Both make their own .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := -m pip install --quiet --disable-pip-version-check
INSTALL := $(BIN)/python $(PIP) -c constraints.txt
TEST := -m pytest -n 2

# What is run under several kernels of OpenBLAS, and with two threads.
NUMERICAL := $(addprefix tests/test_,$(addsuffix .py,arrangements certify closed_form dc_step estimators \
	exact_search fista fuzz lasso losses multi_output_refit network objective patches path \
	path_units problem proof public_losses pursuit relu_lists robustness scales slide small_programs \
	solvers units whitening))
# What takes longest there is not run under the oldest kernel.
LONGEST := $(addprefix tests/test_,$(addsuffix .py,dc_step fuzz patches small_programs))
THREADED := $(addprefix tests/test_,$(addsuffix .py,closed_form lasso multi_output_refit problem \
	pursuit units))

# The two ends of the support range, each in a venv of its own. On Linux each downloads about
# 3 GB and takes 6 GB of disk, nearly all of it CUDA libraries that torch is linked with.
OLDEST := .venv-oldest
OLDEST_PYTHON ?= python3.11
NEWEST := .venv-newest
NEWEST_PYTHON ?= $(PYTHON)

.PHONY: demo test test-kernels test-range test-oldest test-newest lint docs dist bench study clean

demo: $(VENV)/.installed
	MPLBACKEND=Agg $(BIN)/python examples/plot_digits.py

test: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python $(TEST)

# OpenBLAS chooses its kernel by the processor, and results differ in their last digits from one to
# another: what computes, but not scikit-learn's checks again, with a kernel for AVX-512, if the
# processor has it, and with an old one; then what is short with two threads, in one process, as
# threads that wait for each other are very slow where processes share the cores.
test-kernels: $(VENV)/.installed-test
	if grep -qs avx512f /proc/cpuinfo; then \
		OPENBLAS_CORETYPE=SkylakeX OMP_NUM_THREADS=1 $(BIN)/python $(TEST) $(NUMERICAL); fi
	OPENBLAS_CORETYPE=Sandybridge OMP_NUM_THREADS=1 $(BIN)/python $(TEST) \
		$(filter-out $(LONGEST),$(NUMERICAL))
	OMP_NUM_THREADS=2 $(BIN)/python -m pytest $(THREADED)

test-range: test-oldest test-newest

test-oldest: $(OLDEST)/.installed-test
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python $(TEST)

# Looks for newer versions every time, of the dependencies' dependencies too.
test-newest: | $(NEWEST)/bin/python
	$(NEWEST)/bin/python $(PIP) --upgrade --upgrade-strategy eager -e ".[examples,test]"
	OMP_NUM_THREADS=1 $(NEWEST)/bin/python $(TEST)

lint: $(VENV)/.installed-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --strict --follow-imports=silent tests/typed_user.py

# DOCSFLAGS="-D plot_gallery=0" leaves the examples unexecuted.
docs: $(VENV)/.installed-docs
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -q -W --keep-going $(DOCSFLAGS) docs docs/_build/html

# Wheel and sdist, their contents, and the wheel used from an empty environment that finds the
# dependencies in .venv; DISTFLAGS=--dependencies installs them afresh.
dist: $(VENV)/.installed-release
	rm -rf dist build/lib build/bdist.*
	$(BIN)/python -m build --no-isolation --outdir dist .
	$(BIN)/python -m twine check --strict dist/*
	OMP_NUM_THREADS=1 $(BIN)/python .ci/check_dist.py dist $(DISTFLAGS)

# Beside the results that are kept, not over them; a stopped run goes on.
bench: $(VENV)/.installed-bench
	$(BIN)/python benchmarks/bench_gated.py --results build/bench
	$(BIN)/python benchmarks/bench_lists.py --results build/bench

# The fits take about 1.4 hours of a core; the images are in the folder SKLEARN_CONVEXBN_DATA.
study: $(VENV)/.installed
	$(BIN)/python benchmarks/bench_implicit_regularization.py --results build/study --figures build/study

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(OLDEST)/bin/python:
	$(OLDEST_PYTHON) -m venv $(OLDEST)

$(NEWEST)/bin/python:
	$(NEWEST_PYTHON) -m venv $(NEWEST)

# Wheels only: what an old source makes of a new compiler is not the question.
$(OLDEST)/.installed-test: pyproject.toml constraints-oldest.txt | $(OLDEST)/bin/python
	$(OLDEST)/bin/python $(PIP) --only-binary :all: -c constraints-oldest.txt -e ".[examples,test]"
	touch $@

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e ".[examples]"
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(INSTALL) -e ".[examples,test]"
	touch $@

$(VENV)/.installed-lint: $(VENV)/.installed-test
	$(INSTALL) -e ".[lint]"
	touch $@

$(VENV)/.installed-release: $(VENV)/.installed
	$(INSTALL) -e ".[release]"
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(INSTALL) -e ".[docs]"
	touch $@

$(VENV)/.installed-bench: $(VENV)/.installed benchmarks/requirements.txt
	$(INSTALL) -r benchmarks/requirements.txt
	touch $@

clean:
	rm -rf $(VENV) $(OLDEST) $(NEWEST) build dist docs/_build docs/generated docs/sg_execution_times.rst *.egg-info .pytest_cache .mypy_cache .ruff_cache

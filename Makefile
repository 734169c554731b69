# Two commands for a newcomer: `make demo` and `make test`. Both make their own .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test lint docs bench clean

demo: $(VENV)/.installed
	MPLBACKEND=Agg $(BIN)/python examples/plot_digits.py

test: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

lint: $(VENV)/.installed-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# DOCSFLAGS="-D plot_gallery=0" leaves the examples unexecuted.
docs: $(VENV)/.installed-docs
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -q -W --keep-going $(DOCSFLAGS) docs docs/_build/html

bench: $(VENV)/.installed-bench
	$(BIN)/python benchmarks/bench_gated.py

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e ".[examples]"
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(INSTALL) -e ".[examples,test]"
	touch $@

$(VENV)/.installed-lint: $(VENV)/.installed-test
	$(INSTALL) -e ".[lint]"
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(INSTALL) -e ".[docs]"
	touch $@

$(VENV)/.installed-bench: $(VENV)/.installed benchmarks/requirements.txt
	$(INSTALL) -r benchmarks/requirements.txt
	touch $@

clean:
	rm -rf $(VENV) build dist docs/_build docs/generated *.egg-info .pytest_cache .mypy_cache .ruff_cache

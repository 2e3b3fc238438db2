# Two commands for a newcomer: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-slow docs benchmarks benchmarks-gpu format clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY)
	$(BIN)/metaensemble demo --out demo-out --overwrite

# Everything: format, lint, types, import contracts, docs, the fast suite.
test: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports
	$(MAKE) docs
	$(BIN)/python -m pytest -n auto

# The pages in docs/ and the docstrings as site/, which opens from disk.
docs: $(READY)
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet docs site

# Learning tests, minutes long.
test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

# Studies anew, beside the committed reports: `make benchmarks DATA=path/to/cifar10`.
# Without DATA those that need CIFAR-10 are left out; a second call goes on.
WORK ?= benchmarks-out
DATA ?=
benchmarks: $(READY)
	$(BIN)/python benchmarks/all.py --work $(WORK) --data "$(DATA)"

benchmarks-gpu: $(READY)
	$(BIN)/python benchmarks/gpu/run.py "$(DATA)" $(WORK)/gpu

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) demo-out site benchmarks-out .pytest_cache .ruff_cache

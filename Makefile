# Set-up and everyday commands. A fresh machine needs only python3.11+, make and a C++ compiler.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: test quick lint demo gpu bench clean
$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[torch,test]"
	touch $@

# Everything that CI runs: lint, types, all tests that need no GPU.
test: $(STAMP) lint
	$(BIN)/python -m pytest tests

# The fast tier: under three minutes.
quick: $(STAMP)
	$(BIN)/python -m pytest tests -m "not slow and not models"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy

demo: $(STAMP)
	$(BIN)/python -m arcweld.models.demo

# On a machine with a GPU: its tests and the benchmark, JSON under docs/benchmarks/ (or OUT=dir). Uses the current python.
gpu:
	$(PYTHON) -m pytest tests/gpu -m gpu -q
	$(PYTHON) -m arcweld.models.bench --out $(or $(OUT),docs/benchmarks)

clean:
	rm -rf $(VENV) build dist *.egg-info

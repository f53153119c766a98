# Set-up and everyday commands. A fresh machine needs only Python 3.11 or newer, make and a C++ compiler.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Two workers, a file's tests in one of them: fixtures of a module are made once. In the order of tests/conftest.py.
PYTEST ?= $(BIN)/python -m pytest --durations=15 -n 2 --dist loadfile --no-loadscope-reorder

# Tests start hundreds of processes: without its bytecode, each would compile the package's sources again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: test quick lint types peers replay repeat fuzz attack mutants coverage figures calibrate modelled bench-sim wheel demo demo-llm llm gpu clean

# Everything that continuous integration runs: lint, types, all tests that need no GPU.
test: lint types
	$(PYTEST) tests

# The fast tier: under three minutes.
quick: lint
	$(PYTEST) tests -m "not slow and not models"

lint: $(STAMP)
	$(BIN)/ruff check .

types: $(STAMP)
	$(BIN)/python -m mypy

# Every kernel of the working tree against those of another revision: `make replay BASE=main`.
replay: $(STAMP)
	$(BIN)/python tests/replay/replay.py $(BASE)

wheel: $(STAMP)
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir dist .

demo: $(STAMP)
	$(BIN)/python -m arcweld.models.demo

# The same for a language model: SmolLM2-135M-Instruct from its checkpoint to a streamed answer.
demo-llm: $(STAMP)
	$(BIN)/python -W ignore -m arcweld.models.demo_llm

# The whole of that model against transformers: tokens, perplexity. Some minutes.
llm: $(STAMP)
	ARCWELD_EVERY=1 $(PYTEST) tests/models/test_smollm2.py

# On a machine with a GPU: its tests and the benchmark, JSON under docs/benchmarks/ (or OUT=dir), at most LIMIT seconds of it.
# Uses the current python, in which the package is installed (pip install --no-deps --no-build-isolation -e . needs no network).
gpu:
	@status=0; $(PYTHON) tests/gpu/isolated.py || status=1; \
	timeout -k 10 $(or $(LIMIT),1500) $(PYTHON) -m arcweld.models.bench --out $(or $(OUT),docs/benchmarks) || status=1; \
	exit $$status

# Random graphs from fresh seeds for SECONDS (600); a failing one is shrunk and written to OUT (build/fuzz).
fuzz: $(STAMP)
	$(BIN)/python tests/fuzz $(if $(SECONDS),--seconds $(SECONDS)) $(if $(SEED),--seed $(SEED)) $(if $(OUT),--out $(OUT))

# Whether cold builds of each model in MODELS (all builders), BUILDS (4) of them, give one file. A build takes minutes.
repeat: $(STAMP)
	$(BIN)/python tests/driver/repeat.py $(if $(BUILDS),--builds $(BUILDS)) $(MODELS)

# Random edits of rendered kernels, and how many of those that change a result a default build refuses.
mutants: $(STAMP)
	$(BIN)/python tests/verification/mutants.py $(if $(COUNT),--count $(COUNT)) $(if $(SEED),--seed $(SEED))

# Engines, models and checkpoints altered as an attacker would, COUNT (10000) of each, or those of one kind (OF=engine,
# llm, model, node: operands and attributes in turn, checkpoint, or cost: small files that multiply); those that do harm
# are written to OUT (build/attack).
attack: $(STAMP)
	$(BIN)/python tests/attack $(if $(OF),--of $(OF)) $(if $(COUNT),--count $(COUNT)) $(if $(SEED),--seed $(SEED)) $(if $(OUT),--out $(OUT))

# Lines and branches of the package that the tests (or those of TIER, like "not slow and not models") execute, by folder.
coverage: $(STAMP)
	$(PYTEST) tests $(if $(TIER),-m "$(TIER)") --cov --cov-branch --cov-report=json:build/coverage.json
	$(BIN)/python tests/project/coverage_table.py build/coverage.json

# Measures every figure of README and docs on this machine and writes it there; NAMES="demo builds" for some of them.
figures: $(STAMP)
	$(if $(NAMES),,$(MAKE) coverage TIER="not slow and not models")
	$(if $(NAMES),,ARCWELD_WRITE_SUPPORT=1 $(BIN)/python -m pytest tests/compiler/test_onnx_backend.py -k document)
	$(if $(NAMES),,$(BIN)/python tests/torch/opinfo.py --document)
	$(BIN)/python tests/figures $(NAMES)

# Packages of other tools that open exports, for the tests that use them: in a folder of their own, because some ask for versions
# that Arcweld cannot have. Only what is needed to load files is installed.
peers: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade --no-deps --target build/peers \
	  trt-engine-explorer==0.1.5 ai-edge-model-explorer==0.1.34 \
	  pandas python-dateutil six pytz tzdata dacite typing-extensions flask werkzeug itsdangerous blinker click \
	  portpicker psutil requests urllib3 idna certifi charset-normalizer termcolor watchdog packaging ipython

# What a change does to modelled workloads: in their file since SINCE (the commit before), and beside it.
modelled: $(STAMP)
	$(BIN)/python -m arcweld.models.modelled_suite --since $(or $(SINCE),HEAD^)
	$(BIN)/python -W ignore -m arcweld.models.modelled_suite --compare

# Fits the model of time to the measurements in docs/benchmarks/kernels-*.json, and says how far it is from them.
calibrate: $(STAMP)
	$(BIN)/python -m arcweld.models.calibrate

# Times calls on the simulator in turns with ONNX Runtime on one thread, JSON under docs/benchmarks/ (or OUT=dir); needs an
# idle machine and about five minutes.
bench-sim: $(STAMP)
	$(BIN)/python -W ignore -m arcweld.models.bench_sim $(if $(OUT),--out $(OUT)) $(if $(ONLY),--only $(ONLY))

clean:
	rm -rf $(VENV) build dist *.egg-info .package/*.egg-info

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[torch,test]"
	touch $@

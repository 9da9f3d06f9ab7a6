# `make demo` and `make test` set everything up by themselves; the second run starts at once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
DEMO := $(VENV)/.lutra-demo
SETUP := $(VENV)/.lutra-setup

.PHONY: setup demo test test-ops test-zoo fuzz check peers figures

setup: $(SETUP)

# torch first and pinned, from its CPU build: anything else that is installed later then finds it satisfied.
$(DEMO): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0
	$(PIP) --editable '.[examples]'
	touch $@

# What the tests need besides, some of it large.
$(SETUP): $(DEMO)
	$(PIP) --editable '.[examples,dev]'
	touch $@

demo: $(DEMO)
	$(BIN)/python examples/generate.py --model tests/assets/tiny-llama --recipe w2-lut

test: setup
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

# Eager's answer for every operator of PyTorch's database and every causal language model of Transformers. A run goes on
# where it stopped (build/op_db, build/zoo); ARGS="--only softmax", "--slice 0/8", "--again WRONG".
test-ops: setup
	$(BIN)/python -m lutra.tests.sweeps.op_db $(ARGS)

test-zoo: setup
	$(BIN)/python -m lutra.tests.sweeps.zoo $(ARGS)

# Recipes, files and command lines of others: FUZZ inputs of each kind (`make test` tries 100 to 400), then GUIDED seconds
# of each kind of recipe under the guidance of atheris, where that installs.
FUZZ ?= 2000
GUIDED ?= 60
fuzz: setup
	LUTRA_FUZZ=$(FUZZ) $(BIN)/python -m pytest -m fuzz --numprocesses auto --maxprocesses 4 $(ARGS)
	$(PIP) atheris==3.0.0 || echo "atheris does not install here"
	for kind in texts mappings variables names conditions patterns; do \
		$(BIN)/python -m lutra.tests.support.guided $$kind --seconds $(GUIDED) || [ $$? = 77 ] || exit 1; \
	done

# What is generated of the documents: tables and the plot from benchmarks/results (nothing is timed), the operations of
# the IR from their classes.
figures: setup
	$(BIN)/python benchmarks/figures.py

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python -m pytest tests/test_layout.py

# What benchmarks/peers.py compares with. optimum-intel needs other versions of what lutra needs.
# The flags keep llama.cpp's configuration of AMX tiles, which gcc 12 takes for dead (ggml-org/llama.cpp#26954).
peers: setup
	CMAKE_ARGS="-DCMAKE_CXX_FLAGS='-fno-tree-dse -fno-dse'" \
		$(PIP) --editable '.[peers]'
	test -x .venv-openvino/bin/python || $(PYTHON) -m venv .venv-openvino
	.venv-openvino/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	.venv-openvino/bin/python -m pip install --quiet --disable-pip-version-check 'optimum-intel[openvino]==2.2.0'

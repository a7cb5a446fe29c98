# Everything runs in a virtual environment of its own, made on first use.
#   make demo     build, train on the beverage sales, forecast them, draw the picture
#   make test     build and run the tests
#   make lint     what CI checks beside the tests;   make format repairs what a tool can repair
#   make build    compile what changed
#   make bench    measure against torch.nn.LSTM;     BENCH=--quick for the short table
#   make clean    remove everything that was built, the environment included

PYTHON ?= python3
VENV ?= .venv
# Installed before anything else, so that no later step fetches another torch. May carry pip's
# options, for example an index of CPU-only builds.
TORCH ?= torch==2.13.0
RESULTS := benchmarks/results/$(shell date +%Y-%m-%d-%H%M).json
BENCH ?=

BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip --disable-pip-version-check install --quiet
EDITABLE := $(PIP_INSTALL) --no-build-isolation --editable
CXX_FILES := $(shell find csrc -name '*.cpp' -o -name '*.h')

.PHONY: demo test lint format build bench clean
.NOTPARALLEL:
.DELETE_ON_ERROR:

demo: $(VENV)/.forecast $(VENV)/.built
	$(BIN)/lstm-fast demo

test: $(VENV)/.dev $(VENV)/.built
	$(BIN)/python -m pytest

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

build: $(VENV)/.built

bench: $(VENV)/.dev $(VENV)/.built
	$(BIN)/python -m pytest benchmarks --benchmark-json=$(RESULTS) $(BENCH)
	$(BIN)/python -m benchmarks.table $(RESULTS)

clean:
	rm -rf $(VENV) build dist *.egg-info lstm_fast/*.so demo_output .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps: what has been installed into the environment.
$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) $(TORCH)
	$(PIP_INSTALL) 'setuptools>=77' wheel ninja 'pybind11>=2.12'
	touch $@

$(VENV)/.forecast $(VENV)/.dev: $(VENV)/.%: pyproject.toml | $(VENV)/.torch
	$(EDITABLE) '.[$*]'
	touch $@

# A stamp of its own, so that `make lint` and `make format` run on sources that do not compile.
$(VENV)/.built: setup.py pyproject.toml $(CXX_FILES) | $(VENV)/.torch
	$(EDITABLE) . --no-deps
	touch $@

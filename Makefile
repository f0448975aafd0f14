# Everything a person does with this project. Works with GNU make 3.81 or newer, on Linux and macOS.
#   PYTHON   the Python to make the environment with (3.10 or newer)
#   TEXTS    how many texts `make sanitize` tries
#   JOBS     how many tests to run side by side (2; more disturbs those that wait for other processes)
#   PIP      further words for pip in test-newest, such as an index with builds of torch for CPUs only
PYTHON ?= python3
JOBS ?= 2
TEXTS ?= 20000
VENV := .venv
BIN := $(VENV)/bin
NEWEST := .venv-newest
SOURCES := pyproject.toml setup.py constraints.txt $(wildcard protocols/kernels/csrc/*)
INSTALLED := $(VENV)/.installed
INSTALLED_DEV := $(VENV)/.installed-dev
CLIENTS := build/clients/.installed
FLOWER := build/flower/.installed
BESIDE := $(BIN)/python -m pip install --quiet --no-deps --ignore-requires-python --upgrade
INSTALLED_DOCS := $(VENV)/.installed-docs

.DEFAULT_GOAL := help
.PHONY: help setup setup-crypten demo serve test test-all sanitize test-newest bench bench-peers docs lint clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | awk -F ':.*## ' '{printf "make %-13s %s\n", $$1, $$2}'

setup: $(INSTALLED) ## Make the virtual environment .venv and build the kernels into it

setup-crypten: $(INSTALLED) ## Install CrypTen too, an optional back end (docs/crypten.md)
	$(BIN)/python -m pip install --quiet -c constraints.txt omegaconf onnx pyyaml
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps crypten
	@$(BIN)/python -c 'from securemodel.engines.crypten import adapter; print("CrypTen", adapter.load().__version__)'

demo: $(INSTALLED) ## Run the digit example: bank, hospital and dealer on this machine (result also in out/)
	$(BIN)/python examples/lenet_mnist/demo.py

serve: $(INSTALLED) ## Serve the digit example to your browser: bank, hospital and dealer on this machine
	$(BIN)/securemodel serve examples/service/service.toml --local $(ARGS)

test: $(INSTALLED_DEV) $(CLIENTS) $(FLOWER) ## Run the tests, without the slow ones (JOBS=0: one after the other)
	@tests/page/tools.sh
	$(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal -m "not slow" $(ARGS)

test-all: $(INSTALLED_DEV) $(CLIENTS) $(FLOWER) ## Run all tests
	@tests/page/tools.sh
	$(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal $(ARGS)

test-newest: $(CLIENTS) $(FLOWER) ## Run them with the packages that a user gets today, in an environment of their own (.venv-newest)
	$(PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/python -m pip install --quiet --upgrade pip
	$(NEWEST)/bin/python -m pip install --quiet --upgrade $(PIP) torch
	$(NEWEST)/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager $(PIP) --group dev -e ".[data,examples,text,paillier,privacy,serve]"
	@$(NEWEST)/bin/python -m pip list
	$(NEWEST)/bin/python -m pytest -q -n $(JOBS) --dist worksteal -m "not slow" $(ARGS)

# A copy of the package with checked kernels, in a folder of its own; the checks have to be loaded before Python.
CHECKED := build/sanitize
CHECKS := LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libstdc++.so)" \
    ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 PYTHONPATH=$(CHECKED)/lib

sanitize: $(INSTALLED_DEV) ## Run the kernels' tests and TEXTS odd programs (20000) with kernels that notice memory errors (gcc)
	$(BIN)/python -m pip install --quiet -c constraints.txt pybind11 setuptools wheel
	SANITIZE=1 $(BIN)/python setup.py -q build --build-base $(CHECKED) --build-lib $(CHECKED)/lib
	$(CHECKS) $(BIN)/pytest -q -p no:cacheprovider tests/protocols/test_kernels.py
	$(CHECKS) $(BIN)/python tests/compiler/fuzz_programs.py --texts $(TEXTS)

bench: $(INSTALLED_DEV) ## Measure this machine (ARGS=case for one case, ARGS="case --against COMMIT" beside a commit)
	$(BIN)/python -m benchmarks $(ARGS)

bench-peers: $(INSTALLED_DEV) ## Measure other systems as well (builds their environments first, about 2 GB)
	benchmarks/peers/setup.sh
	$(BIN)/python -m benchmarks --peers $(ARGS)
	$(BIN)/python -m benchmarks.paillier

docs: $(INSTALLED_DOCS) ## Build the documentation into site/
	$(BIN)/python -m mkdocs build -f mkdocs.yml --site-dir site

lint: $(INSTALLED_DEV) ## Check the style of the Python code, and its types
	$(BIN)/ruff check .
	$(BIN)/mypy

clean: ## Remove builds, caches and results (environments stay, .venv is brought up to date by the next make)
	rm -rf $(INSTALLED) $(INSTALLED_DEV) $(INSTALLED_DOCS) build dist site out .pytest_cache .ruff_cache .mypy_cache .hypothesis *.egg-info
	rm -f protocols/kernels/*.so
	find protocols securemodel benchmarks examples tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
	    echo "make: Python 3.10 or newer is needed, and '$(PYTHON)' is $$($(PYTHON) --version 2>/dev/null || echo not there)." >&2; \
	    echo "      Install one, or name it: make PYTHON=/path/to/python3.11 setup" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	    echo "make: '$(PYTHON) -m venv' failed; on Debian and Ubuntu install the package python3-venv." >&2; exit 1; }

# torch first and alone: it is by far the largest package, and a failure to get it is told at once.
$(INSTALLED): $(SOURCES) | $(BIN)/python
	@$(BIN)/python -c 'import pip, sys; sys.exit(tuple(map(int, pip.__version__.split(".")[:2])) < (25, 1))' || \
	    $(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[data,examples,text,paillier,serve]"
	@touch $@

$(INSTALLED_DEV): $(INSTALLED)
	$(BIN)/python -m pip install --quiet -c constraints.txt --group dev
	@touch $@

# Clients of other projects, beside our packages and without their own requirements, which contradict ours.
$(CLIENTS): tests/edge/clients.txt $(INSTALLED)
	$(BESIDE) --target $(@D) -r $<
	@touch $@

# So does Flower.
$(FLOWER): tests/federated/flower.txt $(INSTALLED)
	$(BESIDE) --target $(@D) -r $<
	@touch $@

$(INSTALLED_DOCS): $(INSTALLED)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[docs]"
	@touch $@

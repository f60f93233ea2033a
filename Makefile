# segdistill: the commands people type. Everything runs in .venv, made on the first call.
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Keep MLflow and DVC from sending usage data.
export MLFLOW_DISABLE_TELEMETRY := true
export DVC_NO_ANALYTICS := true

.PHONY: help lock repro ui test quick bench lint pull-request clean

help:  ## list these commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

# TORCH=cpu installs PyTorch's build for CPUs from PyTorch's own index, without 4 GB of CUDA; cu130, rocm7.1, ... work too.
# Each package then has its version from requirements.lock, and those that only CUDA needs are left out.
TORCH ?=
UV_PIP = $(BIN)/uv pip
ifeq ($(TORCH),)
INSTALL_LOCKED = $(UV_PIP) sync requirements.lock
else
INSTALL_LOCKED = $(UV_PIP) install --torch-backend $(TORCH) --constraint requirements.lock \
	--requirements pyproject.toml --extra fast --extra video --group dev
endif

# Compile bytecode once: where PYTHONDONTWRITEBYTECODE is set, each process of a sweep would spend seconds on it.
.venv/.installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint requirements.lock uv
	$(INSTALL_LOCKED) --python $(BIN)/python --compile-bytecode
	$(UV_PIP) install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

lock: .venv/.installed  ## write requirements.lock from pyproject.toml; UPGRADE=NAME upgrades one package
	$(UV_PIP) compile --quiet --universal --python-version 3.11 --no-annotate --no-header \
		--extra fast --extra video --group dev $(if $(UPGRADE),--upgrade-package $(UPGRADE)) \
		pyproject.toml --output-file requirements.lock

repro: .venv/.installed  ## run the pipeline that params.yaml describes, and show the summary
	@if dvc status --quiet; then echo "Data and pipelines are up to date."; segdistill show; else dvc repro; fi

ui: .venv/.installed  ## open the MLflow UI on http://127.0.0.1:5000
	segdistill ui

# Files side by side, the long ones first; each process on one thread, as most tests are.
PYTEST := OMP_NUM_THREADS=1 pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder
test: .venv/.installed  ## run all tests
	$(PYTEST)

quick: .venv/.installed  ## run all tests but those marked slow
	$(PYTEST) -m "not slow"

# Install the peers that we benchmark against, without changing pinned versions.
.venv/.peers: .venv/.installed
	$(UV_PIP) install --quiet --python $(BIN)/python --constraint requirements.lock --group bench
	@touch $@

# Install what several machines need, for its tests, without changing pinned versions.
.venv/.cluster: .venv/.installed
	$(UV_PIP) install --quiet --python $(BIN)/python --compile-bytecode --constraint requirements.lock --requirements pyproject.toml \
		--extra cluster --extra s3 --extra postgres --extra search --group cluster
	@touch $@

bench: .venv/.peers  ## measure the claims about speed, in about 30 minutes; let nothing else run
	python -m benchmarks.run

lint: .venv/.installed  ## check style, types and the code deps in dvc.yaml
	ruff check
	ruff format --check
	mypy
	python tools/stage_deps.py

PROFILE ?=
BASE ?= main
pull-request: .venv/.installed  ## rerun what a change touches and compare with BASE: build/pull-request.md
	python tools/pull_request.py --base "$(BASE)" $(if $(PROFILE),--profile "$(PROFILE)")

clean:  ## remove unfinished trainings and caches; keeps results
	rm -rf scratch .mypy_cache .pytest_cache .ruff_cache .hypothesis

# segdistill: the commands people type. Everything runs in .venv, made on the first call.
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
# MLflow and DVC are asked to send nothing anywhere.
export MLFLOW_DISABLE_TELEMETRY := true
export DVC_NO_ANALYTICS := true

.PHONY: help repro ui test bench lint pull-request clean

help:  ## list these commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# uv installs what requirements.lock pins in half a minute; pip does the same, more slowly. Bytecode is compiled here and
# once: where Python is told not to write any, each of a sweep's many processes would spend seconds on it.
.venv/.installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check "uv==$$(sed -n 's/^uv==//p' requirements.lock)"
	$(BIN)/uv pip sync --quiet --compile-bytecode --python $(BIN)/python requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

repro: .venv/.installed  ## run the pipeline that params.yaml describes, and show the summary
	@if dvc status --quiet; then echo "Data and pipelines are up to date."; segdistill show; else dvc repro; fi

ui: .venv/.installed  ## open the MLflow UI on http://127.0.0.1:5000
	segdistill ui

# Files side by side, the long ones first; each process on one thread, as most tests are.
test: .venv/.installed  ## run all tests
	OMP_NUM_THREADS=1 pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# The peers that some rows measure come on top of the locked packages, and change none of them.
.venv/.peers: .venv/.installed
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint requirements.lock --no-build-isolation --editable ".[bench]"
	@touch $@

bench: .venv/.peers  ## measure the claims about speed, in about 30 minutes; let nothing else run
	python benchmarks/run.py

lint: .venv/.installed  ## check style and the code deps in dvc.yaml
	ruff check src stages tests tools docs benchmarks
	ruff format --check src stages tests tools docs benchmarks
	python tools/stage_deps.py

PROFILE ?=
BASE ?= main
pull-request: .venv/.installed  ## rerun what a change touches and compare with BASE: build/pull-request.md
	python tools/pull_request.py --base "$(BASE)" $(if $(PROFILE),--profile "$(PROFILE)")

clean:  ## remove unfinished trainings and caches; keeps results
	rm -rf scratch .pytest_cache .ruff_cache .hypothesis

# `make serve` and `make test` are all a fresh clone needs: Python 3.11 or later, make, and a network.
PYTHON ?= python3
PORT   ?= 8080
MODEL  ?= sample_models/iris-classifier

VENV  := .venv
BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed
CONVERT_VENV := .venv-convert
CLIENTS_VENV := .venv-clients
# Wheels of onnxruntime from 1.29 on report usage unless told not to, before they are imported.
export ORT_DISABLE_TELEMETRY := 1

.PHONY: help setup serve test test-all test-slow test-clients test-converters lint types tests image test-image lock setup-convert samples bench bench-models clean

help:
	@echo "make serve      serve $(MODEL) on 127.0.0.1:$(PORT)   (PORT=9000 MODEL=folder)"
	@echo "make test       lint, types, tests with coverage"
	@echo "make test-all   what make test leaves out: slow tests, real clients, the image, converters, samples"
	@echo "make image      build the image onnx-serve:cpu   (VARIANT=gpu MODEL_DIR=folder ARTIFACT=file IMAGE=name)"
	@echo "make test-image build the image and test the running container (starts an engine if it may)"
	@echo "make setup      only make the environment, in $(VENV)"
	@echo "make bench      measure speed and memory (bench/)"
	@echo "make bench-models  the same for many models: are the execution parameters true?"
	@echo "make test-clients  real clients against a server (own environment)"
	@echo "make lock       renew requirements/*.txt"

# A lock is whole, so that there is nothing to resolve. Asked to, pip 23.2 refuses it as soon as a package that is named
# with an extra somewhere has a newer release than the one that is pinned.
setup: $(STAMP)

$(STAMP): pyproject.toml requirements/cpu.txt requirements/dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed, not " + sys.version.split()[0] + ": make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-deps --require-hashes -r requirements/cpu.txt -r requirements/dev.txt
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

serve: setup
	@echo "try, once it is ready:"
	@if [ -f "$(MODEL)/request.csv" ]; then \
	  echo "  curl -H 'Content-Type: text/csv' --data-binary @$(MODEL)/request.csv http://127.0.0.1:$(PORT)/invocations"; \
	else echo "  curl -i http://127.0.0.1:$(PORT)/ping"; fi
	@exec $(BIN)/onnx-serve serve --model-dir "$(MODEL)" --host 127.0.0.1 --port $(PORT)

test: lint types tests

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

tests: setup
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -m "not slow and not gpu"
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

# What `make test` leaves out because it needs more than pip, or longer. Each part says why when it is skipped; they may
# run at the same time: make -j2 test-all.
test-all: test-slow test-clients test-converters samples test-image

test-slow: setup
	$(BIN)/pytest -m "slow or gpu" || [ $$? -eq 5 ]

# docs/image.md. BUILD_FLAGS is for the engine at hand: a network, secrets, a cache.
DOCKER    ?= docker
BASE      ?= debian:trixie-slim
VARIANT   ?= cpu
MODEL_DIR ?=
ARTIFACT  ?=
CONVERT_OPTIONS ?=
CONVERT_TORCH   ?=
IMAGE     ?= onnx-serve:$(VARIANT)

image:
	DOCKER_BUILDKIT=1 $(DOCKER) build $(BUILD_FLAGS) --build-arg BASE="$(BASE)" --build-arg VARIANT="$(VARIANT)" \
	  --build-arg MODEL_DIR="$(MODEL_DIR)" --build-arg ARTIFACT="$(ARTIFACT)" \
	  --build-arg CONVERT_OPTIONS="$(CONVERT_OPTIONS)" --build-arg CONVERT_TORCH="$(CONVERT_TORCH)" --tag "$(IMAGE)" .

test-image: setup
	tests/image/with_engine.sh sh -c '$(MAKE) image IMAGE=onnx-serve:test && TEST_IMAGE=onnx-serve:test exec $(BIN)/pytest tests/image'

# The real clients against a server of the main environment.
test-clients: setup
	@if $(MAKE) $(CLIENTS_VENV)/.installed; then \
	  SERVER_PYTHON=$(abspath $(BIN)/python) $(CLIENTS_VENV)/bin/pytest --show-capture=no \
	    tests/test_oip_tritonclient.py tests/test_docs.py::test_scripts_print_what_is_shown tests/clients; \
	else echo "test-clients: skipped, because the clients' environment cannot be made"; fi

# Actors of Ray run the model, so onnx-serve is there too.
$(CLIENTS_VENV)/.installed: requirements/clients.txt requirements/models.txt
	$(PYTHON) -m venv $(CLIENTS_VENV)
	$(CLIENTS_VENV)/bin/pip install --quiet --no-deps --require-hashes -r requirements/clients.txt
	$(CLIENTS_VENV)/bin/pip install --quiet --no-deps --require-hashes -r requirements/models.txt
	$(CLIENTS_VENV)/bin/pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

setup-convert: $(CONVERT_VENV)/.installed

# torch comes in too many builds for a hashed lock: the registry's CPU wheel differs from machine to machine.
$(CONVERT_VENV)/.installed: requirements/convert.txt
	$(PYTHON) -m venv $(CONVERT_VENV)
	$(CONVERT_VENV)/bin/pip install --quiet --no-deps --require-hashes -r requirements/convert.txt
	$(CONVERT_VENV)/bin/pip install --quiet torch==2.13.0
	@touch $@

# Trained models of every framework, converted and compared with the original. torch apart: as in the process that
# converts an artifact, its threads never share one with those of the boosting libraries.
test-converters: setup-convert
	$(CONVERT_VENV)/bin/python -m pytest tests/converters --ignore-glob='*/test_torch*'
	$(CONVERT_VENV)/bin/python -m pytest tests/converters/test_torch*.py

samples: setup-convert
	$(CONVERT_VENV)/bin/python sample_models/build.py --check

bench: setup
	$(BIN)/python bench/waitress_settings.py
	$(BIN)/python bench/invocations.py

LOCK := $(BIN)/uv pip compile --quiet --python-version 3.11 --universal --generate-hashes --no-header --no-emit-index-url

lock: setup
	$(LOCK) pyproject.toml --extra cpu --extra image -o requirements/cpu.txt
	$(LOCK) --group dev -c requirements/cpu.txt -o requirements/dev.txt
	$(LOCK) pyproject.toml --extra cpu --group convert -o requirements/convert.txt
	$(LOCK) pyproject.toml --extra cpu --extra ray --group clients -o requirements/clients.txt
	$(LOCK) --no-deps --group models -o requirements/models.txt
	$(LOCK) --group build -c requirements/dev.txt -o requirements/build.txt
	$(LOCK) pyproject.toml --extra gpu --extra image -c requirements/cpu.txt -o requirements/gpu.txt
	$(LOCK) pyproject.toml --extra gpu-cuda13 --extra image -c requirements/cpu.txt -o requirements/gpu-cuda13.txt

# Every kind of model, some minutes each, on a machine that does nothing else; docs/measurements.md.
ZOO ?= .bench-models
bench-models: setup
	$(BIN)/python -m bench.parameters $(ZOO)
	$(BIN)/python -m bench.micro_batching $(ZOO)

clean:
	rm -rf $(VENV) $(CONVERT_VENV) $(CLIENTS_VENV) .coverage .coverage.* .mypy_cache .pytest_cache .ruff_cache .hypothesis

# Everything runs in a virtual environment with pinned versions; nothing is installed outside of it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO_STAMP := $(VENV)/.installed-demo
STAMP := $(VENV)/.installed
PIP_INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
CORES := $(shell nproc)
# Number of test processes: one more than cores, because tests of real processes mostly wait.
TEST_PROCESSES ?= $(shell expr $(CORES) + 1)
PYTEST = $(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --maxprocesses 8 --dist worksteal
CHECK_FLEETS ?= 480
MINUTES ?= 60
CHAOS_MINUTES ?= 10
PREFIX ?= /opt/imagegen
ROLES ?= broker,worker
GPUS ?=

.PHONY: help demo check test test-ray clients lint fuzz audit lock soak chaos bench gpu gpu-wheels install uninstall clean

help:
	@echo "make demo       start a fleet on this machine and generate twelve images into out/demo/: half a minute"
	@echo "make check      run lint, unit and property tests and a short simulation: at most 3 minutes on 2 cores"
	@echo "make test       run all tests: about 20 minutes on 2 cores"
	@echo "make test-ray   run the tests on a Ray cluster of several nodes: 2 minutes; installs Ray first"
	@echo "make clients    install the Python clients of OpenAI's API that tests/clients uses into .venv-clients: 2 minutes"
	@echo "make lint       run ruff, mypy and import-linter"
	@echo "make fuzz       feed hostile bytes to all parsers and cores for MINUTES=60; findings in out/fuzz/"
	@echo "make audit      compare the pinned packages with known vulnerabilities, and check the licenses of all packages"
	@echo "make lock       write the lock files of the container images, deploy/docker/locks, for new versions"
	@echo "make soak       run mixed traffic with restarts for MINUTES=60 and check that memory is flat; report in out/benchmarks/soak/"
	@echo "make chaos      run simulated fleets, then real processes that are killed and frozen, for CHAOS_MINUTES=10 each"
	@echo "make bench      run all benchmarks, report in out/benchmarks/report.md; QUICK=1 takes minutes"
	@echo "make gpu        check and measure this machine's GPU: at most 8 minutes; report in out/benchmarks/gpu/; SMALL=1 needs no GPU"
	@echo "make gpu-wheels download the wheels with which make gpu runs on a machine without network into out/gpu-wheels/"
	@echo "make install    as root: create the environment PREFIX=/opt/imagegen and systemd units for ROLES=broker,worker (GPUS=0,1)"
	@echo "make uninstall  as root: stop the units and remove them"
	@echo "make clean      remove the virtual environments and generated files"

# Dependencies of `make demo`, and of `imagegen up`, which it recommends.
$(DEMO_STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is required; run make PYTHON=python3.11" >&2; exit 1; }
	@echo "Installing the fleet into $(VENV) (once; a few minutes, mostly the download of torch) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(PIP_INSTALL) --editable '.[cli,broker,worker,gateway]'
	@touch $@

$(STAMP): $(DEMO_STAMP)
	@echo "Installing the dependencies of tests and benchmarks into $(VENV) (once) ..."
	@$(PIP_INSTALL) --editable '.[cli,broker,worker,gateway,dev,bench]'
	@touch $@

demo: $(DEMO_STAMP)
	@$(BIN)/python -m tools.demo

check: TEST_PROCESSES := $(CORES)
check: lint
	@$(PYTEST) tests/unit tests/property tests/simulation --fleets $(CHECK_FLEETS)

test: $(STAMP)
	@$(PYTEST)

RAY_STAMP := .venv-ray/.installed

$(RAY_STAMP): deploy/ray/requirements.txt
	@$(PYTHON) -m venv .venv-ray
	@.venv-ray/bin/python -m pip install --quiet --disable-pip-version-check --requirement deploy/ray/requirements.txt
	@touch $@

test-ray: $(STAMP) $(RAY_STAMP)
	@$(BIN)/python -m pytest tests/e2e/ray -m ray

CLIENTS_STAMP := .venv-clients/.installed

$(CLIENTS_STAMP): tests/clients/requirements.txt
	@$(PYTHON) -m venv .venv-clients
	@.venv-clients/bin/python -m pip install --quiet --disable-pip-version-check --requirement tests/clients/requirements.txt
	@touch $@

clients: $(CLIENTS_STAMP)

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

# SKIP_UNREACHABLE=1: no failure where no service of known vulnerabilities can be reached.
audit: $(STAMP)
	@$(BIN)/python -m tools.licenses
	@$(BIN)/python -m tools.vulnerabilities $(if $(SKIP_UNREACHABLE),--skip-unreachable)

# Reads the hashes of all packages from the index, and downloads none.
lock: $(STAMP)
	@$(BIN)/python -m tools.lock

# atheris has wheels for Linux only, and building it needs clang: without it, hypothesis makes the inputs.
fuzz: $(STAMP)
	@$(PIP_INSTALL) --only-binary atheris --editable '.[fuzz]' || echo "atheris can't be installed here: fuzzing with hypothesis" >&2
	@$(BIN)/python -m tests.fuzz --minutes $(MINUTES)

soak: $(STAMP)
	@$(BIN)/python -m benchmarks.soak --minutes $(MINUTES)

chaos: $(STAMP)
	@$(BIN)/python -m tests.simulation --seed 1000000 --minutes $(CHAOS_MINUTES)
	@$(BIN)/python -m tools.chaos --minutes $(CHAOS_MINUTES)

bench: $(STAMP)
	@$(BIN)/python -m benchmarks $(if $(QUICK),--quick)

# A machine without network has the wheels of `make gpu-wheels`, and torch in its $(PYTHON).
WHEELS := $(wildcard out/gpu-wheels/*.whl)
GPU_STAMP := .venv-gpu/.installed

$(GPU_STAMP): $(WHEELS) tools/gpu_environment.py
	@$(PYTHON) tools/gpu_environment.py
	@touch $@

gpu: $(if $(WHEELS),$(GPU_STAMP),$(STAMP))
	@$(if $(WHEELS),.venv-gpu/bin,$(BIN))/python -m benchmarks.gpu $(if $(SMALL),--small) $(if $(INTO),--into $(INTO))

gpu-wheels:
	@$(PYTHON) tools/gpu_wheels.py

install:
	umask 022 && $(PYTHON) -m venv $(PREFIX)
	umask 022 && $(PREFIX)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt '.[cli,$(ROLES)]'
	$(PYTHON) systemd/install.py install --prefix $(PREFIX) --roles $(ROLES) $(if $(GPUS),--gpus $(GPUS))

uninstall:
	$(PYTHON) systemd/install.py uninstall

clean:
	rm -rf $(VENV) .venv-clients .venv-gpu .venv-ray out dist .mypy_cache .ruff_cache .pytest_cache .hypothesis

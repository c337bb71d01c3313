# `make run` and `make test` do all the set-up themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TESTERS ?= 4  # processes that run tests, of which half may wait (tests/support/handout.py)
CORE := core aggregation client engines coordinator evaluation runs  # what every result rests on
comma := ,
space := $(subst ,, )
COVERAGE ?=  # 1: say what the tests reach, and fail if it is little; half as long again

.PHONY: run examples test test-fast test-lowest lint install browser bench gpu-check gpu-wheels \
  reference chart-check clean
.DEFAULT_GOAL := run

run: $(READY)  ## the main job: ten sites, each alone, all pooled, and the report
	$(BIN)/fedsight compare --example fashion

# Other kinds of sight, each on real data that the example fetches by itself.
EXAMPLES ?= $(filter faces trees scenes texts, \
  $(basename $(notdir $(wildcard src/fedsight/program/examples/*.toml))))
examples: $(READY)  ## faces, objects and texts, one after the other, a report each
	@for name in $(EXAMPLES); do \
	  echo "== $$name"; $(BIN)/fedsight run --example $$name || exit $$?; done

# A file's tests stay together. When a process crashes the run ends soon: pytest-xdist replaces it, but
# then waits for ever where it hands out a file that was finished before.
SPREAD := --dist loadfile --no-loadscope-reorder --max-worker-restart 0

# Without bytecode files each process that runs tests would compile all of them again.
test test-fast test-lowest: export PYTHONDONTWRITEBYTECODE =

# Runs and ledgers wait for the disk with each file that they write. Where there is a file system in
# memory with 8 GB of room, and as much memory is available, the tests' folders are there.
MEMORY = $(shell test -w /dev/shm && \
  awk '/^MemAvailable:/ {room = $$2 > 8000000} END {exit !room}' /proc/meminfo && \
  df -Pk /dev/shm | awk 'NR == 2 && $$4 > 8000000 {print $$6}')
test test-fast test-lowest: export PYTEST_DEBUG_TEMPROOT = $(MEMORY)

# mypy computes on one core for long where nothing is kept of the last time, so it does beside the tests.
# A background process does not notice Ctrl-C: it is ended by hand.
test: $(READY) browser  ## lint, and the whole test suite
	rm -f .coverage .coverage.*
	{ $(LINT); } & lint=$$!; trap 'kill $$lint 2>/dev/null; exit 130' INT TERM; \
	  $(BIN)/python -m pytest -n $(TESTERS) $(SPREAD) $(if $(COVERAGE),--cov --cov-report=); tests=$$?; \
	  wait $$lint || { echo "What lint has found is above, or comes again with: make lint"; exit 1; }; \
	  exit $$tests
ifneq ($(strip $(COVERAGE)),)
	$(BIN)/coverage report --fail-under=90 --format=total
	$(BIN)/coverage report --fail-under=95 --include='$(subst $(space),$(comma),$(CORE:%=src/fedsight/%/*))'
endif

test-fast: $(READY)  ## the tests that start no process and are quick, for every-day work
	$(BIN)/python -m pytest -m "unit and not slow" -n 2 $(SPREAD)

# The oldest versions that pyproject.toml allows, in an environment of their own, on the Python that
# GPU machines have with them. PYTHON=... chooses another, TESTS="tests/core -m unit" a part.
LOWEST := .venv-lowest
LOWEST_PYTHON = $(if $(filter file,$(origin PYTHON)),$(shell \
  python3.12 -c '' 2>/dev/null && echo python3.12 || echo $(PYTHON)),$(PYTHON))
TESTS ?=
test-lowest: $(LOWEST)/.ready browser  ## the whole test suite on the oldest versions
	$(LOWEST)/bin/python -m pytest -n $(TESTERS) $(SPREAD) $(TESTS)

$(LOWEST)/.ready: pyproject.toml constraints-lowest.txt
	test -x $(LOWEST)/bin/python || $(LOWEST_PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-lowest.txt -e '.[all,dev]'
	touch $@

# `exec`: who started it in the background can end mypy by the number that the shell knows.
LINT = $(BIN)/ruff check && $(BIN)/ruff format --check && exec $(BIN)/mypy
lint: $(READY)
	$(LINT)

install: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "FedSight needs Python 3.11 or newer: make PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all,dev]'
	touch $@

browser:  # the report is looked at in a real browser
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null || { \
	  as_root=; [ "$$(id -u)" = 0 ] || as_root=sudo; \
	  $$as_root apt-get update -qq && $$as_root apt-get install -y -qq chromium chromium-driver; } || \
	  { echo "The report's test needs chromium and chromedriver: please install both."; exit 1; }

bench: $(READY)  ## speed beside bare PyTorch and beside the peers that are installed
	$(BIN)/python benchmarks/engine.py
	$(BIN)/python benchmarks/population.py

# On a machine with a GPU, PyTorch 2.11 or newer, torchvision and timm, which may have no network:
# what else is needed comes from .gpu-wheels/, which `make gpu-wheels` fills where there is one.
# QUICK=1 proves the same code on the CPU, with tiny shapes, in the ordinary environment.
GPU_WHEELS := .gpu-wheels
GPU_VENV := .venv-gpu
GPU_PYTHON = $(if $(QUICK),$(BIN)/python,$(if $(wildcard $(GPU_WHEELS)),$(GPU_VENV)/bin/python,$(PYTHON)))
gpu-check: $(if $(QUICK),$(READY),$(if $(wildcard $(GPU_WHEELS)),$(GPU_VENV)/.ready))  ## tests and benchmarks on a GPU, at most eight minutes; writes benchmarks/results/gpu.json
	PYTHONPATH=src $(GPU_PYTHON) benchmarks/gpu.py $(if $(QUICK),--quick)

$(GPU_VENV)/.ready: benchmarks/gpu-packages.txt
	$(PYTHON) -m venv --system-site-packages $(GPU_VENV)
	$(GPU_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-index --no-deps --find-links $(GPU_WHEELS) -r $<
	touch $@

gpu-wheels:  ## what a GPU machine with Python 3.12 and PyTorch lacks, to carry there
	$(PYTHON) -m pip download --quiet --disable-pip-version-check --dest $(GPU_WHEELS) --no-deps --only-binary=:all: \
	  --python-version 3.12 --platform manylinux2014_x86_64 --platform manylinux_2_28_x86_64 --platform any -r benchmarks/gpu-packages.txt

reference: $(READY)  ## docs/reference/, from the code
	$(BIN)/python tools/make_reference.py

chart-check:  ## Helm's own lint and templates over the chart, and Kubernetes' schemas
	test -x .venv-chart/bin/python || $(PYTHON) -m venv .venv-chart
	.venv-chart/bin/python -m pip install --quiet --disable-pip-version-check helm-python-sdk==0.2.2 kubernetes-validate==1.37.0
	.venv-chart/bin/python tools/check_chart.py

clean:
	rm -rf $(VENV) .venv-chart $(LOWEST) $(GPU_VENV) $(GPU_WHEELS) .venv-peers build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage*

-include benchmarks/peers.mk

# Two commands matter: `make demo` and `make test`. Each makes .venv on its first run, from the pinned requirements/*.txt.

PYTHON ?= python3
SHARED ?= ../shared
VENV := .venv
PY := $(VENV)/bin/python
UV := $(PY) -m uv
ASSETS_TOOL := $(SHARED)/tools/expand_assets.py

# One thread per process and one process per core: torch's threads would compete with pytest's processes.
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --maxprocesses 8 --dist worksteal

# Bytecode is kept, even where the environment says not to: without it, every process compiles torch and the tests anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SECONDARY:
.PHONY: help install demo test test-all test-lowest check bench torture security fuzz assets browser docs wheel lock clean distclean

help:  ## show this list
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /	/' | expand -t 12

install: $(VENV)/run.stamp  ## install the library and .venv/bin/agnosco, nothing else

demo: $(VENV)/demo.stamp  ## map two networks that learn handwritten digits, and find the one with a backdoor: agnosco-demo/report.html
	$(VENV)/bin/agnosco demo

test: $(VENV)/dev.stamp assets browser  ## run the tests (minutes)
	$(PYTEST) -m "not slow"

test-all: $(VENV)/dev.stamp assets browser  ## run all tests, including the slow ones
	$(PYTEST)

test-lowest: $(VENV)/dev.stamp assets browser  ## run the tests with the lowest versions that pyproject.toml allows (minutes; 8 GB)
	$(UV) venv --quiet --clear build/lowest
	$(UV) pip compile --quiet --resolution lowest-direct --no-emit-index-url pyproject.toml --all-extras --group dev -o build/lowest/requirements.txt
	$(UV) pip install --quiet --python build/lowest/bin/python -r build/lowest/requirements.txt
	$(UV) pip install --quiet --python build/lowest/bin/python --no-deps --no-build-isolation -e .
	OMP_NUM_THREADS=1 build/lowest/bin/python -m pytest -n auto --maxprocesses 8 --dist worksteal -m "not slow"

check: $(VENV)/dev.stamp  ## run ruff and pyright
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pyright

bench: $(VENV)/dev.stamp assets  ## measure the figures in docs/paper.md, docs/backdoors.md and benchmarks/README.md again (hours)
	$(PY) benchmarks/ablation.py cifar --again
	$(PY) benchmarks/ablation.py imagenet --again
	$(PY) benchmarks/targeted_success.py --again
	$(PY) benchmarks/ablation.py --tables
	$(PY) benchmarks/targeted_success.py --tables
	$(PY) benchmarks/speed.py --again
	$(PY) benchmarks/speed.py --paths
	$(PY) benchmarks/speed.py --tables
	$(PY) benchmarks/growth.py
	$(PY) benchmarks/growth.py --figure
	$(PY) benchmarks/growth.py --tables
	$(PY) benchmarks/startup.py
	$(PY) benchmarks/startup.py --tables
	$(PY) benchmarks/report.py
	$(PY) benchmarks/report.py --tables
	$(PY) benchmarks/long_run.py
	$(PY) benchmarks/long_run.py --tables
	$(PY) benchmarks/large_folder.py
	$(PY) benchmarks/large_folder.py --tables
	$(PY) benchmarks/cluster.py
	$(PY) benchmarks/cluster.py --tables
	for split in development test; do \
		$(PY) benchmarks/backdoors.py train --split $$split && $(PY) benchmarks/backdoors.py scan --split $$split && \
		$(PY) benchmarks/backdoors.py keep --split $$split || exit 1; done
	$(PY) benchmarks/backdoors.py --figure --tables
	for what in bank check measure --tables; do $(PY) benchmarks/published.py $$what || exit 1; done
	$(PY) benchmarks/implants.py
	$(PY) benchmarks/implants.py --tables
	for what in train measure --tables; do $(PY) benchmarks/differences.py $$what || exit 1; done
	$(PY) benchmarks/where.py resnet18
	$(PY) benchmarks/where.py resnet20
	$(PY) benchmarks/where.py --tables
	$(PY) benchmarks/planted_cues.py train && $(PY) benchmarks/planted_cues.py && $(PY) benchmarks/planted_cues.py --tables

torture: $(VENV)/dev.stamp  ## kill runs, fill disks, move folders, share, and check that no map is lost or changed (half an hour)
	OMP_NUM_THREADS=1 $(PY) benchmarks/torture.py
	OMP_NUM_THREADS=1 $(PY) benchmarks/faults.py
	OMP_NUM_THREADS=1 $(PY) benchmarks/cluster_faults.py

security: $(VENV)/dev.stamp  ## try every hostile file on every command, for the table in docs/security.md
	OMP_NUM_THREADS=1 $(PY) benchmarks/security.py

fuzz: $(VENV)/dev.stamp  ## run the property tests and file fuzzers with 20,000 new examples each (ten minutes per file)
	AGNOSCO_FUZZ=long $(PYTEST) $(wildcard tests/*/test_fuzz_*.py tests/*/test_properties.py)

docs: $(VENV)/dev.stamp  ## build the documentation in build/docs and run the notebook; warnings and dead links are errors
	$(PY) -m typer agnosco.cli.app utils docs --name agnosco --output docs/cli.md
	$(PY) -m sphinx -q -W --keep-going -b html docs build/docs
	@echo "Open build/docs/index.html"

wheel: $(VENV)/dev.stamp  ## build the distributions, install the wheel in an empty environment and run the demo there
	rm -rf dist build/wheel && $(PY) -m build --no-isolation --outdir dist
	$(UV) venv --quiet build/wheel && $(UV) pip install --quiet --python build/wheel/bin/python --require-hashes -r requirements/demo.txt
	$(UV) pip install --quiet --python build/wheel/bin/python --no-deps dist/*.whl
	cd build/wheel && bin/agnosco demo

# What the tests of the report need besides: Debian's chromium, and axe-core, which checks accessibility.
AXE := build/axe/node_modules/axe-core/axe.min.js
browser:
	@command -v chromium >/dev/null || echo "browser: there is no chromium (apt install chromium); tests of the report in it will be skipped"
	@for again in 1 2 3; do test -f $(AXE) || ! command -v npm >/dev/null || \
		npm install --silent --no-save --no-audit --no-fund --prefix build/axe axe-core@4.14.1 >/dev/null 2>&1 || true; done
	@test -f $(AXE) || echo "browser: there is no axe-core (npm); its tests will be skipped"

# Real models and images for the tests. They cannot be part of this repository, and no test fails without them.
ifneq ($(AGNOSCO_ASSETS),)
assets:
	@echo "assets: those in AGNOSCO_ASSETS"
else ifneq ($(wildcard $(ASSETS_TOOL)),)
assets: build/assets.stamp
else
assets:
	@echo "assets: there is no $(ASSETS_TOOL); tests on real models will be skipped"
endif
assets:  ## unpack real models and images, where available, into build/assets

build/assets.stamp: $(ASSETS_TOOL) $(wildcard $(SHARED)/assets/*.zip $(SHARED)/assets/models/*) | $(VENV)/dev.stamp
	$(PY) $(ASSETS_TOOL) build/assets
	@touch $@

# The environment. `tools` holds uv and the build backend; `run`, `demo` and `dev` are what each command needs.
$(VENV)/tools.stamp: requirements/tools.txt
	@$(PY) -c 'import pip' 2>/dev/null || $(MAKE) --no-print-directory venv
	$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@

.PHONY: venv
venv:
	@command -v $(PYTHON) >/dev/null || { echo "There is no $(PYTHON): install Python 3.11 or newer."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "agnosco needs Python 3.11 or newer; $(PYTHON) is `$(PYTHON) -V 2>&1`."; \
		echo "Name a newer one: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV) || { \
		echo "$(PYTHON) cannot make a virtual environment (on Debian: apt install python3-venv)."; exit 1; }

$(VENV)/%.stamp: requirements/%.txt pyproject.toml $(VENV)/tools.stamp
	$(UV) pip install --python $(PY) --require-hashes -r $<
	$(UV) pip install --python $(PY) --no-deps --no-build-isolation -e .
	@touch $@

# Pins: one resolution for everything (dev); the others are subsets of it. No file may name a package index.
COMPILE := $(UV) pip compile --quiet --universal --generate-hashes --no-emit-index-url --custom-compile-command "make lock"
lock: $(VENV)/tools.stamp  ## update requirements/*.txt; `make lock ARGS=--upgrade` takes newer releases
	$(COMPILE) $(ARGS) pyproject.toml --all-extras --group dev -o requirements/dev.txt
	$(COMPILE) pyproject.toml -c requirements/dev.txt -o requirements/run.txt
	$(COMPILE) pyproject.toml --extra demo -c requirements/dev.txt -o requirements/demo.txt
	printf 'setuptools\nuv\n' | $(COMPILE) --python-version 3.11 - -c requirements/dev.txt -o requirements/tools.txt

clean:  ## remove what the commands wrote, except the environment and the assets
	rm -rf agnosco-demo dist .pytest_cache .ruff_cache .hypothesis build/test.log
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean  ## remove these as well
	rm -rf $(VENV) build

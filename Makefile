SHELL := bash
VENV ?= .venv
PYTHON := $(VENV)/bin/python
PYTEST := $(PYTHON) -m pytest -q

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-unit test-all lint docs sbom audit bench bench-train bench-teach bench-serve bench-eval lock clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# pyproject.toml is here because the `largeforge` command and its dependencies are declared in it.
$(VENV)/.installed: requirements/cpu.txt requirements/source.txt pyproject.toml
	@requirements/bootstrap.sh install $(VENV)

quickstart: $(VENV)/.installed ## the whole loop on this machine: teach, train, evaluate, promote, one page to read
	@$(VENV)/bin/largeforge quickstart

test: test-unit ## unit and contract tests, then small real models through Ray; what CI runs
	$(PYTEST) tests/local_ray -m "not slow"
	@echo
	@echo "All passed. Next: make quickstart (the whole loop), make test-all (slow and GPU tests), make bench (ratios)."

test-unit: $(VENV)/.installed ## unit and contract tests, some minutes, no Ray cluster
	$(PYTEST) tests/unit tests/contracts -m "not slow" -n logical --maxprocesses 4 --dist loadfile

test-all: $(VENV)/.installed ## every test; GPU tests skip without one
	$(PYTEST) tests

lint: $(VENV)/.installed ## ruff and mypy, nothing is changed
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

docs: $(VENV)/.installed ## write docs/reference.md anew, from the schemas
	@$(PYTHON) -m largeforge_ray.config.reference >docs/reference.md

sbom: $(VENV)/.installed ## list every locked package with its licence, as CycloneDX, in build/sbom.cdx.json
	@mkdir -p build && $(PYTHON) requirements/sbom.py >build/sbom.cdx.json

# An environment of its own: what it needs would move packages of the lock.
$(VENV)/audit/bin/pip-audit: | $(VENV)/.installed
	$(PYTHON) -m venv --clear $(VENV)/audit
	$(VENV)/audit/bin/python -m pip --disable-pip-version-check install --quiet pip-audit==2.10.1

# The index knows no local versions such as torch's +cpu. --strict: a package that cannot be looked up fails, too.
audit: $(VENV)/audit/bin/pip-audit ## ask the package index which locked packages have known vulnerabilities
	@mkdir -p build && sed 's/+[a-z0-9.]*$$//' requirements/cpu.txt requirements/source.txt >build/audit.txt
	$< --strict --disable-pip --no-deps --progress-spinner off --requirement build/audit.txt

# These want a folder of rows: python -m benchmarks.objectives --data DIR
WANT_ROWS = $(addprefix benchmarks/,objectives.py soft_labels.py router_quality.py eval_ratios.py outcome_matrix.py)
BENCHMARKS = $(filter-out $(WANT_ROWS),$(wildcard benchmarks/[a-z]*.py))
bench: $(VENV)/.installed ## measure the ratios on this machine, one benchmark after the other
	@set -e; for file in $(BENCHMARKS); do \
	  echo "== $$file"; $(PYTHON) -m "benchmarks.$$(basename "$$file" .py)"; done

bench-train: $(VENV)/.installed ## the training ratios only; needs ./forge from a run
	$(PYTHON) -m benchmarks.train_ratios
	$(PYTHON) -m benchmarks.sweep_ratios

bench-teach: $(VENV)/.installed ## the farm's and distillation's ratios only
	$(PYTHON) -m benchmarks.farm_ratios
	$(PYTHON) -m benchmarks.farm_scale
	$(PYTHON) -m benchmarks.distill_ratios
	$(PYTHON) -m benchmarks.draft

bench-serve: $(VENV)/.installed ## the served router's ratios only; needs ./forge from a run
	$(PYTHON) -m benchmarks.serve_ratios
	$(PYTHON) -m benchmarks.echo_ratios
	$(PYTHON) -m benchmarks.balance_ratios
	$(PYTHON) -m benchmarks.routing_ratios
	$(PYTHON) -m benchmarks.speculation

bench-eval: $(VENV)/.installed ## evaluation's ratios only; DATA is a folder of published documents
	$(PYTHON) -m benchmarks.eval_ratios --data $(DATA)
	$(PYTHON) -m benchmarks.outcome_matrix --data $(DATA)/outcomes

lock: $(VENV)/.installed ## write requirements/cpu.txt anew (UPGRADE=1: newest versions)
	@requirements/bootstrap.sh lock $(VENV)

clean: ## remove caches and build folders; keeps the environment and your ./forge
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +

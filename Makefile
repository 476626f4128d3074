# Two commands: `make quickstart` runs the main job, `make test` checks everything.
# PYTHON=path/to/python uses an environment that already has the dependencies.
SHELL := /bin/sh
BOOTSTRAP ?= python3

ifdef PYTHON
READY := have-environment
else
PYTHON := .venv/bin/python
READY := .venv/.installed
endif

.PHONY: quickstart test lint format clean have-environment

quickstart: $(READY)
	$(PYTHON) -m ditf_probe quickstart

test: $(READY) lint
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(READY)
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

format: $(READY)
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

.venv/.installed: pyproject.toml constraints.txt
	@$(BOOTSTRAP) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
		{ echo "$(BOOTSTRAP) is not Python 3.11 to 3.13: name another one, make BOOTSTRAP=python3.12"; exit 2; }
	$(BOOTSTRAP) -m venv .venv
	.venv/bin/python -m pip install --quiet --upgrade pip
	.venv/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[text,offload,dev]'
	@touch $@

have-environment:
	@$(PYTHON) -c 'import diffusers, lightning, tensorboard, torch' || \
		{ echo "$(PYTHON) lacks packages: $(PYTHON) -m pip install -c constraints.txt -e '.[dev]'"; exit 2; }

clean:
	rm -rf .venv runs .pytest_cache .mypy_cache .ruff_cache

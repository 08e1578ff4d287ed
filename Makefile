# make demo    write the built-in scene, train on it, evaluate it
# make test    the whole test suite
# make lint    ruff
# make setup   what the others do first: an environment in .venv with the versions of constraints.txt
# make clean   remove the environment and everything built; scenes/ and runs/ stay
#
# PYTHON  the interpreter for the environment: make setup PYTHON=python3.12
# TORCH   the torch to install: make setup TORCH=torch==2.12.0. Where packages come from is pip's own setting
#         (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS or pip.conf).
# PYTEST_ARGS  passed on: make test PYTEST_ARGS='-m "not slow" -x', or '-n 8' for eight processes instead of two

PYTHON ?= python3
TORCH ?= $(shell sed -n '/^torch==/p' constraints.txt)
PYTEST_ARGS ?=
BIN = .venv/bin/python
SCENE = scenes/room
RUN = runs/demo

export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: demo test lint setup clean FORCE
.DELETE_ON_ERROR:
.SUFFIXES:

demo: setup
	@test -f $(SCENE)/demo.json || $(BIN) -m nfc_splat.demo $(SCENE)
	$(BIN) -m nfc_splat.train $(SCENE) --out $(RUN) --overwrite
	$(BIN) -m nfc_splat.eval images $(RUN)

# Threads that wait must not spin on a core that the other process needs.
test: setup
	OMP_WAIT_POLICY=PASSIVE $(BIN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

lint: setup
	$(BIN) -m ruff check .
	$(BIN) -m ruff format --check .

setup: .venv/installed

# Written last, so that an interrupted installation is taken up again.
.venv/installed: pyproject.toml .venv/constraints.txt
	@echo "installing $(TORCH), open3d and the rest into .venv; this takes minutes"
	$(BIN) -m pip install --quiet --constraint .venv/constraints.txt --editable '.[geometry,view,dev]'
	@touch $@
	@echo "ready: $(BIN)"

# Rewritten only when its content changes: a different TORCH installs again, the same one does nothing.
.venv/constraints.txt: FORCE | .venv/bin/python
	@{ sed '/^torch==/d' constraints.txt; echo '$(TORCH)'; } > $@.new
	@if cmp -s $@.new $@; then rm $@.new; else mv $@.new $@; fi

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "error: $(PYTHON) is missing or not Python 3.11 to 3.13; name another: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "error: $(PYTHON) cannot create environments; on Debian and Ubuntu: sudo apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv .venv || { rm -f .venv/bin/python; exit 1; }

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

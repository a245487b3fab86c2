# Everything a fresh machine needs: `make demo` and `make test` set up .venv by themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TRACKERS := $(VENV)/trackers

.PHONY: demo setup test faults lint type docs clean

demo: $(READY)  ## See it work: tiny model, bundled data, CPU, offline
	$(BIN)/lorafit demo --output-dir outputs/demo
	@echo "to type lorafit yourself, once in each terminal: . $(BIN)/activate"

setup: $(READY) $(TRACKERS)/.ready

# constraints.txt keeps torch at the tested version; reinstalled only when it or pyproject changes.
# A Python that is too old, or Debian's without python3-venv, is told before PyTorch is downloaded.
$(READY): pyproject.toml constraints.txt
	@test -x $(BIN)/python \
	    || $(PYTHON) -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo 'Python 3.11 or later with venv is needed (Debian: apt install python3-venv);' \
	    'to name one: make PYTHON=python3.12 $(MAKECMDGOALS)' >&2; exit 1; }
	@echo 'setting up $(VENV): where packages are missing they are downloaded, for some minutes'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(READY)

# W&B, MLflow and trackio bring dozens of packages, some older than those of lorafit, and TRL imports
# what it finds: they lie in an environment of their own, over the other, for their tests alone.
$(TRACKERS)/.ready: $(READY)
	$(BIN)/python -m venv $(TRACKERS)
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	    >"$$($(TRACKERS)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/below.pth"
	$(TRACKERS)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
	    -e '.[wandb,mlflow,trackio]'
	touch $(TRACKERS)/.ready

test: $(READY) $(TRACKERS)/.ready  ## The default tests: CPU, offline, deterministic
	$(BIN)/python -m pytest

faults: $(READY)  ## Both reliability matrices: every row that this machine can show, and its table
	$(BIN)/python -m pytest tests -m row --matrix-json build/matrix.json; \
	    code=$$?; $(BIN)/python docs/make_reliability_tables.py build/matrix.json && exit $$code

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(READY)
	$(BIN)/mypy

docs: $(READY)  ## The documentation site, in build/site; every warning is an error
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache

# make reproduce | test | test-integrations | notebooks | bench | lint | lock; the README says what each does.

PROFILE ?= standard
PYTHON ?= python3
PAGES ?= $(basename $(notdir $(wildcard notebooks/*.ipynb)))

ifeq ($(filter $(PROFILE),smoke standard full),)
$(error PROFILE=$(PROFILE): must be smoke, standard or full)
endif

# Nothing of the user's own Python and Jupyter settings reaches the results, and no home directory is needed.
CACHE := $(CURDIR)/.cache
unexport PYTHONPATH PYTHONHOME JUPYTER_PATH
export PYTHONNOUSERSITE := 1
export PYTHONUTF8 := 1
export JUPYTER_PREFER_ENV_PATH := 1
export JUPYTER_CONFIG_DIR := $(CACHE)/jupyter/config
export JUPYTER_DATA_DIR := $(CACHE)/jupyter/data
export JUPYTER_RUNTIME_DIR := $(CACHE)/jupyter/runtime
export IPYTHONDIR := $(CACHE)/ipython
export MPLCONFIGDIR := $(CACHE)/matplotlib
unexport MPLBACKEND
export PYTHON
PY := .venv/bin/python

.PHONY: reproduce test test-integrations notebooks bench lint lock environment
.DEFAULT_GOAL := reproduce

# Runs every notebook that is not up to date; then the verdicts, also when a notebook failed.
reproduce: environment
	@$(MAKE) --no-print-directory --keep-going $(PAGES:%=page-%); ran=$$?; \
	$(PY) -m lab report $(PAGES) --profile $(PROFILE) && exit $$ran

page-%: environment
	@$(PY) -m lab run $* --profile $(PROFILE)

test: environment
	@KADAM_CACHE=off KADAM_PROGRESS=off $(PY) -m pytest $(TESTS)

# The README's recipes for other frameworks, which stay in .venv until it is built anew.
test-integrations: environment
	@$(PY) -m pip install --quiet --disable-pip-version-check -c requirements.lock -r requirements-integrations.txt
	@$(PY) -m pytest tests/test_integrations.py

# The committed notebooks, executed anew with the parameters they hold (smoke).
notebooks: $(PAGES:%=notebook-%)

notebook-%: environment
	@$(PY) -m lab execute $*

# The figures behind the performance claims, into results/benchmarks; ten minutes on an idle machine.
bench: environment
	@for script in benchmarks/*.py; do PYTHONPATH=. $(PY) $$script || exit 1; done

lint: environment
	@$(PY) -m ruff check . && $(PY) -m ruff format --check . && $(PY) -m mypy

environment:
	@cmp -s requirements.lock .venv/complete && $(PY) -c '' 2>/dev/null || sh lab/bootstrap.sh
	@mkdir -p .cache/ipython .cache/jupyter/runtime

# Resolve the newest versions that pyproject.toml allows. torch stays as it is: it decides most of what is computed.
lock:
	@sh lab/lock.sh

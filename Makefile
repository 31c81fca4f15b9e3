# make reproduce | test | pages | records | audit | test-integrations | bench | lint | lock; the README says what each does.

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

.PHONY: reproduce test pages records audit test-integrations bench lint lock environment
.DEFAULT_GOAL := reproduce

# Runs every notebook that is not up to date, from nothing but what this command computed before; then the verdicts,
# also when a notebook failed; then what you got beside what is published.
reproduce: export KADAM_RECORDS := off
reproduce: environment
	@$(MAKE) --no-print-directory --keep-going $(PAGES:%=page-%); ran=$$?; \
	$(PY) -m lab report $(PAGES) --profile $(PROFILE); held=$$?; \
	$(PY) -m lab compare $(PAGES) --profile $(PROFILE) && exit $$((ran + held))

page-%: environment
	@$(PY) -m lab run $* --profile $(PROFILE)

# KADAM_RECORDS=only: the committed pages are executed from the published records, and nothing is computed in their place.
test: environment
	@KADAM_CACHE=off KADAM_RECORDS=only KADAM_PROGRESS=off $(PY) -m pytest --numprocesses auto --dist loadfile $(TESTS)
	@$(if $(TESTS),,$(PY) -m lab audit --budget 60s)

# The committed notebooks, executed anew from the published records, and results/ with them.
pages: $(PAGES:%=execute-%)
	@$(PY) -m lab report $(PAGES) --profile full

execute-%: environment
	@$(PY) -m lab execute $*

# Compute the runs that the published pages lack, publish their records, and the short runs for the audit.
records: $(PAGES:%=publish-%)
	@$(PY) -m lab audit --publish

publish-%: environment
	@$(PY) -m lab publish $*

# A sample of the published records, computed anew; with BASE=commit, proof that a change since then left them alone.
BUDGET ?= 60s
audit: environment
	@$(PY) -m lab audit --budget $(BUDGET) $(if $(BASE),--base $(BASE))

# The README's recipes for other frameworks, which stay in .venv until it is built anew.
test-integrations: environment
	@$(PY) -m pip install --quiet --disable-pip-version-check -c requirements.lock -r requirements-integrations.txt
	@$(PY) -m pytest tests/test_integrations.py

# The figures behind the performance claims, into results/benchmarks; ten minutes on an idle machine.
bench: environment
	@for script in benchmarks/*.py; do $(PY) $$script || exit 1; done

lint: environment
	@$(PY) -m ruff check . && $(PY) -m ruff format --check . && $(PY) -m mypy

environment:
	@cmp -s requirements.lock .venv/complete && $(PY) -c '' 2>/dev/null || sh lab/bootstrap.sh
	@mkdir -p .cache/ipython .cache/jupyter/runtime

# Resolve the newest versions that pyproject.toml allows. torch stays as it is: it decides most of what is computed.
lock:
	@sh lab/lock.sh

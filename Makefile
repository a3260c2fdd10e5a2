SHELL := bash -o pipefail
BIN := .venv/bin
PYTHON ?= $(firstword $(foreach p,python3.11 python3 python,$(if $(shell \
    $p -c "import sys; print('ok' * (sys.version_info >= (3, 11)))" 2>/dev/null),$p)))

MAKEFLAGS += --jobs=2 # the environment and the browser are built at the same time

.PHONY: help env dev train test check docs lab explore bench browser FORCE

help:  ## list the commands
	@sed -n 's/^\([a-z]*\):.*## */  make \1\t/p' $(MAKEFILE_LIST) | expand -t 16

env: .venv/.ready  ## build .venv (instant when it is there); PYTHON=python3.13 for another one

dev: .venv/.dev

train: env  ## train and report; DATASET=beauty, or a path; ARGS="-p epochs 5" for more parameters
	@mkdir -p runs
	@name=$$(basename -- "$$DATASET"); stem=$${name%.*}; report="runs/train$${stem:+-$$stem}.ipynb"; \
	set -- $(if $(value DATASET),-r dataset "$$DATASET"); \
	$(BIN)/papermill nbs/train.ipynb "$$(printf %s "$$report" | sed 's/[{}]/&&/g')" --log-output --no-progress-bar "$$@" $(value ARGS) 2>&1 \
	    | grep --line-buffered -vE "$(CHATTER)" | awk '{ print; fflush() } /^The report: / { said = 1 } END { exit !said }'; \
	set -- "$${PIPESTATUS[@]}"; test "$$1" = 0 || exit "$$1"; test "$$3" = 0 || echo "The report: $$report"

# A path may hold whatever a shell can quote: make expands nothing in it, and the shell gets it from the environment.
override DATASET := $(value DATASET)
export DATASET
CHATTER = ^(Executing|Ending|Input Notebook|Output Notebook|Passed unknown parameter|\[IPKernelApp\])|^ *$$

test: dev browser  ## run every notebook and every check
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadscope $(ARGS)

check: dev  ## format, lint, unit tests and five central notebooks, in under two minutes
	$(BIN)/ruff format --check --quiet . && $(BIN)/ruff check --quiet .
	$(BIN)/python -m pytest -q -n logical --maxprocesses 4 --dist loadscope $(UNIT) $(ARGS)

UNIT    = tests/test_house.py tests/test_metrics.py tests/test_tokenizer.py tests/test_training.py \
          $(CENTRAL:%="tests/test_notebooks.py::test_notebook[api/%]")
CENTRAL = models/31_base models/32_losses data/16_batches metrics/22_statistics runs/50_folder

docs: dev  ## build the site into _docs
	$(BIN)/python scripts/docs.py

lab: env  ## open JupyterLab on copies of the notebooks, in lab/
	@$(BIN)/python scripts/lab.py
	$(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) --LabApp.default_url=/lab/tree/lab/index.ipynb $(ARGS)

explore: env  ## serve the explorer by itself; voila.json asks for a token, answers this machine alone and lets idle kernels go
	$(BIN)/voila nbs/explore.ipynb $(ARGS)

bench: dev  ## measure, and record the figures in bench/results; ONLY=main_job for one topic
	@set -e; for f in $(or $(ONLY:%=bench/%.py),$(filter-out %/record.py %/peer_rectools.py %/synthetic.py $(wildcard bench/speed_*.py),$(wildcard bench/*.py))); do \
	    echo "== $$f"; $(BIN)/python $$f; done

# The environment is whole when the stamp is there and its Python runs; otherwise it is built anew.
ENV_WORKS := $(shell test -f .venv/.ready && $(BIN)/python -c "" 2>/dev/null && echo yes)
ifneq ($(ENV_WORKS),yes)
.venv/.ready: FORCE
endif
.venv/.ready: pyproject.toml constraints.txt
	@test "$(ENV_WORKS)" = yes || { echo "Building .venv: a few minutes, once"; \
	    $(or $(PYTHON),$(error itemlm needs Python 3.11 or newer on the PATH)) -m venv --clear .venv; }
	@$(PIP) -e ".[$(EXTRAS)]" && $(BIN)/python -m compileall -q itemlm && echo "$(EXTRAS)" > $@
.venv/.dev: EXTRAS = dev
.venv/.dev: .venv/.ready
	@test "$$(cat .venv/.ready)" = "$(EXTRAS)" || $(PIP) -e ".[$(EXTRAS)]"
	@touch $@

EXTRAS = lab,text,tune
PIP = PYTHONWARNINGS=ignore $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt

# Tests that look at pages need a browser: Debian's chromium is installed where that can be done.
browser:
	@if command -v chromium >/dev/null || command -v google-chrome >/dev/null; then :; \
	elif command -v apt-get >/dev/null && test "$$(id -u)" = 0; then \
	    echo "Installing chromium for the tests that look at pages"; \
	    apt-get update -qq && apt-get install -y -qq chromium >/dev/null || test -z "$(CI)"; \
	fi

FORCE:

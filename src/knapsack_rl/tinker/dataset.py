"""The cookbook's configuration plus ours: its data set, with groups as large as the plan says.

The cookbook asks for a batch when it is about to generate it (in its asynchronous loop, when there is room for it); the
plan is made then. The wrapped data set decides which prompts are in a batch; with a pool, a step is offered several
batches, and the plan chooses among their prompts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import chz
import numpy as np
from tinker_cookbook.rl import train
from tinker_cookbook.rl.rollout_limits import TerminationRewardPolicy
from tinker_cookbook.rl.rollouts import get_rollout_executor
from tinker_cookbook.rl.types import EnvGroupBuilder, RLDataset, RLDatasetBuilder

from knapsack_rl.advantages import prompt_weights
from knapsack_rl.allocator import Allocator
from knapsack_rl.config import FIELDS, AllocationConfig, Budget, RuleName, Weighting, from_dialect
from knapsack_rl.features.prompts import AUTO, BETTER, TEXT
from knapsack_rl.kept import KeptSuccesses
from knapsack_rl.notation import FloatArray
from knapsack_rl.rules import AllocationProblem, AllocationRule
from knapsack_rl.session import Session
from knapsack_rl.tinker.batches import Batch, LookFirst, PlannedLater
from knapsack_rl.tinker.builders import AllocatedGroupBuilder, Share, group_size, resized
from knapsack_rl.tinker.looks import Looking, PromptText, PromptTokens, find_looking, text_of
from knapsack_rl.tinker.outcome_log import Group
from knapsack_rl.tinker.tasks import PromptId, TaskIds
from knapsack_rl.tinker.tracker import OutcomeTracker

logger = logging.getLogger(__name__)

LOG_FILE, TRACE_FILE = "knapsack.jsonl", "trace.jsonl"

# Names here of core fields; the average is a field of the wrapped builders.
ALIASES = {"average": "num_envs", "min_count": "min_rollouts", "max_count": "max_rollouts"}


@chz.chz
class AllocatedDatasetBuilder(RLDatasetBuilder):  # type: ignore[misc]  # Any, in an environment without Tinker
    """Builds a data set around another builder's; `allocated` fills in what the cookbook's config knows.

    Fields of `AllocationConfig` mean what they mean there, and have the same defaults; but rollouts weigh alike by
    default, because the cookbook's losses add up tokens.

    Attributes:
        inner: builds the data set that the prompts come from. A test set is passed on unchanged.
        log_path: the cookbook's.
        rule, success_threshold, half_life, min_group, budget, step_cost, least_budget, token_decay, token_every: as in
            `AllocationConfig`; a pass is one over the candidates.
        features: what tells prompts apart under ``calibrated``: ``text`` (the question of a `ProblemEnv`, or what
            ``prompt_text`` returns), a file that ``knapsack-rl features`` has written for these texts, or None.
            ``auto``: ``text`` where texts are known and scikit-learn is installed, else None.
        ask: ask the policy for one greedy token after the prompt of each candidate, under ``calibrated``: how sure it
            is of that token is part of the belief. Batches are then planned by `LookFirst`, which `allocated` sets.
        pool: batches of ``inner`` that a step is offered: with more than 1, the plan also chooses which prompts are
            trained on. The number of steps stays, so there are as many times more passes over the candidates. None: as
            in `AllocationConfig`, and at most the batches that there are; 1 with ``make_allocator``.
        min_rollouts, max_rollouts: ``min_count`` and ``max_count`` of `AllocationConfig`.
        weighting: ``prompt`` scales the rewards of each group, so that every prompt weighs the same in the loss; None
            is ``rollout``.
        keep_successes: keep the last success of each prompt, and put it into the place of a rollout where all rollouts
            of a later group fail.
        kept_max_age: generation steps after which a kept success is not used any more; None for never.
        epochs: passes over ``inner``, without a pool.
        prompt_id: returns the id of a builder's task, where the builder has none: builders with one id share a belief.
        prompt_text: returns the text of a builder's prompt, where its environments are no `ProblemEnv`.
        prompt_tokens: returns the tokens of a builder's prompt, for ``ask``, where its environments are no
            `ProblemEnv`.
        make_allocator: makes an allocator to use in place of the one that the fields describe.
        termination, max_steps: as in the cookbook's config.
    """

    inner: RLDatasetBuilder
    log_path: str
    rule: RuleName = AllocationConfig.rule
    features: str | None = AUTO
    ask: bool = False
    pool: int | None = AllocationConfig.pool
    min_rollouts: int | None = AllocationConfig.min_count
    max_rollouts: int | None = AllocationConfig.max_count
    min_group: int = AllocationConfig.min_group
    budget: Budget = AllocationConfig.budget
    step_cost: float = AllocationConfig.step_cost
    least_budget: float = AllocationConfig.least_budget
    token_decay: float = AllocationConfig.token_decay
    token_every: int = AllocationConfig.token_every
    success_threshold: float | None = AllocationConfig.success_threshold
    half_life: float | None = AllocationConfig.half_life
    weighting: Weighting | None = AllocationConfig.weighting
    keep_successes: bool = False
    kept_max_age: float | None = None
    epochs: int = 1
    prompt_id: PromptId | None = None
    prompt_text: PromptText | None = None
    prompt_tokens: PromptTokens | None = None
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
        if self.features not in (AUTO, None) and self.rule != "calibrated":
            raise ValueError(f"features={self.features!r} has no effect under rule={self.rule!r}: use 'calibrated'")
        sizes = [group_size(builder) for builder in inner.get_batch(0)]
        if self.rule == "uniform" and 1 in sizes:
            raise ValueError("a group of one has no gradient, and the data set has some: give every builder at least 2")
        given = {ALIASES.get(core, core): getattr(self, ALIASES.get(core, core), None) for core in FIELDS}
        given |= {"weighting": self.weighting or "rollout", "num_envs": round(sum(sizes) / len(sizes))}
        if self.make_allocator is not None and self.pool is None:
            given["pool"] = 1  # an allocator of the user's own may have to give every prompt a group
        found = from_dialect(ALIASES, given, most_pool=len(inner))
        if found.pool is not None and found.pool > len(inner):
            raise ValueError(
                f"pool is {found.pool}, and the data set has {len(inner)} batches: a prompt cannot be offered twice in "
                "a step, so use a smaller pool or smaller batches"
            )
        return found


def allocated(config: train.Config, **options: Any) -> train.Config:
    """The cookbook's config with its data set allocated; ``options`` are fields of `AllocatedDatasetBuilder`.

    The policy is asked (``ask``) unless that is turned off: the config's rollout strategy is wrapped for that.

    From 0.6 on the cookbook repeats data sets itself. Repeated by it, ours could not tell a later pass from a new run:
    so ``num_epochs`` becomes our ``epochs``.

    Raises:
        ValueError: prompts that may be left out, in a loop that waits for a fixed number of groups; kept successes
            under a loss that refuses them.
    """
    if config.async_config or config.stream_minibatch_config:
        pool = options.get("pool") or 1
        if pool > 1 or options.get("min_rollouts") == 0:
            raise ValueError(
                f"{'a pool' if pool > 1 else 'min_rollouts=0'} leaves prompts out of a batch, and this loop waits for "
                f"groups_per_batch groups: use {'pool=1' if pool > 1 else 'min_rollouts=2'}, or the synchronous loop"
            )
        options = options | {"pool": pool}
    if options.get("keep_successes") and getattr(config, "records_stability_info", bool)():
        raise ValueError(
            "keep_successes=True with the loss stable_reinforce, which needs the server's own record of every rollout "
            "that it trains on: use another loss_fn, or keep_successes=False"
        )
    options = {"ask": True} | options
    changes: dict[str, Any] = {}
    if hasattr(config, "num_epochs"):
        options = {"epochs": config.num_epochs} | options
        changes = {"num_epochs": 1}
    if options["ask"]:
        changes["rollout_error_tolerance"] = LookFirst(config.effective_rollout_strategy())
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
        self.pool, steps_per_pass = config.pool, len(inner)
        kept = KeptSuccesses(max_age=options.kept_max_age) if options.keep_successes else None
        make = options.make_allocator or partial(config.make_allocator, steps_per_pass, kept)
        self.session = Session(config, allocator=make(), steps_per_pass=steps_per_pass, in_order=True)
        few = [*inner.get_batch(0), *(inner.get_batch(1) if len(inner) > 1 else ())]
        self.task_id = TaskIds(options.prompt_id, few)
        self._looking = self._found_looking(few)
        steps = min(len(self), options.max_steps or len(self))
        self.tracker = OutcomeTracker(self.session, Path(options.log_path) / LOG_FILE, steps, self._looking.look, kept)
        settings = {ALIASES.get(name, name): value for name, value in vars(config).items()}
        settings |= {name: getattr(options, name) for name in ("ask", "keep_successes", "epochs", "max_steps")}
        settings |= {"features": self._looking.features, "half_life": config.half_life_in_steps(steps_per_pass)}
        self.run = {"engine": "tinker", "rule": config.rule, "seed": 0, "settings": settings}
        self._next: int | None = None
        self._latest: PlannedLater | None = None

    def __len__(self) -> int:
        return len(self.inner) * self.options.epochs

    def get_batch(self, index: int) -> Sequence[EnvGroupBuilder]:
        """The groups of a batch, each making as many environments as the plan gives its prompt.

        Where the policy is asked, the plan is made when the first of them starts; there is then one for each candidate,
        and those that are left over end without a trajectory.

        Raises:
            ValueError: a builder whose size cannot be set or whose prompt has no id, or a budget that the limits cannot
                meet.
        """
        if index != self._next:
            self._start_at(index)
        with self.session.working():
            batch = self._offered(index)
        self._next = index + 1
        if self.asks:
            assert self._looking.next_token is not None
            self._latest = PlannedLater(batch, self._looking.next_token, self._plan, self._latest)
            return batch.groups
        self._plan(batch)
        return [group for group in batch.groups if group.share is not None]

    @property
    def asks(self) -> bool:
        """Whether the policy is asked: not in rollouts elsewhere, which no process sees before the others."""
        return self._looking.next_token is not None and get_rollout_executor() is None

    def _found_looking(self, few: Sequence[EnvGroupBuilder]) -> Looking:
        """How prompts are looked at: not at all for a rule without features, or an allocator of the user's own."""
        options = self.options
        own = options.make_allocator is not None and options.features == AUTO
        if options.rule != "calibrated" or own:
            return Looking(None, None, None, ())
        ask = options.ask and options.make_allocator is None
        return find_looking(options.features, ask, options.prompt_text, options.prompt_tokens, few)

    def _plan(
        self, batch: Batch, log_prob_P: FloatArray | None = None, metrics: Mapping[str, float] = MappingProxyType({})
    ) -> None:
        """Plan a batch, and deal the plan to its groups."""
        with self.session.working(metrics.get("look_seconds", 0.0)):
            self.tracker.collect()
            sizes = list(map(group_size, batch.builders))
            if self.session.config.rule == "uniform" and self.options.make_allocator is None:
                self.session.allocator.rule = _sizes_as_they_are(sizes)  # type: ignore[attr-defined]  # our own
            plan = self.tracker.plan(batch.prompt_ids, round(sum(sizes) / self.pool), batch.texts, log_prob_P)
            weight_P = prompt_weights(plan.counts_P) if self.session.config.weighting == "prompt" else None
            for group, i in zip(batch.groups, np.flatnonzero(plan.counts_P).tolist(), strict=False):
                count, prompt_id = int(plan.counts_P[i]), plan.prompt_ids[i]
                group.share = Share(
                    inner=resized(batch.builders[i], count),
                    group=Group(plan.step, i, prompt_id, (), ()),
                    count=count,
                    weight=None if weight_P is None else float(weight_P[i]),
                    keeping=self.tracker.keeping(prompt_id, plan.step),
                    metrics={f"knapsack/{name}": value for name, value in metrics.items()},
                )
                metrics = {}

    def _offered(self, index: int) -> Batch:
        """The candidates of a step.

        Raises:
            ValueError: a task without an id, or without a text where features are computed from it.
        """
        prompt_ids, builders, texts = [], [], {}
        for i in range(self.pool * index, self.pool * (index + 1)):
            batch = i % len(self.inner)
            for position, builder in enumerate(self.inner.get_batch(batch)):
                builders.append(builder)
                prompt_ids.append(self.task_id(builder, (batch, position), self.session.id_version))
                text = text_of(builder, self.options.prompt_text)
                if text is not None:
                    texts[prompt_ids[-1]] = text
                elif self.options.features not in (AUTO, None):
                    raise ValueError(
                        f"{type(builder).__name__} does not say what its prompt is: pass prompt_text=function of a "
                        "builder, or no features"
                    )
        groups = [AllocatedGroupBuilder(self.options.termination, self.tracker.log, self.tracker) for _ in prompt_ids]
        return Batch(index, prompt_ids, texts, builders, groups)

    def _start_at(self, index: int) -> None:
        """Begin the run, or continue it from the cookbook's latest checkpoint."""
        session, log_path = self.session, Path(self.options.log_path)
        if session.trace is not None:
            session.trace.close()
            session.trace = None  # complete steps that are learned again are in the record
        if not self.tracker.start_at(index) and index > 0:
            logger.warning("%s holds no beliefs of knapsack-rl: every prompt counts as unseen", log_path)
        session.open_trace(log_path / TRACE_FILE, self.run)
        self.tracker.give_up_open()
        self._latest = None
        logger.info("knapsack-rl: %s", self._described())

    def _described(self) -> str:
        """The settings that decide most, and what is less than by default."""
        config, lacks = self.session.config, list(self._looking.lacks)
        if self._looking.next_token is not None and not self.asks:
            lacks.append("no log odds, rollouts run in other threads or processes")
        default = AllocationConfig(config.rule, config.average).pool
        if config.pool != default:
            lacks.append(f"pool={config.pool} instead of {default}")
        if config.weighting != AllocationConfig(config.rule).weighting:
            lacks.append("weighting=rollout, because the losses add up tokens")
        features = self._looking.features or "none"
        if features == TEXT:
            features += f" ({BETTER})"
        said = f"rule={config.rule}, pool={config.pool}, features={features}, ask={self.asks}"
        return f"{said}; less than by default: {'; '.join(lacks)}" if lacks else said


def _sizes_as_they_are(sizes: Sequence[int]) -> AllocationRule:
    """A rule that gives each group of a batch the size that its builder has without us."""
    counts_P = np.array(sizes, dtype=np.int64)
    problem = AllocationProblem(np.zeros((counts_P.size, int(counts_P.max()))), counts_P, counts_P)
    return lambda forecast, budget, low, high: problem

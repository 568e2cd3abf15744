"""One configuration for every door: its names, its defaults, and the allocator that it describes."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import numpy as np

from knapsack_rl.allocator import LEAST_BUDGET, KnapsackAllocator
from knapsack_rl.beliefs.beta import HALF_LIFE_PASSES, BetaBeliefs
from knapsack_rl.beliefs.calibrated import CalibratedBeliefs
from knapsack_rl.beliefs.forecast import Beliefs
from knapsack_rl.beliefs.window import WindowBeliefs
from knapsack_rl.kept import KeptSuccesses
from knapsack_rl.rules import expected_value, paper_rule, uniform_rule

RuleName = Literal["calibrated", "beta", "paper", "uniform"]
Weighting = Literal["prompt", "rollout"]
Budget = Literal["fixed", "adaptive", "tokens"]

RULES: tuple[RuleName, ...] = get_args(RuleName)
# The others give every prompt a share, however many prompts there are: in a pool, groups of one.
CHOOSING: tuple[RuleName, ...] = ("calibrated", "beta")
# The laboratory's tuning seeds have four ahead of two (docs/log.md).
DEFAULT_POOL = 4
# Most rollouts of a prompt: the paper's limit, or this many times the average where that is more.
MOST, MOST_AVERAGES = 128, 4
# Half-life in steps where the length of a pass over the data is not known: about an epoch of the paper's runs.
DEFAULT_HALF_LIFE = 64.0
# Cost of a step beside its rollouts, as a share of its budget, where the budget is adaptive (docs/log.md).
STEP_COST = 0.1
# Half-lives without an observation after which an offered prompt gets a pair: its evidence then counts a quarter.
OVERDUE_HALF_LIVES = 2.0
# Least value of each field that is a whole number, and the fields that are other numbers.
_LEAST = {"average": 2, "pool": 1, "min_count": 0, "max_count": 2, "min_group": 2, "token_every": 1}
_NUMBERS = ("half_life", "success_threshold", "step_cost", "least_budget", "token_decay")


@dataclass(frozen=True)
class AllocationConfig:
    """How rollouts are divided: the same names and defaults in every adapter and command.

    An adapter may offer a field under the name that its trainer uses (``num_generations`` for ``average``): a table in
    the adapter says which.

    Attributes:
        rule: ``calibrated`` (beliefs that learn from their own forecasts) or ``beta`` (a prompt's own counts), both by
            expected value; ``paper`` (the authors' estimator and rules); ``uniform`` (stock GRPO, with beliefs and
            trace).
        average: rollouts of a prompt on average, if the step trained on as many prompts as without a pool.
        pool: prompts offered for each that the trainer would take; with more than 1, the plan also chooses which
            prompts are trained on. None: 4 where the rule can choose and ``min_count`` does not forbid it, at most
            ``average``; else 1.
        min_count: least rollouts of a prompt: at least 2, or 0 to let prompts be left out. None: 0 with a pool, else 2.
        max_count: most rollouts of a prompt. None: 128, or 4 times the average where that is more.
        half_life: steps after which an observation counts half. None: 4 passes over the data where the length of a pass
            is known, else 64.
        success_threshold: least reward that counts as a success. None: 1, or the highest reward where the rewards show
            that it is another one (`knapsack_rl.beliefs.reward_check`).
        weighting: ``prompt`` (advantages are scaled so that every prompt weighs the same in the loss) or ``rollout`` (a
            prompt weighs by its number of rollouts). None: ``prompt`` for the rules that choose, else ``rollout``.
        min_group: rollouts of the smallest group: a prompt gets none, or at least so many.
        budget: ``fixed`` spends the budget of each step; ``adaptive`` spends what the step deserves
            (`knapsack_rl.knapsack.step_budget`), at most the budget; ``tokens`` spends the tokens that the budget's
            rollouts take at the mean expected length, and a prompt's rollout costs its own.
        step_cost: for an adaptive budget: cost of a step beside its rollouts, as a share of the budget.
        least_budget: for an adaptive budget: least share of the budget that is spent.
        token_decay, token_every: for a budget in tokens: factor of the tokens, applied every so many steps (Train Long,
            Think Short, arXiv 2508.08940).

    Fields of None are resolved when the configuration is made, and `dataclasses.replace` takes them as they are then:
    to change the rule, make a new configuration.

    Raises:
        ValueError: a value that makes no sense, by name, with what to set instead.
    """

    rule: RuleName = "calibrated"
    average: int = 8
    pool: int | None = None
    min_count: int | None = None
    max_count: int | None = None
    half_life: float | None = None
    success_threshold: float | None = None
    weighting: Weighting | None = None
    min_group: int = 2
    budget: Budget = "fixed"
    step_cost: float = STEP_COST
    least_budget: float = LEAST_BUDGET
    token_decay: float = 1.0
    token_every: int = 1

    def __post_init__(self) -> None:
        self._check_types()
        chooses = self.rule in CHOOSING
        pool = self.pool
        if pool is None:
            pool = min(DEFAULT_POOL, self.average) if chooses and not self.min_count else 1
        if pool > 1 and not chooses:
            raise ValueError(
                f"rule {self.rule!r} does not choose among a pool: use pool=1, or rule {' or '.join(CHOOSING)}"
            )
        if pool > 1 and self.min_count:
            raise ValueError(
                f"min_count is {self.min_count} with pool={pool}: a pool is there to choose from, so leave min_count "
                "away, or set it to 0"
            )
        least = (0 if pool > 1 else self.min_group) if self.min_count is None else self.min_count
        if least < 0 or least == 1:
            raise ValueError(f"min_count is {least}: a group of one has no gradient, use 0 or at least 2")
        most = max(MOST, MOST_AVERAGES * self.average) if self.max_count is None else self.max_count
        if 0 < least < self.min_group:
            raise ValueError(
                f"min_count is {least}, below min_group ({self.min_group}): raise it, or leave min_count away"
            )
        if most < max(least, self.min_group):
            raise ValueError(
                f"max_count is {most}: it must be at least min_group ({self.min_group}) and min_count ({least})"
            )
        if self.min_count is None and least > self.average:
            raise ValueError(
                f"min_group is {self.min_group} and average is {self.average}: with pool={pool} every prompt has a "
                "group, which cannot be larger than the average; lower min_group or raise the average"
            )
        if not least <= self.average <= most:
            raise ValueError(
                f"average is {self.average}: the average number of rollouts must lie between min_count ({least}) and "
                f"max_count ({most})"
            )
        weighting = self.weighting or ("prompt" if chooses else "rollout")
        for name, value in (("pool", pool), ("min_count", least), ("max_count", most), ("weighting", weighting)):
            object.__setattr__(self, name, value)

    def make_allocator(
        self, steps_per_pass: float | None = None, kept: KeptSuccesses | None = None
    ) -> KnapsackAllocator:
        """The allocator that this describes, which has learned nothing.

        Args:
            steps_per_pass: generation steps of one pass over the data, as of a run without a pool, where that is known:
                the laboratory's results are for a half-life that a pool leaves alone.
            kept: successes that replace a rollout of a group that fails as a whole; None if none are kept.
        """
        half_life = self.half_life_in_steps(steps_per_pass)
        beliefs: Beliefs = BetaBeliefs(half_life)
        if self.rule == "calibrated":
            beliefs = CalibratedBeliefs(half_life)
        elif self.rule == "paper":
            beliefs = WindowBeliefs()
        rule = {"paper": paper_rule, "uniform": uniform_rule}.get(self.rule, expected_value)
        assert self.min_count is not None and self.max_count is not None
        allocator = KnapsackAllocator(
            beliefs, rule, self.min_count, self.max_count, kept=kept, min_group=self.min_group
        )
        if self.budget == "adaptive":
            allocator.step_cost, allocator.least_budget = self.step_cost, self.least_budget
        elif self.budget == "tokens":
            allocator.token_share = lambda step: self.token_decay ** (step // self.token_every)
        self.set_half_life(allocator, half_life)
        return allocator

    def set_half_life(self, allocator: KnapsackAllocator, half_life: float) -> None:
        """Set the half-life of an allocator of this configuration, and the waiting time that is counted in it."""
        if isinstance(allocator.beliefs, BetaBeliefs):
            allocator.beliefs.half_life = half_life
        allocator.max_idle = OVERDUE_HALF_LIVES * half_life if self.min_count == 0 else None

    def half_life_in_steps(self, steps_per_pass: float | None = None) -> float:
        """The half-life, from the length of a pass of a run without a pool if it was not set."""
        if self.half_life is not None:
            return float(self.half_life)
        return DEFAULT_HALF_LIFE if steps_per_pass is None else HALF_LIFE_PASSES * max(float(steps_per_pass), 1.0)

    def _check_types(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None and field.default is None:
                continue
            if field.name in _LEAST:
                object.__setattr__(self, field.name, _whole(field.name, value, _LEAST[field.name]))
            elif field.name in _NUMBERS:
                object.__setattr__(self, field.name, _finite(field.name, value))
        if self.half_life is not None and not self.half_life > 0:
            raise ValueError(f"half_life is {self.half_life}: it counts steps and must be positive")
        self._check_budget()
        if self.rule not in RULES:
            raise ValueError(f"there is no rule {self.rule!r}: choose from {', '.join(RULES)}")
        if self.weighting not in (None, *get_args(Weighting)):
            raise ValueError(f"weighting is {self.weighting!r}: choose 'prompt' or 'rollout'")

    def _check_budget(self) -> None:
        if self.budget not in get_args(Budget):
            raise ValueError(f"budget is {self.budget!r}: choose 'fixed', 'adaptive' or 'tokens'")
        if not 0 < self.token_decay <= 1:
            raise ValueError(f"token_decay is {self.token_decay!r}: it is a factor above 0 and at most 1")
        if self.step_cost < 0:
            raise ValueError(f"step_cost is {self.step_cost!r}: it is a share of the budget, 0 or more")
        if not 0 < self.least_budget <= 1:
            raise ValueError(f"least_budget is {self.least_budget!r}: it is a share of the budget, above 0, at most 1")


FIELDS = tuple(field.name for field in fields(AllocationConfig))
# Those of a budget that changes from step to step: no settings of trainers whose batches have one size.
BUDGET_FIELDS = ("budget", "step_cost", "least_budget", "token_decay", "token_every")
CONSTANT_SIZE_FIELDS = tuple(name for name in FIELDS if name not in BUDGET_FIELDS)


def _whole(name: str, value: object, least: int) -> int:
    """The value of a field as an int.

    Raises:
        ValueError: no whole number, or below ``least``.
    """
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} is {value!r}: it must be a whole number of at least {least}")
    return int(value)


def _finite(name: str, value: object) -> float:
    """The value of a field as a float.

    Raises:
        ValueError: no number, or not finite.
    """
    number = float("nan")
    if isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool):
        with suppress(OverflowError):  # a whole number of hundreds of digits
            number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{name} is {value!r}: it must be a finite number")
    return number


def from_dialect(
    aliases: Mapping[str, str], given: Mapping[str, Any], most_pool: int | None = None
) -> AllocationConfig:
    """The configuration that an adapter's own names describe; errors name the adapter's fields.

    Args:
        aliases: the adapter's name of each core field that it renames.
        given: values by the adapter's names; what is missing keeps its default.
        most_pool: limit of a pool that is not given, because the data fill no larger one; None for no limit.

    Raises:
        ValueError: as `AllocationConfig`, with the adapter's names.
    """
    names = {core: aliases.get(core, core) for core in FIELDS}
    try:
        found = AllocationConfig(**{core: given[name] for core, name in names.items() if name in given})
    except ValueError as error:
        message = str(error)
        for core, name in names.items():
            message = re.sub(rf"\b{core}(?= is |=| \(| away)", name, message)
        raise ValueError(message) from error
    if most_pool is None or given.get(names["pool"]) is not None or found.pool is None or found.pool <= most_pool:
        return found
    return from_dialect(aliases, {**given, names["pool"]: max(most_pool, 1)})


def own_settings(
    given: Mapping[str, Any], core: Collection[str], own: Mapping[str, Any], prefix: str = ""
) -> dict[str, Any]:
    """An adapter's own settings: those that are given, with None for ``none`` and for an empty text, or their defaults.

    Args:
        given: values by name, of the adapter's settings and of fields of `AllocationConfig`.
        core: the fields that may be given.
        own: default of each setting of the adapter.
        prefix: what stands before a name in errors.

    Raises:
        ValueError: a name that is neither.
    """
    for name in given:
        if name not in core and name not in own:
            raise ValueError(f"{prefix}{name} is not a setting: there are {', '.join((*core, *own))}")
    values = {name: given.get(name, default) for name, default in own.items()}
    return {name: None if value in ("none", "") else value for name, value in values.items()}

"""Rules by name, and how each is built for an experiment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from knapsack_arena.published.ar3po import Ar3po
from knapsack_arena.published.cero import cero_rule
from knapsack_arena.published.coba import Coba
from knapsack_arena.published.dapo import DynamicSampling
from knapsack_arena.published.dps import Dps
from knapsack_arena.published.e3 import e3_rule
from knapsack_arena.published.gdro import gdro_rule
from knapsack_arena.published.greso import Greso
from knapsack_arena.published.gvm import cures_rule, gvm_rule
from knapsack_arena.published.hora import Hora
from knapsack_arena.published.maxrl import maxrl_rule
from knapsack_arena.published.mopps import Mopps
from knapsack_arena.published.pilot_commit import PilotCommit
from knapsack_arena.published.reinforce_ada import ReinforceAda
from knapsack_arena.published.released import released_rule
from knapsack_arena.published.sgpo import sgpo_rule
from knapsack_arena.published.speed import Speed
from knapsack_arena.published.spo import Spo
from knapsack_arena.published.vip import vip_dr_grpo_rule, vip_rloo_rule
from knapsack_arena.strategies import OneRound, PilotThenRest, Strategy
from knapsack_arena.strategies.protocol import FeatureSource
from knapsack_rl.allocator import KnapsackAllocator
from knapsack_rl.beliefs.beta import HALF_LIFE_PASSES, BetaBeliefs
from knapsack_rl.beliefs.calibrated import CalibratedBeliefs
from knapsack_rl.beliefs.static import StaticBeliefs
from knapsack_rl.beliefs.window import WindowBeliefs
from knapsack_rl.config import DEFAULT_POOL, AllocationConfig, RuleName
from knapsack_rl.kept import KeptSuccesses
from knapsack_rl.notation import FloatArray
from knapsack_rl.rules import AllocationRule, expected_value, oracle_rule


@dataclass(frozen=True)
class RuleContext:
    """What every rule is given: the size of the experiment, and the sources of knowledge that exist there.

    Attributes:
        groups: prompts of a step under equal division.
        average: rollouts per prompt on average; the budget of a step is ``groups * average``.
        prompts: size of the data set.
        min_count, max_count: limits on a prompt's rollouts.
        seed: of all random numbers of the rule.
        truth: true success rates of prompts, used by the oracle only; None where they are unknown.
        features: what prompts look like to the policy, for rules that learn from it; None where it is unknown.
        kept: successes that replace a failed rollout, for rules that price them; None where none are kept.
        min_group: rollouts of the smallest group, for our rules with a pool.
        step_cost: cost of a step as a share of its budget, for our rules; None to spend the budget.
        half_life_steps: the half-life of our beliefs where a record states it; None for the trainers' default.
    """

    groups: int = 256
    average: int = 8
    prompts: int = 17_000
    min_count: int = 2
    max_count: int = 128
    seed: int = 0
    truth: Callable[[Sequence[str]], FloatArray] | None = None
    features: FeatureSource | None = None
    kept: KeptSuccesses | None = None
    min_group: int = 2
    step_cost: float | None = None
    half_life_steps: float | None = None

    @property
    def budget(self) -> int:
        """Rollouts of a step."""
        return self.groups * self.average

    @property
    def half_life(self) -> float:
        """Steps after which our beliefs count an observation half."""
        if self.half_life_steps is not None:
            return self.half_life_steps
        return HALF_LIFE_PASSES * self.prompts / self.groups

    def pool(self, most: int = DEFAULT_POOL) -> int:
        """Prompts to offer for each of the ``groups``: ``most``, or fewer where the data set is too small."""
        return max(1, min(most, self.prompts // self.groups))


Builder = Callable[[RuleContext], Strategy]


def _configured(context: RuleContext, rule: RuleName, most: int = 1) -> Strategy:
    """A rule of `AllocationConfig`; with ``most`` above 1 it chooses from a pool."""
    config = AllocationConfig(
        rule=rule,
        average=context.max_count,  # not used: a plan is given its budget
        pool=1,
        min_count=0 if most > 1 else context.min_count,
        max_count=context.max_count,
        half_life=context.half_life,
        min_group=context.min_group if most > 1 or context.min_count == 0 else 2,
    )
    features = context.features if rule == "calibrated" else None
    allocator = config.make_allocator(kept=context.kept)
    allocator.step_cost = context.step_cost
    return OneRound(allocator, context.pool(most), features)


def _oracle(context: RuleContext, most: int = 1) -> Strategy:
    if context.truth is None:
        raise ValueError("the oracle needs the true success rates, which are unknown here: leave it out")
    least = 0 if most > 1 else context.min_count
    rule = oracle_rule if context.kept is None else expected_value
    smallest = context.min_group if most > 1 else 2
    allocator = KnapsackAllocator(
        StaticBeliefs(context.truth), rule, least, context.max_count, kept=context.kept, min_group=smallest
    )
    return OneRound(allocator, context.pool(most))


def _calibrated_pilot(context: RuleContext) -> Strategy:
    beliefs = CalibratedBeliefs(context.half_life)
    return PilotThenRest(beliefs, context.pool(), max_count=context.max_count, features=context.features)


def _maxrl(context: RuleContext) -> Strategy:
    """Our beliefs and pool with the value of MaxRL's loss."""
    beliefs, most = CalibratedBeliefs(context.half_life), context.max_count
    allocator = KnapsackAllocator(beliefs, maxrl_rule, 0, most, min_group=context.min_group)
    return OneRound(allocator, context.pool(), context.features)


def _by_counts(rule: AllocationRule) -> Builder:
    """A rule over Beta beliefs."""
    return lambda context: OneRound(
        KnapsackAllocator(BetaBeliefs(context.half_life), rule, context.min_count, context.max_count)
    )


def _by_latest(rule: AllocationRule, min_rewards: int = 1) -> Builder:
    """A rule over the mean of a prompt's latest rewards, from ``min_rewards`` rewards on."""
    return lambda context: OneRound(
        KnapsackAllocator(WindowBeliefs(min_rewards=min_rewards), rule, context.min_count, context.max_count)
    )


REGISTRY: Mapping[str, Builder] = {
    "uniform": partial(_configured, rule="uniform"),
    "paper": partial(_configured, rule="paper"),
    "beta": partial(_configured, rule="beta"),
    "beta-pool": partial(_configured, rule="beta", most=DEFAULT_POOL),
    "calibrated": partial(_configured, rule="calibrated"),
    "calibrated-pool": partial(_configured, rule="calibrated", most=DEFAULT_POOL),
    "calibrated-pool-2": partial(_configured, rule="calibrated", most=2),
    "calibrated-pilot": _calibrated_pilot,
    "oracle": _oracle,
    "oracle-pool": partial(_oracle, most=DEFAULT_POOL),
    "paper-released": _by_latest(released_rule, WindowBeliefs().min_rewards),
    "coba-rl": lambda context: OneRound(Coba(context.min_count, context.max_count)),
    "coba-rl-released": lambda context: OneRound(Coba(context.min_count, context.max_count, released=True)),
    "vip-rloo": _by_counts(vip_rloo_rule),
    "vip-dr-grpo": _by_counts(vip_dr_grpo_rule),
    "cero": _by_counts(cero_rule),
    "rollout-gdro": _by_latest(gdro_rule),
    "gvm": _by_latest(gvm_rule),
    "cures": _by_latest(cures_rule),
    "e3": _by_latest(e3_rule),
    "sgpo": _by_latest(sgpo_rule),
    "dapo": lambda context: DynamicSampling(),
    "greso": lambda context: Greso(context.seed),
    "maxrl-pool": _maxrl,
    "mopps": lambda context: Mopps(context.seed, pool=context.pool(Mopps.pool)),
    "dps": lambda context: Dps(pool=context.pool(Dps.pool)),
    "spo": lambda context: Spo(context.seed),
    "speed-rl": lambda context: Speed(),
    "pilot-commit": lambda context: PilotCommit(context.seed),
    "reinforce-ada-balanced": lambda context: ReinforceAda("balanced"),
    "reinforce-ada-positive": lambda context: ReinforceAda("positive"),
    "ar3po": lambda context: Ar3po(),
    "hora": lambda context: Hora(max_count=context.max_count),
}

# Not ranked in the arena: variants of our own rules, of which it has one of each kind, and rules newer than its
# last run.
VARIANTS = ("beta-pool", "calibrated-pool-2", "dps", "maxrl-pool", "spo")


def make_strategy(name: str, context: RuleContext) -> Strategy:
    """Build the rule of this name.

    Raises:
        ValueError: no such rule, or one that cannot run in this context.
    """
    if name not in REGISTRY:
        raise ValueError(f"there is no rule {name!r}: choose from {', '.join(REGISTRY)}")
    return REGISTRY[name](context)

"""Every rule by name: who can enter a comparison, and how each is set up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from knapsack_rl.allocator import KnapsackAllocator, Rule, make_allocator, oracle_rule
from knapsack_rl.beliefs import FADING_PASSES, Beliefs, PaperBeliefs, PosteriorBeliefs
from knapsack_rl.calibrated import CalibratedBeliefs, Features
from knapsack_rl.notation import FloatArray
from knapsack_rl.oracle import GivenBeliefs
from knapsack_rl.pilot import PilotThenRest
from knapsack_rl.rivals.ar3po import Ar3po
from knapsack_rl.rivals.cero import cero_rule
from knapsack_rl.rivals.coba import Coba
from knapsack_rl.rivals.dapo import DynamicSampling
from knapsack_rl.rivals.e3 import e3_rule
from knapsack_rl.rivals.gdro import gdro_rule
from knapsack_rl.rivals.greso import Greso
from knapsack_rl.rivals.gvm import cures_rule, gvm_rule
from knapsack_rl.rivals.hora import Hora
from knapsack_rl.rivals.mopps import Mopps
from knapsack_rl.rivals.pilot_commit import PilotCommit
from knapsack_rl.rivals.reinforce_ada import ReinforceAda
from knapsack_rl.rivals.released import released_rule
from knapsack_rl.rivals.sgpo import sgpo_rule
from knapsack_rl.rivals.speed import Speed
from knapsack_rl.rivals.vip import vip_dr_grpo_rule, vip_rloo_rule
from knapsack_rl.strategy import OneRound, Strategy


@dataclass(frozen=True)
class Setting:
    """What every entrant is told, and all it is told.

    Attributes:
        groups: prompts of a step under equal division.
        num_generations: rollouts per prompt on average; the budget of a step is ``groups * num_generations``.
        prompts: size of the data set.
        min_count, max_count: limits on a prompt's rollouts.
        seed: of whatever the rule draws at random.
        truth: true success rates of prompts, for the oracle alone; None where nobody knows them.
        features: what prompts look like to the policy, for the rules that can use it; None where nobody knows.
    """

    groups: int = 256
    num_generations: int = 8
    prompts: int = 17_000
    min_count: int = 2
    max_count: int = 128
    seed: int = 0
    truth: Callable[[Sequence[str]], FloatArray] | None = None
    features: Features | None = None

    @property
    def budget(self) -> int:
        """Rollouts of a step."""
        return self.groups * self.num_generations

    @property
    def half_life(self) -> float:
        """Steps after which our beliefs count an observation half: the trainers' default."""
        return FADING_PASSES * self.prompts / self.groups


def _uniform(setting: Setting) -> Strategy:
    return OneRound(make_allocator("uniform", setting.min_count, setting.max_count, setting.half_life))


def _paper(setting: Setting) -> Strategy:
    return OneRound(make_allocator("paper", setting.min_count, setting.max_count))


def _ours(setting: Setting) -> Strategy:
    return OneRound(make_allocator("posterior", setting.min_count, setting.max_count, setting.half_life))


def _calibrated(setting: Setting) -> Strategy:
    return OneRound(_calibrated_allocator(setting, setting.min_count))


def _calibrated_allocator(setting: Setting, least: int) -> KnapsackAllocator:
    """Calibrated beliefs, by what prompts look like where anybody knows."""
    return make_allocator("calibrated", least, setting.max_count, setting.half_life, setting.features)


def _oracle(setting: Setting) -> Strategy:
    return OneRound(KnapsackAllocator(_known(setting), oracle_rule, setting.min_count, setting.max_count))


def _known(setting: Setting) -> Beliefs:
    if setting.truth is None:
        raise ValueError("the oracle needs the true success rates, which nobody knows here: leave it out")
    return GivenBeliefs(setting.truth)


def _mopps(setting: Setting) -> Strategy:
    return Mopps(setting.seed, pool=_pool(setting, Mopps.pool))


def _pool(setting: Setting, most: int = 4) -> int:
    """How many times a step's prompts there are to choose from."""
    return max(1, min(most, setting.prompts // setting.groups))


def _posterior_pool(setting: Setting) -> Strategy:
    allocator = make_allocator("posterior", 0, setting.max_count, setting.half_life)
    return OneRound(allocator, _pool(setting))


def _calibrated_pool(setting: Setting) -> Strategy:
    return OneRound(_calibrated_allocator(setting, 0), _pool(setting))


def _calibrated_pair(setting: Setting) -> Strategy:
    return OneRound(_calibrated_allocator(setting, 0), _pool(setting, 2))


def _calibrated_pilot(setting: Setting) -> Strategy:
    beliefs = CalibratedBeliefs(setting.half_life, setting.features)
    return PilotThenRest(beliefs, _pool(setting), max_count=setting.max_count)


def _oracle_pool(setting: Setting) -> Strategy:
    return OneRound(KnapsackAllocator(_known(setting), oracle_rule, 0, setting.max_count), _pool(setting))


def _posterior(setting: Setting) -> Beliefs:
    return PosteriorBeliefs(setting.half_life)


def _latest(setting: Setting) -> Beliefs:
    """The mean of the latest rewards, from the first one on."""
    return PaperBeliefs(min_rewards=1)


def _ruled(rule: Rule, beliefs: Callable[[Setting], Beliefs]) -> Callable[[Setting], Strategy]:
    """An entrant that is a rule over beliefs."""
    return lambda setting: OneRound(KnapsackAllocator(beliefs(setting), rule, setting.min_count, setting.max_count))


ENTRANTS: Mapping[str, Callable[[Setting], Strategy]] = {
    "uniform": _uniform,
    "knapsack-rl": _paper,
    "posterior": _ours,
    "posterior-pool": _posterior_pool,
    "calibrated": _calibrated,
    "calibrated-pool": _calibrated_pool,
    "calibrated-pool-2": _calibrated_pair,
    "calibrated-pilot": _calibrated_pilot,
    "oracle": _oracle,
    "oracle-pool": _oracle_pool,
    "knapsack-rl-released": _ruled(released_rule, lambda _: PaperBeliefs()),
    "coba-rl": lambda setting: OneRound(Coba(setting.min_count, setting.max_count)),
    "coba-rl-released": lambda setting: OneRound(Coba(setting.min_count, setting.max_count, released=True)),
    "vip-rloo": _ruled(vip_rloo_rule, _posterior),
    "vip-dr-grpo": _ruled(vip_dr_grpo_rule, _posterior),
    "cero": _ruled(cero_rule, _posterior),
    "rollout-gdro": _ruled(gdro_rule, _latest),
    "gvm": _ruled(gvm_rule, _latest),
    "cures": _ruled(cures_rule, _latest),
    "e3": _ruled(e3_rule, _latest),
    "sgpo": _ruled(sgpo_rule, _latest),
    "dapo": lambda setting: DynamicSampling(),
    "greso": lambda setting: Greso(setting.seed),
    "mopps": _mopps,
    "speed-rl": lambda setting: Speed(),
    "pilot-commit": lambda setting: PilotCommit(setting.seed),
    "reinforce-ada-balanced": lambda setting: ReinforceAda("balanced"),
    "reinforce-ada-positive": lambda setting: ReinforceAda("positive"),
    "ar3po": lambda setting: Ar3po(),
    "hora": lambda setting: Hora(max_count=setting.max_count),
}

# Settings of ours that the laboratory tells apart; the arena has one of each kind.
VARIANTS = ("posterior-pool", "calibrated-pool-2")


def make_strategy(name: str, setting: Setting) -> Strategy:
    """The entrant of this name.

    Raises:
        ValueError: no such entrant, or one that cannot enter here.
    """
    if name not in ENTRANTS:
        raise ValueError(f"there is no rule {name!r}: choose from {', '.join(ENTRANTS)}")
    return ENTRANTS[name](setting)

"""Controls and a ceiling for the laboratory, as rules of a file: ``benchmarks/controls.py:Shuffled``.

| rule | what it shows |
|---|---|
| `Shuffled` | the default with its forecasts given to other candidates: what beliefs are worth |
| `StopWhenMixed` | the oracle with 16 rounds: true rates, and no further rollout of a group that is mixed |
| `ByTokens` | `beta-pool` with a budget in tokens: a rollout costs the expected length of its answer |

Run from the root of a checkout, for example

    knapsack-rl lab --regimes keys --rules oracle-pool@prompt,benchmarks/controls.py:StopWhenMixed@prompt
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from knapsack_arena.registry import RuleContext, make_strategy
from knapsack_arena.strategies import Batch, OneRound, RolloutRequest, StepGenerator, StepSpec, take_unseen
from knapsack_arena.strategies.groups import join, pick
from knapsack_rl.allocator import KnapsackAllocator
from knapsack_rl.beliefs.forecast import Beliefs, Forecast
from knapsack_rl.files import SavedToFile
from knapsack_rl.notation import BoolArray, FloatArray, IntArray, PromptFeatures
from knapsack_rl.values import information_gain

ROUNDS = 16
MOST = 64


class _Permuted:
    """Beliefs whose forecasts go to other prompts of the same step."""

    def __init__(self, beliefs: Beliefs, seed: int) -> None:
        self.beliefs, self.seed = beliefs, seed
        self.observe, self.state_dict = beliefs.observe, beliefs.state_dict
        self.load_state_dict = beliefs.load_state_dict

    def forecast(self, prompt_ids: Sequence[str], step: int, features: PromptFeatures | None = None) -> Forecast:
        """The forecast of the wrapped beliefs, permuted."""
        found = self.beliefs.forecast(prompt_ids, step, features)
        order = np.random.default_rng([self.seed, step]).permutation(len(prompt_ids))
        return replace(found, success_rates_P=found.success_rates_P[order], pseudo_count_P=found.pseudo_count_P[order])


def to_change(rule: str, context: RuleContext) -> tuple[OneRound, KnapsackAllocator]:
    """A rule of ours that plans once a step, and its allocator, of which a part is to be replaced."""
    strategy = make_strategy(rule, context)
    assert isinstance(strategy, OneRound)
    assert isinstance(strategy.allocator, KnapsackAllocator)
    return strategy, strategy.allocator


class Shuffled(OneRound):
    """`calibrated-pool` with permuted forecasts; it learns as that does."""

    def __init__(self, context: RuleContext) -> None:
        inner, allocator = to_change("calibrated-pool", context)
        allocator.beliefs = _Permuted(allocator.beliefs, context.seed)
        super().__init__(allocator, inner.pool, inner.features)


class ByTokens(OneRound):
    """`beta-pool` whose steps spend the tokens that their rollouts would take on average."""

    def __init__(self, context: RuleContext) -> None:
        inner, allocator = to_change("beta-pool", context)
        allocator.token_share = lambda _: 1.0
        super().__init__(allocator, inner.pool)


class StopWhenMixed(SavedToFile):
    """With true rates: in each of 16 rounds, the rollouts whose next outcome is worth most for their cost.

    After m equal failures the next rollout mixes the group with probability p, after m equal successes with 1 - p; a
    group that is not begun is worth the best, over its size n, of P(mixed by n) / E[rollouts used]. Each is weighed by
    p (1 - p)^2. A mixed group gets no more. Stopping at the first success biases the group's mean upwards.
    """

    def __init__(self, context: RuleContext) -> None:
        if context.truth is None:
            raise ValueError("the oracle needs the true success rates, which are unknown here: leave it out")
        self.truth, self.pool = context.truth, context.pool()

    def step(self, spec: StepSpec) -> StepGenerator:
        """Spend a sixteenth of the budget in each round."""
        ids = take_unseen(spec, spec.groups * self.pool)
        p_P = np.clip(self.truth(ids), 1e-6, 1 - 1e-6)
        counts_P, wins_P = np.zeros(len(ids), dtype=np.int64), np.zeros(len(ids), dtype=np.int64)
        generated, left = join(spec.step, []), spec.budget
        for round_ in range(ROUNDS):
            share = -(-left // (ROUNDS - round_))
            chosen = np.sort(np.argsort(-index(p_P, counts_P, wins_P), kind="stable")[:share])
            outcomes = yield RolloutRequest(tuple([ids[i] for i in chosen.tolist()]), np.ones(chosen.size, np.int64))
            generated = join(spec.step, [generated, outcomes])
            counts_P[chosen] += 1
            wins_P[chosen] += outcomes.successes_P
            left -= chosen.size
        return Batch(pick(generated, generated.attempts_P >= 2))

    def state_dict(self) -> dict[str, object]:
        """Nothing is learned."""
        return {}

    def load_state_dict(self, state: object) -> None:
        """Nothing is learned."""


def index(p_P: FloatArray, counts_P: IntArray, wins_P: IntArray) -> FloatArray:
    """What the next rollout of each group is worth for its cost, ``[P]``; -1 for mixed groups."""
    n = np.arange(1, MOST + 1)
    equal_P_N = p_P[:, None] ** n + (1 - p_P[:, None]) ** n
    # A group that stops when it is mixed uses 1 + the chances of being equal after 1 to n - 1 rollouts.
    used_P_N = 1 + np.concatenate([np.zeros((p_P.size, 1)), np.cumsum(equal_P_N[:, :-1], axis=1)], axis=1)
    unopened_P = ((1 - equal_P_N) / used_P_N).max(axis=1)
    mixed_P: BoolArray = (wins_P > 0) & (wins_P < counts_P)
    chance_P = np.where(counts_P == 0, unopened_P, np.where(wins_P == 0, p_P, 1 - p_P))
    value_P: FloatArray = np.where(mixed_P, -1.0, chance_P * information_gain(p_P))
    return value_P

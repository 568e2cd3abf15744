"""Deciding within the step by our beliefs, as rules of a file: ``benchmarks/within_step.py:FourRounds``.

| rule | what it decides within a step |
|---|---|
| `FourRounds` | which rollouts most probably mix a group, of four candidates a group, by forecasts that it updates |
| `TwoPool` | the same with two candidates a group |
| `PricedStages` | AR3PO's stages, which a failing group leaves once it has a kept success |

Not ahead of what they are built from (docs/log.md, 28 November 2026). Run from the root of a checkout, for example

    knapsack-rl lab --regimes long --rules uniform,benchmarks/within_step.py:FourRounds@prompt@priced@step=1/4
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from scipy.special import betaln

from knapsack_arena.published.ar3po import Ar3po
from knapsack_arena.registry import RuleContext, make_strategy
from knapsack_arena.strategies import Batch, OneRound, RolloutRequest, StepGenerator, StepSpec, take_unseen
from knapsack_arena.strategies.groups import join, pick
from knapsack_rl.allocator import KnapsackAllocator
from knapsack_rl.beliefs.forecast import Forecast
from knapsack_rl.files import SavedToFile, State
from knapsack_rl.notation import BoolArray, FloatArray, IntArray
from knapsack_rl.outcomes import Outcomes
from knapsack_rl.values import expected_knapsack_marginals, kept_success_marginals

ROUNDS = 4
# Most rollouts of a group in one round.
MOST = 32


class FourRounds(SavedToFile):
    """Four rounds of a quarter of the budget each, to the rollouts that are worth most.

    A rollout is worth the chance that it mixes its group, times p (1 - p)^2, under the forecast and the step's own
    outcomes. So a mixed group gets no more, nor does a group of failures whose prompt has a kept success.
    """

    most_pool = 4

    def __init__(self, context: RuleContext) -> None:
        inner = make_strategy("calibrated-pool", context)
        assert isinstance(inner, OneRound)
        assert isinstance(inner.allocator, KnapsackAllocator)
        self.beliefs, self.features, self.kept = inner.allocator.beliefs, inner.features, context.kept
        self.pool = context.pool(self.most_pool)

    def step(self, spec: StepSpec) -> StepGenerator:
        """Spend a quarter of the budget in each round."""
        ids = take_unseen(spec, spec.groups * self.pool)
        features = None if self.features is None else self.features(ids)
        forecast = self.beliefs.forecast(ids, spec.step, features)
        kept_P = np.zeros(len(ids), dtype=np.bool_) if self.kept is None else self.kept.has(ids, spec.step)
        counts_P, wins_P = np.zeros(len(ids), dtype=np.int64), np.zeros(len(ids), dtype=np.int64)
        generated, left = join(spec.step, []), spec.budget
        for round_ in range(ROUNDS):
            more_P = best_rollouts(worth(forecast, counts_P, wins_P, kept_P), counts_P, -(-left // (ROUNDS - round_)))
            chosen = np.flatnonzero(more_P)
            if not chosen.size:
                break
            outcomes = yield RolloutRequest(tuple([ids[i] for i in chosen.tolist()]), more_P[chosen])
            generated = join(spec.step, [generated, outcomes])
            counts_P[chosen] += more_P[chosen]
            wins_P[chosen] += outcomes.successes_P
            left -= int(more_P.sum())
        rows = np.array([ids.index(prompt_id) for prompt_id in generated.prompt_ids])
        self.beliefs.observe(replace(generated, features=None if features is None else features.take(rows)))
        return Batch(pick(generated, generated.attempts_P >= 2))

    def state_dict(self) -> State:
        """The state of the beliefs."""
        return self.beliefs.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of the beliefs; on a failure nothing changes."""
        self.beliefs.load_state_dict(state)


class TwoPool(FourRounds):
    """Two candidates a group."""

    most_pool = 2


def worth(forecast: Forecast, counts_P: IntArray, wins_P: IntArray, kept_P: BoolArray) -> FloatArray:
    """Worth of each further rollout of a round, ``[P, MOST]``, with q = 1 - p and g = p q^2.

    In a group that is not begun it is the rule's own. After failures the rollout after j more of them mixes the group
    with probability q^j p, after successes with p^j q. Failures with a kept success are mixed.
    """
    new_P, lost_P = counts_P == 0, counts_P - wins_P
    alpha_P, beta_P = forecast.alpha_P + wins_P, forecast.beta_P + lost_P
    found_P_N = np.zeros((len(counts_P), MOST))
    for rows_P, marginals in ((new_P & ~kept_P, expected_knapsack_marginals), (new_P & kept_P, kept_success_marginals)):
        found_P_N[rows_P] = marginals(alpha_P[rows_P], beta_P[rows_P], MOST)
    a_P, b_P, j_N = alpha_P[:, None], beta_P[:, None], np.arange(MOST)[None]
    lost_only_P, won_only_P = (lost_P > 0) & (wins_P == 0) & ~kept_P, (wins_P > 0) & (lost_P == 0)
    found_P_N[lost_only_P] = np.exp(betaln(a_P + 2, b_P + 2 + j_N) - betaln(a_P, b_P))[lost_only_P]  # E[g p q^j]
    found_P_N[won_only_P] = np.exp(betaln(a_P + 1 + j_N, b_P + 3) - betaln(a_P, b_P))[won_only_P]  # E[g q p^j]
    return found_P_N


def best_rollouts(worth_P_N: FloatArray, counts_P: IntArray, budget: int) -> IntArray:
    """The rollouts of most worth for their number, ``[P]``; the first two of a group that is not begun are one."""
    items: list[tuple[float, int, int, int]] = []
    # To 12 digits, because a pair is worth as much for its number as the third rollout, and must come first.
    for i, worth_N in enumerate(np.round(worth_P_N / max(worth_P_N.max(), 1e-300), 12).tolist()):
        first = 0 if counts_P[i] else 2
        if first:
            items.append((sum(worth_N[:2]) / 2, i, 0, 2))
        items += [(each, i, n, 1) for n, each in enumerate(worth_N) if n >= first]
    more_P = np.zeros(len(counts_P), dtype=np.int64)
    for each, i, n, size in sorted(items, key=lambda item: (-item[0], *item[1:])):
        if each > 0 and size <= budget and more_P[i] == n:
            more_P[i] += size
            budget -= size
    return more_P


class PricedStages(Ar3po):
    """AR3PO's stages, which a failing group leaves after the first that it ends with a kept success: it is mixed."""

    def __init__(self, context: RuleContext) -> None:
        super().__init__()
        object.__setattr__(self, "kept", context.kept)  # the base class is frozen

    def unsolved(self, generated: Outcomes) -> tuple[str, ...]:
        """Without those that have a kept success."""
        failed = super().unsolved(generated)
        if self.kept is None:
            return failed
        has_P = self.kept.has(failed, generated.step).tolist()
        return tuple([prompt_id for prompt_id, has in zip(failed, has_P, strict=True) if not has])

"""A test environment: prompts with constant success rates, a sampler, and an engine that can fail."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from knapsack_arena.strategies import RolloutRequest
from knapsack_rl.beliefs.ids import prompt_keys
from knapsack_rl.notation import FloatArray
from knapsack_rl.outcomes import Outcomes


class World:
    """Prompts, a sampler and an engine; equal arguments and equal calls give equal results.

    Args:
        prompts: number of prompts.
        rates: the success rate of all prompts; None for a different one for each, some of them 0 and 1.
        lost: share of the rollouts that do not come back.
        unanswered: share of the rollouts that come back without a reward.
        seed: of the rollouts.
    """

    def __init__(
        self, prompts: int = 48, rates: float | None = None, lost: float = 0.0, unanswered: float = 0.0, seed: int = 0
    ) -> None:
        self.prompt_ids = tuple([f"prompt-{i:03d}" for i in range(prompts)])
        self.rates, self.lost, self.unanswered, self.seed = rates, lost, unanswered, seed
        self._taken = self._rounds = 0

    def success_rates(self, prompt_ids: Sequence[str]) -> FloatArray:
        """The true success rates, ``[P]``, for an oracle."""
        if self.rates is not None:
            return np.full(len(prompt_ids), self.rates)
        # 20 % of the rates are 0 and 10 % are 1; the others are spread between.
        spread_P: FloatArray = np.clip((prompt_keys(prompt_ids) % np.uint64(1000)) / 700 - 0.3, 0.0, 1.0)
        return spread_P

    def take(self, k: int) -> tuple[str, ...]:
        """The next ``k`` prompts, in the same order in every epoch.

        Raises:
            AssertionError: more prompts than there are, or fewer than one.
        """
        size = len(self.prompt_ids)
        if not 1 <= k <= size:
            raise AssertionError(f"it takes {k} different prompts at once from a sampler of {size}")
        first, self._taken = self._taken, self._taken + k
        return tuple([self.prompt_ids[i % size] for i in range(first, first + k)])

    def generate(self, request: RolloutRequest, step: int) -> Outcomes:
        """Rollouts of 10 to 99 tokens with rewards of 0 and 1, without those that are lost."""
        rng = np.random.default_rng([self.seed, self._rounds])
        self._rounds += 1
        group_PG = np.repeat(np.arange(len(request.prompt_ids)), request.counts_P)
        rewards_PG = (rng.random(group_PG.size) < self.success_rates(request.prompt_ids)[group_PG]).astype(np.float64)
        rewards_PG[rng.random(group_PG.size) < self.unanswered] = np.nan
        back_PG = rng.random(group_PG.size) >= self.lost
        return Outcomes(
            step=step,
            prompt_ids=request.prompt_ids,
            counts_P=np.bincount(group_PG[back_PG], minlength=len(request.prompt_ids)).astype(np.int64),
            rewards_PG=rewards_PG[back_PG],
            tokens_PG=rng.integers(10, 100, group_PG.size)[back_PG],
        )

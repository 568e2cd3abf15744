"""What happened: the rewards of a step's groups, and what they say about success."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from knapsack_rl.notation import BoolArray, FloatArray, IntArray

# Rewards reach us in float32, as weighted sums: 0.7 + 0.3 must count as 1.
TOLERANCE = 1e-6


@dataclass(frozen=True, eq=False)
class Outcomes:
    """The rewards of some groups, flat, group after group.

    A reward is real; the rollout succeeded if it reached ``success_threshold``. NaN means that there was no answer (the
    engine failed, or no reward function applied): it is neither a success nor a failure. A group may come back short,
    or not at all: ``counts_P`` says how many rows there are, not how many were asked for.

    Attributes:
        step: generation step that produced the rollouts; late outcomes keep the step they were made in.
        prompt_ids: stable ids, ``[P]``.
        counts_P: rows of each group, ``[P]``.
        rewards_PG: rewards, ``[counts_P.sum()]``.
        tokens_PG: completion lengths in tokens, ``[counts_P.sum()]``, where known.
        success_threshold: the least reward that counts as a success.

    Raises:
        ValueError: lengths that do not fit, a negative count, or an infinite reward.
    """

    step: int
    prompt_ids: tuple[str, ...]
    counts_P: IntArray
    rewards_PG: FloatArray
    tokens_PG: IntArray | None = None
    success_threshold: float = 1.0

    def __post_init__(self) -> None:
        if self.counts_P.shape != (len(self.prompt_ids),) or (self.counts_P < 0).any():
            raise ValueError(f"outcomes of {len(self.prompt_ids)} prompts need as many counts, none negative")
        rows = int(self.counts_P.sum())
        for name, array in (("rewards", self.rewards_PG), ("token counts", self.tokens_PG)):
            if array is not None and array.shape != (rows,):
                raise ValueError(f"{rows} rollouts came with {name} of shape {array.shape}")
        infinite = np.isinf(self.rewards_PG)
        if infinite.any():
            row = int(np.argmax(infinite))
            prompt = self.prompt_ids[int(self.group_PG[row])]
            raise ValueError(
                f"prompt {prompt!r} got the reward {self.rewards_PG[row]}: rewards must be finite (NaN is 'no answer')"
            )

    @classmethod
    def of_groups(
        cls,
        step: int,
        groups: Sequence[tuple[str, Sequence[float]]],
        success_threshold: float = 1.0,
        tokens: Sequence[Sequence[int]] | None = None,
    ) -> Outcomes:
        """Outcomes of ``(prompt id, rewards)`` pairs: the way in for callers that hold lists.

        Args:
            step: generation step that produced the rollouts.
            groups: prompt id and rewards of each group.
            success_threshold: the least reward that counts as a success.
            tokens: completion lengths of each group, where known.
        """
        return cls(
            step=step,
            prompt_ids=tuple(prompt_id for prompt_id, _ in groups),
            counts_P=np.array([len(rewards) for _, rewards in groups], dtype=np.int64),
            rewards_PG=np.array([reward for _, rewards in groups for reward in rewards], dtype=np.float64),
            tokens_PG=None if tokens is None else np.array([n for group in tokens for n in group], dtype=np.int64),
            success_threshold=success_threshold,
        )

    @cached_property
    def group_PG(self) -> IntArray:
        """Index into ``prompt_ids`` of every row."""
        return np.repeat(np.arange(len(self.prompt_ids)), self.counts_P)

    @cached_property
    def answered_PG(self) -> BoolArray:
        """Whether the row has a reward at all."""
        return ~np.isnan(self.rewards_PG)

    @cached_property
    def success_PG(self) -> BoolArray:
        """Whether the row reached the threshold; False for rows without an answer."""
        return self.rewards_PG >= self.success_threshold - TOLERANCE

    @cached_property
    def attempts_P(self) -> IntArray:
        """Rows with a reward, by prompt."""
        return self._sum_P(self.answered_PG)

    @cached_property
    def successes_P(self) -> IntArray:
        """Successful rows, by prompt."""
        return self._sum_P(self.success_PG)

    @cached_property
    def pass_rates_P(self) -> FloatArray:
        """Observed success rate by prompt; NaN where nothing was answered."""
        empty = self.attempts_P == 0
        return np.where(empty, np.nan, self.successes_P / np.maximum(self.attempts_P, 1))

    @cached_property
    def mixed_P(self) -> BoolArray:
        """Whether the group's rewards differ, so that it carries a gradient (a group's standard deviation is not 0)."""
        lowest = np.full(len(self.prompt_ids), np.inf)
        highest = np.full(len(self.prompt_ids), -np.inf)
        np.minimum.at(lowest, self.group_PG[self.answered_PG], self.rewards_PG[self.answered_PG])
        np.maximum.at(highest, self.group_PG[self.answered_PG], self.rewards_PG[self.answered_PG])
        return highest > lowest

    @cached_property
    def mean_tokens_P(self) -> FloatArray:
        """Mean completion length by prompt, in tokens; NaN where unknown."""
        if self.tokens_PG is None:
            return np.full(len(self.prompt_ids), np.nan)
        totals = np.bincount(self.group_PG, weights=self.tokens_PG, minlength=len(self.prompt_ids))
        return np.where(self.counts_P > 0, totals / np.maximum(self.counts_P, 1), np.nan)

    def _sum_P(self, rows_PG: BoolArray) -> IntArray:
        return np.bincount(self.group_PG[rows_PG], minlength=len(self.prompt_ids)).astype(np.int64)

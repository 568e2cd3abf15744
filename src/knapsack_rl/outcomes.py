"""The rewards of a step's groups, and the counts of successes derived from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knapsack_rl.notation import BoolArray, FloatArray, IntArray, PromptFeatures, checked_step

# Rewards are often weighted sums in float32: 0.7 + 0.3 must reach a threshold of 1.
TOLERANCE = 1e-6


def is_success(rewards_PG: FloatArray, success_threshold: float) -> BoolArray:
    """Whether each reward reaches the threshold, ``[PG]``; False for NaN, which is no answer."""
    reached: BoolArray = rewards_PG >= success_threshold - TOLERANCE
    return reached


def _numbers(name: str, values: object, dtype: Any) -> NDArray[Any]:
    """The values as an array.

    Raises:
        ValueError: one of them is no such number.
    """
    try:
        return np.asarray(values, dtype=dtype)
    except (OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"the {name} are not a flat sequence of numbers: {error}") from error


@dataclass(frozen=True, eq=False)
class Outcomes:
    """The rewards of groups of rollouts, flat, group after group.

    Rewards are real numbers; a rollout succeeds if its reward reaches ``success_threshold``. NaN means no answer (the
    engine failed, or no reward function applied), which is neither a success nor a failure. Groups may be incomplete or
    empty: ``counts_P`` holds the numbers of rows here, which may be lower than the planned counts.

    Attributes:
        step: generation step that produced the rollouts, also if they are observed later.
        prompt_ids: stable ids, ``[P]``.
        counts_P: rows of each group, ``[P]``.
        rewards_PG: rewards, ``[counts_P.sum()]``.
        tokens_PG: completion lengths in tokens, ``[counts_P.sum()]``; None if unknown.
        success_threshold: the least reward that counts as a success.
        features: features of the prompts that the rollouts were planned with, rows in the order of ``prompt_ids``; None
            if there were none.

    Raises:
        ValueError: a step out of range, lengths that do not fit, a negative count, or an infinite reward.
    """

    step: int
    prompt_ids: tuple[str, ...]
    counts_P: IntArray
    rewards_PG: FloatArray
    tokens_PG: IntArray | None = None
    success_threshold: float = 1.0
    features: PromptFeatures | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "step", checked_step(self.step))
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
        """Build outcomes from lists of rewards by group.

        Args:
            step: generation step that produced the rollouts.
            groups: prompt id and rewards of each group.
            success_threshold: the least reward that counts as a success.
            tokens: completion lengths of each group, in tokens; None if unknown.
        """
        return cls(
            step=step,
            prompt_ids=tuple(prompt_id for prompt_id, _ in groups),
            counts_P=np.array([len(rewards) for _, rewards in groups], dtype=np.int64),
            rewards_PG=np.array([reward for _, rewards in groups for reward in rewards], dtype=np.float64),
            tokens_PG=None if tokens is None else np.array([n for group in tokens for n in group], dtype=np.int64),
            success_threshold=success_threshold,
        )

    @classmethod
    def from_rollouts(
        cls,
        step: int,
        ids_PG: Sequence[str],
        rewards_PG: Sequence[float] | FloatArray,
        tokens_PG: Sequence[int] | IntArray | None = None,
        success_threshold: float = 1.0,
        features: PromptFeatures | None = None,
    ) -> Outcomes:
        """Build outcomes from rollouts in any order; rollouts with the same id form one group.

        Groups are in order of first appearance.

        Args:
            step: generation step that produced the rollouts.
            ids_PG: prompt id of each rollout, ``[PG]``.
            rewards_PG: rewards, ``[PG]``; NaN or None where there was no answer.
            tokens_PG: completion lengths in tokens, ``[PG]``; None if unknown.
            success_threshold: the least reward that counts as a success.
            features: the look with which the prompts were planned, a row for each group; None for none.

        Raises:
            ValueError: sequences of different lengths, values that are no numbers, or an infinite reward.
        """
        place: dict[str, int] = {}
        group_PG = np.array([place.setdefault(each, len(place)) for each in ids_PG], dtype=np.int64)
        rewards = _numbers("rewards", rewards_PG, np.float64)
        tokens = None if tokens_PG is None else _numbers("token counts", tokens_PG, np.int64)
        for name, array in (("rewards", rewards), ("token counts", tokens)):
            if array is not None and array.shape != group_PG.shape:
                raise ValueError(f"{group_PG.size} rollouts came with {name} of shape {array.shape}")
        order = np.argsort(group_PG, kind="stable")
        return cls(
            step=step,
            prompt_ids=tuple(place),
            counts_P=np.bincount(group_PG, minlength=len(place)).astype(np.int64),
            rewards_PG=rewards[order],
            tokens_PG=None if tokens is None else tokens[order],
            success_threshold=success_threshold,
            features=features,
        )

    @cached_property
    def group_PG(self) -> IntArray:
        """Index into ``prompt_ids`` of every row, ``[PG]``."""
        return np.repeat(np.arange(len(self.prompt_ids)), self.counts_P)

    @cached_property
    def answered_PG(self) -> BoolArray:
        """Whether each row has a reward, ``[PG]``."""
        return ~np.isnan(self.rewards_PG)

    @cached_property
    def success_PG(self) -> BoolArray:
        """Whether each row reached the threshold, ``[PG]``; False for rows without an answer."""
        return is_success(self.rewards_PG, self.success_threshold)

    @cached_property
    def attempts_P(self) -> IntArray:
        """Number of rows with a reward, ``[P]``."""
        return self._sum_P(self.answered_PG)

    @cached_property
    def successes_P(self) -> IntArray:
        """Number of successful rows, ``[P]``."""
        return self._sum_P(self.success_PG)

    @cached_property
    def pass_rates_P(self) -> FloatArray:
        """Observed success rates, ``[P]``; NaN where there is no answer."""
        empty = self.attempts_P == 0
        return np.where(empty, np.nan, self.successes_P / np.maximum(self.attempts_P, 1))

    @cached_property
    def mixed_P(self) -> BoolArray:
        """Whether the rewards of each group differ, so that it has a nonzero gradient, ``[P]``."""
        lowest = np.full(len(self.prompt_ids), np.inf)
        highest = np.full(len(self.prompt_ids), -np.inf)
        np.minimum.at(lowest, self.group_PG[self.answered_PG], self.rewards_PG[self.answered_PG])
        np.maximum.at(highest, self.group_PG[self.answered_PG], self.rewards_PG[self.answered_PG])
        return highest > lowest

    @cached_property
    def mean_tokens_P(self) -> FloatArray:
        """Mean completion lengths in tokens, ``[P]``; NaN where unknown."""
        if self.tokens_PG is None:
            return np.full(len(self.prompt_ids), np.nan)
        totals = np.bincount(self.group_PG, weights=self.tokens_PG, minlength=len(self.prompt_ids))
        return np.where(self.counts_P > 0, totals / np.maximum(self.counts_P, 1), np.nan)

    def _sum_P(self, rows_PG: BoolArray) -> IntArray:
        return np.bincount(self.group_PG[rows_PG], minlength=len(self.prompt_ids)).astype(np.int64)

"""The decision: how many rollouts each prompt of a step gets. Frozen, and checked when built."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from knapsack_rl.notation import BoolArray, FloatArray, IntArray


@dataclass(frozen=True, eq=False)
class Plan:
    """How a step's budget is spent, and the belief it was decided on.

    A group of one rollout has no baseline and so no gradient: a count of 1 is refused. Because the counts sum to the
    budget exactly, a trainer that generates ``budget`` rows never notices that its groups differ in size.

    Attributes:
        step: generation step the plan is for, from 0.
        prompt_ids: stable ids, ``[P]``; an id may occur twice (two groups that share one belief).
        counts_P: rollouts per prompt, ``[P]``; 0 leaves the prompt out.
        budget: rollouts of the step; equals ``counts_P.sum()``.
        low_P, high_P: the limits the plan was made under, ``[P]``.
        success_rates_P: expected success rate of each prompt before the step, ``[P]``, in [0, 1].
        strength_P: weight of evidence behind that rate, in rollouts (a + b of a Beta belief), ``[P]``.
        seen_P: whether the prompt has been observed before, ``[P]``.
        price: value of the last rollout bought (the paper's lambda); 0.0 where nothing was for sale.

    Raises:
        ValueError: arrays of different lengths, a count of 1, a count outside its limits, or a sum that is not the
            budget. The message names the first offending prompt.
    """

    step: int
    prompt_ids: tuple[str, ...]
    counts_P: IntArray
    budget: int
    low_P: IntArray
    high_P: IntArray
    success_rates_P: FloatArray
    strength_P: FloatArray
    seen_P: BoolArray
    price: float = 0.0

    def __post_init__(self) -> None:
        arrays = (self.counts_P, self.low_P, self.high_P, self.success_rates_P, self.strength_P, self.seen_P)
        for array in arrays:
            if array.shape != (len(self.prompt_ids),):
                raise ValueError(f"a plan for {len(self.prompt_ids)} prompts was given an array of shape {array.shape}")
            array.flags.writeable = False
        if int(self.counts_P.sum()) != self.budget:
            raise ValueError(f"the counts sum to {int(self.counts_P.sum())}, not to the budget of {self.budget}")
        self._refuse(self.counts_P == 1, "a group of one has no gradient: plan 0, or at least 2")
        outside = (self.counts_P < self.low_P) | (self.counts_P > self.high_P)
        self._refuse(outside, "the count lies outside the prompt's limits")

    def _refuse(self, wrong_P: BoolArray, reason: str) -> None:
        if wrong_P.any():
            i = int(np.argmax(wrong_P))
            limits = f"{self.low_P[i]}..{self.high_P[i]}"
            raise ValueError(
                f"prompt {self.prompt_ids[i]!r} was planned {self.counts_P[i]} rollouts (limits {limits}): {reason}"
            )

"""A reward for the length of answers with a budget that shrinks over a run.

Source: Train Long, Think Short (arXiv 2508.08940). The budget at step t is B(t) = max(1, start * decay^floor(t /
every)) tokens, the prompt names it, and the reward of an answer of l tokens is triangular: l / B up to B, then falling
to 0 at 2 B.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from knapsack_rl.notation import FloatArray, IntArray


class LengthBudget:
    """A reward function for TRL: how near answers come to the token budget of the step.

    Use it beside the verifier, with a weight below the verifier's: a sum of rewards then reaches the verifier's weight
    if and only if the answer is right, so that ``success_threshold`` = the verifier's weight keeps beliefs about right
    answers alone.

        KnapsackGRPOTrainer(reward_funcs=[verify, LengthBudget(256, 0.7, 150)],
                            args=KnapsackGRPOConfig(reward_weights=[1.0, 0.2], success_threshold=1.0))
    """

    def __init__(self, start: int, decay: float = 1.0, every: int = 1) -> None:
        """A schedule of budgets.

        Args:
            start: tokens of an answer at the first step.
            decay: factor of the budget, in (0, 1].
            every: optimizer steps after which it is applied again.

        Raises:
            ValueError: a value out of range.
        """
        if start < 1 or not 0 < decay <= 1 or every < 1:
            raise ValueError(
                f"start={start}, decay={decay}, every={every}: a budget starts at 1 token or more, is multiplied by a"
                " factor above 0 and at most 1, every 1 or more steps"
            )
        self.start, self.decay, self.every = start, decay, every
        self.__name__ = "length_budget"  # the name that TRL logs

    def tokens(self, step: int) -> int:
        """The budget of a step, in tokens."""
        return max(1, int(self.start * self.decay ** (step // self.every) + 1e-9))

    def instruction(self, step: int) -> str:
        """The sentence that names the budget, to append to a prompt."""
        return f"Think for exactly {self.tokens(step)} tokens."

    def rewards(self, lengths_PG: Sequence[int] | IntArray, step: int) -> FloatArray:
        """Triangular rewards of answers of these lengths, in [0, 1], ``[PG]``."""
        ratio_PG = np.asarray(lengths_PG, dtype=np.float64) / self.tokens(step)
        found: FloatArray = np.clip(np.minimum(ratio_PG, 2 - ratio_PG), 0, 1)
        return found

    def __call__(self, completion_ids: Sequence[Sequence[int]], trainer_state: Any, **_: Any) -> list[float]:
        """TRL's call: rewards of the completions at the trainer's step."""
        return [float(r) for r in self.rewards([len(ids) for ids in completion_ids], trainer_state.global_step)]

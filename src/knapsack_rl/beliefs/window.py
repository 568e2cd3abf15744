"""The estimator of the paper's authors: the mean over the latest rewards of each prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from knapsack_rl.beliefs.forecast import Forecast
from knapsack_rl.beliefs.prompt_store import PromptTable, TableBeliefs
from knapsack_rl.notation import BoolArray, IntArray, PromptFeatures
from knapsack_rl.outcomes import Outcomes


class WindowBeliefs(TableBeliefs):
    """The estimator of the paper's authors (``rl_dataset.py`` in their code; docs/beliefs.md lists the repairs).

    The success rate is the mean of the latest group if that has at least ``window`` rollouts, otherwise the mean of the
    last ``window`` rewards over all groups. A prompt with fewer than ``min_rewards`` rewards counts as unseen, with a
    rate of 0.5. The pseudo-count is the number of rewards so far. There is no decay and no prior.

    The last rewards are stored as bits, in the order in which outcomes arrive.
    """

    COLUMNS = {  # noqa: RUF012  a constant
        "rate": np.float32,
        "tokens": np.float32,
        "window": np.uint64,
        "rewards": np.int32,
        "step": np.int32,
    }

    def __init__(self, window: int = 16, min_rewards: int = 8) -> None:
        """Start without observations.

        Args:
            window: rewards to average over, 1 to 64 (the authors' ``reward_buffer_length``).
            min_rewards: rewards below which a prompt counts as unseen (the authors' ``min_buffer_length``).

        Raises:
            ValueError: a window outside 1..64.
        """
        if not 1 <= window <= 64:
            raise ValueError(f"window is {window}: it must be from 1 to 64 rewards")
        self.window, self.min_rewards = window, min_rewards
        self.table = PromptTable(self.COLUMNS)

    def forecast(self, prompt_ids: Sequence[str], step: int, features: PromptFeatures | None = None) -> Forecast:
        """Return the latest estimate of each prompt, independent of its age; features are ignored. Changes nothing."""
        with self.table.lock:
            return self._latest(prompt_ids, step)

    def _latest(self, prompt_ids: Sequence[str], step: int) -> Forecast:
        rows = self.table.rows(prompt_ids)
        rewards, rates = np.zeros(rows.size), np.full(rows.size, 0.5)
        known = rows >= 0
        rewards[known] = self.table["rewards"][rows[known]]
        seen = rewards >= max(self.min_rewards, 1)
        rates[seen] = self.table["rate"][rows[seen]]
        waited_P = self.table.steps_since_observed(rows, step)
        return Forecast(rates, rewards, seen, self.table.mean_tokens(rows), waited_P)

    def observe(self, outcomes: Outcomes) -> None:
        """Shift each group's rewards into the window of its prompt, and recompute the estimates."""
        with self.table.lock:
            self._shift_in(outcomes)

    def _shift_in(self, outcomes: Outcomes) -> None:
        answered = np.flatnonzero(outcomes.attempts_P)
        if not answered.size:
            return
        table = self.table
        rows, groups = np.unique(table.add([outcomes.prompt_ids[i] for i in answered]), return_inverse=True)
        to_group = np.full(len(outcomes.prompt_ids), -1)
        to_group[answered] = groups
        group_G = to_group[outcomes.group_PG[outcomes.answered_PG]]
        success_G = outcomes.success_PG[outcomes.answered_PG]
        got = np.bincount(group_G, minlength=rows.size)
        table["window"][rows] = self._shifted(table["window"][rows], group_G, success_G, got)
        table["rewards"][rows] = np.minimum(table["rewards"][rows].astype(np.int64) + got, np.iinfo(np.int32).max)
        kept = np.minimum(table["rewards"][rows], self.window)
        of_window = np.bitwise_count(table["window"][rows]) / kept
        of_visit = np.bincount(group_G, weights=success_G, minlength=rows.size) / got
        table["rate"][rows] = np.where(got >= self.window, of_visit, of_window)
        table["step"][rows] = np.maximum(table["step"][rows], outcomes.step)
        table.observe_tokens(rows, groups, outcomes.mean_tokens_P[answered])

    @property
    def header(self) -> Mapping[str, object]:
        """The kind of these beliefs, and the window, whose size saved state must have."""
        return {"kind": "window", "window": self.window}

    def _shifted(self, window: np.ndarray, group_G: IntArray, success_G: BoolArray, got: IntArray) -> np.ndarray:
        """The windows after each group's rewards are shifted in, the newest reward in bit 0."""
        order = np.argsort(group_G, kind="stable")
        position = np.empty_like(group_G)
        position[order] = np.repeat(np.cumsum(got), got) - 1 - np.arange(group_G.size)  # 0 for a group's last reward
        fits = (position < self.window) & success_G
        new = np.zeros_like(window)
        np.bitwise_or.at(new, group_G[fits], np.uint64(1) << position[fits].astype(np.uint64))
        kept = got < self.window  # a shift by 64 bits is undefined
        shift = np.where(kept, got, 0).astype(np.uint64)
        mask = np.uint64(2**self.window - 1)
        shifted: np.ndarray = (np.where(kept, window << shift, 0).astype(np.uint64) | new) & mask
        return shifted

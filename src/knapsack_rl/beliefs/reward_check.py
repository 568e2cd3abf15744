"""What counts as a success, where no threshold is set, and one warning where rewards teach nothing.

The threshold is a function of the rewards of completed plans, in the order in which they were completed, and part of a
session's state. Only the process that observes has one; the others plan with what that process decided.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from knapsack_rl.files import State, saved_array
from knapsack_rl.notation import FloatArray
from knapsack_rl.outcomes import TOLERANCE, Outcomes, is_success

logger = logging.getLogger(__name__)

# What a reward is compared with until the rewards say more: the full mark of most reward functions.
DEFAULT_THRESHOLD = 1.0
# Rewards to see, and plans to complete, before anything is concluded from them.
FEWEST_REWARDS, FEWEST_PLANS = 64, 3
# Different rewards above which they are a scale, and no marks.
MOST_MARKS = 16


def obvious_threshold(marks_M: FloatArray) -> float | None:
    """The least reward that counts as a success, where the rewards themselves say it.

    The highest mark stands apart if it is further above the second highest than that is above the lowest; of two marks
    it always does. Then it is the threshold, or 1 where that divides the marks in the same way: {0, 1}, {-1, 1} and
    {0, .1, 1} give 1; {-1, 0} gives 0, {0, .5} gives .5 and {0, 1, 10} gives 10.

    Args:
        marks_M: the different rewards, ascending, ``[M]``.

    Returns:
        The threshold; None for one mark, and where the highest does not stand apart.
    """
    if marks_M.size < 2 or not marks_M[-1] - marks_M[-2] > marks_M[-2] - marks_M[0]:
        return None
    return DEFAULT_THRESHOLD if marks_M[-2] < DEFAULT_THRESHOLD - TOLERANCE <= marks_M[-1] else float(marks_M[-1])


class SuccessThreshold:
    """The threshold of a run: the one that was set, or 1 until another one is found.

    It is looked for at every completed plan, from `FEWEST_REWARDS` rewards on, until it divides the rewards into
    successes and failures; then it stays. One below 1 is looked for again when a higher reward appears: the full mark
    may be rare. More than `MOST_MARKS` different rewards end the search.

    Attributes:
        value: the threshold now.
        marks_M: the different rewards so far, ascending, ``[M]``; of a search that has ended, those when it did.
    """

    def __init__(self, configured: float | None) -> None:
        """The threshold that was set; None to find it."""
        self.value = DEFAULT_THRESHOLD if configured is None else float(configured)
        self.marks_M: FloatArray = np.zeros(0)
        self._configured = configured
        self._searching = configured is None
        self._rewards = 0

    def look(self, rewards_R: FloatArray) -> None:
        """Look for the threshold after these further rewards, ``[R]``; NaN counts as none."""
        known_R = rewards_R[~np.isnan(rewards_R)]
        if not self._searching or not known_R.size:
            return
        higher = known_R.max() > self.marks_M.max(initial=-np.inf)
        # Rewards are often sums in float32: what differs by rounding alone is one mark.
        marks_M = np.unique(np.concatenate([self.marks_M, known_R]))
        self.marks_M = marks_M[np.diff(marks_M, prepend=-np.inf) > TOLERANCE]
        self._rewards += known_R.size
        if self.marks_M.size > MOST_MARKS:
            self._searching = False
        elif self._rewards >= FEWEST_REWARDS:
            found = obvious_threshold(self.marks_M) if higher or not self._divides() else None
            if found is not None and found != self.value:
                self.value = found
                self._say()
            self._searching = self.value < DEFAULT_THRESHOLD or not self._divides()

    @property
    def assumed(self) -> bool:
        """Whether 1 stands for want of a better one: it was not set, and divides a scale that goes beyond it."""
        marks_M = self.marks_M
        if self._configured is not None or marks_M.size <= 2 or marks_M[-1] <= DEFAULT_THRESHOLD + TOLERANCE:
            return False
        steps = np.diff(marks_M)
        own = int(np.searchsorted(marks_M, DEFAULT_THRESHOLD - TOLERANCE)) - 1  # the step that holds the threshold
        clear = own >= 0 and (np.delete(steps, own) < steps[own] - TOLERANCE).all()
        return self.value == DEFAULT_THRESHOLD and not clear

    def counts_otherwise(self, before: float, rewards_R: FloatArray) -> bool:
        """Whether any of these rewards counted otherwise under the threshold ``before``."""
        return bool(np.any(is_success(rewards_R, before) != is_success(rewards_R, self.value)))

    def state_dict(self) -> State:
        """The threshold, and how far the search has come."""
        return {
            "value": self.value,
            "searching": self._searching,
            "rewards": self._rewards,
            "marks": self.marks_M.copy(),
        }

    def restored(self, state: Mapping[str, Any] | None) -> SuccessThreshold:
        """The threshold that this one is after a resume; a threshold that was set stays as it was set.

        Args:
            state: what `state_dict` returned; None in a state of a version that knew no other threshold than 1, which
                then stays.

        Raises:
            KeyError, TypeError, ValueError: damaged state.
        """
        again = SuccessThreshold(self._configured)
        if self._configured is None:
            again._searching = False
            if state is not None:
                again.value, again._rewards = float(state["value"]), int(state["rewards"])
                again._searching = bool(state["searching"])
                again.marks_M = saved_array(state, "marks", np.float64, (None,))
                if not np.isfinite(again.value):
                    raise ValueError(f"the success threshold is {again.value}")
        return again

    def _divides(self) -> bool:
        return bool(np.unique(is_success(self.marks_M, self.value)).size == 2)

    def _say(self) -> None:
        marks = ", ".join(f"{mark:g}" for mark in self.marks_M)
        logger.warning(
            "rewards so far are %s, so %g and more counts as a success from now on: set success_threshold to the least "
            "reward that means success (%g, if that is right)",
            marks,
            self.value,
            self.value,
        )


class RewardCheck:
    """Warn once if rewards teach nothing, and once if a whole plan has none.

    A plan with successes and failures shows that the rewards are in order. After `FEWEST_PLANS` plans and
    `FEWEST_REWARDS` rewards which together have only one of both, the warning names what was seen and what to set.
    """

    def __init__(self) -> None:
        """Start without rewards."""
        self._warned = self._silent = False
        self._plans = self._rewards = self._successes = 0
        self._lowest, self._highest = float("inf"), float("-inf")

    def check(self, outcomes: Outcomes, assumed: bool = False) -> None:
        """Add the rewards of a complete plan, and log a warning if one is due.

        Args:
            outcomes: of the plan.
            assumed: whether its threshold was neither set nor found (`SuccessThreshold.assumed`).
        """
        rewards_R = outcomes.rewards_PG[outcomes.answered_PG]
        if outcomes.rewards_PG.size and not rewards_R.size and not self._silent:
            self._silent = True
            logger.warning(
                "none of the %d rollouts of step %d has a reward (all are NaN or None), so nothing can be learned from "
                "them: let a reward function return a number for each rollout",
                outcomes.rewards_PG.size,
                outcomes.step,
            )
        if self._warned or not rewards_R.size:
            return
        self._plans += 1
        self._rewards += rewards_R.size
        self._successes += int(outcomes.success_PG.sum())
        self._lowest = min(self._lowest, float(rewards_R.min()))
        self._highest = max(self._highest, float(rewards_R.max()))
        if self._plans < FEWEST_PLANS or self._rewards < FEWEST_REWARDS:
            return
        told = self._what_is_wrong(outcomes, rewards_R, assumed)
        if told is not None:
            self._warned = True
            logger.warning("%s", told)
        self._forget()

    def _what_is_wrong(self, outcomes: Outcomes, rewards_R: FloatArray, assumed: bool) -> str | None:
        threshold, seen = outcomes.success_threshold, f"{self._lowest:g} to {self._highest:g}"
        setting = "set success_threshold to the least reward that means success"
        half = f"{setting} (half of the latest rewards reach {np.quantile(rewards_R, 0.5, method='higher'):g})"
        if self._highest - self._lowest <= TOLERANCE:
            return (
                f"all {self._rewards} rewards of the last {self._plans} steps are {self._highest:g}, so no group has a "
                "gradient and nothing can be learned: check the reward function on one right and one wrong answer; if "
                f"it tells them apart, use {'easier' if self._successes == 0 else 'harder'} prompts"
            )
        if self._successes == 0:
            return (
                f"no reward of {self._rewards} rollouts has reached success_threshold={threshold:g} (they are {seen}), "
                f"so every prompt is estimated as unsolved: {half}"
            )
        if self._successes == self._rewards:
            return (
                f"all rewards of {self._rewards} rollouts reach success_threshold={threshold:g} though they differ "
                f"({seen}), so every prompt is estimated as solved: {half}"
            )
        if assumed:
            return (
                f"rewards are a scale ({seen}) on which none stands apart as the full mark, so {threshold:g} and more "
                f"counts as a success, as {self._successes} of {self._rewards} are: {half}"
            )
        return None

    def _forget(self) -> None:
        self._plans = self._rewards = self._successes = 0
        self._lowest, self._highest = float("inf"), float("-inf")

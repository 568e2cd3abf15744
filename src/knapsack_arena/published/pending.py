"""Groups that were begun in one round and wait, with the rollouts they have, for the rest of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from knapsack_arena.strategies import RolloutRequest
from knapsack_arena.strategies.groups import join, no_groups, pick
from knapsack_rl.files import BeliefFileError, State, saved_array
from knapsack_rl.notation import IntArray
from knapsack_rl.outcomes import Outcomes


class PendingGroups:
    """A queue of begun groups, oldest first, one per prompt.

    Attributes:
        groups: the rollouts they have.
        begun_P: the step in which each was begun.
    """

    def __init__(self, groups: Outcomes | None = None, begun_P: IntArray | None = None) -> None:
        """A queue, by default empty.

        Raises:
            ValueError: another number of steps than of groups.
        """
        self.groups = no_groups(0) if groups is None else groups
        self.begun_P = np.zeros(0, dtype=np.int64) if begun_P is None else begun_P
        if self.begun_P.shape != self.groups.counts_P.shape:
            raise ValueError(f"begun_P has {self.begun_P.size} steps for {self.groups.counts_P.size} groups")

    def __len__(self) -> int:
        return self.begun_P.size

    def add(self, groups: Outcomes) -> None:
        """Append groups of prompts that are not in the queue."""
        self.groups = join(groups.step, [self.groups, groups])
        self.begun_P = np.concatenate([self.begun_P, np.full(len(groups.prompt_ids), groups.step)])

    def remove(self, places: IntArray) -> None:
        """Remove the groups at these places."""
        staying = np.setdiff1d(np.arange(len(self)), places)
        self.groups, self.begun_P = pick(self.groups, staying), self.begun_P[staying]

    def request(self, places: IntArray, more: int, new: tuple[str, ...], first: int) -> RolloutRequest:
        """One request for ``more`` rollouts of the groups at these places, then ``first`` of each new prompt."""
        begun = tuple([self.groups.prompt_ids[i] for i in places.tolist()])
        counts_P = np.repeat(np.array([more, first], dtype=np.int64), [len(begun), len(new)])
        return RolloutRequest(begun + new, counts_P)

    def settle(self, places: IntArray, outcomes: Outcomes) -> tuple[Outcomes, Outcomes]:
        """Divide the outcomes of such a request; the groups at these places leave the queue.

        Returns:
            The groups that were pending, with all their rollouts, and the groups of the new prompts.
        """
        positions = np.arange(len(outcomes.prompt_ids))
        begun = pick(self.groups, places)
        complete = join(outcomes.step, [begun, pick(outcomes, positions[: places.size])])
        self.remove(places)
        return complete, pick(outcomes, positions[places.size :])

    def state_dict(self) -> State:
        """The queue as arrays and plain values."""
        groups = self.groups
        return {
            "ids": list(groups.prompt_ids),
            "counts": groups.counts_P.copy(),
            "answered": groups.answered_PG.copy(),
            "rewards": np.where(groups.answered_PG, groups.rewards_PG, 0.0),
            "tokens": None if groups.tokens_PG is None else groups.tokens_PG.astype(np.int64),
            "threshold": np.array(groups.success_threshold, dtype=np.float64),
            "begun": self.begun_P.copy(),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> PendingGroups:
        """The queue that `state_dict` described.

        Raises:
            BeliefFileError: fields that are missing, or that do not fit one another.
        """
        ids = state.get("ids")
        if not isinstance(ids, list) or not all(isinstance(each, str) for each in ids):
            raise BeliefFileError("the saved prompt ids of pending groups are missing or no text: restore the file")
        answered = saved_array(state, "answered", np.bool_, (None,))
        rewards = saved_array(state, "rewards", np.float64, answered.shape)
        tokens = state.get("tokens")
        try:
            groups = Outcomes(
                step=0,
                prompt_ids=tuple(ids),
                counts_P=saved_array(state, "counts", np.int64, (len(ids),)),
                rewards_PG=np.where(answered, rewards, np.nan),
                tokens_PG=None if tokens is None else saved_array(state, "tokens", np.int64, answered.shape),
                success_threshold=float(saved_array(state, "threshold", np.float64, ())),
            )
        except BeliefFileError:
            raise
        except ValueError as error:
            raise BeliefFileError(f"the saved pending groups do not fit ({error}): restore the file") from error
        return cls(groups, saved_array(state, "begun", np.int64, (len(ids),)))

"""Groups that were begun in one round and wait, with the rollouts they have, for the rest of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from knapsack_rl.groups import join, no_groups, pick
from knapsack_rl.notation import IntArray
from knapsack_rl.outcomes import Outcomes


class Waiting:
    """A queue of begun groups, oldest first, one per prompt.

    Attributes:
        groups: the rollouts they have.
        born_P: the step in which each was begun.
    """

    def __init__(self, groups: Outcomes | None = None, born_P: IntArray | None = None) -> None:
        self.groups = no_groups(0) if groups is None else groups
        self.born_P = np.zeros(0, dtype=np.int64) if born_P is None else born_P
        if self.born_P.shape != self.groups.counts_P.shape:
            raise ValueError(f"birthdays: {self.born_P.size} for {self.groups.counts_P.size} groups")

    def __len__(self) -> int:
        return self.born_P.size

    def add(self, groups: Outcomes) -> None:
        """Queue these groups, of prompts that do not wait yet."""
        self.groups = join(groups.step, [self.groups, groups])
        self.born_P = np.concatenate([self.born_P, np.full(len(groups.prompt_ids), groups.step)])

    def remove(self, places: IntArray) -> None:
        """Let the groups at these places go."""
        staying = np.setdiff1d(np.arange(len(self)), places)
        self.groups, self.born_P = pick(self.groups, staying), self.born_P[staying]

    def fields(self) -> dict[str, object]:
        """Everything, in plain JSON types."""
        groups = self.groups
        return {
            "ids": list(groups.prompt_ids),
            "counts": groups.counts_P.tolist(),
            "rewards": [None if np.isnan(reward) else reward for reward in groups.rewards_PG.tolist()],
            "tokens": None if groups.tokens_PG is None else groups.tokens_PG.tolist(),
            "threshold": groups.success_threshold,
            "born": self.born_P.tolist(),
        }

    @classmethod
    def of_fields(cls, fields: Mapping[str, Any]) -> Waiting:
        """The queue that `fields` described.

        Raises:
            KeyError, TypeError, ValueError: fields that are missing, or that do not fit together.
        """
        tokens = fields["tokens"]
        groups = Outcomes(
            step=0,
            prompt_ids=tuple(fields["ids"]),
            counts_P=np.array(fields["counts"], dtype=np.int64),
            rewards_PG=np.array(fields["rewards"], dtype=np.float64),  # numpy reads None as NaN
            tokens_PG=None if tokens is None else np.array(tokens, dtype=np.int64),
            success_threshold=float(fields["threshold"]),
        )
        return cls(groups, np.array(fields["born"], dtype=np.int64))

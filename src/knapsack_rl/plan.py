"""The number of rollouts of each prompt of a step: immutable, and checked when built."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from knapsack_rl.files import State, as_array
from knapsack_rl.notation import BoolArray, FloatArray, IntArray, PromptFeatures, checked_step


def jobs(counts_P: IntArray) -> IntArray:
    """Expand counts into the prompt index of every rollout, group after group, ``[counts_P.sum()]``."""
    return np.repeat(np.arange(counts_P.size), counts_P)


@dataclass(frozen=True, eq=False)
class Plan:
    """The rollouts of each prompt of a step, and the forecast that they were planned with.

    A group of one rollout has no baseline and so no gradient: a count of 1 is refused. The counts sum to the budget
    exactly, so that the number of rows that a trainer generates does not depend on the plan.

    Iteration yields ``(prompt_id, count)`` without the prompts that were left out. Arrays are read-only copies.

    Attributes:
        step: generation step of the plan, from 0.
        prompt_ids: stable ids, ``[P]``; an id may occur twice (two groups that share one belief).
        counts_P: rollouts per prompt, ``[P]``; 0 leaves the prompt out.
        budget: rollouts of the step; equals ``counts_P.sum()``.
        low_P, high_P: limits of the counts, ``[P]``.
        success_rates_P: expected success rate of each prompt before the step, ``[P]``, in [0, 1].
        pseudo_count_P: evidence behind that rate, in rollouts (a + b of a Beta belief), ``[P]``.
        seen_P: whether the prompt has been observed before, ``[P]``.
        price: value of the last rollout selected (the paper's lambda); 0.0 if the limits left no choice.
        features: features of the prompts that the plan was made with; None if there were none.

    Raises:
        ValueError: a step out of range, arrays of different lengths, a count of 1, a count outside its limits, or a sum
            that is not the budget. The message names the first offending prompt.
    """

    step: int
    prompt_ids: tuple[str, ...]
    counts_P: IntArray
    budget: int
    low_P: IntArray
    high_P: IntArray
    success_rates_P: FloatArray
    pseudo_count_P: FloatArray
    seen_P: BoolArray
    price: float = 0.0
    features: PromptFeatures | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "step", checked_step(self.step))
        for field in fields(self):
            array = getattr(self, field.name)
            if isinstance(array, np.ndarray):
                if array.shape != (len(self.prompt_ids),):
                    raise ValueError(
                        f"a plan for {len(self.prompt_ids)} prompts was given {field.name} of shape {array.shape}"
                    )
                array = array.copy()  # the caller's own array stays writeable
                array.flags.writeable = False
                object.__setattr__(self, field.name, array)
        if int(self.counts_P.sum()) != self.budget:
            raise ValueError(f"the counts sum to {int(self.counts_P.sum())}, not to the budget of {self.budget}")
        self._refuse(self.counts_P == 1, "a group of one has no gradient: plan 0, or at least 2")
        outside = (self.counts_P < self.low_P) | (self.counts_P > self.high_P)
        self._refuse(outside, "the count lies outside the prompt's limits")

    def __iter__(self) -> Iterator[tuple[str, int]]:
        """Yield prompt id and count of every group with rollouts."""
        for prompt_id, count in zip(self.prompt_ids, self.counts_P.tolist(), strict=True):
            if count:
                yield prompt_id, count

    @property
    def group_PG(self) -> IntArray:
        """Index into ``prompt_ids`` of every planned rollout, group after group, ``[budget]``."""
        return jobs(self.counts_P)

    def state_dict(self) -> State:
        """Return the plan as arrays and plain values."""
        state = {field.name: getattr(self, field.name) for field in fields(self)}
        state = {name: value.copy() if isinstance(value, np.ndarray) else value for name, value in state.items()}
        features = None if self.features is None else self.features._asdict()
        return {**state, "prompt_ids": list(self.prompt_ids), "features": features}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Plan:
        """Rebuild a plan from what `state_dict` returned.

        Raises:
            ValueError: arrays of another type, or what no plan can be.
            KeyError, TypeError: values that are missing or of another type.
        """
        arrays = {name: as_array(value) for name, value in state.items()}
        for name, kind in {"counts_P": "i", "low_P": "i", "high_P": "i", "success_rates_P": "f", "seen_P": "b"}.items():
            if not isinstance(arrays[name], np.ndarray) or arrays[name].dtype.kind != kind:
                raise ValueError(f"the saved plan has no array {name} of the right type")
        given = state["features"]
        features = None if given is None else PromptFeatures(**{name: as_array(value) for name, value in given.items()})
        return cls(**{**arrays, "prompt_ids": tuple(state["prompt_ids"]), "features": features})

    def _refuse(self, wrong_P: BoolArray, reason: str) -> None:
        if wrong_P.any():
            i = int(np.argmax(wrong_P))
            limits = f"{self.low_P[i]}..{self.high_P[i]}"
            raise ValueError(
                f"prompt {self.prompt_ids[i]!r} was planned {self.counts_P[i]} rollouts (limits {limits}): {reason}"
            )

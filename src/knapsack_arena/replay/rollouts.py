"""Recorded rollouts, sampled without replacement in a seeded order shared by all rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from knapsack_rl.notation import FloatArray, IntArray, PromptFeatures
from knapsack_rl.outcomes import Outcomes


class RecordExhaustedError(ValueError):
    """The record cannot supply what a rule requests; the message says what."""


@dataclass(frozen=True, eq=False)
class RecordedStep:
    """One step of a record: its prompts, its plan and its rollouts.

    Attributes:
        outcomes: the recorded rollouts, ``[P]`` groups; a prompt may be listed twice.
        budget: rollouts of the step.
        planned_P: rollouts planned at the time of recording, ``[P]``.
        success_rates_P, pseudo_count_P: the forecast of that plan, ``[P]``; NaN where it is not known.
        features: what that plan was made with; None without features, or where they were not recorded.
    """

    outcomes: Outcomes
    budget: int
    planned_P: IntArray
    success_rates_P: FloatArray
    pseudo_count_P: FloatArray
    features: PromptFeatures | None = None


@dataclass(frozen=True, eq=False)
class RecordedRollouts:
    """The recorded rollouts of some prompts, prompt after prompt, in the order in which they are drawn.

    Attributes:
        prompt_ids: all different, ``[P]``.
        sizes_P: rollouts of each, ``[P]``.
        rewards_PG: rewards, ``[sizes_P.sum()]``; NaN is a rollout without an answer, and is drawn like any other.
        tokens_PG: completion lengths in tokens, ``[sizes_P.sum()]``, where known.
        place_PG: position of each rollout in the record. The rollouts of one draw are put back into that order, because
            some beliefs depend on it: a whole group is returned as it was recorded. None: keep the order of drawing.
        success_threshold: the least reward that counts as a success.
    """

    prompt_ids: Sequence[str]
    sizes_P: IntArray
    rewards_PG: NDArray[np.floating]
    tokens_PG: NDArray[np.integer] | None
    place_PG: IntArray | None
    success_threshold: float

    @cached_property
    def starts_P(self) -> IntArray:
        """Row of each prompt's first rollout."""
        return np.cumsum(self.sizes_P) - self.sizes_P

    @cached_property
    def _index(self) -> dict[str, int]:
        return {prompt_id: row for row, prompt_id in enumerate(self.prompt_ids)}

    def rows(self, prompt_ids: Sequence[str]) -> IntArray:
        """Position of each prompt, -1 where it has no recorded rollouts."""
        index = self._index
        return np.fromiter((index.get(prompt_id, -1) for prompt_id in prompt_ids), np.int64, len(prompt_ids))

    def outcomes(self, step: int, prompts: IntArray, first_P: IntArray, counts_P: IntArray) -> Outcomes:
        """Rollouts ``first_P`` to ``first_P + counts_P - 1`` of the prompts at these positions."""
        within = np.arange(int(counts_P.sum())) - np.repeat(np.cumsum(counts_P) - counts_P, counts_P)
        rows = np.repeat(self.starts_P[prompts] + first_P, counts_P) + within
        if self.place_PG is not None:
            rows = rows[np.lexsort((self.place_PG[rows], np.repeat(np.arange(prompts.size), counts_P)))]
        return Outcomes(
            step=step,
            prompt_ids=tuple(self.prompt_ids[i] for i in prompts.tolist()),
            counts_P=counts_P,
            rewards_PG=self.rewards_PG[rows].astype(np.float64),
            tokens_PG=None if self.tokens_PG is None else self.tokens_PG[rows].astype(np.int64),
            success_threshold=self.success_threshold,
        )


def shuffled_rollouts(outcomes: Outcomes, seed: int) -> RecordedRollouts:
    """Shuffle the rollouts of a recorded step within each prompt: a pure function of the record and the seed.

    A prompt that the step lists twice becomes one, with the rollouts of both groups.
    """
    ids = tuple(dict.fromkeys(outcomes.prompt_ids))
    if len(ids) == len(outcomes.prompt_ids):
        prompt_PG, sizes_P = outcomes.group_PG, outcomes.counts_P
    else:
        position = {prompt_id: i for i, prompt_id in enumerate(ids)}
        prompt_PG = np.array([position[prompt_id] for prompt_id in outcomes.prompt_ids])[outcomes.group_PG]
        sizes_P = np.bincount(prompt_PG, minlength=len(ids)).astype(np.int64)
    order = shuffle_within(prompt_PG, seed, outcomes.step)
    tokens = None if outcomes.tokens_PG is None else outcomes.tokens_PG[order]
    return RecordedRollouts(ids, sizes_P, outcomes.rewards_PG[order], tokens, order, outcomes.success_threshold)


def shuffle_within(prompt_PG: NDArray[np.integer], *seed: int) -> IntArray:
    """Row order that sorts by prompt and is uniformly random within each prompt."""
    keys: FloatArray = np.random.default_rng(seed).random(prompt_PG.size)
    return np.lexsort((keys, prompt_PG))


class WithoutReplacementSampler:
    """Draws recorded rollouts for one rule, each at most once.

    Attributes:
        rollouts: the record, shared by all rules.
        drawn_P: rollouts of each prompt drawn so far, ``[P]``.
    """

    def __init__(self, rollouts: RecordedRollouts) -> None:
        """A sampler that has drawn nothing yet."""
        self.rollouts = rollouts
        self.drawn_P = np.zeros(rollouts.sizes_P.size, dtype=np.int64)

    @property
    def left_P(self) -> IntArray:
        """Rollouts of each prompt that were not drawn yet."""
        return self.rollouts.sizes_P - self.drawn_P

    def remaining(self, step: int, prompts: IntArray) -> Outcomes:
        """Return all rollouts of these prompts that were not drawn yet, without drawing them."""
        return self.rollouts.outcomes(step, prompts, self.drawn_P[prompts], self.left_P[prompts])

    def draw(self, step: int, prompts: IntArray, counts_P: IntArray) -> Outcomes:
        """Draw the next ``counts_P`` rollouts of these prompts, all different; fewer where fewer are left."""
        got_P = np.minimum(counts_P, self.left_P[prompts])
        outcomes = self.rollouts.outcomes(step, prompts, self.drawn_P[prompts], got_P)
        self.drawn_P[prompts] += got_P
        return outcomes


class RecordedPrompts:
    """Prompt sampler of a recorded step: its prompts, in their order, and no others."""

    def __init__(self, prompt_ids: Sequence[str]) -> None:
        self.prompt_ids, self._taken = tuple(prompt_ids), 0

    def take(self, k: int) -> tuple[str, ...]:
        """Return the next ``k`` prompts of the step.

        Raises:
            RecordExhaustedError: fewer are left.
        """
        taken = self.prompt_ids[self._taken : self._taken + k]
        if len(taken) < k:
            raise RecordExhaustedError(
                f"it takes more prompts than the {len(self.prompt_ids)} that the step recorded; rollouts of other"
                " prompts at that step are unknown: use a table without steps, or the simulator"
            )
        self._taken += k
        return taken


class PassSampler:
    """Prompt sampler of a table: seeded passes over its prompts that skip those without rollouts left."""

    def __init__(self, rollouts: WithoutReplacementSampler, seed: int) -> None:
        self.rollouts, self.seed = rollouts, seed
        self._pass = self._at = 0
        self._order = self._shuffled()
        self._taken: set[int] = set()

    def begin_step(self) -> None:
        """Allow prompts that were taken in the last step to be taken again."""
        self._taken.clear()

    def take(self, k: int) -> tuple[str, ...]:
        """Return the next ``k`` prompts, different from all taken in this step.

        Raises:
            RecordExhaustedError: fewer have rollouts left.
        """
        open_P = self.rollouts.left_P > 0
        open_P[list(self._taken)] = False
        if np.count_nonzero(open_P) < k:
            raise RecordExhaustedError(f"it takes {k} prompts, and {np.count_nonzero(open_P)} more have rollouts left")
        chosen: list[int] = []
        while len(chosen) < k:
            if self._at == self._order.size:
                self._pass, self._at = self._pass + 1, 0
                self._order = self._shuffled()
            row = int(self._order[self._at])
            self._at += 1
            if open_P[row]:
                open_P[row] = False
                chosen.append(row)
        self._taken.update(chosen)
        return tuple(self.rollouts.rollouts.prompt_ids[row] for row in chosen)

    def _shuffled(self) -> IntArray:
        return np.random.default_rng((self.seed, self._pass)).permutation(self.rollouts.left_P.size)

"""Recorded rollouts as decks of cards: each is dealt once, in an order that is the same for every rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from knapsack_rl.notation import FloatArray, IntArray
from knapsack_rl.outcomes import Outcomes


@dataclass(frozen=True, eq=False)
class Cards:
    """The recorded rollouts of some prompts, prompt after prompt, in the order in which they will be dealt.

    Attributes:
        prompt_ids: all different, ``[P]``.
        sizes_P: rollouts of each, ``[P]``.
        rewards_PG: rewards, ``[sizes_P.sum()]``; NaN is a rollout without an answer, and is dealt like any other.
        tokens_PG: lengths, ``[sizes_P.sum()]``, where known.
        place_PG: where each rollout stood in the record. What is dealt in one draw is put back into that order, because
            some beliefs depend on it: a whole group comes out as it went in. None where there is no order to keep.
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
        """Position of each prompt, -1 where nothing is recorded of it."""
        index = self._index
        return np.fromiter((index.get(prompt_id, -1) for prompt_id in prompt_ids), np.int64, len(prompt_ids))

    def outcomes(self, step: int, prompts: IntArray, first_P: IntArray, counts_P: IntArray) -> Outcomes:
        """So many rollouts of these prompts (positions), from card number ``first_P`` on."""
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


def shuffled(outcomes: Outcomes, seed: int) -> Cards:
    """The rollouts of a recorded step as cards: a pure function of the record and the seed.

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
    return Cards(ids, sizes_P, outcomes.rewards_PG[order], tokens, order, outcomes.success_threshold)


def shuffle_within(prompt_PG: NDArray[np.integer], *seed: int) -> IntArray:
    """An order of the rows that puts prompts together and each prompt's rows at random."""
    keys: FloatArray = np.random.default_rng(seed).random(prompt_PG.size)
    return np.lexsort((keys, prompt_PG))


class Deck:
    """Cards of which some have been dealt: one rule's view of the record."""

    def __init__(self, cards: Cards) -> None:
        """A deck of which nothing has been dealt."""
        self.cards = cards
        self.dealt_P = np.zeros(cards.sizes_P.size, dtype=np.int64)

    @property
    def left_P(self) -> IntArray:
        """Rollouts of each prompt that were not dealt yet."""
        return self.cards.sizes_P - self.dealt_P

    def rest(self, step: int, prompts: IntArray) -> Outcomes:
        """Everything not dealt yet of these prompts; they stay in the deck."""
        return self.cards.outcomes(step, prompts, self.dealt_P[prompts], self.left_P[prompts])

    def deal(self, step: int, prompts: IntArray, counts_P: IntArray) -> Outcomes:
        """The next so many rollouts of these prompts, all different; fewer where fewer are left."""
        got_P = np.minimum(counts_P, self.left_P[prompts])
        outcomes = self.cards.outcomes(step, prompts, self.dealt_P[prompts], got_P)
        self.dealt_P[prompts] += got_P
        return outcomes

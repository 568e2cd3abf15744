"""One rule, one step: what it may take and draw, and when it has to leave the table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from knapsack_rl.notation import FloatArray, IntArray
from knapsack_rl.outcomes import Outcomes
from knapsack_rl.replay.deck import Deck
from knapsack_rl.strategy import Draw, Played, Request, Strategy, play

# Far beyond any published rule: one that keeps asking where nothing is left would never end.
MOST_ROUNDS = 1000


class CannotGoOnError(ValueError):
    """A rule that the record cannot serve any further; the message says why."""


@dataclass(frozen=True, eq=False)
class Hand:
    """What a rule did in a step, over every prompt it took or drew.

    Attributes:
        pool: the recorded rollouts that it could have drawn, ``[P]`` groups.
        asked_P: rollouts it asked for, over all rounds, ``[P]``.
        seen: the rollouts it got.
        success_rates_P, strength_P: its forecast when it first drew each prompt, ``[P]``; NaN where it made none. An
            infinite strength is a point estimate.
        rounds: rounds of generation that had to wait for one another.
        trained: rollouts it trains on.
    """

    pool: Outcomes
    asked_P: IntArray
    seen: Outcomes
    success_rates_P: FloatArray
    strength_P: FloatArray
    rounds: int
    trained: int


class Seat:
    """Where a rule sits for one step: it is dealt recorded rollouts in place of new ones.

    Args:
        deck: what is left of the record for this rule.
        step: the step.
        sampler: ids of the next ``k`` prompts.
    """

    def __init__(self, deck: Deck, step: int, sampler: Callable[[int], tuple[str, ...]]) -> None:
        self.deck, self.step, self.sampler = deck, step, sampler
        self._rounds = 0
        # Position in the deck -> rollouts dealt before this step, for every prompt that was taken or drawn.
        self._before: dict[int, int] = {}

    def play(self, strategy: Strategy, groups: int, budget: int) -> Hand:
        """Let a strategy play the step.

        Raises:
            CannotGoOnError: it asks for what the record does not hold.
            ValueError: it refuses the step itself.
        """
        played = play(strategy, Request(self.step, groups, budget, self._take), self._generate)
        return self._hand(played)

    def _take(self, k: int) -> tuple[str, ...]:
        prompt_ids = self.sampler(k)
        self._touch(self.deck.cards.rows(prompt_ids))
        return prompt_ids

    def _generate(self, draw: Draw) -> Outcomes:
        rows = self.deck.cards.rows(draw.prompt_ids)
        if (rows < 0).any():
            stranger = draw.prompt_ids[int(np.argmax(rows < 0))]
            raise CannotGoOnError(f"it draws prompt {stranger!r}, of which nothing is recorded here")
        self._rounds += 1
        if self._rounds > MOST_ROUNDS:
            raise CannotGoOnError(f"it asked for rollouts {MOST_ROUNDS:,} times in one step and was not done")
        self._touch(rows)
        return self.deck.deal(self.step, rows, draw.counts_P)

    def _touch(self, rows: IntArray) -> None:
        for row, dealt in zip(rows.tolist(), self.deck.dealt_P[rows].tolist(), strict=True):
            self._before.setdefault(row, dealt)

    def _hand(self, played: Played) -> Hand:
        cards = self.deck.cards
        prompts = np.fromiter(self._before, dtype=np.int64)
        before_P = np.fromiter(self._before.values(), dtype=np.int64)
        pool = cards.outcomes(self.step, prompts, before_P, cards.sizes_P[prompts] - before_P)
        place = {prompt_id: i for i, prompt_id in enumerate(pool.prompt_ids)}
        asked_P = np.zeros(prompts.size, dtype=np.int64)
        rates_P, strength_P = np.full((2, prompts.size), np.nan)
        for draw, _ in reversed(played.rounds):  # so that the first forecast is the one that stays
            at = np.array([place[prompt_id] for prompt_id in draw.prompt_ids])
            asked_P[at] += draw.counts_P
            if draw.success_rates_P is not None:
                rates_P[at] = draw.success_rates_P
                strength_P[at] = np.inf if draw.strength_P is None else draw.strength_P
        seen = cards.outcomes(self.step, prompts, before_P, self.deck.dealt_P[prompts] - before_P)
        trained = int(played.batch.outcomes.counts_P.sum())
        return Hand(pool, asked_P, seen, rates_P, strength_P, len(played.rounds), trained)

"""Every rule on the same record: step by step, plan before outcomes, nothing twice."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from knapsack_rl.entrants import Setting
from knapsack_rl.notation import IntArray
from knapsack_rl.replay.deck import Cards, Deck, shuffled
from knapsack_rl.replay.recording import Visit
from knapsack_rl.replay.score import Score, agreement, score
from knapsack_rl.replay.seat import CannotGoOnError, Hand, Seat
from knapsack_rl.strategy import Strategy

RECORDED = "(recorded)"

# (name of the rule, step, score)
Result: TypeAlias = tuple[str, int, Score]


@dataclass(eq=False)
class Player:
    """A rule in the game.

    Attributes:
        name: as it was asked for.
        strategy: the rule, which learns as it plays.
        out: why it plays no more; None while it does.
    """

    name: str
    strategy: Strategy
    out: str | None = None

    def try_step(self, seat: Seat, groups: int, budget: int) -> Hand | None:
        """Play a step; a rule that cannot is out, and the others go on."""
        try:
            return seat.play(self.strategy, groups, budget)
        except ValueError as error:
            self.out = f"stopped at step {seat.step}: {error}"
            return None


def replay_visits(visits: Iterable[Visit], players: Sequence[Player], seed: int) -> Iterator[Result]:
    """Play the steps of a record: each rule has its prompts and its budget, and is dealt its rollouts.

    What really happened comes first in every step, under the name ``(recorded)``.

    Args:
        visits: the recorded steps, in order; one at a time is held.
        players: the rules; each plays until it cannot go on.
        seed: of the order in which each prompt's rollouts are dealt, the same for every rule.
    """
    for visit in visits:
        cards = shuffled(visit.outcomes, seed)
        step = visit.outcomes.step
        planned_P = _merged(visit, cards)
        yield RECORDED, step, _judged(_recorded(visit, cards, planned_P), cards, planned_P)
        for player in players:
            if player.out is None:
                seat = Seat(Deck(cards), step, _InOrder(cards.prompt_ids))
                hand = player.try_step(seat, len(cards.prompt_ids), visit.budget)
                if hand is not None:
                    yield player.name, step, _judged(hand, cards, planned_P)


def replay_table(cards: Cards, players: Sequence[Player], setting: Setting, steps: int) -> Iterator[Result]:
    """Play with a table: seeded epochs over the prompts, until a prompt's rollouts are used up and it is out.

    Every rule has a deck of its own, in the same order.
    """
    decks = {player.name: Deck(cards) for player in players}
    samplers = {player.name: _Epochs(decks[player.name], setting.seed) for player in players}
    for step in range(steps):
        for player in players:
            if player.out is None:
                samplers[player.name].begin_step()
                seat = Seat(decks[player.name], step, samplers[player.name].take)
                hand = player.try_step(seat, setting.groups, setting.budget)
                if hand is not None:
                    yield player.name, step, score(hand)


class _InOrder:
    """The candidates of a recorded step, in their order, and nobody else."""

    def __init__(self, prompt_ids: Sequence[str]) -> None:
        self.prompt_ids, self._taken = tuple(prompt_ids), 0

    def __call__(self, k: int) -> tuple[str, ...]:
        taken = self.prompt_ids[self._taken : self._taken + k]
        if len(taken) < k:
            raise CannotGoOnError(
                f"it takes more prompts than the {len(self.prompt_ids)} that the step recorded, and nobody knows what"
                " others would have answered then: try it on a table without steps, or in the simulator"
            )
        self._taken += k
        return taken


class _Epochs:
    """Seeded passes over the prompts of a table; those without rollouts left are passed over."""

    def __init__(self, deck: Deck, seed: int) -> None:
        self.deck, self.seed = deck, seed
        self._epoch = self._at = 0
        self._order = self._shuffled()
        self._taken: set[int] = set()

    def begin_step(self) -> None:
        """From here on, prompts may be taken again."""
        self._taken.clear()

    def take(self, k: int) -> tuple[str, ...]:
        """The next ``k`` prompts, different from all taken in this step."""
        open_P = self.deck.left_P > 0
        open_P[list(self._taken)] = False
        if np.count_nonzero(open_P) < k:
            raise CannotGoOnError(f"it takes {k} prompts, and {np.count_nonzero(open_P)} more have rollouts left")
        chosen: list[int] = []
        while len(chosen) < k:
            if self._at == self._order.size:
                self._epoch, self._at = self._epoch + 1, 0
                self._order = self._shuffled()
            row = int(self._order[self._at])
            self._at += 1
            if open_P[row]:
                open_P[row] = False
                chosen.append(row)
        self._taken.update(chosen)
        return tuple(self.deck.cards.prompt_ids[row] for row in chosen)

    def _shuffled(self) -> IntArray:
        return np.random.default_rng((self.seed, self._epoch)).permutation(self.deck.left_P.size)


def _merged(visit: Visit, cards: Cards) -> IntArray:
    """What was planned, by prompt: an id that the step lists twice counts once, with both counts."""
    planned_P = np.zeros(len(cards.prompt_ids), dtype=np.int64)
    np.add.at(planned_P, cards.rows(visit.outcomes.prompt_ids), visit.planned_P)
    return planned_P


def _judged(hand: Hand, cards: Cards, planned_P: IntArray) -> Score:
    """The score of a hand, compared with the plan over all candidates, taken or not."""
    asked_P = np.zeros_like(planned_P)
    asked_P[cards.rows(hand.pool.prompt_ids)] = hand.asked_P
    return score(hand, agreement(asked_P, planned_P))


def _recorded(visit: Visit, cards: Cards, planned_P: IntArray) -> Hand:
    """What really happened, as the hand of one more rule."""
    everything = np.arange(len(cards.prompt_ids))
    pool = Deck(cards).rest(visit.outcomes.step, everything)
    first = np.full(everything.size, -1)
    rows = cards.rows(visit.outcomes.prompt_ids)
    first[rows[::-1]] = np.arange(rows.size)[::-1]
    rates_P, strength_P = visit.success_rates_P[first], visit.strength_P[first]
    return Hand(pool, planned_P, pool, rates_P, strength_P, 1, int(pool.counts_P.sum()))

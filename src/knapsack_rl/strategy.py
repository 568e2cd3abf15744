"""A step as a conversation: a strategy asks for rollouts, sees what they brought, and asks again or is done.

One protocol carries all the methods there are. Those that decide before the step ask once (`OneRound` makes a strategy
of any `Allocator`); those that decide within it ask several times; those that choose prompts take more of them from the
sampler than they ask rollouts for. `play` is the caller of all of them, without knowing which is which, and what it
returns says what was really spent: rollouts, tokens, and rounds of generation that had to wait for one another.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np

from knapsack_rl.allocator import Allocator
from knapsack_rl.notation import FloatArray, IntArray
from knapsack_rl.outcomes import Outcomes


@dataclass(frozen=True, eq=False)
class Request:
    """What the trainer asks of a strategy for one step.

    Attributes:
        step: generation step, from 0.
        groups: prompts that an equal division would train on.
        budget: rollouts of the step. A strategy may spend more or less where its paper does; `Played` says so.
        take: the sampler: ids of the next ``k`` prompts, all different. What is taken and not asked rollouts for was
            refused: it comes back when the sampler gets to it again.
    """

    step: int
    groups: int
    budget: int
    take: Callable[[int], tuple[str, ...]]


@dataclass(frozen=True, eq=False)
class Draw:
    """One round of generation: so many rollouts of these prompts.

    Attributes:
        prompt_ids: all different, ``[P]``.
        counts_P: rollouts of each, ``[P]``, at least 0. A count of 1 is fine: the group may get more in another round.
        success_rates_P: what the strategy expects, ``[P]``; None where it believes nothing.
        strength_P: weight of evidence behind that, in rollouts, ``[P]``; None for point estimates.

    Raises:
        ValueError: arrays of other lengths, a negative count, no rollouts at all, or a prompt that is named twice.
    """

    prompt_ids: tuple[str, ...]
    counts_P: IntArray
    success_rates_P: FloatArray | None = None
    strength_P: FloatArray | None = None

    def __post_init__(self) -> None:
        for array in (self.counts_P, self.success_rates_P, self.strength_P):
            if array is not None and array.shape != (len(self.prompt_ids),):
                raise ValueError(f"a draw of {len(self.prompt_ids)} prompts was given an array of shape {array.shape}")
        if (self.counts_P < 0).any() or not self.counts_P.any():
            raise ValueError(f"a draw asks for some rollouts, and never fewer than 0 of a prompt: {self.counts_P}")
        if len(set(self.prompt_ids)) != len(self.prompt_ids):
            raise ValueError("a draw names a prompt twice: add its counts up")


@dataclass(frozen=True, eq=False)
class Batch:
    """What the optimizer step is made of.

    Attributes:
        outcomes: the rollouts trained on, group after group; some of what was drawn, perhaps some kept from earlier.
        baseline_P, scale_P: mean and standard deviation that normalise each group's rewards, ``[P]``; by default those
            of the rollouts trained on. They differ where a group was thinned out but is judged by all that was drawn.
    """

    outcomes: Outcomes
    baseline_P: FloatArray | None = None
    scale_P: FloatArray | None = None


# Yields draws, is sent what came of them (same prompts, same order), and returns what to train on.
Turn: TypeAlias = Generator[Draw, Outcomes, Batch]


class Strategy(Protocol):
    """Decides, within a step, which prompts get how many rollouts, and what is trained on."""

    def step(self, request: Request) -> Turn:
        """Hold one step's conversation. Learning happens inside it, from what is sent."""
        ...

    def save(self, path: Path) -> None:
        """Between steps, write everything learned to a file, all or nothing."""
        ...

    def load(self, path: Path) -> None:
        """Take up what `save` wrote; on a failure nothing changes."""
        ...


def fresh(request: Request, k: int, met: Collection[str] = (), patience: int = 1) -> tuple[str, ...]:
    """The next ``k`` prompts of the sampler, without those in ``met`` and those that come twice: perhaps none.

    At most ``patience * k`` prompts are looked at, and at most a step's at a time, which the sampler must always have.
    """
    found: dict[str, None] = {}
    looked = 0
    while len(found) < k and looked < patience * k:
        asked = min(request.groups, k - len(found), patience * k - looked)
        found.update(dict.fromkeys([prompt_id for prompt_id in request.take(asked) if prompt_id not in met]))
        looked += asked
    return tuple(found)


class OneRound:
    """A strategy that plans once and trains on everything: any allocator."""

    def __init__(self, allocator: Allocator, pool: int = 1) -> None:
        """A strategy of this allocator.

        Args:
            allocator: divides the budget.
            pool: how many times ``groups`` prompts it may choose from; beyond 1 it must be allowed to plan 0.

        Raises:
            ValueError: a pool below 1.
        """
        if pool < 1:
            raise ValueError(f"pool is {pool}: at least as many candidates as groups are needed, use 1 or more")
        self.allocator, self.pool = allocator, pool

    def step(self, request: Request) -> Turn:
        """Plan, draw, learn, and train on all of it."""
        prompt_ids = fresh(request, request.groups * self.pool)
        plan = self.allocator.plan(prompt_ids, request.budget, request.step)
        chosen = np.flatnonzero(plan.counts_P)  # what was left out is not drawn
        ids = tuple([plan.prompt_ids[i] for i in chosen.tolist()])
        outcomes = yield Draw(ids, plan.counts_P[chosen], plan.success_rates_P[chosen], plan.strength_P[chosen])
        self.allocator.observe(outcomes)
        return Batch(outcomes)

    def save(self, path: Path) -> None:
        """Write what the allocator learned to a file, all or nothing."""
        self.allocator.save(path)

    def load(self, path: Path) -> None:
        """Take up what `save` wrote; on a failure nothing changes."""
        self.allocator.load(path)


@dataclass(frozen=True, eq=False)
class Played:
    """A step as it was played.

    Attributes:
        batch: what is trained on.
        rounds: each draw with what came of it, in order.
    """

    batch: Batch
    rounds: tuple[tuple[Draw, Outcomes], ...]

    @cached_property
    def rollouts(self) -> int:
        """Rollouts generated, trained on or not."""
        return sum(int(outcomes.counts_P.sum()) for _, outcomes in self.rounds)

    @cached_property
    def tokens(self) -> int:
        """Tokens generated; 0 where lengths are not known."""
        return sum(int(outcomes.tokens_PG.sum()) for _, outcomes in self.rounds if outcomes.tokens_PG is not None)


def play(strategy: Strategy, request: Request, generate: Callable[[Draw], Outcomes]) -> Played:
    """Play one step: the only caller a strategy has.

    Args:
        strategy: who asks.
        request: the step.
        generate: makes the rollouts of a draw and scores them, over the same prompts in the same order.

    Raises:
        ValueError: outcomes of other prompts than were drawn, or a strategy that trains without having drawn anything.
    """
    turn = strategy.step(request)
    rounds: list[tuple[Draw, Outcomes]] = []
    try:
        draw = next(turn)
        while True:
            outcomes = generate(draw)
            if outcomes.prompt_ids != draw.prompt_ids:
                raise ValueError("the outcomes are of other prompts than were drawn")
            rounds.append((draw, outcomes))
            draw = turn.send(outcomes)
    except StopIteration as done:
        if not rounds:
            raise ValueError(f"{type(strategy).__name__} asked for no rollouts in step {request.step}") from None
        return Played(done.value, tuple(rounds))

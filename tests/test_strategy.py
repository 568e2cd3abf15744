"""The conversation of a step: who asks, what is sent, and what it cost."""

from __future__ import annotations

from itertools import count, islice
from pathlib import Path

import numpy as np
import pytest

from knapsack_rl import Outcomes, make_allocator
from knapsack_rl.strategy import Batch, Draw, OneRound, Request, Turn, play


def request(groups: int = 4, budget: int = 32, step: int = 0) -> Request:
    numbers = count()
    return Request(step, groups, budget, lambda k: tuple(f"p{i}" for i in islice(numbers, k)))


def generate(draw: Draw) -> Outcomes:
    """Every other rollout succeeds; each is 10 tokens long."""
    rows = int(draw.counts_P.sum())
    return Outcomes(0, draw.prompt_ids, draw.counts_P, np.arange(rows) % 2.0, np.full(rows, 10))


class PilotThenRest:
    """Two of each, then the rest of the budget to the first prompt."""

    def step(self, request: Request) -> Turn:
        ids = request.take(request.groups)
        first = yield Draw(ids, np.full(len(ids), 2))
        rest = yield Draw(ids[:1], np.array([request.budget - int(first.counts_P.sum())]))
        return Batch(rest)

    def save(self, path: Path) -> None:
        path.touch()

    def load(self, path: Path) -> None:
        path.stat()


def test_an_allocator_plays_one_round_of_its_plan() -> None:
    allocator = make_allocator("posterior")
    played = play(OneRound(allocator), request(), generate)
    (draw, outcomes), *more = played.rounds
    assert not more
    assert played.batch.outcomes is outcomes
    assert draw.counts_P.tolist() == allocator_counts()
    assert (played.rollouts, played.tokens) == (32, 320)
    assert allocator.plan(("p0",), 2, 1).seen_P.all()  # it learned


def allocator_counts() -> list[int]:
    return make_allocator("posterior").plan(("p0", "p1", "p2", "p3"), 32, 0).counts_P.tolist()


def test_a_pool_offers_more_prompts_than_groups() -> None:
    played = play(OneRound(make_allocator("posterior", min_count=0), pool=8), request(), generate)
    (draw, _), *_ = played.rounds
    assert 4 < len(draw.prompt_ids) < 32  # a group has at least two, so some candidates are left out
    assert draw.counts_P.min() >= 2
    assert draw.counts_P.sum() == 32


def test_rounds_within_a_step_are_counted() -> None:
    played = play(PilotThenRest(), request(), generate)
    assert [int(draw.counts_P.sum()) for draw, _ in played.rounds] == [8, 24]
    assert (played.rollouts, played.tokens, len(played.rounds)) == (32, 320, 2)  # of all, not of what is trained on
    assert played.batch.outcomes.prompt_ids == ("p0",)


def test_outcomes_of_other_prompts_are_refused() -> None:
    with pytest.raises(ValueError, match="other prompts"):
        play(OneRound(make_allocator()), request(), lambda _: Outcomes.of_groups(0, [("x", [1.0, 0.0])]))


@pytest.mark.parametrize(
    ("ids", "counts", "message"),
    [
        (("a", "b"), [1], "shape"),
        (("a", "b"), [2, -1], "fewer than 0"),
        (("a", "b"), [0, 0], "some rollouts"),
        (("a", "a"), [2, 2], "twice"),
    ],
)
def test_a_draw_that_makes_no_sense_is_refused(ids: tuple[str, ...], counts: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Draw(ids, np.array(counts))


def test_a_pool_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="pool is 0"):
        OneRound(make_allocator(), pool=0)

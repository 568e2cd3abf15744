"""Pilots inside a step, and the rest of the budget where they point."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice, product

import numpy as np
import pytest

from knapsack_rl import Outcomes, PosteriorBeliefs
from knapsack_rl.oracle import GivenBeliefs
from knapsack_rl.pilot import PilotThenRest
from knapsack_rl.strategy import Draw, Played, Request, play
from knapsack_rl.testing import check_strategy
from knapsack_rl.values import expected_knapsack_value


def played(strategy: PilotThenRest, rates: dict[str, float], groups: int = 4, budget: int = 32) -> Played:
    """A step whose rollouts succeed in exactly the share that their prompt's rate says, first successes."""

    def generate(draw: Draw) -> Outcomes:
        rewards = [
            [1.0] * round(rates[i] * n) + [0.0] * (n - round(rates[i] * n))
            for i, n in zip(draw.prompt_ids, draw.counts_P.tolist(), strict=True)
        ]
        return Outcomes.of_groups(0, list(zip(draw.prompt_ids, rewards, strict=True)))

    ids = iter(rates)
    return play(strategy, Request(0, groups, budget, lambda k: tuple(islice(ids, k))), generate)


def test_the_budget_is_spent_in_two_rounds_on_whole_groups() -> None:
    rates = {f"p{i}": 0.5 for i in range(16)}
    result = played(PilotThenRest(PosteriorBeliefs(), pool=4), rates)
    (first, _), (second, _) = result.rounds
    assert first.counts_P.tolist() == [2] * 8  # half of 32 rollouts, two a prompt
    assert second.counts_P.sum() == 16
    assert result.rollouts == result.batch.outcomes.counts_P.sum() == 32
    assert set(second.prompt_ids) <= set(first.prompt_ids)


def test_what_the_pilots_show_decides_about_the_rest() -> None:
    rates = {"solved": 1.0, "hopeless": 0.0, "mixed": 0.5, "mixed too": 0.5}
    result = played(PilotThenRest(PosteriorBeliefs(), pool=1), rates)
    counts = dict(zip(result.batch.outcomes.prompt_ids, result.batch.outcomes.counts_P.tolist(), strict=True))
    assert counts["mixed"] > counts["solved"]
    assert sum(counts.values()) == 32


def test_the_rest_is_the_best_division_there_is() -> None:
    strategy = PilotThenRest(PosteriorBeliefs(), pool=1, max_count=6)
    pilots = Outcomes.of_groups(0, [("a", [1, 0]), ("b", [0, 0]), ("c", [1, 1])])
    forecast = PosteriorBeliefs().forecast(["a", "b", "c"], 0)
    alpha, beta = np.array([1.5, 0.5, 2.5]), np.array([1.5, 2.5, 0.5])
    value = expected_knapsack_value(alpha, beta, 6)
    best = max(
        (counts for counts in product(range(2, 7), repeat=3) if sum(counts) == 12),
        key=lambda counts: sum(value[i, n] for i, n in enumerate(counts)),
    )
    rest = strategy._rest(forecast, pilots, 12)
    assert sum(value[i, n] for i, n in enumerate(rest + 2)) == pytest.approx(
        sum(value[i, n] for i, n in enumerate(best))
    )
    assert rest.sum() == 12 - 6


def test_prompts_that_are_known_are_not_looked_at() -> None:
    rates = {"solved": 0.999, "hopeless": 0.001, "a": 0.4, "b": 0.3}

    def known(prompt_ids: Sequence[str]) -> np.ndarray:
        return np.array([rates[i] for i in prompt_ids])

    result = played(PilotThenRest(GivenBeliefs(known), pool=4, pilot_share=0.5), rates, groups=1, budget=8)
    assert set(result.rounds[0][0].prompt_ids) == {"a", "b"}


def test_it_passes_what_every_strategy_must() -> None:
    check_strategy(lambda: PilotThenRest(PosteriorBeliefs(), pool=2))


@pytest.mark.parametrize("wrong", [{"pool": 0}, {"pilot": 1}, {"pilot_share": 1.0}, {"max_count": 1}])
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="use a pool of at least"):
        PilotThenRest(PosteriorBeliefs(), **wrong)  # type: ignore[arg-type]

"""Pilots inside a step, and the rest of the budget where they point."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice, product

import numpy as np
import pytest

from knapsack_arena.strategies import RolloutRequest, StepResult, StepSpec, run_step
from knapsack_arena.strategies.pilot import PilotThenRest
from knapsack_arena.testing import check_strategy
from knapsack_rl import BetaBeliefs, Outcomes
from knapsack_rl.beliefs.static import StaticBeliefs
from knapsack_rl.values import expected_knapsack_value


def run(strategy: PilotThenRest, rates: dict[str, float], groups: int = 4, budget: int = 32) -> StepResult:
    """Run a step in which each group has exactly its rate of successes, successes first."""

    def generate(request: RolloutRequest) -> Outcomes:
        rewards = [
            [1.0] * round(rates[i] * n) + [0.0] * (n - round(rates[i] * n))
            for i, n in zip(request.prompt_ids, request.counts_P.tolist(), strict=True)
        ]
        return Outcomes.of_groups(0, list(zip(request.prompt_ids, rewards, strict=True)))

    ids = iter(rates)
    return run_step(strategy, StepSpec(0, groups, budget, lambda k: tuple(islice(ids, k))), generate)


def test_the_budget_is_spent_in_two_rounds_on_whole_groups() -> None:
    rates = {f"p{i}": 0.5 for i in range(16)}
    result = run(PilotThenRest(BetaBeliefs(), pool=4), rates)
    (first, _), (second, _) = result.rounds
    assert first.counts_P.tolist() == [2] * 8  # half of 32 rollouts, two a prompt
    assert second.counts_P.sum() == 16
    assert result.rollouts == result.batch.outcomes.counts_P.sum() == 32
    assert set(second.prompt_ids) <= set(first.prompt_ids)


def test_the_rest_depends_on_the_pilots() -> None:
    rates = {"solved": 1.0, "hopeless": 0.0, "mixed": 0.5, "mixed too": 0.5}
    result = run(PilotThenRest(BetaBeliefs(), pool=1), rates)
    counts = dict(zip(result.batch.outcomes.prompt_ids, result.batch.outcomes.counts_P.tolist(), strict=True))
    assert counts["mixed"] > counts["solved"]
    assert sum(counts.values()) == 32


def test_the_rest_is_the_best_division_there_is() -> None:
    strategy = PilotThenRest(BetaBeliefs(), pool=1, max_count=6)
    pilots = Outcomes.of_groups(0, [("a", [1, 0]), ("b", [0, 0]), ("c", [1, 1])])
    forecast = BetaBeliefs().forecast(["a", "b", "c"], 0)
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


def test_prompts_with_known_rates_of_no_value_get_no_pilot() -> None:
    rates = {"solved": 0.999, "hopeless": 0.001, "a": 0.4, "b": 0.3}

    def known(prompt_ids: Sequence[str]) -> np.ndarray:
        return np.array([rates[i] for i in prompt_ids])

    result = run(PilotThenRest(StaticBeliefs(known), pool=4, pilot_share=0.5), rates, groups=1, budget=8)
    assert set(result.rounds[0][0].prompt_ids) == {"a", "b"}


def test_it_passes_what_every_strategy_must() -> None:
    check_strategy(lambda: PilotThenRest(BetaBeliefs(), pool=2))


@pytest.mark.parametrize("wrong", [{"pool": 0}, {"pilot": 1}, {"pilot_share": 1.0}, {"max_count": 1}])
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="use a pool of at least"):
        PilotThenRest(BetaBeliefs(), **wrong)  # type: ignore[arg-type]

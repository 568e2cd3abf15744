"""Beliefs in stages: one stage is the beliefs themselves, and a hopeless end is valued at an earlier stage."""

from __future__ import annotations

import numpy as np
import pytest

from knapsack_rl import BetaBeliefs, KnapsackAllocator, Outcomes
from knapsack_rl.beliefs.staged import StagedBeliefs


def _observed(beliefs: StagedBeliefs | BetaBeliefs, rewards: dict[str, list[float]], step: int = 0) -> None:
    ids = [name for name, each in rewards.items() for _ in each]
    beliefs.observe(Outcomes.from_rollouts(step, ids, np.concatenate(list(map(np.array, rewards.values())))))


def test_one_stage_is_the_beliefs_to_the_bit() -> None:
    plain, staged = BetaBeliefs(), StagedBeliefs(1, BetaBeliefs)
    for step in range(5):
        rewards = {f"p{i}": list(np.random.default_rng(10 * step + i).integers(0, 2, 6) / 1.0) for i in range(8)}
        _observed(plain, rewards, step)
        _observed(staged, rewards, step)
    ids = [f"p{i}" for i in range(10)]
    plans = [KnapsackAllocator(beliefs, min_count=0).plan(ids, 40, 5) for beliefs in (plain, staged)]
    assert plans[0].counts_P.tolist() == plans[1].counts_P.tolist()
    assert plans[0].success_rates_P.tobytes() == plans[1].success_rates_P.tobytes()


def test_a_prompt_is_forecast_at_the_hardest_stage_that_is_not_hopeless() -> None:
    beliefs = StagedBeliefs(3, lambda: BetaBeliefs(prior=(0.01, 0.01)))
    rewards = {
        "never": [0.0] * 20,
        "first": [1.0] * 8 + [0.0] * 12,
        "second": [2.0] * 5 + [1.0] * 10 + [0.0] * 5,
        "solved": [3.0] * 15 + [0.0] * 5,
    }
    _observed(beliefs, rewards)
    forecast = beliefs.forecast([*rewards, "unseen"], 0)
    np.testing.assert_allclose(forecast.success_rates_P, [0, 0.4, 0.25, 0.75, 0.5], atol=0.01)
    assert forecast.seen_P.tolist() == [True, True, True, True, False]


def test_state_is_restored_and_damage_changes_nothing() -> None:
    beliefs, again = StagedBeliefs(2, BetaBeliefs), StagedBeliefs(2, BetaBeliefs)
    _observed(beliefs, {"a": [1.0, 2.0, 0.0], "b": [0.0, 1.0]})
    again.load_state_dict(beliefs.state_dict())
    ids = ["a", "b", "c"]
    assert again.forecast(ids, 1).success_rates_P.tolist() == beliefs.forecast(ids, 1).success_rates_P.tolist()
    with pytest.raises(ValueError, match="have 2 stages, these have 3"):
        StagedBeliefs(3, BetaBeliefs).load_state_dict(beliefs.state_dict())
    state = beliefs.state_dict()
    state["stages"][1] = {"kind": "other"}
    before = again.forecast(ids, 1).success_rates_P.tolist()
    with pytest.raises(ValueError):
        again.load_state_dict(state)
    assert again.forecast(ids, 1).success_rates_P.tolist() == before


@pytest.mark.parametrize(("stages", "near_zero"), [(0, 0.05), (1, -0.1), (1, 1.0)])
def test_settings_out_of_range_are_refused(stages: int, near_zero: float) -> None:
    with pytest.raises(ValueError, match="stages is|near_zero is"):
        StagedBeliefs(stages, BetaBeliefs, near_zero)

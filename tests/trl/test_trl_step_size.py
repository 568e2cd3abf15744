"""TRL's steps have one size: where it is much larger than a step deserves, that is said once."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from knapsack_rl import KnapsackAllocator, Outcomes
from knapsack_rl.trl.checks import ADVICE_STEP, warn_of_large_step


def _learned(rates: list[float], min_count: int = 0) -> tuple[KnapsackAllocator, list[str]]:
    allocator, ids = KnapsackAllocator(min_count=min_count), [f"p{i}" for i in range(len(rates))]
    rewards = np.concatenate([np.arange(20) < 20 * rate for rate in rates]).astype(float)
    allocator.observe(Outcomes.from_rollouts(ADVICE_STEP - 1, [name for name in ids for _ in range(20)], rewards))
    return allocator, ids


def test_a_step_that_is_much_too_large_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    allocator, ids = _learned([0.3] * 8 + [0.0] * 60 + [1.0] * 60)  # few prompts are worth anything
    with caplog.at_level(logging.WARNING):
        for step in range(ADVICE_STEP + 3):
            warn_of_large_step(allocator, allocator.plan(ids, 512, step))
    (record,) = caplog.records
    assert "a step has 512 rollouts" in record.getMessage()
    assert "generation_batch_size=256" in record.getMessage()


@pytest.mark.parametrize(("rates", "min_count"), [([0.5] * 256, 0), ([0.3] * 8 + [0.0] * 60, 2)])
def test_no_word_where_prompts_are_worth_their_rollouts_or_none_is_left_out(
    caplog: pytest.LogCaptureFixture, rates: list[float], min_count: int
) -> None:
    allocator, ids = _learned(rates, min_count)
    with caplog.at_level(logging.WARNING):
        warn_of_large_step(allocator, allocator.plan(ids, 2 * len(ids), ADVICE_STEP))
    assert not caplog.records

"""The conformance suite of rules: allocation problems made from forecasts."""

from __future__ import annotations

from dataclasses import fields

import numpy as np

from knapsack_rl.allocator import Allocator, KnapsackAllocator
from knapsack_rl.beliefs.beta import BetaBeliefs
from knapsack_rl.rules import AllocationRule
from knapsack_rl.testing.allocators import MEAN, check_allocator, demand, history, known


def check_rule(rule: AllocationRule, low: int = 2, high: int = 128) -> None:
    """Check a rule over our Beta beliefs, with these limits on a prompt's count.

    Raises:
        AssertionError: a check that fails, with the value expected and the value found.
    """

    def make() -> Allocator:
        return KnapsackAllocator(BetaBeliefs(), rule, low, high)

    beliefs = BetaBeliefs()
    beliefs.observe(history())
    ids = known()
    forecast, untouched = beliefs.forecast(ids, 1), beliefs.forecast(ids, 1)
    rule(forecast, MEAN * len(ids), low, high)
    for field in fields(forecast):
        now, before = getattr(forecast, field.name), getattr(untouched, field.name)
        same = now is before or np.array_equal(now, before, equal_nan=True)
        demand(same, f"the rule wrote into the forecast's {field.name}, which has other readers: make a copy")
    check_allocator(make, low, high)

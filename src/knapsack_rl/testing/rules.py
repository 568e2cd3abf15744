"""The conformance suite of rules: what the knapsack is offered, given what is believed."""

from __future__ import annotations

from dataclasses import fields

import numpy as np

from knapsack_rl.allocator import Allocator, KnapsackAllocator, Rule
from knapsack_rl.beliefs import PosteriorBeliefs
from knapsack_rl.testing.allocators import MEAN, check_allocator
from knapsack_rl.testing.records import history, known
from knapsack_rl.testing.world import demand


def check_rule(rule: Rule, low: int = 2, high: int = 128) -> None:
    """Check a rule as our beliefs would use it, with these limits on a prompt's count.

    Raises:
        AssertionError: what was expected, and what came.
    """

    def make() -> Allocator:
        return KnapsackAllocator(PosteriorBeliefs(), rule, low, high)

    beliefs = PosteriorBeliefs()
    beliefs.observe(history())
    ids = known()
    forecast, untouched = beliefs.forecast(ids, 1), beliefs.forecast(ids, 1)
    rule(forecast, MEAN * len(ids), low, high)
    for field in fields(forecast):
        now, before = getattr(forecast, field.name), getattr(untouched, field.name)
        same = np.array_equal(now, before, equal_nan=True)
        demand(same, f"the rule wrote into the forecast's {field.name}, which others read: make a copy")
    check_allocator(make, low, high)

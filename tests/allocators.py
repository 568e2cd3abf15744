"""Allocators by the name of their rule, for tests that plan without a pool."""

from __future__ import annotations

from typing import Any

from knapsack_rl import AllocationConfig, KnapsackAllocator


def allocator_of(rule: Any = "beta", **settings: Any) -> KnapsackAllocator:
    """An allocator that has learned nothing; ``settings`` are fields of `AllocationConfig`."""
    low, high = settings.get("min_count") or 2, settings.get("max_count", 128)
    return AllocationConfig(**{"rule": rule, "pool": 1, "average": max(low, min(8, high)), **settings}).make_allocator()

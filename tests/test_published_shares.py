"""Shares to whole counts: exact budget, limits, largest remainders."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knapsack_arena.published.shares import counts_from_shares, extra_by_shares


def test_shares_that_fit_are_met_exactly() -> None:
    assert counts_from_shares(np.array([1.0, 2.0, 3.0]), 24, 2, 64).tolist() == [4, 8, 12]


def test_what_rounding_leaves_goes_to_the_largest_remainders() -> None:
    # 10 in parts of 1 : 1 : 1.2 are 3.125, 3.125, 3.75
    assert counts_from_shares(np.array([1.0, 1.0, 1.2]), 10, 2, 64).tolist() == [3, 3, 4]


def test_limits_bind_and_the_others_share_the_rest() -> None:
    assert counts_from_shares(np.array([0.0, 1.0, 1.0, 100.0]), 30, 2, 16).tolist() == [2, 6, 6, 16]


def test_no_shares_at_all_are_equal_shares() -> None:
    assert counts_from_shares(np.zeros(3), 12, 2, 16).tolist() == [4, 4, 4]


def test_extra_comes_on_top_of_the_least() -> None:
    assert extra_by_shares(np.array([1.0, 2.0, 3.0]), 18, 2, 64).tolist() == [4, 6, 8]


@given(
    st.lists(st.floats(0, 1e6), min_size=1, max_size=12),
    st.integers(2, 5),
    st.integers(0, 60),
    st.floats(0, 1),
)
def test_every_budget_is_met_within_the_limits(shares: list[float], low: int, room: int, part: float) -> None:
    high, size = low + room, len(shares)
    budget = low * size + int(part * room * size)
    for rule in (counts_from_shares, extra_by_shares):
        counts = rule(np.array(shares), budget, low, high)
        assert counts.sum() == budget
        assert ((counts >= low) & (counts <= high)).all()
        order = np.argsort(shares, kind="stable")
        assert (np.diff(counts[order]) >= -1).all()  # more for larger shares, up to rounding


@pytest.mark.parametrize(
    ("shares", "budget", "low", "high"), [([1, -1], 8, 2, 8), ([1, np.nan], 8, 2, 8), ([1, 1], 3, 2, 8), ([1], 9, 2, 8)]
)
def test_what_cannot_be_met_is_refused(shares: list[float], budget: int, low: int, high: int) -> None:
    with pytest.raises(ValueError, match="shares must be|budget"):
        counts_from_shares(np.array(shares, dtype=float), budget, low, high)


def test_leaving_prompts_out_is_refused() -> None:
    with pytest.raises(ValueError, match="every prompt a group"):
        counts_from_shares(np.ones(2), 8, 0, 8)

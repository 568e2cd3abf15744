"""Kept successes: the store, its state, and which rollouts they may replace."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knapsack_rl.allocator import KnapsackAllocator
from knapsack_rl.beliefs.forecast import Forecast
from knapsack_rl.beliefs.static import StaticBeliefs
from knapsack_rl.kept import KeptSuccesses, failed_rollouts
from knapsack_rl.rules import AllocationProblem, expected_value
from knapsack_rl.values import expected_knapsack_marginals, kept_success_marginals, storing_marginals


def test_the_last_success_of_a_prompt_is_found() -> None:
    kept = KeptSuccesses()
    kept.keep("a", 3, [1, 2], np.array([-0.5, -0.25]))
    kept.keep("a", 5, [7], np.array([-1.0]))
    found = kept.find("a", 6)
    assert found is not None and found.step == 5 and found.tokens_T.tolist() == [7]
    assert kept.find("b", 6) is None
    assert kept.has(["b", "a"], 6).tolist() == [False, True]


def test_stale_ones_are_not_used() -> None:
    kept = KeptSuccesses(max_age=2)
    kept.keep("a", 3, [1], np.array([-1.0]))
    assert kept.find("a", 5) is not None
    assert kept.find("a", 6) is None


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 40)), max_size=60))
def test_bytes_are_bounded_and_the_oldest_leave_first(kept_ones: list[tuple[int, int]]) -> None:
    kept = KeptSuccesses(max_bytes=1500)
    order: list[str] = []
    for step, (prompt, tokens) in enumerate(kept_ones):
        kept.keep(str(prompt), step, np.arange(tokens), np.zeros(tokens))
        order = [each for each in order if each != str(prompt)] + [str(prompt)]
        assert kept.bytes <= 1500
        present = [each for each in order if kept.find(each, step) is not None]
        assert present == order[len(order) - len(present) :]
    assert kept.bytes == sum(each.bytes for name in order if (each := kept.find(name, 99)) is not None)


@given(st.lists(st.tuples(st.text(max_size=3), st.integers(1, 9), st.integers(0, 50)), max_size=20))
def test_state_is_restored(kept_ones: list[tuple[str, int, int]]) -> None:
    kept, again = KeptSuccesses(), KeptSuccesses()
    for prompt, tokens, step in kept_ones:
        kept.keep(prompt, step, np.arange(tokens), -np.ones(tokens))
    again.keep("other", 0, [1], np.zeros(1))
    again.load_state_dict(kept.state_dict())
    assert len(again) == len(kept) and again.bytes == kept.bytes
    for name, value in kept.state_dict().items():
        np.testing.assert_array_equal(again.state_dict()[name], value)


def test_damaged_state_changes_nothing() -> None:
    kept = KeptSuccesses()
    kept.keep("a", 0, [1, 2], np.zeros(2))
    state = {**kept.state_dict(), "tokens": np.zeros(1, np.int32)}
    with pytest.raises(ValueError, match="damaged"):
        kept.load_state_dict(state)
    assert kept.find("a", 0) is not None


def test_a_success_needs_a_log_probability_for_each_token() -> None:
    with pytest.raises(ValueError, match="2 tokens and 1 log-probabilities"):
        KeptSuccesses().keep("a", 0, [1, 2], np.zeros(1))
    with pytest.raises(ValueError, match="max_bytes is 0"):
        KeptSuccesses(max_bytes=0)
    with pytest.raises(ValueError, match="max_age is 0"):
        KeptSuccesses(max_age=0)


def test_the_ratio_is_truncated() -> None:
    kept = KeptSuccesses()
    kept.keep("a", 0, [1, 2], np.array([-1.0, -1.0]))
    found = kept.find("a", 0)
    assert found is not None
    assert found.weight(-3.0) == pytest.approx(np.exp(-1))
    assert found.weight(-1.0) == 1.0
    assert found.weight(-1.0, most=2.0) == 2.0


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=25))
def test_the_last_rollout_of_a_failed_group_may_be_replaced(rollouts: list[tuple[int, bool]]) -> None:
    group_PG = np.array([group for group, _ in rollouts], dtype=np.int64)
    successes_PG = np.array([success for _, success in rollouts], dtype=np.bool_)
    last_P = failed_rollouts(group_PG, successes_PG, 5)
    for group in range(5):
        places = np.flatnonzero(group_PG == group)
        failed = places.size >= 2 and not successes_PG[places].any()
        assert last_P[group] == (places[-1] if failed else -1)


@pytest.mark.parametrize(("alpha", "beta"), [(0.4, 0.4), (2.0, 7.0), (9.0, 1.5), (0.3, 3.0)])
def test_values_are_those_of_a_simulation(alpha: float, beta: float) -> None:
    p = np.random.default_rng(0).beta(alpha, beta, 400_000)
    gain, one = p * (1 - p) ** 2, np.array([1.0])
    kept = np.cumsum(kept_success_marginals(alpha * one, beta * one, 12), axis=1)[0]
    stored = np.cumsum(storing_marginals(alpha * one, beta * one, 12, 2.0, 8), axis=1)[0]
    for n in (2, 3, 8):
        for value, sample in ((kept, gain * (1 - p**n)), (stored, 2 * gain * (1 - (1 - p) ** n) * (1 - p) ** 8)):
            assert value[n - 1] == pytest.approx(sample.mean(), abs=6 * sample.std() / np.sqrt(p.size))


@given(st.floats(0.05, 20), st.floats(0.05, 20))
def test_a_kept_success_is_never_worth_less(alpha: float, beta: float) -> None:
    a, b = np.array([alpha]), np.array([beta])
    fresh, kept = (np.cumsum(f(a, b, 32), axis=1)[0] for f in (expected_knapsack_marginals, kept_success_marginals))
    assert (kept >= fresh - 1e-12).all()
    marginals = kept_success_marginals(a, b, 32)[0]
    assert (np.diff(marginals[1:]) <= 1e-12).all()


def test_the_allocator_tells_the_rule_which_prompts_have_one() -> None:
    """A success that is kept changes the plan of its prompt, and only an allocator with a store says so to its rule."""
    kept, told = KeptSuccesses(), []

    def rule(forecast: Forecast, budget: int, low: int, high: int) -> AllocationProblem:
        told.append(None if forecast.kept_P is None else forecast.kept_P.tolist())
        return expected_value(forecast, budget, low, high)

    beliefs = StaticBeliefs(lambda prompt_ids: np.array([0.02, 0.3]))
    ids, allocator = ["hopeless", "middling"], KnapsackAllocator(beliefs, rule, min_count=0, kept=kept)
    before = allocator.plan(ids, 16, 0).counts_P.tolist()
    kept.keep("hopeless", 0, [1], np.zeros(1))
    assert allocator.plan(ids, 16, 1).counts_P.tolist() != before
    KnapsackAllocator(beliefs, rule, min_count=0).plan(ids, 16, 1)
    assert told == [[False, False], [True, False], None]

"""Kept successes: the store, its state, and which rollouts they may replace."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knapsack_rl.allocator import KnapsackAllocator
from knapsack_rl.beliefs.forecast import Forecast
from knapsack_rl.beliefs.static import StaticBeliefs
from knapsack_rl.files import BeliefFileError, State, read_state, write_state
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


def test_a_success_that_comes_back_late_does_not_replace_a_later_one() -> None:
    """Groups of asynchronous runs, and second runs of groups, may come back in any order."""
    kept = KeptSuccesses()
    assert kept.keep("a", 5, [7], np.zeros(1))
    assert not kept.keep("a", 4, [8], np.zeros(1))
    found = kept.find("a", 6)
    assert found is not None and (found.step, found.tokens_T.tolist()) == (5, [7])
    assert kept.keep("a", 5, [9], np.zeros(1))  # of the same step: the last one
    found = kept.find("a", 6)
    assert found is not None and found.tokens_T.tolist() == [9]


def test_stale_ones_are_not_used() -> None:
    kept = KeptSuccesses(max_age=2)
    kept.keep("a", 3, [1], np.array([-1.0]))
    assert kept.find("a", 5) is not None
    assert kept.find("a", 6) is None


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9)), max_size=30),
    st.integers(0, 12),
    st.sampled_from([None, 1, 2.5, 9]),
)
def test_those_that_are_found_are_counted(kept_ones: list[tuple[int, int]], step: int, age: float | None) -> None:
    kept = KeptSuccesses(4000, max_age=age)
    for prompt, then in kept_ones:
        kept.keep(str(prompt), then, [1], np.zeros(1))
    assert kept.count(step) == sum(kept.find(str(prompt), step) is not None for prompt in range(5))
    assert (kept.count(step) == len(kept)) or age is not None


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 80), st.integers(0, 9)), max_size=60))
def test_bytes_are_bounded_and_those_of_the_lowest_steps_leave_first(kept_ones: list[tuple[int, int, int]]) -> None:
    """Against a list in the order of steps; successes come in any order of steps."""
    kept = KeptSuccesses(max_bytes=4000)
    entries: list[tuple[int, str, int]] = []  # step, prompt, and size, the first to leave at the front
    for prompt, tokens, step in kept_ones:
        name = str(prompt)
        came = kept.keep(name, step, np.arange(tokens), np.zeros(tokens))
        if not any(each[1] == name and each[0] > step for each in entries):
            entries = [each for each in entries if each[1] != name]
            entries.append((step, name, 900 + 8 * (tokens + 1) + 1))
            entries.sort(key=lambda each: each[0])
            while sum(each[2] for each in entries) > 4000:
                entries.pop(0)
            assert came == any(each[:2] == (step, name) for each in entries)
        else:
            assert not came
        assert {name for name in "0123456" if name in kept} == {each[1] for each in entries}
        assert kept.bytes == sum(each[2] for each in entries) <= 4000


def test_a_success_that_alone_is_too_large_drops_nothing() -> None:
    kept = KeptSuccesses(max_bytes=2000)
    kept.keep("a", 0, [1], np.zeros(1))
    assert not kept.keep("b", 1, np.arange(300), np.zeros(300))
    assert not kept.keep("b" * 3000, 1, [1], np.zeros(1))
    assert "a" in kept and len(kept) == 1


@pytest.mark.parametrize("letter", ["x", "\u00e9", "\U0001f600"])
def test_long_ids_are_part_of_the_bound(letter: str) -> None:
    """What Python really holds for ids of a user's own stays near the bound."""
    kept = KeptSuccesses(max_bytes=2**20)
    tracemalloc.start()
    try:
        for i in range(300):
            kept.keep(f"{i} " + letter * 18_000, i, [1], np.zeros(1))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 1 < len(kept) < 60
    assert held < 1.25 * 2**20


@given(st.lists(st.tuples(st.text(max_size=3), st.integers(1, 9), st.integers(0, 50)), max_size=20))
def test_state_is_restored(kept_ones: list[tuple[str, int, int]]) -> None:
    kept, again = KeptSuccesses(), KeptSuccesses()
    for prompt, tokens, step in kept_ones:
        kept.keep(prompt, step, np.arange(tokens), -np.ones(tokens))
    again.keep("other", 0, [1], np.zeros(1))
    again.load_state_dict(kept.state_dict())
    assert len(again) == len(kept) and again.bytes == kept.bytes
    assert all(prompt in again for prompt, _, _ in kept_ones)
    for name, value in kept.state_dict().items():
        np.testing.assert_array_equal(again.state_dict()[name], value)


def test_ids_are_saved_as_they_are_and_not_padded(tmp_path: Path) -> None:
    """In a file, as a checkpoint has them: ids that end in NUL, half a surrogate pair, and one that is long."""
    kept, again = KeptSuccesses(), KeptSuccesses()
    ids = ["a", "a\0", "\0", "", "\ud800", "\u4e2d", "x" * 20_000, *map(str, range(2000))]
    for i, prompt_id in enumerate(ids):
        kept.keep(prompt_id, 3, [i], np.zeros(1))
    state = kept.state_dict()
    assert sum(value.nbytes for value in state.values()) < 200_000
    write_state(tmp_path / "state.npz", state)
    again.load_state_dict(read_state(tmp_path / "state.npz"))
    for i, prompt_id in enumerate(ids):
        found = again.find(prompt_id, 3)
        assert found is not None and found.tokens_T.tolist() == [i]


def first_format(kept: KeptSuccesses, ids: list[str]) -> State:
    """State as checkpoints had it at first: ids as an array of text."""
    state = {name: value for name, value in kept.state_dict().items() if not name.startswith("id_")}
    return state | {"ids": np.array(ids, dtype=np.str_)}


@pytest.mark.parametrize("ids", [[], ["a", "\u4e2d\u6587", "long " * 40]])
def test_state_of_the_first_format_is_read(tmp_path: Path, ids: list[str]) -> None:
    kept, again = KeptSuccesses(), KeptSuccesses()
    for i, prompt_id in enumerate(ids):
        kept.keep(prompt_id, i, np.arange(i + 1), -np.ones(i + 1), [1.0, float(i)])
    write_state(tmp_path / "state.npz", first_format(kept, ids))
    again.load_state_dict(read_state(tmp_path / "state.npz"))
    assert again.bytes == kept.bytes
    for name, value in kept.state_dict().items():
        np.testing.assert_array_equal(again.state_dict()[name], value)


@pytest.mark.parametrize(
    "change",
    [
        {"tokens": np.zeros(1, np.int32)},
        {"tokens": np.zeros(3, np.float64)},
        {"log_probs": np.zeros(4, np.float32)},
        {"rewards": np.zeros(3)},
        {"lengths": np.array([3, 0])},
        {"lengths": np.array([4, -1])},
        {"lengths": np.array([1, 1, 1])},
        {"lengths": np.array([2**62, 2**62])},
        {"steps": np.array([1])},
        {"steps": np.array([1.0, 2.0])},
        {"functions": None},
        {"id_bytes": np.frombuffer(b"a\xff", np.uint8)},
        {"id_bytes": np.frombuffer(b"abc", np.uint8)},
        {"id_lengths": np.array([3, -1])},
        {"id_lengths": np.array([2])},
        {"ids": np.array(["a", "b", "c"])},
        {"ids": np.array([["a", "b"]])},
        {"ids": np.array([1, 2])},
        {"ids": None},
    ],
    ids=lambda change: next(iter(change)),
)
def test_damaged_state_changes_nothing(change: State) -> None:
    kept = KeptSuccesses()
    kept.keep("a", 0, [1, 2], np.zeros(2))
    kept.keep("b", 1, [3], np.zeros(1))
    before = kept.state_dict()
    with pytest.raises(BeliefFileError, match=r"damaged|saved array"):
        kept.load_state_dict(before | change)
    assert kept.find("a", 0) is not None
    for name, value in kept.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


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
    """Groups are drawn, a kept success replaces one failure where all failed, and mixed groups are counted.

    The mean over 400,000 drawn groups lies within five of its standard errors, which are below .0005.
    """
    generator, one, size = np.random.default_rng(0), np.array([1.0]), 400_000
    p = generator.beta(alpha, beta, size)
    gain, visits, later = p * (1 - p) ** 2, 2, 8
    kept = np.cumsum(kept_success_marginals(alpha * one, beta * one, 12), axis=1)[0]
    stored = np.cumsum(storing_marginals(alpha * one, beta * one, 12, float(visits), later), axis=1)[0]
    for n in (2, 3, 8):
        successes = generator.binomial(n, p)
        successes += successes == 0  # the kept one takes the place of a failure
        mixed = (successes > 0) & (successes < n)
        # What a success of this group saves: later groups that fail as a whole, and become mixed by it.
        found = generator.binomial(n, p) > 0
        failed = sum((generator.binomial(later, p) == 0).astype(np.int64) for _ in range(visits))
        for value, sample in ((kept, gain * mixed), (stored, gain * found * failed)):
            error = sample.std() / np.sqrt(size)
            assert error < 5e-4
            assert value[n - 1] == pytest.approx(sample.mean(), abs=5 * error)


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

"""HORA: the hit utility in numbers, its exact maximisation, and the two rounds of a step."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knapsack_arena.published.hora import Hora, hit_marginals, most_hits
from knapsack_rl.notation import FloatArray
from scripted import Script, asked, trained


def utility(failures: int, attempts: int, stop: int) -> FloatArray:
    return np.cumsum(hit_marginals(np.array([failures]), np.array([attempts]), stop)[0])


def test_utility_by_hand() -> None:
    # Beta(1, 1): one rollout hits with 1/2, two with 1 - E[(1-p)^2] = 2/3, three with 3/4.
    assert utility(0, 0, 3) == pytest.approx([1 / 2, 2 / 3, 3 / 4])
    # Four failures: Beta(1, 5). 1 - 5/6, 1 - 5/6 * 6/7.
    assert utility(4, 4, 2) == pytest.approx([1 / 6, 2 / 7])
    # Two of four: Beta(3, 3). 1 - 3/6, 1 - 3/6 * 4/7.
    assert utility(2, 4, 2) == pytest.approx([1 / 2, 5 / 7])


@given(st.integers(0, 6), st.integers(0, 6), st.integers(1, 8))
def test_utility_is_the_expectation_under_the_posterior(successes: int, failures: int, k: int) -> None:
    p = (np.arange(20_000) + 0.5) / 20_000
    density = p**successes * (1 - p) ** failures
    expected = 1 - ((1 - p) ** k * density).sum() / density.sum()
    assert utility(failures, successes + failures, k)[-1] == pytest.approx(expected, abs=1e-6)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=3), st.integers(0, 8))
def test_the_division_is_the_best_of_all(pilots: list[tuple[int, int]], budget: int) -> None:
    failures = np.array([f for f, _ in pilots])
    attempts = failures + np.array([s for _, s in pilots])
    most = 5
    counts = most_hits(failures, attempts, budget, most)
    spent = min(budget, most * len(pilots))
    assert counts.sum() == spent
    values = [np.concatenate([[0], utility(f, m, most)]) for f, m in zip(failures, attempts, strict=True)]
    best = max(
        sum(value[n] for value, n in zip(values, each, strict=True))
        for each in itertools.product(range(most + 1), repeat=len(pilots))
        if sum(each) == spent
    )
    assert sum(value[n] for value, n in zip(values, counts, strict=True)) == pytest.approx(best)


def test_a_step_is_a_pilot_and_the_rest_to_the_likeliest_hits() -> None:
    world = Script({"none": "0", "some": "1100" + "0", "all": "1"})
    result = world.run_step(Hora(), groups=3, budget=24)  # n = 8: a pilot of 4, and 12 to divide
    first, second = asked(result)
    assert first == {"none": 4, "some": 4, "all": 4}
    expected = most_hits(np.array([4, 2, 0]), np.array([4, 4, 4]), 12, 124)
    assert second == dict(zip(("none", "some", "all"), expected.tolist(), strict=True))
    # dearest first: all 5/6; some 1/2, 3/14; none 1/6; all and none 5/42; some 3/28 ... and none falls slowest
    assert second["none"] > second["some"] > second["all"]
    assert result.rollouts == 24
    assert {prompt_id: len(rows) for prompt_id, rows in trained(result).items()} == {
        prompt_id: 4 + second[prompt_id] for prompt_id in first
    }
    rates = dict(zip(result.rounds[1][0].prompt_ids, result.rounds[1][0].success_rates_P, strict=True))  # type: ignore[arg-type]
    assert rates == pytest.approx({"none": 1 / 6, "some": 3 / 6, "all": 5 / 6})


def test_ties_are_shared_before_anyone_gets_a_second() -> None:
    assert most_hits(np.array([2, 2, 2]), np.array([4, 4, 4]), 4, 10).tolist() == [2, 1, 1]


def test_limits_leave_budget_unspent_and_small_budgets_one_round() -> None:
    capped = Script(dict.fromkeys("ab", "10")).run_step(Hora(max_count=5), groups=2, budget=16)
    assert asked(capped) == [{"a": 4, "b": 4}, {"a": 1, "b": 1}]
    small = Script(dict.fromkeys("ab", "10")).run_step(Hora(), groups=2, budget=4)
    assert asked(small) == [{"a": 2, "b": 2}]


def test_a_pilot_that_never_comes_leaves_the_prior() -> None:
    world = Script({"a": "1", "b": "0000"}, short=["a"])
    first, second = asked(world.run_step(Hora(), groups=2, budget=16))
    assert first == {"a": 4, "b": 4}
    # unknown: 1/2, 1/6, 1/12, ...; four failures: 1/6, 5/42, 5/56, ...
    assert second == dict(zip("ab", most_hits(np.array([0, 4]), np.array([0, 4]), 8, 124).tolist(), strict=True))


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="pilot is 1"):
        Hora(pilot=1)
    with pytest.raises(ValueError, match="max_count is 3"):
        Hora(pilot=4, max_count=3)
    with pytest.raises(ValueError, match="16 rollouts do not cover a pilot of 9"):
        Script(dict.fromkeys("ab", "10")).run_step(Hora(pilot=9), groups=2, budget=16)

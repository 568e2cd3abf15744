"""Advantages of uneven groups against a reference that anybody can read."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from knapsack_rl.trl.advantages import grpo_advantages

nan = float("nan")


def reference(groups: list[list[float]], scale: str) -> list[float]:
    """One weighted reward per rollout; textbook statistics, group by group."""
    everything = [r for group in groups for r in group if not math.isnan(r)]
    advantages = []
    for group in groups:
        answered = [r for r in group if not math.isnan(r)]
        mean = statistics.fmean(answered) if answered else nan
        values = {"group": answered, "batch": everything}.get(scale)
        for reward in group:
            if math.isnan(reward):
                advantages.append(0.0)
            elif values is None:
                advantages.append(reward - mean)
            elif len(values) < 2:  # no standard deviation of one value: no signal
                advantages.append(0.0)
            else:
                advantages.append((reward - mean) / (statistics.stdev(values) + 1e-4))
    return advantages


def ours(groups: list[list[float]], scale: str) -> list[float]:
    rows = torch.tensor([[r] for group in groups for r in group], dtype=torch.float32)
    counts = np.array([len(group) for group in groups])
    return grpo_advantages(rows, torch.ones(1), counts, scale).advantages_PG.tolist()


rewards = st.sampled_from([0.0, 1.0, 0.25, -1.0, nan])
uneven_groups = st.lists(
    st.one_of(st.just([]), st.lists(rewards, min_size=2, max_size=9)), min_size=1, max_size=7
).filter(any)


@settings(max_examples=200, deadline=None)
@given(groups=uneven_groups, scale=st.sampled_from(["group", "batch", "none"]))
def test_against_the_reference(groups: list[list[float]], scale: str) -> None:
    np.testing.assert_allclose(ours(groups, scale), reference(groups, scale), rtol=2e-4, atol=2e-5)


def test_groups_of_two_five_and_three() -> None:
    got = ours([[1, 0], [], [1, 0, 0, 0, 0], [1, 1, 1]], "group")
    expected = [0.7071, -0.7071, 1.7889, -0.4472, -0.4472, -0.4472, -0.4472, 0, 0, 0]
    np.testing.assert_allclose(got, expected, atol=1e-3)


def test_normalize_then_sum_weighs_each_function_after_normalizing_it() -> None:
    per_func = torch.tensor([[1.0, 10.0], [0.0, 30.0], [1.0, 20.0], [0.0, 10.0], [0.0, 40.0]])
    got = grpo_advantages(per_func, torch.tensor([1.0, 2.0]), np.array([2, 3]), aggregation="normalize_then_sum")
    total = []
    for rows in ([0, 1], [2, 3, 4]):
        columns = [[float(per_func[i, k]) for i in rows] for k in (0, 1)]
        z = [[(x - statistics.fmean(c)) / (statistics.stdev(c) + 1e-4) for x in c] for c in columns]
        total += [a + 2 * b for a, b in zip(*z, strict=True)]
    expected = [(t - statistics.fmean(total)) / (statistics.stdev(total) + 1e-4) for t in total]
    np.testing.assert_allclose(got.advantages_PG.numpy(), expected, rtol=1e-4)
    np.testing.assert_allclose(got.rewards_PG.numpy(), [21, 60, 41, 20, 80])


def test_share_of_dead_groups_counts_groups_not_rollouts() -> None:
    rows = torch.tensor([[1.0], [0.0], *[[0.0]] * 8])
    got = grpo_advantages(rows, torch.ones(1), np.array([2, 8]))
    assert got.frac_reward_zero_std == pytest.approx(0.5)


def test_a_function_that_does_not_apply_leaves_the_others() -> None:
    per_func = torch.tensor([[1.0, nan], [nan, 1.0], [nan, nan], [0.0, 0.0]])
    got = grpo_advantages(per_func, torch.tensor([1.0, 0.5]), np.array([4]), "none")
    np.testing.assert_allclose(got.rewards_PG.numpy(), [1.0, 0.5, nan, 0.0])
    np.testing.assert_allclose(got.advantages_PG.numpy(), [0.5, 0.0, 0.0, -0.5])

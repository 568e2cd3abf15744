"""Compute GRPO's advantages of uneven groups with TRL's own tensor operations.

TRL reshapes rewards to ``(-1, num_generations)``. Here the groups of each size are reshaped together and go through the
same tensor operations, so that equal groups give TRL's result to the bit. Without torch, use `knapsack_rl.advantages`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from trl.trainer.utils import nanstd

from knapsack_rl.notation import IntArray

# What TRL adds to standard deviations before dividing.
EPSILON = 1e-4


class Advantages(NamedTuple):
    """Advantages of all rollouts, and a metric that TRL logs.

    Attributes:
        rewards_PG: weighted reward of each rollout, NaN where no reward function applied, ``[PG]``.
        advantages_PG: advantage of each rollout, 0 where there is no reward, ``[PG]``.
        frac_reward_zero_std: share of the groups whose rewards are all equal.
    """

    rewards_PG: torch.Tensor
    advantages_PG: torch.Tensor
    frac_reward_zero_std: float


def grpo_advantages(
    rewards_per_func: torch.Tensor,
    reward_weights: torch.Tensor,
    counts_P: IntArray,
    scale_rewards: str = "group",
    aggregation: str = "sum_then_normalize",
) -> Advantages:
    """Compute GRPO advantages of groups that may differ in size.

    Args:
        rewards_per_func: rewards of all rollouts, group after group, ``[PG, functions]``; NaN where a function did not
            apply.
        reward_weights: weights of the functions, ``[functions]``.
        counts_P: rollouts per group, ``[P]``; zeros are skipped.
        scale_rewards: standard deviation to divide by: ``"group"``, ``"batch"`` or ``"none"``.
        aggregation: TRL's ``multi_objective_aggregation``.
    """
    unscorable = torch.isnan(rewards_per_func).all(dim=1)
    rewards = _weighted(rewards_per_func, reward_weights, unscorable)
    if aggregation == "normalize_then_sum":
        per_func = torch.empty_like(rewards_per_func)
        for rows, grouped in _groups_by_size(rewards_per_func, counts_P):
            mean, std = torch.nanmean(grouped, dim=1, keepdim=True), nanstd(grouped, dim=1, keepdim=True)
            per_func[rows] = ((grouped - mean) / (std + EPSILON)).view(-1, per_func.shape[1])
        summed = _weighted(per_func, reward_weights, unscorable)
        std = nanstd(summed).expand_as(summed)
        advantages = (summed - torch.nanmean(summed)) / (std + EPSILON)
        return Advantages(rewards, torch.nan_to_num(advantages, nan=0.0), _share_zero(std))
    means, stds, zero = torch.empty_like(rewards), torch.empty_like(rewards), []
    for rows, grouped in _groups_by_size(rewards, counts_P):
        size = grouped.shape[1]
        std_of_group = nanstd(grouped, dim=1)
        means[rows] = torch.nanmean(grouped, dim=1).repeat_interleave(size, dim=0)
        stds[rows] = std_of_group.repeat_interleave(size, dim=0)
        zero.append(std_of_group)
    if scale_rewards == "batch":
        stds = nanstd(rewards).expand_as(rewards)
        zero = [stds]
    advantages = rewards - means
    if scale_rewards != "none":
        advantages = advantages / (stds + EPSILON)
    return Advantages(rewards, torch.nan_to_num(advantages, nan=0.0), _share_zero(torch.cat(zero)))


def _weighted(per_func: torch.Tensor, weights: torch.Tensor, unscorable: torch.Tensor) -> torch.Tensor:
    """Weighted sums over functions, ``[PG]``; NaN for the rows in ``unscorable``."""
    rewards = (per_func * weights.to(per_func.device).unsqueeze(0)).nansum(dim=1)
    rewards[unscorable] = torch.nan
    return rewards


def _groups_by_size(rows_PG: torch.Tensor, counts_P: IntArray) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the groups of each size: their row numbers, and their rows as ``[groups, size, ...]``."""
    counts = torch.from_numpy(counts_P.copy())
    starts = torch.cumsum(counts, 0) - counts
    for size in sorted(set(counts.tolist()) - {0}):
        first = starts[counts == size]
        rows = (first[:, None] + torch.arange(size)).reshape(-1).to(rows_PG.device)
        yield rows, rows_PG[rows].view(len(first), size, *rows_PG.shape[1:])


def _share_zero(stds: torch.Tensor) -> float:
    """Share of standard deviations that are 0, with TRL's tolerance."""
    return float(torch.isclose(stds, torch.zeros_like(stds)).float().mean().item())

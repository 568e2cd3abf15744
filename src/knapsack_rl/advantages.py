"""Statistics of groups that may differ in size: means, deviations, GRPO's advantages, weights of prompts.

Their one home. The TRL adapter computes the same with TRL's own tensor operations, where equality to the bit with stock
TRL needs that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from knapsack_rl.notation import FloatArray, IntArray

# What TRL adds to a deviation before dividing by it.
EPSILON = 1e-4


class GroupStatistics(NamedTuple):
    """Statistics of the rewards of each group; rewards that are NaN (no answer) do not count.

    Attributes:
        answers_P: rewards that count, ``[P]``.
        mean_P: their mean; 0 where there are none, ``[P]``.
        deviation_P: their sample standard deviation (n - 1); 0 where there are fewer than two, ``[P]``.
    """

    answers_P: IntArray
    mean_P: FloatArray
    deviation_P: FloatArray


def group_statistics(group_PG: IntArray, rewards_PG: FloatArray, groups: int) -> GroupStatistics:
    """Mean and deviation of the rewards of each group.

    Args:
        group_PG: group of each rollout, from 0, ``[PG]``.
        rewards_PG: rewards, ``[PG]``; NaN where there was no answer.
        groups: number of groups P; those without rollouts count.
    """
    answered_PG = ~np.isnan(rewards_PG)
    answers_P = np.bincount(group_PG[answered_PG], minlength=groups).astype(np.int64)
    rewards = np.where(answered_PG, rewards_PG, 0.0)
    mean_P = np.bincount(group_PG, rewards, groups) / np.maximum(answers_P, 1)
    squares_PG = np.where(answered_PG, rewards - mean_P[group_PG], 0.0) ** 2
    deviation_P = np.sqrt(np.bincount(group_PG, squares_PG, groups) / np.maximum(answers_P - 1, 1))
    return GroupStatistics(answers_P, mean_P, deviation_P)


def prompt_weights(counts_P: IntArray) -> FloatArray:
    """Factor for the advantages of each prompt's rollouts under which all prompts weigh the same in the loss; ``[P]``.

    Losses that weigh every rollout (or token) alike weigh a group of N_i as N_i; mean(N) / N_i undoes that. For equal
    groups every factor is exactly 1; prompts without rollouts have 0, and do not count in the mean.
    """
    weights_P, there_P = np.zeros(counts_P.size), counts_P > 0
    if there_P.any():
        weights_P[there_P] = counts_P[there_P].mean() / counts_P[there_P]
    return weights_P


def group_advantages(
    group_PG: Sequence[int] | Sequence[str] | IntArray,
    rewards_PG: Sequence[float] | FloatArray,
    scale: Literal["group", "batch", "none"] = "group",
    weighting: Literal["rollout", "prompt"] = "rollout",
    epsilon: float = EPSILON,
) -> FloatArray:
    """GRPO's advantages where groups differ in size, (r - mean of the group) / (deviation + epsilon).

    Args:
        group_PG: group of each rollout, in any order: numbers or prompt ids, ``[PG]``.
        rewards_PG: rewards, ``[PG]``; NaN where there was no answer.
        scale: what to divide by: the deviation of the group (GRPO, arXiv 2402.03300), of the whole batch, or nothing
            (Dr. GRPO, arXiv 2503.20783).
        weighting: ``prompt`` multiplies by `prompt_weights`, so that every prompt weighs the same in the loss.
        epsilon: added to a deviation before dividing by it; by default that of TRL.

    Returns:
        Advantages ``[PG]``; 0 where there is no reward, and in groups whose rewards are all equal.

    Raises:
        ValueError: sequences of different lengths, or an unknown scale or weighting.
    """
    rewards = np.asarray(rewards_PG, dtype=np.float64)
    labels = np.asarray(group_PG)
    if rewards.ndim != 1 or labels.shape != rewards.shape:
        raise ValueError(f"rewards of shape {rewards.shape} came with groups of shape {labels.shape}: both are flat")
    if scale not in ("group", "batch", "none") or weighting not in ("rollout", "prompt"):
        raise ValueError(f"scale={scale!r}, weighting={weighting!r}: use group, batch or none; rollout or prompt")
    _, group, counts_P = np.unique(labels, return_inverse=True, return_counts=True)
    found = group_statistics(group, rewards, counts_P.size)
    advantages = np.nan_to_num(rewards - found.mean_P[group], nan=0.0)
    if scale == "group":
        advantages = advantages / (found.deviation_P[group] + epsilon)
    elif scale == "batch":
        whole = group_statistics(np.zeros_like(group), rewards, 1)
        advantages = advantages / (whole.deviation_P[0] + epsilon)
    return advantages * prompt_weights(counts_P)[group] if weighting == "prompt" else advantages

"""Compute the metrics of a step from its plan and its outcomes.

Shares of *prompts* and shares of *rollouts* have different names. The share of mixed prompts counts prompts with a
gradient; the share of mixed rollouts also rises when rollouts move to prompts of medium difficulty.

A prompt with a planned count of 0 has no group and is left out of all shares of prompts. A group without any answer
counts in the denominator and is neither mixed nor solved nor unsolved. A share with denominator 0 is NaN.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from knapsack_rl.notation import BoolArray, FloatArray, IntArray
from knapsack_rl.outcomes import Outcomes
from knapsack_rl.plan import Plan

MAX_TEXT = 2000  # characters
# Numbers that are computed at once, to bound memory.
_CELLS = 1 << 20

STATUSES = ("extremely hard", "hard", "medium", "easy", "extremely easy")


def step_metrics(plan: Plan, outcomes: Outcomes) -> dict[str, float]:
    """Compute the metrics that a trainer logs for one step.

    Args:
        plan: plan of the step.
        outcomes: outcomes of the plan's prompts in the plan's order, with 0 rows for groups without a rollout.

    Returns:
        A mapping with these keys:

        - frac_prompts_mixed: share of groups whose rewards differ (groups with a gradient).
        - frac_rollouts_mixed: share of the finished rollouts that are in such groups.
        - frac_reward_zero_std: share of groups whose answers all have the same reward; TRL's name, counted by prompt.
        - frac_solved_all, frac_solved_none, frac_solved_some: share of groups in which all, none and some answers
          reached the success threshold.
        - zero_gradient_rollouts: number of finished rollouts in groups without a gradient.
        - count_min, count_mean, count_max: planned group sizes, without the prompts that were left out.
        - price: value of the last rollout selected (the paper's lambda).
        - predicted_mixed: mean predicted probability that a group holds successes and failures. The observed
          counterpart is ``frac_solved_some``, which equals ``frac_prompts_mixed`` if rewards are binary.
        - brier_mixed: Brier score of that prediction, the mean squared difference from the outcome (0 or 1); 0 is best,
          and the constant forecast s = ``frac_solved_some`` scores s * (1 - s). Groups without a forecast or an answer
          are left out of both.
        - frac_unseen: share of groups whose prompt had never been observed.
        - candidates, refused: number of prompts offered to the plan, and number of those with a count of 0.

    Raises:
        ValueError: outcomes of other prompts than the plan's, or in another order.
    """
    if outcomes.prompt_ids != plan.prompt_ids:
        raise ValueError("the outcomes must list the plan's prompts in the plan's order (0 rows where none came back)")
    planned_P = plan.counts_P > 0
    answered_P = planned_P & (outcomes.attempts_P > 0)
    mixed_P = planned_P & outcomes.mixed_P
    some_P, all_P, none_P = _solved(outcomes, answered_P)
    counts = plan.counts_P[planned_P]
    rows_P = outcomes.counts_P
    predicted_P = mixed_probability(plan.success_rates_P, plan.pseudo_count_P, outcomes.attempts_P)[answered_P]
    return {
        "frac_prompts_mixed": mean(mixed_P[planned_P]),
        "frac_rollouts_mixed": share(rows_P[mixed_P].sum(), rows_P.sum()),
        "frac_reward_zero_std": mean((answered_P & ~mixed_P)[planned_P]),
        "frac_solved_all": mean(all_P[planned_P]),
        "frac_solved_none": mean(none_P[planned_P]),
        "frac_solved_some": mean(some_P[planned_P]),
        "zero_gradient_rollouts": float(rows_P[~mixed_P].sum()),
        "count_min": float(counts.min()) if counts.size else float("nan"),
        "count_mean": mean(counts),
        "count_max": float(counts.max()) if counts.size else float("nan"),
        "price": float(plan.price),
        "predicted_mixed": mean(predicted_P),
        "brier_mixed": mean((predicted_P - some_P[answered_P]) ** 2),
        "frac_unseen": mean(~plan.seen_P[planned_P]),
        "candidates": float(planned_P.size),
        "refused": float(np.count_nonzero(~planned_P)),
    }


def mixed_probability(success_rates_P: FloatArray, pseudo_count_P: FloatArray, counts_P: IntArray) -> FloatArray:
    """Compute the probability that a group of n rollouts holds both successes and failures, under Beta(a, b) beliefs.

    ``1 - M(n,0) - M(0,n)``, where ``M(n,0) = prod_{k<n} (a+k) / (a+b+k)`` is the probability that all n succeed. With
    p = a / s and the pseudo-count s = a+b, each factor is ``(p + k/s) / (1 + k/s)``; for an infinite pseudo-count (a
    point estimate) it is p, so that the same formula gives ``1 - p^n - (1-p)^n``.

    Args:
        success_rates_P: mean p of the belief, ``[P]``, in [0, 1]; NaN gives NaN.
        pseudo_count_P: its evidence s in rollouts, ``[P]``; may be infinite. 0 means no belief and gives NaN.
        counts_P: rollouts n of the group, ``[P]``; the probability is 0 for 0 and 1.

    Returns:
        Probabilities ``[P]``.
    """
    p = np.asarray(success_rates_P, dtype=np.float64)
    pseudo_count = np.asarray(pseudo_count_P, dtype=np.float64)
    per_rollout = 1.0 / np.where(pseudo_count > 0, pseudo_count, np.nan)
    all_succeed, all_fail = np.ones_like(p), np.ones_like(p)
    most = int(counts_P.max(initial=0))
    block = max(_CELLS // max(p.size, 1), 1)
    for start in range(0, most, block):
        some = np.flatnonzero(counts_P > start)
        k = np.arange(start, min(start + block, most))[:, np.newaxis]
        weight = k * per_rollout[some]
        drawn = k < counts_P[some]
        for product, rate in ((all_succeed, p), (all_fail, 1 - p)):
            factors = np.where(drawn, (rate[some] + weight) / (1 + weight), 1.0)
            product[some] = np.concatenate([product[np.newaxis, some], factors]).prod(axis=0)
    # The clip removes rounding errors, and gives 0 for n = 0, where both products are 1.
    probability = np.clip(1.0 - all_succeed - all_fail, 0.0, 1.0)
    return np.where(pseudo_count > 0, probability, np.nan)


def status(rates_P: FloatArray) -> IntArray:
    """Classify success rates: index into ``STATUSES`` by 0; (0, .2]; (.2, .8); [.8, 1); 1. NaN gives -1; ``[P]``."""
    p = np.asarray(rates_P, dtype=np.float64)
    levels = (p > 0).astype(np.int64) + (p > 0.2) + (p >= 0.8) + (p >= 1)
    return np.where(np.isnan(p), -1, levels)


def transition_matrix(before_P: FloatArray, after_P: FloatArray) -> IntArray:
    """Count the prompts that changed from one status (row) to another (column), ``[5, 5]``.

    Args:
        before_P, after_P: success rates of the same prompts, ``[P]``; prompts with NaN in either are left out.
    """
    rows, columns = status(before_P), status(after_P)
    known = (rows >= 0) & (columns >= 0)
    matrix = np.zeros((len(STATUSES), len(STATUSES)), dtype=np.int64)
    np.add.at(matrix, (rows[known], columns[known]), 1)
    return matrix


def as_text(messages: Any) -> str:
    """Convert a prompt or completion to text: a string unchanged, a chat as role and content, at most `MAX_TEXT`."""
    if isinstance(messages, list) and all(isinstance(message, Mapping) for message in messages):
        messages = "\n".join(f"{message.get('role')}: {message.get('content')}" for message in messages)
    return str(messages)[:MAX_TEXT]


def best_and_worst(rewards: Sequence[float] | FloatArray) -> list[int]:
    """Positions of the highest and the lowest reward, one position if they are the same; NaN counts as lowest."""
    known = np.nan_to_num(rewards, nan=-np.inf)
    return list(dict.fromkeys((int(known.argmax()), int(known.argmin()))))


def _solved(outcomes: Outcomes, answered_P: BoolArray) -> tuple[BoolArray, BoolArray, BoolArray]:
    """Masks of the groups with some, all and no successes among their answers, each ``[P]``."""
    all_P = answered_P & (outcomes.successes_P == outcomes.attempts_P)
    none_P = answered_P & (outcomes.successes_P == 0)
    return answered_P & ~all_P & ~none_P, all_P, none_P


def mean(array: FloatArray | IntArray | BoolArray) -> float:
    """The mean of the values that are not NaN; NaN if there are none."""
    values = np.asarray(array, dtype=np.float64)
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float("nan")


def share(part: float, whole: float) -> float:
    """``part / whole``; NaN if ``whole`` is 0."""
    return float(part / whole) if whole else float("nan")

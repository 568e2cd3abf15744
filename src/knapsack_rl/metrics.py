"""Measures of a step: pure functions of its plan and its outcomes.

A share of *prompts* and a share of *rollouts* never go under one name. The second rises mechanically when rollouts move
to prompts of middling difficulty; the first says how many prompts taught anything.

A prompt that was planned 0 rollouts has no group and is left out of every share of prompts. A group that came back
without a single answer counts in the denominator and is neither mixed nor solved nor unsolved. A share of nothing is
NaN.
"""

from __future__ import annotations

import numpy as np

from knapsack_rl.notation import BoolArray, FloatArray, IntArray
from knapsack_rl.outcomes import Outcomes
from knapsack_rl.plan import Plan

STATUSES = ("extremely hard", "hard", "medium", "easy", "extremely easy")


def step_metrics(plan: Plan, outcomes: Outcomes) -> dict[str, float]:
    """The numbers a trainer logs for one step.

    Keys:
        frac_prompts_mixed: share of groups whose rewards differ, so that they carry a gradient.
        frac_rollouts_mixed: share of the rollouts that came back that lie in such groups.
        frac_reward_zero_std: share of groups with answers that are all equal, by prompt, as TRL names it.
        frac_solved_all, frac_solved_none, frac_solved_some: share of groups by success (reward reached the threshold).
        rollouts_dead: rollouts that came back in groups without a gradient.
        count_min, count_mean, count_max: planned group sizes, prompts left out not counted.
        price: value of the last rollout bought.
        predicted_mixed: mean predicted probability that a group holds successes and failures. Its observed counterpart
            is ``frac_solved_some``, which equals ``frac_prompts_mixed`` where rewards are binary.
        brier_mixed: mean squared difference between that probability and what happened; 0 is best, and a forecast that
            always says the share itself scores share * (1 - share). Groups without a forecast are left out of both.
        frac_unseen: share of groups whose prompt had never been observed.
        candidates, refused: prompts that the plan could choose from, and how many of them it gave nothing.

    Raises:
        ValueError: outcomes of other prompts than the plan's.
    """
    if outcomes.prompt_ids != plan.prompt_ids:
        raise ValueError("the outcomes must list the plan's prompts in the plan's order (0 rows where none came back)")
    planned_P = plan.counts_P > 0
    answered_P = planned_P & (outcomes.attempts_P > 0)
    mixed_P = planned_P & outcomes.mixed_P
    some_P, all_P, none_P = _solved(outcomes, answered_P)
    counts = plan.counts_P[planned_P]
    rows_P = outcomes.counts_P
    predicted_P = mixed_probability(plan.success_rates_P, plan.strength_P, outcomes.attempts_P)[answered_P]
    return {
        "frac_prompts_mixed": _mean(mixed_P[planned_P]),
        "frac_rollouts_mixed": _share(rows_P[mixed_P].sum(), rows_P.sum()),
        "frac_reward_zero_std": _mean((answered_P & ~mixed_P)[planned_P]),
        "frac_solved_all": _mean(all_P[planned_P]),
        "frac_solved_none": _mean(none_P[planned_P]),
        "frac_solved_some": _mean(some_P[planned_P]),
        "rollouts_dead": float(rows_P[~mixed_P].sum()),
        "count_min": float(counts.min()) if counts.size else float("nan"),
        "count_mean": _mean(counts),
        "count_max": float(counts.max()) if counts.size else float("nan"),
        "price": float(plan.price),
        "predicted_mixed": _mean(predicted_P),
        "brier_mixed": _mean((predicted_P - some_P[answered_P]) ** 2),
        "frac_unseen": _mean(~plan.seen_P[planned_P]),
        "candidates": float(planned_P.size),
        "refused": float(np.count_nonzero(~planned_P)),
    }


def mixed_probability(success_rates_P: FloatArray, strength_P: FloatArray, counts_P: IntArray) -> FloatArray:
    """Chance that a group of n rollouts holds both successes and failures, under a Beta belief.

    ``1 - M(n,0) - M(0,n)``, with ``M(n,0) = prod_{k<n} (a+k) / (a+b+k)`` the chance that all n succeed. Divided by the
    strength a+b, each factor is ``(p + k/s) / (1 + k/s)``, which is p for a point estimate (infinite strength), so that
    the same line gives ``1 - p^n - (1-p)^n``.

    Args:
        success_rates_P: mean of the belief, ``[P]``, in [0, 1]; NaN gives NaN.
        strength_P: its evidence a+b in rollouts, ``[P]``; may be infinite. 0 is no belief at all and gives NaN.
        counts_P: rollouts of the group, ``[P]``; 0 and 1 are never mixed.

    Returns:
        Probabilities ``[P]``.
    """
    p = np.asarray(success_rates_P, dtype=np.float64)
    strength = np.asarray(strength_P, dtype=np.float64)
    per_rollout = 1.0 / np.where(strength > 0, strength, np.nan)
    all_succeed, all_fail = np.ones_like(p), np.ones_like(p)
    for k in range(int(counts_P.max(initial=0))):
        weight = k * per_rollout
        drawn = k < counts_P
        all_succeed = np.where(drawn, all_succeed * (p + weight) / (1 + weight), all_succeed)
        all_fail = np.where(drawn, all_fail * (1 - p + weight) / (1 + weight), all_fail)
    # Without a draw both products are 1: the clip turns 1 - 1 - 1 into "never mixed", and rounding noise into 0.
    chance = np.clip(1.0 - all_succeed - all_fail, 0.0, 1.0)
    return np.where(strength > 0, chance, np.nan)


def status(rates_P: FloatArray) -> IntArray:
    """Index into ``STATUSES`` of each success rate: 0; (0, .2]; (.2, .8); [.8, 1); 1. NaN gives -1."""
    p = np.asarray(rates_P, dtype=np.float64)
    levels = (p > 0).astype(np.int64) + (p > 0.2) + (p >= 0.8) + (p >= 1)
    return np.where(np.isnan(p), -1, levels)


def transition_matrix(before_P: FloatArray, after_P: FloatArray) -> IntArray:
    """How many prompts went from status (row) to status (column), ``[5, 5]``.

    Args:
        before_P, after_P: success rates of the same prompts, ``[P]``. A prompt with NaN in either is left out.
    """
    rows, columns = status(before_P), status(after_P)
    known = (rows >= 0) & (columns >= 0)
    matrix = np.zeros((len(STATUSES), len(STATUSES)), dtype=np.int64)
    np.add.at(matrix, (rows[known], columns[known]), 1)
    return matrix


def _solved(outcomes: Outcomes, answered_P: BoolArray) -> tuple[BoolArray, BoolArray, BoolArray]:
    """Groups with some, all and no successes among their answers, each ``[P]``."""
    all_P = answered_P & (outcomes.successes_P == outcomes.attempts_P)
    none_P = answered_P & (outcomes.successes_P == 0)
    return answered_P & ~all_P & ~none_P, all_P, none_P


def _mean(array: FloatArray | IntArray | BoolArray) -> float:
    """The mean of what is known; NaN of nothing, without numpy's warning."""
    values = np.asarray(array, dtype=np.float64)
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float("nan")


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole else float("nan")

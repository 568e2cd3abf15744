"""Limits on each prompt's count: the paper's special cases as data, so that the solver has none.

The authors treat four kinds of prompts apart (their ``sampling_budget_by_knapsack``; section 5 of the paper's code):
those never seen get an equal share, those never or always solved get the minimum, and what the mixed ones do not need
goes to the never solved. Here each rule is a lower and an upper limit, equal where the rule leaves no choice.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from knapsack_rl.notation import BoolArray, FloatArray, IntArray

CONFIDENCE = 0.9


def same_limits(prompts: int, low: int, high: int) -> tuple[IntArray, IntArray]:
    """The same limits for every prompt."""
    return np.full(prompts, low, dtype=np.int64), np.full(prompts, high, dtype=np.int64)


def overdue(prompt_ids: Sequence[str], idle_P: IntArray, max_idle: float, most: int) -> BoolArray:
    """Which prompts have waited too long: the longest idle ones beyond ``max_idle`` steps, at most ``most``; ``[P]``.

    Always the longest idle come first, so a prompt that waits is only ever passed by those that have waited at least as
    long, and each of these only once: nobody waits for ever (docs/beliefs.md has the bound). An id that occurs twice
    counts once.
    """
    chosen_P = np.zeros(idle_P.size, dtype=bool)
    waiting = np.flatnonzero(idle_P > max_idle)
    by_age = waiting[np.argsort(-idle_P[waiting], kind="stable")].tolist()
    first: dict[str, int] = {}
    for i in by_age:
        first.setdefault(prompt_ids[i], i)
    chosen_P[list(first.values())[:most]] = True
    return chosen_P


def equal_counts(prompts: int, budget: int) -> IntArray:
    """The budget in equal parts; what does not divide goes to the first prompts, one each. ``[P]``.

    Raises:
        ValueError: no prompts, or a budget that would leave a group of one.
    """
    if prompts == 0:
        raise ValueError("there are no prompts to plan for: pass at least one")
    counts = np.full(prompts, budget // prompts, dtype=np.int64)
    counts[: budget % prompts] += 1
    if (counts == 1).any():
        raise ValueError(f"{budget} rollouts for {prompts} prompts leave groups of one: give at least {2 * prompts}")
    return counts


def rollouts_for_confidence(success_rates_P: FloatArray, confidence: float = CONFIDENCE) -> FloatArray:
    """Rollouts after which a group is mixed with this probability (paper, Theorem 1, part 2); ``[P]``.

    N = ln(1 - confidence) / ln(max(p, 1-p)), infinite at p = 0 and p = 1.
    """
    rarer_P: FloatArray = np.minimum(success_rates_P, 1 - success_rates_P)
    with np.errstate(divide="ignore"):  # log1p: 1 - p would round to 1 for a rate of 1e-20
        rollouts_P: FloatArray = np.log(1 - confidence) / np.log1p(-rarer_P)
    return rollouts_P


def paper_limits(
    success_rates_P: FloatArray, seen_P: BoolArray, budget: int, low: int, high: int
) -> tuple[IntArray, IntArray]:
    """The authors' rules as limits, with their defects repaired (docs/beliefs.md lists them).

    Args:
        success_rates_P: estimates, ``[P]``; ignored where not seen.
        seen_P: whether there is an estimate, ``[P]``.
        budget: rollouts of the step.
        low, high: least and most rollouts of a prompt.

    Returns:
        ``low_P, high_P``: equal for every prompt that is not mixed, ``low..high`` for the mixed ones.

    Raises:
        ValueError: ``low`` below 2 (the rule leaves no prompt out), or a budget that would leave a group of one.
    """
    if low < 2:
        raise ValueError(f"the paper's rule gives every prompt a group: its least count must be at least 2, not {low}")
    mixed = seen_P & (success_rates_P > 0) & (success_rates_P < 1)
    unsolved = seen_P & (success_rates_P == 0)
    counts = np.where(seen_P, low, np.clip(equal_counts(seen_P.size, budget), low, high))
    extra = budget - int(counts.sum())
    need = np.minimum(rollouts_for_confidence(success_rates_P[mixed]), high).astype(np.int64).sum()
    surplus = max(extra - int(need), 0)
    receivers = unsolved if unsolved.any() else ~mixed
    surplus -= _spread(counts, receivers, surplus, high)
    # What the unsolved had no room for goes back to the mixed, and beyond their limits to everybody else.
    room = int(mixed.sum()) * (high - low)
    _spread(counts, ~mixed, budget - int(counts.sum()) - room, high)
    return counts, np.where(mixed, high, counts)


def _spread(counts: IntArray, receivers: BoolArray, amount: int, high: int) -> int:
    """Raise the receivers' counts, in place and as evenly as the limit allows; returns what could be given."""
    given = 0
    while amount > given and (open_ := np.flatnonzero(receivers & (counts < high))).size:
        share = max((amount - given) // open_.size, 1)
        open_ = open_[: amount - given]
        more = np.minimum(share, high - counts[open_])
        counts[open_] += more
        given += int(more.sum())
    return given

"""Explain a plan as an aligned table: belief, value and limits of each prompt."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from knapsack_rl.allocate.decide import Decision
from knapsack_rl.console.text import printable
from knapsack_rl.metrics import STATUSES, mean, mixed_probability, status
from knapsack_rl.notation import FloatArray, IntArray
from knapsack_rl.plan import Plan
from knapsack_rl.report.tables import percent

# Numbers of the value table computed at once, to bound memory.
_CELLS = 1 << 20
_LONGEST_ID = 40


def explanation(decision: Decision, rule: str, rows: int) -> str:
    """The first ``rows`` prompts of the plan, the price, and a summary by status of the belief, as text.

    Values are in thousandths of the paper's Value(n, p).
    """
    plan = decision.plan
    size = len(plan.prompt_ids)
    shown = np.arange(min(rows, size))
    value_P, last_P, next_P = _values(decision, np.arange(size))
    lines = _table(
        ("prompt", "belief p", "evidence", "count", "value", "last", "next", "held by"),
        [
            (
                _cut(printable(plan.prompt_ids[i])),
                f"{plan.success_rates_P[i]:.3f}",
                "exact"
                if np.isinf(plan.pseudo_count_P[i])
                else f"{plan.pseudo_count_P[i]:g}"
                if plan.seen_P[i]
                else "unseen",
                str(plan.counts_P[i]),
                *(_thousandths(value) for value in (value_P[i], last_P[i], next_P[i])),
                _held_by(plan, int(i)),
            )
            for i in shown
        ],
    )
    if size > shown.size:
        lines.append(f"... and {size - shown.size:,} more prompts (--rows {size} shows all)")
    price = f"price (value of the last rollout bought): {1000 * plan.price:.4g}"
    if rule == "uniform":
        price = "uniform counts do not depend on values, so there is no price"
    lines += ["", f"value, last, next and price in thousandths; {price}"]
    lines += ["`last` is the value of the last rollout of the prompt, `next` that of one more", ""]
    return "\n".join([*lines, *_summary(plan, value_P)]) + "\n"


def _values(decision: Decision, rows: IntArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Value of the planned count, of its last rollout, and of the next one; each ``[len(rows)]``.

    The rollouts of the smallest group are one item for the solver: each counts the same share of its value.
    """
    counts_R = decision.plan.counts_P[rows]
    value, last, next_ = np.zeros((3, rows.size))
    order = np.argsort(counts_R)  # rows of similar counts share a table
    start = 0
    while start < rows.size:
        stop = start + 1
        while stop < rows.size and (stop + 1 - start) * (counts_R[order[stop]] + 2) <= _CELLS:
            stop += 1
        some = order[start:stop]
        counts = counts_R[some]
        smallest = decision.min_group
        marginals = decision.marginals(rows[some], max(int(counts.max()) + 2, smallest))
        marginals[:, :smallest] = marginals[:, :smallest].mean(axis=1, keepdims=True)
        at = np.arange(some.size)
        values = np.concatenate([np.zeros((some.size, 1)), np.cumsum(marginals, axis=1)], axis=1)
        value[some], next_[some] = values[at, counts], marginals[at, counts]
        last[some] = np.where(counts > 0, marginals[at, np.maximum(counts - 1, 0)], np.nan)
        start = stop
    return value, last, next_


def _held_by(plan: Plan, i: int) -> str:
    """The limit that the count equals, if any: ``low N``, ``high N``, or ``rule`` where both limits are equal."""
    low, high, count = plan.low_P[i], plan.high_P[i], plan.counts_P[i]
    if low == high:
        return "rule"
    return f"low {low}" if count == low else f"high {high}" if count == high else ""


def _summary(plan: Plan, value_P: FloatArray) -> list[str]:
    """Counts by status of the belief, with prompts never seen as a status of their own."""
    names = (*STATUSES, "unseen")
    status_P = np.where(plan.seen_P, status(plan.success_rates_P), len(STATUSES))
    mixed_P = mixed_probability(plan.success_rates_P, plan.pseudo_count_P, plan.counts_P)
    free_P = plan.low_P < plan.high_P
    at_low = free_P & (plan.counts_P == plan.low_P)
    at_high = free_P & (plan.counts_P == plan.high_P)
    groups = [(name, status_P == k) for k, name in enumerate(names)]
    every_prompt = ("all", np.ones(len(plan.prompt_ids), dtype=bool))
    rows = [
        (
            name,
            f"{of.sum():,}",
            f"{plan.counts_P[of].sum():,}",
            f"{plan.counts_P[of].mean():.1f}",
            percent(mean(mixed_P[of])),
            _thousandths(float(value_P[of].sum())),
            f"{(of & at_low).sum():,}",
            f"{(of & at_high).sum():,}",
        )
        for name, of in [*groups, every_prompt]
        if of.any()
    ]
    return _table(("status", "prompts", "rollouts", "mean", "mixed (expected)", "value", "at low", "at high"), rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Align cells in columns: the first to the left, the others to the right."""
    widths = [max(len(row[k]) for row in (header, *rows)) for k in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    return [
        "  ".join(
            cell.ljust(width) if k == 0 else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]


def _thousandths(value: float) -> str:
    return "-" if np.isnan(value) else f"{1000 * value:,.3f}"


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_ID else f"{text[: _LONGEST_ID - 3]}..."

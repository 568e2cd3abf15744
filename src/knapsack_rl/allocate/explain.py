"""Explain a plan as an aligned table: belief, value and limits of each prompt."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from knapsack_rl.allocate.decide import Decision
from knapsack_rl.metrics import STATUSES, mean, mixed_probability, status
from knapsack_rl.notation import FloatArray, IntArray
from knapsack_rl.plan import Plan
from knapsack_rl.report.runs import drawable
from knapsack_rl.report.tables import percent

# Rows of the value table computed at once, to bound memory.
_CHUNK = 4096


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
                drawable(plan.prompt_ids[i]),
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

    The first two rollouts are one item for the solver: each counts half of Value(2).
    """
    parts = []
    for start in range(0, rows.size, _CHUNK):
        some = rows[start : start + _CHUNK]
        counts = decision.plan.counts_P[some]
        marginals = decision.marginals(some, int(counts.max(initial=0)) + 2)
        marginals[:, :2] = marginals[:, 1:2] / 2
        at = np.arange(some.size)
        values = np.concatenate([np.zeros((some.size, 1)), np.cumsum(marginals, axis=1)], axis=1)
        last = np.where(counts > 0, marginals[at, np.maximum(counts - 1, 0)], np.nan)
        parts.append((values[at, counts], last, marginals[at, counts]))
    value, last, next_ = (np.concatenate(column) for column in zip(*parts, strict=True))
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
    held = [_held_by(plan, i).partition(" ")[0] for i in range(len(plan.prompt_ids))]
    at_low, at_high = (np.array([word == limit for word in held], dtype=bool) for limit in ("low", "high"))
    groups = [(name, status_P == k) for k, name in enumerate(names)]
    every_prompt = ("all", np.ones(len(held), dtype=bool))
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

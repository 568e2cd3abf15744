"""The table of the tuning campaign: each rule at the common setting and at the best one that was tried."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Final

from benchmarks.campaign import DIVISORS, LEARNING_RATES, RULES, TUNING_SEEDS, Line, area, best, deciding, with_setting

MARKS: Final = ("<!-- tuning -->", "<!-- /tuning -->")
GRID: Final = len(DIVISORS) * len(LEARNING_RATES)


def tuning_tables(lines: Sequence[Line]) -> str:
    """One Markdown table for each regime; areas and ends in points, means over the runs that decide."""
    parts = []
    for regime in dict.fromkeys(line["regime"] for line in lines if "/" not in line["regime"]):
        rows = list(_rows(lines, regime))
        if rows:
            parts += [f"*{regime}*\n", _HEADER, *rows, ""]
    return "\n".join(parts)


_HEADER: Final = (
    "| rule | tried | area, common setting | best setting tried | area | held-out at the end | runs |\n"
    "| --- | ---: | ---: | --- | ---: | ---: | ---: |"
)


def _rows(lines: Sequence[Line], regime: str) -> Iterator[str]:
    by_name: dict[str, list[Line]] = defaultdict(list)
    for line in lines:
        if line["regime"] == regime and line["seed"] in TUNING_SEEDS:
            by_name[line["rule"]].append(line)
    for rule in RULES:
        names = [with_setting(rule, rate, divisor) for divisor, rate in product(DIVISORS, LEARNING_RATES)]
        tried = [name for name in names if name in by_name]
        if not tried:
            continue
        name = best(lines, rule, regime)
        common = _mean([area(line) for line in by_name[rule]]) if rule in by_name else "-"
        setting = name.removeprefix(rule).replace("@", " ").strip() or "common"
        decided = deciding(lines, rule, regime)[name]
        end = _mean([line["held_out_p"][-1] for line in decided])
        yield (
            f"| `{rule}` | {len(tried)} of {GRID} | {common} | {setting} |"
            f" {_mean([area(line) for line in decided])} | {end} | {len(decided)} |"
        )


def _mean(values: Sequence[float]) -> str:
    return f"{100 * sum(values) / len(values):.1f}"

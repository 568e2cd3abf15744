"""The study on SmolLM2-135M-Instruct: which trials, where its prompts start, and its tables in the docs.

python -m benchmarks.campaign smollm2     # the trials, which can be cut off and continued anywhere
python -m benchmarks.campaign table       # its tables in docs/lab.md and docs/paper.md, among others
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.arena_tables import ahead, table
from benchmarks.campaign import RESULTS, TUNING_SEEDS, Job, Line, best_or_named, with_setting
from benchmarks.evidence_tables import cost_to, measure, target_of
from knapsack_arena.compare.ranking import estimate

MARKS: Final = ("<!-- smollm2 -->", "<!-- /smollm2 -->")
REGIME: Final = "smollm2"
LINES: Final = RESULTS / "smollm2.jsonl"
# Equal division, the published rule, and the default of the TRL adapter.
RULES: Final = ("uniform", "paper", "calibrated-pool@prompt")
# Factors on the regime's; the best is chosen on the tuning seed, the first one.
RATES: Final = (1.0, 0.5)
SEEDS: Final = (0, 1)
START_OF: Final = {"train": "training prompts", "heldout": "held-out prompts"}


def jobs(rules: Sequence[str] = RULES, seeds: Sequence[int] = SEEDS) -> list[Job]:
    """Every rule at every learning rate, seed after seed."""
    return [Job(with_setting(rule, rate, 1), REGIME, seed) for seed in seeds for rate in RATES for rule in rules]


def start_file(lines: Path) -> Path:
    """Where the success rates of the base model are, beside the lines of a study."""
    return lines.with_name(f"{lines.stem}-start.json")


def write_start(path: Path) -> None:
    """Write the exact success rates of all prompts under the base model, by part and by family and level."""
    from knapsack_arena.lab.environment import LanguageModelEnvironment
    from knapsack_arena.lab.trials import find_regime

    environment = LanguageModelEnvironment(find_regime(REGIME), 0)
    rates = {"train": environment.success_rates(), "heldout": environment.held_out_rates()}
    found: dict[str, dict[str, list[float]]] = {part: {} for part in rates}
    for part, rates_P in rates.items():
        for item, rate in zip(getattr(environment.regime, part), rates_P.tolist(), strict=True):
            found[part].setdefault(item.source, []).append(round(rate, 4))
    path.write_text(json.dumps(found, sort_keys=True), encoding="utf-8")


def section(lines: Sequence[Line], start: Path) -> str:
    """Where prompts start, and the table of rules: differences from uniform at its best learning rate, seed by seed."""
    parts = [_start(json.loads(start.read_text(encoding="utf-8")))] if start.exists() else []
    heads = (
        "rule", "learning rate", "runs", "area", "ahead of uniform", "end", "ahead of uniform", "budget to its end",
        "rollouts in mixed groups", "mixed groups", "time in the library", "of it looks",
    )  # fmt: skip
    rows = list(_rows(lines))
    return "\n\n".join([*parts, *([table(heads, rows)] if rows else [])])


def claims(lines: Sequence[Line]) -> str:
    """The paper's claims beside these runs: each rule at its best learning rate, means over seeds."""
    rules = [rule for rule in RULES if _runs(lines, _best(lines, rule))]
    if RULES[0] not in rules:
        return "No run has ended yet."
    ours = {rule: _runs(lines, _best(lines, rule)) for rule in rules}
    zero = ours[RULES[0]]

    def cells(values: dict[str, str]) -> list[str]:
        return [values[rule] for rule in rules]

    def shares(name: str) -> dict[str, str]:
        return {rule: f"{100 * _mean_of(list(runs.values()), name):.0f} %" for rule, runs in ours.items()}

    ends, budgets = {}, {}
    for rule, runs in ours.items():
        both = [seed for seed in runs if seed in zero]
        level = np.mean([measure(line).end for line in runs.values()])
        gain = _points([measure(runs[seed]).end - measure(zero[seed]).end for seed in both])
        ends[rule] = f"{level:.1f}" if rule == RULES[0] else f"{level:.1f} ({gain})"
        needed = [cost_to(runs[seed], target_of(zero[seed])) for seed in both]
        budgets[rule] = ", ".join("never" if each is None else f"{each:.2f}" for each in needed)
    body = [
        ["rollouts in groups with a gradient", *cells(shares("mixed_rollouts"))],
        ["groups with a gradient", *cells(shares("mixed_prompts"))],
        ["held-out success rate at the end, points", *cells(ends)],
        ["share of the rollouts after which uniform's end is reached, by seed", *cells(budgets)],
        ["runs", *(str(len(runs)) for runs in ours.values())],
    ]
    return table(("SmolLM2-135M, short answers", *(f"`{rule}`" for rule in rules)), body)


def _rows(lines: Sequence[Line]) -> Iterator[list[str]]:
    zero = _runs(lines, _best(lines, RULES[0]))
    for rule in RULES:
        for rate in RATES:
            name = with_setting(rule, rate, 1)
            runs = _runs(lines, name)
            if not runs:
                continue
            both = [seed for seed in runs if seed in zero]
            measured = {seed: measure(line) for seed, line in runs.items()}
            level = {seed: measure(zero[seed]) for seed in both}
            compared = bool(both) and name != _best(lines, RULES[0])
            needed = [cost_to(runs[seed], target_of(zero[seed])) for seed in both]
            found = list(runs.values())
            yield [
                f"`{rule}`", f"{rate:g}" + (" (best)" if name == _best(lines, rule) else ""), str(len(runs)),
                f"{np.mean([each.area for each in measured.values()]):.1f}",
                _points([measured[seed].area - level[seed].area for seed in both]) if compared else "-",
                f"{np.mean([each.end for each in measured.values()]):.1f}",
                _points([measured[seed].end - level[seed].end for seed in both]) if compared else "-",
                ", ".join("never" if each is None else f"{each:.2f}" for each in needed) if compared else "-",
                f"{100 * _mean_of(found, 'mixed_rollouts'):.0f} %", f"{100 * _mean_of(found, 'mixed_prompts'):.0f} %",
                f"{100 * np.mean([line['overhead'][-1] for line in found]):.1f} %",
                f"{100 * np.mean([line['prefill'][-1] for line in found]):.1f} %",
            ]  # fmt: skip


def _start(start: dict[str, dict[str, list[float]]]) -> str:
    """The spread of success rates at the start, and the means of families and levels."""
    texts = []
    for part, name in START_OF.items():
        rates_P = np.concatenate([np.array(rates) for rates in start[part].values()])
        between = ((rates_P >= 0.05) & (rates_P <= 0.95)).mean()
        texts.append(
            f"{len(rates_P)} {name}: mean {100 * rates_P.mean():.1f} %, {100 * (rates_P < 0.05).mean():.0f} % of them"
            f" below .05 ({100 * (rates_P < 0.01).mean():.0f} % below .01), {100 * between:.0f} % between .05 and .95,"
            f" {100 * (rates_P > 0.95).mean():.0f} % above."
        )
    means = ", ".join(f"{source} {100 * np.mean(rates):.0f} %" for source, rates in sorted(start["heldout"].items()))
    return " ".join(["At the start,", " ".join(texts), f"Means of the held-out prompts by family and level: {means}."])


def _best(lines: Sequence[Line], rule: str) -> str:
    names = [with_setting(rule, rate, 1) for rate in RATES]
    first = [line for line in lines if line["rule"] in names and line["seed"] in TUNING_SEEDS]
    return best_or_named(first, rule, REGIME)


def _runs(lines: Sequence[Line], name: str) -> dict[int, Line]:
    """The runs of a rule with its options, by seed."""
    return {line["seed"]: line for line in lines if line["rule"] == name and line["regime"] == REGIME}


def _mean_of(lines: Sequence[Line], name: str) -> float:
    """Mean over runs of a share along them."""
    return float(np.mean([np.nanmean(line[name]) for line in lines]))


def _points(differences: Sequence[float]) -> str:
    """The mean of differences in points; with two runs or more, its interval."""
    return ahead(estimate(np.array(differences) / 100))

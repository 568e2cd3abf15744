"""The tables of docs/lab.md: rollouts saved, the oracle's lead, and each regime by all measures."""

from __future__ import annotations

import numpy as np

from benchmarks.arena_tables import ahead, table
from benchmarks.measure import machine
from knapsack_arena.compare.experiment import Experiment
from knapsack_arena.compare.ranking import Estimate, estimate
from knapsack_arena.compare.results import Results
from knapsack_arena.compare.trials import BASELINE
from knapsack_arena.lab.tables import COLUMNS, EVERYWHERE, figures, leads, rollouts_to_uniform
from knapsack_rl.notation import FloatArray

IN_POINTS = ("area", "end", "harder half", "ever solved")
BELIEFS = {"belief_error": "squared error of the drawn", "brier": "Brier score", "log_score": "log score"}
SHARES = {"mixed_prompts": "prompts mixed", "zero_gradient_rollouts": "zero-gradient rollouts",
          "overhead": "time in the rule", "prefill": "of it prefill"}  # fmt: skip


def generated(results: Results, experiment: Experiment) -> str:
    """The generated part of the page."""
    seeds = f"{len(results.seeds)} seeds ({results.seeds[0]} to {results.seeds[-1]})"
    settings = "; ".join(f"*{name}*: {sizes}" for name, sizes in experiment.described.items())
    parts = [
        f"{settings}. {seeds}. {machine()}.",
        f"### Rollouts until uniform's end\n\n{saved(results)}",
    ]
    if results.scoring.oracle in results.rules:
        parts.append(f"### Share of the oracle's lead\n\n{lead(results)}")
    for regime in results.presets:
        parts += [f"### {regime}", reached(results, regime), beliefs_and_costs(results, regime)]
    return "\n\n".join(parts)


def saved(results: Results) -> str:
    """Share of uniform's rollouts after which each rule reaches uniform's end, and the number of runs that reach it."""
    shares, known = rollouts_to_uniform(results), ~np.isnan(results.share_to_uniform)
    runs = ~np.isnan(results.end(results.scoring.measure))

    def row(r: int) -> list[str]:
        cells = [_share(estimate(each)) for each in (shares[r].mean(axis=0), *shares[r])]
        return [f"`{results.rules[r]}`", *cells, f"{known[r].sum()} of {runs[r].sum()}"]

    order = np.argsort(shares.mean(axis=(1, 2)), kind="stable")
    return table(("rule", EVERYWHERE, *results.presets, "runs that reach it"), (row(int(r)) for r in order))


def lead(results: Results) -> str:
    """How much of the oracle's lead over uniform each rule has, by area."""
    rows = [[f"`{rule}`", *(_share(share) for share in shares)] for rule, shares in leads(results)]
    return table(("rule", *results.presets, EVERYWHERE), rows)


def reached(results: Results, regime: str) -> str:
    """Measures of each rule: points ahead of uniform for success rates, else levels."""
    rows = []
    for rule, row in figures(results, regime):
        cells = []
        for column, figure in zip(COLUMNS, row, strict=True):
            if np.isnan(figure.level):
                cells.append("-")
            elif column.title in IN_POINTS:
                cells.append(f"{100 * figure.level:.2f}" if figure.ahead is None else ahead(figure.ahead))
            else:
                cells.append(f"{figure.level:.3f}{ {1: ' ▲', -1: ' ▼', 0: ''}[figure.better] }")
        rows.append([f"`{rule}`", *cells])
    return table(("rule", *(column.title for column in COLUMNS)), rows)


def beliefs_and_costs(results: Results, regime: str) -> str:
    """Scores of beliefs, and shares of rollouts and time: means over the run and over seeds."""
    p = results.presets.index(regime)

    def mean(name: str, r: int) -> float:
        return estimate(results.mean_over_run(name)[r, p]).mean if name in results.curves else float("nan")

    def row(r: int) -> list[str]:
        steps, end = results.end("steps")[r, p], results.end
        return [
            f"`{results.rules[r]}`",
            *(_number(mean(name, r), 3) for name in BELIEFS),
            *(_percent(mean(name, r)) for name in SHARES),
            _number(float(np.nanmean(end("rounds")[r, p] / steps)), 2),
            _number(float(np.nanmean(end("tokens")[r, p] / end("tokens")[results.rules.index(BASELINE), p])), 3),
            _number(_last(results, "forgotten", r, p), 3),
        ]

    heads = ("rule", *BELIEFS.values(), *SHARES.values(), "rounds a step", "tokens (uniform: 1)", "forgotten")
    return table(heads, (row(r) for r in range(len(results.rules))))


def _last(results: Results, name: str, r: int, p: int) -> float:
    found: FloatArray = results.end(name)[r, p] if name in results.curves else np.array([np.nan])
    return estimate(found).mean


def _share(figure: Estimate | None) -> str:
    if figure is None or np.isnan(figure.mean):
        return "-"
    return f"{figure.mean:.2f}" + ("" if np.isnan(figure.half) else f" ± {figure.half:.2f}")


def _number(value: float, digits: int) -> str:
    return "-" if np.isnan(value) else f"{value:.{digits}f}"


def _percent(value: float) -> str:
    return "-" if np.isnan(value) else f"{100 * value:.1f} %"

"""The page of an experiment: one file that needs no network; its charts are drawn by its own small script."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl

from knapsack_arena.compare.experiment import Experiment
from knapsack_arena.compare.metrics import COUNT_EDGES, RATE_EDGES, WINDOWS
from knapsack_arena.compare.ranking import ALL, Estimate, RankedRule, estimate, is_oracle, rank
from knapsack_arena.compare.results import SPENT, Results
from knapsack_arena.compare.trials import BASELINE
from knapsack_arena.compare.workers import TrialEvent
from knapsack_rl import __version__
from knapsack_rl.metrics import STATUSES
from knapsack_rl.notation import FloatArray
from knapsack_rl.report.html import fill, write_page

# Every second point of the grid: finer than a pixel would be a larger page and the same picture.
_THIN: Final = slice(None, None, 2)
_NOT_DRAWN: Final = ("brier", "seconds", *SPENT)


def write_comparison(results: Results, experiment: Experiment, failures: Sequence[TrialEvent], out: Path) -> Path:
    """Write the page, all or nothing; all text is escaped.

    Returns:
        ``out``.
    """
    ranking = rank(results)
    page = fill(
        Path(__file__).with_name("page.html.j2"),
        data=payload(results),
        verdict=verdict(ranking, experiment),
        ranking=ranking,
        names=(ALL, *results.presets),
        baseline=BASELINE,
        shown=shown,
        costs=_costs(results, ranking),
        failures=failures,
        experiment=experiment,
        labels=experiment.labels,
        version=__version__,
    )
    return write_page(page, out)


def verdict(ranking: Sequence[RankedRule], experiment: Experiment) -> str:
    """Which rules are ahead of uniform over all presets, in one or two sentences."""
    what, measure = f"After the same {experiment.budget}", experiment.labels.measure
    finished = [ranked for ranked in ranking if ranked.rule != BASELINE and ranked.complete]
    rules = [ranked for ranked in finished if not is_oracle(ranked.rule)]
    if not rules:
        return "No rule besides uniform and the oracles finished all trials."
    best = rules[0]
    ahead = sum(ranked.ahead[ALL].sign > 0 for ranked in rules)
    behind = sum(ranked.ahead[ALL].sign < 0 for ranked in rules)
    if len(experiment.seeds) < 2:
        return f"{what}, {best.rule} ends at the highest {measure}; one seed gives no interval."
    text = f"{what}, {ahead} of {len(rules)} rules end ahead of uniform and {behind} behind it, by {measure}"
    text = f"{text}. Furthest ahead is {best.rule}: {shown(best.ahead[ALL])} over all {experiment.labels.preset}s."
    if len(finished) == len(rules):
        return text
    return f"{text} Oracles, which are given the true rates, are not counted."


def shown(figure: Estimate, signed: bool = True) -> str:
    """``+0.0412 ±0.0031``; a dash for an unknown mean."""
    if np.isnan(figure.mean):
        return "-"
    mean = f"{figure.mean:+.4f}" if signed else f"{figure.mean:.4f}"
    return mean if np.isnan(figure.half) else f"{mean} ±{figure.half:.4f}"


def _millions(tokens: float) -> str:
    return f"{tokens / 1e6:,.0f} M" if tokens >= 9.995e6 else f"{tokens / 1e6:.2f} M"


def _costs(results: Results, ranking: Sequence[RankedRule]) -> list[dict[str, str]]:
    """What each rule spent, on average over presets and seeds, and when it reached uniform's final value."""
    found = []
    for rule in (ranked.rule for ranked in ranking):
        r = results.rules.index(rule)
        spent = {name: float(np.nanmean(results.end(name)[r])) for name in ("steps", "rollouts", "tokens", "rounds")}
        shares = results.share_to_uniform[r][~np.isnan(results.end(results.scoring.measure)[r])]
        reached = shares[~np.isnan(shares)]
        found.append({
            "rule": rule,
            "steps": f"{spent['steps']:,.0f}",
            "rollouts": f"{spent['rollouts']:,.0f}",
            "tokens": _millions(spent['tokens']),
            "rounds/step": f"{spent['rounds'] / spent['steps']:.2f}",
            "ms/step in the rule": f"{1000 * float(np.nanmean(results.end('seconds')[r])) / spent['steps']:.1f}",
            "budget to uniform's end": f"{100 * reached.mean():.0f} %" if reached.size else "-",
            "runs that reach it": f"{reached.size} of {shares.size}",
        })  # fmt: skip
    return found


def payload(results: Results) -> dict[str, Any]:
    """The data of the page's script, rounded; the last preset is the mean (or, of counts, the sum) over all."""
    baseline = results.rules.index(BASELINE)
    return {
        "rules": list(results.rules),
        "presets": [*results.presets, ALL],
        "seeds": len(results.seeds),
        "measure": results.scoring.measure,
        "oracle": results.scoring.oracle,
        "curves": {
            name: _curves(results.curves[name], results.curves[name][baseline])
            for name in results.curves
            if name not in _NOT_DRAWN
        },
        "spent": {name: _spent(results.curves[name]) for name in ("rollouts", "tokens", "rounds")},
        "ahead": {name: _ahead(results, measure) for name, measure in _measures(results).items()},
        "regret": None if results.regret is None else _estimates(results.regret),
        "regret_curves": _regret_curves(results),
        "rate_edges": RATE_EDGES.tolist(),
        "count_edges": COUNT_EDGES.tolist(),
        "allocation": _allocation(results),
        "reliability": _reliability(results),
        "statuses": list(STATUSES),
        "transitions": _tables(results, "transition", (5, 5), lambda rows: (_ints(rows["x"]), _ints(rows["y"]))),
        "best": [ranked.rule for ranked in rank(results)],
        "oracles": [rule for rule in results.rules if is_oracle(rule)],
    }


def _measures(results: Results) -> dict[str, FloatArray]:
    names = ("mean_p", "held_out_p", "hard_quarter_p", "hard_half_p", "coverage", "mixed_groups")
    ends = {name: results.end(name) for name in names if name in results.curves}
    return {results.scoring.measure: ends.pop(results.scoring.measure), "area": results.area, **ends}


def _with_all(values: FloatArray) -> FloatArray:
    """``[R, P, S, ...]`` with the mean over presets as one more preset."""
    return np.concatenate([values, values.mean(axis=1, keepdims=True)], axis=1)


def _curves(values: FloatArray, reference: FloatArray | float = 0.0) -> list[list[Any]]:
    """Mean and half interval of each rule and preset: ``[R][P + 1] -> [means, halves]``, null where there is none.

    The interval is of the difference from ``reference`` on the same seed: seeds differ by their populations, far more
    than rules differ, and a band of that would hide the rules' differences.
    """
    means = np.round(_with_all(values)[..., _THIN].mean(axis=2), 4)
    halves = np.round(_halves(_with_all(values - reference)[..., _THIN]), 4)
    return [[[_plain(means[r, p]), _plain(halves[r, p])] for p in range(means.shape[1])] for r in range(means.shape[0])]


def _halves(values: FloatArray) -> FloatArray:
    """Half the 95 % interval over the third axis, ``[R, P, S, G] -> [R, P, G]``."""
    flat = np.moveaxis(values, 2, -1).reshape(-1, values.shape[2])
    halves = np.array([estimate(each).half if not np.isnan(each).any() else np.nan for each in flat])
    return halves.reshape(values.shape[0], values.shape[1], values.shape[3])


def _spent(values: FloatArray) -> list[list[Any]]:
    means = np.round(_with_all(values)[..., _THIN].mean(axis=2))
    return [[_plain(row) for row in rule] for rule in means]


def _regret_curves(results: Results) -> list[list[Any]] | None:
    if results.regret is None:
        return None
    curves = results.curves[results.scoring.measure]
    return _curves(curves[results.rules.index(results.scoring.oracle)] - curves)


def _ahead(results: Results, measure: FloatArray) -> list[list[Any]]:
    """``[R][P + 1] -> [mean, half, level]`` of how far a measure ends ahead of uniform."""
    by_rule = {ranked.rule: ranked for ranked in rank(results, measure)}
    names = (*results.presets, ALL)
    return [
        [[*_pair(by_rule[rule].ahead[name]), _number(by_rule[rule].level[name].mean)] for name in names]
        for rule in results.rules
    ]


def _estimates(values: FloatArray) -> list[list[Any]]:
    return [[_pair(estimate(seeds)) for seeds in rule] for rule in _with_all(values)]


def _allocation(results: Results) -> list[dict[str, Any]]:
    """By window, groups and rollouts by true rate and count, ``[R][P + 1] -> [rates][counts]``."""
    shape = (RATE_EDGES.size - 1, COUNT_EDGES.size - 1)

    def place(rows: pl.DataFrame) -> tuple[Any, Any]:
        return np.searchsorted(RATE_EDGES, rows["x"].to_numpy()), np.searchsorted(COUNT_EDGES, rows["y"].to_numpy())

    windows = []
    for window in WINDOWS:
        part = pl.col("point") == window
        groups, rollouts = (
            _tables(results, name, shape, place, part) for name in ("allocation", "allocation_rollouts")
        )
        windows.append({
            "groups": groups,
            "rollouts": [[np.sum(table, axis=1).tolist() for table in rule] for rule in rollouts],
        })  # fmt: skip
    return windows


def _reliability(results: Results) -> list[list[Any]]:
    """``[R][P + 1] -> [[expected, true, groups], ...]``, one for each tenth of expected success that occurred."""

    def place(rows: pl.DataFrame) -> tuple[Any, ...]:
        return (np.round(rows["x"].to_numpy() * 10).astype(int),)

    parts = [_tables(results, f"reliability_{name}", (10,), place) for name in ("expected", "true", "groups")]
    found: list[list[Any]] = []
    for rule in zip(*parts, strict=True):
        found.append([])
        for expected, true, groups in zip(*rule, strict=True):
            bins = zip(expected, true, groups, strict=True)
            found[-1].append([[round(e / g, 4), round(t / g, 4), g] for e, t, g in bins if g])
    return found


def _tables(
    results: Results, metric: str, shape: tuple[int, ...], place: Any, part: pl.Expr | bool = True
) -> list[list[Any]]:
    """Sums over seeds of a metric in bins, ``[R][P + 1]``, the last being the sum over presets."""
    tables = np.zeros((len(results.rules), len(results.presets) + 1, *shape))
    rows = results.frame.filter(pl.col("metric") == metric, part)
    for key, trial in rows.partition_by("rule", "preset", as_dict=True).items():
        r, p = results.rules.index(key[0]), results.presets.index(key[1])
        np.add.at(tables[r, p], place(trial), trial["value"].to_numpy())
    tables[:, -1] = tables.sum(axis=1)
    rounded: list[list[Any]] = np.round(tables, 3).tolist() if metric.endswith(("expected", "true")) else (
        tables.astype(int).tolist()
    )  # fmt: skip
    return rounded


def _ints(column: pl.Series) -> Any:
    return column.to_numpy().astype(int)


def _pair(figure: Estimate) -> list[float | None]:
    return [_number(figure.mean), _number(figure.half)]


def _number(value: float) -> float | None:
    """Rounded to five digits; null for NaN, which JSON lacks."""
    return None if np.isnan(value) else round(float(value), 5)


def _plain(values: FloatArray | Sequence[float]) -> list[float | None] | None:
    """A list with null for NaN; null if all are NaN."""
    array = np.asarray(values, dtype=np.float64)
    if np.isnan(array).all():
        return None
    return [None if np.isnan(value) else int(value) if value.is_integer() else value for value in array.tolist()]

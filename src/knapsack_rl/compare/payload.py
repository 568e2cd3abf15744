"""What the page draws, as plain lists: every number rounded to what can be seen, every list along rules and presets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import polars as pl

from knapsack_rl.compare.cells import BASELINE
from knapsack_rl.compare.meter import COUNT_EDGES, RATE_EDGES, WINDOWS
from knapsack_rl.compare.ranking import ALL, Estimate, estimate, is_told, rank
from knapsack_rl.compare.results import SPENT, Results
from knapsack_rl.metrics import STATUSES
from knapsack_rl.notation import FloatArray

# Every second point of the grid: finer than a pixel would be a larger page and the same picture.
_THIN: Final = slice(None, None, 2)
_NOT_DRAWN: Final = ("brier", "seconds", *SPENT)


def payload(results: Results) -> dict[str, Any]:
    """All that the page's script needs; the last preset is the mean (or, of counts, the sum) over all."""
    baseline = results.rules.index(BASELINE)
    return {
        "rules": list(results.rules),
        "presets": [*results.presets, ALL],
        "seeds": len(results.seeds),
        "measure": results.measure,
        "oracle": results.oracle,
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
        "best": [standing.rule for standing in rank(results)],
        "told": [rule for rule in results.rules if is_told(rule)],
    }


def _measures(results: Results) -> dict[str, FloatArray]:
    names = ("mean_p", "held_out_p", "hard_quarter_p", "hard_half_p", "coverage", "mixed_groups")
    ends = {name: results.end(name) for name in names if name in results.curves}
    return {results.measure: ends.pop(results.measure), "area": results.area, **ends}


def _with_all(values: FloatArray) -> FloatArray:
    """``[R, P, S, ...]`` with the mean over presets as one more preset."""
    return np.concatenate([values, values.mean(axis=1, keepdims=True)], axis=1)


def _curves(values: FloatArray, beside: FloatArray | float = 0.0) -> list[list[Any]]:
    """Mean and half interval of each rule and preset: ``[R][P + 1] -> [means, halves]``, null where there is none.

    The interval is of the difference from ``beside`` on the same seed: seeds differ by the population they make, far
    more than rules do, and a band of that would hide what the page is about.
    """
    means = np.round(_with_all(values)[..., _THIN].mean(axis=2), 4)
    halves = np.round(_halves(_with_all(values - beside)[..., _THIN]), 4)
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
    curves = results.curves[results.measure]
    return _curves(curves[results.rules.index(results.oracle)] - curves)


def _ahead(results: Results, measure: FloatArray) -> list[list[Any]]:
    """``[R][P + 1] -> [mean, half, level]`` of how far a measure ends ahead of uniform."""
    by_rule = {standing.rule: standing for standing in rank(results, measure)}
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
    for key, cell in rows.partition_by("rule", "preset", as_dict=True).items():
        r, p = results.rules.index(key[0]), results.presets.index(key[1])
        np.add.at(tables[r, p], place(cell), cell["value"].to_numpy())
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
    """Rounded, and null for NaN, which JSON does not know."""
    return None if np.isnan(value) else round(float(value), 5)


def _plain(values: FloatArray | Sequence[float]) -> list[float | None] | None:
    """A list with null for NaN; null for nothing but NaN."""
    array = np.asarray(values, dtype=np.float64)
    if np.isnan(array).all():
        return None
    return [None if np.isnan(value) else int(value) if value.is_integer() else value for value in array.tolist()]

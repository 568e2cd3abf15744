"""Results of trials: curves on a common grid, measures read off them, and the ranking; all by hand."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from knapsack_arena.compare.display import ranking_table
from knapsack_arena.compare.metrics import SCHEMA
from knapsack_arena.compare.ranking import ALL, T_975, Estimate, RankedRule, estimate, rank
from knapsack_arena.compare.results import Results, gather, write_results

UNIFORM = [(0.0, 0.2), (1.0, 0.6)]


def _trial(rule: str, curve: Sequence[tuple[float, float]], preset: str = "hard", seed: int = 0) -> list[tuple]:
    """Rows of `mean_p` along (share of the budget, value); the budget is 1,000 rollouts, 5,000 tokens, 10 rounds."""
    return [
        (rule, preset, seed, round(100 * min(spent, 1)), spent, round(10 * spent), round(1000 * spent),
         round(5000 * spent), round(10 * spent), "mean_p", None, None, value)
        for spent, value in curve
    ]  # fmt: skip


def _gathered(
    folder: Path, *trials: list[tuple], presets: Sequence[str] = ("hard",), seeds: Sequence[int] = (0,)
) -> Results:
    files = [folder / f"{i}.parquet" for i in range(len(trials))]
    for file, rows in zip(files, trials, strict=True):
        pl.DataFrame(rows, schema=SCHEMA, orient="row").write_parquet(file)
    rules = list(dict.fromkeys(rows[0][0] for rows in trials))
    return gather(files, rules, presets, seeds)


def _ends(**rules: dict[str, Sequence[float]]) -> Results:
    """Results whose trials start at 0.1 and end at these values, by preset and seed; NaN for a trial that failed."""
    rows = [
        row
        for rule, by_preset in rules.items()
        for preset, ends in by_preset.items()
        for seed, end in enumerate(ends)
        if not math.isnan(end)
        for row in _trial(rule, [(0.0, 0.1), (1.0, end)], preset, seed)
    ]
    presets = next(iter(rules.values()))
    seeds = range(len(next(iter(presets.values()))))
    return Results(pl.DataFrame(rows, schema=SCHEMA, orient="row"), tuple(rules), tuple(presets), tuple(seeds))


def test_curves_are_read_at_exactly_the_budget(tmp_path: Path) -> None:
    results = _gathered(tmp_path, _trial("uniform", UNIFORM), _trial("late", [(0.0, 0.2), (0.5, 0.4), (1.5, 0.8)]))
    curve = results.curves["mean_p"][1, 0, 0]
    assert curve[0] == 0.2
    assert curve[25] == pytest.approx(0.3)
    assert curve[50] == pytest.approx(0.4)
    assert results.end("mean_p")[1, 0, 0] == pytest.approx(0.6)  # half-way between .4 at .5 and .8 at 1.5
    assert results.end("rollouts")[1, 0, 0] == pytest.approx(1000)
    assert results.end("tokens")[1, 0, 0] == pytest.approx(5000)
    assert np.isnan(results.end("coverage")).all()


def test_share_to_uniform(tmp_path: Path) -> None:
    results = _gathered(
        tmp_path,
        _trial("uniform", UNIFORM),
        _trial("twice", [(0.0, 0.2), (1.0, 1.0)]),
        _trial("never", [(0.0, 0.2), (1.0, 0.59)]),
        _trial("ahead", [(0.0, 0.7), (1.0, 0.7)]),
        _trial("peak", [(0.0, 0.2), (0.205, 0.61), (0.5, 0.1), (1.0, 0.9)]),
    )
    share = dict(zip(results.rules, results.share_to_uniform[:, 0, 0].tolist(), strict=True))
    assert share["uniform"] == pytest.approx(1)
    assert share["twice"] == pytest.approx(0.5)
    assert math.isnan(share["never"])
    assert share["ahead"] == 0
    assert share["peak"] == pytest.approx(0.2)  # the first time counts: 0.41 up in 0.205, so .6 at .2
    rows = results.frame.filter(pl.col("metric") == "share_to_uniform")
    assert rows["rule"].to_list() == ["uniform", "twice", "ahead", "peak"]


def test_area_and_regret(tmp_path: Path) -> None:
    results = _gathered(
        tmp_path,
        _trial("uniform", UNIFORM),
        _trial("oracle", [(0.0, 0.2), (0.5, 0.8), (1.0, 0.8)]),
        _trial("x", UNIFORM),
    )
    assert results.area[:, 0, 0] == pytest.approx([0.4, 0.65, 0.4])
    assert results.regret is not None
    assert results.regret[:, 0, 0] == pytest.approx([0.2, 0, 0.2])
    beside = results.frame.filter(pl.col("metric") == "regret")
    assert beside["value"].to_list() == pytest.approx([0.2, 0, 0.2])
    assert beside.select("point", "spent", "steps", "rollouts", "tokens", "rounds").row(2) == (
        None,
        1,
        10,
        1000,
        5000,
        10,
    )
    assert _gathered(tmp_path, _trial("uniform", UNIFORM)).regret is None


def test_without_uniform_everywhere_there_is_nothing_to_compare_with(tmp_path: Path) -> None:
    trials = [_trial("uniform", UNIFORM), _trial("x", UNIFORM), _trial("x", UNIFORM, seed=1)]
    with pytest.raises(ValueError, match="uniform has not finished on every preset and seed"):
        _gathered(tmp_path, *trials, seeds=(0, 1))
    with pytest.raises(ValueError, match="uniform has not finished"):
        gather([], ["uniform"], ["hard"], [0])


def test_a_rule_that_finished_nowhere_is_left_out_and_one_that_finished_somewhere_is_not(tmp_path: Path) -> None:
    trials = [_trial("uniform", UNIFORM), _trial("uniform", UNIFORM, seed=1), _trial("x", UNIFORM, seed=1)]
    file = tmp_path / "trials.parquet"
    pl.DataFrame([row for rows in trials for row in rows], schema=SCHEMA, orient="row").write_parquet(file)
    results = gather([file], ["uniform", "gone", "x"], ["hard"], [0, 1])
    assert results.rules == ("uniform", "x")
    assert np.isnan(results.end("mean_p")[1]).tolist() == [[True, False]]
    assert np.isnan(results.share_to_uniform[1]).tolist() == [[True, False]]


def test_the_table_is_written_in_the_documented_columns(tmp_path: Path) -> None:
    results = _gathered(tmp_path, _trial("uniform", UNIFORM))
    write_results(results, tmp_path / "deep" / "results.parquet")
    written = pl.read_parquet(tmp_path / "deep" / "results.parquet")
    assert dict(written.schema) == SCHEMA
    assert written.equals(results.frame)


def test_intervals_by_hand() -> None:
    found = estimate(np.array([1.0, 2.0, 3.0]))
    assert (found.mean, found.seeds) == (2, 3)
    assert found.half == pytest.approx(4.303 / math.sqrt(3))  # the standard deviation is 1
    five = estimate(np.array([0.01, 0.02, 0.03, 0.04, 0.05]))
    assert five.half == pytest.approx(2.776 * 0.0158113883 / math.sqrt(5))
    assert (five.low, five.high) == (pytest.approx(0.01037, abs=1e-5), pytest.approx(0.04963, abs=1e-5))
    assert five.sign == 1
    assert estimate(np.array([-1.0, -1.1, -0.9])).sign == -1
    assert estimate(np.array([-1.0, 1.0, 0.5])).sign == 0
    assert estimate(np.zeros(4)).sign == 0  # the same everywhere is not ahead
    many = estimate(np.tile([0.0, 1.0], 50))
    assert many.half == pytest.approx(2.042 * math.sqrt(100 * 0.25 / 99) / 10)


def test_intervals_of_too_few() -> None:
    one = estimate(np.array([0.5, np.nan]))
    assert (one.mean, one.seeds, one.sign) == (0.5, 1, 0)
    assert math.isnan(one.half)
    none = estimate(np.array([np.nan]))
    assert none.seeds == 0
    assert math.isnan(none.mean)


@pytest.mark.parametrize("freedom", range(1, 31))
def test_the_quantiles_are_students(freedom: int) -> None:
    t = np.linspace(0, T_975[freedom - 1], 20_001)
    scale = math.gamma((freedom + 1) / 2) / (math.sqrt(freedom * math.pi) * math.gamma(freedom / 2))
    density = scale * (1 + t**2 / freedom) ** (-(freedom + 1) / 2)
    assert 0.5 + float(np.trapezoid(density, t)) == pytest.approx(0.975, abs=4e-5)


def test_differences_are_of_the_same_seeds() -> None:
    results = _ends(uniform={"hard": [0.1, 0.5, 0.9]}, better={"hard": [0.2, 0.6, 1.0]})
    first, second = rank(results)
    assert (first.rule, second.rule) == ("better", "uniform")
    assert first.ahead["hard"].mean == pytest.approx(0.1)
    assert first.ahead["hard"].half == pytest.approx(0, abs=1e-9)
    assert first.level["hard"].half == pytest.approx(4.303 * 0.4 / math.sqrt(3))
    assert (second.ahead[ALL].mean, second.ahead[ALL].half) == (0, 0)


def test_the_interval_over_presets_is_over_seeds() -> None:
    results = _ends(
        uniform={"hard": [0.0, 0.0], "easy": [0.0, 0.0]}, x={"hard": [0.1, 0.3], "easy": [0.5, 0.3]}
    )  # fmt: skip
    ahead = rank(results)[0].ahead
    assert ahead[ALL].mean == pytest.approx(0.3)  # .3 on either seed
    assert ahead[ALL].half == pytest.approx(0, abs=1e-9)
    assert ahead["hard"].half == pytest.approx(12.706 * 0.1)


def test_ties_keep_the_order_that_was_asked_for_and_the_unfinished_come_last() -> None:
    nan = float("nan")
    results = _ends(
        uniform={"hard": [0.2, 0.2]},
        nowhere={"hard": [nan, nan]},
        half={"hard": [0.9, nan]},
        b={"hard": [0.3, 0.5]},
        a={"hard": [0.3, 0.5]},
    )
    ranking = rank(results)
    assert [ranked.rule for ranked in ranking] == ["b", "a", "uniform", "half", "nowhere"]
    assert [ranked.complete for ranked in ranking] == [True, True, True, False, False]


def test_a_narrow_terminal_drops_intervals_and_never_cuts_a_figure_or_a_name() -> None:
    rules = {"uniform": 0.2, "reinforce-ada-positive": 0.3}
    results = _ends(**{rule: {preset: [rate] * 3 for preset in "abcd"} for rule, rate in rules.items()})
    for width, intervals in ((80, 1), (120, 5)):
        console = Console(width=width, record=True, file=io.StringIO())
        console.print(ranking_table(rank(results), results.presets, "title", console.width))
        text = console.export_text()
        line = next(line for line in text.splitlines() if line.startswith("reinforce-ada-positive"))
        assert line.split().count("+0.1000") == line.split().count("▲") == 5
        assert line.count("±0.0000") == intervals
        assert "…" not in text


def test_a_trace_with_a_long_path_cuts_no_figure() -> None:
    path = "runs/of/a/user/with/many/long/folder/names/uniform/trace.jsonl"
    figures = {name: Estimate(0.0123, 0.0045, 3) for name in (ALL, "hard", path)}
    ranking = [RankedRule(rule, figures, figures, complete=True) for rule in ("uniform", "mine")]
    console = Console(file=io.StringIO(), width=70)
    console.print(ranking_table(ranking, ["hard", path], "title", console.width))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert shown.count("+0.0123 ±0.0045") == 3
    assert "…form/trace.jsonl" in shown


def test_the_ranking_in_a_terminal() -> None:
    nan = float("nan")
    results = _ends(
        uniform={"hard": [0.2, 0.2, 0.2]},
        up={"hard": [0.3, 0.3, 0.3]},
        down={"hard": [0.1, 0.1, 0.1]},
        gone={"hard": [nan, nan, nan]},
        unsure={"hard": [0.2, 0.3, 0.4]},
    )
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(ranking_table(rank(results), results.presets, "title"))
    lines = {line.split()[0]: line.split()[1:] for line in console.export_text().splitlines() if line.strip()}
    assert lines["up"] == ["+0.1000", "±0.0000", "▲"] * 2
    assert lines["down"] == ["-0.1000", "±0.0000", "▼"] * 2
    assert lines["unsure"] == ["+0.1000", "±0.2484"] * 2
    assert lines["uniform"] == ["0.2000", "±0.0000"] * 2
    assert lines["gone"] == ["-", "-"]

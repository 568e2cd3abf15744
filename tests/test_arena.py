"""The generator of docs/arena.md: its tables by hand, the prose that it keeps, and the page as it stands."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import polars as pl
import pytest
from rich.console import Console

from knapsack_arena.compare.metrics import SCHEMA
from knapsack_arena.compare.ranking import Estimate
from knapsack_arena.compare.results import Results
from knapsack_arena.compare.trials import TrialSettings
from knapsack_arena.simulator import PRESETS

pytest.importorskip("benchmarks.arena", reason="the benchmarks are not part of the wheel")
from benchmarks.arena import BEGIN, END, FULL, RULES, Size, experiments, run, splice, write
from benchmarks.arena_tables import ahead, losses, ranking, table, verdict, winners

DOCS = Path(__file__).parents[1] / "docs"
FEW = ("uniform", "beta", "calibrated", "oracle", "dapo")
PAGE = f"# The arena\n\nWords before, $1 \\1.\n\n{BEGIN}\n\nstale words\n\n{END}\n\n## Findings\n\nWords after.\n"


def _tables(text: str) -> list[list[list[str]]]:
    """Rows of cells of every Markdown table."""
    blocks = re.findall(r"(?:^\|.*\|$\n?)+", text, re.MULTILINE)
    return [[line[2:-2].split(" | ") for line in block.strip().splitlines()] for block in blocks]


def _assert_well_formed(page: str, images: Path) -> None:
    text = page[page.index(BEGIN) : page.index(END)]
    assert not re.search(r"\bnan\b|None", text)
    assert len(_tables(text)) == 6 + len(PRESETS)
    for heads, rule, *rows in _tables(text):
        assert set(rule) <= {"---", "---:"}
        assert rows
        assert {len(row) for row in (heads, rule, *rows)} == {len(heads)}
    shown = re.findall(r"!\[[^]]+\]\(images/([^)]+)\)", text)
    assert len(shown) == 2
    for name in shown:
        svg = (images / name).read_text(encoding="utf-8")
        assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
        assert "<script" not in svg
        assert not re.search(r"var\(|currentColor", svg)  # an <img> cannot use the colours of its page


def test_the_prose_is_kept() -> None:
    new = splice(PAGE, "\n\nnew $1 \\1\n")
    assert new == PAGE.replace("stale words", "new $1 \\1")
    assert splice(new, "stale words") == PAGE
    assert splice(f"{BEGIN}{END}", "x") == f"{BEGIN}\n\nx\n\n{END}"


@pytest.mark.parametrize("page", ["", BEGIN, END, f"{END}{BEGIN}", PAGE + BEGIN, PAGE + END, PAGE + PAGE])
def test_a_page_without_its_two_marks_is_refused(page: str) -> None:
    with pytest.raises(ValueError, match="the page needs one <!-- generated -->"):
        splice(page, "new")


def test_a_small_arena_from_end_to_end(tmp_path: Path) -> None:
    size = Size(TrialSettings(prompts=32, groups=4, average=4, steps=10), seeds=2, seeds_of_tokens=2)
    page = tmp_path / "arena.md"
    page.write_text(PAGE, encoding="utf-8")
    for _ in range(2):  # the second time nothing is run, and the page is written over itself
        found, failed = run(size, FEW, tmp_path / "out", 2, Console(file=io.StringIO()))
        assert failed == 0
        write(found, size, page)
        text = page.read_text(encoding="utf-8")
        assert text[: text.index(BEGIN)] == PAGE[: PAGE.index(BEGIN)]
        assert text[text.index(END) :] == PAGE[PAGE.index(END) :]
        assert "stale words" not in text
        _assert_well_formed(text, tmp_path / "images")
    by_rollouts, *_, last_preset = _tables(text)
    assert {row[0] for row in by_rollouts[2:]} == {f"`{rule}`" for rule in FEW}
    assert len(last_preset) == 2 + len(FEW)
    assert {path.name for path in tmp_path.iterdir()} == {"arena.md", "images", "out"}


def test_the_full_arena_has_all_rules_and_presets() -> None:
    rollouts, tokens = experiments(FULL, RULES).values()
    assert set(rollouts.rules) == set(tokens.rules) == set(RULES)
    assert set(rollouts.presets) == set(tokens.presets) == set(PRESETS)
    assert len(rollouts.seeds) >= 5
    assert len(tokens.seeds) >= 3
    assert (rollouts.budget, tokens.budget) == ("rollouts", "tokens")


def _results(**rules: Sequence[float]) -> Results:
    """Runs on one preset that start at 0.1 and end at these values, seed by seed."""
    rows = [
        (rule, "hard", seed, point, point / 100, 1, 1, 1, 1, "mean_p", None, None, value)
        for rule, ends in rules.items()
        for seed, end in enumerate(ends)
        for point, value in ((0, 0.1), (100, end))
    ]
    frame = pl.DataFrame(rows, schema=SCHEMA, orient="row")
    return Results(frame, tuple(rules), ("hard",), tuple(range(len(next(iter(rules.values()))))))


RESULTS = _results(
    uniform=[0.2, 0.2, 0.2],
    beta=[0.31, 0.31, 0.31],
    calibrated=[0.2, 0.3, 0.4],
    oracle=[0.9, 0.9, 0.9],
    dapo=[0.4, 0.4, 0.4],
    vip=[0.1, 0.1, 0.1],
)


def test_figures() -> None:
    assert ahead(Estimate(0.0213, 0.001, 5)) == "+2.13 ± 0.10 ▲"
    assert ahead(Estimate(-0.0213, 0.001, 5)) == "-2.13 ± 0.10 ▼"
    assert ahead(Estimate(-0.0213, 0.03, 5)) == "-2.13 ± 3.00"
    assert ahead(Estimate(0.01, float("nan"), 1)) == "+1.00"
    assert ahead(Estimate(float("nan"), float("nan"), 0)) == "-"


def test_columns_of_words_stand_left() -> None:
    assert table(("a", "b", "c"), [["x", "1", "`y`"]]) == "| a | b | c |\n| --- | ---: | --- |\n| x | 1 | `y` |"


def test_the_ranking_by_hand() -> None:
    (rows,) = _tables(ranking(RESULTS))
    assert [row[0] for row in rows[2:]] == ["`oracle`", "`dapo`", "`beta`", "`calibrated`", "`uniform`", "`vip`"]
    assert rows[3][1:] == ["+20.00 ± 0.00 ▲"] * 2
    assert rows[5][1:] == ["+10.00 ± 24.84"] * 2
    assert rows[6][1:] == ["20.00"] * 2
    assert rows[7][1:] == ["-10.00 ± 0.00 ▼"] * 2


def test_the_verdict_counts_rules_that_are_no_oracles() -> None:
    text = verdict(RESULTS)
    rules = (
        "Of 4 rules (without uniform and the oracles), 2 end ahead of uniform over all presets, 1 behind, 1 undecided."
    )
    assert f"{rules} Of 4 pairs of rule and preset: 2 ahead, 1 behind, 1 undecided" in text


def test_the_winner_is_no_oracle_and_ties_go_to_the_first_named() -> None:
    results = _results(uniform=[0.2] * 3, calibrated=[0.2, 0.3, 0.4], oracle=[0.9] * 3, dapo=[0.4] * 3, vip=[0.4] * 3)
    (rows,) = _tables(winners(results))
    assert rows[2] == ["all presets", "`dapo`", "+20.00 ± 0.00 ▲", "`vip`", "+0.00 ± 0.00", "-", "3 of 4", "-", "-"]


def test_losses_are_counted_and_named() -> None:
    (rows,) = _tables(losses(RESULTS))
    assert rows[2] == ["`beta`", "all presets", "1", "1", "2", "`dapo` +9.00"]
    assert rows[5] == ["`calibrated`", "hard", "0", "4", "0", "none"]


def test_the_page_names_every_rule_and_its_pictures_exist() -> None:
    text = (DOCS / "arena.md").read_text(encoding="utf-8")
    assert splice(text, text[text.index(BEGIN) + len(BEGIN) : text.index(END)]) == text
    _assert_well_formed(text, DOCS / "images")
    ranked = {row[0].strip("`") for row in _tables(text[text.index(BEGIN) :])[0][2:]}
    assert ranked == set(RULES), "a rule came or went: run `make arena`"
    assert "## Findings" in text[text.index(END) :]

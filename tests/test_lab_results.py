"""Measures and tables of the laboratory, by hand."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from rich.console import Console

pytest.importorskip("torch")
pytest.importorskip("transformers")

from knapsack_arena.compare.metrics import SCHEMA
from knapsack_arena.compare.results import Results, isotonic
from knapsack_arena.lab.experiment import SCORING, lab_experiment
from knapsack_arena.lab.tables import COLUMNS, figures, lead_share, leads, print_tables, rollouts_to_uniform

PATHS = {  # held-out rates at 0, 50 and 100 % of the budget, of each seed
    "uniform": [[0.2, 0.3, 0.4], [0.2, 0.4, 0.4]],
    "ours": [[0.2, 0.4, 0.5], [0.2, 0.6, 0.5]],
    "worse": [[0.2, 0.25, 0.3], [0.2, 0.2, 0.2]],
    "oracle-pool": [[0.2, 0.6, 0.6], [0.2, 0.6, 0.6]],
}
ALSO = {
    "mean_p": 0.5, "hard_half_p": 0.1, "coverage": 0.9, "value_share": 0.8, "candidate_error": 0.03,
    "belief_error": 0.02, "brier": 0.2, "log_score": 0.5, "overhead": 0.03, "zero_gradient_rollouts": 0.6,
    "forgotten": 0.01,
}  # fmt: skip


def _results(paths: dict[str, list[list[float]]], regimes: Sequence[str] = ("keys",)) -> Results:
    rows = []
    for regime in regimes:
        for rule, seeds in paths.items():
            for seed, path in enumerate(seeds):
                for i, value in enumerate(path):
                    at = (rule, regime, 10 + seed, 50 * i, 0.5 * i, 5 * i, 50 * i, 500 * i, 5 * i)
                    rows += [(*at, name, None, None, each) for name, each in {**ALSO, "held_out_p": value}.items()]
    frame = pl.DataFrame(rows, schema=SCHEMA, orient="row")
    seeds = tuple(range(10, 10 + len(next(iter(paths.values())))))
    return Results(frame, tuple(paths), tuple(regimes), seeds, SCORING)


RESULTS = _results(PATHS)


@pytest.mark.parametrize(
    ("values", "rising"),
    [
        ([1, 2, 3], [1, 2, 3]),
        ([1, 3, 2], [1, 2.5, 2.5]),
        ([3, 2, 1], [2, 2, 2]),
        ([1, 4, 3, 2, 5, 4.5], [1, 3, 3, 3, 4.75, 4.75]),
        ([2, 2, 2], [2, 2, 2]),
    ],
)
def test_isotonic_by_hand(values: list[float], rising: list[float]) -> None:
    assert isotonic(np.array(values, dtype=float)) == pytest.approx(rising)


def test_isotonic_is_the_closest_rising_curve() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=12)
    best = isotonic(values)
    assert (np.diff(best) >= 0).all()
    for _ in range(200):
        other = np.sort(best + rng.normal(scale=0.1, size=12))
        assert ((values - best) ** 2).sum() <= ((values - other) ** 2).sum() + 1e-12
    assert np.isnan(isotonic(np.array([1.0, np.nan]))).all()


def test_rollouts_to_uniforms_end() -> None:
    share = RESULTS.share_to_uniform[:, 0]
    assert share[0] == pytest.approx([1.0, 0.5])  # the second uniform has learned all it does after half
    assert share[1] == pytest.approx([0.5, 0.25])
    assert np.isnan(share[2]).all()
    assert rollouts_to_uniform(RESULTS)[2, 0] == pytest.approx([1.0, 1.0])
    # A spike is not enough: the rising curve closest to it stays lower.
    spiked = _results({"uniform": [[0.2, 0.3, 0.4]], "spiked": [[0.2, 0.41, 0.2]]})
    assert np.isnan(spiked.share_to_uniform[1, 0, 0])


def test_a_run_that_did_not_finish_is_no_run_that_never_got_there() -> None:
    results = _results({"uniform": PATHS["uniform"], "ours": [[0.2, 0.4, 0.5]]})
    assert np.isnan(rollouts_to_uniform(results)[1, 0, 1])


def test_the_share_of_the_lead_by_hand() -> None:
    # Areas of uniform .3 and .35, of ours .375 and .475, of the oracle .5 and .5.
    lead = lead_share(RESULTS, "ours", "keys")
    assert lead is not None
    ratio = (0.075 + 0.125) / (0.2 + 0.15)
    assert lead.mean == pytest.approx(ratio, abs=1e-3)  # the grid has 101 points
    residuals = (np.array([0.075, 0.125]) - ratio * np.array([0.2, 0.15])) / 0.175
    assert lead.half == pytest.approx(12.706 * residuals.std(ddof=1) / np.sqrt(2), abs=0.02)
    assert dict(leads(RESULTS))["oracle-pool"][0].mean == pytest.approx(1)  # type: ignore[union-attr]
    assert lead_share(_results({"uniform": PATHS["uniform"]}), "uniform", "keys") is None


def test_figures_are_paired_and_know_which_way_is_better() -> None:
    found = dict(figures(RESULTS, "keys"))
    assert list(found) == ["oracle-pool", "ours", "uniform", "worse"]
    end = [column.title for column in COLUMNS].index("end")
    assert found["ours"][end].level == pytest.approx(0.5)
    assert found["ours"][end].ahead is not None
    assert found["ours"][end].ahead.mean == pytest.approx(0.1)
    assert found["ours"][end].better == 1
    assert found["uniform"][end].ahead is None
    saved = [column.title for column in COLUMNS].index("to uniform's end")
    twice = _results({"uniform": [[0.2, 0.3, 0.4]] * 3, "ours": [[0.2, 0.4, 0.5]] * 3})
    assert dict(figures(twice, "keys"))["ours"][saved].better == 1  # fewer rollouts are better


@pytest.mark.parametrize("width", [80, 200])
def test_tables_for_a_terminal(width: int) -> None:
    text = io.StringIO()
    print_tables(_results(PATHS, ("keys", "skills")), Console(file=text, width=width))
    shown = text.getvalue()
    assert "nan" not in shown
    assert max(map(len, shown.splitlines())) <= width
    assert shown.count("oracle-poo") == 2 + 2  # folded where there is no room, and never cut
    assert ("+0.100±0.000 ▲" in shown) == (width == 200)
    assert shown.count(" 0.030") == 2 * len(PATHS)  # figures of the last column are whole


def test_the_generated_part_of_the_page() -> None:
    lab_tables = pytest.importorskip("benchmarks.lab_tables", reason="the benchmarks are not part of the wheel")
    experiment = lab_experiment(("uniform",), ("keys", "skills"), (10, 11))
    text = lab_tables.generated(_results(PATHS, ("keys", "skills")), experiment)
    assert not re.search(r"\bnan\b|None", text)
    blocks = re.findall(r"(?:^\|.*\|$\n?)+", text, re.MULTILINE)
    assert len(blocks) == 2 + 2 * 2
    for block in blocks:
        assert len({line.count(" | ") for line in block.strip().splitlines()}) == 1
    assert "| `worse` | 1.00 ± 0.00 | 1.00 ± 0.00 | 1.00 ± 0.00 | 0 of 4 |" in text
    assert "400 prompts, 32 x 8 rollouts a step, 150 steps of uniform, 38,400 rollouts" in text


def test_the_page_has_its_marks_and_what_is_run_is_there() -> None:
    lab = pytest.importorskip("benchmarks.lab", reason="the benchmarks are not part of the wheel")
    page = (Path(__file__).parents[1] / "docs" / "lab.md").read_text(encoding="utf-8")
    for size in (lab.SHORT, lab.FULL, lab.PUBLISHED):
        assert lab.splice(page, "x", *lab.marks(size)).count("\n\nx\n\n") == 1
        assert min(size.seeds) >= 10
        assert {"uniform", "calibrated-pool@prompt"} <= set(size.rules)
    assert "oracle-pool" in lab.FULL.rules
    for size in (lab.FULL, lab.PUBLISHED):
        assert len(size.seeds) >= 5
        assert size.steps is None

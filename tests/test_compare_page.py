"""The page of an experiment: complete, without external resources, and with all names escaped."""

from __future__ import annotations

import json
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from knapsack_arena.compare.experiment import simulator_experiment
from knapsack_arena.compare.page import payload, verdict
from knapsack_arena.compare.ranking import ALL, RankedRule, estimate, rank
from small_comparison import PRESETS, RULES, SEEDS, SETTINGS, results, write_small_comparison

CSS = Path(__file__).parents[1] / "src" / "knapsack_arena"


class Page(HTMLParser):
    """Tags, and the text of each script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self._inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag == "script"

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag != "script"

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.scripts.append(data)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_small_comparison(tmp_path_factory.mktemp("page") / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def data(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Page(text).scripts[0])
    return found


def test_names_stay_text(text: str) -> None:
    page = Page(text)
    assert [tag for tag, _ in page.tags].count("script") == 2
    assert not any(tag == "img" for tag, _ in page.tags)
    assert "&lt;script&gt;alert(1)" in text


def test_nothing_comes_from_elsewhere(text: str) -> None:
    page = Page(text)
    assert not [attrs for _, attrs in page.tags if {"src", "href", "srcset", "data"} & attrs.keys()]
    assert not re.findall(r"url\((?!#)|@import|fetch\(|XMLHttpRequest|innerHTML|eval\(", text)
    assert ("meta", "default-src 'none'") in {
        (tag, (attrs.get("content") or "").split(";")[0]) for tag, attrs in page.tags if tag == "meta"
    }


def test_the_same_results_give_the_same_page(text: str, tmp_path: Path) -> None:
    assert write_small_comparison(tmp_path / "again.html").read_text(encoding="utf-8") == text


def test_what_is_drawn_is_what_was_measured(data: dict[str, Any]) -> None:
    found, r, p = results(), RULES.index("beta"), PRESETS.index("hard")
    curve = found.curves["held_out_p"]
    assert data["rules"] == list(RULES)
    assert data["curves"]["held_out_p"][r][p][0] == pytest.approx(curve[r, p, :, ::2].mean(axis=0), abs=6e-5)
    over_presets = found.end("mean_p")[r].mean()
    assert data["ahead"]["mean_p"][r][-1][2] == pytest.approx(over_presets, abs=1e-5)
    assert data["regret"][RULES.index("oracle")] == [[0, 0]] * 3


def test_the_ranking_that_is_read_is_the_one_that_was_measured(text: str, data: dict[str, Any]) -> None:
    end = results().end("mean_p").mean(axis=(1, 2))
    ahead = {rule: end[r] - end[0] for r, rule in enumerate(RULES)}
    assert data["best"] == sorted(RULES, key=lambda rule: -ahead[rule])
    table = text[text.index('<table id="numbers"') : text.index("</table>")]
    rows = re.findall(r'class="name">(.*?)</th>\s*<td[^>]*>(?:<b>)?([+-]?[\d.]+)', table)
    assert [unescape(rule) for rule, _ in rows] == data["best"]
    for rule, figure in rows:
        wanted = end[0] if rule == "uniform" else ahead[unescape(rule)]
        assert float(figure) == pytest.approx(wanted, abs=6e-5)
        assert data["ahead"]["mean_p"][RULES.index(unescape(rule))][-1][0] == pytest.approx(
            ahead[unescape(rule)], abs=6e-6
        )


def test_a_band_is_of_paired_differences(data: dict[str, Any]) -> None:
    end = results().end("mean_p")
    paired = end[RULES.index("mopps"), 0] - end[0, 0]
    half = 4.303 * paired.std(ddof=1) / np.sqrt(len(SEEDS))  # t, 2 degrees of freedom
    assert data["curves"]["mean_p"][RULES.index("mopps")][0][1][-1] == pytest.approx(half, abs=6e-5)
    assert set(data["curves"]["mean_p"][0][0][1]) == {0}


def test_every_prompt_is_in_one_transition_and_every_group_in_one_bin(data: dict[str, Any]) -> None:
    for r, rule in enumerate(RULES):
        assert np.sum(data["transitions"][r][0]) == len(SEEDS) * 128
        assert np.sum(data["transitions"][r][-1]) == len(PRESETS) * len(SEEDS) * 128
        if rule == "uniform":
            sizes = [np.sum(window["groups"][r][0], axis=0) for window in data["allocation"]]
            assert np.sum(sizes) == len(SEEDS) * 24 * 16
            assert {int(i) for i in np.flatnonzero(np.sum(sizes, axis=0))} == {4}  # groups of 4
    for rule in data["reliability"]:
        for expected, true, groups in rule[0]:
            assert 0 <= expected <= 1
            assert 0 <= true <= 1
            assert groups > 0


def test_rules_without_beliefs_have_no_calibration(data: dict[str, Any]) -> None:
    r = RULES.index("dapo")
    assert data["reliability"][r][0] == []
    assert data["curves"]["belief_error"][r][0] == [None, None]


def test_without_an_oracle_there_is_no_regret(tmp_path: Path) -> None:
    assert payload(results(("uniform", "beta")))["regret"] is None
    page = write_small_comparison(tmp_path / "page.html", ("uniform", "beta")).read_text(encoding="utf-8")
    assert '"regret": null' in page


def test_the_verdict_counts_what_the_table_marks(text: str) -> None:
    others = [ranked for ranked in rank(results()) if ranked.rule != "uniform"]
    counted = [ranked for ranked in others if ranked.rule != "oracle"]
    ahead = sum(ranked.ahead[ALL].sign > 0 for ranked in counted)
    assert f"{ahead} of {len(counted)} rules end ahead of uniform" in text
    assert "Oracles, which are given the true rates, are not counted" in text
    assert text.count("▲") - 1 == sum(figure.sign > 0 for ranked in others for figure in ranked.ahead.values())


def test_an_oracle_wins_nothing() -> None:
    ahead = {ALL: estimate(np.array([0.1, 0.11]))}
    oracle, rule = (RankedRule(name, ahead, ahead, complete=True) for name in ("oracle-pool@prompt", "mine"))
    two = simulator_experiment(("uniform",), PRESETS, (0, 1), SETTINGS)
    assert "1 of 1 rules" in verdict([oracle, rule], two)
    assert "Furthest ahead is mine" in verdict([oracle, rule], two)
    assert verdict([oracle], two) == "No rule besides uniform and the oracles finished all trials."
    assert "Oracles" not in verdict([rule], two)


def test_one_seed_claims_nothing() -> None:
    one = simulator_experiment(("uniform",), PRESETS, (0,), SETTINGS)
    assert "one seed gives no interval" in verdict(rank(results()), one)


@pytest.mark.parametrize(("theme", "paper"), [(0, "#ffffff"), (1, "#14181e"), (2, "#14181e")])
def test_colours_of_rules_are_legible(theme: int, paper: str) -> None:
    """4.5 to 1 is what WCAG 2 asks of text; names are written in the colours of their lines."""
    style = (CSS / "compare" / "page.css").read_text(encoding="utf-8")
    colours = [re.findall(rf"--c{slot}: (#\w+)", style)[theme] for slot in range(6)]
    for colour in colours:
        light, dark = sorted((_luminance(colour), _luminance(paper)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, colour
    assert len(set(colours)) == 6


def _luminance(colour: str) -> float:
    linear = [
        value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
        for value in (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    ]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

"""The page of a comparison in a real browser: no errors, no requests, working filters, names that stay text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from browser import OVERFLOW, Open, chromium, opening  # noqa: F401
from knapsack_rl.__main__ import main
from small_comparison import EVIL, RULES, results, write_small_comparison
from synthetic_run import record_run

pytestmark = pytest.mark.e2e

FIGURES = (
    "ranking", "by-rollouts", "by-tokens", "by-rounds", "regret-curve", "allocation", "counts", "calibration", "regret",
)  # fmt: skip


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_comparison(tmp_path_factory.mktemp("page") / "report.html")


@pytest.fixture
def visit(chromium: Any, report: Path) -> Iterator[Open]:  # noqa: F811
    """Opens the page offline; any message or request fails the test."""
    with opening(chromium) as open_page:

        def visit(width: int = 1280, height: int = 900, at: Path = report, **options: Any) -> Any:
            return open_page(at, width, height, **options)

        yield visit


def test_every_chart_is_drawn_and_named(visit: Open) -> None:
    page = visit()
    assert page.title() == f"Comparison of {len(RULES)} rules"
    for figure in FIGURES:
        drawing = page.locator(f"#{figure} svg[role=img]")
        assert drawing.count() == 1, figure
        assert drawing.get_attribute("aria-label")
        assert drawing.locator("polyline, circle, rect").count() >= 2, figure
    assert page.locator("#transitions table").count() == page.locator("#heat figure").count() == 6
    assert "NaN" not in page.content().replace("isNaN", "")


def test_names_stay_text(visit: Open) -> None:
    page = visit()
    assert page.locator("script").count() == 2
    assert page.locator("img").count() == 0
    assert EVIL in page.locator("#numbers tbody th").all_text_contents()
    assert f"ValueError: {EVIL}" in page.locator(".notes li").inner_text()
    chip = page.locator("#chips button").nth(_chip(page, EVIL))
    if chip.get_attribute("aria-pressed") == "false":
        page.locator("#chooser summary").click()
        chip.click()
    assert EVIL in page.locator("#legend").inner_text()
    assert page.evaluate("document.querySelectorAll('script, img').length") == 2


def test_the_population_filter_changes_every_chart(visit: Open) -> None:
    page = visit()
    before = {figure: page.locator(f"#{figure}").inner_html() for figure in FIGURES}
    page.get_by_role("button", name="hard", exact=True).click()
    assert page.locator("#presets [aria-pressed=true]").all_inner_texts() == ["hard"]
    for figure, drawn in before.items():
        assert page.locator(f"#{figure}").inner_html() != drawn, figure
    uniform = results().end("mean_p")[RULES.index("uniform"), 1].mean()
    shown = page.locator("#ranking g[data-rule=uniform] text").last.text_content()
    assert float(shown) == pytest.approx(uniform, abs=6e-5)


def test_the_measure_and_the_metric_can_be_chosen(visit: Open) -> None:
    page = visit()
    assert page.locator("#measure").input_value() == page.locator("#metric").input_value() == "mean_p"
    page.select_option("#measure", "coverage")
    assert page.locator("#ranking figcaption").inner_text().startswith("Share of prompts ever solved ahead of uniform")
    page.select_option("#metric", "mixed_rollouts")
    for figure in ("by-rollouts", "by-tokens", "by-rounds"):
        assert page.locator(f"#{figure} figcaption").inner_text().startswith("Share of rollouts in mixed groups")
    page.select_option("#metric", "belief_error")  # which not every rule has
    assert page.locator("#by-rollouts polyline").count() == len(RULES) - 3
    drawn = page.locator("#allocation").inner_html()
    page.select_option("#window", "0")
    assert page.locator("#allocation").inner_html() != drawn


def test_rules_are_highlighted_by_keyboard(visit: Open) -> None:
    page = visit()
    page.locator("#chooser summary").press("Enter")
    chip = page.locator("#chips button[data-rule=greso]")
    assert chip.get_attribute("aria-pressed") == "false"
    chip.press("Enter")
    assert chip.get_attribute("aria-pressed") == "true"
    assert page.evaluate("document.activeElement.dataset.rule") == "greso", "the focus stays where it was"
    assert page.locator("#by-rollouts g.front[data-rule=greso]").count() == 1
    chip.press("Space")
    assert page.locator("#by-rollouts g.back[data-rule=greso]").count() == 1


def test_a_seventh_highlight_takes_the_place_of_the_first(visit: Open) -> None:
    page = visit()
    page.locator("#chooser summary").click()
    for i in range(page.locator("#chips button").count()):
        if page.locator("#chips button").nth(i).get_attribute("aria-pressed") == "false":
            page.locator("#chips button").nth(i).click()
    assert page.locator("#chips [aria-pressed=true]").count() == 6
    colours = page.locator("#by-rollouts g.front polyline").evaluate_all(
        "(lines) => lines.map((l) => l.getAttribute('stroke'))"
    )
    assert len(set(colours)) == len(colours) == 7


def test_a_chart_is_read_by_arrow_keys(visit: Open) -> None:
    page = visit()
    page.locator("#by-rollouts svg").press("ArrowLeft")
    first = page.locator("#by-rollouts .readout").inner_text()
    assert re.search(r"rollouts: .*uniform 0\.\d{3}", first)
    page.locator("#by-rollouts svg").press("ArrowLeft")
    assert page.locator("#by-rollouts .readout").inner_text() != first


def test_one_line_is_in_focus_by_pointer_or_keys_and_shows_its_band_alone(visit: Open) -> None:
    page = visit()
    chart = page.locator("#by-rollouts svg")
    bands = "(bands) => bands.filter((b) => getComputedStyle(b).opacity > 0).map((b) => b.parentNode.dataset.rule)"
    highlighted = set(chart.locator(".band").evaluate_all(bands))
    assert "uniform" in highlighted
    assert len(highlighted) == 6
    chart.press("ArrowDown")
    assert len(chart.locator(".band").evaluate_all(bands)) == 1
    best = page.locator("#by-rollouts .readout .focus").inner_text()
    assert re.fullmatch(r"\S+ 0\.\d{3} ± 0\.\d{4}", best)
    chart.press("ArrowDown")
    assert page.locator("#by-rollouts .readout .focus").inner_text() != best
    chart.press("Escape")
    assert set(chart.locator(".band").evaluate_all(bands)) == highlighted

    end = chart.locator("g[data-rule=greso] polyline").evaluate(
        "(l) => { const p = l.points[l.points.length - 1].matrixTransform(l.getScreenCTM()); return [p.x, p.y]; }"
    )
    page.mouse.move(*end)
    assert chart.locator("g.focus").count() == 1
    page.mouse.move(5, 5)
    assert chart.locator("g.focus").count() == 0


def test_a_band_ends_where_its_plot_ends(visit: Open) -> None:
    page = visit()
    for figure in ("by-rollouts", "by-tokens", "by-rounds", "regret-curve"):
        for band in page.locator(f"#{figure} .band").all():
            assert band.get_attribute("clip-path") == f"url(#cut-{figure})"
        cut = page.locator(f"#cut-{figure} rect")
        assert float(cut.get_attribute("y")) + float(cut.get_attribute("height")) == 255  # above the axis' numbers


def test_names_at_the_ends_do_not_overlap(visit: Open) -> None:
    page = visit(390, 844)
    labels = page.locator("svg text[style*='font-weight:600']")
    overlaps = """(all) => all.flatMap((a, i) => all.slice(i + 1).filter((b) => a.parentNode === b.parentNode)
        .map((b) => {
        const p = a.getBoundingClientRect(), q = b.getBoundingClientRect();
        return Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top);
    })).filter((depth) => depth > 3)"""
    assert labels.count() >= 30
    assert labels.evaluate_all(overlaps) == []


@pytest.mark.parametrize("width", [320, 390])
def test_headings_stay_in_their_cells(visit: Open, width: int) -> None:
    page = visit(width, 844)
    cells = page.locator("#transitions th")
    assert (
        cells.evaluate_all("(all) => all.filter((c) => c.scrollWidth > c.clientWidth).map((c) => c.textContent)") == []
    )


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_nothing_is_wider_than_the_screen(visit: Open, width: int) -> None:
    page = visit(width, 844)
    assert page.evaluate(OVERFLOW) == 0
    for summary in page.locator("summary").all():
        summary.click()
    assert page.evaluate(OVERFLOW) == 0
    page.set_viewport_size({"width": 640, "height": 844})  # a phone that is turned
    page.wait_for_function("document.querySelector('#ranking svg').viewBox.baseVal.width <= 640")
    assert page.evaluate(OVERFLOW) == 0


@pytest.mark.parametrize(("scheme", "other"), [("light", "dark"), ("dark", "light")])
def test_light_and_dark_follow_the_system_and_the_button(visit: Open, scheme: str, other: str) -> None:
    papers = {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 24, 30)"}
    page = visit(color_scheme=scheme)
    paper = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(paper) == papers[scheme]
    page.locator("#theme").click()
    assert page.evaluate(paper) == papers[other]
    page.locator("#theme").click()
    assert page.evaluate(paper) == papers[scheme]


def test_without_scripts_the_tables_are_there(visit: Open) -> None:
    page = visit(java_script_enabled=False)
    assert page.locator("#controls").is_hidden()
    assert page.locator("noscript").count() == 1
    assert page.locator("#numbers tbody tr").count() == len(RULES)


def test_the_command_with_a_rule_whose_file_has_an_evil_name(
    visit: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = Path("<", "script><img src=x onerror=alert(1)>\"'&.py")
    file.parent.mkdir()
    file.write_text("from knapsack_rl.rules import expected_value as mine\n", encoding="utf-8")
    size = ["--prompts", "32", "--groups", "4", "--average", "4", "--steps", "10", "--seeds", "2"]
    assert main(["compare", "--rules", f"oracle,{file}:mine", "--presets", "easy", *size, "--output", "out"]) == 0
    page = visit(390, 844, at=tmp_path / "out" / "report.html")
    assert page.locator("script, img").count() == 2
    assert f"{file}:mine" in page.locator("#numbers tbody th").evaluate_all(
        "(all) => all.map((one) => one.textContent)"
    )
    page.locator("#chooser summary").click()
    page.locator("#chips button").nth(_chip(page, f"{file}:mine")).click()
    assert page.evaluate(OVERFLOW) == 0


def test_the_report_of_a_run_opens_without_complaints(visit: Open, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    traces = [str(record_run(tmp_path / f"{rule}.jsonl", rule, steps=8)) for rule in ("uniform", "beta")]
    assert main(["report", *traces, "--output", str(tmp_path / "report.html")]) == 0
    page = visit(390, 844, at=tmp_path / "report.html")
    assert page.locator("svg").count() >= 3
    assert page.evaluate(OVERFLOW) == 0


def _chip(page: Any, rule: str) -> int:
    names: list[str] = page.locator("#chips button").evaluate_all("(all) => all.map((one) => one.dataset.rule)")
    return names.index(rule)

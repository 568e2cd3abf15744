"""The report and the page of a comparison, looked at: phone, tablet and laptop, light and dark."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from browser import Open, broken_laws, chromium, opening  # noqa: F401
from knapsack_rl.config import RuleName
from knapsack_rl.report import write_report
from small_comparison import write_small_comparison
from synthetic_run import record_run

pytestmark = pytest.mark.e2e

WIDTHS, SCHEMES = (390, 768, 1440), ("light", "dark")
RULES: tuple[RuleName, ...] = ("uniform", "calibrated", "beta", "paper")


@pytest.fixture
def visit(chromium: Any) -> Iterator[Open]:  # noqa: F811
    with opening(chromium) as open_page:
        yield open_page


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    runs = [(rule, seed) for seed in (0, 1) for rule in RULES]
    return [record_run(folder / f"{rule}-{seed}" / "t", rule, steps=12, seed=seed) for rule, seed in runs]


@pytest.mark.parametrize("number", [1, 2, 4, 8])
def test_the_report_of_a_number_of_runs(visit: Open, traces: list[Path], tmp_path: Path, number: int) -> None:
    at = write_report(traces[:number], tmp_path / "report.html")
    page = visit(at)
    for width, scheme in itertools.product(WIDTHS, SCHEMES):
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)
        assert broken_laws(page) == {}, f"{width} pixels, {scheme}"
        places = (
            page.locator(".panels")
            .first.locator("figure")
            .evaluate_all("(all) => all.map((e) => [e.getBoundingClientRect().left, e.getBoundingClientRect().width])")
        )
        assert len({round(left) for left, _ in places}) == (1 if width == 390 else 2), "a pair stacks on a phone"
        assert all(wide > 290 for _, wide in places), "a chart is large enough to be read"
    for summary in page.locator("summary").all():
        summary.click()
    page.set_viewport_size({"width": 390, "height": 900})
    assert broken_laws(page) == {}


def test_the_page_of_a_comparison(visit: Open, tmp_path: Path) -> None:
    page = visit(write_small_comparison(tmp_path / "page.html"))
    for width, scheme in itertools.product(WIDTHS, SCHEMES):
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)
        page.wait_for_timeout(100)  # it is drawn again in the next frame
        assert broken_laws(page) == {}, f"{width} pixels, {scheme}"
        plot = page.locator("#by-rollouts clipPath rect").get_attribute("width")
        assert float(plot) > 0.6 * page.locator("#by-rollouts").evaluate("(e) => e.clientWidth")


def test_a_live_page_is_loaded_again_and_does_not_jump_to_its_top(
    visit: Open, traces: list[Path], tmp_path: Path
) -> None:
    at = write_report(traces[:1], tmp_path / "live.html", refresh=1)
    page = visit(at, 390, 844)
    assert page.locator("[role=status]").count() == 1
    page.evaluate("window.scrollTo(0, 1000)")
    before = page.evaluate("window.scrollY")
    assert before > 500
    write_report(traces[:2], at, refresh=600)
    page.locator(".legend").first.wait_for(timeout=60000)
    assert page.evaluate("window.scrollY") >= before  # what is above grows with the second run

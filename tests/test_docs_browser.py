"""The documentation as it is read from disk, without a server and a network: the search, tables on a phone."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from browser import broken_laws, chromium  # noqa: F401

pytestmark = pytest.mark.e2e
pytest.importorskip("mkdocs")

ROOT = Path(__file__).parents[1]
# The first page, one with wide tables of figures, one with formulas, one with tables of text, one of the reference.
READ = ("index.html", "arena.html", "value.html", "lab.html", "reference.html")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    return folder


@pytest.fixture
def page(chromium: Any) -> Iterator[Any]:  # noqa: F811
    """A page without a network; a request for anything but a file fails the test."""
    context = chromium.new_context(offline=True, viewport={"width": 390, "height": 844})
    page, asked = context.new_page(), list[str]()
    page.set_default_timeout(120_000)
    page.on("request", lambda request: asked.append(request.url))
    yield page
    context.close()
    assert not [url for url in asked if not url.startswith(("file:", "data:", "blob:"))]


def test_the_search_works_from_disk(site: Path, page: Any) -> None:
    page.set_viewport_size({"width": 1280, "height": 900})
    page.goto((site / "index.html").as_uri(), wait_until="domcontentloaded")
    page.locator(".md-search__input").fill("half_life")
    found = page.locator(".md-search-result__link")
    found.first.wait_for()
    assert found.count() >= 3
    assert any("beliefs" in (link.get_attribute("href") or "") for link in found.all())


@pytest.mark.parametrize("name", READ)
def test_a_page_on_a_phone(site: Path, page: Any, name: str) -> None:
    page.goto((site / name).as_uri(), wait_until="domcontentloaded")
    page.locator("article").first.wait_for()
    boxed = "(all) => all.every((each) => each.closest('.md-typeset__scrollwrap, .highlight'))"
    for _ in range(100):  # the theme's script puts tables into boxes
        if page.locator("article table").evaluate_all(boxed):
            break
        page.wait_for_timeout(100)
    broken = broken_laws(page)
    assert "sideways" not in broken
    assert "emptyHeads" not in broken
    # Buttons of the theme wait beside the screen; its footer has another paper.
    assert [what for what in broken.get("cutOff", []) if not what.startswith("button")] == []


def test_the_navigation_has_five_groups_and_a_logo(site: Path, page: Any) -> None:
    page.set_viewport_size({"width": 1280, "height": 900})
    page.goto((site / "reference" / "beliefs.html").as_uri(), wait_until="domcontentloaded")
    assert page.locator(".md-tabs__link").all_inner_texts() == ["Start", "Guides", "Ideas", "Evidence", "Reference"]
    assert page.locator(".md-header__button.md-logo img").get_attribute("src") == "../assets/logo.svg"
    assert page.locator("[id='knapsack_rl.beliefs.beta.BetaBeliefs']").count() == 1

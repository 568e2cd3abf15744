"""Pages in the browser of the machine, offline: a fixture that opens them, and what must hold of every page.

Needs Chromium or Chrome (`apt-get install chromium`), found on the path or named by `CHROMIUM`. Without one these tests
fail where `KNAPSACK_RL_BROWSER` is set, as `.ci/run` does if it has one, and are skipped elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from benchmarks.soak_pages import QUIET, find_browser

Open = Callable[..., Any]

OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
LAWS = Path(__file__).with_name("page_laws.js")


def broken_laws(page: Any) -> dict[str, Any]:
    """What does not hold of a page as it is shown now: the laws of ``page_laws.js`` by name, with what breaks each."""
    found: dict[str, Any] = page.evaluate(LAWS.read_text(encoding="utf-8").partition("\n")[2])
    return {law: what for law, what in found.items() if what}


@pytest.fixture(scope="module")  # imported by each module that uses it, and two cannot run at once
def chromium() -> Iterator[Any]:
    """The browser of the machine."""
    path = find_browser()
    if path is None:
        missing = "no browser: apt-get install chromium, or name one in CHROMIUM"
        pytest.fail(missing) if os.environ.get("KNAPSACK_RL_BROWSER") else pytest.skip(missing)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(QUIET))
        yield browser
        browser.close()


@contextmanager
def opening(chromium: Any) -> Iterator[Open]:
    """Yield a function that opens a file offline; any message, error, dialog or request is a failure at the end."""
    contexts, complaints, requests, allowed = [], list[str](), list[str](), set[str]()

    def visit(at: Path, width: int = 1280, height: int = 900, **options: Any) -> Any:
        allowed.add(at.as_uri())
        context = chromium.new_context(viewport={"width": width, "height": height}, offline=True, **options)
        context.set_default_timeout(120_000)  # machines are shared, and a slow page is no wrong one
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(f"dialog: {dialog.message}"))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(at.as_uri())
        return page

    try:
        yield visit
    finally:
        for context in contexts:
            context.close()
    assert complaints == []
    assert {url for url in requests if not url.startswith("data:")} <= allowed

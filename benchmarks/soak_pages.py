"""Pages made of hostile strings, in a browser: nothing runs, nothing is fetched, and no string becomes an element.

Every campaign first opens a page that is made without escaping, and counts it as a fault of its own if that is not
noticed. Needs Chromium or Chrome on the machine, and playwright.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np

from knapsack_rl import AllocationConfig, Session
from knapsack_rl.report import html, write_report
from knapsack_rl.trace import TRACE_NAME

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
QUIET = (
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-quic", "--no-first-run",
)  # fmt: skip
# What each would do where it is not escaped: the title changes, in an element, an attribute, a script, an address.
ATTACKS = (
    "<script>document.title='broken'</script>", "<img src=x onerror=\"document.title='broken'\">",
    "\"><svg onload=document.title='broken'>", "</script><script>document.title='broken'</script>",
    "'-(document.title='broken')-'", "javascript:document.title='broken'", "{{7*7}}", "\u2028\ud800\x00\x1b[31m",
    "</style><script>document.title='broken'</script>", "</title><script>document.title='broken'</script>",
    "<base href=https://example.invalid/><a href=x autofocus onfocus=document.title='broken' tabindex=0>x</a>",
    "<iframe srcdoc=\"<script>parent.document.title='broken'</script>\"></iframe>", "<!--", "-->", "&lt;b&gt;&#60;b>",
    "]]><script>document.title='broken'</script>", "<meta http-equiv=refresh content=0;url=about:blank>",
    "<form action=https://example.invalid/><button>x</button>", "</table></div><plaintext>",
)  # fmt: skip
# The element names of a page with the names of their attributes, and what a reader sees.
CENSUS = """() => [
    [...new Set([...document.querySelectorAll('*')].flatMap((e) =>
        [e.localName, ...e.getAttributeNames().map((name) => `${e.localName} ${name}`)]))],
    document.querySelectorAll('script').length, document.title,
    document.body ? document.body.innerText : '', location.href]"""


class Census(NamedTuple):
    """What is on a page, and what it did that no page of ours does: messages, errors, dialogs, requests, leaving."""

    names: frozenset[str]
    scripts: int
    title: str
    text: str
    faults: list[str]


# Takes a folder and a text, and writes a page in which the text stands in every place for text.
Maker = Callable[[Path, str], Path]


def find_browser() -> str | None:
    """The browser that `CHROMIUM` names, else one on the path; None if there is none."""
    return next(filter(None, map(shutil.which, (os.environ.get("CHROMIUM", ""), *BROWSERS))), None)


@contextmanager
def browser(path: str) -> Iterator[Any]:
    """Start the browser, without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=list(QUIET))
        try:
            yield started
        finally:
            started.close()


def write_trace(path: Path, text: str = "a prompt") -> list[str]:
    """A trace with records of all kinds, in which ``text`` stands in every place for text; its lines."""
    session = Session(AllocationConfig(rule="beta", pool=1))
    session.open_trace(path, {"engine": text, "rule": text, "seed": 0, "settings": {text: text}})
    plan = session.plan([text, "q"], 16, texts={text: text})
    samples = [{"id": text, "completion": text, "reward": 1.0}]
    ids = [plan.prompt_ids[i] for i in plan.group_PG]
    session.observe(0, ids, [1.0, 0.0] * 8, list(range(16)), samples=samples)
    assert session.trace is not None
    session.trace.evaluation(1, 16, {text: 0.5}, {text: 0.5})
    session.trace.end(text)
    return path.read_text().splitlines()


def report_page(folder: Path, text: str, refresh: int | None = None) -> Path:
    """The report of a run of which every text is ``text``."""
    write_trace(folder / TRACE_NAME, text)
    return write_report([folder / TRACE_NAME], folder / "report.html", refresh)


def comparison_page(folder: Path, text: str) -> Path:
    """The page of a comparison in which rules, populations and errors are called ``text``."""
    import polars as pl

    from knapsack_arena.compare.experiment import simulator_experiment
    from knapsack_arena.compare.page import write_comparison
    from knapsack_arena.compare.results import Results
    from knapsack_arena.compare.trials import SIMULATOR, Trial
    from knapsack_arena.compare.workers import TrialEvent

    text = text.encode("utf-8", errors="replace").decode()  # names in a table of Polars are UTF-8
    frame, settings = _trials()
    named = frame.with_columns(
        rule=pl.col("rule").replace("beta", f"rule {text}"), preset=pl.col("preset").replace("hard", f"set {text}")
    )
    experiment = simulator_experiment(("uniform",), ("easy",), (0, 1), settings)
    failure = TrialEvent(Trial(SIMULATOR, text, text, 0, settings), "failed", error=text)
    results = Results(named, ("uniform", f"rule {text}"), ("easy", f"set {text}"), (0, 1))
    return write_comparison(results, experiment, [failure], folder / "comparison.html")


PAGES: dict[str, Maker] = {
    "report": report_page,
    "live report": partial(report_page, refresh=600),
    "comparison": comparison_page,
}


def faults_of(started: Any, make: Maker, folder: Path, attack: str, plain: Census | None = None) -> list[str]:
    """What the attack does in a page that it does not do as text: empty if it stays text.

    Args:
        started: the browser.
        make: maker of the page.
        folder: where it is written.
        attack: the text.
        plain: the census of the same page of harmless text; None: it is made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plain = census(started, make(folder, "a prompt")) if plain is None else plain
    found = census(started, make(folder, attack))
    faults = [*(f"of harmless text: {fault}" for fault in plain.faults), *found.faults]
    if new := found.names - plain.names:
        faults.append(f"became elements or attributes: {sorted(new)}"[:200])
    if found.scripts != plain.scripts:
        faults.append(f"{found.scripts} scripts where {plain.scripts} belong")
    if found.title.startswith("broken"):
        faults.append("a script ran")
    if _seen(attack) not in _seen(found.text):
        faults.append("the text cannot be read on the page")
    return faults


def census(started: Any, at: Path) -> Census:
    """Open a page offline, and look what is there and what it did."""
    from playwright.sync_api import Error

    faults: list[str] = []
    context = started.new_context(offline=True)
    context.set_default_timeout(120_000)
    page = context.new_page()
    page.on("console", lambda message: faults.append(f"says {message.text}"[:200]))
    page.on("pageerror", lambda error: faults.append(f"fails: {error}"[:200]))
    page.on("dialog", lambda dialog: faults.append(f"asks {dialog.message}"))
    page.on(
        "request", lambda request: faults.append(f"asks for {request.url}"[:200]) if _foreign(request.url, at) else 0
    )
    try:
        page.goto(at.as_uri())
        page.wait_for_timeout(50)  # for what an event starts
        names, scripts, title, text, address = page.evaluate(CENSUS)
    except Error as error:  # it is on its way to another page
        names, scripts, title, text, address = [], 0, "", "", str(error).partition("\n")[0]
    if address != at.as_uri():
        faults.append(f"went to {address}"[:200])
    context.close()
    return Census(frozenset(names), scripts, title, text, faults)


@contextmanager
def unescaped() -> Iterator[None]:
    """Within this context pages are made without escaping: what the check must notice."""
    real = html.Environment
    with mock.patch.object(html, "Environment", lambda **options: real(**{**options, "autoescape": False})):
        yield


def without_policy(make: Maker) -> Maker:
    """A maker of the same page without its Content-Security-Policy, under which no script of the text can run."""

    def made(folder: Path, text: str) -> Path:
        path = make(folder, text)
        page = path.read_text(encoding="utf-8")
        assert "Content-Security-Policy" in page
        path.write_text(page.replace("Content-Security-Policy", "x-nothing"), encoding="utf-8")
        return path

    return made


def hostile_strings(seed: int, pages: int = 12) -> tuple[int, list[str], str]:
    """Open pages with a random mixture of attacks each; tries, faults, and why there were no tries."""
    path = find_browser()
    if path is None:
        return 0, [], "no browser: apt-get install chromium"
    with tempfile.TemporaryDirectory(prefix="knapsack-soak-") as folder, browser(path) as started:
        return pages, open_pages(started, Path(folder), seed, pages), ""


def open_pages(started: Any, folder: Path, seed: int, pages: int) -> list[str]:
    """The faults of a number of pages, of all kinds in turn; and one if a page without escaping is not noticed."""
    rng, faults = np.random.default_rng(seed), list[str]()
    plain = {name: census(started, make(folder, "a prompt")) for name, make in PAGES.items()}
    with unescaped():
        if not faults_of(started, report_page, folder, ATTACKS[seed % 4], plain["report"]):
            faults.append(f"seed {seed}: a page without escaping was not noticed")
    for k in range(pages):
        attack = "".join(rng.permutation(ATTACKS)[: int(rng.integers(1, 6))].tolist())
        name = list(PAGES)[k % len(PAGES)]
        found = faults_of(started, PAGES[name], folder, attack, plain[name])
        faults += [f"seed {seed}, {name}, {attack!r}: {fault}" for fault in found]
    return faults


def _foreign(url: str, at: Path) -> bool:
    return not url.startswith("data:") and url != at.as_uri()


def _seen(text: str) -> str:
    """What of a text can be compared after a browser has laid it out: its printable characters without white space."""
    return "".join(letter for letter in text if letter.isprintable() and not letter.isspace() and letter != "?")


@cache
def _trials() -> tuple[Any, Any]:
    """Results of a small comparison, and its settings."""
    import polars as pl

    from knapsack_arena.compare.trials import SIMULATOR, Trial, TrialSettings, run_trial

    settings = TrialSettings(prompts=32, groups=4, average=4, steps=6)
    trials = [
        Trial(SIMULATOR, r, p, s, settings) for r in ("uniform", "beta") for p in ("easy", "hard") for s in (0, 1)
    ]
    return pl.concat([run_trial(trial).with_columns(rule=pl.lit(trial.rule)) for trial in trials]), settings

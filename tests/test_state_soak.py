"""The laws of docs/reliability.md, with a few tries each: `make soak` runs the same functions for minutes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from benchmarks import soak, soak_pages

from browser import chromium  # noqa: F401


@pytest.mark.parametrize(
    ("law", "tries"),
    [
        (soak.solver, 60),
        (soak.beliefs, 6),
        (soak.kills, 5),
        (soak.overwritten, 5),
        (soak.bit_flips, 300),
        (soak.hostile_files, 10),
        (soak.full_disk, 4),
        (soak.starts, 5),
        (soak.threads, 80),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_law_holds(law: object, tries: int) -> None:
    for seed in (1, 2):
        result = law(seed, tries)  # type: ignore[operator]
        assert result.faults == []
        assert result.tries > 0


def test_a_campaign_that_finds_a_fault_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        soak,
        "CAMPAIGNS",
        {"one": lambda seed: soak.Result(3, ["broken"]), "two": lambda seed: soak.Result(0, [], "no browser")},
    )
    monkeypatch.setattr("sys.argv", ["soak", "0"])
    monkeypatch.setattr(soak.logging, "disable", lambda: None)
    assert soak.main() == 1
    assert capsys.readouterr().out.splitlines()[2:] == ["| one | 3 | 1 |", "| two | no browser | 0 |"]


@pytest.mark.e2e
def test_no_hostile_string_becomes_a_part_of_a_page(chromium: Any, tmp_path: Path) -> None:  # noqa: F811
    assert soak_pages.open_pages(chromium, tmp_path, seed=1, pages=6) == []


@pytest.mark.e2e
@pytest.mark.parametrize("name", ["report", "comparison"])
@pytest.mark.parametrize("policy", [True, False])
def test_a_page_without_escaping_is_caught(
    chromium: Any,  # noqa: F811
    tmp_path: Path,
    name: str,
    policy: bool,
) -> None:
    """Also where the page's policy keeps the script from running, and for what is no script."""
    make = soak_pages.PAGES[name] if policy else soak_pages.without_policy(soak_pages.PAGES[name])
    active = [text for text in soak_pages.ATTACKS if re.search(r"<\w", text)]
    assert len(active) >= 10
    active = active if policy else active[:3]
    plain = soak_pages.census(chromium, make(tmp_path, "a prompt"))
    with soak_pages.unescaped():
        found = {attack: soak_pages.faults_of(chromium, make, tmp_path, attack, plain) for attack in active}
    assert not [attack for attack, faults in found.items() if not faults]
    if not policy:
        assert "a script ran" in found[soak_pages.ATTACKS[0]]

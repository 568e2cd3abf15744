"""The laws of docs/reliability.md, with a few tries each: `make soak` runs the same functions for minutes."""

from __future__ import annotations

import pytest
from benchmarks import soak


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

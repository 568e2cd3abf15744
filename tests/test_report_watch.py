"""The page that follows a run: written again as traces grow, loaded again by the browser, and at rest at the end."""

from __future__ import annotations

import itertools
import re
import time
from pathlib import Path

import pytest

from knapsack_rl.__main__ import main
from synthetic_run import record_run

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

import knapsack_rl.report.watch as module
from knapsack_rl.report.watch import watch


def test_a_watched_page_follows_the_trace_and_rests_at_the_end(tmp_path: Path) -> None:
    output, said, seen = tmp_path / "page.html", list[str](), list[str]()

    def train(seconds: float) -> None:
        """What happens while the watcher waits: nothing, a start, two steps, a rename, nothing, Ctrl-C."""
        assert seconds >= 5
        seen.append(output.read_text(encoding="utf-8") if output.exists() else "")
        if len(seen) in (2, 3):
            record_run(tmp_path / "run" / "trace.jsonl", "beta", steps=2 * len(seen) - 4, exact=False, ended=None)
        elif len(seen) == 5:
            record_run(tmp_path / "run" / "other" / "trace.jsonl", "uniform", steps=1)
        elif len(seen) == 6:
            raise KeyboardInterrupt

    (tmp_path / "run").mkdir()
    watch([tmp_path / "run"], output, said.append, train)
    assert seen[:2] == ["", ""]
    for page in seen[2:]:
        assert re.search(r'<meta http-equiv="refresh" content="\d+">', page)  # more than 5 on a slow machine
    assert "no generation step has been recorded yet" in seen[2]
    assert seen[3] == seen[4] != seen[2]
    assert "1 run of GRPO" in seen[4]
    assert "2 runs of GRPO" in seen[5]
    assert 'http-equiv="refresh"' not in output.read_text(encoding="utf-8")
    assert [line.partition(":")[0] for line in said[:1]] == ["waiting"]
    assert [line.partition("follows ")[2] for line in said[1:]] == ["1 run; Ctrl-C ends it", "2 runs; Ctrl-C ends it"]


def test_a_watched_page_waits_longer_where_a_page_takes_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record_run(tmp_path / "trace.jsonl", "beta", steps=1)
    clock, waits = itertools.count(0, 7), []

    def pause(seconds: float) -> None:
        waits.append(seconds)
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    watch([tmp_path], tmp_path / "page.html", str, pause)
    assert waits == [21]


def test_the_command_watches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "write_report", stop)
    record_run(tmp_path / "trace.jsonl", "beta", steps=1)
    assert main(["report", str(tmp_path), "--watch", "--output", str(tmp_path / "p.html")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'p.html'}\n"
    (tmp_path / "trace.jsonl").write_text("[]\n")
    monkeypatch.undo()
    assert main(["report", str(tmp_path), "--watch", "--output", str(tmp_path / "p.html")]) == 2

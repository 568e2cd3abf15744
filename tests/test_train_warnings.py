"""`knapsack-rl train` shows what its runs warn of, which they write into a file."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("rich")

from knapsack_rl.train.launch import RunProcess

LINES = st.lists(
    st.sampled_from(("knapsack_rl.beliefs: all rewards are 0", "torch: slow", "", "knapsack_rl: x", "a: b"))
)


@given(st.lists(LINES), st.lists(st.integers(0, 200)), LINES)
def test_each_warning_of_ours_is_shown_once(
    tmp_path_factory: pytest.TempPathFactory, parts: list[list[str]], cuts: list[int], before: list[str]
) -> None:
    """However the log grows, and whatever an earlier start has left in it."""
    log = tmp_path_factory.mktemp("run") / "log.txt"
    log.write_text("".join(f"{line}\n" for line in before))
    run = RunProcess("calibrated", cast("Any", None), log, log.stat().st_size)
    shown: list[str] = []
    for part, cut in zip(parts, [*cuts, *[0] * len(parts)], strict=False):
        text = "".join(f"{line}\n" for line in part)
        for piece in (text[:cut], text[cut:]):  # a line may be written in two pieces
            with log.open("a") as file:
                file.write(piece)
            shown += run.new_warnings()
    assert shown == ["all rewards are 0" for part in parts for line in part if line.startswith("knapsack_rl.")]


def test_a_warning_is_safe_to_show(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text("knapsack_rl.trl: \x1b[31mred\n")
    run = RunProcess("beta", cast("subprocess.Popen[bytes]", None), log, 0)
    assert run.new_warnings() == ["\\x1b[31mred"]

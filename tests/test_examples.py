"""The examples run as scripts, and print what their descriptions announce."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name: str, folder: Path) -> str:
    environment = {**os.environ, "KNAPSACK_RL_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    call = [sys.executable, EXAMPLES / name]
    answer = subprocess.run(call, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


def test_one_batch(tmp_path: Path) -> None:
    printed = run("01_one_batch.py", tmp_path)
    rows = [line.split("|") for line in printed.splitlines() if re.match(r"\s+\d\.\d\d \|", line)]
    counts = {float(rate): int(planned.split()[0]) for rate, _, planned in rows}
    assert sum(counts.values()) == 64
    assert counts[0.1] == max(counts.values())
    assert counts[0.0] == counts[1.0] == 2


def test_custom_loop(tmp_path: Path) -> None:
    printed = run("02_custom_loop.py", tmp_path)
    success = {name: float(value) for name, value in re.findall(r"^(\w+) +\| +([\d.]+)", printed, re.MULTILINE)}
    assert set(success) == {"uniform", "paper", "beta"}
    assert success["uniform"] < min(success["paper"], success["beta"])
    assert printed == run("02_custom_loop.py", tmp_path), "the same seed gave other numbers"


def test_trl_script(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    printed = run("03_trl.py", tmp_path)
    plans = [json.loads(counts) for counts in re.findall(r"^ +\d+: (\[.*\])$", printed, re.MULTILINE)]
    assert len(plans) == 16
    assert all(sum(counts) == 64 and min(counts) >= 2 for counts in plans)
    assert any(max(counts) > 8 for counts in plans), "every plan was uniform"


def test_your_trainer(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    printed = run("your_trainer.py", tmp_path)
    before = float(re.findall(r"before training: ([\d.]+)", printed)[0])
    rows = re.findall(r"^(\w+) +\| +([\d.]+) +\| +([\d.]+) +\| +(\d+)$", printed, re.MULTILINE)
    found = {name: (float(rate), float(mixed), int(largest)) for name, rate, mixed, largest in rows}
    assert set(found) == {"uniform", "beta", "calibrated"}
    assert all(rate > before + 0.05 for rate, _, _ in found.values()), "a rule did not learn"
    assert found["uniform"][2] == 8
    assert max(found[name][1] for name in ("beta", "calibrated")) > found["uniform"][1]

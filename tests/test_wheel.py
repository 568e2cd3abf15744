"""The wheel, in an empty environment, away from the source tree."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[1]
RATES = "prompt_id,pass_rate\nhard,0.1\nmiddle,0.5\neasy,0.9\nsolved,1.0\n"


def run(command: Sequence[str | Path], folder: Path, stdin: str = "") -> str:
    environment = {key: value for key, value in os.environ.items() if key not in {"PYTHONPATH", "PYTHONHOME"}}
    answer = subprocess.run(
        command, cwd=folder, input=stdin, env=environment, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, f"{command}\n{answer.stdout}\n{answer.stderr}"
    return answer.stdout


@pytest.mark.e2e
@pytest.mark.timeout(600)
def test_the_wheel_works_in_an_empty_environment(tmp_path: Path) -> None:
    run([sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path, ROOT], tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    names = ZipFile(wheel).namelist()
    assert {"knapsack_rl/py.typed", "knapsack_arena/py.typed"} <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not any(name.startswith(("tests", "docs", "examples")) for name in names)

    run([sys.executable, "-m", "venv", tmp_path / "venv"], tmp_path)
    scripts = tmp_path / "venv" / "bin"
    run([scripts / "python", "-m", "pip", "install", "--quiet", wheel], tmp_path)
    packages = run([scripts / "python", "-m", "pip", "list", "--format=freeze"], tmp_path)
    installed = {line.partition("==")[0] for line in packages.split()}
    assert installed - {"pip", "setuptools", "wheel"} == {"knapsack-rl", "numpy"}

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shown = run([scripts / "knapsack-rl", "--help"], elsewhere)
    assert "allocate" in shown
    assert "compare" in shown  # found by its entry point
    (elsewhere / "rates.csv").write_text(RATES, encoding="utf-8")
    planned = run([scripts / "knapsack-rl", "allocate", "rates.csv", "--budget", "32"], elsewhere)
    assert "hard" in planned
    piped = run([scripts / "knapsack-rl", "allocate", "-", "--budget", "32"], elsewhere, stdin=RATES)
    assert "middle" in piped

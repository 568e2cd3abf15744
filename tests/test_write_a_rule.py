"""Run the files and commands of docs/write-a-rule.md in an empty folder."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "docs" / "write-a-rule.md").read_text(encoding="utf-8")
EXAMPLE = (ROOT / "examples" / "04_write_a_rule.py").read_text(encoding="utf-8")
# Commands run with this interpreter.
PROGRAMS = {"python": [sys.executable], "knapsack-rl": [sys.executable, "-m", "knapsack_rl"]}

FILES = dict(re.findall(r'```python title="([\w.]+)"\n(.*?)```', GUIDE, re.DOTALL))
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", GUIDE, re.DOTALL) for line in block.splitlines()]


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    program, *rest = shlex.split(command)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "PYTHONPATH": ""}
    answer = subprocess.run(
        [*PROGRAMS[program], *rest], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, f"{command}\n{answer.stdout}{answer.stderr}"
    return answer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("guide")
    for name, text in FILES.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def test_the_guide_has_its_files_and_commands() -> None:
    assert set(FILES) == {"my_rule.py", "test_my_rule.py", "tilted.py", "settle.py", "test_settle.py"}
    assert sum(command.startswith("knapsack-rl compare") for command in COMMANDS) == 2


@pytest.mark.parametrize("command", [each for each in COMMANDS if each.startswith("python")])
def test_the_checks_pass(command: str, folder: Path) -> None:
    assert "1 passed" in run(command, folder).stdout


@pytest.mark.parametrize("command", [each for each in COMMANDS if each.startswith("knapsack-rl")])
def test_the_comparisons_run(command: str, folder: Path) -> None:
    pytest.importorskip("polars")
    printed = run(command, folder).stdout
    options = shlex.split(command)
    for rule in options[options.index("--rules") + 1].split(","):
        assert rule in printed
    out = folder / options[options.index("--output") + 1]
    assert (out / "report.html").stat().st_size > 10_000


def test_the_example_holds_the_rules_of_the_guide_and_prints_its_table() -> None:
    for name in ("my_rule.py", "tilted.py"):
        definition = re.search(r"^(?:@dataclass|def ).*?(?=\n\n\n|\Z)", FILES[name], re.DOTALL | re.MULTILINE)
        assert definition is not None
        assert definition.group().strip() in EXAMPLE, f"{name} of the guide is not what the example has"
    (table,) = re.findall(r"```text\n(.*?)```", GUIDE, re.DOTALL)
    assert run(f"python {shlex.quote(str(ROOT / 'examples' / '04_write_a_rule.py'))}", ROOT).stdout == table

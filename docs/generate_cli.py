"""Write docs/cli.md from the real ``--help`` of the command; tests/test_docs.py fails when they drift apart."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from knapsack_rl.__main__ import commands

PAGE = Path(__file__).with_name("cli.md")

INTRODUCTION = """\
# The command line

`knapsack-rl` (or `python -m knapsack_rl`) and its commands: their `--help`, word for word.
`docs/generate_cli.py` writes this page. One thing has one name in all of them: `--output`, `--average`, `--pool`,
`--min`, `--max`, `--min-group`, `--rule` (or `--rules` for several), `--success-threshold`, `--half-life`,
`--weighting`, `--seed`.

Completion of commands and options: `source <(knapsack-rl --print-completion bash)` in `~/.bashrc`, or the same with
`zsh` in `~/.zshrc`. `NO_COLOR=1` turns colours off. An error is one line and exit status 2; a defect says that it
is one, and names the file with its traceback (status 70).
"""


def help_of(command: str) -> str:
    """What ``knapsack-rl COMMAND --help`` prints on a terminal of 100 columns, without colours."""
    environment = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1", "PYTHON_COLORS": "0", "TERM": "dumb"}
    call = [sys.executable, "-m", "knapsack_rl", *command.split(), "--help"]
    answer = subprocess.run(call, env=environment, capture_output=True, text=True, check=True)
    return "\n".join(line.rstrip() for line in answer.stdout.strip().splitlines())


def page() -> str:
    """The whole page."""
    sections = [INTRODUCTION]
    for command in ("", *commands()):
        name = f"knapsack-rl {command}".strip()
        sections.append(f"## `{name}`\n\n```text\n$ {name} --help\n{help_of(command)}\n```\n")
    return "\n".join(sections)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

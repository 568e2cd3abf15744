"""The shell and Python blocks of the first pages, run as a reader would run them.

By default what takes no framework and a few seconds; ``-m e2e`` runs all of it. A reader has things that a page does
not make: `stand_ins` and `write_files` make them. Their model is a tiny one, and long commands are made short.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from pages import Block, blocks, commands, imported, missing_names

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "docs/quickstart.md", "docs/tutorial.md", "docs/settings.md")
BLOCKS = {page: list(blocks((ROOT / page).read_text(encoding="utf-8"))) for page in PAGES}

# Commands that install or make something are checked, not run.
INSTALLS = re.compile(r"(pip install|git clone|cd |python3? -m venv|source |make )")
# What takes no framework.
QUICK = re.compile(r"(python \w+\.py$|head |knapsack-rl (allocate|verl-args|--version))")
# Models of a reader's, in place of which a tiny one is trained.
MODELS = re.compile(r"Qwen/[\w.-]+|(?<=--model )smollm2")
# Flags that make a command short, where it does not set them itself.
SHORT = {
    "compare": {"--seeds": "1", "--steps": "3", "--prompts": "64", "--groups": "16", "--presets": "balanced"},
    "train": {"--steps": "2", "--max_completion_length": "4"},
}
RULE = """
from knapsack_rl import AllocationProblem

def my_rule(forecast, budget, low, high):
    return AllocationProblem(forecast.success_rates_P[:, None], low, high)
"""


class Times:
    """True a few times, then false: ``while training``."""

    def __init__(self, times: int) -> None:
        self.left = itertools.chain([True] * times, itertools.repeat(False))

    def __bool__(self) -> bool:
        return next(self.left)


def stand_ins() -> dict[str, Any]:
    """What a snippet's reader has: a loop, prompts, rollouts, rewards."""

    def rewards(count: int) -> list[float]:
        return [float(i % 3 == 0) for i in range(count)]

    def reward(completions: list[Any], **_: Any) -> list[float]:
        return rewards(len(completions))

    def ids(count: int) -> list[str]:
        return [f"prompt {i}" for i in range(count)]

    return {
        "training": Times(2), "next_prompts": ids, "batches": [ids(32), ids(32)], "checkpoint": {}, "reward": reward,
        "generate": lambda prompt_id, count: [(prompt_id, i) for i in range(count)], "my_reward": reward,
        "score": lambda answers: ([prompt_id for prompt_id, _ in answers], rewards(len(answers))),
        "my_rollouts": lambda ids: rewards(len(ids)), "dataset": None,
    }  # fmt: skip


def write_files(folder: Path) -> None:
    """The files that a reader has."""
    (folder / "pass_rates.csv").write_text("id,pass_rate\n" + "".join(f"p{i},{i / 255:.3f}\n" for i in range(256)))
    (folder / "my_rule.py").write_text(RULE)
    row = {"prompt": "ab", "answer": "ba"}
    for name in ("my_problems.jsonl", "problems.jsonl"):
        (folder / name).write_text("".join(json.dumps(row | {"prompt_id": str(i)}) + "\n" for i in range(64)))


def run_shell(block: Block, folder: Path, line: str) -> str:
    """What one command prints."""
    for each in re.findall(r"\$\((.*?)\)", line):  # what it is given by another command
        run_shell(block, folder, each)
    for command, flags in SHORT.items():
        if line.startswith(f"knapsack-rl {command}") and block.mark("slow") is None:
            line += "".join(f" {flag} {value}" for flag, value in flags.items() if f" {flag} " not in line)
    environment = os.environ | {
        "PATH": str(Path(sys.executable).parent) + os.pathsep + os.environ["PATH"], "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1", "COLUMNS": "300",
    }  # fmt: skip
    answer = subprocess.run(
        ["bash", "-c", MODELS.sub(str(folder / "model"), line)],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    expected = int(block.mark("exits with") or 0)
    assert answer.returncode == expected, f"line {block.line}: {line}\n{answer.stdout}{answer.stderr}"
    return answer.stdout + answer.stderr


def run_bash(block: Block, folder: Path, heavy: bool) -> str | None:
    """What a shell block prints; None if it was not run."""
    printed: list[str] = []
    for line in commands(block.text):
        if INSTALLS.match(line):
            check_installs(line)
        elif line.startswith("python -m verl"):  # another environment; what it is given is ours
            for inner in re.findall(r"\$\((.*?)\)", line):
                printed.append(run_shell(block, folder, inner))
        elif heavy or QUICK.match(line) or not line.startswith(("knapsack-rl", "python")):
            printed.append(run_shell(block, folder, line))
        else:
            return None
    return "".join(printed)


def check_installs(line: str) -> None:
    """Extras and make targets exist."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for named in re.findall(r"knapsack-rl\[([\w,-]+)\]", line):
        assert set(named.split(",")) <= set(extras), line
    targets = re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for target in re.findall(r"make ([a-z0-9-]+)", line):
        assert target in targets, line


def run_python(block: Block, folder: Path, heavy: bool, capsys: pytest.CaptureFixture[str]) -> str | None:
    """What a Python block prints; None if it was not run."""
    modules, given = imported(block.text), stand_ins()
    if any(find_spec(name.partition(".")[0]) is None for name in modules):
        compile(block.text, "block", "exec")  # a trainer of another environment
        return None
    if not heavy and {"trl", "torch", "tinker"} & {part for name in modules for part in name.split(".")}:
        return None
    unknown = missing_names(block.text) - given.keys()
    assert not unknown, f"line {block.line}: a reader has no {', '.join(sorted(unknown))}"
    if "dataset" in missing_names(block.text):
        from datasets import Dataset

        given["dataset"] = Dataset.from_list([{"prompt": "abcdefgh"[i % 8] + "="} for i in range(64)])
    capsys.readouterr()
    sys.path.insert(0, str(folder))  # files of the page
    try:
        exec(compile(MODELS.sub(str(folder / "model"), block.text), f"line {block.line}", "exec"), given)
    finally:
        sys.path.remove(str(folder))
    return capsys.readouterr().out


def run_page(page: str, folder: Path, heavy: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """Run the blocks of a page, in order, in one folder."""
    printed: str | None = None
    for block in BLOCKS[page]:
        if block.title is not None:
            (folder / block.title).write_text(block.text, encoding="utf-8")
        elif block.mark("not run") is not None or (block.mark("slow") is not None and not heavy):
            printed = None
        elif block.language == "bash":
            printed = run_bash(block, folder, heavy)
        elif block.language == "python":
            printed = run_python(block, folder, heavy, capsys)
        elif block.mark("printed") is not None and printed is not None:
            for line in block.text.splitlines():
                assert line in printed.splitlines(), f"{page}:{block.line}: {line!r} was not printed, but\n{printed}"


@pytest.mark.parametrize("page", PAGES)
def test_the_quick_blocks_of_a_page_run(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_files(tmp_path)
    run_page(page, tmp_path, heavy=False, capsys=capsys)


@pytest.mark.parametrize("page", PAGES)
def test_what_is_not_run_says_why(page: str) -> None:
    for block in BLOCKS[page]:
        assert block.mark("not run") != "", f"{page}:{block.line}: not run, and no reason"
        for mark in block.marks:
            assert mark.startswith(("not run", "slow", "exits with", "printed")), f"{page}:{block.line}: {mark}"


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Path]]:
    """A folder with a tiny model and a trace, and a configuration of TRL's that suits this machine."""
    for module in ("trl", "datasets", "reasoning_gym", "math_verify"):
        pytest.importorskip(module)
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "trl"))
    import small
    from trl.trainer.base_config import _BaseConfig

    from synthetic_run import record_run

    original = _BaseConfig.__post_init__

    def on_the_cpu(config: Any) -> None:
        config.use_cpu, config.report_to = True, "none"
        config.max_steps, config.max_completion_length = 2, 4
        original(config)

    def prepare() -> Path:
        monkeypatch.setattr(_BaseConfig, "__post_init__", on_the_cpu)
        monkeypatch.chdir(tmp_path)
        small.model().save_pretrained(tmp_path / "model")
        small.tokenizer().save_pretrained(tmp_path / "model")
        write_files(tmp_path)
        record_run(tmp_path / "trace.jsonl", "uniform", steps=8)
        return tmp_path

    yield prepare


@pytest.mark.e2e
@pytest.mark.timeout(1800)  # the tutorial trains for two minutes on two cores
@pytest.mark.parametrize("page", PAGES)
def test_all_blocks_of_a_page_run(page: str, reader: Callable[[], Path], capsys: pytest.CaptureFixture[str]) -> None:
    run_page(page, reader(), heavy=True, capsys=capsys)

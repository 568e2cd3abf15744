"""The law of the command line: whatever it is given, it ends with 0, or with one line that explains itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from command_lines import run_all
from knapsack_rl.__main__ import main


def test_random_command_lines_never_show_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    assert run_all(300, seed=0, folder=tmp_path / "work") == []


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("{}['missing']", "KeyError: 'missing'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("None", None),
    ],
)
def test_an_error_in_a_users_rule_names_its_line(
    body: str, reason: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rule, table = tmp_path / "mine.py", tmp_path / "table.csv"
    rule.write_text(f"def rule(forecast, budget, low, high):\n    return {body}\n")
    table.write_text("prompt,reward\n" + "".join(f"q{i % 4},{i % 3 == 0}\n" for i in range(64)))
    status = main(["replay", str(table), "--rules", f"uniform,{rule}:rule", "--groups", "2", "--average", "2"])
    shown = capsys.readouterr()
    if reason is not None:
        assert status == 0  # the other rule goes on
        assert f"stopped at step 0: {rule}:2 failed: {reason}" in shown.out
    assert "Traceback" not in shown.out + shown.err


@pytest.mark.parametrize("body", ["raise SystemExit(0)", "raise KeyError('x')", "1 / 0", "def ("])
def test_a_users_file_that_fails_is_one_line(body: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rule, table = tmp_path / "mine.py", tmp_path / "table.csv"
    rule.write_text(f"{body}\n")
    table.write_text("prompt,reward\nq,1\n")
    assert main(["replay", str(table), "--rules", f"{rule}:rule"]) == 2
    shown = capsys.readouterr().err
    assert "failed when it was run" in shown
    assert shown.count("\n") == 1


def test_chats_and_booleans_of_tables_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chat = tmp_path / "chat.jsonl"
    chat.write_text('{"prompt": [{"role": "user", "content": "q"}], "rewards": [0, true, 0, 1, 1, false]}\n')
    assert main(["replay", str(chat), "--rules", "uniform", "--groups", "1", "--average", "2"]) == 0
    assert "6 rollouts of 1 prompts" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps: many", "steps is 'many': it must be a whole number from 1"),
        ("seed: -1", "seed is -1: it must be a whole number from 0"),
        ("model: 5", "model is 5: it must be text"),
        ("rules: {a: b}", "rules is {'a': 'b'}: give names"),
        ("output: [x]", "output is ['x']: it must be the name of a folder"),
        ("output: ''", "output is '': it must be the name of a folder"),
        ("dataset: ''", "dataset is '': it must be text, and not empty"),
        ("resume: true", "resume is an option of the command line alone: take it out of"),
        ("config: x", "config is an option of the command line alone: take it out of"),
        ("steps: " + "[" * 2000, "is not YAML"),
        ("steps: 2024-99-99", "is not YAML"),
        ("average: 1", "the training arguments do not fit the rule"),
        ("num_generations: 4", "num_generations is set by the job: use --average"),
    ],
)
def test_wrong_values_of_a_training_job_are_one_line(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.yaml").write_text(text)
    assert main(["train", "--config", "job.yaml"]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["job.yaml"]  # no folder was made

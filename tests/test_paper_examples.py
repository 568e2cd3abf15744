"""`examples/paper` on small local files of the columns that the hub's data sets have."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("datasets")
pytest.importorskip("math_verify")

from datasets import Dataset

from knapsack_rl.tasks.prompts import load_prompts
from knapsack_rl.tasks.rewards import named_reward

FOLDER = Path(__file__).parents[1] / "examples" / "paper"
DAPO = (
    "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
    "$Answer (without quotes) where $Answer is the answer to the problem.\n\n{}\n\nRemember to put your answer on its "
    'own line after "Answer:".'
)


def _script(name: str) -> ModuleType:
    specification = importlib.util.spec_from_file_location(f"paper_{name}", FOLDER / f"{name}.py")
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module  # dataclasses look their module up
    specification.loader.exec_module(module)
    return module


prepare = _script("prepare")
evaluate = _script("evaluate")


def _dapo(i: int, copy: int) -> dict[str, Any]:
    return {
        "data_source": "math_dapo",
        "prompt": [{"content": DAPO.format(f"What is {i} + {i}?"), "role": "user"}],
        "ability": "MATH",
        "reward_model": {"ground_truth": str(2 * i), "style": "rule-lighteval/MATH_v2"},
        "extra_info": {"index": f"{i}-{copy}"},
    }


# One row of each data set, with all columns of the hub's.
ROWS: dict[str, Callable[[int], dict[str, Any]]] = {
    "dapo-math-17k": lambda i: _dapo(i, 0),
    "aime-2024": lambda i: {
        "id": i, "problem": f"AIME {i}?", "solution": "So.", "answer": f"{i:03d}", "url": "", "year": "2024",
    },
    "aime-2025": lambda i: {"problem": f"AIME {i}?", "answer": str(i), "id": str(i)},
    "amc-2023": lambda i: {"id": i, "question": f"AMC {i}?", "answer": float(i), "url": ""},
    "math-500": lambda i: {
        "problem": f"MATH {i}?", "solution": "So.", "answer": rf"\frac{{{i}}}{{7}}", "subject": "Algebra", "level": 1,
        "unique_id": f"test/{i}.json",
    },
    "minerva": lambda i: {"question": f"Minerva {i}?", "answer": f"{i}.5e3"},
    "olympiad-bench": lambda i: {
        "id": i, "question": "Find it.", "solution": ["So."], "final_answer": [f"$2^{{{i}}}$"], "context": f"x = {i}.",
    },
    "gpqa-diamond": lambda i: {
        "Question": f"Which, {i}?", "Correct Answer": f"right {i}", "Incorrect Answer 1": "wrong one",
        "Incorrect Answer 2": "wrong two", "Incorrect Answer 3": "wrong three", "Record ID": str(i),
    },
}  # fmt: skip


def _write(folder: Path, name: str, rows: list[dict[str, Any]], suffix: str = ".jsonl") -> None:
    folder.mkdir(exist_ok=True)
    if suffix == ".parquet":
        Dataset.from_list(rows).to_parquet(str(folder / f"{name}.parquet"))
    else:
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _tasks(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "jsonl" / f"{name}.jsonl").read_text().splitlines()]


def _ids(folder: Path, name: str) -> dict[str, str]:
    return {task["prompt"][0]["content"]: task["prompt_id"] for task in _tasks(folder, name)}


def test_every_source_has_a_row_here() -> None:
    assert set(ROWS) == set(prepare.SOURCES)


@pytest.mark.parametrize("name", ROWS)
def test_both_trainers_get_the_same_tasks_and_the_judge_knows_the_answer(name: str, tmp_path: Path) -> None:
    _write(tmp_path / "hub", name, [ROWS[name](i) for i in range(1, 6)])
    assert prepare.main([str(tmp_path), "--from", str(tmp_path / "hub"), "--only", name]) == 0
    trl = load_prompts(str(tmp_path / "jsonl" / f"{name}.jsonl")).train
    verl = load_prompts(str(tmp_path / "parquet" / f"{name}.parquet")).train
    assert len(trl) == len(verl) == len(set(trl["prompt_id"])) == 5
    for ours, theirs in zip(trl, verl, strict=True):
        assert ours["prompt"] == theirs["prompt"]
        assert ours["prompt_id"] == theirs["prompt_id"]
        answer = theirs["reward_model"]["ground_truth"]
        assert ours["answer"] == f"${answer}$"
        assert "boxed" in ours["prompt"][0]["content"] and "Answer:" not in ours["prompt"][0]["content"]
        judge = named_reward("math")
        right, wrong = rf"So it is $\boxed{{{answer}}}$.", r"So it is $\boxed{-12345}$."
        assert judge(prompts=["", ""], completions=[right, wrong], answer=[ours["answer"]] * 2) == [1.0, 0.0]


def test_ids_survive_another_order_format_and_row(tmp_path: Path) -> None:
    """A second run over a shuffled file of another format, with more rows, gives every old prompt its old id."""
    for name, make in ROWS.items():
        rows = [make(i) for i in range(1, 8)]
        _write(tmp_path / "first", name, rows[:5])
        random.Random(0).shuffle(rows)
        _write(tmp_path / "second", name, rows, ".parquet")
    for run in ("first", "second"):
        assert prepare.main([str(tmp_path / f"{run}-out"), "--from", str(tmp_path / run)]) == 0
    for name in ROWS:
        first, second = _ids(tmp_path / "first-out", name), _ids(tmp_path / "second-out", name)
        assert first.items() <= second.items()
        assert len(second) == 7


@pytest.mark.parametrize(
    ("stored", "said"),
    [
        ("4.5e33", r"4.5 \times 10^{33}"),
        (["$2^{1009}$"], r"2^{1009}"),
        (["$2$", "$3$"], "3, 2"),
        (27.0, "27"),
        (r"11\sqrt{2}", r"\sqrt{242}"),
        (r"\$36", "36"),
        ({"ground_truth": "-3"}, "-3"),
    ],
)
def test_answers_are_judged_by_their_value(stored: Any, said: str) -> None:
    source = prepare.Source("hub", "test", "question", "answer")
    task = prepare.merged(source, iter([{"question": "What?", "answer": stored}]))[0][0]
    judge = named_reward("math")
    right, wrong = rf"Hence $\boxed{{{said}}}$.", r"Hence $\boxed{11}$."
    assert judge(["", ""], [right, wrong], [prepare._trl_row(task)["answer"]] * 2) == [1.0, 0.0]


def test_copies_are_merged_and_contradictions_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [_dapo(i, copy) for copy in range(100) for i in range(1, 4)]
    rows[-1]["reward_model"] = {**rows[-1]["reward_model"], "ground_truth": "77"}
    _write(tmp_path / "hub", "dapo-math-17k", rows)
    assert prepare.main([str(tmp_path), "--from", str(tmp_path / "hub"), "--only", "dapo-math-17k"]) == 0
    assert [task["answer"] for task in _tasks(tmp_path, "dapo-math-17k")] == ["$2$", "$4$"]
    said = capsys.readouterr().out
    assert "300 rows read, 2 tasks written, 1 questions with several answers left out" in said


def test_choices_are_in_an_order_that_depends_on_the_question(tmp_path: Path) -> None:
    _write(tmp_path / "hub", "gpqa-diamond", [ROWS["gpqa-diamond"](i) for i in range(40)])
    assert prepare.main([str(tmp_path), "--from", str(tmp_path / "hub"), "--only", "gpqa-diamond"]) == 0
    tasks = _tasks(tmp_path, "gpqa-diamond")
    assert {task["answer"].strip("$") for task in tasks} == set("ABCD")
    for i, task in enumerate(tasks):
        assert f"{task['answer'].strip('$')}) right {i}\n" in task["prompt"][0]["content"]


@pytest.mark.parametrize("name", ROWS)
def test_a_missing_column_is_named(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for column in prepare.SOURCES[name].needed:
        row = {key: value for key, value in ROWS[name](1).items() if key != column}
        _write(tmp_path, name, [row])
        assert prepare.main([str(tmp_path / "out"), "--from", str(tmp_path), "--only", name]) == 1
        error = capsys.readouterr().err
        assert f"{tmp_path / name}.jsonl has no column {column!r}; it has: {', '.join(row)}" in error


def test_a_missing_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare.main([str(tmp_path / "out"), "--from", str(tmp_path), "--only", "minerva"]) == 1
    assert "there is no minerva.jsonl or minerva.json or minerva.parquet" in capsys.readouterr().err


@pytest.mark.parametrize("n", range(1, 7))
def test_pass_at_k_is_the_share_of_k_samples_with_a_success(n: int) -> None:
    for right in range(n + 1):
        successes = [True] * right + [False] * (n - right)
        for k in range(1, n + 1):
            draws = list(combinations(successes, k))
            assert evaluate.pass_at(k, n, right) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_a_question_is_scored_by_the_judge_of_the_training() -> None:
    row = {"prompt": [{"role": "user", "content": "What?"}], "answer": "$11\\sqrt{2}$"}
    responses = ["$\\boxed{\\sqrt{242}}$", "$\\boxed{11}$", "no answer", ""]
    assert evaluate.scorer(n=4, k=2)(row, [responses]) == {"avg@4": 0.25, "pass@2": 0.5}


@pytest.mark.parametrize("answer", [r"11\sqrt{2}", r"2^{5}", r"\frac{1}{7}", r"\left(1,2\right)", "27", r"$x^2+1$"])
def test_a_right_answer_needs_no_dollar_signs(answer: str) -> None:
    """math-verify alone reads the first number of bare LaTeX: 11 of 11\\sqrt{2}."""
    bare = answer.strip("$")
    said = [rf"So $\boxed{{{bare}}}$.", r"So $\boxed{11}$.", r"So $\boxed{2}$."]
    assert named_reward("math")([""] * 3, said, [answer] * 3) == [1.0, 0.0, 0.0]


def _words(tmp_path: Path, program: str, *call: str) -> list[str]:
    """The command line with which a script starts ``program``."""
    (tmp_path / program).write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    (tmp_path / program).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "DATA": "/data", "MODEL": "", "OUTPUT": ""}
    environment = {name: value for name, value in environment.items() if value}
    ran = subprocess.run(["bash", *call], env=environment, capture_output=True, text=True, check=True)
    return list(json.loads(ran.stdout))


@pytest.mark.parametrize(("size", "model"), [("1.5b", "Qwen/Qwen2.5-Math-1.5B"), ("7b", "Qwen/Qwen2.5-Math-7B")])
def test_train_starts_verl_with_the_paper_s_setting(size: str, model: str, tmp_path: Path) -> None:
    words = _words(tmp_path, "python", str(FOLDER / "train.sh"), "verl", size, "trainer.save_freq=7")
    assert words[:2] == ["-m", "verl.trainer.main_ppo"]
    last = dict(word.split("=", 1) for word in words[2:])  # hydra takes the last value of a name
    assert last["actor_rollout_ref.model.path"] == model
    assert last["data.train_files"] == "/data/parquet/dapo-math-17k.parquet"
    assert Path(last["data.val_files"]).stem in prepare.SOURCES
    assert Path(last["reward.custom_reward_function.path"]).samefile(FOLDER / "judge.py")
    assert last["trainer.save_freq"] == "7"


def test_train_starts_trl_with_options_that_exist(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    from knapsack_rl.train.command import add_arguments, trainer_fields

    words = _words(tmp_path, "knapsack-rl", str(FOLDER / "train.sh"), "trl", "1.5b", "--rules", "uniform,calibrated")
    assert words[0] == "train"
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_arguments(parser)
    given, rest = parser.parse_known_args(words[1:])
    assert (given.model, given.dataset) == ("Qwen/Qwen2.5-Math-1.5B", "/data/jsonl/dapo-math-17k.jsonl")
    assert list(given.rules) == ["uniform", "calibrated"]
    fields = trainer_fields(rest, {})
    rollouts = fields["per_device_train_batch_size"] * fields["steps_per_generation"]
    updates = fields["per_device_train_batch_size"] * fields["gradient_accumulation_steps"]
    assert (rollouts, updates) == (64 * given.average, 32 * given.average)


def test_evaluate_takes_a_model_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    words = _words(tmp_path, "python", str(FOLDER / "evaluate.sh"), str(tmp_path / "model"), "--n", "32")
    assert Path(words[0]).samefile(FOLDER / "evaluate.py")
    given = evaluate._parsed(words[1:])
    assert (given.model, given.data, given.n, given.k) == (str(tmp_path / "model"), Path("/data"), 32, 16)


def test_evaluate_names_a_benchmark_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main(["model", "--data", str(tmp_path), "--output", str(tmp_path), "--benchmarks", "minerva"]) == 1
    assert f"{tmp_path}/jsonl has no minerva: run prepare.py" in capsys.readouterr().err

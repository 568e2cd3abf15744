"""What `train` checks and chooses before it makes a folder or warms up a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")

from knapsack_rl.tasks import TaskError
from knapsack_rl.train.job import Job
from knapsack_rl.train.preflight import PROMPTS, default_reward, prepare

MODEL = "embedded?hidden=64&layers=1&steps=120"
REWARD = "def reward(prompts, completions, {column}, **others):\n    return [0.0] * len(prompts)\n"


@pytest.fixture(autouse=True)
def nothing_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("KNAPSACK_RL_CACHE", str(tmp_path / "cache"))
    yield
    assert not (tmp_path / "cache").exists()


def data(folder: Path, *rows: dict[str, object]) -> str:
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


ROWS = [{"prompt": f"{i} + 1 =", "answer": str(i + 1), "level": i} for i in range(64)]


@pytest.mark.parametrize(
    ("answers", "name"),
    [
        (["1", "2.5", "-3", "0,5"], "math"), ([1, 2.0], "math"), (["1", "yes"], "exact"), (["x = 1"], "exact"),
        (["True", "False"], "exact"), ([True, False], "exact"), (["nan"], "exact"), (["1", "infinity"], "exact"),
    ],
)  # fmt: skip
def test_the_default_reward_goes_by_the_answers(answers: list[object], name: str) -> None:
    assert default_reward(answers)[0] == name


def test_prompt_and_answer_are_enough_and_the_job_says_what_it_chose(tmp_path: Path) -> None:
    job, notes = prepare(Job(model=MODEL, dataset=data(tmp_path, *ROWS)))
    assert job.reward == "math"
    assert notes == ["reward: math (every answer is a number, and math-verify compares); --reward sets another"]
    chosen, nothing = prepare(Job(model=MODEL, dataset=data(tmp_path, *ROWS), reward="exact"))
    assert (chosen.reward, nothing) == ("exact", [])


def test_the_main_job_needs_no_check() -> None:
    assert prepare(Job()) == (Job(), [])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "./nowhere"}, "there is no model folder"),
        ({"model": "embedded?depth=3"}, "the embedded model has no such setting"),
        ({"model": "embedded?steps=many"}, "the embedded model cannot be made: steps is 'many'"),
        ({"dataset": "embedded", "reward": "magic"}, "unknown reward 'magic'"),
        ({"trainer": {"num_generations": "eight"}}, "--average is 'eight': it must be a whole number of at least 2"),
        ({"trainer": {"per_device_train_batch_size": 0}}, "generation_batch_size is 0 and .*: a batch must hold"),
        ({"dataset": "missing.jsonl"}, "there is no data file"),
        ({"prompt_column": "question"}, "no column 'question'.*--prompt-column.*it has: prompt, answer, level"),
        ({"answer_column": "solution"}, "no column 'solution'"),
        ({"reward": "magic"}, "unknown reward 'magic'"),
        ({"reward": "missing.py:reward"}, "missing.py"),
        ({"reward": "{folder}/reward.py:nothing"}, "has no function 'nothing'"),
        ({"reward": "{folder}/reward.py:reward"}, "asks for the column 'difficulty'; the dataset has answer, level"),
        ({"system_prompt": "be brief"}, "no chat template"),
        ({"trainer": {"report_to": "magic"}}, "--report_to is 'magic': choose from none, .*tensorboard"),
        ({"trainer": {"report_to": ["none", "comet_ml"]}}, "comet_ml, which is not installed: pip install comet-ml"),
        ({"trainer": {"per_device_train_batch_size": 1024}}, "the training dataset has 64 prompts"),
        ({"trainer": {"num_generations": 7}}, "--average|num_generations"),
        ({"trainer": {"max_generations": 4}}, "--average is 8.*--max"),
    ],
)
def test_what_cannot_work_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "reward.py").write_text(REWARD.format(column="difficulty"))
    given = {"model": MODEL, "dataset": data(tmp_path, *ROWS)} | changes
    if "reward" in changes:
        given["reward"] = changes["reward"].format(folder=tmp_path)
    with pytest.raises(TaskError, match=message) as refusal:
        prepare(Job(**given))
    assert "\n" not in str(refusal.value)


def test_without_answers_there_is_no_default_reward(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="neither a reward of its own nor a column 'answer'.*it has: prompt, solution"):
        prepare(Job(model=MODEL, dataset=data(tmp_path, {"prompt": "1 + 1 =", "solution": "2"})))
    with pytest.raises(TaskError, match=r"no row of .* has an answer"):
        prepare(Job(model=MODEL, dataset=data(tmp_path, {"prompt": "1 + 1 =", "answer": None})))
    with pytest.raises(TaskError, match="the reward 'exact' needs the column 'answer'"):
        prepare(Job(model=MODEL, dataset=data(tmp_path, {"prompt": "1 + 1 =", "solution": "2"}), reward="exact"))


@pytest.mark.parametrize("rows", [3, 64])
def test_a_real_model_gets_a_batch_and_a_machine(rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("knapsack_rl.train.preflight._check_model", lambda job: None)
    monkeypatch.setattr("knapsack_rl.tasks.models.load_tokenizer", lambda path: None)
    monkeypatch.setattr("knapsack_rl.train.single_run.chat_prompts", lambda *given: None)
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    where = {"model": "some/model", "dataset": data(tmp_path, *ROWS[:rows]), "rules": ("calibrated",), "steps": 1}
    job, notes = prepare(Job(**where))
    assert job.trainer["gradient_accumulation_steps"] == min(rows, PROMPTS)
    assert job.trainer["per_device_train_batch_size"] == 8
    assert (job.trainer["use_cpu"], job.trainer["bf16"]) == (True, False)
    assert "no GPU was found" in notes[-1]
    own, _ = prepare(Job(**where, trainer={"per_device_train_batch_size": 16, "use_cpu": True, "bf16": False}))
    assert own.trainer["per_device_train_batch_size"] == 16
    assert "gradient_accumulation_steps" not in own.trainer
    larger, _ = prepare(Job(**where, trainer={"num_generations": 12}))
    assert larger.trainer["per_device_train_batch_size"] == 12

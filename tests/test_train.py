"""The main job in small, through the command line: a base model of a second, a few steps, real processes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest.importorskip("trl")

import torch
from transformers import AutoModelForCausalLM

from knapsack_rl.__main__ import main
from knapsack_rl.tasks import TaskError
from knapsack_rl.tasks.models import load_tokenizer, model_path
from knapsack_rl.tasks.prompts import load_prompts
from knapsack_rl.trace import read_trace
from knapsack_rl.train.job import Job, free_output
from knapsack_rl.train.single_run import chat_prompts, last_checkpoint, spells_characters

# One second of warm start on the easiest settings, so that some answers are right from the first step.
MODEL = "embedded?hidden=64&layers=1&steps=120"
SMALL = [
    *("--model", MODEL, "--dataset", "embedded?train=32&heldout=32"),
    *("--per_device_train_batch_size", "64", "--steps", "6"),
]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["KNAPSACK_RL_CACHE"] = str(tmp_path_factory.mktemp("cache"))


def test_the_job_runs_both_rules_compares_them_and_reports(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    assert main(["train", *SMALL, "--output", str(output)]) == 0
    traces = {rule: read_trace(output / rule / "trace.jsonl") for rule in ("uniform", "calibrated")}
    for trace in traces.values():
        assert trace.ended == "finished"
        assert [step.plan.budget for step in trace.steps] == [64] * 6
        assert [evaluation.step for evaluation in trace.evals] == list(range(7))
        assert set(trace.evals[0].rates or ()) == set(trace.texts) | set(trace.evals[0].rates or ())
        assert len(trace.evals[0].rates or ()) == 32
    uniform, calibrated = traces["uniform"], traces["calibrated"]
    assert {int(n) for step in uniform.steps for n in step.plan.counts_P} == {8}
    assert any(len(set(step.plan.counts_P.tolist())) > 1 for step in calibrated.steps)
    # The same start and the same order of prompts, of which the pool offers four times as many a step.
    assert uniform.evals[0].rates == calibrated.evals[0].rates
    offered = [calibrated.steps[0].plan.prompt_ids[first : first + 8] for first in range(0, 32, 8)]
    assert offered == [step.plan.prompt_ids for step in uniform.steps[:4]]
    shown = capfd.readouterr().out
    for word in (
        "warm-starting",
        "uniform",
        "calibrated",
        "6/6",
        "rollouts in mixed groups",
        "held-out pass rate",
        "384",
    ):
        assert word in shown
    assert "report.html" in shown
    assert (output / "report.html").stat().st_size > 10_000
    assert (output / "calibrated" / "model" / "model.safetensors").is_file()
    # A finished job is not resumed, but shown again.
    assert main(["train", "--resume", "--output", str(output)]) == 0
    assert "rollouts in mixed groups" in capfd.readouterr().out
    assert main(["train", *SMALL, "--output", str(output)]) == 2
    assert "--resume" in capfd.readouterr().err


def test_wrong_data_is_refused_before_a_folder_is_made(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"question": "1 + 1 =", "answer": "2"}\n')
    job = [
        "train",
        "--model",
        MODEL,
        "--dataset",
        str(data),
        "--rules",
        "calibrated",
        "--output",
        str(tmp_path / "out"),
    ]
    assert main([*job, "--steps", "1", "--reward", "exact"]) == 2
    shown = capfd.readouterr()
    assert "has no column 'prompt'" in shown.err
    assert "warm-starting" not in shown.out
    assert not (tmp_path / "out").exists()


def test_an_error_in_a_run_is_one_line_and_leaves_the_folder_free(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "reward.py").write_text("def reward(prompts, completions, **columns):\n    return ['x'] * 64\n")
    words = ["--rules", "calibrated", "--reward", f"{tmp_path}/reward.py:reward", "--output", str(tmp_path / "out")]
    assert main(["train", *SMALL, *words]) == 1
    shown = capfd.readouterr().out
    assert "calibrated failed" in shown
    assert "Traceback" not in shown
    assert free_output(tmp_path / "out") == tmp_path / "out"


def test_a_yaml_file_is_as_good_as_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Job] = []
    monkeypatch.setattr("knapsack_rl.train.command._run_job", lambda job, output, resume: started.append(job) or 0)
    file = tmp_path / "job.yaml"
    file.write_text(
        f"model: {MODEL}\ndataset: embedded\nrules: [calibrated]\nsteps: 5\nlearning_rate: 1e-3\noutput: {tmp_path}/a\n"
    )
    assert main(["train", "--config", str(file)]) == 0
    flags = [
        "--model",
        MODEL,
        "--dataset",
        "embedded",
        "--rules",
        "calibrated",
        "--steps",
        "5",
        "--learning_rate",
        "1e-3",
    ]
    assert main(["train", *flags, "--output", str(tmp_path / "b")]) == 0
    assert main(["train", "--config", str(file), "--steps", "6", "--output", str(tmp_path / "c")]) == 0
    assert started[0] == started[1]
    assert started[2].steps == 6
    assert Job.load(tmp_path / "a") == started[0]


def test_conversations_need_a_template_and_texts_do_not(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(model_path(MODEL))
    prompts = load_prompts("embedded?train=4&heldout=0").train
    assert chat_prompts(prompts, tokenizer, Job()) is prompts
    with pytest.raises(TaskError, match="no chat template, which a system prompt would need"):
        chat_prompts(prompts, tokenizer, Job(system_prompt="be brief"))
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    chats = chat_prompts(prompts, tokenizer, Job(system_prompt="be brief"))
    assert [message["role"] for message in chats[0]["prompt"]] == ["system", "user"]
    tokenizer.chat_template = None
    with pytest.raises(TaskError, match="no chat template, which the conversations of"):
        chat_prompts(chats, tokenizer, Job())


def test_only_a_tokenizer_that_spells_allows_exact_rates() -> None:
    tokenizer = load_tokenizer(model_path(MODEL))
    assert spells_characters(tokenizer)
    model = AutoModelForCausalLM.from_pretrained(model_path(MODEL))
    assert sum(weights.numel() for weights in model.parameters()) < 100_000
    assert next(model.parameters()).dtype == torch.float32


def test_a_checkpoint_cut_short_is_passed_over(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path) is None
    for step in (5, 10, 20):
        (tmp_path / f"checkpoint-{step}").mkdir()
    (tmp_path / "checkpoint-5" / "trainer_state.json").touch()
    (tmp_path / "checkpoint-10" / "trainer_state.json").touch()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")

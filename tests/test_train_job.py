"""The main job without a framework: its settings and folders, its progress, its closing table."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rich")

from rich.console import Console

from knapsack_rl.outcomes import Outcomes
from knapsack_rl.plan import Plan
from knapsack_rl.tasks.errors import TaskError
from knapsack_rl.trace import TraceWriter
from knapsack_rl.train.display import Display
from knapsack_rl.train.job import Job, check_same, free_output, new_job, resumable_output
from knapsack_rl.train.progress import duration, follow_arms
from knapsack_rl.train.summary import print_summary

STEPS = 4


def write_step(writer: TraceWriter, step: int, counts: tuple[int, int], right: int) -> None:
    plan = Plan(
        step=step,
        prompt_ids=("a", "b"),
        counts_P=np.array(counts),
        budget=sum(counts),
        low_P=np.array([2, 2]),
        high_P=np.array([8, 8]),
        success_rates_P=np.array([0.5, 0.5]),
        strength_P=np.array([1.0, 1.0]),
        seen_P=np.array([True, True]),
    )
    rewards = [1.0] * right + [0.0] * (counts[0] - right)
    outcomes = Outcomes.of_groups(step, [("a", rewards), ("b", [0.0] * counts[1])])
    writer.step(plan, outcomes, optimizer_step=step, seconds={"allocate": 0.01, "overhead": 0.02, "step": 2.0})


def write_arm(folder: Path, method: str, counts: tuple[int, int], heldout: float, end: str | None = "finished") -> None:
    run = {"engine": "trl", "method": method, "seed": 0, "settings": {"max_steps": STEPS}}
    writer = TraceWriter(folder / "trace.jsonl", run)
    writer.evaluation(0, 0, {"train/pass_rate": 0.2, "heldout/pass_rate": 0.2})
    for step in range(STEPS):
        write_step(writer, step, counts, right=1)
    writer.evaluation(STEPS, 8 * STEPS, {"train/pass_rate": 0.5, "heldout/pass_rate": heldout})
    if end:
        writer.end(end)
    writer.close()


def console() -> Console:
    return Console(file=io.StringIO(), width=140)


def shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


# ------------------------------------------------------------------------------------------------------- settings


def test_a_job_survives_its_record(tmp_path: Path) -> None:
    job = new_job({"seed": 3, "arms": ("knapsack", "paper")}, {"learning_rate": 1e-3})
    job.save(tmp_path)
    assert Job.load(tmp_path) == job
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_defaults_suit_the_model() -> None:
    embedded, real = Job(), new_job({"model": "smollm2", "dataset": "reasoning-gym:gcd"}, {"num_generations": 4})
    assert (embedded.arms, embedded.steps, embedded.tiny) == (("uniform", "knapsack"), 180, True)
    assert (real.arms, real.steps, real.tiny) == (("knapsack",), None, False)
    assert embedded.trainer_fields()["learning_rate"] == 3e-4
    assert "learning_rate" not in real.trainer_fields()
    assert real.trainer_fields()["num_generations"] == 4
    assert new_job({"steps": 7}, {}).trainer_fields()["max_steps"] == 7


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model": "gpt2"}, "--model gpt2 needs --dataset"),
        ({"arms": ("uniform", "best")}, "unknown: best"),
        ({"arms": ()}, "none given"),
    ],
)
def test_jobs_that_make_no_sense_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        new_job(given, {})


def test_going_on_with_other_settings_is_refused(tmp_path: Path) -> None:
    job = new_job({"seed": 3}, {"learning_rate": 1e-3})
    check_same(job, {"seed": 3, "arms": ("uniform", "knapsack")}, {"learning_rate": 1e-3}, tmp_path)
    with pytest.raises(TaskError, match="another seed: it was started with 3, now it is 4"):
        check_same(job, {"seed": 4}, {}, tmp_path)
    with pytest.raises(TaskError, match=r"another learning_rate: it was started with 0\.001"):
        check_same(job, {}, {"learning_rate": 2e-3}, tmp_path)
    with pytest.raises(TaskError, match='another beta: it was started with "TRL\'s default"'):
        check_same(job, {}, {"beta": 0.1}, tmp_path)


@pytest.mark.parametrize("content", ["", "[]", '{"job": {"nonsense": 1, "arms": []}}', '{"version": 1}'])
def test_a_damaged_record_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(TaskError, match=r"cannot read the recorded job .*run\.json"):
        Job.load(tmp_path)


# -------------------------------------------------------------------------------------------------------- folders


def test_the_default_folder_is_the_first_free_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TaskError, match="no run to resume"):
        resumable_output(None)
    first = free_output(None)
    assert first == Path("runs/train")
    Job().save(first)
    write_arm(first / "uniform", "uniform", (4, 4), 0.5)
    assert free_output(None) == Path("runs/train-2")
    assert resumable_output(None) == first
    Job().save(Path("runs/train-2"))
    assert resumable_output(None) == Path("runs/train-2")
    assert resumable_output(first) == first


def test_a_folder_in_use_is_refused_and_a_failed_start_is_not_in_use(tmp_path: Path) -> None:
    Job().save(tmp_path)
    (tmp_path / "uniform").mkdir()
    (tmp_path / "uniform" / "log.txt").write_text("error: no such model")
    assert free_output(tmp_path) == tmp_path
    write_arm(tmp_path / "uniform", "uniform", (4, 4), 0.5)
    with pytest.raises(TaskError, match="is not empty: choose another --output, or go on"):
        free_output(tmp_path)
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(TaskError, match="is not empty"):
        free_output(file)


def test_a_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(TaskError, match="is not empty"):
        free_output(tmp_path)


# ------------------------------------------------------------------------------------------------------- progress


def test_progress_follows_the_trace_and_nothing_else(tmp_path: Path) -> None:
    (arm,) = follow_arms(tmp_path, ["knapsack"])
    assert not arm.poll()
    writer = TraceWriter(tmp_path / "knapsack" / "trace.jsonl", {"settings": {"max_steps": 10}})
    assert arm.poll()
    assert (arm.total, arm.done, np.isnan(arm.reward), np.isnan(arm.seconds_left)) == (10, 0, True, True)
    write_step(writer, 0, (6, 2), right=3)
    write_step(writer, 1, (6, 2), right=3)
    arm.poll()
    assert (arm.done, arm.rollouts, arm.largest) == (2, 16, 6)
    assert (arm.reward, arm.prompts_mixed, arm.rollouts_mixed) == (3 / 8, 1 / 2, 6 / 8)
    assert arm.seconds_left == pytest.approx(8 * 2.0, abs=1.0)
    writer.end("interrupted")
    arm.poll()
    assert (arm.ended, arm.seconds_left) == ("interrupted", 0.0)
    # Resumed: what an earlier run said about its end no longer holds, and one step is done again.
    (again,) = follow_arms(tmp_path, ["knapsack"])
    assert (again.ended, again.done) == (None, 2)
    TraceWriter(tmp_path / "knapsack" / "trace.jsonl", {}, resume_step=1).close()
    again.poll()
    assert again.done == 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(float("nan"), "-"), (0, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")],
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_log_gets_lines_and_a_terminal_gets_a_table(tmp_path: Path) -> None:
    for terminal in (False, True):
        screen = Console(file=io.StringIO(), width=140, force_terminal=terminal)
        folder = tmp_path / str(terminal)
        arms = follow_arms(folder, ["uniform", "knapsack"])
        with Display(screen, arms) as display:
            write_arm(folder / "knapsack", "posterior", (6, 2), 0.5)
            display.update()
            display.say("a note")
        text = shown(screen)
        assert "knapsack" in text
        assert f"{STEPS}/{STEPS}" in text
        assert "75 %" in text  # rollouts in mixed groups
        assert "finished" in text
        assert "a note" in text
        assert ("prompts mixed 50 %" in text) is not terminal  # figures carry their names in a log


# ---------------------------------------------------------------------------------------------------------- table


@pytest.mark.parametrize(
    ("heldout", "sentence"),
    [
        (0.55, "held-out prompts: knapsack is ahead by 0.050 at the same number of rollouts."),
        (0.45, "held-out prompts: uniform is ahead by 0.050 at the same number of rollouts."),
        (0.51, "held-out prompts: no difference (+0.010;"),
    ],
)
def test_the_table_says_who_is_ahead_whoever_it_is(heldout: float, sentence: str, tmp_path: Path) -> None:
    write_arm(tmp_path / "uniform", "uniform", (4, 4), 0.5)
    write_arm(tmp_path / "knapsack", "posterior", (6, 2), heldout)
    screen = console()
    uniform, knapsack = print_summary(screen, tmp_path, ["uniform", "knapsack"])
    assert (uniform.rollouts, uniform.largest, uniform.rollouts_mixed) == (32, 4, 0.5)
    assert (knapsack.rollouts, knapsack.largest, knapsack.rollouts_mixed) == (32, 6, 0.75)
    assert knapsack.overhead == pytest.approx(0.01)
    text = shown(screen)
    assert sentence in text
    assert "training prompts: no difference (+0.000;" in text
    assert f"0.200 -> {heldout:.3f}" in text


def test_runs_that_cannot_be_compared_are_not(tmp_path: Path) -> None:
    write_arm(tmp_path / "uniform", "uniform", (4, 4), 0.5)
    write_arm(tmp_path / "knapsack", "posterior", (6, 4), 0.9)
    write_arm(tmp_path / "paper", "paper", (6, 2), 0.9, end="interrupted")
    screen = console()
    print_summary(screen, tmp_path, ["uniform", "knapsack"])
    assert "different numbers of rollouts: no comparison" in shown(screen)
    assert "ahead" not in shown(screen)
    screen = console()
    print_summary(screen, tmp_path, ["uniform", "paper"])
    assert "paper did not finish: nothing to compare yet." in shown(screen)


def test_one_arm_or_none_is_no_comparison(tmp_path: Path) -> None:
    screen = console()
    assert print_summary(screen, tmp_path, ["uniform", "knapsack"]) == []
    assert shown(screen) == ""
    write_arm(tmp_path / "knapsack", "posterior", (6, 2), 0.9)
    print_summary(screen, tmp_path, ["uniform", "knapsack"])
    assert "ahead" not in shown(screen)

"""The main job without a framework: its settings and folders, its progress, its closing table."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rich")

from rich.console import Console

from knapsack_rl.outcomes import Outcomes
from knapsack_rl.plan import Plan
from knapsack_rl.report.tables import duration, headline
from knapsack_rl.tasks import TaskError
from knapsack_rl.trace import TraceWriter
from knapsack_rl.train.job import Job, check_same, free_output, new_job, resumable_output
from knapsack_rl.train.progress import ProgressDisplay, follow_runs, print_summary

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
        pseudo_count_P=np.array([1.0, 1.0]),
        seen_P=np.array([True, True]),
    )
    rewards = [1.0] * right + [0.0] * (counts[0] - right)
    outcomes = Outcomes.of_groups(step, [("a", rewards), ("b", [0.0] * counts[1])])
    writer.step(plan, outcomes, optimizer_step=step, seconds={"overhead": 0.02, "step": 2.0})


def write_run(folder: Path, rule: str, counts: tuple[int, int], heldout: float, end: str | None = "finished") -> None:
    run = {"engine": "trl", "rule": rule, "seed": 0, "settings": {"max_steps": STEPS}}
    writer = TraceWriter(folder / "trace.jsonl", run)
    writer.evaluation(0, 0, {"train/pass_rate": 0.2, "heldout/pass_rate": 0.2})
    for step in range(STEPS):
        write_step(writer, step, counts, right=1)
    writer.evaluation(STEPS, sum(counts) * STEPS, {"train/pass_rate": 0.5, "heldout/pass_rate": heldout})
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
    job = new_job({"seed": 3, "rules": ("calibrated", "paper")}, {"learning_rate": 1e-3})
    job.save(tmp_path)
    assert Job.load(tmp_path) == job
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_defaults_suit_the_model() -> None:
    embedded, real = Job(), new_job({"model": "smollm2", "dataset": "reasoning-gym:gcd"}, {"num_generations": 4})
    assert (embedded.rules, embedded.steps, embedded.tiny) == (("uniform", "calibrated"), 180, True)
    assert (real.rules, real.steps, real.tiny) == (("calibrated",), None, False)
    assert embedded.trainer_fields()["learning_rate"] == 3e-4
    assert "learning_rate" not in real.trainer_fields()
    assert real.trainer_fields()["num_generations"] == 4
    assert new_job({"steps": 7}, {}).trainer_fields()["max_steps"] == 7


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model": "gpt2"}, "--model gpt2 needs --dataset"),
        ({"rules": ("uniform", "best")}, "unknown: best"),
        ({"rules": ()}, "none given"),
    ],
)
def test_jobs_that_make_no_sense_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        new_job(given, {})


def test_going_on_with_other_settings_is_refused(tmp_path: Path) -> None:
    job = new_job({"seed": 3}, {"learning_rate": 1e-3})
    check_same(job, {"seed": 3, "rules": ("uniform", "calibrated")}, {"learning_rate": 1e-3}, tmp_path)
    with pytest.raises(TaskError, match="another seed: it was started with 3, and now given 4"):
        check_same(job, {"seed": 4}, {}, tmp_path)
    with pytest.raises(TaskError, match=r"another learning_rate: it was started with 0\.001"):
        check_same(job, {}, {"learning_rate": 2e-3}, tmp_path)
    with pytest.raises(TaskError, match='another beta: it was started with "TRL\'s default"'):
        check_same(job, {}, {"beta": 0.1}, tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"job": {"nonsense": 1, "rules": []}}',
        '{"version": 1}',
        '{"job": {"rules": 5}}',
        "[" * 5000,
        "\udcff",
    ],
    ids=range(7),
)
def test_a_damaged_record_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(TaskError, match=r"cannot read the recorded job .*run\.json"):
        Job.load(tmp_path)


def test_a_record_of_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"version": 2, "job": {"rules": ["beta"], "depth": 3}}')
    with pytest.raises(TaskError, match=r"run\.json has version 2, and this release reads 1"):
        Job.load(tmp_path)


# -------------------------------------------------------------------------------------------------------- folders


def test_the_default_folder_is_the_first_free_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TaskError, match="no run to resume"):
        resumable_output(None)
    first = free_output(None)
    assert first == Path("runs/train")
    Job().save(first)
    write_run(first / "uniform", "uniform", (4, 4), 0.5)
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
    write_run(tmp_path / "uniform", "uniform", (4, 4), 0.5)
    with pytest.raises(TaskError, match="is not empty: choose another --output, or resume"):
        free_output(tmp_path)
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(TaskError, match="is not empty"):
        free_output(file)


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(TaskError, match="is not empty"):
        free_output(tmp_path)


# ------------------------------------------------------------------------------------------------------- progress


def test_progress_follows_the_trace_and_nothing_else(tmp_path: Path) -> None:
    (run,) = follow_runs(tmp_path, ["calibrated"])
    assert not run.poll()
    writer = TraceWriter(tmp_path / "calibrated" / "trace.jsonl", {"settings": {"max_steps": 10}})
    assert run.poll()
    assert (run.total, run.done, np.isnan(run.recent[0]), np.isnan(run.seconds_left)) == (10, 0, True, True)
    write_step(writer, 0, (6, 2), right=3)
    write_step(writer, 1, (6, 2), right=3)
    run.poll()
    assert (run.done, run.rollouts, run.largest) == (2, 16, 6)
    assert run.recent == (3 / 8, 1 / 2, 6 / 8)
    assert run.seconds_left == pytest.approx(8 * 2.0, abs=1.0)
    writer.end("interrupted")
    run.poll()
    assert (run.ended, run.seconds_left) == ("interrupted", 0.0)
    # Resumed: the end record no longer counts, and one step is done again.
    (again,) = follow_runs(tmp_path, ["calibrated"])
    assert (again.ended, again.done) == (None, 2)
    TraceWriter(tmp_path / "calibrated" / "trace.jsonl", {}, resume_step=1).close()
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
        runs = follow_runs(folder, ["uniform", "calibrated"])
        with ProgressDisplay(screen, runs) as display:
            write_run(folder / "calibrated", "calibrated", (6, 2), 0.5)
            display.update()
            display.say("a note")
        text = shown(screen)
        assert "calibrated" in text
        assert f"{STEPS}/{STEPS}" in text
        assert "75 %" in text  # rollouts in mixed groups
        assert "finished" in text
        assert "a note" in text
        assert ("prompts mixed 50 %" in text) is not terminal  # figures carry their names in a log


# ---------------------------------------------------------------------------------------------------------- table


@pytest.mark.parametrize(
    ("heldout", "sentence"),
    [
        (0.55, "the held-out pass rate is 0.500 with uniform; 0.550 with calibrated, ahead by 0.050"),
        (0.45, "the held-out pass rate is 0.500 with uniform; 0.450 with calibrated, behind by 0.050."),
        (0.51, "the held-out pass rate is 0.500 with uniform; 0.510 with calibrated, a difference of +0.010, which is"),
    ],
)
def test_the_table_says_which_rule_is_ahead(heldout: float, sentence: str, tmp_path: Path) -> None:
    write_run(tmp_path / "uniform", "uniform", (4, 4), 0.5)
    write_run(tmp_path / "calibrated", "calibrated", (6, 2), heldout)
    screen = console()
    uniform, calibrated = print_summary(screen, tmp_path, ["uniform", "calibrated"])
    assert (uniform.rollouts, uniform.largest, uniform.metric("frac_rollouts_mixed")) == (32, 4, 0.5)
    assert (calibrated.rollouts, calibrated.largest, calibrated.metric("frac_rollouts_mixed")) == (32, 6, 0.75)
    assert calibrated.allocator_share == pytest.approx(0.01)
    text = shown(screen)
    assert f"After 32 rollouts {sentence}" in text
    assert (
        "the pass rate on training prompts is 0.500 with uniform; 0.500 with calibrated, a difference of +0.000" in text
    )
    assert f"0.200 -> {heldout:.3f}" in text
    for name, value in headline([calibrated])[0].items():
        assert re.search(rf"{re.escape(name)} +│ +\S.* │ +{re.escape(value.replace('→', '->'))} │", text), name


def test_rules_are_compared_at_equal_rollouts_and_unfinished_runs_are_named(tmp_path: Path) -> None:
    write_run(tmp_path / "uniform", "uniform", (4, 4), 0.5)
    write_run(tmp_path / "calibrated", "calibrated", (6, 4), 0.9)
    write_run(tmp_path / "paper", "paper", (6, 2), 0.9, end="interrupted")
    screen = console()
    print_summary(screen, tmp_path, ["uniform", "calibrated"])
    assert "After 32 rollouts the held-out pass rate is 0.500 with uniform; 0.760 with calibrated" in shown(screen)
    screen = console()
    print_summary(screen, tmp_path, ["uniform", "paper"])
    assert "Not finished: paper." in shown(screen)


def test_one_run_or_none_is_no_comparison(tmp_path: Path) -> None:
    screen = console()
    assert print_summary(screen, tmp_path, ["uniform", "calibrated"]) == []
    assert shown(screen) == ""
    write_run(tmp_path / "calibrated", "calibrated", (6, 2), 0.9)
    print_summary(screen, tmp_path, ["uniform", "calibrated"])
    assert "ahead" not in shown(screen)
    assert "No comparison" in shown(screen)

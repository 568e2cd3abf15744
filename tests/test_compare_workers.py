"""Trials in local processes and as Ray tasks: failures are named, the others continue, and no process is left."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import polars as pl
import pytest

from knapsack_arena.compare.trials import SIMULATOR, Trial, TrialSettings
from knapsack_arena.compare.workers import Job, Processes, RayTasks, TrialEvent, make_backend

SETTINGS = TrialSettings(prompts=32, groups=4, average=4, steps=10)
FAULTY = """
import os
from knapsack_rl.rules import expected_value

def raises(forecast, budget, low, high):
    raise RuntimeError("no\\n  reason")

def dies(forecast, budget, low, high):
    os._exit(7)

def exits(forecast, budget, low, high):
    raise SystemExit(3)

def breaks_a_pipe(forecast, budget, low, high):
    raise BrokenPipeError("mine")
"""
FAULTS = ("raises", "dies", "exits", "breaks_a_pipe")


def _job(folder: Path, rule: str, seed: int = 0) -> Job:
    trial = Trial(SIMULATOR, rule, "balanced", seed, SETTINGS)
    return Job(trial, folder / f"{trial.key}.parquet")


def _ends(events: Sequence[TrialEvent]) -> dict[str, TrialEvent]:
    return {each.trial.rule.rpartition(":")[2]: each for each in events if each.kind != "progress"}


def _faulty_jobs(folder: Path) -> list[Job]:
    file = folder / "faulty.py"
    file.write_text(FAULTY)
    return [_job(folder, f"{file}:{rule}") for rule in FAULTS] + [_job(folder, "uniform"), _job(folder, "dapo")]


def _assert_each_failure_is_named(events: list[TrialEvent], jobs: list[Job], folder: Path) -> None:
    ends = _ends(events)
    assert len(ends) == len(jobs) == sum(each.kind != "progress" for each in events)
    assert ends["raises"].error.startswith("RuntimeError: no reason (faulty.py:6")
    assert ends["dies"].error.startswith("its process died")
    assert ends["exits"].error.startswith("SystemExit: 3 (faulty.py:12")
    assert ends["breaks_a_pipe"].error.startswith("BrokenPipeError: mine (faulty.py:15")
    assert {rule: ends[rule].kind for rule in ("uniform", "dapo")} == {"uniform": "done", "dapo": "done"}
    assert {path.name for path in folder.iterdir()} == {"faulty.py", jobs[-1].file.name, jobs[-2].file.name}
    assert pl.read_parquet(jobs[-1].file)["rule"].unique().to_list() == ["dapo"]


def test_each_failure_is_named_and_the_others_continue(tmp_path: Path) -> None:
    jobs, before = _faulty_jobs(tmp_path), dict(os.environ)
    events = list(Processes(2).run(jobs))
    assert multiprocessing.active_children() == []
    assert dict(os.environ) == before
    _assert_each_failure_is_named(events, jobs, tmp_path)
    assert _ends(events)["dies"].error == "its process died with exit code 7"
    shares = [each.share for each in events if each.kind == "progress" and each.trial.rule == "uniform"]
    assert shares[-10:] == [step / 10 for step in range(1, 11)]  # it starts anew if it ran when the pool broke


def test_each_failure_is_named_by_ray(tmp_path: Path) -> None:
    jobs = _faulty_jobs(tmp_path)
    _assert_each_failure_is_named(list(RayTasks("local", 2).run(jobs)), jobs, tmp_path)


def test_a_process_that_is_killed_costs_no_trial(tmp_path: Path) -> None:
    jobs = [_job(tmp_path, rule, seed) for seed in range(2) for rule in ("uniform", "dapo", "beta")]
    events = []
    for event in Processes(2).run(jobs):
        if not events:
            (process, *_) = multiprocessing.active_children()
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
        events.append(event)
    assert [each.kind for each in events if each.kind != "progress"] == ["done"] * 6
    assert {path.name for path in tmp_path.iterdir()} == {job.file.name for job in jobs}
    assert multiprocessing.active_children() == []


def test_closing_stops_what_is_running(tmp_path: Path) -> None:
    jobs = [_job(tmp_path, "dapo", seed) for seed in range(50)]
    with contextlib.closing(Processes(2).run(jobs)) as events:
        assert next(events).kind == "progress"
    assert multiprocessing.active_children() == []
    assert len(list(tmp_path.iterdir())) < 50


def test_code_that_was_edited_meanwhile_leaves_no_result(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("from knapsack_rl.rules import expected_value as rule")
    job = _job(tmp_path, f"{file}:rule")
    file.write_text("from knapsack_rl.rules import uniform_rule as rule")
    (end,) = _ends(list(Processes(1).run([job]))).values()
    assert end.error.startswith("ValueError: its code was edited while the comparison ran: run the same command again")
    assert not job.file.exists()


def test_nothing_to_run_starts_nothing() -> None:
    assert list(Processes(4).run([])) == []
    assert multiprocessing.active_children() == []


def test_no_workers_run_nothing() -> None:
    with pytest.raises(ValueError, match="0 workers run nothing"):
        make_backend(0)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1:port"])
def test_a_cluster_that_is_not_there_is_one_clear_error(address: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"there is no Ray cluster at '{address}': "):
        list(make_backend(1, address).run([_job(tmp_path, "uniform")]))

"""Cells in processes of their own: what fails is named, the rest goes on, and nothing is left running."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import polars as pl
import pytest

from knapsack_rl.compare.cells import Arena, Cell
from knapsack_rl.compare.workers import Job, News, Workers

ARENA = Arena(prompts=32, groups=4, num_generations=4, steps=10)
FAULTY = """
import os
from knapsack_rl.allocator import expected_value

def raises(forecast, budget, low, high):
    raise RuntimeError("no\\n  luck")

def dies(forecast, budget, low, high):
    os._exit(7)

def exits(forecast, budget, low, high):
    raise SystemExit(3)

def breaks_its_pipe(forecast, budget, low, high):
    raise BrokenPipeError("mine")
"""


def _job(folder: Path, rule: str, seed: int = 0) -> Job:
    cell = Cell(rule, "balanced", seed, ARENA)
    return Job(cell, folder / f"{cell.key}.parquet")


def _last(news: list[News]) -> dict[str, News]:
    return {each.cell.rule.rpartition(":")[2]: each for each in news if each.kind != "share"}


def test_each_failure_is_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    file = tmp_path / "faulty.py"
    file.write_text(FAULTY)
    rules = ["raises", "dies", "exits", "breaks_its_pipe"]
    jobs = [_job(tmp_path, f"{file}:{rule}") for rule in rules] + [_job(tmp_path, "uniform"), _job(tmp_path, "dapo")]
    before = dict(os.environ)
    with Workers(2) as pool:
        news = list(pool.run(jobs))
    assert multiprocessing.active_children() == []
    assert dict(os.environ) == before
    ends = _last(news)
    assert len(ends) == len(jobs) == sum(each.kind != "share" for each in news)
    assert ends["raises"].error.startswith("RuntimeError: no luck (faulty.py:6")
    assert ends["dies"].error == "its process died with exit code 7"
    assert ends["exits"].error == "its process died with exit code 3"
    assert ends["breaks_its_pipe"].error.startswith("its process died")
    assert {rule: ends[rule].kind for rule in ("uniform", "dapo")} == {"uniform": "done", "dapo": "done"}
    shares = [each.share for each in news if each.kind == "share" and each.cell.rule == "uniform"]
    assert shares == [step / 10 for step in range(1, 11)]
    assert {path.name for path in tmp_path.iterdir()} == {"faulty.py", jobs[-1].file.name, jobs[-2].file.name}
    assert pl.read_parquet(jobs[-1].file)["rule"].unique().to_list() == ["dapo"]


def test_a_worker_that_dies_idle_costs_one_cell_at_most(tmp_path: Path) -> None:
    with Workers(1) as pool:
        assert _last(list(pool.run([_job(tmp_path, "uniform")])))["uniform"].kind == "done"
        ((process, _),) = pool._running.values()
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        ends = _last(list(pool.run([_job(tmp_path, "dapo"), _job(tmp_path, "posterior")])))
    assert ends["dapo"].error == "its process died with exit code -9"
    assert ends["posterior"].kind == "done"


def test_code_that_was_edited_meanwhile_leaves_no_result(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("from knapsack_rl.allocator import expected_value as rule")
    job = _job(tmp_path, f"{file}:rule")
    file.write_text("from knapsack_rl.allocator import uniform_rule as rule")
    with Workers(1) as pool:
        (end,) = _last(list(pool.run([job]))).values()
    assert end.error.startswith("ValueError: its code was edited while the comparison ran: run the same command again")
    assert not job.file.exists()


def test_nothing_to_run_starts_nothing(tmp_path: Path) -> None:
    with Workers(4) as pool:
        assert list(pool.run([])) == []
        assert multiprocessing.active_children() == []


def test_no_workers_run_nothing() -> None:
    with pytest.raises(ValueError, match="0 workers run nothing"):
        Workers(0)

"""`knapsack-rl compare` from the command line, with kills, Ctrl-C, Ray, and mistakes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from knapsack_arena.compare.metrics import SCHEMA
from knapsack_arena.compare.results import CURVES
from knapsack_rl.__main__ import main
from synthetic_run import record_run

SMALL = ["--prompts", "32", "--groups", "4", "--average", "4", "--steps", "10"]
SLOW = """
import time
from knapsack_rl.rules import expected_value

def slow(forecast, budget, low, high):
    time.sleep(0.02)
    return expected_value(forecast, budget, low, high)
"""
linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")


def _words(out: Path, rules: str, presets: str = "easy,hard", seeds: int = 2, workers: int = 2) -> list[str]:
    words = ["compare", "--rules", rules, "--presets", presets, "--seeds", str(seeds)]
    return [*words, *SMALL, "--workers", str(workers), "--output", str(out)]


def _numbers(out: Path) -> pl.DataFrame:
    """The results, without times."""
    return pl.read_parquet(out / "results.parquet").filter(pl.col("metric") != "seconds")


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("rule") / "slow.py"
    file.write_text(SLOW)
    return f"{file}:slow"


@pytest.fixture(scope="module")
def whole(slow: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison without interruption, by one worker."""
    out = tmp_path_factory.mktemp("whole")
    assert main(_words(out, f"oracle,{slow}", workers=1)) == 0
    return out


def test_the_table_is_as_documented(whole: Path, slow: str) -> None:
    results = pl.read_parquet(whole / "results.parquet")
    assert dict(results.schema) == SCHEMA
    assert results["rule"].unique(maintain_order=True).to_list()[:3] == ["uniform", "oracle", slow]
    assert set(results["preset"].unique()) == {"easy", "hard"}
    assert set(results["seed"].unique()) == {0, 1}
    reliability = {f"reliability_{name}" for name in ("groups", "expected", "true")}
    binned = {"allocation", "allocation_rollouts", "transition", *reliability}
    assert set(results["metric"].unique()) == {*CURVES, *binned, "area", "regret", "share_to_uniform"}
    assert results.filter(pl.col("x").is_not_null())["metric"].unique().sort().to_list() == sorted(binned)
    assert results["value"].is_finite().all()
    assert (whole / "report.html").stat().st_size > 10_000


def test_finished_trials_are_kept_and_not_run_again(whole: Path, slow: str, capsys: pytest.CaptureFixture[str]) -> None:
    files = {path: path.stat().st_mtime_ns for path in (whole / "trials").iterdir()}
    assert len(files) == 3 * 2 * 2
    before = _numbers(whole)
    assert main(_words(whole, f"oracle,{slow}", seeds=3)) == 0
    assert "12 of 18 trials were finished before and are kept" in capsys.readouterr().out
    now = {path: path.stat().st_mtime_ns for path in (whole / "trials").iterdir()}
    assert {path: now[path] for path in files} == files
    assert len(now) == 18
    # A comparison of fewer seeds afterwards is of those alone.
    assert main(_words(whole, f"oracle,{slow}")) == 0
    assert _numbers(whole).equals(before)


def test_ray_gives_the_same_rows(whole: Path, slow: str, tmp_path: Path) -> None:
    assert main([*_words(tmp_path, f"oracle,{slow}"), "--ray", "local"]) == 0
    names = {path.name for path in (whole / "trials").iterdir()}
    assert {path.name for path in (tmp_path / "trials").iterdir()} <= names
    assert _numbers(tmp_path).equals(_numbers(whole))
    assert main(_words(tmp_path, f"oracle,{slow}")) == 0  # and finds the files of the Ray tasks
    assert _numbers(tmp_path).equals(_numbers(whole))


@linux
def test_a_killed_comparison_goes_on_and_ends_with_the_same_numbers(whole: Path, slow: str, tmp_path: Path) -> None:
    process = _start(_words(tmp_path, f"oracle,{slow}"))
    _until(lambda: len(list(tmp_path.glob("trials/*.parquet"))) >= 5)
    process.kill()
    process.communicate()
    _until(lambda: not _alive(process.pid))  # workers end with their parent
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("trials/*.parquet")}
    assert 5 <= len(kept) < 12
    assert not (tmp_path / "results.parquet").exists()
    assert main(_words(tmp_path, f"oracle,{slow}")) == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert _numbers(tmp_path).equals(_numbers(whole))


@linux
@pytest.mark.parametrize("when", ["while workers import", "in the middle"])
def test_ctrl_c_leaves_no_process_and_keeps_what_is_finished(when: str, slow: str, tmp_path: Path) -> None:
    process = _start(_words(tmp_path, slow, seeds=99))
    at_work = 1 if when == "in the middle" else 0
    _until(lambda: (tmp_path / "trials").exists() and len(list(tmp_path.glob("trials/*.parquet"))) >= at_work)
    if not at_work:
        _until(lambda: len(_alive(process.pid)) >= 3)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
    out, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors == "knapsack-rl: interrupted\n"
    assert "stopped: finished trials are kept, and the same command continues from there" in out
    _until(lambda: not _alive(process.pid), seconds=5)  # the tracker of shared memory ends last
    assert len(list(tmp_path.glob("trials/*.parquet"))) >= at_work


@linux
def test_ctrl_c_with_ray_leaves_no_process(slow: str, tmp_path: Path) -> None:
    process = _start([*_words(tmp_path, slow, seeds=99), "--ray", "local"])
    _until(lambda: len(list(tmp_path.glob("trials/*.parquet"))) >= 1, seconds=180)  # Ray starts slowly
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (130, "knapsack-rl: interrupted\n")
    _until(lambda: not _alive(process.pid), seconds=30)


def _start(words: list[str]) -> subprocess.Popen[str]:
    """The command in a session of its own, so that its processes can be found."""
    command = [sys.executable, "-m", "knapsack_rl", *words]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it, and so do its children
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def _alive(session: int) -> list[str]:
    """Command lines of the processes of a session, zombies aside."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, its_session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(its_session) == session and state != "Z":
                found.append((folder / "cmdline").read_text().replace("\0", " "))
        except OSError:
            pass  # it has just ended
    return found


def _until(there: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def test_a_rule_that_fails_is_named_and_the_exit_status_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "import os\n"
        "def raises(forecast, budget, low, high):\n    raise KeyError('[bold]nothing')\n"
        "def dies(forecast, budget, low, high):\n    os._exit(9)\n"
    )
    out = tmp_path / "out"
    assert main(_words(out, f"{file}:raises,dapo,{file}:dies", presets="late", seeds=1)) == 1
    shown = capsys.readouterr().out
    assert f"failed: {file}:raises on late, seed 0: KeyError: '[bold]nothing' (mine.py:3)" in shown
    assert f"failed: {file}:dies on late, seed 0: its process died with exit code 9" in shown
    assert pl.read_parquet(out / "results.parquet")["rule"].unique().sort().to_list() == ["dapo", "uniform"]
    assert (out / "report.html").exists()
    # After a repair, only what is missing runs.
    kept = {path: path.stat().st_mtime_ns for path in out.glob("trials/*.parquet")}
    file.write_text("from knapsack_rl.rules import expected_value as raises\ndies = raises\n")
    assert main(_words(out, f"{file}:raises,dapo,{file}:dies", presets="late", seeds=1)) == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_the_same_tokens(tmp_path: Path) -> None:
    assert main([*_words(tmp_path, "oracle,dapo", presets="late", seeds=1), "--budget", "tokens"]) == 0
    results = pl.read_parquet(tmp_path / "results.parquet")
    ends = results.filter(pl.col("metric") == "area").select("rule", "tokens", "rollouts")
    (budget,) = set(ends["tokens"])
    assert results.filter(pl.col("rule") == "uniform")["tokens"].max() == budget
    assert ends["rollouts"].n_unique() > 1
    last = results.filter(pl.col("metric") == "mean_p").group_by("rule").agg(pl.col("tokens").max())
    assert all(tokens >= budget for tokens in last["tokens"])


def test_a_trace_is_a_population_and_another_trace_another_key(tmp_path: Path) -> None:
    trace, out = record_run(tmp_path / "trace.jsonl", "uniform", steps=8), tmp_path / "out"
    words = _words(out, "beta", presets=f"late,{trace}", seeds=1)
    assert main(words) == 0
    results = pl.read_parquet(out / "results.parquet")
    assert results["preset"].unique(maintain_order=True).to_list() == ["late", str(trace)]
    assert str(trace) in (out / "report.html").read_text()
    trials = set(out.glob("trials/*.parquet"))
    record_run(trace, "uniform", steps=8, seed=1)
    assert main(words) == 0
    assert len(set(out.glob("trials/*.parquet")) - trials) == 2  # of uniform and beta; those of `late` are kept


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--rules", "unknown"], "there is no rule 'unknown': choose from uniform"),
        (["--rules", "dapo,dapo"], "name at least one rule, and none twice: dapo, dapo"),
        (["--rules", "all,dapo"], "name at least one rule, and none twice: uniform"),
        (["--rules", ","], "name at least one rule, and none twice: none given"),
        (["--rules", "gone.py:rule"], "there is no file gone.py"),
        (["--presets", "moon"], "there is no preset 'moon': choose from easy"),
        (["--presets", __file__], f"{__file__} cannot be used as a population: "),
        (["--seeds", "0"], "name at least one seed"),
        (["--steps", "0"], "steps is 0: use at least 1"),
        (["--average", "1"], "average is 1: use at least 2"),
        (["--average", "500"], "average is 500: a prompt gets 2 to 128 rollouts"),
        (["--prompts", "3"], "3 prompts are fewer than the 4 of one step"),
        (["--workers", "0"], "0 workers run nothing: use at least 1"),
        (["--output", __file__], f"{__file__} is a file: --output names the folder of the results"),
    ],
)
def test_a_mistake_is_one_clear_line(
    words: list[str], error: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*_words(tmp_path / "out", "dapo"), *words]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith(f"knapsack-rl: error: {error}")
    assert len(shown.err.splitlines()) == 1
    assert not list(tmp_path.rglob("*.parquet"))


def test_a_budget_of_something_else_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["compare", "--budget", "euros"])
    assert "invalid choice: 'euros'" in capsys.readouterr().err

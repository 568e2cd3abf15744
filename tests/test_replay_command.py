"""`knapsack-rl replay` from the command line: printed tables, written files, errors in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from synthetic_run import record_run

pytest.importorskip("polars")

import polars as pl

from knapsack_rl.__main__ import main
from knapsack_rl.config import AllocationConfig
from knapsack_rl.session import Session
from knapsack_rl.trace import TraceWriter, read_trace


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record_run(tmp_path_factory.mktemp("run") / "trace.jsonl", "uniform", steps=16)


@pytest.fixture(scope="module")
def unknown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace of a policy whose true success rates are unknown."""
    return record_run(tmp_path_factory.mktemp("run") / "trace.jsonl", "uniform", steps=4, exact=False)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("table") / "rollouts.parquet"
    rng = np.random.default_rng(0)
    rewards = (rng.random((40, 32)) < rng.beta(0.5, 0.5, (40, 1))).astype(float)
    frame = {"prompt": [f"q{i}" for i in range(40)], "rewards": rewards.tolist()}
    pl.DataFrame(frame).write_parquet(path)
    return path


def test_a_trace_from_end_to_end(trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, rows = tmp_path / "o.json", tmp_path / "o.parquet"
    words = [str(trace), "--rules", "uniform,paper,beta,oracle", "--output", str(out), "--output", str(rows)]
    assert main(["replay", *words]) == 0
    shown = capsys.readouterr().out
    assert "16 steps, 32 prompts x 8" in shown
    written = json.loads(out.read_text())
    assert [rule["rule"] for rule in written["rules"]] == [
        "(recorded)",
        "uniform",
        "paper",
        "beta",
        "oracle",
    ]
    assert all(rule["steps"] == 16 and rule["stopped_reason"] is None for rule in written["rules"])
    recorded, uniform, *_ = written["rules"]
    # The run was uniform: to replay it is to repeat it.
    assert uniform["means"]["same_plan"] == 1
    assert uniform["means"]["frac_short"] == 0
    wasted = [step.outcomes.counts_P[~step.outcomes.mixed_P].sum() for step in read_trace(trace).steps]
    assert (
        uniform["means"]["zero_gradient_rollouts"]
        == recorded["means"]["zero_gradient_rollouts"]
        == pytest.approx(np.mean(wasted))
    )
    assert f"{np.mean(wasted):,.0f}" in shown
    assert recorded["counts_by_status"]["medium"] == 8

    frame = pl.read_parquet(rows)
    assert frame.height == 16 * 5
    assert frame.schema["rule"] == pl.String
    assert frame.filter(pl.col("rule") == "oracle")["step"].to_list() == list(range(16))
    steps = written["steps"]
    assert len(steps) == frame.height
    assert steps[7].keys() == set(frame.columns)
    for row, step in zip(frame.to_dicts(), steps, strict=True):
        assert row == step
    mean = frame.group_by("rule").agg(pl.col("value_expected").mean())
    assert dict(mean.iter_rows())["oracle"] == pytest.approx(written["rules"][4]["means"]["value_expected"])
    assert not list(tmp_path.glob(".*"))  # no half-written file is left


def test_a_session_is_recorded_and_replayed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The rule of the run, one without memory of its own trace, and one that needs more candidates than a step has."""
    config = AllocationConfig("beta", average=4, pool=1, min_count=0, max_count=16, half_life=8.0)
    session = Session(config)
    session.open_trace(tmp_path / "trace.jsonl", {"engine": "own", "rule": config.rule, "settings": vars(config)})
    rng = np.random.default_rng(1)
    rates = {f"q{i}": rate for i, rate in enumerate(rng.random(24))}
    for step in range(6):
        plan = session.plan(list(rates)[(8 * step) % 24 :][:8])
        for prompt_id, count in plan:
            session.observe(step, [prompt_id] * count, (rng.random(count) < rates[prompt_id]).astype(float))
    assert session.trace is not None
    session.trace.end("finished")
    out = tmp_path / "o.json"
    words = [str(tmp_path), "--rules", "beta,uniform,calibrated-pool", "--output", str(out)]
    assert main(["replay", *words]) == 0
    shown = capsys.readouterr().out
    assert "(own, beta): 6 steps, 8 prompts x 4" in shown
    assert "calibrated-pool stopped at step 0: it takes more prompts than the 8 that the step recorded" in shown
    written = json.loads(out.read_text())
    assert (written["context"]["min_count"], written["context"]["max_count"]) == (0, 16)
    _, beta, uniform, pool = written["rules"]
    assert (beta["steps"], uniform["steps"], pool["steps"]) == (6, 6, 0)
    assert beta["means"]["frac_short"] == 0
    assert pool["stopped_reason"].startswith("stopped at step 0")


def test_the_printed_notes(trace: Path, table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(trace), "--rules", "beta,calibrated-pilot"]) == 0
    shown = capsys.readouterr().out
    assert "A high share biases the comparison towards the rule that produced the record." in shown
    assert (
        main(["replay", str(table), "--rules", "uniform,reinforce-ada-balanced", "--groups", "4", "--steps", "2"]) == 0
    )
    assert "'-': expected values are undefined for multi-round rules." in capsys.readouterr().out


def test_the_same_seed_gives_the_same_bytes(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown, files = [], []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        out = tmp_path / f"{name}.json"
        assert main(["replay", str(table), "--seed", str(seed), "--output", str(out)]) == 0
        shown.append(capsys.readouterr().out)
        files.append(out.read_bytes())
    assert shown[0] == shown[1] != shown[2]
    assert files[0] == files[1] != files[2]


def test_a_pipe_gets_plain_columns(table: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "knapsack_rl", "replay", table, "--groups", "8"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    assert done.stdout.isascii()
    assert "\x1b" not in done.stdout
    assert "1,280 rollouts of 40 prompts; up to 10 steps of 8 prompts x 8" in done.stdout
    # Every line of a table is complete: its cells were not cut off or wrapped.
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("beta")]
    assert len(lines) == 3
    assert all(line[1] == "10" for line in lines)


def test_names_from_a_file_are_shown_and_never_obeyed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "trace.jsonl"
    record_run(path, "uniform", steps=2, exact=False)
    lines = path.read_text().splitlines(keepends=True)
    start = json.loads(lines[0]) | {"rule": "[bold red]\x1b[31m", "engine": "[/]"}
    path.write_text("".join([json.dumps(start) + "\n", *lines[1:]]))
    assert main(["replay", str(path), "--rules", "uniform"]) == 0
    shown = capsys.readouterr().out
    assert r"([/], [bold red]\x1b[31m)" in shown
    assert "\x1b" not in shown


def test_a_folder_stands_for_its_trace(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(trace.parent), "--rules", "uniform", "--steps", "3"]) == 0
    assert "3 steps" in capsys.readouterr().out


def test_rewards_that_never_succeed_are_pointed_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "t.jsonl"
    rows = [{"prompt": f"q{i}", "rewards": [0.2, 0.5, 0.2, 0.5]} for i in range(8)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["replay", str(path), "--groups", "4", "--average", "2", "--rules", "uniform"]
    assert main(words) == 0
    assert "No reward reaches the threshold of 1" in capsys.readouterr().out
    assert main([*words, "--success-threshold", "0.5"]) == 0
    assert "threshold" not in capsys.readouterr().out


MINE = """
import numpy as np
from knapsack_rl import AllocationProblem

def all_to_the_first(forecast, budget, low, high):
    counts_P = np.full(forecast.seen_P.size, low)
    counts_P[0] += budget - counts_P.sum()
    return AllocationProblem(np.zeros((counts_P.size, int(counts_P.max()))), counts_P, counts_P)
"""


def test_a_rule_of_ones_own_plays_beside_the_others(trace: Path, tmp_path: Path) -> None:
    rule, out = tmp_path / "mine.py", tmp_path / "o.json"
    rule.write_text(MINE)
    words = ["replay", str(trace), "--rules", f"uniform,{rule}:all_to_the_first", "--output", str(out)]
    assert main(words) == 0
    _, uniform, mine = json.loads(out.read_text())["rules"]
    # Of 256 rollouts 2 each go to 31 prompts; 8 of the other 194 were recorded.
    assert mine["means"]["largest"] == 256 - 31 * 2
    assert mine["means"]["short"] == 194 - 8
    assert mine["means"]["overlap"] == pytest.approx((31 * 2 + 8) / 256)
    assert mine["means"]["value_expected"] < uniform["means"]["value_expected"]


def test_a_rule_that_stops_says_when_and_why(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(table), "--groups", "20", "--average", "16", "--steps", "9", "--rules", "uniform"]) == 0
    assert "uniform stopped at step 4: it takes 20 prompts, and 0 more have rollouts left." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{unknown}", "--rules", "oracle"], "the oracle needs the true success rates"),
        (["{table}", "--rules", "uniform,oracle"], "the oracle needs the true success rates"),
        (["{table}", "--rules", "magic"], "magic"),
        (["{table}", "--rules", "uniform,uniform"], "--rules names uniform twice"),
        (["{table}", "--rules", "nowhere.py:rule"], "nowhere.py"),
        (["{table}", "--rules", ","], "--rules names no rule"),
        (["{table}", "--groups", "50"], "--groups is 50, and the table has 40 prompts: use 40 or fewer"),
        (["{table}", "--average", "1", "--rules", "uniform"], "uniform stopped at step 0: 10 rollouts for 10 prompts"),
        (["{table}", "--output", "{folder}/no/o.json"], "no does not exist"),
        (["{table}", "--output", "{folder}.csv"], "end it with .json or .parquet"),
        (["{table}", "--min", "1", "--rules", "beta"], "min_count is 1: a group of one has no gradient"),
        (["{table}", "--seed", "-1"], "'-1' is not a whole number of at least 0"),
        (["{table}", "--steps", "0"], "'0' is not a whole number of at least 1"),
        (["{trace}", "--groups", "8"], "--groups is for tables: a trace has its own"),
        (["{table}", "--success-threshold", "nan"], "'nan' is not a finite number"),
        (["{table}", "--success-threshold", "1e999"], "'1e999' is not a finite number"),
        (["{table}", "--success-threshold", "high"], "'high'"),
        (["{trace}", "--success-threshold", "1"], "--success-threshold is for tables"),
        (["{folder}"], "there is no trace.jsonl in"),
        (["{folder}/nothing.csv"], "No such file"),
        (["{empty}"], "holds no steps to replay"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(
    words: list[str], message: str, trace: Path, unknown: Path, table: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    empty = tmp_path / "empty.jsonl"
    TraceWriter(empty, {}).close()
    (tmp_path / "folder").mkdir()
    places = {"trace": trace, "unknown": unknown, "table": table, "folder": tmp_path / "folder", "empty": empty}
    try:
        code = main(["replay", *(word.format(**places) for word in words)])
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    error = capsys.readouterr().err
    assert error.startswith("knapsack-rl: error: ")
    assert error.count("\n") == 1
    assert message in error


def test_the_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom knapsack_rl.__main__ import main\ntry: main(['replay', '--help'])\nexcept SystemExit: pass\n"
    )
    code += "print(*sorted({'polars', 'rich', 'numpy'} & set(sys.modules)), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stderr.split()) <= {"numpy"}

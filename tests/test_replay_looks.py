"""A trace of the default rule: pool, features and log odds are replayed to the bit, or refused with the reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

pytest.importorskip("rich")

from knapsack_arena.registry import make_strategy
from knapsack_arena.replay.replay import RECORDED, ReplayedRule, replay_steps
from knapsack_arena.replay.trace import RecordedLooks, RecordedTrace
from knapsack_rl.__main__ import main
from knapsack_rl.beliefs.looks import Looks
from knapsack_rl.config import AllocationConfig
from knapsack_rl.notation import PromptFeatures
from knapsack_rl.session import Session
from knapsack_rl.trace import read_trace
from knapsack_rl.trace.looks import FeatureLog, StepFeatures

PROMPTS, OFFERED = 60, 24


def record(path: Path, steps: int = 10, rewards: tuple[float, float] = (0.0, 1.0), **changes: Any) -> Session:
    """A run of the default rule, whose looks know the first 40 prompts, and which has no log odds now and then."""
    rng = np.random.default_rng(3)
    config = AllocationConfig(average=8, half_life=7.3, **changes)
    session = Session(config)
    names = ("pool", "min_count", "max_count", "min_group", "half_life", "success_threshold")
    settings = {name: getattr(config, name) for name in names} | {"features": "hidden_states"}
    session.open_trace(path, {"engine": "test", "rule": config.rule, "settings": settings})
    play(session, rng, Looks(), range(steps), rewards)
    return session


def play(
    session: Session, rng: np.random.Generator, looks: Looks, steps: range, rewards: tuple[float, float] = (0.0, 1.0)
) -> None:
    features, rates = np.random.default_rng(1).standard_normal((PROMPTS, 6)), np.linspace(0, 1, PROMPTS)
    features[40:] = np.nan
    for step in steps:
        rows = rng.choice(PROMPTS, OFFERED, replace=False)
        odds = np.where(rng.random(OFFERED) < 0.2, np.nan, np.round(rng.normal(size=OFFERED), 2))
        ids = [f"q{row}" for row in rows]
        plan = session.plan(ids, features=looks(ids, odds, lambda at, rows=rows: features[rows[at]]))
        rollouts = [prompt_id for prompt_id, count in plan for _ in range(count)]
        rewarded = [rewards[int(rng.random() < rates[int(prompt_id[1:])])] for prompt_id in rollouts]
        session.observe(step, rollouts, rewarded)


def agreement(path: Path, rule: str = "calibrated") -> list[float]:
    """Of each step, whether it was planned as recorded; the forecasts are compared to the bit."""
    trace = RecordedTrace(path)
    context = trace.context()
    looks = RecordedLooks()
    replaying = ReplayedRule(rule, make_strategy(rule, context.__class__(**{**vars(context), "features": looks})))

    def steps() -> Any:
        for step in trace:
            looks.step = step
            yield step

    rows = list(replay_steps(steps(), [replaying], 0))
    assert replaying.stopped_reason is None
    believed = [(name, metrics.values["value_believed"]) for name, _, metrics in rows]
    assert [value for name, value in believed if name == RECORDED] == pytest.approx(
        [value for name, value in believed if name != RECORDED], rel=1e-12
    )
    return [metrics.values["same_plan"] for name, _, metrics in rows if name == rule]


@pytest.mark.parametrize("changes", [{}, {"pool": 1}, {"min_group": 4}, {"max_count": 16}])
def test_the_default_rule_repeats_its_plans(tmp_path: Path, changes: dict[str, Any]) -> None:
    record(tmp_path / "trace.jsonl", **changes)
    assert agreement(tmp_path / "trace.jsonl") == [1.0] * 10


def test_a_threshold_that_was_found_is_found_again(tmp_path: Path) -> None:
    """Half marks alone are success from the fourth step on, and what was learned before is forgotten."""
    path = tmp_path / "trace.jsonl"
    record(path, rewards=(0.0, 0.5))
    assert len({step.outcomes.success_threshold for step in read_trace(path).steps}) == 2
    assert agreement(path) == [1.0] * 10


def test_a_resumed_run_repeats_its_plans(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    session = record(path, steps=4)
    session.save(tmp_path / "state.npz")
    play(session, np.random.default_rng(8), Looks(), range(4, 6))
    again = Session(session.config)
    again.load(tmp_path / "state.npz")
    again.open_trace(path, {})
    # The look of a prompt that was met before and after the save may be another one: it is computed anew.
    play(again, np.random.default_rng(9), Looks(), range(4, 8))
    assert agreement(path) == [1.0] * 8


def test_the_command_says_what_it_repeats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "trace.jsonl", tmp_path / "out.json"
    record(path)
    assert main(["replay", str(path), "--output", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "uniform does not choose among a pool, and this run offered 4 prompts for one" in shown
    assert "made this record" not in shown
    rules = {rule["rule"]: rule for rule in json.loads(out.read_text())["rules"]}
    assert (rules["calibrated"]["means"]["same_plan"], rules["calibrated"]["means"]["frac_short"]) == (1, 0)
    assert (rules["uniform"]["steps"], rules["paper"]["steps"], rules["beta"]["steps"]) == (0, 0, 10)


def test_without_its_looks_the_rule_is_refused_and_others_are_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "trace.jsonl"
    record(path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:  # as an earlier version wrote it
        line.pop("features", None)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["replay", str(path), "--rules", "beta,calibrated"]) == 0
    assert "calibrated stopped at step 0: the run planned with features of its prompts" in capsys.readouterr().out
    assert main(["replay", str(path), "--rules", "calibrated"]) == 2
    assert "features='none'" in capsys.readouterr().err


def test_outcomes_that_were_learned_in_parts_are_pointed_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "trace.jsonl"
    session = Session(AllocationConfig(average=8, half_life=8.0))
    settings = {"pool": 4, "min_count": 0, "half_life": 8.0}
    session.open_trace(path, {"engine": "test", "rule": "calibrated", "settings": settings})
    rng = np.random.default_rng(0)
    for step in range(8):
        for prompt_id, count in list(session.plan([f"q{i}" for i in rng.choice(40, 16, replace=False)])):
            session.observe(step, [prompt_id] * count, (rng.random(count) < 0.4).astype(float))
    assert main(["replay", str(path), "--rules", "calibrated"]) == 0
    assert "calibrated made this record, and repeats" in capsys.readouterr().out


ROWS = arrays.arrays(np.float16, (5, 3), elements=st.floats(-60000, 60000, width=16) | st.just(float("nan")))


@given(st.lists(ROWS, min_size=1, max_size=5), st.data())
def test_what_is_written_of_features_is_what_a_plan_had(steps: list[Any], data: st.DataObject) -> None:
    """For any rows, known or not, changed or not, each row that is the same as before written once."""
    writer, reader = FeatureLog(), FeatureLog()
    for rows in steps:
        ids = tuple(data.draw(st.permutations("abcdefg"))[:5])
        plan = PromptFeatures(rows.astype(np.float64), np.zeros((5, 1)))
        written = writer.news(ids, plan)
        assert not len(writer.news(ids, plan).at_U)
        line = json.loads(json.dumps({**written.to_json(), "at": written.at_U.tolist()}))
        read = StepFeatures.from_json(line, 5)
        reader.learn(ids, read)
        np.testing.assert_array_equal(reader.look(ids, read, np.zeros(5)).features_P_F, plan.features_P_F)


@pytest.mark.parametrize("features", [np.array([[0.1]]), np.array([[1e9]]), np.zeros((1, 5000))])
def test_features_that_16_bits_cannot_hold_are_not_written(features: Any) -> None:
    written = FeatureLog().news(("a",), PromptFeatures(features, np.zeros((1, 1))))
    assert written.rows_U_F is None
    with pytest.raises(ValueError, match="could not be written"):
        FeatureLog().look(("a",), StepFeatures.from_json({**written.to_json(), "at": []}, 1), None)


@pytest.mark.parametrize(
    "given",
    [
        [], {"width": 1}, {"width": 1, "at": [0], "rows": "!"}, {"width": 1, "at": [0], "rows": "AAAA"},
        {"width": 1, "at": [50], "rows": "AAA="}, {"width": -1, "at": [], "rows": ""},
        {"width": 1, "at": 0, "rows": ""},
        {"width": 1, "at": [0], "rows": "AHw="}, {"width": True, "at": [], "rows": ""},
        {"width": 1, "at": [], "rows": 1},
        {"width": 10**30, "at": [], "rows": ""},
    ],
)  # fmt: skip
def test_damaged_features_are_an_error_that_names_the_place(given: Any, tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    record(path, steps=1)
    start, step = (json.loads(line) for line in path.read_text().splitlines())
    path.write_text(json.dumps(start) + "\n" + json.dumps({**step, "features": given}) + "\n")
    with pytest.raises(ValueError, match=r"trace\.jsonl:2: 'features' is "):
        read_trace(path)

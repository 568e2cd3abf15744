"""What counts as a success where no threshold is set, and the one warning where rewards teach nothing."""

from __future__ import annotations

import logging
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knapsack_rl import AllocationConfig, BeliefFileError, KnapsackAllocator, Session
from knapsack_rl.beliefs.reward_check import FEWEST_REWARDS, MOST_MARKS, SuccessThreshold, obvious_threshold
from knapsack_rl.outcomes import Outcomes
from knapsack_rl.trace import read_trace

IDS = [f"p{i}" for i in range(8)]
FOUND = AllocationConfig(rule="beta", pool=1)
SET = AllocationConfig(rule="beta", pool=1, success_threshold=1.0)


def run(session: Session, values: Any, steps: int = 4, share: float = 0.5) -> list[dict[str, float]]:
    """Steps of 64 rollouts, each with one of the values: the last one with probability ``share``."""
    metrics = []
    for _ in range(steps):
        plan = session.plan(IDS, 64)
        random = np.random.default_rng(plan.step)
        lower = random.choice(np.array(values[:-1] or values, dtype=float), 64)
        rewards = np.where(random.random(64) < share, np.array(values[-1], dtype=float), lower)
        metrics.append(session.observe(plan.step, [plan.prompt_ids[i] for i in plan.group_PG], rewards))
    return metrics


@pytest.mark.parametrize(
    ("marks", "threshold"),
    [
        ((0, 1), 1), ((-1, 1), 1), ((0, 0.1, 1), 1), ((-1, 0), 0), ((0, 0.5), 0.5), ((0, 1, 10), 10), ((1, 10), 10),
        ((0, 0.2, 1.2), 1), ((0, 3), 1), ((0,), None), ((), None), ((0, 0.5, 1), None), (tuple(range(1, 11)), None),
        ((0, 0.1, 1, 1.1), None),
    ],
)  # fmt: skip
def test_the_threshold_that_marks_show(marks: tuple[float, ...], threshold: float | None) -> None:
    assert obvious_threshold(np.array(marks, dtype=float)) == threshold


@given(st.lists(st.integers(-20, 20), min_size=2, max_size=6, unique=True).map(sorted))
def test_a_threshold_divides_the_marks_at_the_step_below_the_highest(marks: list[int]) -> None:
    found = obvious_threshold(np.array(marks, dtype=float))
    stands_apart = marks[-1] - marks[-2] > marks[-2] - marks[0]
    assert (found is not None) == stands_apart
    if found is not None:
        assert marks[-2] < found <= marks[-1]


@given(st.lists(st.lists(st.sampled_from([0.0, 1.0]), max_size=40), max_size=12))
def test_rewards_of_0_and_1_never_move_it(parts: list[list[float]]) -> None:
    threshold = SuccessThreshold(None)
    for part in parts:
        threshold.look(np.array(part))
        assert threshold.value == 1


@given(
    st.lists(st.lists(st.sampled_from([-1.0, 0.0, 0.1, 1.0, 5.0, np.nan]), max_size=90), max_size=8), st.integers(0, 8)
)
def test_a_search_goes_on_after_a_resume_as_if_it_had_not_stopped(parts: list[list[float]], stop: int) -> None:
    through, resumed = SuccessThreshold(None), SuccessThreshold(None)
    for i, part in enumerate(parts):
        if i == stop:
            resumed = SuccessThreshold(None).restored(resumed.state_dict())
        through.look(np.array(part))
        resumed.look(np.array(part))
    assert pickle.dumps(through.state_dict()) == pickle.dumps(resumed.state_dict())


def test_what_divides_the_rewards_stays_and_a_full_mark_above_a_low_threshold_counts() -> None:
    threshold = SuccessThreshold(None)
    threshold.look(np.array([0.0, 1.0] * 32))
    threshold.look(np.array([50.0]))  # a stray reward
    assert threshold.value == 1
    threshold = SuccessThreshold(None)
    threshold.look(np.array([0.0, 0.1] * (FEWEST_REWARDS // 2 - 1)))
    assert threshold.value == 1
    threshold.look(np.array([0.0, 0.1]))
    assert threshold.value == 0.1
    threshold.look(np.array([1.0]))
    assert threshold.value == 1


def test_a_threshold_that_is_set_is_not_looked_for_and_a_scale_has_none() -> None:
    threshold = SuccessThreshold(0.7)
    threshold.look(np.array([-1.0, 0.0] * 64))
    assert threshold.value == 0.7
    assert threshold.restored({"value": 0.2, "searching": True, "rewards": 1, "marks": np.zeros(1)}).value == 0.7
    threshold = SuccessThreshold(None)
    threshold.look(np.linspace(-1, 0, MOST_MARKS + 1).repeat(8))
    threshold.look(np.array([100.0]))
    assert threshold.value == 1


@pytest.mark.parametrize(
    ("config", "values", "told"),
    [
        (FOUND, (0,), r"all 192 rewards of the last 3 steps are 0, .* use easier prompts"),
        (FOUND, (3,), r"all 192 rewards of the last 3 steps are 3, .* use harder prompts"),
        (SET, (0, 0.5), r"no reward of 192 rollouts has reached success_threshold=1 \(they are 0 to 0.5\), .*unsolved"),
        (SET, (-1, 0), r"no reward of 192 rollouts has reached success_threshold=1 \(they are -1 to 0\)"),
        (FOUND, (-1, -0.5, 0), r"no reward of 192 rollouts has reached success_threshold=1"),
        (FOUND, (-1, 0), r"rewards so far are -1, 0, so 0 and more counts as a success .* success_threshold"),
        (FOUND, tuple(range(1, 11)), r"all rewards .* reach success_threshold=1 though they differ \(1 to 10\).* set"),
        (FOUND, tuple(range(11)), r"rewards are a scale \(0 to 10\) .* 1 and more counts as a success"),
        (FOUND, (np.nan,), r"none of the 64 rollouts of step 0 has a reward \(all are NaN or None\)"),
        (FOUND, (None,), r"none of the 64 rollouts of step 0 has a reward"),
    ],
)
def test_one_warning_within_the_first_steps(
    config: AllocationConfig, values: Any, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="knapsack_rl"):
        session = Session(config)
        run(session, values, 3)
        (record,) = caplog.records
        run(session, values, 12)
    assert [record] == caplog.records
    assert re.search(told, record.getMessage()), record.getMessage()


@pytest.mark.parametrize("values", [(0, 1), (-1, 1), (0, 0.1, 1), (0, 0.5, 1), (0, 0.1, 1, 1.1), (-0.1, 0, 0.9, 1)])
def test_rewards_that_are_in_order_give_no_warning(values: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="knapsack_rl"):
        assert {metrics["success_threshold"] for metrics in run(Session(FOUND), values, 12)} == {1.0}
    assert caplog.records == []


@pytest.mark.parametrize("in_order", [False, True])
def test_a_found_threshold_is_in_metrics_trace_and_state(tmp_path: Path, in_order: bool) -> None:
    """And beliefs are those of a session that was told it: what was counted otherwise is forgotten or counted again."""
    session, told = (
        Session(AllocationConfig(rule="beta", pool=1, success_threshold=threshold), in_order=in_order)
        for threshold in (None, 0.0)
    )
    session.open_trace(tmp_path / "trace.jsonl", {"engine": "test", "rule": "beta", "seed": 0, "settings": {}})
    for each in (session, told):
        plans = [each.plan(IDS, 64) for _ in range(2)]
        ids = [plans[0].prompt_ids[i] for i in plans[0].group_PG]
        rewards = [-1.0, 0.0] * 32
        each.observe(1, ids[:40], rewards[:40])  # in part, before anything is found
        assert each.observe(0, ids, rewards)["success_threshold"] == 0
        assert each.observe(1, ids[40:], rewards[40:])["success_threshold"] == 0
    assert isinstance(session.allocator, KnapsackAllocator)
    assert pickle.dumps(session.allocator.state_dict()) == pickle.dumps(told.allocator.state_dict())
    assert [step.outcomes.success_threshold for step in read_trace(tmp_path / "trace.jsonl").steps] == [0, 0]
    again = Session(FOUND, in_order=in_order)
    session.save_to(tmp_path)
    again.load_from(tmp_path)
    assert pickle.dumps(again.state_dict()) == pickle.dumps(session.state_dict())
    assert run(again, (-1, 0), 1)[0]["success_threshold"] == 0


def test_evidence_that_counts_the_same_is_kept() -> None:
    """-1 is a failure under 1 and under 0: what was learned of it stays when 0 appears."""
    session = Session(FOUND)
    run(session, (-1,), 3)
    run(session, (-1, 0), 1)
    told = Session(AllocationConfig(rule="beta", pool=1, success_threshold=0.0))
    run(told, (-1,), 3)
    run(told, (-1, 0), 1)
    assert pickle.dumps(session.allocator.state_dict()) == pickle.dumps(told.allocator.state_dict())


def test_state_of_a_version_without_a_search_keeps_its_threshold_of_1() -> None:
    session, state = Session(FOUND), Session(FOUND).state_dict()
    del state["threshold"]
    session.load_state_dict(state)
    assert {metrics["success_threshold"] for metrics in run(session, (-1, 0), 3)} == {1.0}


@pytest.mark.parametrize(
    "damage", [{"value": float("nan")}, {"value": "x"}, {"marks": np.zeros((1, 1))}, {"rewards": None}]
)
def test_a_damaged_threshold_changes_nothing(damage: dict[str, Any]) -> None:
    session = Session(FOUND)
    run(session, (-1, 0), 1)
    before = session.state_dict()
    with pytest.raises(BeliefFileError):
        session.load_state_dict(before | {"threshold": before["threshold"] | damage})
    assert pickle.dumps(session.state_dict()) == pickle.dumps(before)


def test_what_counts_otherwise_is_named_by_the_threshold_alone() -> None:
    outcomes = Outcomes.of_groups(0, [("a", [0.0, 0.5])], success_threshold=0.5)
    assert outcomes.successes_P.tolist() == [1]
    assert SuccessThreshold(0.5).counts_otherwise(1.0, outcomes.rewards_PG)
    assert not SuccessThreshold(0.5).counts_otherwise(0.2, outcomes.rewards_PG)

"""What every adapter shares: a run's turn-taking, record, checkpoints and one warning."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from knapsack_rl import BeliefFileError, Outcomes, make_allocator
from knapsack_rl.checkpoint import CheckpointError
from knapsack_rl.session import PATIENCE, Session, as_text, best_and_worst
from knapsack_rl.trace import read_trace

IDS = [f"p{i}" for i in range(8)]
RATES = np.linspace(0, 1, 8)


def go(session: Session, steps: int, seed: int = 0, rewards: tuple[float, float] = (0.0, 1.0)) -> list[list[int]]:
    """A pretend trainer whose rollouts depend on the step alone, so that a resumed run meets the same."""
    plans = []
    for _ in range(steps):
        random = np.random.default_rng([seed, session.step])
        plan = session.plan(IDS, 64)
        solved = random.random(64) < np.repeat(RATES, plan.counts_P)
        outcomes = Outcomes(plan.step, plan.prompt_ids, plan.counts_P, np.where(solved, rewards[1], rewards[0]))
        metrics = session.learn(plan, outcomes, optimizer_step=plan.step)
        assert metrics["overhead_seconds"] >= 0
        plans.append(plan.counts_P.tolist())
    return plans


def test_a_session_that_was_saved_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    through = go(Session(make_allocator()), 9)
    first = Session(make_allocator())
    assert go(first, 5) == through[:5]
    first.save(tmp_path)
    second = Session(make_allocator())
    progress = second.load(tmp_path)
    assert progress is not None
    assert progress.generation_step == 5
    assert go(second, 4) == through[5:]
    assert len({tuple(plan) for plan in through}) > 1


def test_the_trace_of_a_resumed_session_is_one_story(tmp_path: Path) -> None:
    first = Session(make_allocator())
    first.open_trace(tmp_path / "trace.jsonl", {"engine": "test", "method": "posterior", "seed": 0, "settings": {}})
    go(first, 3)
    first.save(tmp_path)
    go(first, 2)  # done again after the resume
    second = Session(make_allocator())
    second.load(tmp_path)
    second.open_trace(tmp_path / "trace.jsonl", {"engine": "test"})
    plans = go(second, 4)
    steps = read_trace(tmp_path / "trace.jsonl").steps
    assert [step.plan.step for step in steps] == list(range(7))
    assert [step.plan.counts_P.tolist() for step in steps[3:]] == plans


def test_a_folder_without_beliefs_leaves_all_unseen(tmp_path: Path) -> None:
    session = Session(make_allocator())
    assert session.load(tmp_path, step_without_beliefs=7) is None
    assert session.step == 7


def test_nothing_changes_when_a_checkpoint_cannot_be_used(tmp_path: Path) -> None:
    saved = Session(make_allocator("paper"))
    go(saved, 2)
    saved.save(tmp_path)
    session = Session(make_allocator("posterior"))
    with pytest.raises(BeliefFileError):
        session.load(tmp_path)
    assert session.step == 0
    (tmp_path / "knapsack_progress.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"knapsack_progress\.json"):
        session.load(tmp_path)


@pytest.mark.parametrize(
    ("rewards", "warned"),
    [((0.0, 0.5), True), ((0.0, 1.0), False), ((0.0, 0.0), False)],
    ids=["never reached", "reached", "nothing to go by"],
)
def test_a_threshold_that_no_reward_reaches(
    rewards: tuple[float, float], warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="knapsack_rl"):
        go(Session(make_allocator()), 2 * PATIENCE // 64 + 1, rewards=rewards)
    assert caplog.text.count("has reached success_threshold=1 (the highest was 0.5)") == warned
    assert len(caplog.records) == warned


def test_chats_as_text() -> None:
    assert as_text([{"role": "user", "content": "2+2"}]) == "user: 2+2"
    assert as_text("x" * 5000) == "x" * 2000


def test_best_and_worst() -> None:
    assert best_and_worst([0.5, 1.0, 0.0]) == [1, 2]
    assert best_and_worst(np.array([np.nan, 0.0, 1.0])) == [2, 0]
    assert best_and_worst([1.0, 1.0]) == [0]

"""A run resumed at batch r has learned exactly the outcomes of batches 0..r-1."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import world

from knapsack_rl import BeliefFileError
from knapsack_rl.tinker.dataset import LOG_FILE
from knapsack_rl.tinker.outcome_log import Group, OutcomeLog, Planned, Success
from knapsack_rl.trace import read_trace


@pytest.mark.parametrize("rule", ["beta", "calibrated", "paper", "uniform"])
@pytest.mark.parametrize("stop", [2, 4, 6])
@pytest.mark.parametrize("killed_after", [0, 1])
def test_a_resumed_run_plans_as_if_it_had_not_stopped(tmp_path: Path, rule: str, stop: int, killed_after: int) -> None:
    settings: dict[str, Any] = {"rule": rule, "half_life": 8.0}
    through = world.train(tmp_path / "through", range(8), **settings)
    world.train(tmp_path / "again", range(stop + killed_after), **settings)
    resumed = world.train(tmp_path / "again", range(stop, 8), **settings)
    assert world.record_of(tmp_path / "again") == world.record_of(tmp_path / "through")
    assert world.rates(resumed) == world.rates(through)
    assert resumed.inner.asked == list(range(stop, 8))


@pytest.mark.parametrize("stop", [2, 4, 6])
@pytest.mark.parametrize("killed_after", [0, 1])
def test_a_resumed_run_with_a_pool_and_features_plans_as_if_it_had_not_stopped(
    tmp_path: Path, stop: int, killed_after: int
) -> None:
    """Features of plans that are restored are computed from the texts in the log."""
    settings: dict[str, Any] = {
        "rule": "calibrated",
        "half_life": 8.0,
        "pool": 2,
        "save_every": stop,
        "prompt_text": lambda builder: "x" * 2**builder.prompt,
        "features": "text",
    }
    through = world.train(tmp_path / "through", range(8), **settings)
    world.train(tmp_path / "again", range(stop + killed_after), **settings)
    resumed = world.train(tmp_path / "again", range(stop, 8), **settings)
    assert world.record_of(tmp_path / "again") == world.record_of(tmp_path / "through")
    assert world.rates(resumed) == world.rates(through)
    assert through.session.allocator.beliefs.feature_model.weights_F[:-1].any()


def test_a_run_killed_right_after_its_checkpoint_has_lost_nothing(tmp_path: Path) -> None:
    world.train(tmp_path / "again", range(4))
    world.train(tmp_path / "again", range(4, 8))
    world.train(tmp_path / "through", range(8))
    assert world.record_of(tmp_path / "again") == world.record_of(tmp_path / "through")


def test_a_run_may_be_resumed_at_any_batch(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"rule": "calibrated", "half_life": 8.0, "save_every": 1}
    through = world.train(tmp_path / "through", range(8), **settings)
    world.train(tmp_path / "again", range(8), **settings)
    for batch in (7, 3, 5, 1):  # an earlier checkpoint than the last, if the user deletes that
        resumed = world.train(tmp_path / "again", range(batch, 8), **settings)
        assert world.record_of(tmp_path / "again") == world.record_of(tmp_path / "through")
        assert world.rates(resumed) == world.rates(through)


def test_a_run_that_never_reached_a_checkpoint_starts_anew(tmp_path: Path) -> None:
    world.train(tmp_path, range(3), save_every=100)
    data = world.train(tmp_path, range(2), save_every=100)
    assert world.evidence(data) == 2 * world.GROUPS * world.SIZE
    assert (tmp_path / "trace.jsonl.1").exists()


def test_twice_stopped(tmp_path: Path) -> None:
    world.train(tmp_path / "again", range(5))
    world.train(tmp_path / "again", range(4, 7))
    world.train(tmp_path / "again", range(6, 8))
    world.train(tmp_path / "through", range(8))
    assert world.record_of(tmp_path / "again") == world.record_of(tmp_path / "through")


@pytest.mark.parametrize("checkpoint", [1, 2, 3])
def test_an_asynchronous_run_that_goes_on_knows_all_earlier_batches_and_no_others(
    tmp_path: Path, checkpoint: int
) -> None:
    data = world.dataset(tmp_path)
    batches = [data.get_batch(0), data.get_batch(1)]
    world.rollouts(batches[0][1:])  # one group of batch 0 is late
    world.rollouts(batches[1])
    world.checkpoint(tmp_path, 1)
    batches.append(data.get_batch(2))
    world.rollouts(batches[2][:5])
    world.rollouts(batches[0][:1])
    world.checkpoint(tmp_path, checkpoint)
    batches.append(data.get_batch(3))
    world.rollouts(batches[3])
    world.rollouts(batches[0][3:4])  # run again, late
    again = world.dataset(tmp_path)
    again.get_batch(checkpoint)
    # Open plans, of which some groups came, are in the record as well.
    recorded = read_trace(tmp_path / "trace.jsonl").steps
    assert [step.plan.step for step in recorded] == list(range(checkpoint))
    came = [world.GROUPS * world.SIZE, world.GROUPS * world.SIZE, sum(world.counts(batches[2][:5]))]
    assert world.evidence(again) == pytest.approx(sum(came[:checkpoint]) + batches[0][3].count)
    # What was void stays void after another stop, and outcomes of the resumed run count once.
    third = world.dataset(tmp_path)
    world.rollouts(third.get_batch(checkpoint))
    world.checkpoint(tmp_path, checkpoint + 1)
    last = world.dataset(tmp_path)
    last.get_batch(checkpoint + 1)
    assert world.rates(last) == pytest.approx(world.rates(third))
    assert world.evidence(last) == pytest.approx(world.evidence(third))


def test_a_checkpoint_of_the_stock_cookbook(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        data = world.dataset(tmp_path)
        data.get_batch(3)
    assert "holds no beliefs of knapsack-rl" in caplog.text
    assert data.session.step == 4


def test_a_run_of_another_rule_is_refused(tmp_path: Path) -> None:
    world.train(tmp_path, range(4), rule="paper")
    with pytest.raises(BeliefFileError, match="holds rule 'paper', not 'beta'"):
        world.dataset(tmp_path, rule="beta").get_batch(4)


def test_a_log_cut_off_by_a_kill(tmp_path: Path) -> None:
    world.train(tmp_path / "through", range(8))
    world.train(tmp_path / "again", range(5))
    log = tmp_path / "again" / LOG_FILE
    log.write_bytes(log.read_bytes() + b'[5,0,"p1')
    world.train(tmp_path / "again", range(4, 5), save_every=1)
    world.train(tmp_path / "again", range(5, 8))  # what was voided of batch 4 has stayed so
    assert world.record_of(tmp_path / "again") == world.record_of(tmp_path / "through")


def test_a_log_knows_what_is_void(tmp_path: Path) -> None:
    log = OutcomeLog(tmp_path / "log")
    assert list(log.valid()) == []
    groups = [Group(step, 0, "p", [1.0], [2]) for step in (0, 1, 2)]
    for group in groups:
        log.write(group)
    end = log.mark_resume(1)
    log.write(groups[1])
    assert [group.step for group in log.valid()] == [0, 1]
    assert [entry for _, entry in log.since(end)] == [Group(1, 0, "p", [1.0], [2])]
    assert [list(group.rewards) for group in log.valid() if isinstance(group, Group)] == [[1.0], [1.0]]


@pytest.mark.parametrize("seed", range(10))
def test_a_log_of_many_stops_holds_what_none_of_them_has_voided(tmp_path: Path, seed: int) -> None:
    """Groups with all their fields, exactly; a resume at r voids what stands before it of step r and later."""
    generator = np.random.default_rng(seed)
    log, expected = OutcomeLog(tmp_path / "log"), []
    for place in range(60):
        step = int(generator.integers(12))
        if generator.random() < 0.2:
            log.mark_resume(step)
            expected = [group for group in expected if group.step < step]
            continue
        size = int(generator.integers(1, 5))
        success = None
        if generator.random() < 0.5:
            tokens_T = generator.integers(2**31, size=size).astype(np.int32)
            success = Success("ab" * 16, float(generator.normal()), tokens_T, generator.normal(size=size).astype("f4"))
        age = int(generator.integers(9)) if generator.random() < 0.5 else None
        group = Group(step, place, f"p{place}", generator.normal(size=size).tolist(), [3] * size, age, success)
        log.write(group)
        expected.append(group)
    assert repr(list(log.valid())) == repr(expected)


def test_a_log_holds_plans_exactly(tmp_path: Path) -> None:
    data = world.dataset(tmp_path, rule="calibrated", half_life=8.0)
    for index in range(4):
        world.rollouts(data.get_batch(index))
    logged = [entry for entry in data.tracker.log.valid() if isinstance(entry, Planned)]
    traced = [step.plan for step in read_trace(tmp_path / "trace.jsonl").steps]
    assert [entry.step for entry in logged] == [0, 1, 2, 3]
    for entry, plan in zip(logged, traced, strict=True):
        for name in ("counts_P", "low_P", "high_P", "success_rates_P", "pseudo_count_P", "seen_P"):
            np.testing.assert_array_equal(getattr(entry.plan, name), getattr(plan, name), strict=True)
        assert (entry.rule, entry.plan.price, entry.plan.prompt_ids) == ("calibrated", plan.price, plan.prompt_ids)

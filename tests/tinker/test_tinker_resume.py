"""A run that goes on with batch r knows what all batches before r brought, and nothing else."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import world

from knapsack_rl import BeliefFileError
from knapsack_rl.text_features import TextFeatures
from knapsack_rl.tinker.journal import Group, Journal


@pytest.mark.parametrize("method", ["posterior", "calibrated", "paper", "uniform"])
@pytest.mark.parametrize("stop", [2, 4, 6])
@pytest.mark.parametrize("killed_after", [0, 1])
def test_a_resumed_run_plans_as_if_it_had_not_stopped(
    tmp_path: Path, method: str, stop: int, killed_after: int
) -> None:
    settings: dict[str, Any] = {"method": method, "half_life": 8.0}
    through = world.train(tmp_path / "through", range(8), **settings)
    world.train(tmp_path / "again", range(stop + killed_after), **settings)
    resumed = world.train(tmp_path / "again", range(stop, 8), **settings)
    assert world.told(tmp_path / "again") == world.told(tmp_path / "through")
    assert world.rates(resumed) == world.rates(through)
    assert resumed.inner.asked == list(range(stop, 8))


@pytest.mark.parametrize("stop", [2, 4, 6])
@pytest.mark.parametrize("killed_after", [0, 1])
def test_a_resumed_run_with_a_pool_and_features_plans_as_if_it_had_not_stopped(
    tmp_path: Path, stop: int, killed_after: int
) -> None:
    """Features are not in the journal: the prompts of outcomes that are learned again are looked at again."""

    def settings() -> dict[str, Any]:
        text = {"prompt_text": lambda builder: "x" * 2**builder.prompt, "features": TextFeatures()}
        return {"method": "calibrated", "half_life": 8.0, "pool": 2, "save_every": stop, **text}

    through = world.train(tmp_path / "through", range(8), **settings())
    world.train(tmp_path / "again", range(stop + killed_after), **settings())
    resumed = world.train(tmp_path / "again", range(stop, 8), **settings())
    assert world.told(tmp_path / "again") == world.told(tmp_path / "through")
    assert world.rates(resumed) == world.rates(through)
    assert through.session.allocator.beliefs.look.state()["weights"].any()


def test_a_run_killed_right_after_its_checkpoint_has_lost_nothing(tmp_path: Path) -> None:
    # The beliefs are saved when the next batch is asked for; before that, the journal has what they lack.
    world.train(tmp_path / "again", range(4))
    saved = sorted(path.name.split("-")[0] for path in (tmp_path / "again" / "knapsack").glob("0*"))
    assert saved[-1] == "000002"
    world.train(tmp_path / "again", range(4, 8))
    world.train(tmp_path / "through", range(8))
    assert world.told(tmp_path / "again") == world.told(tmp_path / "through")


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
    assert world.told(tmp_path / "again") == world.told(tmp_path / "through")


def test_saved_beliefs_do_not_pile_up(tmp_path: Path) -> None:
    data = world.train(tmp_path, range(8), save_every=1, inner=world.Dataset(batches=30))
    assert len(list((tmp_path / "knapsack").glob("0*"))) <= 2
    assert data.ledger.learned == 8


@pytest.mark.parametrize("checkpoint", [1, 2, 3])
def test_an_asynchronous_run_that_goes_on_knows_all_earlier_batches_and_no_others(
    tmp_path: Path, checkpoint: int
) -> None:
    data = world.dataset(tmp_path)
    batches = [data.get_batch(0), data.get_batch(1)]
    world.rollouts(batches[0][1:])  # one group of batch 0 takes its time
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
    came = [world.GROUPS * world.SIZE, world.GROUPS * world.SIZE, sum(world.counts(batches[2][:5]))]
    assert world.evidence(again) == pytest.approx(sum(came[:checkpoint]) + batches[0][3].count)
    # What was void stays void after another stop, and what the resumed run adds is added once.
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


def test_beliefs_of_another_method_are_refused(tmp_path: Path) -> None:
    world.train(tmp_path, range(4), method="paper")
    with pytest.raises(BeliefFileError, match="holds kind 'paper'"):
        world.dataset(tmp_path, method="posterior").get_batch(4)


def test_a_journal_cut_off_by_a_kill(tmp_path: Path) -> None:
    world.train(tmp_path / "through", range(8))
    world.train(tmp_path / "again", range(5))
    journal = tmp_path / "again" / "knapsack" / "outcomes.jsonl"
    journal.write_bytes(journal.read_bytes() + b'[5,0,"p1')
    world.train(tmp_path / "again", range(4, 5), save_every=1)
    world.train(tmp_path / "again", range(5, 8))  # what was void of batch 4 has stayed so
    assert world.told(tmp_path / "again") == world.told(tmp_path / "through")


def test_a_journal_knows_what_is_void(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    assert journal.valid() == []
    groups = [Group(step, 0, "p", [1.0], [2]) for step in (0, 1, 2)]
    for group in groups:
        journal.write(group)
    end = journal.mark_resume(1)
    journal.write(groups[1])
    assert [(group.step, at > end) for at, group in journal.valid()] == [(0, False), (1, True)]
    assert [group.step for _, group in journal.since(end)] == [1]
    assert [list(group.rewards) for _, group in journal.valid()] == [[1.0], [1.0]]

"""SPEED-RL: screening and continuation in one call, and the queue between steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from knapsack_arena.published.speed import Speed
from knapsack_rl.files import BeliefFileError
from scripted import Script, asked, trained

DEAD, SOLVED, MIXED = "0", "1", "1000" + "0"


def test_the_continuation_is_batched_with_the_next_screening() -> None:
    world = Script({"a": DEAD, "b": MIXED, "c": SOLVED, "d": MIXED, "e": MIXED, "f": DEAD, "g": DEAD, "h": DEAD})
    speed = Speed()
    first = world.run_step(speed, groups=4, budget=24)  # 24 rollouts are one group of 4 + 20
    assert asked(first) == [dict.fromkeys("abcd", 4), {"b": 20}]  # d waits: enough for the next batch
    assert trained(first) == {"b": [1.0, 0, 0, 0] + [0.0] * 20}  # the screening is trained on
    second = world.run_step(speed, groups=4, budget=24, step=1)
    assert asked(second) == [{"d": 20, **dict.fromkeys("efgh", 4)}]  # nothing left: one call for both
    assert list(trained(second)) == ["d"]
    assert second.batch.outcomes.step == 1


def test_defaults_are_the_papers_and_a_batch_is_a_budget() -> None:
    world = Script({f"p{i:03d}": "10" * 20 for i in range(300)})
    result = world.run_step(Speed(), groups=64, budget=512)
    assert [sum(round_.values()) for round_ in asked(result)] == [64 * 4, 21 * 20]
    assert len(trained(result)) == 512 // 24
    assert result.rollouts == 256 + 420


def test_the_oldest_that_wait_go_first_and_none_is_screened_twice() -> None:
    world = Script(dict.fromkeys("abcd", "10" * 50))
    speed = Speed()
    world.run_step(speed, groups=4, budget=24)
    assert speed.pending.groups.prompt_ids == ("b", "c", "d")
    second = world.run_step(speed, groups=4, budget=24, step=1)
    assert asked(second) == [{"b": 20}]
    third = world.run_step(speed, groups=4, budget=24, step=2)
    assert asked(third) == [{"c": 20}]
    fourth = world.run_step(speed, groups=4, budget=24, step=3)  # now the queue would run empty
    assert asked(fourth) == [{"d": 20, "a": 4, "b": 4, "c": 4}]


def test_without_a_prompt_that_passes_a_step_ends_with_the_last_screening() -> None:
    world = Script({f"p{i}": DEAD for i in range(6)})
    result = world.run_step(Speed(max_rounds=2), groups=2, budget=48)
    assert asked(result) == [{"p0": 4, "p1": 4}, {"p2": 4, "p3": 4}]
    assert list(trained(result)) == ["p2", "p3"]
    small = Script({"a": DEAD, "b": SOLVED})
    assert asked(small.run_step(Speed(), groups=2, budget=48)) == [{"a": 4, "b": 4}]  # nothing new to screen


def test_a_continuation_that_never_comes_leaves_the_screening() -> None:
    world = Script({"a": "1000", "b": DEAD})
    speed = Speed()
    speed.pending.add(world.generate(world.run_step(Speed(max_rounds=1), groups=2, budget=24).rounds[0][0]))
    assert len(speed.pending) == 2
    world.short.update("ab")
    result = world.run_step(speed, groups=2, budget=24, step=1)
    assert {prompt_id: len(rows) for prompt_id, rows in trained(result).items()} == {"a": 4}


def test_the_queue_survives_a_restart(tmp_path: Path) -> None:
    def world() -> Script:
        return Script({f"p{i}": ("10" * 50, "0", "01" * 50)[i % 3] for i in range(12)})

    straight, stopped = world(), world()
    one, two = Speed(), Speed()
    for step in range(2):
        straight.run_step(one, groups=4, budget=48, step=step)
        stopped.run_step(two, groups=4, budget=48, step=step)
    two.save(tmp_path / "file")
    three = Speed()
    three.load(tmp_path / "file")
    for step in range(2, 6):
        ours, theirs = straight.run_step(one, 4, 48, step), stopped.run_step(three, 4, 48, step)
        assert asked(ours) == asked(theirs)
        assert trained(ours) == trained(theirs)


def test_a_damaged_queue_is_refused_and_changes_nothing() -> None:
    world, speed = Script(dict.fromkeys("abcd", "10" * 50)), Speed()
    world.run_step(speed, groups=4, budget=24)
    state = speed.state_dict()
    state["pending"]["begun"] = np.append(state["pending"]["begun"], 0)
    with pytest.raises(BeliefFileError, match="'begun' has the shape"):
        speed.load_state_dict(state)
    assert len(speed.pending) == 3


@pytest.mark.parametrize("wrong", [{"n_init": 1}, {"n_continue": 0}, {"max_rounds": 0}])
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is"):
        Speed(**wrong)

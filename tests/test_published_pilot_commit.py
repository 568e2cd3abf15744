"""Pilot-Commit: the band, the exclusions, the age of pilots, and both phases in one call."""

from __future__ import annotations

from pathlib import Path

import pytest

from knapsack_arena.published.pilot_commit import PilotCommit
from knapsack_rl.files import BeliefFileError
from scripted import Script, asked, trained


def pilot(successes: int) -> str:
    """So many of 16, then failures."""
    return "1" * successes + "0" * (16 - successes) + "0"


def test_the_band_is_kept_the_solved_are_excluded_and_the_rest_deferred() -> None:
    rates = {"one": 1, "two": 2, "half": 8, "twelve": 12, "thirteen": 13, "all": 16}
    world, rule = Script({name: pilot(count) for name, count in rates.items()}), PilotCommit(max_rounds=1)
    world.run_step(rule, groups=6, budget=128)
    assert rule.pending.groups.prompt_ids == ("two", "half", "twelve")  # .125 <= rate <= .75, ends included
    assert rule.excluded == {"all"}
    assert rule.pending.groups.counts_P.tolist() == [16, 16, 16]


def test_pilots_and_commitments_share_a_call() -> None:
    world, rule = Script({f"p{i}": pilot(8) for i in range(12)}), PilotCommit()
    result = world.run_step(rule, groups=3, budget=64)  # one group of 64, and pilots of three
    assert [sorted(round_.values()) for round_ in asked(result)] == [[16] * 3, [16] * 3 + [48]]
    ((prompt_id, rows),) = trained(result).items()
    assert len(rows) == 64
    assert sum(rows) == 8  # the pilot is trained on
    assert prompt_id in ("p0", "p1", "p2")
    assert len(rule.pending) == 5
    second = world.run_step(rule, groups=3, budget=64, step=1)
    assert len(second.rounds) == 1  # a pilot was pending


def test_a_full_step_costs_half_as_much_again_as_the_budget() -> None:
    world, rule = Script({f"p{i:03d}": "10" * 100 for i in range(400)}), PilotCommit()
    world.run_step(rule, groups=64, budget=512)
    result = world.run_step(rule, groups=64, budget=512, step=1)
    assert (len(result.rounds), result.rollouts) == (1, 512 * 3 // 2)
    assert {len(rows) for rows in trained(result).values()} == {64}
    assert len(trained(result)) == 8


def test_pilots_grow_too_old() -> None:
    world, rule = Script({f"p{i}": pilot(8) for i in range(60)}), PilotCommit()
    for step in range(8):
        world.run_step(rule, groups=3, budget=64, step=step)
        assert (step - rule.pending.begun_P <= 4).all()
    assert set(rule.pending.begun_P.tolist()) == {3, 4, 5, 6, 7}


def test_the_excluded_and_those_that_wait_are_not_piloted_again() -> None:
    world, rule = Script({"all": pilot(16), "none": pilot(0), "half": pilot(8)}), PilotCommit(max_rounds=1)
    world.run_step(rule, groups=3, budget=64)
    second = world.run_step(rule, groups=3, budget=64, step=1)
    assert asked(second) == [{"half": 48, "none": 16}]


def test_without_a_prompt_in_the_band_a_step_ends() -> None:
    world, rule = Script({"all": "1", "none": "0"}), PilotCommit()
    result = world.run_step(rule, groups=2, budget=64)
    assert asked(result) == [{"all": 16, "none": 16}]
    assert list(trained(result)) == ["all"]  # one group, as there is budget for


def test_where_all_is_solved_the_excluded_are_piloted_again() -> None:
    world, rule = Script(dict.fromkeys("abcdef", "1")), PilotCommit(max_rounds=1)
    for step in range(2):
        world.run_step(rule, groups=3, budget=64, step=step)
    assert rule.excluded == set("abcdef")
    assert asked(world.run_step(rule, groups=3, budget=64, step=2)) == [{"a": 16, "b": 16, "c": 16}]


def test_the_excluded_are_passed_over_while_there_are_others() -> None:
    world, rule = Script({**dict.fromkeys("abcdefghi", "1"), "j": "0"}), PilotCommit(max_rounds=1)
    rule.excluded = set("abcdefghi")
    assert asked(world.run_step(rule, groups=3, budget=64)) == [{"j": 16}]


def test_the_choice_among_those_that_wait_is_random_and_repeatable() -> None:
    def committed(seed: int) -> list[str]:
        world, rule = Script({f"p{i:02d}": "10" * 99 for i in range(60)}), PilotCommit(seed)
        return [next(iter(trained(world.run_step(rule, groups=3, budget=64, step=step)))) for step in range(6)]

    assert committed(0) == committed(0)
    assert committed(0) != committed(1)


def test_buffer_and_exclusions_survive_a_restart(tmp_path: Path) -> None:
    def world() -> Script:
        return Script({f"p{i:02d}": pilot((0, 8, 16, 4)[i % 4]) for i in range(40)})

    straight, stopped = world(), world()
    one, two = PilotCommit(), PilotCommit()
    for step in range(3):
        straight.run_step(one, 6, 128, step)
        stopped.run_step(two, 6, 128, step)
    two.save(tmp_path / "file")
    three = PilotCommit()
    three.load(tmp_path / "file")
    assert three.excluded == one.excluded
    for step in range(3, 7):
        assert asked(straight.run_step(one, 6, 128, step)) == asked(stopped.run_step(three, 6, 128, step))


def test_damaged_state_is_refused_and_changes_nothing() -> None:
    rule = PilotCommit(max_rounds=1)
    Script({"half": pilot(8), "all": pilot(16)}).run_step(rule, groups=2, budget=64)
    for damage, message in (({"excluded": [1]}, "excluded"), ({"pending": {}}, "prompt ids")):
        with pytest.raises(BeliefFileError, match=message):
            rule.load_state_dict({**PilotCommit().state_dict(), **damage})
    assert (len(rule.pending), rule.excluded) == (1, {"all"})


@pytest.mark.parametrize("wrong", [{"n_pilot": 1}, {"n_commit": 0}, {"max_age": -1}, {"oversampling": 0}, {"low": 0.9}])
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="is (0.9|0|1|-1)"):
        PilotCommit(**wrong)  # type: ignore[arg-type]

"""GRESO: streaks, the probability of keeping a prompt, and what steers it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from knapsack_arena.published.greso import Greso
from knapsack_arena.strategies import RolloutRequest
from knapsack_rl.files import BeliefFileError
from scripted import Script, asked, trained

EASY, HARD, MIXED = "1", "0", "10" * 1000


def draw(*prompt_ids: str) -> RolloutRequest:
    return RolloutRequest(prompt_ids, np.full(len(prompt_ids), 4))


def test_streaks_lower_the_probability_of_being_kept() -> None:
    world, greso = Script({"e": EASY, "h": HARD, "m": "1000" + "0000" * 9}), Greso(max_batches=1)
    greso.p_easy, greso.p_hard = 0.5, 0.8
    for _ in range(3):
        world.run_step(greso, groups=3, budget=12)
        greso.p_easy, greso.p_hard = 0.5, 0.8  # held, so that only streaks count here
    # easy three times, hard three times, and mixed once before two all-wrong groups
    assert greso.keep_probabilities(("e", "h", "m", "new")).tolist() == pytest.approx([0.5**3, 0.8**3, 0.8**2, 1.0])


def test_a_mixed_group_ends_a_streak_and_silence_does_not() -> None:
    world, greso = Script({"a": "0000" + MIXED}), Greso()
    world.run_step(greso, groups=1, budget=4)
    assert greso.keep_probabilities(("a",)) == pytest.approx([0.5])
    world.short.add("a")
    greso._learn(world.generate(draw("a")))
    assert greso.keep_probabilities(("a",)) == pytest.approx([0.5])
    world.short.clear()
    world.run_step(greso, groups=1, budget=4, step=1)
    assert greso.keep_probabilities(("a",)) == pytest.approx([1.0])


def test_no_streak_is_so_long_that_a_prompt_is_never_kept() -> None:
    greso = Greso()
    world = Script({"h": HARD})
    for _ in range(30):
        greso._learn(world.generate(draw("h")))
    assert greso.keep_probabilities(("h",)) == pytest.approx([0.01])


def test_probabilities_move_by_a_hundredth_from_the_first_return_on() -> None:
    # Of four groups, one is easy (25 % >= 8.3 %: down) and none is hard (0 % < 16.7 %: up).
    world, greso = Script({"e": EASY, "a": MIXED, "b": MIXED, "c": MIXED}), Greso(max_batches=1)
    world.run_step(greso, groups=4, budget=16)
    assert (greso.p_easy, greso.p_hard, greso.zero_gradient_share) == (0.5, 0.5, 0.25)  # no prompt was repeated yet
    greso._learn(world.generate(draw(*world.script)))
    assert (greso.p_easy, greso.p_hard) == pytest.approx((0.49, 0.51))
    for _ in range(100):
        greso._learn(world.generate(draw(*world.script)))
    assert (greso.p_easy, greso.p_hard) == pytest.approx((0.05, 0.95))  # and stay within these


def test_the_round_grows_with_the_share_of_zero_gradient_groups() -> None:
    ids = [f"p{i:02d}" for i in range(40)]
    world, greso = Script({prompt_id: HARD if i % 2 else MIXED for i, prompt_id in enumerate(ids)}), Greso()
    result = world.run_step(greso, groups=8, budget=32)
    # 1.25 * 8 / (1 - 0) = 10 prompts, of which 5 are mixed; then 1.25 * 3 / (1 - 1/2) = 7.5, so 8
    assert [len(round_) for round_ in asked(result)] == [10, 8]
    assert len(trained(result)) == 8
    greso.zero_gradient_share = 0.9
    result = world.run_step(greso, groups=8, budget=32, step=1)
    assert len(asked(result)[0]) == 12  # 1.5 * 8, the default batch, is the most


def test_prompts_with_streaks_are_skipped_with_that_frequency() -> None:
    ids = [f"p{i:04d}" for i in range(2000)]
    world, greso = Script(dict.fromkeys(ids, HARD)), Greso(seed=1, max_batches=1)
    greso._learn(world.generate(draw(*world.script)))
    greso.p_hard = 0.3
    result = world.run_step(greso, groups=100, budget=400)
    looked = sum(map(len, world.taken))
    assert len(asked(result)[0]) == 150
    assert 150 / looked == pytest.approx(0.3, abs=0.08)


def test_a_data_set_without_gradient_ends_a_step() -> None:
    world, greso = Script(dict.fromkeys("abcdef", HARD)), Greso(seed=3)
    for step in range(40):
        result = world.run_step(greso, groups=2, budget=8, step=step)
        assert 1 <= len(result.rounds) <= 10
        assert not result.batch.outcomes.mixed_P.any()
    assert greso.p_hard == pytest.approx(0.05)


def test_its_state_is_complete_and_other_state_is_refused(tmp_path: Path) -> None:
    world, greso = Script({"e": EASY, "h": HARD, "m": MIXED}), Greso()
    for step in range(3):
        world.run_step(greso, groups=3, budget=12, step=step)
    greso.save(tmp_path / "file")
    other = Greso()
    other.load(tmp_path / "file")
    for name in ("p_easy", "p_hard", "zero_gradient_share"):
        assert getattr(other, name) == getattr(greso, name)
    all_ids = ("e", "h", "m")
    np.testing.assert_array_equal(other.keep_probabilities(all_ids), greso.keep_probabilities(all_ids))
    bare = {name: value for name, value in Greso().state_dict().items() if name != "numbers"}
    with pytest.raises(BeliefFileError, match="'numbers' is missing"):
        other.load_state_dict(bare)
    assert other.p_easy == greso.p_easy
    np.testing.assert_array_equal(other.keep_probabilities(all_ids), greso.keep_probabilities(all_ids))

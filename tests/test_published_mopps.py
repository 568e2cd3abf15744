"""MoPPS: the posterior of a prompt, and which prompts a draw from it picks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from knapsack_arena.published.mopps import Mopps
from knapsack_rl.outcomes import Outcomes
from scripted import NAN, Script, asked, trained


def test_the_posterior_decays_towards_the_prior_at_every_visit() -> None:
    mopps = Mopps()
    assert mopps.posterior(("a",)) == ([1.0], [1.0])
    mopps._learn(Outcomes.of_groups(0, [("a", [1, 1, 1, 0])]))
    assert mopps.posterior(("a",)) == ([4.0], [2.0])  # .5 * 1 + .5 * 1 + 3, and + 1
    mopps._learn(Outcomes.of_groups(1, [("b", [0, 0])]))  # time alone changes nothing
    mopps._learn(Outcomes.of_groups(9, [("a", [0, 0, NAN, 1])]))
    assert mopps.posterior(("a", "b")) == (pytest.approx([0.5 * 4 + 0.5 + 1, 1]), pytest.approx([0.5 * 2 + 0.5 + 2, 3]))


def test_a_group_without_answers_changes_nothing() -> None:
    mopps = Mopps()
    mopps._learn(Outcomes.of_groups(0, [("a", [1, 1, 0])]))
    mopps._learn(Outcomes.of_groups(1, [("a", [NAN, NAN]), ("b", [])]))
    np.testing.assert_array_equal(mopps.posterior(("a", "b")), ([3.0, 1.0], [2.0, 1.0]))


def test_it_takes_the_candidates_that_it_believes_to_be_middling() -> None:
    ids = [f"p{i:02d}" for i in range(64)]
    world, mopps = (
        Script({prompt_id: ("0", "10" * 400, "1", "0")[i % 4] for i, prompt_id in enumerate(ids)}),
        Mopps(pool=8),
    )
    for step in range(12):
        result = world.run_step(mopps, groups=8, budget=64, step=step)
        (round_,) = asked(result)
        assert (len(round_), set(round_.values())) == (8, {8})
        assert list(trained(result)) == list(round_)
    middling = [prompt_id for prompt_id in round_ if ids.index(prompt_id) % 4 == 1]
    assert len(middling) >= 6  # of 16 candidates of that kind among 64


def test_the_draw_says_what_it_believes() -> None:
    world, mopps = Script({"a": "1110", "b": "0000"}), Mopps(pool=1)
    world.run_step(mopps, groups=2, budget=8)
    (draw, _), *_ = world.run_step(mopps, groups=2, budget=8, step=1).rounds
    expected = {"a": (4 / 6, 6.0), "b": (1 / 6, 6.0)}
    for i, prompt_id in enumerate(draw.prompt_ids):
        assert (draw.success_rates_P[i], draw.pseudo_count_P[i]) == pytest.approx(expected[prompt_id])  # type: ignore[index]


def test_draws_depend_on_seed_and_step_alone() -> None:
    ids = [f"p{i:02d}" for i in range(64)]

    def chosen(seed: int, step: int) -> list[str]:
        return list(
            asked(Script(dict.fromkeys(ids, "0")).run_step(Mopps(seed, pool=8), groups=8, budget=16, step=step))[0]
        )

    assert chosen(0, 5) == chosen(0, 5)
    assert chosen(0, 5) != chosen(0, 6)
    assert chosen(0, 5) != chosen(1, 5)


def test_a_group_of_one_answer_is_not_trained_on() -> None:
    world = Script({"a": "1???", "b": "10??"})
    assert set(trained(world.run_step(Mopps(pool=1), groups=2, budget=8))) == {"b"}


def test_its_posteriors_come_back_from_the_file(tmp_path: Path) -> None:
    mopps = Mopps()
    mopps._learn(Outcomes.of_groups(0, [("a", [1, 1, 0]), ("b", [0])]))
    mopps._learn(Outcomes.of_groups(1, [("a", [1, 0, 0])]))
    mopps.save(tmp_path / "file")
    other = Mopps()
    other.load(tmp_path / "file")
    np.testing.assert_array_equal(other.posterior(("a", "b", "c")), mopps.posterior(("a", "b", "c")))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"pool": 0}, "pool is 0"), ({"decay": 1.5}, "decay is 1.5"), ({"target": -0.1}, "target is")],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Mopps(**wrong)  # type: ignore[arg-type]

"""SPO: values and advantages by hand and against the authors' loop, and which prompts are drawn."""

from __future__ import annotations

from collections import Counter
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knapsack_arena.published.spo import Spo
from knapsack_rl.outcomes import Outcomes
from scripted import Script, asked, trained


def learn(spo: Spo, step: int, **rewards: float) -> None:
    spo._learn(Outcomes.of_groups(step, [(prompt_id, [reward]) for prompt_id, reward in rewards.items()]))


def test_the_first_step_by_hand() -> None:
    """Values are 1/2 before; a success makes a = .875 / 2 + 1 and b = .875 / 2."""
    world = Script({"a": "1", "b": "0", "c": "0", "d": "0"})
    spo = Spo(pool=1)
    result = world.run_step(spo, groups=2, budget=4)
    assert asked(result) == [{"a": 1, "b": 1, "c": 1, "d": 1}]
    batch = result.batch
    # r - v is .5, -.5, -.5, -.5: mean -.25, standard deviation .5.
    np.testing.assert_allclose(batch.baseline_P, [0.25] * 4)
    np.testing.assert_allclose(batch.scale_P, [0.5] * 4)
    np.testing.assert_allclose(spo.values(("a", "b", "new")), [1.4375 / 1.875, 0.4375 / 1.875, 0.5])


@given(st.lists(st.dictionaries(st.sampled_from("abc"), st.integers(0, 1), max_size=3), max_size=12), st.floats(0, 1))
def test_the_update_is_the_authors(steps: list[dict[str, int]], keep: float) -> None:
    """Their lines: alpha = rho alpha + r, beta = rho beta + (1 - r), from 0.5 and 0.5."""
    spo = Spo(keep=keep)
    alpha, beta = dict.fromkeys("abc", 0.5), dict.fromkeys("abc", 0.5)
    for step, rewards in enumerate(steps):
        learn(spo, step, **rewards)
        for name, reward in rewards.items():
            alpha[name] = keep * alpha[name] + reward
            beta[name] = keep * beta[name] + (1 - reward)
    expected = [alpha[name] / (alpha[name] + beta[name]) for name in "abc"]
    np.testing.assert_allclose(spo.values(("a", "b", "c")), expected, rtol=1e-12)


def test_advantages_of_a_batch_have_mean_0_and_deviation_1() -> None:
    world = Script({f"p{i}": ("1000", "0111", "1")[i % 3] for i in range(12)})
    spo = Spo(pool=1)
    for step in range(4):
        batch = world.run_step(spo, groups=4, budget=12, step=step).batch
        assert batch.baseline_P is not None
        assert batch.scale_P is not None
        advantages = (batch.outcomes.rewards_PG - batch.baseline_P) / batch.scale_P
        assert abs(advantages.mean()) < 1e-12
        assert advantages.std(ddof=1) == pytest.approx(1)


def test_prompts_are_drawn_by_their_weights() -> None:
    """Two of four candidates a step, without learning: values .5, .5, and near 0 and 1."""
    ids = ("a", "b", "low", "high")
    drawn: Counter[str] = Counter()
    learned = Spo(seed=3, pool=2, keep=1.0)
    for _ in range(100):
        learn(learned, 0, low=0.0, high=1.0)
    for step in range(200):
        world = Script(dict.fromkeys(ids, "1"))
        drawn.update(asked(world.run_step(deepcopy(learned), groups=2, budget=2, step=step))[0])
    assert drawn["a"] + drawn["b"] > 3 * (drawn["low"] + drawn["high"]) > 0


def test_fewer_candidates_than_rollouts_are_drawn_again() -> None:
    world = Script({"a": "10", "b": "01"})
    result = world.run_step(Spo(), groups=2, budget=16)
    assert sum(asked(result)[0].values()) == 16
    assert sum(map(len, trained(result).values())) == 16


def test_rollouts_without_an_answer_change_nothing() -> None:
    world = Script({"a": "?", "b": "1"})
    spo = Spo(pool=1)
    result = world.run_step(spo, groups=2, budget=2)
    assert set(trained(result)) == {"b"}
    assert result.batch.scale_P is not None
    assert np.isfinite(result.batch.scale_P).all()
    assert spo.values(("a",)) == 0.5


def test_its_values_come_back_from_the_file(tmp_path: Path) -> None:
    spo = Spo()
    learn(spo, 0, a=1.0, b=0.0)
    spo.save(tmp_path / "file")
    other = Spo()
    other.load(tmp_path / "file")
    for each in (spo, other):
        learn(each, 1, b=1.0, c=0.0)
    np.testing.assert_array_equal(other.values(("a", "b", "c")), spo.values(("a", "b", "c")))


@pytest.mark.parametrize(("given_", "told"), [({"pool": 0}, "pool is 0"), ({"keep": 1.5}, "keep is 1.5")])
def test_values_that_make_no_sense_are_refused(given_: dict[str, float], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Spo(**given_)  # type: ignore[arg-type]

"""DPS: the chain of a prompt, by hand and against the authors' update, and which prompts its prediction picks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knapsack_arena.published.dps import Dps
from knapsack_rl.outcomes import Outcomes
from scripted import NAN, Script, asked, trained

ENDS = ([0.0, 0.0], [1.0, 0.0], [1.0, 1.0])


def learn(dps: Dps, step: int, **ends: int) -> None:
    dps._learn(Outcomes.of_groups(step, [(prompt_id, ENDS[end]) for prompt_id, end in ends.items()]))


def test_the_first_two_groups_by_hand() -> None:
    """Without decay: a mixed group adds 1/3 to each transition into "some"; then the column of "some" predicts."""
    dps = Dps(decay=1.0)
    np.testing.assert_allclose(dps.predicted(("a",)), [[1 / 3] * 3])
    learn(dps, 0, a=1)
    # Column of "some": 1, 1 + 1/3, 1; sum 10/3.
    np.testing.assert_allclose(dps.predicted(("a", "b")), [[0.3, 0.4, 0.3], [1 / 3] * 3])
    learn(dps, 1, a=1)
    # From "some" to "some" with certainty: 1 + 1/3 + 1 of 13/3.
    np.testing.assert_allclose(dps.predicted(("a",)), [[3 / 13, 7 / 13, 3 / 13]])


def test_counts_decay_to_the_prior_and_an_unobserved_prompt_is_propagated() -> None:
    dps = Dps(decay=0.0)
    learn(dps, 0, a=2)
    np.testing.assert_allclose(dps.predicted(("a",)), [[0.3, 0.3, 0.4]])
    learn(dps, 1, b=0)
    np.testing.assert_allclose(dps.predicted(("a",)), [[1 / 3] * 3])


@given(st.lists(st.dictionaries(st.sampled_from("abc"), st.integers(0, 2), max_size=3), max_size=12), st.floats(0, 1))
def test_the_update_is_the_authors(steps: list[dict[str, int]], decay: float) -> None:
    """Their loop over prompts, in the terms of their code."""
    dps = Dps(decay=decay)
    alphas: dict[str, np.ndarray] = {}
    pis: dict[str, np.ndarray] = {}
    before: dict[str, np.ndarray] = {}
    for step, ends in enumerate(steps):
        learn(dps, step, **ends)
        for name in ends:
            alphas.setdefault(name, np.ones((3, 3)))
            pis.setdefault(name, np.ones(3) / 3)
            before.setdefault(name, np.ones(3) / 3)
        for name, alpha in alphas.items():
            new, update = pis[name], np.zeros((3, 3))
            if name in ends:
                new = np.eye(3)[ends[name]]
                soft = np.outer(new, before[name]) * alpha / alpha.sum(axis=0, keepdims=True)
                update = soft / soft.sum()
            alphas[name] = alpha * decay + (1 - decay) + update
            prediction = alphas[name] / alphas[name].sum(axis=0, keepdims=True) @ new
            before[name], pis[name] = new, prediction / prediction.sum()
        for name, pi in pis.items():
            np.testing.assert_allclose(dps.predicted((name,))[0], pi, rtol=1e-9)


def test_a_group_without_answers_is_not_observed_and_one_answer_is_not_trained_on() -> None:
    dps = Dps()
    dps._learn(Outcomes.of_groups(0, [("a", [NAN, NAN]), ("b", [])]))
    np.testing.assert_allclose(dps.predicted(("a", "b")), np.full((2, 3), 1 / 3))
    world = Script({"a": "1???", "b": "10??"})
    assert set(trained(world.run_step(Dps(pool=1), groups=2, budget=8))) == {"b"}


def test_it_takes_the_prompts_whose_groups_were_mixed() -> None:
    ids = [f"p{i:02d}" for i in range(64)]
    world = Script({prompt_id: ("0", "10" * 400, "1", "0")[i % 4] for i, prompt_id in enumerate(ids)})
    dps = Dps()
    for step in range(12):
        (round_,) = asked(world.run_step(dps, groups=8, budget=64, step=step))
        assert (len(round_), set(round_.values())) == (8, {8})
    assert all(ids.index(prompt_id) % 4 == 1 for prompt_id in round_)


def test_its_chains_come_back_from_the_file(tmp_path: Path) -> None:
    dps = Dps()
    learn(dps, 0, a=1, b=0)
    learn(dps, 1, a=2)
    dps.save(tmp_path / "file")
    other = Dps()
    other.load(tmp_path / "file")
    for each in (dps, other):
        learn(each, 2, b=1, c=0)
    np.testing.assert_array_equal(other.predicted(("a", "b", "c")), dps.predicted(("a", "b", "c")))


@pytest.mark.parametrize(("given_", "told"), [({"pool": 0}, "pool is 0"), ({"decay": 1.5}, "decay is 1.5")])
def test_values_that_make_no_sense_are_refused(given_: dict[str, float], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Dps(**given_)  # type: ignore[arg-type]

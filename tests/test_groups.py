"""Selecting, thinning and joining groups of several rounds; the queue of pending groups; and its state."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given

from knapsack_arena.published.pending import PendingGroups
from knapsack_arena.strategies import StepSpec, take_unseen
from knapsack_arena.strategies.groups import group_size, join, no_groups, pick, thin, to_train
from knapsack_rl.files import BeliefFileError, read_state, write_state
from knapsack_rl.notation import PromptFeatures
from knapsack_rl.outcomes import Outcomes
from scripted import NAN, Script
from strategies import outcome_streams


def groups_of(outcomes: Outcomes) -> list[tuple[str, list[float]]]:
    rows = np.split(outcomes.rewards_PG, np.cumsum(outcomes.counts_P)[:-1]) if outcomes.prompt_ids else []
    return [(prompt_id, part.tolist()) for prompt_id, part in zip(outcomes.prompt_ids, rows, strict=True)]


THREE = Outcomes.of_groups(7, [("a", [1.0, 0.0, 1.0]), ("b", []), ("c", [0.0, 0.5])])


def test_picking_keeps_order_rows_and_everything_else() -> None:
    assert groups_of(pick(THREE, np.array([2, 0]))) == [("c", [0.0, 0.5]), ("a", [1.0, 0.0, 1.0])]
    assert groups_of(pick(THREE, np.array([False, True, True]))) == [("b", []), ("c", [0.0, 0.5])]
    assert pick(THREE, np.array([1])).step == 7


def test_thinning_drops_rows_and_no_groups() -> None:
    assert groups_of(thin(THREE, THREE.rewards_PG > 0)) == [("a", [1.0, 1.0]), ("b", []), ("c", [0.5])]


def test_joining_merges_prompts_in_order_of_appearance() -> None:
    later = Outcomes.of_groups(9, [("c", [1.0]), ("d", [0.0]), ("a", [0.25])])
    joined = join(11, [THREE, later])
    assert groups_of(joined) == [("a", [1.0, 0.0, 1.0, 0.25]), ("b", []), ("c", [0.0, 0.5, 1.0]), ("d", [0.0])]
    assert joined.step == 11


def test_lengths_are_joined_where_all_parts_know_them() -> None:
    known = Outcomes(0, ("a",), np.array([2]), np.array([1.0, 0.0]), np.array([5, 6]))
    more = Outcomes(0, ("a",), np.array([1]), np.array([1.0]), np.array([7]))
    assert join(0, [known, no_groups(0), more]).tokens_PG.tolist() == [5, 6, 7]  # type: ignore[union-attr]
    assert join(0, [known, THREE]).tokens_PG is None


@given(outcome_streams())
def test_joining_loses_nothing(stream: list[Outcomes]) -> None:
    joined = dict(groups_of(join(0, stream)))
    expected: dict[str, list[float]] = {}
    for part in stream:
        for prompt_id, rows in groups_of(part):
            expected.setdefault(prompt_id, []).extend(rows)
    assert list(joined) == list(expected)
    assert all(np.array_equal(joined[each], expected[each], equal_nan=True) for each in expected)


def test_a_batch_is_the_first_mixed_groups_or_else_the_last_ones_without_gradient() -> None:
    found = [Outcomes.of_groups(0, [("a", [1, 0]), ("b", [0, 1])]), Outcomes.of_groups(0, [("c", [1, 0])])]
    last = Outcomes.of_groups(0, [("x", [0, 0]), ("y", [0, NAN]), ("z", [1, 1])])
    assert to_train(0, found, 2, last).outcomes.prompt_ids == ("a", "b")
    assert to_train(0, [], 2, last).outcomes.prompt_ids == ("x", "z")  # one answer is no group
    assert to_train(0, [], 2, no_groups(0)).outcomes.prompt_ids == ()


def test_prompts_taken_are_unseen_and_taken_a_step_at_a_time() -> None:
    world = Script({"a": "0", "b": "0", "c": "0"})
    spec = StepSpec(0, 2, 16, world.take)
    assert take_unseen(spec, 3, {"a"}) == ("b", "c")
    assert world.taken == [("a", "b"), ("c",)]
    assert take_unseen(spec, 5, {"b"}) == ("a", "c")  # five of three: every prompt came, some twice
    assert take_unseen(spec, 1, {"c", "b", "a"}) == ()


def test_a_group_has_two_rollouts_at_least() -> None:
    assert group_size(StepSpec(0, 4, 35, Script({}).take)) == 8
    with pytest.raises(ValueError, match="7 rollouts for 4 prompts .* at least 8"):
        group_size(StepSpec(0, 4, 7, Script({}).take))


def test_the_queue_comes_back_from_its_file_bit_for_bit(tmp_path: Path) -> None:
    queue = PendingGroups()
    third = 1 / 3
    queue.add(Outcomes(3, ("a", "b"), np.array([2, 1]), np.array([third, NAN, 0.0]), np.array([4, 5, 6]), 0.7))
    queue.add(Outcomes(5, ("ü",), np.array([1]), np.array([1.0]), np.array([9]), 0.7))
    write_state(tmp_path / "queue", queue.state_dict())
    back = PendingGroups.from_state(read_state(tmp_path / "queue"))
    assert back.begun_P.tolist() == [3, 3, 5]
    assert back.groups.prompt_ids == ("a", "b", "ü")
    np.testing.assert_array_equal(back.groups.rewards_PG, [third, NAN, 0.0, 1.0])
    assert back.groups.tokens_PG.tolist() == [4, 5, 6, 9]  # type: ignore[union-attr]
    assert back.groups.success_threshold == 0.7
    queue.remove(np.array([1]))
    assert (queue.groups.prompt_ids, queue.begun_P.tolist()) == (("a", "ü"), [3, 5])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"begun": np.array([0, 1])}, "'begun' has the shape"),
        ({"ids": "ab"}, "prompt ids"),
        ({"ids": ["a", "b"]}, "'counts' has the shape"),
        ({"counts": np.array([2])}, "do not fit"),
        ({"rewards": np.array([NAN])}, "not finite"),
        ({"tokens": np.array([1, 2])}, "'tokens' has the shape"),
        ({"threshold": None}, "'threshold' is missing"),
    ],
)
def test_a_damaged_queue_is_refused(damage: dict[str, object], message: str) -> None:
    queue = PendingGroups()
    queue.add(Outcomes.of_groups(3, [("a", [1.0])]))
    with pytest.raises(BeliefFileError, match=message):
        PendingGroups.from_state({**queue.state_dict(), **damage})


def test_features_stay_with_their_groups() -> None:
    features = PromptFeatures(np.arange(3.0)[:, None], np.zeros((3, 0)))
    picked = pick(replace(THREE, features=features), np.array([2, 0])).features
    assert picked is not None
    assert picked.features_P_F.tolist() == [[2.0], [0.0]]

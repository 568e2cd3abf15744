"""Picking, thinning and joining groups that come in parts; the queue of begun ones; and its file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knapsack_rl.groups import group_size, join, mean_and_deviation, no_groups, pick, thin, to_train
from knapsack_rl.outcomes import Outcomes
from knapsack_rl.rivals.memory import load_memory, save_memory
from knapsack_rl.rivals.waiting import Waiting
from knapsack_rl.strategy import Request, fresh
from knapsack_rl.table import BeliefFileError
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


def test_a_batch_is_the_first_mixed_groups_or_else_the_last_dead_ones() -> None:
    found = [Outcomes.of_groups(0, [("a", [1, 0]), ("b", [0, 1])]), Outcomes.of_groups(0, [("c", [1, 0])])]
    last = Outcomes.of_groups(0, [("x", [0, 0]), ("y", [0, NAN]), ("z", [1, 1])])
    assert to_train(0, found, 2, last).outcomes.prompt_ids == ("a", "b")
    assert to_train(0, [], 2, last).outcomes.prompt_ids == ("x", "z")  # one answer is no group
    assert to_train(0, [], 2, no_groups(0)).outcomes.prompt_ids == ()


@given(st.lists(st.sampled_from([0.0, 0.25, 1.0, NAN]), max_size=8))
def test_mean_and_deviation_are_those_of_the_answers(values: list[float]) -> None:
    (mean,), (deviation,) = mean_and_deviation(Outcomes.of_groups(0, [("a", values)]))
    answers = [value for value in values if not np.isnan(value)]
    assert mean == pytest.approx(np.mean(answers) if answers else 0.0)
    assert deviation == pytest.approx(np.std(answers, ddof=1) if len(answers) > 1 else 0.0)


def test_fresh_prompts_are_new_and_asked_for_a_step_at_a_time() -> None:
    world = Script({"a": "0", "b": "0", "c": "0"})
    request = Request(0, 2, 16, world.take)
    assert fresh(request, 3, {"a"}) == ("b", "c")
    assert world.taken == [("a", "b"), ("c",)]
    assert fresh(request, 5, {"b"}) == ("a", "c")  # five of three: every prompt came, some twice
    assert fresh(request, 1, {"c", "b", "a"}) == ()


def test_a_group_has_two_rollouts_at_least() -> None:
    assert group_size(Request(0, 4, 35, Script({}).take)) == 8
    with pytest.raises(ValueError, match="7 rollouts for 4 prompts .* at least 8"):
        group_size(Request(0, 4, 7, Script({}).take))


def test_the_queue_comes_back_from_its_file_bit_for_bit(tmp_path: Path) -> None:
    queue = Waiting()
    third = 1 / 3
    queue.add(Outcomes(3, ("a", "b"), np.array([2, 1]), np.array([third, NAN, 0.0]), np.array([4, 5, 6]), 0.7))
    queue.add(Outcomes(5, ("ü",), np.array([1]), np.array([1.0]), np.array([9]), 0.7))
    save_memory(tmp_path / "queue", "test", queue.fields())
    back = Waiting.of_fields(load_memory(tmp_path / "queue", "test"))
    assert back.born_P.tolist() == [3, 3, 5]
    assert back.groups.prompt_ids == ("a", "b", "ü")
    np.testing.assert_array_equal(back.groups.rewards_PG, [third, NAN, 0.0, 1.0])
    assert back.groups.tokens_PG.tolist() == [4, 5, 6, 9]  # type: ignore[union-attr]
    assert back.groups.success_threshold == 0.7
    queue.remove(np.array([1]))
    assert (queue.groups.prompt_ids, queue.born_P.tolist()) == (("a", "ü"), [3, 5])


def test_a_queue_whose_fields_do_not_fit_is_refused() -> None:
    fields = {"ids": ["a"], "counts": [1], "rewards": [0.0], "tokens": None, "threshold": 1.0, "born": [0, 1]}
    with pytest.raises(ValueError, match="birthdays"):
        Waiting.of_fields(fields)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "not a readable file"),
        ("no json", "not a readable file"),
        ("[1]", "not a file of a strategy"),
        ('{"format": "other"}', "not a file of a strategy"),
        ({"version": 2}, "holds version 2, not 1"),
        ({"kind": "greso"}, "holds kind 'greso', not 'dapo'"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: object, message: str) -> None:
    path = tmp_path / "memory"
    if isinstance(text, dict):
        save_memory(path, "dapo", {})
        path.write_text(json.dumps({**json.loads(path.read_text()), **text}))
    elif isinstance(text, str):
        path.write_text(text)
    with pytest.raises(BeliefFileError, match=message):
        load_memory(path, "dapo")

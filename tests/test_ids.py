"""Ids of content: what compares equal has one id, and what a library adds or widens changes none."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import json
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knapsack_rl.beliefs.ids import content_id, id_text, row_id

numbers = st.integers() | st.floats(allow_nan=False)
leaves = st.none() | st.booleans() | numbers | st.text() | st.binary(max_size=4)
contents = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=12
)
rows = st.dictionaries(st.sampled_from(["prompt", "answer", "seed", "kwargs"]), contents, min_size=1)


def with_absent_keys(value: Any) -> Any:
    """As Arrow returns content whose neighbours have more keys."""
    if isinstance(value, dict):
        added = {"added": None, "added too": {"inside": None}}
        return added | {key: with_absent_keys(each) for key, each in value.items()}
    return [with_absent_keys(each) for each in value] if isinstance(value, list) else value


def stored_otherwise(value: Any) -> Any:
    """Equal content of other types: floats for ints, tuples for lists, keys in another order."""
    if isinstance(value, dict):
        return dict(reversed([(key, stored_otherwise(each)) for key, each in value.items()]))
    if isinstance(value, list):
        return tuple(stored_otherwise(each) for each in value)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53:
        return float(value)
    return value


@given(rows)
def test_what_arrow_adds_or_widens_changes_no_id(row: dict[str, Any]) -> None:
    assert row_id(with_absent_keys(row)) == row_id(row)
    assert row_id(stored_otherwise(row)) == row_id(row)


@given(rows, st.sampled_from(["answer", "seed", "image"]), st.text(min_size=1) | st.integers())
def test_every_column_is_part_of_the_id(row: dict[str, Any], name: str, value: Any) -> None:
    other = row | {name: value}
    same = other[name] == row.get(name) and not isinstance(row.get(name), bool)  # True is not 1
    assert (row_id(other) == row_id(row)) == same


@given(rows, st.text(min_size=1))
def test_a_prompt_id_is_the_id(row: dict[str, Any], prompt_id: str) -> None:
    assert row_id(row | {"prompt_id": prompt_id}) == prompt_id


@given(st.lists(numbers, max_size=5))
def test_arrays_are_their_lists(values: list[Any]) -> None:
    floats = np.array(values, dtype=np.float64)
    assert content_id(floats) == content_id(floats.tolist()) == content_id(list(floats))


def test_equal_values_of_other_types_have_one_id() -> None:
    class Colour(enum.Enum):
        RED = "red"

    class Number(enum.IntEnum):
        ONE = 1

    @dataclasses.dataclass
    class Point:
        x: int

    groups: list[list[Any]] = [
        [1, 1.0, np.int8(1), np.float32(1), np.array(1), decimal.Decimal("1.00"), Number.ONE],
        [0, -0.0, 0.0],
        [0.5, np.float32(0.5), decimal.Decimal("0.5")],
        [True, np.bool_(True)],
        ["red", Colour.RED, np.str_("red")],
        [{"x": 1}, Point(1)],
        [None, float("nan"), {}, {"x": None}, np.datetime64("NaT")],
        [datetime.datetime(2026, 1, 2, 3), np.datetime64("2026-01-02T03:00:00.000000000")],
        ["a/b", Path("a/b")],
        [b"ab", bytearray(b"ab"), memoryview(b"ab")],
        [{1, 2}, frozenset([2, 1])],
        [float("inf"), np.float32("inf")],
        [decimal.Decimal("0.1")],
        [datetime.timedelta(seconds=1)],
    ]
    ids = [{content_id(value) for value in group} for group in groups]
    assert [len(each) for each in ids] == [1] * len(groups)
    assert len(set.union(*ids)) == len(groups)


def test_images_are_told_apart_by_their_pixels() -> None:
    image = pytest.importorskip("PIL.Image")
    black, red = image.new("RGB", (2, 2)), image.new("RGB", (2, 2), "red")
    other = image.new("P", (2, 2))
    other.putpalette([255, 0, 0])
    assert content_id(black) == content_id(black.copy())
    assert (
        len({content_id(each) for each in (black, red, image.new("RGB", (4, 1)), image.new("P", (2, 2)), other)}) == 5
    )


def test_a_row_with_nothing_but_a_prompt_has_the_id_of_the_prompt() -> None:
    chat = [{"role": "user", "content": "2 + 2 = ?"}]
    assert row_id({"prompt": chat, "answer": None}) == content_id(chat)
    assert row_id({"answer": chat}) != content_id(chat)


def test_the_first_rule_is_kept() -> None:
    """JSON of the prompt as it is: what checkpoints of the first rule were written with."""
    for prompt in ("2 + 2 = ?", [{"role": "user", "content": "x", "name": None, "weight": 1.0}]):
        text = json.dumps(prompt, sort_keys=True, ensure_ascii=False)
        first = blake2b(text.encode(), digest_size=8).hexdigest()
        assert row_id({"prompt": prompt, "answer": 3}, version=1) == content_id(prompt, version=1) == first


def test_values_that_no_id_can_be_made_of() -> None:
    row = {"prompt": "x", "check": lambda: 0}
    with pytest.raises(TypeError, match="column 'check': no id can be made of a function; give every row a prompt_id"):
        row_id(row)
    left_out: set[str] = set()
    assert row_id(row, left_out=left_out) == row_id({"prompt": "x"})
    assert left_out == {"check"}
    assert row_id(row | {"prompt_id": 7}) == "7"


@pytest.mark.parametrize("value", [None, "", float("nan"), np.float32("nan")])
def test_an_empty_id_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="the id is empty"):
        id_text(value)
    with pytest.raises(ValueError, match=r"a row has no prompt_id \(prompt: 'x'\)"):
        row_id({"prompt_id": value, "prompt": "x"})


def test_ids_of_widened_columns_are_the_same() -> None:
    assert {id_text(value) for value in (7, 7.0, np.int64(7), "7")} == {"7"}
    assert id_text(0.5) == "0.5"

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knapsack_rl.ids import KeyIndex, content_id, prompt_keys

# Keys that end in few different bits fight for the same slots.
crowded = st.integers(0, 40).map(lambda k: (k << 40) | (k % 3))
batches = st.lists(st.lists(st.one_of(crowded, st.integers(0, 2**64 - 1)), max_size=60), max_size=8)


@settings(max_examples=150)
@given(batches, st.lists(st.integers(0, 2**64 - 1), max_size=20))
def test_the_index_is_a_dictionary(batches: list[list[int]], strangers: list[int]) -> None:
    index, expected = KeyIndex(), dict[int, int]()
    for batch in batches:
        found = index.add(np.array(batch, dtype=np.uint64))
        for key in batch:
            expected.setdefault(key, len(expected))
        assert found.tolist() == [expected[key] for key in batch]
        assert len(index) == len(expected)
    assert index.keys.tolist() == list(expected)
    asked = [*expected, *strangers]
    assert index.rows(np.array(asked, dtype=np.uint64)).tolist() == [expected.get(key, -1) for key in asked]
    again = KeyIndex(index.keys)
    assert again.rows(np.array(asked, dtype=np.uint64)).tolist() == [expected.get(key, -1) for key in asked]


def test_a_thousand_keys_for_one_slot() -> None:
    keys = (np.arange(1000, dtype=np.uint64) << np.uint64(32)) + np.uint64(7)
    index = KeyIndex()
    np.testing.assert_array_equal(index.add(keys), np.arange(1000))
    np.testing.assert_array_equal(index.rows(keys[::-1]), np.arange(1000)[::-1])
    assert (index.rows(keys + np.uint64(1)) == -1).all()


def test_many_keys_in_several_growths() -> None:
    rng = np.random.default_rng(0)
    keys = rng.integers(0, 2**63, 200_000).astype(np.uint64)
    index = KeyIndex()
    for part in np.array_split(keys, 23):
        index.add(part)
    np.testing.assert_array_equal(index.keys, keys)
    np.testing.assert_array_equal(index.rows(keys), np.arange(keys.size))


def test_no_keys() -> None:
    index = KeyIndex(np.zeros(0, dtype=np.uint64))
    assert index.add(np.zeros(0, dtype=np.uint64)).size == 0
    assert index.rows(np.array([0], dtype=np.uint64)).tolist() == [-1]


def test_keys_are_the_same_in_every_process_and_pinned() -> None:
    """Pinned, because they are written to files."""
    here = prompt_keys(["a", "ü", ""]).tolist()
    assert here == [3405396810240292928, 3976460501203677525, 13020603013274838756]
    code = "from knapsack_rl.ids import prompt_keys; print(prompt_keys(['a', '\\xfc', '']).tolist())"
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert there.strip() == str(here)


def test_content_ids_depend_on_content_alone() -> None:
    chat = [{"role": "user", "content": "2 + 2 = ?"}]
    assert content_id(chat) == content_id([{"content": "2 + 2 = ?", "role": "user"}])
    assert content_id(chat) != content_id([{"role": "system", "content": "2 + 2 = ?"}])
    assert content_id("2 + 2 = ?") != content_id(chat)
    assert len({content_id(text) for text in ("a", "A", " a", "ä", "")}) == 5


def test_content_that_has_no_text_is_refused() -> None:
    with pytest.raises(TypeError):
        content_id(object())

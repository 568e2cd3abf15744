"""Stored beliefs: state files are complete or unchanged, and damaged ones are refused by name; the index of keys."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knapsack_rl.beliefs.ids import content_id, prompt_keys
from knapsack_rl.beliefs.prompt_store import KeyIndex, PromptTable, TableBeliefs
from knapsack_rl.files import FORMAT, VERSION, BeliefFileError
from knapsack_rl.files.state import WITHOUT_CHECKSUM

COLUMNS = {"rate": np.float32, "visits": np.int32}


class Stored(TableBeliefs):
    """A table that is saved and loaded as beliefs are."""

    header: Mapping[str, object] = {"kind": "test"}

    def __init__(self) -> None:
        self.table = PromptTable(COLUMNS)


def filled(*prompt_ids: str) -> Stored:
    stored = Stored()
    table = stored.table
    rows = table.add(prompt_ids)
    table["rate"][rows] = np.arange(1, rows.size + 1) / 7
    table["visits"][rows] = np.arange(rows.size) + 3
    return stored


def content(stored: Stored, prompt_ids: tuple[str, ...] = ("a", "b", "c", "d")) -> tuple[list[int], ...]:
    table = stored.table
    return (table.rows(prompt_ids).tolist(), table["rate"].tolist(), table["visits"].tolist())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "beliefs.npz"
    filled("a", "b", "c").save(path)
    return path


def assert_refused(path: Path, *words: str) -> None:
    """Loading fails with an error that names the file, and changes nothing."""
    table = filled("d")
    before = content(table)
    with pytest.raises(BeliefFileError) as caught:
        table.load(path)
    for word in (str(path), *words):
        assert word in str(caught.value)
    assert content(table) == before


def test_a_round_trip(file: Path) -> None:
    stored = filled("d")
    stored.load(file)
    assert content(stored) == content(filled("a", "b", "c"))
    table = stored.table
    table.add(["e"])  # the loaded table can grow
    assert table.rows(["a", "e"]).tolist() == [0, 3]
    assert table["visits"].tolist() == [3, 4, 5, 0]


def test_an_empty_table_round_trips(tmp_path: Path) -> None:
    filled().save(tmp_path / "empty.npz")
    stored = filled("d")
    stored.load(tmp_path / "empty.npz")
    assert len(stored.table) == 0


def test_growing_keeps_existing_rows() -> None:
    table = filled("a", "b").table
    for start in range(0, 5000, 500):
        table.add([f"more-{i}" for i in range(start, start + 500)])
    assert table["rate"][table.rows(["a", "b"])].tolist() == filled("a", "b").table["rate"].tolist()
    assert (table["rate"][2:] == 0).all()
    assert len(table) == 5002


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert_refused(tmp_path / "nowhere.npz", "No such file")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    assert_refused(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.6, 0.99])
def test_a_truncated_file_is_refused(file: Path, share: float) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share)])
    assert_refused(file, "restore it")


def test_a_flipped_bit_is_refused_or_harmless(file: Path) -> None:
    """For every third byte of the file: loading gives the same content or a BeliefFileError."""
    data = file.read_bytes()
    whole, refused = content(filled("a", "b", "c")), 0
    for position in range(0, len(data), 3):
        damaged = bytearray(data)
        damaged[position] ^= 1 << (position % 8)
        file.write_bytes(damaged)
        table = filled("d")
        try:
            table.load(file)
        except BeliefFileError as error:
            refused += 1
            assert str(file) in str(error)
            assert content(table) == content(filled("d"))
        else:
            assert content(table) == whole
    assert refused > len(data) / 12


@pytest.mark.parametrize("name", ["text", "npy", "npz", "zip", "pickle"])
def test_a_foreign_file_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "foreign.npz"
    match name:
        case "text":
            path.write_text("prompt_id,pass_rate\n")
        case "npy":
            np.save(path.with_suffix(".npy"), np.arange(4))
            path.with_suffix(".npy").rename(path)
        case "npz":
            np.savez(path, weights=np.arange(4))
        case "zip":
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("readme", "hello")
        case "pickle":
            np.savez(path, allow_pickle=True, header=np.array([{"a": 1}], dtype=object))
    assert_refused(path)


def forged(path: Path, changes: Mapping[str, object] = {}, **arrays: np.ndarray | None) -> Path:
    """A state file with ``changes`` of its header, and ``arrays`` in place of its columns."""
    columns: dict[str, np.ndarray | None] = {
        "keys": np.arange(2, dtype=np.uint64),
        "rate": np.zeros(2, dtype=np.float32),
        "visits": np.zeros(2, dtype=np.int32),
    } | arrays
    present = {name: array for name, array in columns.items() if array is not None}
    state = {"kind": "test", "prompts": {name: {"@array": name} for name in present}}
    header: object = {"format": FORMAT, "version": WITHOUT_CHECKSUM, "state": state, **changes}
    np.savez(path, header=np.array(json.dumps(changes.get("header", header))), **present)
    return path


def test_headers_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "forged.npz"
    stored = Stored()
    stored.load(forged(path))
    assert len(stored.table) == 2
    assert_refused(forged(path, {"header": [1, 2]}), "not a belief file")
    assert_refused(forged(path, {"format": "other"}), "not a belief file")
    assert_refused(forged(path, {"version": VERSION + 1}), f"version {VERSION + 1}", "update knapsack-rl")
    assert_refused(forged(path, {"state": {"kind": "window"}}), "kind 'window', not 'test'")
    assert_refused(forged(path, {"state": {"kind": "test"}}), "keys")
    assert_refused(forged(path, {"state": {"kind": "test", "prompts": {"keys": {"@array": "lost"}}}}), "lost")
    assert_refused(forged(path, {"state": [1]}), "holds no state")


@pytest.mark.parametrize(
    "changes",
    [
        {"rate": None},
        {"keys": None},
        {"rate": np.zeros(3, dtype=np.float32)},
        {"rate": np.array(["a", "b"])},
        {"rate": np.zeros(2)},
        {"keys": np.zeros(2, dtype=np.int64)},
        {name: np.zeros((2, 1), dtype) for name, dtype in (("keys", np.uint64), ("rate", "f4"), ("visits", "i4"))},
    ],
)
def test_columns_are_checked(tmp_path: Path, changes: dict[str, np.ndarray | None]) -> None:
    assert_refused(forged(tmp_path / "forged.npz", **changes), "saved array")


def test_a_file_from_a_machine_of_the_other_byte_order(tmp_path: Path) -> None:
    path = forged(tmp_path / "big.npz", keys=np.array([5, 6], dtype=">u8"), rate=np.array([1, 2], dtype=">f4"))
    stored = Stored()
    stored.load(path)
    table = stored.table
    assert table["rate"].tolist() == [1, 2]
    assert table["rate"].dtype == np.dtype("f4")


@pytest.mark.parametrize("victim", ["fsync", "replace"])
def test_a_crash_while_saving_leaves_the_old_file(file: Path, monkeypatch: pytest.MonkeyPatch, victim: str) -> None:
    def crash(*_: object) -> None:
        raise OSError("disk full")

    before = file.read_bytes()
    if victim == "fsync":
        monkeypatch.setattr(os, "fsync", crash)
    else:
        monkeypatch.setattr(Path, "replace", crash)
    with pytest.raises(OSError, match="disk full"):
        filled("x").save(file)
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


def test_saved_files_hold_no_pickle(file: Path) -> None:
    with np.load(file, allow_pickle=False) as saved:
        assert sorted(saved.files) == ["array0", "array1", "array2", "checksum", "header"]
        assert all(saved[name].dtype.kind in "Uuif" for name in saved.files)
    assert len(file.read_bytes()) < 2500


def test_keys_that_repeat_are_refused(tmp_path: Path) -> None:
    assert_refused(forged(tmp_path / "forged.npz", keys=np.zeros(2, dtype=np.uint64)), "keys repeat")


# The index of keys.

# Keys whose lowest bits have few values collide in the same slots.
colliding = st.integers(0, 40).map(lambda k: (k << 40) | (k % 3))
batches = st.lists(st.lists(st.one_of(colliding, st.integers(0, 2**64 - 1)), max_size=60), max_size=8)


@settings(max_examples=150)
@given(batches, st.lists(st.integers(0, 2**64 - 1), max_size=20))
def test_the_index_agrees_with_a_dictionary(batches: list[list[int]], unknown: list[int]) -> None:
    index, expected = KeyIndex(), dict[int, int]()
    for batch in batches:
        found = index.add(np.array(batch, dtype=np.uint64))
        for key in batch:
            expected.setdefault(key, len(expected))
        assert found.tolist() == [expected[key] for key in batch]
        assert len(index) == len(expected)
    assert index.keys.tolist() == list(expected)
    keys = [*expected, *unknown]
    assert index.rows(np.array(keys, dtype=np.uint64)).tolist() == [expected.get(key, -1) for key in keys]
    again = KeyIndex(index.keys)
    assert again.rows(np.array(keys, dtype=np.uint64)).tolist() == [expected.get(key, -1) for key in keys]


def test_a_thousand_keys_with_the_same_slot() -> None:
    keys = (np.arange(1000, dtype=np.uint64) << np.uint64(32)) + np.uint64(7)
    index = KeyIndex()
    np.testing.assert_array_equal(index.add(keys), np.arange(1000))
    np.testing.assert_array_equal(index.rows(keys[::-1]), np.arange(1000)[::-1])
    assert (index.rows(keys + np.uint64(1)) == -1).all()


def test_many_keys_in_several_batches() -> None:
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
    """Constants, because keys are written to files."""
    here = prompt_keys(["a", "ü", ""]).tolist()
    assert here == [3405396810240292928, 3976460501203677525, 13020603013274838756]
    code = "from knapsack_rl.beliefs.ids import prompt_keys; print(prompt_keys(['a', '\\xfc', '']).tolist())"
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert there.strip() == str(here)


def test_content_ids_depend_on_content_alone() -> None:
    chat = [{"role": "user", "content": "2 + 2 = ?"}]
    assert content_id(chat) == content_id([{"content": "2 + 2 = ?", "role": "user"}])
    assert content_id(chat) != content_id([{"role": "system", "content": "2 + 2 = ?"}])
    assert content_id("2 + 2 = ?") != content_id(chat)
    assert len({content_id(text) for text in ("a", "A", " a", "ä", "")}) == 5


def test_content_that_json_cannot_express_is_refused() -> None:
    with pytest.raises(TypeError):
        content_id(object())

"""Beliefs on disk: whole or not at all, and refused by name when damaged."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from knapsack_rl.table import FORMAT, VERSION, BeliefFileError, PromptTable

COLUMNS = {"rate": np.float32, "visits": np.int32}
HEADER = {"kind": "test"}


def filled(*prompt_ids: str) -> PromptTable:
    table = PromptTable(COLUMNS)
    rows = table.add(prompt_ids)
    table["rate"][rows] = np.arange(1, rows.size + 1) / 7
    table["visits"][rows] = np.arange(rows.size) + 3
    return table


def content(table: PromptTable, prompt_ids: tuple[str, ...] = ("a", "b", "c", "d")) -> tuple[list[int], ...]:
    return (table.rows(prompt_ids).tolist(), table["rate"].tolist(), table["visits"].tolist())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "beliefs.npz"
    filled("a", "b", "c").save(path, HEADER)
    return path


def assert_refused(path: Path, *words: str) -> None:
    """With an error that names the file, and nothing changed."""
    table = filled("d")
    before = content(table)
    with pytest.raises(BeliefFileError) as caught:
        table.load(path, HEADER)
    for word in (str(path), *words):
        assert word in str(caught.value)
    assert content(table) == before


def test_a_round_trip(file: Path) -> None:
    table = filled("d")
    assert table.load(file, HEADER)["kind"] == "test"
    assert content(table) == content(filled("a", "b", "c"))
    table.add(["e"])  # and it can grow on
    assert table.rows(["a", "e"]).tolist() == [0, 3]
    assert table["visits"].tolist() == [3, 4, 5, 0]


def test_an_empty_table_round_trips(tmp_path: Path) -> None:
    filled().save(tmp_path / "empty.npz", HEADER)
    table = filled("d")
    table.load(tmp_path / "empty.npz", HEADER)
    assert len(table) == 0


def test_growing_keeps_what_was_there() -> None:
    table = filled("a", "b")
    for start in range(0, 5000, 500):
        table.add([f"more-{i}" for i in range(start, start + 500)])
    assert table["rate"][table.rows(["a", "b"])].tolist() == filled("a", "b")["rate"].tolist()
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
    """Every byte of the file in turn: never another content, never another exception."""
    data = file.read_bytes()
    whole, refused = content(filled("a", "b", "c")), 0
    for position in range(0, len(data), 3):
        damaged = bytearray(data)
        damaged[position] ^= 1 << (position % 8)
        file.write_bytes(damaged)
        table = filled("d")
        try:
            table.load(file, HEADER)
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


def forged(path: Path, header: object, **changes: np.ndarray | None) -> Path:
    arrays: dict[str, np.ndarray | None] = {
        "keys": np.arange(2, dtype=np.uint64),
        "rate": np.zeros(2, dtype=np.float32),
        "visits": np.zeros(2, dtype=np.int32),
    } | changes
    present = {name: array for name, array in arrays.items() if array is not None}
    np.savez(path, header=np.array(json.dumps(header)), **present)
    return path


def test_headers_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "forged.npz"
    good = {"format": FORMAT, "version": VERSION, **HEADER}
    table = PromptTable(COLUMNS)
    table.load(forged(path, good), HEADER)
    assert len(table) == 2
    assert_refused(forged(path, [1, 2]), "not a belief file")
    assert_refused(forged(path, good | {"format": "other"}), "not a belief file")
    assert_refused(forged(path, good | {"version": VERSION + 1}), f"version {VERSION + 1}", "update knapsack-rl")
    assert_refused(forged(path, good | {"kind": "paper"}), "kind 'paper', not 'test'")


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
    header = {"format": FORMAT, "version": VERSION, **HEADER}
    assert_refused(forged(tmp_path / "forged.npz", header, **changes), "columns")


def test_a_file_from_a_machine_of_the_other_byte_order(tmp_path: Path) -> None:
    header = {"format": FORMAT, "version": VERSION, **HEADER}
    path = forged(tmp_path / "big.npz", header, keys=np.array([5, 6], dtype=">u8"), rate=np.array([1, 2], dtype=">f4"))
    table = PromptTable(COLUMNS)
    table.load(path, HEADER)
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
        filled("x").save(file, HEADER)
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


def test_what_is_saved_holds_no_pickle(file: Path) -> None:
    with np.load(file, allow_pickle=False) as saved:
        assert sorted(saved.files) == ["header", "keys", "rate", "visits"]
        assert all(saved[name].dtype.kind in "Uuif" for name in saved.files)
    assert len(file.read_bytes()) < 2000

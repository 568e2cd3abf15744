"""Replacing a file leaves the old content or the new one, also after a failure."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from knapsack_rl.files import replacing


def test_a_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "plan.csv"
    for text in (b"old", b"new"):
        with replacing(path) as file:
            file.write(text)
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_written_files_have_default_permissions(tmp_path: Path) -> None:
    with replacing(tmp_path / "beliefs.npz"):
        pass
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / "beliefs.npz").stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize("victim", ["write", "fsync", "replace"])
def test_a_failure_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, victim: str) -> None:
    path = tmp_path / "plan.csv"
    path.write_bytes(b"old")

    def crash(*_: object) -> None:
        raise OSError("the disk is full")

    if victim != "write":
        monkeypatch.setattr(*{"fsync": (os, "fsync", crash), "replace": (Path, "replace", crash)}[victim])
    with pytest.raises(OSError, match="full"), replacing(path) as file:
        file.write(b"half")
        if victim == "write":
            crash()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]

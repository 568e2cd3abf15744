"""A table with a row per prompt: a struct of arrays, saved atomically and without pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from knapsack_rl.files import replacing
from knapsack_rl.ids import KeyIndex, grown, prompt_keys
from knapsack_rl.notation import IntArray

FORMAT = "knapsack-rl beliefs"
VERSION = 1
_BESIDE = "beside."


class BeliefFileError(ValueError):
    """A belief file that cannot be used; the message names the file and says why."""


class PromptTable:
    """Columns of numbers by prompt id. Prompts are added when first met and never forgotten.

    Attributes:
        beside: arrays of numbers that belong to all prompts together; saved and loaded with the table.
    """

    def __init__(self, columns: Mapping[str, DTypeLike]) -> None:
        """An empty table with these columns, zero for a prompt not met before."""
        self.beside: dict[str, NDArray[Any]] = {}
        self._index = KeyIndex()
        self._columns = {name: np.zeros(64, dtype=dtype) for name, dtype in columns.items()}

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, column: str) -> NDArray[Any]:
        """A column as a view, ``[len(self)]``; writing to it writes to the table."""
        return self._columns[column][: len(self)]

    def rows(self, prompt_ids: Sequence[str]) -> IntArray:
        """Row of each prompt, -1 where it was never met."""
        return self._index.rows(prompt_keys(prompt_ids))

    def add(self, prompt_ids: Sequence[str]) -> IntArray:
        """Row of each prompt, adding those never met."""
        rows = self._index.add(prompt_keys(prompt_ids))
        for name, column in self._columns.items():
            if column.size < len(self):
                wider = np.zeros(grown(len(self)), dtype=column.dtype)
                wider[: column.size] = column
                self._columns[name] = wider
        return rows

    def save(self, path: Path, header: Mapping[str, object]) -> None:
        """Write the table and a header, all or nothing.

        The file is a ``.npz`` (an uncompressed zip of arrays, each with its checksum): a temporary file, fsync, rename.
        """
        text = json.dumps({"format": FORMAT, "version": VERSION, **header})
        arrays = {name: self[name] for name in self._columns}
        arrays |= {_BESIDE + name: array for name, array in self.beside.items()}
        with replacing(path) as file:
            np.savez(file, allow_pickle=False, header=np.array(text), keys=self._index.keys, **arrays)

    def load(self, path: Path, header: Mapping[str, object]) -> dict[str, Any]:
        """Replace the content by a file's; nothing changes if that fails.

        Args:
            path: a file written by `save`.
            header: what its header must say.

        Returns:
            The file's header.

        Raises:
            BeliefFileError: the file is missing, damaged, of a later version, or of another kind.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                found = json.loads(str(file["header"]))
                arrays = {name: file[name] for name in ("keys", *self._columns) if name in file}
                beside = {name.removeprefix(_BESIDE): file[name] for name in file if name.startswith(_BESIDE)}
        except Exception as error:  # a damaged file fails in any of a dozen ways, by numpy's hand or zipfile's
            raise BeliefFileError(
                f"{path} is not a readable belief file ({error}): restore it, or delete it to start without"
            ) from error
        _check_header(path, found, header)
        dtypes = {"keys": np.dtype(np.uint64)} | {name: column.dtype for name, column in self._columns.items()}
        _check_columns(path, arrays, dtypes)
        columns = {name: arrays[name].astype(dtype, copy=False) for name, dtype in dtypes.items()}
        self._index = KeyIndex(columns.pop("keys"))
        self._columns = columns
        self.beside = beside
        return dict(found)


def _check_header(path: Path, found: object, expected: Mapping[str, object]) -> None:
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise BeliefFileError(f"{path} is not a belief file of knapsack-rl")
    if found.get("version") != VERSION:
        raise BeliefFileError(
            f"{path} has version {found.get('version')} and this release reads version {VERSION}: update knapsack-rl"
        )
    for key, value in expected.items():
        if found.get(key) != value:
            raise BeliefFileError(f"{path} holds {key} {found.get(key)!r}, not {value!r}: load it into what wrote it")


def _check_columns(path: Path, arrays: Mapping[str, NDArray[Any]], dtypes: Mapping[str, np.dtype[Any]]) -> None:
    shapes = {array.shape for array in arrays.values()}
    fits = arrays.keys() == dtypes.keys() and len(shapes) == 1 and len(shapes.pop()) == 1
    # Only the order of bytes may differ: the file may come from another kind of machine.
    if not fits or not all(np.can_cast(arrays[name].dtype, dtype, "equiv") for name, dtype in dtypes.items()):
        raise BeliefFileError(
            f"{path} lacks columns, or holds columns of unequal length or another type: restore it, or delete it"
        )

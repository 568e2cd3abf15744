"""Files: written all or nothing, state as arrays without pickle, rows of tables, and Python files that are run."""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray

# State: a tree of mappings and lists whose leaves are arrays, numbers, booleans, text or None.
State: TypeAlias = dict[str, Any]

FORMAT, VERSION = "knapsack-rl state", 2

SUFFIXES = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".parquet": "parquet"}
ID_COLUMNS = ("prompt_id", "id")

# Where a row stands, for messages, and its cells by column.
Row: TypeAlias = tuple[str, Mapping[str, object]]

# Stands in the header of a state file for an array, by its name in the archive.
_ARRAY = "@array"


class BeliefFileError(ValueError):
    """Saved state that cannot be used; the message says why, and names the file if there is one."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write the new content of ``path`` to: a temporary one beside it, then fsync, then a rename.

    A reader, or a run that was killed, finds the old content or the new one. If the block fails, ``path`` stays as it
    was and no temporary file is left.

    Raises:
        OSError: the folder does not exist, or the file cannot be written.
    """
    # Not from tempfile, whose files other users cannot read: checkpoints and reports are shared.
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def write_state(path: Path | str, state: Mapping[str, Any]) -> None:
    """Write state to a file, all or nothing: a ``.npz`` (an uncompressed zip of arrays, each with its checksum).

    Raises:
        OSError: the file cannot be written.
        TypeError: a leaf that is neither an array nor a plain value.
    """
    arrays: dict[str, NDArray[Any]] = {}
    header = json.dumps({"format": FORMAT, "version": VERSION, "state": _without_arrays(state, arrays)})
    with replacing(Path(path)) as file:
        np.savez(file, allow_pickle=False, header=np.array(header), **arrays)


def read_state(path: Path | str) -> State:
    """Read what `write_state` wrote.

    Raises:
        BeliefFileError: the file is missing, damaged, or of another version.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            header = json.loads(str(file["header"]))
            arrays = {name: file[name] for name in file if name != "header"}
    except Exception as error:  # a damaged file fails in numpy, zipfile or zlib, with many kinds of exceptions
        raise BeliefFileError(
            f"{path} is not a readable belief file ({error}): restore it, or delete it to start without"
        ) from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise BeliefFileError(f"{path} is not a belief file of knapsack-rl")
    if header.get("version") != VERSION:
        raise BeliefFileError(
            f"{path} has version {header.get('version')} and this release reads version {VERSION}: update knapsack-rl"
        )
    try:
        state = _with_arrays(header["state"], arrays)
    except KeyError as error:
        raise BeliefFileError(f"{path} lacks {error}: restore it, or delete it to start without") from error
    if not isinstance(state, dict):
        raise BeliefFileError(f"{path} holds no state: restore it, or delete it to start without")
    return state


class SavedToFile:
    """``save`` and ``load`` for what has ``state_dict`` and ``load_state_dict``."""

    def state_dict(self) -> State:
        """Everything learned, as arrays and plain values. By default nothing: a rule without memory."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; on a failure nothing changes.

        Raises:
            BeliefFileError: state of another kind, or damaged.
        """

    def save(self, path: Path | str) -> None:
        """Write everything learned to a file, all or nothing."""
        write_state(path, self.state_dict())

    def load(self, path: Path | str) -> None:
        """Restore what `save` wrote; on a failure nothing changes.

        Raises:
            BeliefFileError: the file is missing, damaged, of another version or another kind.
        """
        state = read_state(path)
        try:
            self.load_state_dict(state)
        except BeliefFileError as error:
            raise BeliefFileError(f"{path}: {error}") from error


def check_kind(state: Mapping[str, Any], **expected: object) -> None:
    """Refuse state of another kind.

    Raises:
        BeliefFileError: naming the value found and the one expected.
    """
    for name, value in expected.items():
        if name not in state or state[name] != value:
            raise BeliefFileError(f"it holds {name} {state.get(name)!r}, not {value!r}: load it into what wrote it")


def as_array(value: Any) -> Any:
    """A numpy array of what can be one, such as a tensor that a trainer's checkpoint made of it; else the value."""
    return np.asarray(value) if hasattr(value, "__array__") else value


def saved_array(state: Mapping[str, Any], name: str, dtype: Any, shape: tuple[int | None, ...]) -> NDArray[Any]:
    """An array of saved state, a copy, after a check of type, shape (None: any length) and finiteness.

    Raises:
        BeliefFileError: the array is missing, or is not what it should be.
    """
    found, wanted = as_array(state.get(name)), np.dtype(dtype)
    problem = None
    if not isinstance(found, np.ndarray):
        problem = "is missing"
    elif not np.can_cast(found.dtype, wanted, "equiv"):  # only the byte order may differ
        problem = f"has the type {found.dtype}, not {wanted}"
    elif found.ndim != len(shape) or any(b is not None and a != b for a, b in zip(found.shape, shape, strict=True)):
        problem = f"has the shape {found.shape}"
    elif found.dtype.kind == "f" and not np.isfinite(found).all():
        problem = "holds numbers that are not finite"
    if problem is not None:
        raise BeliefFileError(f"the saved array {name!r} {problem}: restore the file, or delete it to start without")
    assert isinstance(found, np.ndarray)
    return found.astype(wanted, copy=True)


def find_files(paths: Iterable[Path], name: str) -> list[Path]:
    """List the named files, and all files called ``name`` below the named folders, each once and in order.

    Raises:
        ValueError: a folder without such a file.
    """
    found: dict[Path, None] = {}
    for path in paths:
        below = sorted(path.rglob(name)) if path.is_dir() else [path]
        if not below:
            raise ValueError(f"there is no {name} in {path} or below")
        found.update(dict.fromkeys(below))
    return list(found)


def plain_json(value: object) -> object:
    """Convert a value to plain JSON types: NaN and infinity become None, objects of other types their text."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain_json(item) for key, item in value.items()}
    if isinstance(value, Sequence | set | frozenset):
        return [plain_json(item) for item in value]
    return str(value)


def json_rows(lines: Iterable[str], name: str) -> Iterator[Row]:
    """The rows of JSON lines, read as they are asked for; empty lines are skipped.

    Raises:
        ValueError: a line that is not a JSON object; the message names the place (``rates.jsonl:3``).
    """
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{name}:{number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{where}: not JSON: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{where}: expected an object with named values, found {line.strip()[:40]!r}")
        yield where, row


def csv_rows(lines: Iterable[str], name: str) -> Iterator[Row]:
    """The rows of a CSV file with a header, read as they are asked for; open it with ``newline=""``.

    Raises:
        ValueError: a row of another length than the header, or one that is no CSV; the message names the place.
    """
    reader = csv.DictReader(lines, skipinitialspace=True)
    try:
        for cells in reader:
            where = f"{name}:{reader.line_num}"
            if None in cells or None in cells.values():
                columns = len(reader.fieldnames or ())
                raise ValueError(f"{where}: the header has {columns} columns, this row another number")
            yield where, cells
    except csv.Error as error:
        raise ValueError(f"{name}:{reader.line_num}: not CSV: {error}") from error


def run_file(path: Path | str) -> ModuleType:
    """Run a Python file and return it as a module; it is run anew at every call.

    The module is in ``sys.modules`` under a name made from the whole path, so that files of the same name stay apart
    and no real module is hidden.

    Raises:
        ValueError: the file is missing, is no Python file, or fails when it is run.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no file {path}: give the path from here ({Path.cwd()}), or the whole path")
    name = f"_knapsack_rl_file_{blake2b(str(path.resolve()).encode(), digest_size=6).hexdigest()}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is not a Python file that can be run")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look a module up by its name
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ValueError(f"{path} failed when it was run: {type(error).__name__}: {error}") from error
    return module


def _without_arrays(value: Any, arrays: dict[str, NDArray[Any]]) -> Any:
    """The tree with arrays moved to ``arrays``."""
    if isinstance(value, np.ndarray):
        name = f"array{len(arrays)}"
        arrays[name] = value
        return {_ARRAY: name}
    if isinstance(value, Mapping):
        return {str(key): _without_arrays(item, arrays) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_arrays(item, arrays) for item in value]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise TypeError(f"state holds a {type(value).__name__}: arrays, numbers and text can be saved")


def _with_arrays(value: Any, arrays: Mapping[str, NDArray[Any]]) -> Any:
    if isinstance(value, dict):
        if set(value) == {_ARRAY}:
            return arrays[value[_ARRAY]]
        return {key: _with_arrays(item, arrays) for key, item in value.items()}
    return [_with_arrays(item, arrays) for item in value] if isinstance(value, list) else value


def _sync_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut, where the system lets folders be synced."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

"""State as arrays without pickle: its files, with a checksum, and its checks."""

from __future__ import annotations

import json
import os
import stat
import zipfile
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from knapsack_rl.files.atomic import replacing

# State: a tree of mappings and lists whose leaves are arrays, numbers, booleans, text or None.
State: TypeAlias = dict[str, Any]

# Version 3 has a checksum of the whole state; version 2, without it, is still read.
FORMAT, VERSION, WITHOUT_CHECKSUM = "knapsack-rl state", 3, 2

# Stands in the header of a state file for an array, by its name in the archive.
_ARRAY = "@array"


class BeliefFileError(ValueError):
    """Saved state that cannot be used; the message says why, and names the file if there is one."""


def write_state(path: Path | str, state: Mapping[str, Any]) -> None:
    """Write state to a file, all or nothing: a ``.npz`` (an uncompressed zip of arrays) with a checksum of all of it.

    Raises:
        OSError: the file cannot be written.
        TypeError: a leaf that is neither an array nor a plain value.
    """
    arrays: dict[str, NDArray[Any]] = {}
    header = json.dumps({"format": FORMAT, "version": VERSION, "state": _without_arrays(state, arrays)})
    members = {"header": np.array(header), "checksum": np.array(_checksum(header, arrays)), **arrays}
    with replacing(path) as file, zipfile.ZipFile(file, "w") as archive:
        for name, array in members.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def read_state(path: Path | str) -> State:
    """Read what `write_state` wrote.

    Raises:
        BeliefFileError: the file is missing, damaged, or of another version.
    """
    try:
        arrays = _read_arrays(Path(path))
        header_text, checksum = str(arrays.pop("header")), arrays.pop("checksum", None)
        header = json.loads(header_text)
    except Exception as error:  # a damaged file fails in numpy, zipfile or json, with many kinds of exceptions
        raise BeliefFileError(
            f"{path} is not a readable belief file ({error}): restore it, or delete it to start without"
        ) from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise BeliefFileError(f"{path} is not a belief file of knapsack-rl")
    version = header.get("version")
    if version not in (WITHOUT_CHECKSUM, VERSION):
        raise BeliefFileError(
            f"{path} has version {version} and this release reads version {VERSION}: update knapsack-rl"
        )
    expected = None if version == WITHOUT_CHECKSUM else _checksum(header_text, arrays)
    if expected != (None if checksum is None else str(checksum)):
        raise BeliefFileError(
            f"{path} is damaged, its checksum does not match: restore it, or delete it to start without"
        )
    try:
        state = _with_arrays(header["state"], arrays)
    except (LookupError, TypeError, RecursionError) as error:
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
        self.restore(path, read_state(path))

    def restore(self, path: Path | str, state: Mapping[str, Any]) -> None:
        """Restore state that was read from a file, whose name is part of the errors; on a failure nothing changes.

        Raises:
            BeliefFileError: state of another kind, or damaged.
        """
        try:
            self.load_state_dict(state)
        except BeliefFileError as error:
            raise BeliefFileError(f"{path}: {error}") from error
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise BeliefFileError(f"{path} holds state that cannot be used ({error!r}): restore it") from error


def check_kind(state: Mapping[str, Any], **expected: object) -> None:
    """Refuse state of another kind.

    Raises:
        BeliefFileError: naming the value found and the one expected.
    """
    for name, value in expected.items():
        if name not in state or state[name] != value:
            raise BeliefFileError(
                f"it holds {name} {state.get(name)!r}, not {value!r}: load it into what wrote it; a run is resumed "
                "with the rule that it began with"
            )


def as_array(value: Any) -> Any:
    """A numpy array of what can be one, such as a tensor that a trainer's checkpoint made of it; else the value."""
    return np.asarray(value) if hasattr(value, "__array__") else value


def saved_array(
    state: Mapping[str, Any], name: str, dtype: Any, shape: tuple[int | None, ...], finite: bool = True
) -> NDArray[Any]:
    """An array of saved state, a copy, after a check of type, shape (None: any length) and, if wanted, finiteness.

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
    elif finite and found.dtype.kind == "f" and not np.isfinite(found).all():
        problem = "holds numbers that are not finite"
    if problem is not None:
        raise BeliefFileError(f"the saved array {name!r} {problem}: restore the file, or delete it to start without")
    assert isinstance(found, np.ndarray)
    return found.astype(wanted, copy=True)


def _checksum(header: str, arrays: Mapping[str, NDArray[Any]]) -> str:
    """A hash of the header and of all arrays with their names, types and shapes."""
    digest = blake2b(header.encode("utf-8", "surrogatepass"), digest_size=16)
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode("utf-8", "surrogatepass"))
        if array.size and array.dtype.itemsize:
            flat: Any = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            digest.update(flat)
    return digest.hexdigest()


def _read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of a ``.npz`` that is not compressed."""
    if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for
        raise ValueError("not a regular file")
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
        members, size = archive.infolist(), os.fstat(file.fileno()).st_size
        if (
            any(each.compress_type != zipfile.ZIP_STORED for each in members)
            or sum(m.file_size for m in members) > size
        ):
            raise ValueError("its arrays are compressed, or longer than the file")
        arrays = {}
        for each in members:
            with archive.open(each) as member:
                arrays[each.filename.removesuffix(".npy")] = np.lib.format.read_array(member, allow_pickle=False)
                if member.read(1):
                    raise ValueError(f"{each.filename} is longer than its array")
    return arrays


def _without_arrays(value: Any, arrays: dict[str, NDArray[Any]]) -> Any:
    """The tree with arrays moved to ``arrays``."""
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
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

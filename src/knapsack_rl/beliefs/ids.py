"""Compute stable ids of tasks, and the 64-bit keys under which beliefs are stored.

A task is a row of a data set. Its id is what the row itself names (``prompt_id``), or a hash of the row's content.
Content is brought to a canonical form first, so that values which compare equal have one id, however they are stored.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import json
import os
import uuid
from collections.abc import Mapping, Sequence, Set
from functools import singledispatch
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

KeyArray = NDArray[np.uint64]

ID_COLUMN = "prompt_id"

# The rule by which content becomes an id; a checkpoint says which one its run began with, and goes on with it.
# 1: the prompt alone, as JSON, None-valued keys included. 2: the whole row, in canonical form.
ID_VERSION = 2


def row_id(row: Mapping[str, Any], *, version: int = ID_VERSION, left_out: set[str] | None = None) -> str:
    """Return the stable id of a row: its ``prompt_id``, or a hash of all its columns if there is no such column.

    A row with nothing but a ``prompt`` has the id of that prompt, `content_id`.

    Args:
        row: columns and values.
        version: 2; or 1, which reads the ``prompt`` alone.
        left_out: columns whose values no id can be made of are left out and added to this set. None: they are errors.

    Raises:
        ValueError: an empty ``prompt_id``.
        TypeError: a value that no id can be made of; the message names the column.
    """
    if ID_COLUMN in row:
        try:
            return id_text(row[ID_COLUMN])
        except ValueError as error:
            raise ValueError(
                f"a row has no {ID_COLUMN} (prompt: {str(row.get('prompt'))[:80]!r}): give every row one"
            ) from error
    if version == 1:
        return content_id(row.get("prompt"), version=1)
    content = {}
    for name, value in row.items():
        try:
            content[str(name)] = _canonical(value)
        except TypeError as error:
            if left_out is None:
                raise TypeError(f"column {name!r}: {error}; give every row a {ID_COLUMN}") from error
            left_out.add(str(name))
    content = {name: value for name, value in content.items() if value is not None}
    return _hash(content["prompt"] if set(content) == {"prompt"} else content)


def id_text(value: object) -> str:
    """Return an id that a data set names itself as text; 7 and 7.0 are one id, because a column may be widened.

    Raises:
        ValueError: None, NaN, or empty text.
    """
    value = _canonical(value)
    if value is None or value == "":
        raise ValueError("the id is empty")
    return str(value)


def content_id(content: object, *, version: int = ID_VERSION) -> str:
    """Compute a stable id from content (text, a list of chat messages, a mapping of columns): a 64-bit hash in hex.

    Content that compares equal has one id: 1 and 1.0, a tuple and a list, an array and its list, numpy's and Python's
    numbers. Keys whose value is None, NaN or an empty mapping are left out, because Arrow adds them to every row.

    Args:
        content: text, numbers, dates, bytes, images, and lists, mappings and data classes of these.
        version: 2; or 1, JSON as it is.

    Raises:
        TypeError: other content; such tasks need an explicit id.
    """
    return _hash(content if version == 1 else _canonical(content))


def prompt_keys(prompt_ids: Sequence[str]) -> KeyArray:
    """Hash prompt ids to 64-bit keys, ``[P]``; the same on every machine and in every process."""
    digests = b"".join(
        [blake2b(prompt_id.encode("utf-8", "surrogatepass"), digest_size=8).digest() for prompt_id in prompt_ids]
    )
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def _hash(canonical: object) -> str:
    text = json.dumps(canonical, sort_keys=True, ensure_ascii=False)
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


@singledispatch
def _canonical(value: Any) -> Any:
    """Values of JSON that are equal where ``value`` is equal; None for what counts as absent.

    Raises:
        TypeError: a value of another kind.
    """
    if all(hasattr(value, name) for name in ("mode", "size", "tobytes")):  # an image of Pillow
        palette = value.getpalette() if value.mode == "P" else None
        return {"image": [value.mode, list(value.size), _canonical(value.tobytes()), palette]}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _canonical({each.name: getattr(value, each.name) for each in dataclasses.fields(value)})
    if callable(getattr(value, "tolist", None)):  # arrays, tensors, scalars
        return _canonical(value.tolist())
    raise TypeError(f"no id can be made of a {type(value).__name__}")


@_canonical.register(type(None))
@_canonical.register(str)
@_canonical.register(bool)
def _unchanged(value: Any) -> Any:
    return value


@_canonical.register
def _(value: int) -> int:
    return int(value)


@_canonical.register(float)
@_canonical.register(decimal.Decimal)
@_canonical.register(np.floating)
def _number(value: Any) -> Any:
    """An int where the number is whole, a float where one equals it, else its digits; None for NaN."""
    if value != value:  # noqa: PLR0124  # NaN, of any of the types
        return None
    try:
        whole = int(value)
    except OverflowError:  # infinite
        return float(value)
    if whole == value:
        return whole
    return float(value) if float(value) == value else str(value.normalize())


@_canonical.register
def _(value: Mapping) -> Any:  # type: ignore[type-arg]
    kept = {str(key): _canonical(each) for key, each in value.items()}
    return {key: each for key, each in kept.items() if each is not None} or None


@_canonical.register(list)
@_canonical.register(tuple)
def _(value: Any) -> Any:
    return [_canonical(each) for each in value]


@_canonical.register
def _(value: Set) -> Any:  # type: ignore[type-arg]
    return sorted((_canonical(each) for each in value), key=json.dumps)


@_canonical.register
def _(value: enum.Enum) -> Any:
    return _canonical(value.value)


@_canonical.register(bytes)
@_canonical.register(bytearray)
@_canonical.register(memoryview)
def _(value: Any) -> Any:
    return {"bytes": blake2b(bytes(value), digest_size=16).hexdigest()}


@_canonical.register(datetime.date)
@_canonical.register(datetime.time)
def _(value: Any) -> Any:
    return value.isoformat()


@_canonical.register
def _(value: datetime.timedelta) -> Any:
    return {"seconds": _number(value.total_seconds())}


@_canonical.register
def _(value: np.datetime64) -> Any:
    return _canonical(value.astype("datetime64[us]").item())


@_canonical.register(os.PathLike)
@_canonical.register(uuid.UUID)
def _(value: Any) -> Any:
    return str(value)

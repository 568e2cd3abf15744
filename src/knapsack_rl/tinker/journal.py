"""A file that outcomes are appended to as groups finish, by one process or several, and read back after a stop."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple


class Group(NamedTuple):
    """A group that came back. One that is run again, because it was too stale to train on, comes back twice.

    Attributes:
        step: generation step it was planned in.
        place: where in that step's plan.
        prompt_id: whose rollouts they are.
        rewards: one for each rollout that came back; none if the group failed.
        tokens: as many completion lengths.
    """

    step: int
    place: int
    prompt_id: str
    rewards: Sequence[float]
    tokens: Sequence[int]


class Journal:
    """Groups in the order in which they came back, and the steps at which a run went on."""

    def __init__(self, path: Path) -> None:
        """A journal in this file, which need not exist."""
        self.path = path

    def write(self, group: Group) -> None:
        """Append a group, in one piece even if several processes write."""
        self._append(_line(group))

    def mark_resume(self, step: int) -> int:
        """The run goes on with ``step``: what is written of that step or later is void. Returns the end of the file."""
        self._append(b"\n" + _line(step))  # a kill may have cut the last line off
        return self.path.stat().st_size

    def since(self, offset: int) -> Iterator[tuple[int, Group]]:
        """The groups written after ``offset`` bytes, each with the offset where its line ends."""
        yield from ((end, entry) for end, entry in self._entries(offset) if isinstance(entry, Group))

    def valid(self) -> list[tuple[int, Group]]:
        """All groups that no resume has made void, each with the offset where its line ends."""
        valid: list[tuple[int, Group]] = []
        for end, entry in self._entries(0):
            if isinstance(entry, Group):
                valid.append((end, entry))
            else:
                valid = [(at, group) for at, group in valid if group.step < entry]
        return valid

    def _append(self, data: bytes) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, data)
        finally:
            os.close(file)

    def _entries(self, offset: int) -> Iterator[tuple[int, Group | int]]:
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(offset)
            lines = file.read().splitlines(keepends=True)
        for line in lines:
            if not line.endswith(b"\n"):
                return  # still being written, or cut off by a kill
            offset += len(line)
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # cut off by a kill
            yield offset, entry if isinstance(entry, int) else Group(*entry)


def _line(entry: Group | int) -> bytes:
    return json.dumps(entry, separators=(",", ":")).encode("ascii") + b"\n"

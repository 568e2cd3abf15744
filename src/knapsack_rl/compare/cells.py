"""What there is to run: the settings that all cells share, and a cell's file, named by what decides its numbers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import ClassVar, Literal

from knapsack_rl.entrants import Setting

BASELINE, ORACLE = "uniform", "oracle"
PACKAGE = Path(__file__).parents[1]
# Of the package, what cannot change a cell's numbers: the edges, and what only shows results.
_SHOWS_ONLY = {
    "allocate", "cli.py", "lab", "__main__.py", "report", "replay", "session.py", "tasks", "testing", "tinker", "train",
    "trl", "verl",
}  # fmt: skip
_MEASURES = {"cell.py", "cells.py", "meter.py"}


@dataclass(frozen=True)
class Arena:
    """What every cell of a comparison shares.

    Attributes:
        prompts: size of the data set.
        groups: prompts of a step under equal division.
        num_generations: rollouts per prompt on average.
        steps: steps that an equal division takes; they set the budget.
        budget: what all rules spend the same of: ``rollouts``, or the ``tokens`` that uniform spends in these steps.
        min_count, max_count: limits on a prompt's rollouts.

    Raises:
        ValueError: a number that makes no sense.
    """

    prompts: int = 4096
    groups: int = 256
    num_generations: int = 8
    steps: int = 300
    budget: Literal["rollouts", "tokens"] = "rollouts"
    min_count: int = 2
    max_count: int = 128

    def __post_init__(self) -> None:
        for name, least in (("groups", 1), ("num_generations", 2), ("steps", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}: use at least {least}")
        if not self.min_count <= self.num_generations <= self.max_count:
            raise ValueError(
                f"num_generations is {self.num_generations}: a prompt gets {self.min_count} to {self.max_count}"
                " rollouts, and their mean must lie between"
            )
        if self.prompts < self.groups:
            raise ValueError(
                f"{self.prompts} prompts are fewer than the {self.groups} of one step: use more, or smaller steps"
            )

    @property
    def rollouts(self) -> int:
        """Rollouts of the whole run."""
        return self.steps * self.groups * self.num_generations


@dataclass(frozen=True)
class Cell:
    """One rule on one preset with one seed.

    A subclass that is played in another world names in ``decided_beside`` what of the package decides its numbers
    beside what decides ours: files and folders.
    """

    decided_beside: ClassVar[tuple[str, ...]] = ()

    rule: str
    preset: str
    seed: int
    arena: Arena

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.rule} on {self.preset}, seed {self.seed}"

    @property
    def key(self) -> str:
        """A hash of all that decides the cell's numbers: its settings, our code, and files of somebody's own."""
        files = [_own_file(self.rule), _own_file(self.preset) or _own_trace(self.preset)]
        decided = {**asdict(self), "code": fingerprint(*self.decided_beside), "files": files}
        return hashlib.sha256(json.dumps(decided, sort_keys=True).encode()).hexdigest()[:32]

    def setting(self) -> Setting:
        """What the rule is told; the truth is added for the simulation at hand."""
        arena = self.arena
        return Setting(
            groups=arena.groups,
            num_generations=arena.num_generations,
            prompts=arena.prompts,
            min_count=arena.min_count,
            max_count=arena.max_count,
            seed=self.seed,
        )

    def file(self, folder: Path) -> Path:
        """Where its rows are, once it is finished."""
        return folder / "cells" / f"{self.key}.parquet"


@cache
def fingerprint(*beside: str) -> str:
    """A hash of the code that decides a cell's numbers: an edited rule never meets the results of the old one.

    Args:
        beside: files and folders of the package that decide, too.
    """
    digest = hashlib.sha256()
    for path in _deciding_files(beside):
        digest.update(path.relative_to(PACKAGE).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _deciding_files(beside: Sequence[str] = ()) -> Iterator[Path]:
    for path in sorted(PACKAGE.rglob("*.py")):
        place = path.relative_to(PACKAGE)
        shows_only = place.parts[0] in _SHOWS_ONLY or (place.parts[0] == "compare" and path.name not in _MEASURES)
        if not shows_only or any(place.is_relative_to(each) for each in beside):
            yield path


def _own_file(name: str) -> str:
    """The contents' hash of the file in ``path.py:name``; empty for what is ours."""
    path, colon, _ = name.rpartition(":")
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if colon and path.endswith(".py") else ""


def _own_trace(name: str) -> str:
    """The contents' hash of the trace at this path; empty where a preset is no file."""
    file = Path(name)
    if not file.is_file():
        return ""
    found = file.stat()
    return _hashed(file, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=8)
def _hashed(file: Path, size: int, changed: int) -> str:
    """Read once for all cells; size and time of change are there to tell one state of the file from another."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()

"""What a checkpoint needs besides weights to go on exactly: the beliefs, and where in the run they were."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from knapsack_rl.allocator import Allocator
from knapsack_rl.files import replacing

BELIEFS_FILE = "knapsack_beliefs.npz"
PROGRESS_FILE = "knapsack_progress.json"
VERSION = 1


class CheckpointError(ValueError):
    """A checkpoint whose part of ours cannot be used; the message names the file."""


@dataclass(frozen=True)
class Progress:
    """Where a run stood when it was saved.

    Attributes:
        generation_step: generation batches made so far.
        between_batches: whether the last generated batch was used up; only then can a run go on bit for bit.
    """

    generation_step: int
    between_batches: bool


def save_checkpoint(folder: Path, allocator: Allocator, progress: Progress) -> None:
    """Write beliefs and progress into a checkpoint folder, the progress last: it vouches for the beliefs."""
    allocator.save(folder / BELIEFS_FILE)
    with replacing(folder / PROGRESS_FILE) as file:
        file.write(json.dumps({"version": VERSION, **asdict(progress)}).encode())


def load_checkpoint(folder: Path, allocator: Allocator) -> Progress | None:
    """Restore the beliefs from a checkpoint folder; None if it holds nothing of ours.

    Raises:
        CheckpointError: progress or beliefs are missing or damaged.
        BeliefFileError: the beliefs are damaged or were written by another method.
    """
    path = folder / PROGRESS_FILE
    if not path.exists() and not (folder / BELIEFS_FILE).exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        version, progress = found["version"], Progress(int(found["generation_step"]), bool(found["between_batches"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is not readable ({error}): resume from an earlier checkpoint") from error
    if version != VERSION:
        raise CheckpointError(f"{path} has version {version} and this release reads {VERSION}: update knapsack-rl")
    allocator.load(folder / BELIEFS_FILE)
    return progress

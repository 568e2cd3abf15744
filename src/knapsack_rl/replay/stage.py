"""From a file to a game: what is played, for how many steps, and what the rules are told."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TypeAlias

from knapsack_rl.entrants import Setting
from knapsack_rl.outcomes import TOLERANCE
from knapsack_rl.replay.batches import read_batches
from knapsack_rl.replay.game import Player, Result, replay_table, replay_visits
from knapsack_rl.replay.recording import ExactRates, Recording, Visit
from knapsack_rl.replay.table import Table, gather
from knapsack_rl.report.command import found_traces

# A trace begins with its run record; a table of JSON lines never has a column of that name first.
_TRACE = re.compile(rb'\s*\{\s*"kind"\s*:')

# Lets a caller watch the lines of a file, or the rows of a table, go by.
Opener: TypeAlias = Callable[[Path], Iterable[bytes]]


@dataclass(frozen=True, eq=False)
class Stage:
    """A game that is ready to be played.

    Attributes:
        title: what is replayed, in a line.
        setting: what the rules are told.
        steps: steps to play.
        play: plays them; results come step by step.
        notes: what a reader of the results must know.
    """

    title: str
    setting: Setting
    steps: int
    play: Callable[[Sequence[Player]], Iterator[Result]]
    notes: tuple[str, ...] = ()


def set_stage(options: argparse.Namespace, opener: Opener) -> Stage:
    """Read as much of the source as is needed before the first step.

    Raises:
        OSError: the file cannot be read.
        ValueError: neither a trace nor a table, nothing to play, or options that do not go with it.
    """
    path = _one_trace(options.source) if options.source.is_dir() else options.source
    with path.open("rb") as file:
        is_trace = options.format is None and _TRACE.match(file.readline(4096)) is not None
    if is_trace:
        _refuse(options, "a trace has its own", "groups", "average", "threshold")
        return _trace_stage(Recording(path, opener(path)), options)
    table = gather(read_batches(path, options.format))
    threshold = 1.0 if options.threshold is None else options.threshold
    notes = () if (table.rewards_R >= threshold - TOLERANCE).any() else (
        f"No reward reaches the threshold of {threshold:g}, so every prompt looks unsolved: set --threshold.",
    )  # fmt: skip
    if table.step_R is not None:
        _refuse(options, "a table with steps has its own", "groups", "average")
        return _steps_stage(path, table, threshold, options, notes)
    return _table_stage(path, table, threshold, options, notes)


def _trace_stage(recording: Recording, options: argparse.Namespace) -> Stage:
    setting = recording.setting(options.seed, options.min, options.max, options.prompts)
    rates = ExactRates(recording)
    if recording.knows_rates:
        setting = replace(setting, truth=rates)
    steps = min(len(recording), options.steps or len(recording))
    name = f"{recording.run.get('engine', '?')}, {recording.run.get('method', '?')}"
    title = f"{recording.path} ({name}): {steps:,} steps, {setting.groups:,} prompts x {setting.num_generations}"

    def play(players: Sequence[Player]) -> Iterator[Result]:
        for visit in islice(recording, steps):
            rates.step = visit.outcomes.step
            yield from replay_visits([visit], players, options.seed)

    return Stage(title, setting, steps, play)


def _steps_stage(
    path: Path, table: Table, threshold: float, options: argparse.Namespace, notes: tuple[str, ...]
) -> Stage:
    visits = table.visits(threshold)
    assert table.step_R is not None
    recorded = len(set(table.step_R.tolist()))
    steps = min(recorded, options.steps or recorded)
    first: Visit = next(table.visits(threshold))
    groups = len(first.outcomes.prompt_ids)
    setting = _setting(options, groups, max(round(first.budget / groups), 1), len(table.prompt_ids))
    title = f"{path}: {steps:,} recorded steps, {setting.groups:,} prompts x {setting.num_generations}"
    return Stage(
        title, setting, steps, lambda players: replay_visits(islice(visits, steps), players, options.seed), notes
    )


def _table_stage(
    path: Path, table: Table, threshold: float, options: argparse.Namespace, notes: tuple[str, ...]
) -> Stage:
    prompts, rollouts = len(table.prompt_ids), table.rewards_R.size
    groups = options.groups or min(256, max(prompts // 4, 1))
    if groups > prompts:
        raise ValueError(f"{path}: --groups is {groups}, and the table has {prompts} prompts: use {prompts} or fewer")
    setting = _setting(options, groups, options.average or 8, prompts)
    # To the last rollout only an equal division could play: what others want more of would be used up.
    steps = options.steps or max(rollouts // (2 * setting.budget), 1)
    title = (
        f"{path}: {rollouts:,} rollouts of {prompts:,} prompts; "
        f"up to {steps:,} steps of {setting.groups:,} prompts x {setting.num_generations}"
    )
    cards = table.cards(options.seed, threshold)
    return Stage(title, setting, steps, lambda players: replay_table(cards, players, setting, steps), notes)


def _setting(options: argparse.Namespace, groups: int, average: int, prompts: int) -> Setting:
    return Setting(
        groups=groups,
        num_generations=average,
        prompts=options.prompts or prompts,
        min_count=2 if options.min is None else options.min,
        max_count=options.max or 128,
        seed=options.seed,
    )


def _one_trace(folder: Path) -> Path:
    traces = found_traces([folder])
    if len(traces) > 1:
        raise ValueError(f"{folder} holds {len(traces)} traces: name one of them, such as {traces[0]}")
    return traces[0]


def _refuse(options: argparse.Namespace, reason: str, *names: str) -> None:
    for name in names:
        if getattr(options, name) is not None:
            raise ValueError(f"--{name} is for tables: {reason}")

"""Opens the source of a replay: a trace, read one step at a time, or a table."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np

from knapsack_arena.registry import RuleContext
from knapsack_arena.replay.replay import ReplayedRule, StepRow, replay_steps, replay_table
from knapsack_arena.replay.rollouts import RecordedStep
from knapsack_arena.replay.table import Table, read_table
from knapsack_arena.replay.trace import ExactRates, RecordedLooks, RecordedTrace, Watch
from knapsack_rl.config import CHOOSING, RULES
from knapsack_rl.files import find_files
from knapsack_rl.outcomes import TOLERANCE
from knapsack_rl.trace import TRACE_NAME

# A trace begins with its run record; the first column of a table of JSON lines is never called "kind".
_TRACE = re.compile(rb'\s*\{\s*"kind"\s*:')


@dataclass(frozen=True, eq=False)
class ReplaySource:
    """A record that is ready to be replayed.

    Attributes:
        title: one line that describes it.
        context: what every rule is given.
        steps: steps to replay.
        replay: replays them with these rules and yields their metrics step by step.
        notes: remarks to print below the results.
        refused: reasons by rule why it cannot be replayed on this record.
        recorded_rule: the rule that made it; None where that is not known, or its limits were replaced.
    """

    title: str
    context: RuleContext
    steps: int
    replay: Callable[[Sequence[ReplayedRule]], Iterator[StepRow]]
    notes: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    recorded_rule: str | None = None


def open_source(options: argparse.Namespace, watch: Watch | None = None) -> ReplaySource:
    """Read what is needed before the first step: the index of a trace, or a whole table.

    Args:
        options: of the command.
        watch: follows the reading of a trace.

    Raises:
        OSError: the file cannot be read.
        ValueError: neither a trace nor a table, no steps or rollouts, or options that do not apply to the source.
    """
    path = _one_trace(options.source) if options.source.is_dir() else options.source
    with path.open("rb") as file:
        is_trace = options.format is None and _TRACE.match(file.readline(4096)) is not None
    if is_trace:
        _refuse(options, "a trace has its own", "groups", "average", "success_threshold")
        return _trace_source(RecordedTrace(path, watch), options)
    table = read_table(path, options.format)
    threshold = 1.0 if options.success_threshold is None else options.success_threshold
    notes = () if (table.rewards_R >= threshold - TOLERANCE).any() else (
        f"No reward reaches the threshold of {threshold:g}, so all prompts count as unsolved: set --success-threshold.",
    )  # fmt: skip
    if table.step_R is not None:
        _refuse(options, "a table with steps has its own", "groups", "average")
        return _steps_source(path, table, threshold, options, notes)
    return _table_source(path, table, threshold, options, notes)


def _trace_source(trace: RecordedTrace, options: argparse.Namespace) -> ReplaySource:
    context = trace.context(options.seed, options.min, options.max, options.prompts)
    rates, looks = ExactRates(trace), RecordedLooks()
    if trace.knows_rates:
        context = replace(context, truth=rates)
    recorded_rule = trace.run.get("rule")
    if trace.featured or (recorded_rule == "calibrated" and trace.settings.get("features") not in (None, "none")):
        context = replace(context, features=looks)
    count = min(len(trace), options.steps or len(trace))
    name = f"{trace.run.get('engine', '?')}, {recorded_rule or '?'}"
    title = f"{trace.path} ({name}): {count:,} steps, {context.groups:,} prompts x {context.average}"

    def steps() -> Iterator[RecordedStep]:
        for step in islice(trace, count):
            rates.step, looks.step = step.outcomes.step, step
            yield step

    changed = any(given is not None for given in (options.min, options.max, options.prompts))
    return ReplaySource(
        title,
        context,
        count,
        lambda rules: replay_steps(steps(), rules, options.seed),
        _trace_notes(trace),
        _refused(trace),
        recorded_rule if isinstance(recorded_rule, str) and not changed else None,
    )


def _trace_notes(trace: RecordedTrace) -> tuple[str, ...]:
    """What a reader of the results must know of the run."""
    notes = []
    pool = trace.settings.get("pool")
    if isinstance(pool, int) and pool > 1:
        notes.append(
            f"Each step offered a pool of {pool} prompts for one: rules divide among all of them, and may ask for"
            " rollouts that were not recorded (short)."
        )
    if trace.lost:
        notes.append(f"{trace.lost} records of the run could not be written: what they held was not learned here.")
    return tuple(notes)


def _refused(trace: RecordedTrace) -> Mapping[str, str]:
    """Rules that cannot be replayed on a trace, with the reason."""
    refused: dict[str, str] = {}
    pool = trace.settings.get("pool")
    if isinstance(pool, int) and pool > 1:
        reason = f"does not choose among a pool, and this run offered {pool} prompts for one: record one with pool=1"
        refused = {rule: reason for rule in RULES if rule not in CHOOSING}
    if trace.settings.get("keep_successes"):
        rule = str(trace.run.get("rule"))
        refused[rule] = "planned with kept successes, which a trace does not hold: record it without keep_successes"
    return refused


def _steps_source(
    path: Path, table: Table, threshold: float, options: argparse.Namespace, notes: tuple[str, ...]
) -> ReplaySource:
    assert table.step_R is not None
    recorded = np.unique(table.step_R).size
    count = min(recorded, options.steps or recorded)
    first = next(table.steps(threshold))
    groups = len(first.outcomes.prompt_ids)
    context = _context(options, groups, max(round(first.budget / groups), 1), len(table.prompt_ids))
    title = f"{path}: {count:,} recorded steps, {context.groups:,} prompts x {context.average}"
    steps = islice(table.steps(threshold), count)
    return ReplaySource(title, context, count, lambda rules: replay_steps(steps, rules, options.seed), notes)


def _table_source(
    path: Path, table: Table, threshold: float, options: argparse.Namespace, notes: tuple[str, ...]
) -> ReplaySource:
    prompts, recorded = len(table.prompt_ids), table.rewards_R.size
    groups = options.groups or min(256, max(prompts // 4, 1))
    if groups > prompts:
        raise ValueError(f"{path}: --groups is {groups}, and the table has {prompts} prompts: use {prompts} or fewer")
    context = _context(options, groups, options.average or 8, prompts)
    # Only uniform allocation could use every rollout: other rules exhaust the prompts that they prefer earlier.
    steps = options.steps or max(recorded // (2 * context.budget), 1)
    title = (
        f"{path}: {recorded:,} rollouts of {prompts:,} prompts; "
        f"up to {steps:,} steps of {context.groups:,} prompts x {context.average}"
    )
    rollouts = table.rollouts(options.seed, threshold)
    return ReplaySource(title, context, steps, lambda rules: replay_table(rollouts, rules, context, steps), notes)


def _context(options: argparse.Namespace, groups: int, average: int, prompts: int) -> RuleContext:
    return RuleContext(
        groups=groups,
        average=average,
        prompts=options.prompts or prompts,
        min_count=2 if options.min is None else options.min,
        max_count=options.max or 128,
        seed=options.seed,
    )


def _one_trace(folder: Path) -> Path:
    traces = find_files([folder], TRACE_NAME)
    if len(traces) > 1:
        raise ValueError(f"{folder} holds {len(traces)} traces: name one of them, such as {traces[0]}")
    return traces[0]


def _refuse(options: argparse.Namespace, reason: str, *names: str) -> None:
    for name in names:
        if getattr(options, name) is not None:
            raise ValueError(f"--{name.replace('_', '-')} is for tables: {reason}")

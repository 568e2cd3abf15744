"""Opens the source of a replay: a trace, read one step at a time, or a table."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from knapsack_arena.registry import RuleContext
from knapsack_arena.replay.replay import ReplayedRule, StepRow, replay_steps, replay_table
from knapsack_arena.replay.rollouts import RecordedStep
from knapsack_arena.replay.table import Table, read_table
from knapsack_rl.beliefs.beta import HALF_LIFE_PASSES
from knapsack_rl.beliefs.ids import prompt_keys
from knapsack_rl.beliefs.prompt_store import KeyIndex
from knapsack_rl.files import find_files
from knapsack_rl.notation import FloatArray
from knapsack_rl.outcomes import TOLERANCE
from knapsack_rl.trace import TRACE_NAME, Evaluation, Record, Resume, RunStart, Step, read_records

# A trace begins with its run record; the first column of a table of JSON lines is never called "kind".
_TRACE = re.compile(rb'\s*\{\s*"kind"\s*:')

# Names under which the trainers record the limits on a prompt's rollouts: the core's and those of the adapters.
_MIN_COUNT = ("min_count", "min_generations", "min_rollouts", "min_n")
_MAX_COUNT = ("max_count", "max_generations", "max_rollouts", "max_n")

# Called with the bytes read so far.
Watch = Callable[[int], None]


@dataclass(frozen=True, eq=False)
class ReplaySource:
    """A record that is ready to be replayed.

    Attributes:
        title: one line that describes it.
        context: what every rule is given.
        steps: steps to replay.
        replay: replays them with these rules and yields their metrics step by step.
        notes: remarks to print below the results.
    """

    title: str
    context: RuleContext
    steps: int
    replay: Callable[[Sequence[ReplayedRule]], Iterator[StepRow]]
    notes: tuple[str, ...] = ()


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
        _refuse(options, "a trace has its own", "groups", "average", "threshold")
        return _trace_source(RecordedTrace(path, watch), options)
    table = read_table(path, options.format)
    threshold = 1.0 if options.threshold is None else options.threshold
    notes = () if (table.rewards_R >= threshold - TOLERANCE).any() else (
        f"No reward reaches the threshold of {threshold:g}, so every prompt counts as unsolved: set --threshold.",
    )  # fmt: skip
    if table.step_R is not None:
        _refuse(options, "a table with steps has its own", "groups", "average")
        return _steps_source(path, table, threshold, options, notes)
    return _table_source(path, table, threshold, options, notes)


class _Place(NamedTuple):
    """Index entry of a step or an evaluation: its step, its prompts (a hash), the byte offset of its line."""

    step: int
    prompts: int
    offset: int


class RecordedTrace:
    """The steps of a trace, without those that a resume superseded; memory holds one step and the index.

    Attributes:
        path: the file.
        run: the fields of its first record.
    """

    def __init__(self, path: Path, watch: Watch | None = None) -> None:
        """Read the trace once, to index its steps.

        Raises:
            OSError: the file cannot be read.
            ValueError: a damaged line, or no step.
        """
        self.path = path
        self.run: dict[str, Any] = {}
        self._steps: list[_Place] = []
        self._evaluations: list[_Place] = []
        self._resumed = 0  # entries of _steps that were made before the last resume
        self._latest: tuple[_Place | None, Mapping[str, float]] = (None, {})  # the last rates that were read
        self._prompts = KeyIndex()
        offset = 0
        for end, record in read_records(path):
            self._index(record, offset)
            offset = end
            if watch is not None:
                watch(end)
        if not self._steps:
            raise ValueError(f"{path} holds no steps to replay")

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[RecordedStep]:
        """Read the steps from the file, one at a time."""
        for place in self._steps:
            step = self._read(place)
            assert isinstance(step, Step)
            plan = step.plan
            yield RecordedStep(step.outcomes, plan.budget, plan.counts_P, plan.success_rates_P, plan.pseudo_count_P)

    @property
    def prompts(self) -> int:
        """Number of different prompts in the trace."""
        return len(self._prompts)

    @property
    def knows_rates(self) -> bool:
        """Whether an evaluation measured exact success rates."""
        return bool(self._evaluations)

    def rates(self, step: int) -> Mapping[str, float]:
        """The exact success rates by prompt of the last evaluation at or before a step; empty if there is none."""
        place = next((place for place in reversed(self._evaluations) if place.step <= step), None)
        if place is None:
            return {}
        if self._latest[0] != place:
            record = self._read(place)
            assert isinstance(record, Evaluation)
            self._latest = (place, record.rates or {})
        return self._latest[1]

    def context(
        self, seed: int = 0, min_count: int | None = None, max_count: int | None = None, prompts: int | None = None
    ) -> RuleContext:
        """The context of the recorded run, as far as the trace states it; arguments take precedence.

        Without a stated half-life, the data set has the prompts that the trace names.
        """
        first = next(iter(self))
        groups = len(set(first.outcomes.prompt_ids))
        settings = self.run.get("settings")
        recorded = settings if isinstance(settings, Mapping) else {}
        if prompts is None:
            half_life = _first_number(recorded, ("half_life",), HALF_LIFE_PASSES * self.prompts / groups)
            prompts = max(round(half_life * groups / HALF_LIFE_PASSES), 1)
        return RuleContext(
            groups=groups,
            average=max(round(first.budget / groups), 1),
            prompts=prompts,
            min_count=int(_first_number(recorded, _MIN_COUNT, 2)) if min_count is None else min_count,
            max_count=int(_first_number(recorded, _MAX_COUNT, 128)) if max_count is None else max_count,
            seed=seed,
        )

    def _index(self, record: Record | None, offset: int) -> None:
        """Keep the place of a record; drop those that it supersedes, as `Trace.add` does."""
        match record:
            case RunStart():
                self.run = record.fields
            case Step():
                ids = record.plan.prompt_ids
                self._prompts.add(prompt_keys(ids))
                place = _Place(record.plan.step, hash(ids), offset)
                for i, earlier in enumerate(self._steps[: self._resumed]):
                    if earlier[:2] == place[:2]:
                        del self._steps[i]
                        self._resumed -= 1
                        break
                self._steps.append(place)
            case Evaluation() if record.rates:
                self._evaluations.append(_Place(record.step, 0, offset))
            case Resume():
                self._steps = [place for place in self._steps if place.step < record.step]
                self._evaluations = [place for place in self._evaluations if place.step <= record.step]
                self._resumed = len(self._steps)

    def _read(self, place: _Place) -> Record | None:
        return next(read_records(self.path, place.offset))[1]


class ExactRates:
    """The exact success rates that a trace recorded, as of the step that is replayed: knowledge of the oracle only."""

    def __init__(self, trace: RecordedTrace) -> None:
        """Rates as of step 0; set ``step`` before each step."""
        self.trace, self.step = trace, 0

    def __call__(self, prompt_ids: Sequence[str]) -> FloatArray:
        """The rates of these prompts, ``[P]``.

        Raises:
            ValueError: no evaluation up to this step measured a prompt's rate.
        """
        rates = self.trace.rates(self.step)
        for prompt_id in prompt_ids:
            if prompt_id not in rates:
                raise ValueError(f"no evaluation up to step {self.step} has the exact success rate of {prompt_id!r}")
        return np.array([rates[prompt_id] for prompt_id in prompt_ids])


def _trace_source(trace: RecordedTrace, options: argparse.Namespace) -> ReplaySource:
    context = trace.context(options.seed, options.min, options.max, options.prompts)
    rates = ExactRates(trace)
    if trace.knows_rates:
        context = replace(context, truth=rates)
    count = min(len(trace), options.steps or len(trace))
    name = f"{trace.run.get('engine', '?')}, {trace.run.get('rule', '?')}"
    title = f"{trace.path} ({name}): {count:,} steps, {context.groups:,} prompts x {context.average}"

    def steps() -> Iterator[RecordedStep]:
        for step in islice(trace, count):
            rates.step = step.outcomes.step
            yield step

    notes = _trace_notes(trace)
    return ReplaySource(title, context, count, lambda rules: replay_steps(steps(), rules, options.seed), notes)


def _trace_notes(trace: RecordedTrace) -> tuple[str, ...]:
    """Why the rule that made the trace cannot repeat its plans, where it cannot."""
    settings = trace.run.get("settings")
    recorded = settings if isinstance(settings, Mapping) else {}
    notes = []
    features = recorded.get("features")
    if trace.run.get("rule") == "calibrated" and features not in (None, "none"):
        notes.append(
            f"The run planned with features of its prompts ({features}), which a trace does not hold: calibrated is"
            " replayed without them, and its plans differ from the recorded ones."
        )
    pool = recorded.get("pool")
    if isinstance(pool, int) and pool > 1:
        notes.append(
            f"Each step offered a pool of {pool} prompts for one: rules divide among all of them, and those that spread"
            " their rollouts ask for many that were not recorded (short)."
        )
    return tuple(notes)


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
            raise ValueError(f"--{name} is for tables: {reason}")


def _first_number(settings: Mapping[str, Any], names: Sequence[str], default: float) -> float:
    """The first of these settings that is a number."""
    for name in names:
        value = settings.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    return default

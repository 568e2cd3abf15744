"""The trace of a run as a record to replay: its steps, what their plans were made with, exact rates, the settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from knapsack_arena.registry import RuleContext
from knapsack_arena.replay.rollouts import RecordedStep
from knapsack_rl.beliefs.beta import HALF_LIFE_PASSES
from knapsack_rl.beliefs.ids import prompt_keys
from knapsack_rl.beliefs.prompt_store import KeyIndex
from knapsack_rl.notation import FloatArray, PromptFeatures
from knapsack_rl.trace import Evaluation, Lost, Record, Resume, RunStart, Step, read_records
from knapsack_rl.trace.looks import FeatureLog

# Names under which the trainers record the limits on a prompt's rollouts: the core's and those of the adapters.
_MIN_COUNT = ("min_count", "min_generations", "min_rollouts", "min_n")
_MAX_COUNT = ("max_count", "max_generations", "max_rollouts", "max_n")

# Called with the bytes read so far.
Watch = Callable[[int], None]


class _Place(NamedTuple):
    """Index entry of a step or an evaluation: its step, its prompts (a hash), the byte offset of its line."""

    step: int
    prompts: int
    offset: int


class RecordedTrace:
    """The steps of a trace, without those that a resume superseded.

    Memory holds one step, the index, and the features of each prompt, where the trace has them.

    Attributes:
        path: the file.
        run: the fields of its first record.
        lost: records that could not be written.
        featured: whether some plan was made with features that were recorded.
    """

    def __init__(self, path: Path, watch: Watch | None = None) -> None:
        """Read the trace once, to index its steps.

        Raises:
            OSError: the file cannot be read.
            ValueError: a damaged line, or no step.
        """
        self.path = path
        self.run: dict[str, Any] = {}
        self.lost = 0
        self.featured = False
        self._features_at: list[int] = []  # where features of prompts are written
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
        log = FeatureLog()
        wanted = {place.offset for place in self._steps}
        for offset in sorted(wanted.union(self._features_at)):  # also in steps that a resume superseded
            step = self._read(offset)
            assert isinstance(step, Step)
            plan, features = step.plan, None
            if step.features is not None and step.features.rows_U_F is not None:
                log.learn(plan.prompt_ids, step.features)
                features = log.look(plan.prompt_ids, step.features, step.log_odds_P)
            if offset in wanted:
                yield RecordedStep(
                    step.outcomes, plan.budget, plan.counts_P, plan.success_rates_P, plan.pseudo_count_P, features
                )

    @property
    def settings(self) -> Mapping[str, Any]:
        """The settings of the run, as far as they are recorded."""
        settings = self.run.get("settings")
        return settings if isinstance(settings, Mapping) else {}

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
            record = self._read(place.offset)
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
        recorded = self.settings
        half_life = None
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
            min_group=int(_first_number(recorded, ("min_group",), 2)),
            half_life_steps=half_life,
        )

    def _index(self, record: Record | None, offset: int) -> None:
        """Keep the place of a record; drop those that it supersedes, as `Trace.add` does."""
        match record:
            case RunStart():
                self.run = record.fields
            case Step():
                ids = record.plan.prompt_ids
                self._prompts.add(prompt_keys(ids))
                if record.features is not None and record.features.rows_U_F is not None:
                    self.featured = True
                    self._features_at += [offset] * bool(record.features.at_U.size)
                place = _Place(record.plan.step, hash(ids), offset)
                for i, earlier in enumerate(self._steps[: self._resumed]):
                    if earlier[:2] == place[:2]:
                        del self._steps[i]
                        self._resumed -= 1
                        break
                self._steps.append(place)
            case Evaluation() if record.rates:
                self._evaluations.append(_Place(record.step, 0, offset))
            case Lost():
                self.lost += record.records
            case Resume():
                self._steps = [place for place in self._steps if place.step < record.step]
                self._evaluations = [place for place in self._evaluations if place.step <= record.step]
                self._resumed = len(self._steps)

    def _read(self, offset: int) -> Record | None:
        return next(read_records(self.path, offset))[1]


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


class RecordedLooks:
    """The features that the plans of a trace were made with."""

    def __init__(self) -> None:
        """Set ``step`` before each step."""
        self.step: RecordedStep | None = None

    def __call__(self, prompt_ids: Sequence[str]) -> PromptFeatures:
        """The features of these prompts of the step.

        Raises:
            ValueError: the trace does not hold them, or the step does not have a prompt.
        """
        step = self.step
        if step is None or step.features is None:
            raise ValueError(
                "the run planned with features of its prompts, which the trace does not hold for this step: record it"
                " again with this version of the library, or with features='none'"
            )
        place = {prompt_id: i for i, prompt_id in enumerate(step.outcomes.prompt_ids)}
        unknown = next((prompt_id for prompt_id in prompt_ids if prompt_id not in place), None)
        if unknown is not None:
            raise ValueError(f"the step did not look at prompt {unknown!r}")
        return step.features.take(np.array([place[prompt_id] for prompt_id in prompt_ids], dtype=np.int64))


def _first_number(settings: Mapping[str, Any], names: Sequence[str], default: float) -> float:
    """The first of these settings that is a number."""
    for name in names:
        value = settings.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    return default

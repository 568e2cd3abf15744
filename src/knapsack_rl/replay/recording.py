"""A trace, read one step at a time: memory for the step at hand, and for the places of the others in the file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from knapsack_rl.beliefs import FADING_PASSES
from knapsack_rl.entrants import Setting
from knapsack_rl.ids import KeyIndex, prompt_keys
from knapsack_rl.notation import FloatArray, IntArray
from knapsack_rl.outcomes import Outcomes
from knapsack_rl.records import Evaluation, Record, Resume, RunStart, Step, decode

# How our writer begins a step: from here the ids can be read without the rest of the line. Any other form of the same
# record is read too, only more slowly.
_STEP = re.compile(rb'\{"kind":"step","step":(\d+),"optimizer_step":\d+,"budget":\d+,"price":[^",]+,"ids":(?=\[)')
_JSON = json.JSONDecoder()

# What the adapters call the limits and the half-life in the settings that they record.
_LEAST = ("min_count", "min_generations", "min_rollouts", "min_n")
_MOST = ("max_count", "max_generations", "max_rollouts", "max_n")
_HALF_LIFE = ("half_life", "belief_half_life")


@dataclass(frozen=True, eq=False)
class Visit:
    """A recorded step: who was there, what was planned, and what came of it.

    Attributes:
        outcomes: the recorded rollouts, ``[P]`` groups; a prompt may be listed twice.
        budget: rollouts of the step.
        planned_P: what was really planned, ``[P]``.
        success_rates_P, strength_P: on what belief, ``[P]``; NaN where that is not known.
    """

    outcomes: Outcomes
    budget: int
    planned_P: IntArray
    success_rates_P: FloatArray
    strength_P: FloatArray


class _Place(NamedTuple):
    """Where a record stands: its step, its first byte and its line."""

    step: int
    offset: int
    line: int


class Recording:
    """The steps of a trace that count: those recorded before a resume, and done again after it, do not.

    Iterating reads the file once more, step by step.

    Attributes:
        path: the file.
        run: the fields of its first record.
        prompts: different prompts that it names.
    """

    def __init__(self, path: Path, lines: Iterable[bytes] | None = None) -> None:
        """Find the steps of a trace.

        Args:
            path: the file.
            lines: its lines, where the caller wants to watch them go by.

        Raises:
            OSError: the file cannot be read.
            ValueError: a damaged line that is not the last, no run record at the start, or no step.
        """
        self.path = path
        self.run: dict[str, Any] = {}
        self._steps: list[_Place] = []
        self._exact: list[_Place] = []
        self._rates: tuple[_Place | None, Mapping[str, float]] = (None, {})  # those last asked for
        self._prompts = KeyIndex()
        if lines is None:
            with path.open("rb") as file:
                self._scan(file)
        else:
            self._scan(lines)
        if not self._steps:
            raise ValueError(f"{path} holds no steps to replay")

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[Visit]:
        with self.path.open("rb") as file:
            for place in self._steps:
                record = self._read(file, place)
                assert isinstance(record, Step)
                yield _visit(record)

    @property
    def prompts(self) -> int:
        """Different prompts in the trace."""
        return len(self._prompts)

    @property
    def knows_rates(self) -> bool:
        """Whether some evaluation knows exact success rates."""
        return bool(self._exact)

    def rates(self, step: int) -> Mapping[str, float]:
        """The exact success rates as of the last evaluation at or before a step; empty if there is none."""
        place = next((place for place in reversed(self._exact) if place.step <= step), None)
        if place is None:
            return {}
        if self._rates[0] != place:
            with self.path.open("rb") as file:
                record = self._read(file, place)
            assert isinstance(record, Evaluation)
            self._rates = (place, record.rates or {})
        return self._rates[1]

    def setting(
        self, seed: int = 0, low: int | None = None, high: int | None = None, prompts: int | None = None
    ) -> Setting:
        """What the rules are told: as in the run itself where the trace says it, unless given here."""
        first = next(iter(self))
        groups = len(set(first.outcomes.prompt_ids))
        settings = self.run.get("settings")
        recorded = settings if isinstance(settings, Mapping) else {}
        if prompts is None:
            half_life = _first_number(recorded, _HALF_LIFE, FADING_PASSES * self.prompts / groups)
            prompts = max(round(half_life * groups / FADING_PASSES), 1)
        return Setting(
            groups=groups,
            num_generations=max(round(first.budget / groups), 1),
            prompts=prompts,
            min_count=int(_first_number(recorded, _LEAST, 2)) if low is None else low,
            max_count=int(_first_number(recorded, _MOST, 128)) if high is None else high,
            seed=seed,
        )

    def _scan(self, lines: Iterable[bytes]) -> None:
        offset = 0
        remaining = iter(lines)
        for number, line in enumerate(remaining, start=1):
            try:
                self._note(line, offset, number)
            except ValueError as error:
                # Only the last line may be damaged, by a kill; what never was a trace is refused all the same.
                if next(remaining, None) is None and (number > 1 or line.startswith(b'{"kind"')):
                    return
                raise ValueError(f"{self.path}:{number}: {error}") from error
            offset += len(line)

    def _note(self, line: bytes, offset: int, number: int) -> None:
        """Keep the place of a record, and what is needed of it before the first step."""
        head = _STEP.match(line)
        if number > 1 and head and line.endswith(b"}\n"):
            ids, _ = _JSON.raw_decode(line.decode("ascii"), head.end())
            self._prompts.add(prompt_keys(ids))
            self._steps.append(_Place(int(head[1]), offset, number))
            return
        record = decode(line)
        if number == 1 and not isinstance(record, RunStart):
            raise ValueError("a trace starts with a run record")
        match record:
            case RunStart():
                self.run = record.fields
            case Step():
                self._prompts.add(prompt_keys(record.plan.prompt_ids))
                self._steps.append(_Place(record.plan.step, offset, number))
            case Evaluation() if record.rates:
                self._exact.append(_Place(record.step, offset, number))
            case Resume():
                self._steps = [place for place in self._steps if place.step < record.step]
                self._exact = [place for place in self._exact if place.step <= record.step]

    def _read(self, file: Any, place: _Place) -> Record | None:
        file.seek(place.offset)
        try:
            return decode(file.readline())
        except ValueError as error:
            raise ValueError(f"{self.path}:{place.line}: {error}") from error


class ExactRates:
    """The true success rates of a trace that recorded them, as of the step that is played: what an oracle is told."""

    def __init__(self, recording: Recording) -> None:
        """Rates as of the beginning; set ``step`` before each step."""
        self.recording, self.step = recording, 0

    def __call__(self, prompt_ids: Sequence[str]) -> FloatArray:
        """The rates of these prompts, ``[P]``.

        Raises:
            ValueError: nobody measured a prompt's rate up to this step.
        """
        rates = self.recording.rates(self.step)
        for prompt_id in prompt_ids:
            if prompt_id not in rates:
                raise ValueError(f"no evaluation up to step {self.step} knows the exact success rate of {prompt_id!r}")
        return np.array([rates[prompt_id] for prompt_id in prompt_ids])


def _visit(step: Step) -> Visit:
    plan = step.plan
    return Visit(step.outcomes, plan.budget, plan.counts_P, plan.success_rates_P, plan.strength_P)


def _first_number(settings: Mapping[str, Any], names: Sequence[str], default: float) -> float:
    """The first of these settings that is a number."""
    for name in names:
        value = settings.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    return default

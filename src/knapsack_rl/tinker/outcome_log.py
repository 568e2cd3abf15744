"""The log of plans and finished groups, from which a session learns and a stopped run is restored.

The cookbook runs groups in threads, in other processes and sometimes twice, and has no hook where it saves checkpoints.
So every plan is appended to one file when it is made, and every group when it has finished.
"""

from __future__ import annotations

import base64
import errno
import itertools
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from knapsack_rl.files import complete_lines, parse_json
from knapsack_rl.notation import FloatArray
from knapsack_rl.outcomes import Outcomes
from knapsack_rl.plan import Plan


class Success(NamedTuple):
    """A rollout that succeeded, in one turn.

    Attributes:
        observation: hash of the tokens that it answers.
        reward: its total reward.
        tokens_T, log_probs_T: its tokens, and their log-probabilities under the policy that sampled them.
    """

    observation: str
    reward: float
    tokens_T: NDArray[np.int32]
    log_probs_T: NDArray[np.float32]


class Group(NamedTuple):
    """A group that finished. One that is run again, because it was too stale to train on, finishes twice.

    Attributes:
        step: generation step it was planned in.
        place: its position in that step's plan.
        prompt_id: the prompt of its rollouts.
        rewards: one for each rollout that came back; none if the group failed.
        tokens: as many completion lengths.
        age: steps since the kept success was sampled that replaced one of its rollouts; None if none did.
        success: a success to keep; None if there is none, or none are kept.
    """

    step: int
    place: int
    prompt_id: str
    rewards: Sequence[float]
    tokens: Sequence[int]
    age: int | None = None
    success: Success | None = None


class Planned(NamedTuple):
    """A step's plan.

    Attributes:
        step: generation step.
        plan: without features, which are computed from the texts.
        rule: of the run.
        texts: prompts by id.
        id_version: rule of the ids, as in `Session.id_version`; logs written before it was logged have 1.
        log_prob_P: of the most probable next token after each prompt of the plan, ``[P]``, NaN where it is not known;
            None if the policy was not asked.
    """

    step: int
    plan: Plan
    rule: str
    texts: Mapping[str, str]
    id_version: int = 1
    log_prob_P: FloatArray | None = None


Entry: TypeAlias = Group | Planned

_RESUME = re.compile(rb"(0|[1-9][0-9]*)\s+")


class OutcomeLog:
    """A file of JSON lines: plans and groups as they came, and the steps at which a run was resumed."""

    def __init__(self, path: Path) -> None:
        """The log in this file, which need not exist."""
        self.path = path

    def write(self, entry: Entry) -> None:
        """Append a plan or a group; the line stays whole even if several processes write."""
        line: Any
        if isinstance(entry, Planned):
            state = entry.plan.state_dict() | {"features": None}
            line = entry._asdict() | {"plan": state, "log_prob_P": _without_nan(entry.log_prob_P)}
        else:
            line = list(entry)
            if entry.success is not None:
                line[-1] = [*entry.success[:2], *map(_packed, entry.success[2:])]
            while line[-1] is None:
                line.pop()
        self._append(json.dumps(line, separators=(",", ":"), default=np.ndarray.tolist) + "\n")

    def mark_resume(self, step: int) -> int:
        """Record a resume at ``step``, which voids the entries of that step and later. Returns the file size."""
        self._append(f"\n{step}\n")  # a killed process may have left half a line
        return self.path.stat().st_size

    def valid(self) -> Iterator[Entry]:
        """Everything that no resume has voided."""
        lines = complete_lines(self.path) if self.path.exists() else ()
        resumes = [int(line) for _, line in lines if _RESUME.fullmatch(line)]
        # The least step of the first resume and all later ones, of the second and all later ones, ...; the first last.
        limits = list(itertools.accumulate(reversed(resumes), min))
        for _, entry in self.since(0):
            if isinstance(entry, int):
                limits.pop()
            elif not limits or entry.step < limits[-1]:
                yield entry

    def since(self, offset: int) -> Iterator[tuple[int, Entry | int]]:
        """All lines after the first ``offset`` bytes, resumes as the step, each with the offset at which it ends."""
        if not self.path.exists():
            return
        for end, line in complete_lines(self.path, offset):
            try:
                entry = parse_json(line)
            except ValueError:
                continue  # empty, or cut off by a kill
            try:
                yield end, _entry(entry)
            except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
                raise ValueError(f"{self.path}: byte {end - len(line)}: not an entry of this log ({error})") from error

    def _append(self, text: str) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            size = os.fstat(file).st_size
            if size and os.pread(file, 1, size - 1) != b"\n":
                text = f"\n{text}"  # after half a line, of a process that was killed or of a full disk
            line = text.encode("ascii")
            if os.write(file, line) != len(line):  # one call: atomic in a file opened to append
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        finally:
            os.close(file)


def _entry(entry: Any) -> Entry | int:
    """An entry from its form in JSON."""
    if isinstance(entry, int) and not isinstance(entry, bool) and entry >= 0:
        return entry
    if isinstance(entry, list):
        step, place, prompt_id, rewards, tokens, age, success = [*entry, None, None][: max(len(entry), 7)]
        Outcomes.from_rollouts(step, [prompt_id] * len(rewards), rewards, tokens)  # checks them
        if not isinstance(place, int) or not isinstance(prompt_id, str) or not isinstance(age, int | None):
            raise TypeError(f"a group at {place!r} of prompt {prompt_id!r} with a rollout of age {age!r}")
        if success is not None:
            observation, reward, *packed = success
            tokens_T, log_probs_T = map(_unpacked, packed, (np.int32, np.float32))
            success = Success(str(observation), float(reward), tokens_T, log_probs_T)
        return Group(step, place, prompt_id, rewards, tokens, age, success)
    lists = entry["plan"]
    arrays = {name: np.array(value) for name, value in lists.items() if name.endswith("_P")}
    given = entry.get("log_prob_P")
    log_prob_P = None if given is None else np.array(given, dtype=np.float64)  # None becomes NaN
    return Planned(**entry | {"plan": Plan.from_state(lists | arrays), "log_prob_P": log_prob_P})


def _without_nan(numbers: FloatArray | None) -> list[float | None] | None:
    return None if numbers is None else [None if math.isnan(number) else number for number in numbers.tolist()]


def _packed(array: NDArray[Any]) -> str:
    """An array of numbers of four bytes as text, exactly."""
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")


def _unpacked(text: str, kind: type[Any]) -> NDArray[Any]:
    return np.frombuffer(base64.b64decode(text, validate=True), kind)

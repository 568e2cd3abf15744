"""The log of plans and finished groups: a session learns from it, and a stopped run is restored from it.

The cookbook runs groups in threads, in other processes and sometimes twice, and has no hook where it saves checkpoints.
So every plan is appended to one file when it is made, and every group when it has finished. A resumed run repeats the
log with a new session.

Resume invariant: a run resumed at batch r has learned exactly the outcomes of batches 0..r-1. In the synchronous loops
its state is then, to the bit, that of a run that was never stopped.
"""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from knapsack_rl.features.text import TextFeatures
from knapsack_rl.files import check_kind, complete_lines, parse_json
from knapsack_rl.notation import PromptFeatures
from knapsack_rl.outcomes import Outcomes
from knapsack_rl.plan import Plan
from knapsack_rl.session import Session


class Group(NamedTuple):
    """A group that finished. One that is run again, because it was too stale to train on, finishes twice.

    Attributes:
        step: generation step it was planned in.
        place: its position in that step's plan.
        prompt_id: the prompt of its rollouts.
        rewards: one for each rollout that came back; none if the group failed.
        tokens: as many completion lengths.
    """

    step: int
    place: int
    prompt_id: str
    rewards: Sequence[float]
    tokens: Sequence[int]


class Planned(NamedTuple):
    """A step's plan.

    Attributes:
        step: generation step.
        plan: without features, which are computed from the texts.
        rule: of the run.
        texts: prompts by id.
        id_version: rule of the ids, as in `Session.id_version`; logs written before it was logged have 1.
    """

    step: int
    plan: Plan
    rule: str
    texts: Mapping[str, str]
    id_version: int = 1


Entry: TypeAlias = Group | Planned


class OutcomeLog:
    """A file of JSON lines: plans and groups as they came, and the steps at which a run was resumed."""

    def __init__(self, path: Path) -> None:
        """The log in this file, which need not exist."""
        self.path = path

    def write(self, entry: Entry) -> None:
        """Append a plan or a group; the line stays whole even if several processes write."""
        line: Any = entry
        if isinstance(entry, Planned):
            state = entry.plan.state_dict() | {"features": None}
            line = entry._asdict() | {"plan": state}
        self._append(json.dumps(line, separators=(",", ":"), default=np.ndarray.tolist) + "\n")

    def mark_resume(self, step: int) -> int:
        """Record a resume at ``step``, which voids the entries of that step and later. Returns the file size."""
        self._append(f"\n{step}\n")  # a killed process may have left half a line
        return self.path.stat().st_size

    def valid(self) -> list[Entry]:
        """Everything that no resume has voided."""
        valid: list[Entry] = []
        for _, entry in self.since(0):
            if isinstance(entry, int):
                valid = [earlier for earlier in valid if earlier.step < entry]
            else:
                valid.append(entry)
        return valid

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
        step, place, prompt_id, rewards, tokens = entry
        Outcomes.from_rollouts(step, [prompt_id] * len(rewards), rewards, tokens)  # checks them
        if not isinstance(place, int) or not isinstance(prompt_id, str):
            raise TypeError(f"a group at {place!r} of prompt {prompt_id!r}")
        return Group(step, place, prompt_id, rewards, tokens)
    lists = entry["plan"]
    arrays = {name: np.array(value) for name, value in lists.items() if name.endswith("_P")}
    return Planned(**entry | {"plan": Plan.from_state(lists | arrays)})


class OutcomeTracker:
    """Plans and learns with a session by way of the log, and restores the session at the start of any batch."""

    def __init__(self, session: Session, path: Path, steps: int, features: TextFeatures | None) -> None:
        """A tracker of a run.

        Args:
            session: learns whole batches in the order of planning; as it is now, it is the beginning of the run.
            path: of the log.
            steps: steps of the run; its record is ended when all are learned.
            features: computes features of prompts from their texts.
        """
        self.session, self.log, self.steps, self.features = session, OutcomeLog(path), steps, features
        self._beginning = session.state_dict()
        self._read = 0  # bytes of the log that were learned from
        self._finished: set[tuple[int, int]] = set()  # step and place of groups that finished
        self._repeated: list[Group] = []  # second runs of groups, of batches that are not learned yet
        self._lock = threading.RLock()

    @property
    def learned(self) -> int:
        """Steps learned: all steps before this one."""
        return next((plan.step for plan in self.session.open_plans), self.session.step)

    def plan(self, prompt_ids: Sequence[str], budget: int, texts: Mapping[str, str]) -> Plan:
        """Plan the next batch; ``texts`` are prompts by id, all of them where features are computed.

        Raises:
            ValueError: a budget that the limits cannot meet.
        """
        features = self._features(prompt_ids, texts)
        plan = self.session.plan(prompt_ids, budget, features=features, texts=texts)
        self.log.write(Planned(plan.step, plan, self.session.config.rule, texts, self.session.id_version))
        return plan

    def collect(self) -> dict[str, float]:
        """Learn what was logged since the last call; the metrics of the batch that this completed."""
        metrics: dict[str, float] = {}
        with self._lock, self.session.working():
            for end, entry in self.log.since(self._read):
                self._read = end
                if isinstance(entry, Group):
                    metrics = self._learn(entry) or metrics
            if self.learned >= self.steps and self.session.trace is not None:
                self.session.trace.end("finished")
        return metrics

    def start_at(self, step: int) -> bool:
        """Begin a run (step 0), or restore what was learned when ``step`` was about to be planned.

        Returns:
            Whether the log holds anything of earlier steps.

        Raises:
            BeliefFileError: the log is of another rule.
        """
        with self._lock:
            self.session.load_state_dict(self._beginning)
            self._finished.clear()
            self._repeated.clear()
            if step == 0:
                self.log.path.unlink(missing_ok=True)
            entries = [entry for entry in self.log.valid() if entry.step < step]
            for entry in entries:
                if isinstance(entry, Group):
                    self._learn(entry)
                else:
                    check_kind(entry._asdict(), rule=self.session.config.rule)
                    self.session.id_version = entry.id_version
                    features = self._features(entry.plan.prompt_ids, entry.texts)
                    self.session.reopen(replace(entry.plan, features=features), entry.texts)
            for plan in self.session.open_plans:  # groups that were under way when the run stopped are not run again
                self.session.give_up(plan.step)
            self.session.restart_at(step)
            self._learn_repeated()
            self._read = self.log.mark_resume(step)
        return bool(entries)

    def _features(self, prompt_ids: Sequence[str], texts: Mapping[str, str]) -> PromptFeatures | None:
        return None if self.features is None else self.features([texts[prompt_id] for prompt_id in prompt_ids])

    def _learn(self, group: Group) -> dict[str, float]:
        """Let the session observe a group; or keep it until its batch is learned, if it is a second run."""
        step, place, prompt_id, rewards, tokens = group
        plan = next((plan for plan in self.session.open_plans if plan.step == step), None)
        metrics: dict[str, float] = {}
        if plan is None or (step, place) in self._finished:
            self._repeated.append(group)
        else:
            self._finished.add((step, place))
            metrics = self.session.observe(step, [prompt_id] * len(rewards), rewards, tokens, unplanned=True)
            lost = int(plan.counts_P[place]) - len(rewards)
            metrics = self.session.give_up(step, [prompt_id] * lost) or metrics
        self._learn_repeated()
        return metrics

    def _learn_repeated(self) -> None:
        """Learn second runs of groups of learned batches: other rollouts of the same prompts, part of no metric."""
        ready = [group for group in self._repeated if group.step < self.learned]
        self._repeated = [group for group in self._repeated if group.step >= self.learned]
        for step, _, prompt_id, rewards, tokens in ready:
            self.session.observe(step, [prompt_id] * len(rewards), rewards, tokens, unplanned=True)

"""What was planned and came back: learned batch after batch in the order of planning, however groups finish.

One rule makes every loop of the cookbook resumable: **a run that goes on with batch r knows what batches 0 to r-1
brought, whenever it came, and nothing else.** In the synchronous loops that is, bit for bit, what a run that never
stopped knows. Groups are written to a journal as they finish, and beliefs are saved now and then: saved beliefs hold
all batches before one, and the journal what came later.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from knapsack_rl.outcomes import Outcomes
from knapsack_rl.plan import Plan
from knapsack_rl.session import Session
from knapsack_rl.tinker.journal import Group, Journal


@dataclass
class _Batch:
    plan: Plan
    texts: dict[str, str]
    missing: set[int]  # places in the plan
    groups: list[Group] = field(default_factory=list)


class Ledger:
    """The open batches of a run, its journal and its saved beliefs, in a folder of their own."""

    def __init__(self, session: Session, folder: Path, success_threshold: float) -> None:
        """The ledger of a run.

        Args:
            session: plans and learns.
            folder: made if missing.
            success_threshold: the least reward that counts as a success.
        """
        self.session, self.folder = session, folder
        self.journal = Journal(folder / "outcomes.jsonl")
        self.success_threshold = success_threshold
        self._open: dict[int, _Batch] = {}
        self._read = 0  # bytes of the journal that were taken in
        self._metrics: dict[str, float] = {}
        self._lock = threading.RLock()  # a rollout executor may run groups in threads

    @property
    def learned(self) -> int:
        """Steps learned, which are all steps before this one."""
        return next(iter(self._open), self.session.step)

    def expect(self, plan: Plan, texts: dict[str, str]) -> None:
        """A batch is about to be generated; ``texts`` are its prompts by id."""
        with self._lock:
            self._open[plan.step] = _Batch(plan, texts, set(np.flatnonzero(plan.counts_P).tolist()))

    def collect(self) -> None:
        """Take in what has come back, and learn the batches that are complete."""
        with self._lock, self.session.working():
            for end, group in self.journal.since(self._read):
                self._read = end
                if group.step in self._open:
                    self._open[group.step].groups.append(group)
                    self._open[group.step].missing.discard(group.place)
                else:  # run again after its batch was learned
                    self.session.allocator.observe(self._outcomes(group.step, [group]))
            while self._open and not self._open[self.learned].missing:
                batch = self._open.pop(self.learned)
                step, ids = batch.plan.step, batch.plan.prompt_ids
                blank = [Group(step, place, prompt_id, (), ()) for place, prompt_id in enumerate(ids)]
                outcomes = self._outcomes(step, batch.groups + blank)
                self._metrics = self.session.learn(batch.plan, outcomes, optimizer_step=step, texts=batch.texts)

    def take_metrics(self) -> dict[str, float]:
        """The metrics of the batch learned last, to the first who asks."""
        with self._lock:
            metrics, self._metrics = self._metrics, {}
        return metrics

    def begin(self) -> None:
        """A new run; what an earlier one left here belongs to no checkpoint of this one."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._open.clear()
        self._read = self.session.step = 0
        self.save(0)

    def resume(self, step: int, look: Callable[[int], object] | None = None) -> bool:
        """Go back to where ``step`` is about to be planned; False if nothing of ours is there.

        Args:
            step: planned next.
            look: called with each step whose outcomes are learned again, before they are: what its prompts look like is
                not in the journal.
        """
        saved = [entry for entry in self._saved() if entry[0] <= step]
        for entry in self._saved():
            if entry not in saved:
                shutil.rmtree(entry[2])
        at, read, path = saved[-1] if saved else (0, 0, self.folder / "nothing saved")
        found = self.session.load(path, step_without_beliefs=step) is not None
        groups = [(end, group) for end, group in self.journal.valid() if group.step < step]
        for earlier in sorted({group.step for _, group in groups}):
            news = [group for end, group in groups if group.step == earlier and (earlier >= at or end > read)]
            if news and look is not None:
                look(earlier)
            self.session.allocator.observe(self._outcomes(earlier, news))
        self._open.clear()
        self._read = self.journal.mark_resume(step)
        self.session.step = step
        return found or bool(groups)

    def save(self, checkpoint: int) -> None:
        """Save the beliefs, and drop what a run resumed at batch ``checkpoint`` or later does not need."""
        with self._lock:
            path = self.folder / f"{self.learned:06d}-{self._read}"
            if not path.exists():
                half = self.folder / "half-saved"
                half.mkdir(parents=True, exist_ok=True)
                self.session.save(half)
                half.replace(path)
            saved = self._saved()
            needed = max((at for at, _, _ in saved if at <= checkpoint), default=0)
            for at, _, old in saved:
                if at < needed:
                    shutil.rmtree(old)

    def _saved(self) -> list[tuple[int, int, Path]]:
        """Saved beliefs in order: of all steps before which, how much of the journal they know, and where they are."""
        paths = self.folder.glob("[0-9]*-[0-9]*")
        return sorted((int(path.name.split("-")[0]), int(path.name.split("-")[1]), path) for path in paths)

    def _outcomes(self, step: int, groups: Sequence[Group]) -> Outcomes:
        """The outcomes of these groups by their place in the plan; of a group that came back twice, all of them."""
        places: dict[int, list[Group]] = {}
        for group in sorted(groups, key=lambda group: group.place):
            places.setdefault(group.place, []).append(group)
        return Outcomes.of_groups(
            step,
            [(same[0].prompt_id, [reward for group in same for reward in group.rewards]) for same in places.values()],
            self.success_threshold,
            tokens=[[n for group in same for n in group.tokens] for same in places.values()],
        )

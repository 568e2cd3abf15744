"""A run, as every trainer drives it: plan, generate, observe, save. Adapters translate, and nothing else.

    session = Session(AllocationConfig(average=8))
    plan = session.plan(ids, budget, features=...)              # any number of plans may be open
    for prompt_id, count in plan: ...                            # the trainer generates
    metrics = session.observe(plan.step, ids_PG, rewards_PG)     # flat rows: in part, late, in any order
    checkpoint["knapsack"] = session.state_dict()

A plan is complete when all its rollouts are back or given up; its metrics are returned and its record is written then.
All methods may be called from several threads.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from knapsack_rl.allocator import Allocator
from knapsack_rl.config import AllocationConfig
from knapsack_rl.files import BeliefFileError, SavedToFile, State, as_array, check_kind
from knapsack_rl.metrics import RewardCheck, as_text, step_metrics
from knapsack_rl.notation import FloatArray, IntArray, PromptFeatures, text_ids
from knapsack_rl.outcomes import Outcomes
from knapsack_rl.plan import Plan
from knapsack_rl.trace import TraceWriter

STATE_FILE = "knapsack_rl.npz"


@dataclass(eq=False)
class _OpenPlan:
    """A plan some of whose rollouts are not back.

    Attributes:
        plan: what was decided.
        texts: prompts by id, for the record.
        missing_P: rollouts that may still come, ``[P]``.
        places, rewards, tokens: of the rollouts that came: position of the prompt in the plan, reward, completion
            length (-1 where unknown).
        samples: a few completions.
        optimizer_step: optimizer steps done when the latest rollouts were made.
    """

    plan: Plan
    texts: dict[str, str]
    missing_P: IntArray
    places: list[int] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    samples: list[Mapping[str, Any]] = field(default_factory=list)
    optimizer_step: int = 0

    def outcomes(self, success_threshold: float, since: int = 0) -> Outcomes:
        """What came back after the first ``since`` rollouts; of a complete plan over all its prompts."""
        place_R = np.array(self.places[since:], dtype=np.int64)
        tokens_R = np.array(self.tokens[since:], dtype=np.int64)
        order = np.argsort(place_R, kind="stable")
        counts_P = np.bincount(place_R, minlength=len(self.plan.prompt_ids)).astype(np.int64)
        kept = np.flatnonzero(counts_P) if since or self.missing_P.any() else np.arange(counts_P.size)
        features = self.plan.features
        return Outcomes(
            step=self.plan.step,
            prompt_ids=tuple([self.plan.prompt_ids[i] for i in kept.tolist()]),
            counts_P=counts_P[kept],
            rewards_PG=np.array(self.rewards[since:], dtype=np.float64)[order],
            tokens_PG=tokens_R[order] if (tokens_R >= 0).all() else None,
            success_threshold=success_threshold,
            features=None if features is None else features.take(kept),
        )

    def state_dict(self) -> State:
        """All but the samples."""
        came = {"places": np.array(self.places, dtype=np.int64), "rewards": np.array(self.rewards, dtype=np.float64)}
        came["tokens"] = np.array(self.tokens, dtype=np.int64)
        return {"plan": self.plan.state_dict(), "texts": self.texts, "missing": self.missing_P.copy(), **came}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> _OpenPlan:
        """What `state_dict` described."""
        came = [state[name].tolist() for name in ("places", "rewards", "tokens")]
        return cls(Plan.from_state(state["plan"]), dict(state["texts"]), as_array(state["missing"]).copy(), *came)


class Session(SavedToFile):
    """An allocator, its place in a run, the plans under way, and the run's record.

    Attributes:
        allocator: decides and learns.
        step: generation steps planned so far, which is the step of the next plan.
        trace: the record, once opened.
    """

    def __init__(
        self,
        config: AllocationConfig | None = None,
        *,
        allocator: Allocator | None = None,
        steps_per_pass: float | None = None,
        in_order: bool = False,
    ) -> None:
        """A run at its beginning.

        Args:
            config: how rollouts are divided.
            allocator: decides and learns in place of the one that the configuration describes.
            steps_per_pass: generation steps of one pass over the data, where that is known: sets the half-life.
            in_order: learn whole plans, in the order of planning. What is learned then does not depend on the order in
                which rollouts come back; but it waits for the last of them.
        """
        self.config = config or AllocationConfig()
        self.allocator: Allocator = allocator or self.config.make_allocator(steps_per_pass)
        self.step = 0
        self.in_order = in_order
        self.trace: TraceWriter | None = None
        self._open: list[_OpenPlan] = []
        self._resumed = False
        self._lock = threading.RLock()
        self._own_time = threading.local()
        self._allocating = self._working = 0.0
        self._last_step = time.perf_counter()
        self._rewards = RewardCheck()

    @contextmanager
    def working(self) -> Iterator[None]:
        """Count the time inside as ours: an adapter's own work. `plan` and `observe` count themselves."""
        outermost = getattr(self._own_time, "began", None) is None
        if outermost:
            self._own_time.began = time.perf_counter()
        try:
            yield
        finally:
            if outermost:
                self._working += time.perf_counter() - self._own_time.began
                self._own_time.began = None

    def plan(
        self,
        prompt_ids: Sequence[str],
        budget: int | None = None,
        *,
        features: PromptFeatures | None = None,
        step: int | None = None,
        texts: Mapping[str, Any] | None = None,
    ) -> Plan:
        """Plan the next step and advance the step counter.

        Args:
            prompt_ids: of the prompts to divide among: text or whole numbers; the plan holds them as text.
            budget: rollouts to divide; by default ``average`` for each of the prompts that a pool stands for.
            features: what the prompts look like; they travel with the plan, and its outcomes are learned with them.
            step: the step it is for, where a trainer plans several batches in one; by default the next.
            texts: prompts by id, as text or chat messages, for the record.

        Raises:
            ValueError: no prompts, a budget that the limits cannot meet, or an allocator that misses it. Nothing
                changes then.
            TypeError: an id that is neither text nor a whole number.
        """
        with self._lock, self.working():
            began = time.perf_counter()
            ids = text_ids(prompt_ids)
            if budget is None:
                assert self.config.pool is not None
                budget = len(ids) * self.config.average // self.config.pool
            at = self.step if step is None else step
            given = {} if features is None else {"features": features}
            plan = self.allocator.plan(ids, budget, at, **given)
            if plan.budget != budget:
                raise ValueError(f"the allocator planned {plan.budget} rollouts where {budget} were to be spent")
            named = {str(prompt_id): as_text(prompt) for prompt_id, prompt in (texts or {}).items()}
            self._open.append(_OpenPlan(plan, named, plan.counts_P.copy(), optimizer_step=plan.step))
            self.step = plan.step + 1
            self._allocating += time.perf_counter() - began
        return plan

    @property
    def open_plans(self) -> list[Plan]:
        """Plans that wait for rollouts, in the order of planning."""
        with self._lock:
            return [each.plan for each in self._open]

    def observe(
        self,
        step: int,
        ids_PG: Sequence[str],
        rewards_PG: Sequence[float] | FloatArray,
        tokens_PG: Sequence[int] | IntArray | None = None,
        *,
        optimizer_step: int | None = None,
        samples: Sequence[Mapping[str, Any]] = (),
        unplanned: bool = False,
    ) -> dict[str, float]:
        """Take in rollouts of a plan: all of them or some, in any order.

        Args:
            step: the step of the plan.
            ids_PG: the prompt id of each rollout.
            rewards_PG: its reward; NaN where there was no answer.
            tokens_PG: its completion length, where known.
            optimizer_step: optimizer steps done when the rollouts were made; by default the plan's step.
            samples: a few completions, ``{"id", "completion", "reward"}``, for the record.
            unplanned: accept rollouts that no open plan waits for (made again, or planned by a process that is gone):
                they are learned, and part of no metric. Otherwise they are refused.

        Returns:
            Metrics of the plan that is now complete (of the largest, or the last of these, if several are); empty if
            none is.

        Raises:
            ValueError: lengths that do not fit, an infinite reward, or rollouts that no plan waits for (a duplicate, an
                unknown prompt or step). Nothing is learned then.
        """
        with self._lock, self.working():
            ids = text_ids(ids_PG)
            # Checks lengths and rewards before anything changes.
            checked = Outcomes.from_rollouts(step, ids, rewards_PG, tokens_PG, self.config.success_threshold)
            rewards = np.asarray(rewards_PG, dtype=np.float64)
            tokens = np.full(len(ids), -1) if tokens_PG is None else np.asarray(tokens_PG, dtype=np.int64)
            waited_for, extra = self._routed(step, ids)
            if extra.size and not unplanned:
                raise ValueError(
                    f"{extra.size} rollouts in step {step} are not waited for, the first of prompt {ids[extra[0]]!r}: "
                    "no plan of that step has it, or all of its rollouts are back; pass each rollout once"
                )
            for opened, rows, places in waited_for:
                since = len(opened.places)
                np.subtract.at(opened.missing_P, places, 1)
                opened.places += places.tolist()
                opened.rewards += rewards[rows].tolist()
                opened.tokens += tokens[rows].tolist()
                opened.optimizer_step = opened.plan.step if optimizer_step is None else optimizer_step
                own = set(opened.plan.prompt_ids)
                opened.samples += [sample for sample in samples if sample["id"] in own]
                if not self.in_order:
                    self.allocator.observe(opened.outcomes(checked.success_threshold, since))
            if extra.size:
                self._learn_extra(step, [ids[row] for row in extra], rewards[extra], tokens[extra])
            return self._finish()

    def give_up(self, step: int, ids_PG: Sequence[str] | None = None) -> dict[str, float]:
        """Rollouts that are missing will not come.

        Args:
            step: the step of the plan.
            ids_PG: the prompt id of each such rollout; by default all that are missing.

        Returns:
            As `observe`.
        """
        with self._lock, self.working():
            lost = None if ids_PG is None else Counter(text_ids(ids_PG))
            for opened in self._open:
                if opened.plan.step == step:
                    for i in np.flatnonzero(opened.missing_P).tolist():
                        prompt_id, missing = opened.plan.prompt_ids[i], int(opened.missing_P[i])
                        gone = missing if lost is None else min(missing, lost[prompt_id])
                        opened.missing_P[i] -= gone
                        if lost is not None:
                            lost[prompt_id] -= gone
            return self._finish()

    def reopen(self, plan: Plan, texts: Mapping[str, Any] | None = None) -> None:
        """Wait for the rollouts of a plan that an earlier process made, and plan its step no more."""
        with self._lock:
            named = {str(prompt_id): as_text(prompt) for prompt_id, prompt in (texts or {}).items()}
            self._open.append(_OpenPlan(plan, named, plan.counts_P.copy(), optimizer_step=plan.step))
            self.step = max(self.step, plan.step + 1)

    def restart_at(self, step: int) -> None:
        """Plan ``step`` next and drop open plans of that step and later; a trace opened next continues there."""
        with self._lock:
            self._open = [opened for opened in self._open if opened.plan.step < step]
            self.step, self._resumed = step, step > 0

    def open_trace(self, path: Path, run: Mapping[str, object]) -> None:
        """Begin the record of the run, or continue it after `load`."""
        self._last_step = time.perf_counter()
        self.trace = TraceWriter(path, run, resume_step=self.step if self._resumed else None)

    def state_dict(self) -> State:
        """What a resumed run needs of ours: what was learned, the step, and the plans under way."""
        with self._lock:
            return {
                "kind": "session",
                "step": self.step,
                "allocator": self.allocator.state_dict(),
                "open": [opened.state_dict() for opened in self._open],
            }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; on a failure nothing changes.

        Raises:
            BeliefFileError: damaged state, or state of another rule.
        """
        check_kind(state, kind="session")
        try:
            step, opened = int(state["step"]), [_OpenPlan.from_state(saved) for saved in state["open"]]
            learned = state["allocator"]
        except (KeyError, TypeError, ValueError) as error:
            raise BeliefFileError(
                f"the saved session is damaged ({error}): resume from an earlier checkpoint"
            ) from error
        with self._lock:
            self.allocator.load_state_dict(learned)
            self.step, self._open, self._resumed = step, opened, True

    def save_to(self, folder: Path) -> None:
        """Write the state into a checkpoint folder, all or nothing."""
        self.save(folder / STATE_FILE)

    def load_from(self, folder: Path, step_without_state: int = 0) -> bool:
        """Resume from a checkpoint folder.

        Args:
            folder: where `save_to` wrote.
            step_without_state: the step to go on with if the checkpoint holds nothing of ours.

        Returns:
            Whether it held anything; otherwise all prompts count as unseen.

        Raises:
            BeliefFileError: the state is damaged, or of another rule.
        """
        found = (folder / STATE_FILE).exists()
        if found:
            self.load(folder / STATE_FILE)
        else:
            self.step = step_without_state
        self._resumed = True
        return found

    def _routed(self, step: int, ids_PG: Sequence[str]) -> tuple[list[tuple[_OpenPlan, IntArray, IntArray]], IntArray]:
        """For each open plan that waits for some of the rows: the rows and their places; and rows not waited for."""
        rows_by_id: dict[str, list[int]] = {}
        for row, prompt_id in enumerate(ids_PG):
            rows_by_id.setdefault(prompt_id, []).append(row)
        found = []
        for opened in self._open:
            rows: list[int] = []
            places: list[int] = []
            for i, prompt_id in enumerate(opened.plan.prompt_ids if opened.plan.step == step else ()):
                arrived = rows_by_id.get(prompt_id, [])[: int(opened.missing_P[i])]
                if arrived:
                    rows += arrived
                    places += [i] * len(arrived)
                    rows_by_id[prompt_id] = rows_by_id[prompt_id][len(arrived) :]
            if rows:
                found.append((opened, np.array(rows), np.array(places)))
        return found, np.array(sorted(row for rows in rows_by_id.values() for row in rows), dtype=np.int64)

    def _finish(self) -> dict[str, float]:
        """Record the plans that are complete: in order of planning, or only those before any that is open."""
        metrics: dict[str, float] = {}
        largest = 0
        for opened in list(self._open):
            if not opened.missing_P.any():
                self._open.remove(opened)
                measured = self._complete(opened)
                if opened.plan.budget >= largest:
                    largest, metrics = opened.plan.budget, measured
            elif self.in_order:
                break
        return metrics

    def _learn_extra(self, step: int, ids: Sequence[str], rewards: FloatArray, tokens: IntArray) -> None:
        known = tokens if (tokens >= 0).all() else None
        self.allocator.observe(Outcomes.from_rollouts(step, ids, rewards, known, self.config.success_threshold))

    def _complete(self, opened: _OpenPlan) -> dict[str, float]:
        plan, outcomes = opened.plan, opened.outcomes(self.config.success_threshold)
        if self.in_order:
            self.allocator.observe(outcomes)
        self._rewards.check(outcomes)
        metrics = step_metrics(plan, outcomes) | {"rollouts_lost": float(plan.budget - outcomes.rewards_PG.size)}
        now = time.perf_counter()
        overhead = self._working + now - (getattr(self._own_time, "began", None) or now)
        if self.trace is not None:
            self.trace.step(
                plan,
                outcomes,
                optimizer_step=opened.optimizer_step,
                seconds={"allocate": self._allocating, "overhead": overhead, "step": now - self._last_step},
                texts=opened.texts,
                samples=opened.samples,
            )
        self._allocating = self._working = 0.0
        if getattr(self._own_time, "began", None) is not None:
            self._own_time.began = now
        self._last_step = now
        return metrics | {"overhead_seconds": overhead}

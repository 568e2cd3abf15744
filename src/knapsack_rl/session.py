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

import copy
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from knapsack_rl.allocator import Allocator
from knapsack_rl.beliefs.ids import ID_VERSION
from knapsack_rl.beliefs.reward_check import RewardCheck, SuccessThreshold
from knapsack_rl.config import AllocationConfig
from knapsack_rl.files import BeliefFileError, SavedToFile, State, check_kind, read_state, write_state
from knapsack_rl.metrics import as_text, step_metrics
from knapsack_rl.notation import FloatArray, IntArray, PromptFeatures, checked_step, text_ids
from knapsack_rl.open_plan import OpenPlan, check_samples, routed
from knapsack_rl.outcomes import Outcomes
from knapsack_rl.plan import Plan
from knapsack_rl.trace import TraceWriter, move_aside

logger = logging.getLogger(__name__)

STATE_FILE = "knapsack_rl.npz"


class Session(SavedToFile):
    """An allocator, its place in a run, the plans under way, and the run's record.

    Attributes:
        allocator: decides and learns.
        step: generation steps planned so far, which is the step of the next plan.
        trace: the record, once opened.
        id_version: how an adapter makes ids of content (`knapsack_rl.beliefs.ids`); that of the state, once loaded.
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
            steps_per_pass: generation steps of one pass over the data, as of a run without a pool, where that is known:
                sets the half-life.
            in_order: learn whole plans, in the order of planning. What is learned then does not depend on the order in
                which rollouts come back; but it waits for the last of them.

        Raises:
            TypeError: ``config`` is no `AllocationConfig`.
        """
        if not isinstance(config, AllocationConfig | None):
            raise TypeError(f"config is {config!r}: pass an AllocationConfig, such as AllocationConfig(rule='beta')")
        self.config = config or AllocationConfig()
        self.allocator: Allocator = allocator or self.config.make_allocator(steps_per_pass)
        self.step, self.in_order, self.id_version = 0, in_order, ID_VERSION
        self.trace: TraceWriter | None = None
        self._open: list[OpenPlan] = []
        self._resumed = False
        self._lock = threading.RLock()
        self._own_time = threading.local()
        self._working = 0.0
        self._last_step = time.perf_counter()
        self._threshold, self._rewards = SuccessThreshold(self.config.success_threshold), RewardCheck()
        self._beginning = None if self.config.success_threshold is not None else self.allocator.state_dict()

    @contextmanager
    def working(self, awaited: float = 0.0) -> Iterator[None]:
        """Count the time inside as ours, and seconds ``awaited`` before; `plan` and `observe` count themselves."""
        self._working += awaited
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
            ids = text_ids(prompt_ids)
            if budget is None:
                assert self.config.pool is not None
                budget = len(ids) * self.config.average // self.config.pool
            at = self.step if step is None else step
            given = {} if features is None else {"features": features}
            plan = self.allocator.plan(ids, budget, at, **given)
            if plan.budget != budget and self.config.budget == "fixed":
                raise ValueError(f"the allocator planned {plan.budget} rollouts where {budget} were to be spent")
            named = {str(prompt_id): as_text(prompt) for prompt_id, prompt in (texts or {}).items()}
            self._open.append(OpenPlan(plan, named, plan.counts_P.copy(), optimizer_step=plan.step))
            self.step = plan.step + 1
        return plan

    @property
    def success_threshold(self) -> float:
        """Least reward that counts as a success now."""
        return self._threshold.value

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
        features: PromptFeatures | None = None,
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
            features: of the prompts of unplanned rollouts, a row for each in the order of first appearance.

        Returns:
            Metrics of the plan that is now complete (the largest, or the last of these); empty if none is.

        Raises:
            ValueError: lengths that do not fit, an infinite reward, or rollouts that no plan waits for (a duplicate, an
                unknown prompt or step). Nothing is learned then. Where the allocator itself fails, rollouts that it
                has not learned are not taken in, and may be passed again.
        """
        with self._lock, self.working():
            ids = text_ids(ids_PG)
            Outcomes.from_rollouts(step, ids, rewards_PG, tokens_PG)  # checks lengths and rewards
            rewards = np.asarray(rewards_PG, dtype=np.float64)
            tokens = np.full(len(ids), -1) if tokens_PG is None else np.asarray(tokens_PG, dtype=np.int64)
            waited_for, extra = routed(self._open, step, ids)
            if extra.size and not unplanned:
                raise ValueError(
                    f"{extra.size} rollouts in step {step} are not waited for, the first of prompt {ids[extra[0]]!r}: "
                    "no plan of that step has it, or all of its rollouts are back; pass each rollout once"
                )
            check_samples(samples)
            taken: list[Callable[[], None]] = [partial(setattr, self, "_threshold", copy.copy(self._threshold))]
            try:
                for opened, rows, places in waited_for:
                    shown = [sample for sample in samples if str(sample["id"]) in opened.plan.prompt_ids]
                    at = opened.plan.step if optimizer_step is None else optimizer_step
                    taken.append(opened.file(places, rewards[rows], tokens[rows], at, shown))
                    if not self.in_order and opened.missing_P.any():
                        self._learn(opened)
                if extra.size:
                    self._learn_unplanned(step, [ids[row] for row in extra], rewards[extra], tokens[extra], features)
                return self._finish()
            except Exception:
                for take_back in taken:
                    take_back()
                raise

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
            self._open.append(OpenPlan(plan, named, plan.counts_P.copy(), optimizer_step=plan.step))
            self.step = max(self.step, plan.step + 1)

    def restart_at(self, step: int) -> None:
        """Plan ``step`` next and drop open plans of that step and later; a trace opened next continues there."""
        with self._lock:
            self._open = [opened for opened in self._open if opened.plan.step < step]
            self.step, self._resumed = step, step > 0

    def open_trace(self, path: Path, run: Mapping[str, object]) -> None:
        """Begin the record of the run, or continue it after `load`."""
        self._last_step, resume_step = time.perf_counter(), self.step if self._resumed else None
        try:
            self.trace = TraceWriter(path, run, resume_step)
        except ValueError as error:
            logger.warning("%s: it is kept as %s, and the record goes on in a new file", error, move_aside(path))
            self.trace = TraceWriter(path, run, resume_step)

    def state_dict(self) -> State:
        """What a resumed run needs of ours: what was learned, the step, and the plans under way."""
        with self._lock:
            return {
                "kind": "session",
                "step": self.step,
                "id_version": self.id_version,
                "allocator": self.allocator.state_dict(),
                "threshold": self._threshold.state_dict(),
                "open": [opened.state_dict() for opened in self._open],
            }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; on a failure nothing changes.

        Raises:
            BeliefFileError: damaged state, or state of another rule.
        """
        check_kind(state, kind="session")
        try:
            step, opened = checked_step(state["step"]), [OpenPlan.from_state(saved) for saved in state["open"]]
            learned, id_version = state["allocator"], int(state.get("id_version", 1))
            threshold = self._threshold.restored(state.get("threshold"))
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise BeliefFileError(f"the saved session is damaged ({error}): use an earlier checkpoint") from error
        with self._lock:
            self.allocator.load_state_dict(learned)
            self.step, self._open, self._resumed, self.id_version = step, opened, True, id_version
            self._threshold = threshold
            for each in opened:
                each.learned = 0 if self.in_order else len(each.places)

    def save_to(self, folder: Path, trainer_step: int | None = None, adapter: Mapping[str, Any] | None = None) -> None:
        """Write the state into a checkpoint folder, all or nothing, in one file: no kill can mix two of them.

        Args:
            folder: of the checkpoint; it is made.
            trainer_step: the trainer's own step; `load_from` compares it.
            adapter: what an adapter saves with the state.
        """
        folder.mkdir(parents=True, exist_ok=True)
        more = {"trainer_step": trainer_step, "adapter": dict(adapter or {})}
        write_state(folder / STATE_FILE, self.state_dict() | more)

    def load_from(self, folder: Path, step_without_state: int = 0, trainer_step: int | None = None) -> State | None:
        """Resume from a checkpoint folder.

        Args:
            folder: where `save_to` wrote.
            step_without_state: the step to go on with if the checkpoint holds nothing of ours.
            trainer_step: the step that the trainer resumes at.

        Returns:
            The state; None if there was none, and all prompts count as unseen.

        Raises:
            BeliefFileError: the state is damaged, of another rule, or of another step of the trainer.
        """
        path, state = folder / STATE_FILE, None
        if path.exists():
            state = read_state(path)
            if trainer_step is not None and (saved := state.get("trainer_step")) not in (None, trainer_step):
                raise BeliefFileError(
                    f"{path} is of step {saved}, and the trainer resumes at step {trainer_step}: it was stopped while "
                    "it wrote this checkpoint; resume from another one, or delete the file to go on without beliefs"
                )
            self.restore(path, state)
        else:
            logger.warning("%s holds no beliefs of knapsack-rl: every prompt counts as unseen", folder)
            self.step = step_without_state
        self._resumed = True
        return state

    def record_kept(self, step: int, metrics: Mapping[str, float]) -> None:
        """Put into the trace what a trainer says of its kept successes after generation step ``step``."""
        if self.trace is not None:
            self.trace.kept(step, {name: value for name, value in metrics.items() if not np.isnan(value)})

    def _finish(self) -> dict[str, float]:
        """Record the plans that are complete: in order of planning, or only those before any that is open."""
        metrics: dict[str, float] = {}
        largest = 0
        for opened in list(self._open):
            if not opened.missing_P.any():
                measured = self._complete(opened)
                self._open.remove(opened)
                if opened.plan.budget >= largest:
                    largest, metrics = opened.plan.budget, measured
            elif self.in_order:
                break
        return metrics

    def _learn_unplanned(
        self, step: int, ids: Sequence[str], rewards: FloatArray, tokens: IntArray, features: PromptFeatures | None
    ) -> None:
        known = tokens if (tokens >= 0).all() else None
        self.allocator.observe(Outcomes.from_rollouts(step, ids, rewards, known, self.success_threshold, features))

    def _learn(self, opened: OpenPlan) -> None:
        """Learn what came back of a plan and is not learned."""
        self.allocator.observe(opened.outcomes(self._threshold.value, opened.learned))
        opened.learned = len(opened.places)

    def _find_threshold(self, complete: OpenPlan) -> None:
        """Look for it in a complete plan: what counts otherwise then is forgotten, and learned again if it is open."""
        before, seen = self._threshold.value, self._threshold.marks_M
        self._threshold.look(np.array(complete.rewards))
        if self._threshold.value == before or self._beginning is None:
            return
        plans = [complete, *(each for each in self._open if each is not complete)]
        learned = [np.array(each.rewards[: each.learned]) for each in plans]
        if self._threshold.counts_otherwise(before, np.concatenate([seen, *learned])):
            self.allocator.load_state_dict(self._beginning)
            for each in (each for each in plans if each.learned):
                each.learned = 0
                self._learn(each)

    def _complete(self, opened: OpenPlan) -> dict[str, float]:
        self._find_threshold(opened)
        if self.in_order or opened.learned < len(opened.places):
            self._learn(opened)
        plan, outcomes = opened.plan, opened.outcomes(self._threshold.value)
        self._rewards.check(outcomes, self._threshold.assumed)
        metrics = step_metrics(plan, outcomes) | {"rollouts_lost": float(plan.budget - outcomes.rewards_PG.size)}
        metrics["success_threshold"] = self._threshold.value
        now = time.perf_counter()
        overhead = self._working + now - (getattr(self._own_time, "began", None) or now)
        if self.trace is not None:
            self.trace.step(
                plan,
                outcomes,
                optimizer_step=opened.optimizer_step,
                seconds={"overhead": overhead, "step": now - self._last_step},
                texts=opened.texts,
                samples=opened.samples,
            )
        self._working = 0.0
        if getattr(self._own_time, "began", None) is not None:
            self._own_time.began = now
        self._last_step = now
        return metrics | {"overhead_seconds": overhead}

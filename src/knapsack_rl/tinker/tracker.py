"""A session that plans and learns by way of the log, and is restored from it.

Resume invariant: a run resumed at batch r has learned exactly the outcomes of batches 0..r-1. In the synchronous loops
its state is then, to the bit, that of a run that was never stopped.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import numpy as np

from knapsack_rl.files import check_kind
from knapsack_rl.kept import KeptSuccesses
from knapsack_rl.notation import FloatArray, PromptFeatures
from knapsack_rl.plan import Plan
from knapsack_rl.session import Session
from knapsack_rl.tinker.kept import Keeping
from knapsack_rl.tinker.outcome_log import Group, OutcomeLog, Planned, Success

# Looks at prompts, given their texts, and the log-probability of the most probable next token after each.
Look: TypeAlias = Callable[[Sequence[str | None], FloatArray | None], PromptFeatures]

# Plans whose features are kept for groups that are run again; the cookbook's limits of staleness are a few steps.
RECENT = 64


class OutcomeTracker:
    """Plans and learns with a session by way of the log, and restores the session at the start of any batch."""

    def __init__(
        self, session: Session, path: Path, steps: int, look: Look | None = None, kept: KeptSuccesses | None = None
    ) -> None:
        """A tracker of a run.

        Args:
            session: learns whole batches in the order of planning; as it is now, it is the beginning of the run.
            path: of the log.
            steps: steps of the run; its record is ended when all are learned.
            look: computes features of prompts; the same arguments give the same features in every process.
            kept: where successes are kept, still empty; None to keep none.
        """
        self.session, self.log, self.steps, self.look = session, OutcomeLog(path), steps, look
        self.kept = kept
        self._observations: dict[str, str] = {}  # what kept successes answer, by prompt id
        self._ages: dict[int, list[int]] = {}  # ages of the kept successes that were used, by step
        self._beginning = session.state_dict()
        self._read = 0  # bytes of the log that were learned from
        self._finished: set[tuple[int, int]] = set()  # step and place of groups that finished
        self._repeated: list[Group] = []  # second runs of groups, of batches that are not learned yet
        self._recent: dict[int, Plan] = {}  # by step, for the features of second runs
        self._lock = threading.RLock()

    @property
    def learned(self) -> int:
        """Steps learned: all steps before this one."""
        return next((plan.step for plan in self.session.open_plans), self.session.step)

    def plan(
        self, prompt_ids: Sequence[str], budget: int, texts: Mapping[str, str], log_prob_P: FloatArray | None = None
    ) -> Plan:
        """Plan the next batch.

        Args:
            prompt_ids: ids of the prompts, ``[P]``.
            budget: rollouts of the batch.
            texts: prompts by id, where they are known.
            log_prob_P: of the most probable next token after each prompt, ``[P]``, NaN where not known; None if the
                policy was not asked.

        Raises:
            ValueError: a budget that the limits cannot meet.
        """
        features = self._features(prompt_ids, texts, log_prob_P)
        plan = self.session.plan(prompt_ids, budget, features=features, texts=texts)
        self._remember(plan)
        entry = Planned(plan.step, plan, self.session.config.rule, texts, self.session.id_version, log_prob_P)
        self.log.write(entry)
        return plan

    def keeping(self, prompt_id: str, step: int) -> Keeping | None:
        """What a group of this prompt and step does with kept successes; None if none are kept."""
        if self.kept is None:
            return None
        found = self.kept.find(prompt_id, step)
        return Keeping(
            self.session.success_threshold, None if found is None else (self._observations[prompt_id], found)
        )

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
            self._forget()
            if step == 0:
                self.log.path.unlink(missing_ok=True)
            found = False
            for entry in self.log.valid():
                if entry.step < step:
                    found = True
                    self._restore(entry)
            self.session.restart_at(step)
            self._read = self.log.mark_resume(step)
        return found

    def give_up_open(self) -> None:
        """Give up the groups that were under way when the run stopped: they are not run again.

        After the trace was opened, which has what came of their plans.
        """
        with self._lock:
            for plan in self.session.open_plans:
                self.session.give_up(plan.step)
            self._learn_repeated()

    def _forget(self) -> None:
        self.session.load_state_dict(self._beginning)
        for each in (self._finished, self._repeated, self._recent, self._observations, self._ages):
            each.clear()
        if self.kept is not None:
            self.kept.load_state_dict(KeptSuccesses().state_dict())

    def _restore(self, entry: Group | Planned) -> None:
        """Learn from a group, or wait for the groups of a plan."""
        if isinstance(entry, Group):
            self._learn(entry)
            return
        check_kind(entry._asdict(), rule=self.session.config.rule)
        self.session.id_version = entry.id_version
        features = self._features(entry.plan.prompt_ids, entry.texts, entry.log_prob_P)
        plan = replace(entry.plan, features=features)
        self._remember(plan)
        self.session.reopen(plan, entry.texts)

    def _remember(self, plan: Plan) -> None:
        """Keep the latest plans: a group that is run again is learned with the features that it was planned with."""
        self._recent[plan.step] = plan
        if len(self._recent) > RECENT:
            del self._recent[next(iter(self._recent))]

    def _features(
        self, prompt_ids: Sequence[str], texts: Mapping[str, str], log_prob_P: FloatArray | None
    ) -> PromptFeatures | None:
        return None if self.look is None else self.look([texts.get(prompt_id) for prompt_id in prompt_ids], log_prob_P)

    def _learn(self, group: Group) -> dict[str, float]:
        """Let the session observe a group; or keep it until its batch is learned, if it is a second run."""
        step, place, prompt_id, rewards, tokens, age, success = group
        if self.kept is not None and success is not None:
            self._keep(self.kept, prompt_id, step, success)
        if age is not None:
            self._ages.setdefault(step, []).append(age)
        plan = next((plan for plan in self.session.open_plans if plan.step == step), None)
        metrics: dict[str, float] = {}
        if plan is None or (step, place) in self._finished:
            self._repeated.append(group)
        else:
            learned = self.learned
            self._finished.add((step, place))
            metrics = self.session.observe(step, [prompt_id] * len(rewards), rewards, tokens, unplanned=True)
            lost = int(plan.counts_P[place]) - len(rewards)
            metrics = self.session.give_up(step, [prompt_id] * lost) or metrics
            if metrics and self.kept is not None:
                kept = self._kept_metrics(range(learned, self.learned))
                self.session.record_kept(self.learned - 1, kept)
                metrics |= kept
        self._learn_repeated()
        return metrics

    def _keep(self, kept: KeptSuccesses, prompt_id: str, step: int, success: Success) -> None:
        """Keep a success with what it answers, unless a later one is kept."""
        if kept.keep(prompt_id, step, success.tokens_T.tolist(), success.log_probs_T.tolist(), [success.reward]):
            self._observations[prompt_id] = success.observation
        # Only when half of them have left the store, because this looks at all.
        if len(self._observations) > 2 * len(kept):
            self._observations = {each: answers for each, answers in self._observations.items() if each in kept}

    def _kept_metrics(self, steps: range) -> dict[str, float]:
        """Prompts that have a kept success, and number and mean age of those used in steps that are complete."""
        assert self.kept is not None
        ages = [age for step in steps for age in self._ages.pop(step, ())]
        age = float(np.mean(ages)) if ages else float("nan")
        return {"kept": float(self.kept.count(steps.stop - 1)), "kept_used": float(len(ages)), "kept_age": age}

    def _learn_repeated(self) -> None:
        """Learn second runs of groups of learned batches: other rollouts of the same prompts, part of no metric."""
        ready = [group for group in self._repeated if group.step < self.learned]
        self._repeated = [group for group in self._repeated if group.step >= self.learned]
        for group in ready:
            ids, plan = [group.prompt_id] * len(group.rewards), self._recent.get(group.step)
            planned_with = None if plan is None else plan.features
            features = None if planned_with is None else planned_with.take(np.array([group.place]))
            self.session.observe(group.step, ids, group.rewards, group.tokens, unplanned=True, features=features)

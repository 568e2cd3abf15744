"""One run, as every trainer adapter drives it: plan, learn, record, save. The adapters only translate.

plan = session.plan(prompt_ids, budget)     # at the moment of generation
...                                         # the trainer generates and scores plan.counts_P rollouts
metrics = session.learn(plan, outcomes)     # beliefs, metrics and trace
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from knapsack_rl.allocator import Allocator
from knapsack_rl.checkpoint import Progress, load_checkpoint, save_checkpoint
from knapsack_rl.metrics import step_metrics
from knapsack_rl.notation import FloatArray
from knapsack_rl.outcomes import Outcomes
from knapsack_rl.plan import Plan
from knapsack_rl.trace import TraceWriter

logger = logging.getLogger(__name__)

LONGEST_TEXT = 2000
# Rollouts without one success after which rewards that do differ suggest that the threshold is wrong.
PATIENCE = 1000


class Session:
    """An allocator, its place in a run, and the run's record.

    Attributes:
        allocator: decides and learns.
        step: generation steps planned so far, which is the step of the next plan.
        trace: the record, once opened.
    """

    def __init__(self, allocator: Allocator) -> None:
        """A run at its beginning."""
        self.allocator = allocator
        self.step = 0
        self.trace: TraceWriter | None = None
        self._resumed = False
        self._allocating = self._working = 0.0
        self._entered = self._last_step = time.perf_counter()
        self._unsuccessful: list[float] | None = [0, np.inf, -np.inf]  # rollouts, lowest and highest reward so far

    @contextmanager
    def working(self) -> Iterator[None]:
        """Count the time inside as our own share of the step."""
        self._entered = time.perf_counter()
        try:
            yield
        finally:
            self._working += time.perf_counter() - self._entered

    def plan(self, prompt_ids: Sequence[str], budget: int, step: int | None = None) -> Plan:
        """The plan of the next step, whose turn it then is.

        Args:
            prompt_ids: of the prompts to divide among.
            budget: rollouts to divide.
            step: the one it is for, where a trainer may plan several times in a step (refills); by default the next.

        Raises:
            ValueError: no prompts, a budget that the limits cannot meet, or an allocator that misses it.
        """
        began = time.perf_counter()
        plan = self.allocator.plan(prompt_ids, budget, self.step if step is None else step)
        if plan.budget != budget:
            raise ValueError(f"the allocator planned {plan.budget} rollouts where {budget} were to be spent")
        self._allocating += time.perf_counter() - began
        self.step = plan.step + 1
        return plan

    def learn(
        self,
        plan: Plan,
        outcomes: Outcomes,
        *,
        optimizer_step: int,
        texts: Mapping[str, Any] | None = None,
        samples: Sequence[Mapping[str, Any]] = (),
        observed: bool = False,
    ) -> dict[str, float]:
        """Outcomes to beliefs, metrics and trace.

        Args:
            plan: what was decided.
            outcomes: what came of it, over the same prompts.
            optimizer_step: optimizer steps done when the rollouts were made.
            texts: prompts by id, as text or chat messages.
            samples: a few completions, ``{"id", "completion", "reward"}``.
            observed: whether the allocator has seen the outcomes already, because they came in parts.

        Returns:
            Metrics of the step, and ``overhead_seconds``, our own share of its time.

        Raises:
            ValueError: outcomes of other prompts than the plan's; nothing is learned then.
        """
        metrics = step_metrics(plan, outcomes)
        if not observed:
            self.allocator.observe(outcomes)
        self._question_threshold(outcomes)
        now = time.perf_counter()
        overhead = self._working + now - self._entered
        if self.trace is not None:
            self.trace.step(
                plan,
                outcomes,
                optimizer_step=optimizer_step,
                seconds={"allocate": self._allocating, "overhead": overhead, "step": now - self._last_step},
                texts={prompt_id: as_text(prompt) for prompt_id, prompt in (texts or {}).items()},
                samples=[{**sample, "completion": as_text(sample["completion"])} for sample in samples],
            )
        self._allocating = self._working = 0.0
        self._last_step = now
        return metrics | {"overhead_seconds": overhead}

    def _question_threshold(self, outcomes: Outcomes) -> None:
        """Warn once if rewards differ but none is ever a success: the beliefs would learn nothing from them."""
        if self._unsuccessful is None:
            return
        if outcomes.success_PG.any():
            self._unsuccessful = None
            return
        rewards = outcomes.rewards_PG[outcomes.answered_PG]
        count, lowest, highest = self._unsuccessful
        count, lowest = count + rewards.size, min(lowest, rewards.min(initial=np.inf))
        highest = max(highest, rewards.max(initial=-np.inf))
        self._unsuccessful = [count, lowest, highest]
        if count >= PATIENCE and highest > lowest:
            logger.warning(
                "no reward of %d rollouts has reached success_threshold=%g (the highest was %g), so every prompt is "
                "believed to be unsolved: set success_threshold to the least reward that means success",
                count,
                outcomes.success_threshold,
                highest,
            )
            self._unsuccessful = None

    def open_trace(self, path: Path, run: Mapping[str, object]) -> None:
        """Begin the record of the run, or go on with it after `load`."""
        self._last_step = time.perf_counter()
        self.trace = TraceWriter(path, run, resume_step=self.step if self._resumed else None)

    def save(self, folder: Path, between_batches: bool = True) -> None:
        """Write everything a resumed run needs of ours into a checkpoint folder."""
        save_checkpoint(folder, self.allocator, Progress(self.step, between_batches))

    def load(self, folder: Path, step_without_beliefs: int = 0) -> Progress | None:
        """Go on from a checkpoint folder.

        Args:
            folder: where `save` wrote.
            step_without_beliefs: where to go on if the checkpoint holds nothing of ours.

        Returns:
            Where the saved run stood; None if the checkpoint holds nothing of ours, so that all prompts are unseen.

        Raises:
            CheckpointError: progress or beliefs are missing or damaged.
            BeliefFileError: the beliefs are damaged or were written by another method.
        """
        progress = load_checkpoint(folder, self.allocator)
        self.step = progress.generation_step if progress else step_without_beliefs
        self._resumed = True
        return progress


def best_and_worst(rewards: Sequence[float] | FloatArray) -> list[int]:
    """Places of the best and the worst of some rewards, one place if they are the same; NaN is worse than any."""
    known = np.nan_to_num(rewards, nan=-np.inf)
    return list(dict.fromkeys((int(known.argmax()), int(known.argmin()))))


def as_text(messages: Any) -> str:
    """A prompt or completion as text: plain ones as they are, chats as role and content."""
    if isinstance(messages, list):
        messages = "\n".join(f"{message.get('role')}: {message.get('content')}" for message in messages)
    return str(messages)[:LONGEST_TEXT]

"""What one generation step took and showed, on its way into the trace."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from knapsack_rl.outcomes import Outcomes
from knapsack_rl.plan import Plan
from knapsack_rl.trace import TraceWriter

LONGEST_TEXT = 2000


@dataclass
class StepRecord:
    """A stopwatch for our own share of a step, and what the trace shows beside plan and outcomes.

    Attributes:
        allocate: seconds spent making the plan.
        overhead: seconds spent in our code, plan included, generation and scoring excluded.
        texts: prompts by id, as they stand in the dataset.
        samples: some completions.
    """

    allocate: float = 0.0
    overhead: float = 0.0
    texts: dict[str, Any] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)
    _since: float = field(default_factory=time.perf_counter)

    def ours(self) -> None:
        """What has passed since the last call was our own work."""
        now = time.perf_counter()
        self.overhead, self._since = self.overhead + now - self._since, now

    def theirs(self) -> None:
        """What has passed since the last call was the trainer's work."""
        self._since = time.perf_counter()

    def write(self, trace: TraceWriter, plan: Plan, outcomes: Outcomes, optimizer_step: int, step: float) -> None:
        """Record the generation step, which took ``step`` seconds since the one before."""
        self.ours()
        trace.step(
            plan,
            outcomes,
            optimizer_step=optimizer_step,
            seconds={"allocate": self.allocate, "overhead": self.overhead, "step": step},
            texts={prompt_id: as_text(prompt) for prompt_id, prompt in self.texts.items()},
            samples=[{**sample, "completion": as_text(sample["completion"])} for sample in self.samples],
        )


def as_text(messages: Any) -> str:
    """A prompt or completion as text: plain ones as they are, chats as role and content."""
    if isinstance(messages, list):
        messages = "\n".join(f"{message.get('role')}: {message.get('content')}" for message in messages)
    return str(messages)[:LONGEST_TEXT]

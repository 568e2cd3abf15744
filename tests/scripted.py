"""A test environment with scripted rollouts: prompts in order, and their rewards in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from knapsack_arena.strategies import RolloutRequest, StepResult, StepSpec, Strategy, run_step
from knapsack_rl.outcomes import Outcomes

NAN = float("nan")


def rewards(text: str) -> list[float]:
    """``"10?"`` is a success, a failure and no answer."""
    return [{"1": 1.0, "0": 0.0, "?": NAN}[letter] for letter in text]


class Script:
    """Prompts in the order of the mapping, repeated; rewards of a prompt in order, the last one repeated.

    Every rollout is as long in tokens as its number says: the third one of a prompt has 3.
    """

    def __init__(self, script: Mapping[str, str], short: Sequence[str] = ()) -> None:
        self.script = {prompt_id: rewards(text) for prompt_id, text in script.items()}
        self.short = set(short)  # prompts whose rollouts are all lost
        self.at, self.used = 0, dict.fromkeys(script, 0)
        self.taken: list[tuple[str, ...]] = []

    def take(self, k: int) -> tuple[str, ...]:
        ids = list(self.script)
        assert k <= len(ids), f"the sampler cannot give {k} different prompts of {len(ids)}"
        taken = tuple(ids[(self.at + i) % len(ids)] for i in range(k))
        self.at += k
        self.taken.append(taken)
        return taken

    def generate(self, request: RolloutRequest, step: int = 0) -> Outcomes:
        groups = [
            (prompt_id, [] if prompt_id in self.short else self._next(prompt_id, count))
            for prompt_id, count in zip(request.prompt_ids, request.counts_P.tolist(), strict=True)
        ]
        return Outcomes(
            step=step,
            prompt_ids=request.prompt_ids,
            counts_P=np.array([len(rows) for _, rows in groups], dtype=np.int64),
            rewards_PG=np.array([reward for _, rows in groups for reward, _ in rows]),
            tokens_PG=np.array([number for _, rows in groups for _, number in rows], dtype=np.int64),
        )

    def _next(self, prompt_id: str, count: int) -> list[tuple[float, int]]:
        script, first = self.script[prompt_id], self.used[prompt_id]
        self.used[prompt_id] += count
        return [(script[min(i, len(script) - 1)], i + 1) for i in range(first, first + count)]

    def run_step(self, strategy: Strategy, groups: int, budget: int, step: int = 0) -> StepResult:
        return run_step(
            strategy, StepSpec(step, groups, budget, self.take), lambda request: self.generate(request, step)
        )


def asked(result: StepResult) -> list[dict[str, int]]:
    """What each round asked for."""
    return [dict(zip(request.prompt_ids, request.counts_P.tolist(), strict=True)) for request, _ in result.rounds]


def trained(result: StepResult) -> dict[str, list[float]]:
    """The rewards that are trained on."""
    outcomes = result.batch.outcomes
    ends = np.cumsum(outcomes.counts_P)[:-1]
    rows = [part.tolist() for part in np.split(outcomes.rewards_PG, ends)]
    return dict(zip(outcomes.prompt_ids, rows, strict=False))

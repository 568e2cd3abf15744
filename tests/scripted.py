"""A world in which every rollout is written down: prompts come in order, and so do their rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from knapsack_rl.outcomes import Outcomes
from knapsack_rl.strategy import Draw, Played, Request, Strategy, play

NAN = float("nan")


def rewards(text: str) -> list[float]:
    """``"10?"`` is a success, a failure and no answer."""
    return [{"1": 1.0, "0": 0.0, "?": NAN}[letter] for letter in text]


class Script:
    """Prompts in the order of the mapping, over and over; a prompt's rewards are dealt in order, the last for ever.

    Every rollout is as long in tokens as its number says: the third one of a prompt has 3.
    """

    def __init__(self, script: Mapping[str, str], short: Sequence[str] = ()) -> None:
        self.script = {prompt_id: rewards(text) for prompt_id, text in script.items()}
        self.short = set(short)  # prompts of which nothing ever comes back
        self.at, self.dealt = 0, dict.fromkeys(script, 0)
        self.taken: list[tuple[str, ...]] = []

    def take(self, k: int) -> tuple[str, ...]:
        ids = list(self.script)
        assert k <= len(ids), f"the sampler cannot give {k} different prompts of {len(ids)}"
        taken = tuple(ids[(self.at + i) % len(ids)] for i in range(k))
        self.at += k
        self.taken.append(taken)
        return taken

    def generate(self, draw: Draw, step: int = 0) -> Outcomes:
        groups = [
            (prompt_id, [] if prompt_id in self.short else self._deal(prompt_id, count))
            for prompt_id, count in zip(draw.prompt_ids, draw.counts_P.tolist(), strict=True)
        ]
        return Outcomes(
            step=step,
            prompt_ids=draw.prompt_ids,
            counts_P=np.array([len(rows) for _, rows in groups], dtype=np.int64),
            rewards_PG=np.array([reward for _, rows in groups for reward, _ in rows]),
            tokens_PG=np.array([number for _, rows in groups for _, number in rows], dtype=np.int64),
        )

    def _deal(self, prompt_id: str, count: int) -> list[tuple[float, int]]:
        script, first = self.script[prompt_id], self.dealt[prompt_id]
        self.dealt[prompt_id] += count
        return [(script[min(i, len(script) - 1)], i + 1) for i in range(first, first + count)]

    def play(self, strategy: Strategy, groups: int, budget: int, step: int = 0) -> Played:
        return play(strategy, Request(step, groups, budget, self.take), lambda draw: self.generate(draw, step))


def asked(played: Played) -> list[dict[str, int]]:
    """What each round asked for."""
    return [dict(zip(draw.prompt_ids, draw.counts_P.tolist(), strict=True)) for draw, _ in played.rounds]


def trained(played: Played) -> dict[str, list[float]]:
    """The rewards that are trained on."""
    outcomes = played.batch.outcomes
    ends = np.cumsum(outcomes.counts_P)[:-1]
    rows = [part.tolist() for part in np.split(outcomes.rewards_PG, ends)]
    return dict(zip(outcomes.prompt_ids, rows, strict=False))

"""HORA: after a pilot, spend the rest where a correct answer is most likely to turn up.

Source: arXiv 2605.07114, section 3 (hit utility under a uniform prior, greedy maximisation). No code is public.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from knapsack_rl.groups import equal_draw, group_size, join, pick
from knapsack_rl.notation import FloatArray, IntArray
from knapsack_rl.rivals.memory import load_memory, save_memory
from knapsack_rl.strategy import Batch, Draw, Request, Turn


@dataclass(frozen=True)
class Hora:
    """A pilot of every prompt, then the rest of the budget by posterior hit utility, all within the step.

    After f failures in m pilot rollouts, and with a uniform prior, k more rollouts of a prompt hit at least once with
    probability

        u(k) = 1 - prod_{j<k} (1 + f + j) / (2 + m + j),

    which is concave in k; so giving rollouts one by one to the largest u(k+1) - u(k) maximises the sum. Ties go to the
    group that has been given fewer, then by prompt order. Groups, pilot and rest together, are trained on whole.

    Scale (our reading; the pilot's size is not in the text that we have). The pilot is half of n = ``budget // groups``
    and at least 2.

    Degenerate cases. A pilot without answers leaves the prior, u(1) = 1/2. Where ``max_count`` leaves no room for the
    rest, or the pilot was all of the budget, less is spent, or only one round is played. Prompts with fewer than two
    answers are not trained on.

    Attributes:
        pilot: rollouts of the pilot; None for half of an equal division.
        max_count: most rollouts of a prompt, pilot included.

    Raises:
        ValueError: a pilot of fewer than 2, a ``max_count`` below it, or (in a step) a budget that leaves groups of one
            or does not cover the pilot.
    """

    pilot: int | None = None
    max_count: int = 128

    def __post_init__(self) -> None:
        if self.pilot is not None and self.pilot < 2:
            raise ValueError(f"pilot is {self.pilot}: a group of one has no gradient, use at least 2")
        if self.max_count < (self.pilot or 2):
            raise ValueError(f"max_count is {self.max_count}: it must be at least the pilot's {self.pilot or 2}")

    def step(self, request: Request) -> Turn:
        """Pilot, divide the rest, draw it."""
        pilot = min(max(2, group_size(request) // 2), self.max_count) if self.pilot is None else self.pilot
        prompt_ids = request.take(request.groups)
        left = request.budget - pilot * len(prompt_ids)
        if left < 0:
            raise ValueError(f"{request.budget} rollouts do not cover a pilot of {pilot} for {len(prompt_ids)} prompts")
        drawn = yield equal_draw(prompt_ids, pilot)
        attempts_P, failures_P = drawn.attempts_P, drawn.attempts_P - drawn.successes_P
        extra_P = most_hits(failures_P, attempts_P, left, self.max_count - pilot)
        chosen = np.flatnonzero(extra_P)
        if chosen.size:
            strength_P = (2 + attempts_P[chosen]).astype(np.float64)
            rates_P: FloatArray = (1 + drawn.successes_P[chosen]) / strength_P
            ids = tuple([prompt_ids[i] for i in chosen.tolist()])
            drawn = join(request.step, [drawn, (yield Draw(ids, extra_P[chosen], rates_P, strength_P))])
        return Batch(pick(drawn, drawn.attempts_P >= 2))

    def save(self, path: Path) -> None:
        """Write that there is nothing to remember."""
        save_memory(path, "hora", {})

    def load(self, path: Path) -> None:
        """Check that the file is of this rule.

        Raises:
            BeliefFileError: it is missing, damaged, or of another rule.
        """
        load_memory(path, "hora")


def hit_marginals(failures_P: IntArray, attempts_P: IntArray, stop: int) -> FloatArray:
    """What the next rollout adds to the hit utility, u(k+1) - u(k), for k = 0..stop-1.

    Args:
        failures_P, attempts_P: what the pilot showed, ``[P]``.
        stop: number of columns.

    Returns:
        ``[P, stop]``, falling along a row: ``(1 + s) / (2 + m + k) * prod_{j<k} (1 + f + j) / (2 + m + j)``.
    """
    k = np.arange(stop)
    misses = (1.0 + failures_P[:, None] + k) / (2.0 + attempts_P[:, None] + k)
    all_missed = np.ones((failures_P.size, stop))
    np.cumprod(misses[:, :-1], axis=1, out=all_missed[:, 1:])
    marginals: FloatArray = all_missed * (1 - misses)
    return marginals


def most_hits(failures_P: IntArray, attempts_P: IntArray, budget: int, most: int) -> IntArray:
    """The division of ``budget`` rollouts, at most ``most`` a prompt, with the greatest total hit utility; ``[P]``."""
    units = min(budget, most * failures_P.size)
    stop = min(budget, most)
    if units == 0:
        return np.zeros(failures_P.size, dtype=np.int64)
    marginals = hit_marginals(failures_P, attempts_P, stop)
    price = np.partition(marginals, marginals.size - units, axis=None)[marginals.size - units]
    bought = marginals > price
    ties = np.flatnonzero((marginals == price).T)[: units - int(bought.sum())]  # fewest first, then by prompt
    counts_P: IntArray = np.bincount(ties % failures_P.size, minlength=failures_P.size) + bought.sum(axis=1)
    return counts_P

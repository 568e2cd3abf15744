"""HORA: after a pilot, spend the rest where a correct answer is most likely.

Source: arXiv 2605.07114, section 3 (hit utility under a uniform prior, greedy maximisation). No code is public.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from knapsack_arena.strategies import Batch, RolloutRequest, StepGenerator, StepSpec
from knapsack_arena.strategies.groups import equal_request, group_size, join, pick
from knapsack_rl.files import SavedToFile
from knapsack_rl.notation import FloatArray, IntArray


@dataclass(frozen=True)
class Hora(SavedToFile):
    """A pilot of every prompt, then the rest of the budget by posterior hit utility, within the step.

    After f failures in m pilot rollouts, and with a uniform prior, k more rollouts of a prompt hold at least one
    success with probability

        u(k) = 1 - prod_{j<k} (1 + f + j) / (2 + m + j),

    which is concave in k; so giving rollouts one by one to the largest u(k+1) - u(k) maximises the sum. Ties go to the
    group with fewer extra rollouts, then by prompt order. The whole group, pilot included, is trained on.

    Scale (our reading; the text available to us does not give the pilot's size). The pilot is half of n = ``budget //
    groups`` and at least 2.

    Degenerate cases. A pilot without answers leaves the prior, u(1) = 1/2. Where ``max_count`` leaves no room for the
    rest, less is spent; where the pilot uses the whole budget, there is one round. Prompts with fewer than two answers
    are not trained on.

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

    def step(self, spec: StepSpec) -> StepGenerator:
        """Generate the pilot, divide the rest, generate it."""
        pilot = min(max(2, group_size(spec) // 2), self.max_count) if self.pilot is None else self.pilot
        prompt_ids = spec.take(spec.groups)
        left = spec.budget - pilot * len(prompt_ids)
        if left < 0:
            raise ValueError(f"{spec.budget} rollouts do not cover a pilot of {pilot} for {len(prompt_ids)} prompts")
        generated = yield equal_request(prompt_ids, pilot)
        attempts_P, failures_P = generated.attempts_P, generated.attempts_P - generated.successes_P
        extra_P = most_hits(failures_P, attempts_P, left, self.max_count - pilot)
        chosen = np.flatnonzero(extra_P)
        if chosen.size:
            pseudo_count_P = (2 + attempts_P[chosen]).astype(np.float64)
            rates_P: FloatArray = (1 + generated.successes_P[chosen]) / pseudo_count_P
            ids = tuple([prompt_ids[i] for i in chosen.tolist()])
            generated = join(
                spec.step, [generated, (yield RolloutRequest(ids, extra_P[chosen], rates_P, pseudo_count_P))]
            )
        return Batch(pick(generated, generated.attempts_P >= 2))


def hit_marginals(failures_P: IntArray, attempts_P: IntArray, stop: int) -> FloatArray:
    """Increase of the hit utility by the next rollout, u(k+1) - u(k), for k = 0..stop-1.

    Args:
        failures_P, attempts_P: counts of the pilot, ``[P]``.
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

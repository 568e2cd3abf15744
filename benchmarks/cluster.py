"""A simulated cluster: prompts with answers of heavy-tailed length, workers that generate several.

A worker has slots, like an engine with continuous batching, and takes its jobs in the order in which they were dealt.
The first job of a prompt on a worker prefills the prompt; later ones find it in the worker's prefix cache. The unit of
time is one token of one slot of a worker of speed 1.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from knapsack_rl.allocator import KnapsackAllocator
from knapsack_rl.knapsack.solver import solve
from knapsack_rl.notation import FloatArray, IntArray
from knapsack_rl.outcomes import Outcomes
from knapsack_rl.plan import jobs
from knapsack_rl.rollouts import deal
from knapsack_rl.values import expected_knapsack_marginals

LONGEST = 8192
READING = 100.0  # cost of the prefill of a prompt of some hundred tokens, in generated tokens
ROLLOUTS = 8  # of a prompt, on average
EARLIER = 6  # steps in which every prompt was observed before

Dealer = Callable[[IntArray, int, FloatArray, int], Sequence[IntArray]]


def rows_as_they_lie(counts_P: IntArray, workers: int, work_P: FloatArray, seed: int) -> Sequence[IntArray]:
    """Split the repeated batch evenly, as trainers do: the same number of rollouts for every worker."""
    return np.array_split(jobs(counts_P), workers)


def groups_in_turn(counts_P: IntArray, workers: int, work_P: FloatArray, seed: int) -> Sequence[IntArray]:
    """Deal whole groups in turn: the same number for every worker."""
    return [np.repeat(np.arange(w, counts_P.size, workers), counts_P[w::workers]) for w in range(workers)]


def scattered(counts_P: IntArray, workers: int, work_P: FloatArray, seed: int) -> Sequence[IntArray]:
    """Deal rollouts at random, so that groups are spread over workers."""
    return np.array_split(np.random.default_rng(seed).permutation(jobs(counts_P)), workers)


DEALERS: dict[str, Dealer] = {
    "deal": deal,
    "rows as they lie": rows_as_they_lie,
    "whole groups in turn": groups_in_turn,
    "scattered": scattered,
}


@dataclass(frozen=True)
class Batch:
    """The prompts of a step: plans, expected lengths and true lengths of answers.

    Attributes:
        plans: counts by name of the plan, each ``[P]``.
        expected_P: expected length of an answer, in tokens, ``[P]``.
        lengths_P_N: true lengths of the first, second, ... answer, in tokens, ``[P, N]``.
    """

    plans: dict[str, IntArray]
    expected_P: FloatArray
    lengths_P_N: FloatArray

    def tokens(self, plan: str) -> float:
        """Number of tokens that a plan generates."""
        counts_P = self.plans[plan]
        return float(self.lengths_P_N[np.arange(self.lengths_P_N.shape[1]) < counts_P[:, None]].sum())

    def again(self, step: int) -> Batch:
        """The same prompts with their answers permuted: another step on them."""
        lengths_P_N = np.random.default_rng([3, step]).permuted(self.lengths_P_N, axis=1)
        return Batch(self.plans, self.expected_P, lengths_P_N)


def make_batch(prompts: int, seed: int) -> Batch:
    """Prompts of all difficulties, each observed in ``EARLIER`` steps; the harder, the longer the answers."""
    random = np.random.default_rng([1, seed])
    ease_P = random.normal(size=prompts)
    rates_P = 1 / (1 + np.exp(-4 * ease_P))
    log_mean_P = np.log(600) - 0.3 * ease_P + 0.4 * random.normal(size=prompts)

    def answers(most: int) -> FloatArray:
        """Log-normal: within a prompt, one answer in twenty is more than 3.7 times as long as the median one."""
        spread = 0.8 * random.normal(size=(prompts, most))
        return np.minimum(np.exp(log_mean_P[:, None] + spread), LONGEST)

    allocator, ids, budget = KnapsackAllocator(), [f"p{i}" for i in range(prompts)], ROLLOUTS * prompts
    for step in range(EARLIER):
        counts_P = allocator.plan(ids, budget, step).counts_P
        solved = (random.random(budget) < rates_P[jobs(counts_P)]).astype(np.float64)
        tokens = answers(int(counts_P.max()))[np.arange(counts_P.max()) < counts_P[:, None]]
        allocator.observe(Outcomes(step, tuple(ids), counts_P, solved, tokens.astype(np.int64)))
    forecast = allocator.beliefs.forecast(ids, EARLIER)
    limits = np.full(prompts, 2), np.full(prompts, 128)
    plans = {
        "uniform": np.full(prompts, ROLLOUTS),
        "uneven": allocator.plan(ids, budget, EARLIER).counts_P,
        "uneven, by tokens": solve(
            lambda rows, stop: expected_knapsack_marginals(forecast.alpha_P[rows], forecast.beta_P[rows], stop),
            int(ROLLOUTS * forecast.tokens_P.sum()),
            *limits,
            cost_P=forecast.tokens_P,
        ).counts_P,
    }
    most = max(int(counts_P.max()) for counts_P in plans.values())
    # Twice as many answers as the largest count, so that `again` can draw others.
    return Batch(plans, forecast.tokens_P, answers(2 * most))


def generate(
    dealt: Sequence[IntArray], batch: Batch, slots: int, speeds_W: FloatArray | None = None
) -> tuple[FloatArray, FloatArray]:
    """Completion time and work of each worker, in tokens; both ``[W]``."""
    drawn = np.zeros(len(batch.expected_P), dtype=np.int64)
    lengths = batch.lengths_P_N
    done_W, work_W = np.zeros(len(dealt)), np.zeros(len(dealt))
    for worker, prompts in enumerate(dealt):
        free, known = [0.0] * slots, set()
        for i in prompts.tolist():
            length = float(lengths[i, drawn[i]])
            drawn[i] += 1
            if i not in known:
                known.add(i)
                length += READING
            end = free[0] + length
            heapq.heapreplace(free, end)
            done_W[worker] = max(done_W[worker], end)
            work_W[worker] += length
    return (done_W if speeds_W is None else done_W / speeds_W), work_W

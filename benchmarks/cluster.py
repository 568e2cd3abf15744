"""A pretend cluster: prompts with answers of heavy-tailed length, and workers that generate some answers at a time.

A worker has slots, as an engine with continuous batching has, and takes its jobs in the order in which they were dealt.
The first job of a prompt on a worker reads the prompt; later ones find it in the worker's prefix cache. Time is counted
in tokens of one slot of a worker of speed 1.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from knapsack_rl.allocator import make_allocator
from knapsack_rl.notation import FloatArray, IntArray
from knapsack_rl.outcomes import Outcomes
from knapsack_rl.rollouts import deal, jobs
from knapsack_rl.solver import solve
from knapsack_rl.values import expected_knapsack_marginals

LONGEST = 8192
READING = 100.0  # a prompt of some hundred tokens, read many at a time, costs as much as so many answered ones
ROLLOUTS = 8  # of a prompt, on average
EARLIER = 6  # steps in which every prompt was met before

Dealer = Callable[[IntArray, int, FloatArray, int], Sequence[IntArray]]


def rows_as_they_lie(counts_P: IntArray, workers: int, work_P: FloatArray, seed: int) -> Sequence[IntArray]:
    """What repeating a batch and splitting it evenly does: the same number of rollouts for everyone."""
    return np.array_split(jobs(counts_P), workers)


def groups_in_turn(counts_P: IntArray, workers: int, work_P: FloatArray, seed: int) -> Sequence[IntArray]:
    """The same number of whole groups for everyone."""
    return [np.repeat(np.arange(w, counts_P.size, workers), counts_P[w::workers]) for w in range(workers)]


def scattered(counts_P: IntArray, workers: int, work_P: FloatArray, seed: int) -> Sequence[IntArray]:
    """Rollouts at random: no prompt stays together."""
    return np.array_split(np.random.default_rng(seed).permutation(jobs(counts_P)), workers)


DEALERS: dict[str, Dealer] = {
    "deal": deal,
    "rows as they lie": rows_as_they_lie,
    "whole groups in turn": groups_in_turn,
    "scattered": scattered,
}


@dataclass(frozen=True)
class Batch:
    """A step's prompts: what is planned for them, what is thought of them, and what comes.

    Attributes:
        plans: counts by name of the plan, each ``[P]``.
        expected_P: what an answer is expected to take, in tokens, ``[P]``.
        lengths_P_N: what the first, second, ... answer will take, ``[P, N]``.
    """

    plans: dict[str, IntArray]
    expected_P: FloatArray
    lengths_P_N: FloatArray

    def tokens(self, plan: str) -> float:
        """All tokens that a plan will generate."""
        counts_P = self.plans[plan]
        return float(self.lengths_P_N[np.arange(self.lengths_P_N.shape[1]) < counts_P[:, None]].sum())

    def again(self, step: int) -> Batch:
        """The same prompts, and other answers of theirs."""
        lengths_P_N = np.random.default_rng([3, step]).permuted(self.lengths_P_N, axis=1)
        return Batch(self.plans, self.expected_P, lengths_P_N)


def make_batch(prompts: int, seed: int) -> Batch:
    """Prompts of all difficulties, met some times before; the harder, the longer the answers."""
    random = np.random.default_rng([1, seed])
    ease_P = random.normal(size=prompts)
    rates_P = 1 / (1 + np.exp(-4 * ease_P))
    log_mean_P = np.log(600) - 0.3 * ease_P + 0.4 * random.normal(size=prompts)

    def answers(most: int) -> FloatArray:
        """Log-normal: within a prompt, one answer in twenty is more than 3.7 times as long as the median one."""
        spread = 0.8 * random.normal(size=(prompts, most))
        return np.minimum(np.exp(log_mean_P[:, None] + spread), LONGEST)

    allocator, ids, budget = make_allocator(), [f"p{i}" for i in range(prompts)], ROLLOUTS * prompts
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
    # More answers than any plan asks for, so that others can come when the prompts are met again.
    return Batch(plans, forecast.tokens_P, answers(2 * most))


def generate(
    dealt: Sequence[IntArray], batch: Batch, slots: int, speeds_W: FloatArray | None = None
) -> tuple[FloatArray, FloatArray]:
    """When each worker is done, and how much it did, in tokens; both ``[W]``."""
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

"""From a plan to single-rollout jobs, and from jobs to workers."""

from __future__ import annotations

import numpy as np

from knapsack_rl.notation import FloatArray, IntArray


def jobs(counts_P: IntArray) -> IntArray:
    """The prompt index of every rollout, group after group; ``[counts_P.sum()]``."""
    return np.repeat(np.arange(counts_P.size), counts_P)


def deal(counts_P: IntArray, workers: int, work_P: FloatArray | None = None, seed: int = 0) -> list[IntArray]:
    """Deal single-rollout jobs to workers so that each gets the same expected work.

    The groups are laid on a line in a seeded random order and the line is cut into pieces of equal work. So every
    worker is within one job of the mean, a group meets at most two workers more than it must (which keeps its prompt's
    prefix cached), and the deal is a pure function of its arguments: every process computes the same one.

    Args:
        counts_P: rollouts per prompt, ``[P]``.
        workers: number of workers.
        work_P: expected work of one rollout of each prompt (for example tokens), positive, ``[P]``; equal by default.
        seed: of the order.

    Returns:
        For each worker the prompt index of each of its jobs.

    Raises:
        ValueError: no workers, or work that is not positive and finite.
    """
    if workers < 1:
        raise ValueError(f"jobs cannot be dealt to {workers} workers: at least one is needed")
    work = np.ones(counts_P.size) if work_P is None else np.asarray(work_P, dtype=np.float64)
    wrong = ~((work > 0) & np.isfinite(work))
    if wrong.any():
        i = int(np.argmax(wrong))
        raise ValueError(f"prompt {i} is expected to take {work[i]} of work a rollout: it must be positive and finite")
    order = np.random.default_rng(seed).permutation(counts_P.size)
    line = np.repeat(order, counts_P[order])
    if not line.size:
        return [line for _ in range(workers)]
    ends = np.cumsum(work[line])
    middles = ends - work[line] / 2
    worker_of_job = np.minimum((middles * (workers / ends[-1])).astype(np.int64), workers - 1)
    return np.split(line, np.searchsorted(worker_of_job, np.arange(1, workers)))

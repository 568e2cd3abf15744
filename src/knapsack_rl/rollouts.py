"""Distribute the rollouts of a plan over workers, and estimate the workers' speeds.

For authors of trainers: inference engines have queues of their own, so that no adapter uses this module.
"""

from __future__ import annotations

import heapq

import numpy as np

from knapsack_rl.notation import FloatArray, IntArray
from knapsack_rl.plan import jobs

# Multiples of the golden ratio modulo 1 are a low-discrepancy sequence: every prefix is spread evenly over [0, 1).
_GOLDEN = (5**0.5 - 1) / 2
# Most rollouts of a chunk, in mean group sizes. Larger chunks make a worker's load depend on one prompt's uncertain
# length; smaller ones repeat prefill too often.
_MAX_CHUNK = 2
# Prior relative standard deviation of a worker's seconds per unit of work; it counts as one observation.
_PRIOR_SPREAD = 0.5


def deal(
    counts_P: IntArray,
    workers: int,
    work_P: FloatArray | None = None,
    seed: int = 0,
    speeds_W: FloatArray | None = None,
) -> list[IntArray]:
    """Distribute single-rollout jobs over workers so that all are expected to finish at the same time.

    Large groups are cut into chunks, the chunks are put in a sequence, and the sequence is cut where each worker's
    share of the work ends. Every section of the sequence holds long and short chunks in equal proportions, so that
    workers have jobs of similar lengths, not only equal sums. Each worker's work differs from its share by at most one
    job; prompts are read (prefilled) at most ``chunks + workers - 1`` times in all; and the result is a deterministic
    function of the arguments, so that every process computes the same.

    Args:
        counts_P: rollouts per prompt, ``[P]``.
        workers: number of workers.
        work_P: expected work of one rollout of each prompt (for example tokens), positive, ``[P]``; equal by default.
        seed: seed of the random order.
        speeds_W: work per second of each worker, positive, ``[workers]``; equal by default.

    Returns:
        For each worker the prompt index of each of its jobs, in order of decreasing work, so that no long job starts
        last.

    Raises:
        ValueError: no workers, or work or a speed that is not positive and finite.
    """
    if workers < 1:
        raise ValueError(f"jobs cannot be distributed to {workers} workers: at least one is needed")
    work = np.ones(counts_P.size) if work_P is None else np.asarray(work_P, dtype=np.float64)
    speeds = np.ones(workers) if speeds_W is None else np.asarray(speeds_W, dtype=np.float64)
    if speeds.shape != (workers,):
        raise ValueError(f"{workers} workers were given speeds of shape {speeds.shape}")
    _check(work, "prompt {} is expected to take {} of work a rollout")
    _check(speeds, "worker {} has a speed of {}")
    sequence = _job_sequence(counts_P, work, seed)
    if not sequence.size:
        return [sequence for _ in range(workers)]
    ends = np.cumsum(work[sequence])
    middles = (ends - work[sequence] / 2) / ends[-1]
    shares = np.cumsum(speeds) / speeds.sum()
    worker_of_job = np.minimum(np.searchsorted(shares, middles, side="right"), workers - 1)
    order = np.lexsort((sequence, -work[sequence], worker_of_job))
    return np.split(sequence[order], np.searchsorted(worker_of_job, np.arange(1, workers)))


def deal_tasks(tasks: int, seconds_W: FloatArray) -> IntArray:
    """Divide equal tasks among workers so that the last one finishes as early as possible, in whole tasks.

    The minimum of max_i a_i s_i over whole numbers a_i with sum ``tasks`` (the problem of ATA's recursive allocation
    selection, arXiv 2502.00775). Every task goes to the worker that would finish it first, which is optimal: no other
    allocation of as many tasks has a smaller maximum. Time is O(tasks log workers) after a start from the fluid form.

    Args:
        tasks: number of tasks.
        seconds_W: seconds that a task takes on each worker, 0 or more and finite, ``[workers]``;
            ``1 / WorkerSpeeds.optimistic()`` for estimates that explore.

    Returns:
        Tasks of each worker, ``[workers]``; of workers that would finish together the first gets the task.

    Raises:
        ValueError: no workers, a negative number of tasks, or seconds that are negative or not finite.
    """
    seconds = np.asarray(seconds_W, dtype=np.float64)
    if not seconds.size or tasks < 0 or not (np.isfinite(seconds) & (seconds >= 0)).all():
        raise ValueError(f"{tasks} tasks for workers that take {seconds.tolist()} seconds: both must be 0 or more")
    if (seconds == 0).any():
        counts: IntArray = np.where(np.arange(seconds.size) == np.argmin(seconds), tasks, 0)
        return counts
    # Below this time no worker can be given one task too many, so that these tasks are certain.
    certain = tasks / (1 / seconds).sum()
    counts = np.maximum(np.floor(certain / seconds * (1 - 1e-12)).astype(np.int64), 0)
    heap = [
        (float((count + 1) * time), worker) for worker, (count, time) in enumerate(zip(counts, seconds, strict=True))
    ]
    heapq.heapify(heap)
    for _ in range(tasks - int(counts.sum())):
        _, worker = heapq.heappop(heap)
        counts[worker] += 1
        heapq.heappush(heap, (float((counts[worker] + 1) * seconds[worker]), worker))
    return counts


def _job_sequence(counts_P: IntArray, work_P: FloatArray, seed: int) -> IntArray:
    """The prompt index of every job, chunk after chunk, long and short chunks interleaved, ``[counts_P.sum()]``."""
    mean = counts_P.sum() / max(int((counts_P > 0).sum()), 1)
    chunks_P = np.ceil(counts_P / max(_MAX_CHUNK * mean, 1)).astype(np.int64)
    prompt_C = jobs(chunks_P)
    place_C = np.arange(prompt_C.size) - (np.cumsum(chunks_P) - chunks_P)[prompt_C]
    chunks_C, count_C = chunks_P[prompt_C], counts_P[prompt_C]
    sizes_C = count_C * (place_C + 1) // chunks_C - count_C * place_C // chunks_C
    random = np.random.default_rng(seed)
    by_work = np.lexsort((random.permutation(counts_P.size)[prompt_C], -work_P[prompt_C]))
    position_C = np.empty(prompt_C.size)
    position_C[by_work] = (np.arange(prompt_C.size) * _GOLDEN + random.random()) % 1
    order = np.argsort(position_C)
    return np.repeat(prompt_C[order], sizes_C[order])


def _check(values: FloatArray, what: str) -> None:
    wrong = ~((values > 0) & np.isfinite(values))
    if wrong.any():
        i = int(np.argmax(wrong))
        raise ValueError(what.format(i, values[i]) + ": it must be positive and finite")


class WorkerSpeeds:
    """Estimate seconds per unit of work of each worker, and optimistic bounds on its speed.

    ``deal(counts, workers, work, speeds_W=speeds.optimistic())`` divides the work so that all workers finish together
    if each needs as few seconds as its lower confidence bound: the fluid form of ATA's minimum of ``max_i a_i s_i``.
    """

    def __init__(self, workers: int, half_life: float = 32.0) -> None:
        """Start without observations.

        Args:
            workers: number of workers.
            half_life: steps after which an observation counts half, because the speeds of shared machines change.

        Raises:
            ValueError: no workers, or a half-life that is not positive.
        """
        if workers < 1 or not half_life > 0:
            raise ValueError(f"{workers} workers and a half-life of {half_life}: both must be positive")
        self._decay = 0.5 ** (1 / half_life)
        self._work_W, self._seconds_W = np.zeros(workers), np.zeros(workers)
        self._visits_W = np.zeros(workers)
        self._squares, self._degrees, self._steps = 0.0, 0.0, 0

    def optimistic(self) -> FloatArray:
        """Upper confidence bounds of the speeds, in work per second, ``[workers]``.

        A worker without observations gets the estimate of the fastest one; all speeds are 1 if there are none at all.
        """
        seen = self._work_W > 0
        if not seen.any():
            return np.ones(seen.size)
        seconds = np.where(seen, self._seconds_W / np.maximum(self._work_W, 1e-300), 0.0)
        seconds[~seen] = seconds[seen].min()
        width = self._spread * np.sqrt(2 * np.log(2 * max(self._steps, 1) ** 2) / np.maximum(self._visits_W, 1e-9))
        # The lower bound on seconds is seconds / (1 + width), not seconds * (1 - width), which could be negative.
        return (1 + np.where(seen, width, 0.0)) / seconds

    def observe(self, work_W: FloatArray, seconds_W: FloatArray) -> None:
        """Update the estimates with the times of one step.

        Args:
            work_W: work that each worker did, 0 where it had none, ``[workers]``.
            seconds_W: seconds that it took, ``[workers]``; ignored where there was no work.

        Raises:
            ValueError: arrays of another shape, negative work, or work whose time is not positive and finite.
        """
        work, seconds = np.asarray(work_W, dtype=np.float64), np.asarray(seconds_W, dtype=np.float64)
        if not work.shape == seconds.shape == self._work_W.shape:
            raise ValueError(f"{self._work_W.size} workers, but work of {work.shape} and seconds of {seconds.shape}")
        worked = work > 0
        if not (np.isfinite(work) & (work >= 0)).all() or not (np.isfinite(seconds) & (seconds > 0))[worked].all():
            raise ValueError("work must be finite and not negative, and its time in seconds positive and finite")
        known = worked & (self._work_W > 0)
        ratio = seconds[known] / work[known] * self._work_W[known] / self._seconds_W[known]
        visits = self._visits_W[known]
        # The ratio of a new time to the mean of n earlier ones has 1 + 1/n times the variance of one time.
        self._squares = self._squares * self._decay + float(((ratio - 1) ** 2 * visits / (visits + 1)).sum())
        self._degrees = self._degrees * self._decay + float(known.sum())
        self._work_W = self._work_W * self._decay + work
        self._seconds_W = self._seconds_W * self._decay + seconds * worked
        self._visits_W = self._visits_W * self._decay + worked
        self._steps += 1

    @property
    def _spread(self) -> float:
        """Relative standard deviation of a worker's seconds per unit of work, pooled over all workers."""
        return float(np.sqrt((self._squares + _PRIOR_SPREAD**2) / (self._degrees + 1)))

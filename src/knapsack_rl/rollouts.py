"""From a plan to single-rollout jobs, and from jobs to workers."""

from __future__ import annotations

import numpy as np

from knapsack_rl.notation import FloatArray, IntArray

# Multiples of the golden section, modulo 1, are spread evenly from the first few on.
_GOLDEN = (5**0.5 - 1) / 2
# Groups are cut into pieces of at most so many times the mean group. One piece would tie much of a worker's load to one
# prompt, about whose length the forecast may be wrong; smaller pieces read the prompt more often than that is worth.
_PIECE = 2


def jobs(counts_P: IntArray) -> IntArray:
    """The prompt index of every rollout, group after group; ``[counts_P.sum()]``."""
    return np.repeat(np.arange(counts_P.size), counts_P)


def equal_prompt_weights(counts_P: IntArray) -> FloatArray:
    """Factor for the advantages of each prompt's rollouts under which all prompts weigh the same in the loss; ``[P]``.

    Losses that weigh every rollout (or token) alike weigh a group of N_i as N_i; mean(N) / N_i undoes that. For equal
    groups every factor is exactly 1; prompts without rollouts have 0, and do not count in the mean.
    """
    weights_P, there_P = np.zeros(counts_P.size), counts_P > 0
    if there_P.any():
        weights_P[there_P] = counts_P[there_P].mean() / counts_P[there_P]
    return weights_P


def deal(
    counts_P: IntArray,
    workers: int,
    work_P: FloatArray | None = None,
    seed: int = 0,
    speeds_W: FloatArray | None = None,
) -> list[IntArray]:
    """Deal single-rollout jobs to workers so that each is expected to be done at the same time.

    Large groups are cut into pieces, the pieces are laid on a line, and the line is cut where each worker's share ends.
    On the line every stretch holds long and short pieces alike, so that the workers' loads are alike in kind and not
    only in sum. Every worker is within one job of its share; all workers together read at most ``workers - 1`` prompts
    more often than there are pieces; and the deal is a pure function of its arguments: every process computes the same.

    Args:
        counts_P: rollouts per prompt, ``[P]``.
        workers: number of workers.
        work_P: expected work of one rollout of each prompt (for example tokens), positive, ``[P]``; equal by default.
        seed: of the order.
        speeds_W: work per second of each worker, positive, ``[workers]``; equal by default.

    Returns:
        For each worker the prompt index of each of its jobs, those of the most work first: a long answer that is begun
        late is waited for.

    Raises:
        ValueError: no workers, or work or a speed that is not positive and finite.
    """
    if workers < 1:
        raise ValueError(f"jobs cannot be dealt to {workers} workers: at least one is needed")
    work = np.ones(counts_P.size) if work_P is None else np.asarray(work_P, dtype=np.float64)
    speeds = np.ones(workers) if speeds_W is None else np.asarray(speeds_W, dtype=np.float64)
    if speeds.shape != (workers,):
        raise ValueError(f"{workers} workers were given speeds of shape {speeds.shape}")
    _check(work, "prompt {} is expected to take {} of work a rollout")
    _check(speeds, "worker {} has a speed of {}")
    line = _line(counts_P, work, seed)
    if not line.size:
        return [line for _ in range(workers)]
    ends = np.cumsum(work[line])
    middles = (ends - work[line] / 2) / ends[-1]
    shares = np.cumsum(speeds) / speeds.sum()
    worker_of_job = np.minimum(np.searchsorted(shares, middles, side="right"), workers - 1)
    order = np.lexsort((line, -work[line], worker_of_job))
    return np.split(line[order], np.searchsorted(worker_of_job, np.arange(1, workers)))


def _line(counts_P: IntArray, work_P: FloatArray, seed: int) -> IntArray:
    """The prompt index of every job, piece after piece, where every stretch holds long and short jobs alike."""
    mean = counts_P.sum() / max(int((counts_P > 0).sum()), 1)
    pieces_P = np.ceil(counts_P / max(_PIECE * mean, 1)).astype(np.int64)
    prompt_G = jobs(pieces_P)
    place_G = np.arange(prompt_G.size) - (np.cumsum(pieces_P) - pieces_P)[prompt_G]
    parts_G, count_G = pieces_P[prompt_G], counts_P[prompt_G]
    sizes_G = count_G * (place_G + 1) // parts_G - count_G * place_G // parts_G
    random = np.random.default_rng(seed)
    by_work = np.lexsort((random.permutation(counts_P.size)[prompt_G], -work_P[prompt_G]))
    position_G = np.empty(prompt_G.size)
    position_G[by_work] = (np.arange(prompt_G.size) * _GOLDEN + random.random()) % 1
    order = np.argsort(position_G)
    return np.repeat(prompt_G[order], sizes_G[order])


def _check(values: FloatArray, what: str) -> None:
    wrong = ~((values > 0) & np.isfinite(values))
    if wrong.any():
        i = int(np.argmax(wrong))
        raise ValueError(what.format(i, values[i]) + ": it must be positive and finite")

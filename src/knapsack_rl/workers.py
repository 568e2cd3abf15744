"""How fast the workers are, learned while they work.

After ATA (adaptive task allocation, arXiv 2502.00775): deal as if every worker were as fast as it plausibly is. One
that looked slow by accident is then tried again, and one that is slow is soon known to be.
"""

from __future__ import annotations

import numpy as np

from knapsack_rl.notation import FloatArray

# Of the time that a worker takes for a unit of work, before it was ever seen to vary: relative standard deviation.
_FIRST_SPREAD = 0.5


class WorkerSpeeds:
    """Seconds per unit of work of each worker: what was seen, and how low it may be.

    ``deal(counts, workers, work, speeds_W=speeds.optimistic())`` divides the work so that all are done at once, if each
    is as fast as its lower confidence bound says: the fluid form of ATA's minimum of ``max_i a_i s_i``.
    """

    def __init__(self, workers: int, half_life: float = 32.0) -> None:
        """Workers of whom nothing is known.

        Args:
            workers: how many.
            half_life: steps after which an observation counts half, because machines are shared and change.

        Raises:
            ValueError: no workers, or a half-life that is not positive.
        """
        if workers < 1 or not half_life > 0:
            raise ValueError(f"{workers} workers and a half-life of {half_life}: both must be positive")
        self._fading = 0.5 ** (1 / half_life)
        self._work_W, self._seconds_W = np.zeros(workers), np.zeros(workers)
        self._visits_W = np.zeros(workers)
        self._squares, self._degrees, self._steps = 0.0, 0.0, 0

    def optimistic(self) -> FloatArray:
        """Speeds to deal by, in work per second, ``[workers]``; the same for all while nothing is known."""
        seen = self._work_W > 0
        if not seen.any():
            return np.ones(seen.size)
        seconds = np.where(seen, self._seconds_W / np.maximum(self._work_W, 1e-300), 0.0)
        seconds[~seen] = seconds[seen].min()  # as fast as the fastest, until it has shown otherwise
        width = self._spread * np.sqrt(2 * np.log(2 * max(self._steps, 1) ** 2) / np.maximum(self._visits_W, 1e-9))
        # In the form 1 / (1 + width), a bound that stays positive however little is known.
        return (1 + np.where(seen, width, 0.0)) / seconds

    def observe(self, work_W: FloatArray, seconds_W: FloatArray) -> None:
        """Learn from a step.

        Args:
            work_W: work that each worker did, 0 where it had none, ``[workers]``.
            seconds_W: how long it was busy with it, ``[workers]``.

        Raises:
            ValueError: numbers of another shape, negative ones, or work done in no time.
        """
        work, seconds = np.asarray(work_W, dtype=np.float64), np.asarray(seconds_W, dtype=np.float64)
        if not work.shape == seconds.shape == self._work_W.shape:
            raise ValueError(f"{self._work_W.size} workers, but work of {work.shape} and seconds of {seconds.shape}")
        worked = work > 0
        if not (np.isfinite(work) & (work >= 0)).all() or not (np.isfinite(seconds) & (seconds > 0))[worked].all():
            raise ValueError("work must be finite and not negative, and whoever worked must have taken time for it")
        known = worked & (self._work_W > 0)
        ratio = seconds[known] / work[known] * self._work_W[known] / self._seconds_W[known]
        visits = self._visits_W[known]
        # The ratio of a new time to the mean of n old ones varies by 1 + 1/n times what one time varies by.
        self._squares = self._squares * self._fading + float(((ratio - 1) ** 2 * visits / (visits + 1)).sum())
        self._degrees = self._degrees * self._fading + float(known.sum())
        self._work_W = self._work_W * self._fading + work
        self._seconds_W = self._seconds_W * self._fading + seconds * worked
        self._visits_W = self._visits_W * self._fading + worked
        self._steps += 1

    @property
    def _spread(self) -> float:
        """Relative standard deviation of a worker's time for a unit of work, shared by all workers."""
        return float(np.sqrt((self._squares + _FIRST_SPREAD**2) / (self._degrees + 1)))

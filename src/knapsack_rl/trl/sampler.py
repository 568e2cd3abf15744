"""TRL's sampling order as a deterministic function of seed and epoch, so that a resumed run continues it exactly.

With a pool the shape of a batch is unchanged: the rows that TRL gives to one prompt hold several candidates, of which
the plan chooses later.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from trl.trainer.utils import RepeatSampler

from knapsack_rl.notation import IntArray


def candidate_rows(rows: IntArray, group_size: int, pool: int) -> IntArray:
    """Compute which candidate of a generation batch each row holds: ``pool`` candidates share the rows of a group."""
    candidates: IntArray = rows // group_size * pool + rows % group_size * pool // group_size
    return candidates


class EpochRepeatSampler(RepeatSampler):  # type: ignore[misc]  # TRL ships no types
    """A `RepeatSampler` that can start at any epoch, and that can offer a pool of candidates.

    Stock TRL draws the permutations of all epochs from one generator, so that a run resumed in epoch 1 or later repeats
    the permutation of epoch 0. Here the generator is advanced to the state of the epoch.

    With a pool of k an epoch has the same number of batches and rows, and passes over the data k times: k permutations
    in sequence are cut into batches of k times as many prompts.
    """

    def __init__(self, stock: RepeatSampler, pool: int = 1) -> None:
        """Take over the order of ``stock``, from epoch 0, with ``pool`` candidates for every prompt of a batch."""
        super().__init__(
            stock.data_source,
            stock.mini_repeat_count,
            stock.batch_size,
            stock.repeat_count,
            stock.shuffle,
            stock.seed,
        )
        self.epoch, self.pool = 0, pool

    def __iter__(self) -> Iterator[int]:
        """Yield the row numbers of the current epoch, repeated as in TRL."""
        if self.shuffle:
            self.generator.manual_seed(self.seed or 0)
            for _ in range(self.epoch * self.pool):
                torch.randperm(self.num_samples, generator=self.generator)
        return super().__iter__() if self.pool == 1 else self._with_pool()

    def _with_pool(self) -> Iterator[int]:
        """Yield the row numbers of an epoch with several candidates per group."""
        order = [index for _ in range(self.pool) for index in self._pass()]
        rows = np.arange(self.batch_size * self.mini_repeat_count)
        candidates = candidate_rows(rows, self.mini_repeat_count, self.pool)
        for batch in range(self.num_samples // self.batch_size):
            offered = np.array(order[batch * self.batch_size * self.pool :][: self.batch_size * self.pool])
            for _ in range(self.repeat_count):
                yield from offered[candidates].tolist()

    def _pass(self) -> list[int]:
        """The row numbers of one pass over the data, in order or permuted."""
        if not self.shuffle:
            return list(range(self.num_samples))
        permutation: list[int] = torch.randperm(self.num_samples, generator=self.generator).tolist()
        return permutation

"""TRL's sampling order as a pure function of seed and epoch, so that a resumed run meets the right prompts."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from trl.trainer.utils import RepeatSampler


class EpochRepeatSampler(RepeatSampler):  # type: ignore[misc]  # TRL ships no types
    """`RepeatSampler` whose order can be set to that of any epoch.

    Stock TRL draws the permutations of all epochs from one generator, so a run resumed in epoch 1 or later starts again
    with the permutation of epoch 0. Here the generator is brought to where it would be.
    """

    def __init__(self, stock: RepeatSampler) -> None:
        """The order of ``stock``, from epoch 0."""
        super().__init__(
            stock.data_source,
            stock.mini_repeat_count,
            stock.batch_size,
            stock.repeat_count,
            stock.shuffle,
            stock.seed,
        )
        self.epoch = 0

    def __iter__(self) -> Iterator[int]:
        """The row numbers of the current epoch, each repeated as TRL repeats it."""
        if self.shuffle:
            self.generator.manual_seed(self.seed or 0)
            for _ in range(self.epoch):
                torch.randperm(self.num_samples, generator=self.generator)
        return super().__iter__()

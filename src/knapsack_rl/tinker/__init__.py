"""GRPO with knapsack-allocated groups on any Tinker-compatible server: ``train.main(allocated(config))``."""

from knapsack_rl.tinker.config import AllocatedDatasetBuilder, allocated
from knapsack_rl.tinker.dataset import AllocatedDataset

__all__ = ["AllocatedDataset", "AllocatedDatasetBuilder", "allocated"]

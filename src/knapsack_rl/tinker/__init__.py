"""GRPO with groups sized by the knapsack on any Tinker-compatible server: ``train.main(allocated(config))``."""

from knapsack_rl.tinker.batches import LookFirst
from knapsack_rl.tinker.dataset import ALIASES, AllocatedDataset, AllocatedDatasetBuilder, allocated

__all__ = ["ALIASES", "AllocatedDataset", "AllocatedDatasetBuilder", "LookFirst", "allocated"]

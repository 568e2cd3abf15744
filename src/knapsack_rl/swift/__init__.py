"""Uneven groups for ms-swift's GRPO: ``import knapsack_rl.swift.plugin`` in a file of ``--external_plugins``."""

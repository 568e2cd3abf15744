"""Uneven groups for slime (`knapsack_rl.slime.hooks`) and its descendant miles (`knapsack_rl.slime.miles`)."""

"""The evidence: what compares rules. `knapsack_rl` never imports it."""

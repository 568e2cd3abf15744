"""Choose the counts of greatest total value for a budget: an exact knapsack solver."""

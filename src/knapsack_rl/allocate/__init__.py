"""`knapsack-rl allocate`: divide a budget of rollouts over prompts with known pass rates."""

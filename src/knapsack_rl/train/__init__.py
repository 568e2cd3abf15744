"""`knapsack-rl train`: train a language model by GRPO with different rules and compare the runs."""

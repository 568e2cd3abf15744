"""The main job: train a language model by GRPO with knapsack-allocated groups. Import its modules by path."""

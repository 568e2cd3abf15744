"""`knapsack-rl allocate`: a file of pass rates in, a file of counts out. Import its modules by path."""

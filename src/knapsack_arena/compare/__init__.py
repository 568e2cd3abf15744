"""Rules side by side, on the same simulated policies, at the same budget: `knapsack-rl compare`.

A trial is one rule on one preset with one seed. `trials` defines and runs one, `metrics` measures it, `workers` runs
many in processes or on Ray, `experiment` runs a whole experiment, `results` and `ranking` evaluate it, `display` and
`page` show it.
"""

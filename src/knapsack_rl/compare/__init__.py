"""Rules side by side, on the same simulated policies, at the same budget: `knapsack-rl compare`.

A cell is one rule on one preset with one seed. `cells` says what there is to run, `cell` runs one, `meter` measures it,
`workers` runs many in processes of their own, `results` and `ranking` read what came of them, and `page` shows it.
"""

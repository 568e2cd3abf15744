"""`knapsack-rl replay`: what other rules would have planned on recorded rollouts.

source.py (a trace) | table.py  ->  rollouts.py  ->  replay.py  ->  metrics.py  ->  output.py
                                    sampling         steps          per step, rule  terminal, files
"""

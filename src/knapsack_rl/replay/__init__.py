"""`knapsack-rl replay`: what other rules would have planned on recorded rollouts. Import its modules by path.

recording.py | table.py  ->  deck.py  ->  seat.py  ->  score.py  ->  tally.py  ->  output.py | show.py
a trace        a table       draws        a step       what it       per rule     files      the terminal
"""

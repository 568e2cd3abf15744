"""What slime's flags name; written against slime 0.3.1, commit 624b824a898ab0ec1fcb4d373004c7f3852bf515.

slime is not on the package index. This is tested against its classes on a CPU, and has not been run end to end.
"""

from knapsack_rl.slime.source import hooks_of, post_process

__all__ = ["DataSource", "generate", "post_process"]

DataSource, generate = hooks_of("slime")
